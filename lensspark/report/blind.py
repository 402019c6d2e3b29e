"""Injected fakes: real galaxies of the run without a hit, each given a Lyman alpha line, to test the inspector blindly.

A fake goes the way of a candidate: the same scorer places and measures its line, and one that is no hit or fails a cut
of what was measured is not shown, since the page has no such candidates either. Fakes are never rows of the products.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lensspark import measure, schema, vetting
from lensspark.catalogue import iau_name
from lensspark.eigen import DLOGLAM
from lensspark.locate import measure_line, ranked
from lensspark.mock import objects, profiles
from lensspark.mock.instrument import with_light
from lensspark.report import spectra
from lensspark.report.spectra import KEY, Pixels

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from lensspark.run import Run

log = logging.getLogger(__name__)

TRIES = 4  # galaxies read for each fake that is wanted: lines are as faint as [mock] draws them
TYPICAL_LSF = 1.2  # px; where a file has no dispersion (docs/science.md: 0.98-1.43 px in the window)
KEY_COLUMNS = (*KEY, "line_wave", "line_flux", "line_fwhm", "line_alpha", "line_snr")


@dataclass(frozen=True)
class Blind:
    """`rows`: schema.CANDIDATES of the fakes as measured; `spectra`: as page.write_report takes them; `key`: truth."""

    rows: pd.DataFrame
    spectra: dict[tuple, dict[str, Any]] = field(default_factory=dict)
    key: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=KEY_COLUMNS))


def make_blind(spark: SparkSession, run: Run, ledger: DataFrame) -> Blind:
    """`report.blind_fakes` fakes of the run, fewer where too few injected lines pass the search; keyed randomness."""
    wanted, seed = run.config.report.blind_fakes, run.config.report.blind_seed
    hosts = _hosts(ledger, seed, TRIES * wanted)
    if hosts.empty:
        log.warning("report.blind_fakes = %d: no fakes, since no galaxy was scored that is no hit", wanted)
        return Blind(hosts)
    pixels = spectra.read(spark, run, hosts[KEY].itertuples(index=False, name=None))
    hosts = hosts.set_index(KEY).loc[pixels.keys].reset_index()
    pixels, truth = inject(pixels, seed, run.config.mock)
    rows = _measured(run, pixels, hosts)
    passing = _passing(spark, run, rows)
    chosen = np.sort(passing[hosts["draw"].to_numpy()[passing].argsort()][:wanted])
    if len(chosen) < wanted:
        log.warning("the search finds only %d of %d injected lines: the blind test has %d fakes, not %d", len(chosen),
                    len(hosts), len(chosen), wanted)
    rows, pixels, truth = rows.iloc[chosen].reset_index(drop=True), pixels[chosen], truth.iloc[chosen]
    shown = spectra.shown(run, pixels, rows)
    beside = spectra.others(spark, run, rows) if len(rows) else {}
    return Blind(rows, {key: {**one, "others": beside.get(key, [])} for key, one in shown.items()},
                 truth.reset_index(drop=True))


def _hosts(ledger: DataFrame, seed: int, number: int) -> pd.DataFrame:
    """Scored galaxies without a hit, drawn by a hash of seed and key; `draw` is their order."""
    from pyspark.sql import functions as F

    order = F.xxhash64(F.lit(seed), *KEY)
    hosts = ledger.where("p_line IS NOT NULL AND NOT is_hit").withColumn("draw", order).orderBy("draw", *KEY)
    hosts = hosts.limit(number).toPandas()
    hosts["draw"] = np.arange(len(hosts))
    return hosts


def inject(pixels: Pixels, seed: int, settings: Any) -> tuple[Pixels, pd.DataFrame]:
    """`pixels` with one mock Lyman alpha line each ([mock]'s wavelengths, fluxes and shapes), and KEY_COLUMNS.

    Seen through the fibre's own line-spread function; the noise stays that of the spectrum, its reported variance grows
    by the line's light. `line_snr` is sqrt(sum f^2 ivar) of the injected line over measured pixels.
    """
    n = len(pixels)
    u = np.empty((n, 32))
    for i, (plate, mjd, fiberid, _) in enumerate(pixels.keys):
        key = [seed, int(plate) << 40 | int(mjd) << 16 | int(fiberid)]
        np.random.Generator(np.random.Philox(key=key)).random(out=u[i])
    lines = objects.lyman_alpha(u, np.arange(n), settings)
    at = np.clip(np.rint(np.log10(lines.wave) / DLOGLAM).astype(int) - pixels.first, 0, pixels.wave.size - 1)
    lsf = pixels.planes["wdisp"][lines.rows, at].astype(float)
    lsf = np.where(np.isfinite(lsf) & (lsf > 0), lsf, TYPICAL_LSF)
    added = np.zeros_like(pixels.planes["flux"])
    profiles.add_lines(added, lines.rows, lines.wave, lines.flux, lines.fwhm, lines.alpha, lsf, pixels.first)
    snr = np.sqrt(np.einsum("np,np,np->n", added, added, pixels.planes["ivar"], dtype=np.float64))
    own = slice(0, n)  # the second peaks of double lines come after
    truth = pd.DataFrame(pixels.keys, columns=KEY).assign(
        line_wave=lines.wave[own], line_flux=np.bincount(lines.rows, weights=lines.flux, minlength=n),
        line_fwhm=lines.fwhm[own], line_alpha=lines.alpha[own], line_snr=snr)
    flux, ivar = with_light(pixels.planes["flux"], pixels.planes["ivar"], added, pixels.wave)
    return replace(pixels, planes=pixels.planes | {"flux": flux, "ivar": ivar}), truth


def _measured(run: Run, pixels: Pixels, hosts: pd.DataFrame) -> pd.DataFrame:
    """`hosts` as schema.CANDIDATES with what the search measures in `pixels`; nothing of what the ledger measured."""
    prepared, p_line, heat = spectra.score(run, pixels, hosts["z_lens"].to_numpy(float))
    loglam0 = np.full(len(pixels), run.model.pixels[0] * DLOGLAM)
    found = measure_line(prepared, heat, loglam0, run.config.vetting.line_hits_snr)
    found["p_line"] = ranked(p_line, found["line_snr"])
    rows = hosts[[column.name for column in (*schema.KEY, *schema.CATALOGUE, *schema.SELECTION)]].copy()
    arrays, settings = spectra.arguments(run, pixels, rows.assign(line_wave=found["line_wave"]))
    found |= measure.measure_hits(*arrays, **settings)
    empty = {name: found.get(name) for name in schema.CANDIDATES.names if name not in rows}
    rows = pd.concat([rows, pd.DataFrame(empty, index=rows.index)], axis=1)
    return rows.assign(name=iau_name(rows["ra"], rows["dec"]), veto=0)[schema.CANDIDATES.names]


def _passing(spark: SparkSession, run: Run, rows: pd.DataFrame) -> np.ndarray:
    """Positions of the `rows` that are hits and pass the cuts of what is measured in them."""
    from pyspark.sql import functions as F

    measured = {name for name in rows.columns if rows[name].notna().any()}
    cuts = [cut for cut in vetting.CUTS if cut.columns and set(cut.columns) <= measured]
    types = {column.name: column.type for column in schema.LEDGER.columns}
    numbers = rows[[name for name in rows.columns if types.get(name) in ("int", "long", "double")]].astype(float)
    frame = spark.createDataFrame(numbers.assign(place=np.arange(len(rows))))
    frame = frame.withColumns({name: F.lit(None).cast("string") for name in ("known_lens", "grade")})
    kept = vetting.vet(frame, run.config, cuts).where("veto = 0").select("place").toPandas()
    return kept["place"].to_numpy(int)
