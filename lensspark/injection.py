"""Injection and recovery: the selection function measured on the survey's own spectra.

Lya lines of known S/N are added to every readable spectrum, and the search is asked for them. What class a spectrum
is of does not matter: a star's or a quasar's continuum and noise are as good as any, outside the lines of its own. A
spectrum that is a hit as it is gets none: a search names one line in each.

Each line is injected twice: with the errors as they are reported, which gives the survey's selection function; and with
errors that are right as far as those of mock spectra are, so that the two can be compared at equal S/N.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from lensspark import figures, lines, metrics, schema
from lensspark.config import Config
from lensspark.detectors import POSITION_PX, only
from lensspark.locate import measure_line, ranked
from lensspark.mock import observe_plate, profiles
from lensspark.mock.instrument import with_light
from lensspark.model import Model
from lensspark.selection import text
from lensspark.spectrum import Prepared, pixel, prepare, usable_ivar, wavelength

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Z_RANGE, Z_TYPICAL = (0.05, 1.1), 0.55  # a spectrum outside is searched as a galaxy at the typical z_lens
Z_NEARBY = 0.1  # below it galaxies are bright and resolved, and their own lines fill the window; none is searched
QSO_LINES = (lines.LYA, lines.NV, lines.SIIV, lines.CIV, lines.HEII_1640, lines.CIII, lines.MGII[0])
QSO_HALF_WIDTH = 8000.0  # km/s on each side of a quasar's own lines where nothing is injected
EDGE_PX = 10
DEFAULT_LSF = 1.1  # px, where a file has no dispersion
AT_ONCE = 512
SHOWN = 60  # hits of each group that are listed and drawn
MOCK_TIMES = 5  # a mock galaxy gets a line this many times less often than a real spectrum
MOCK_SCATTER = 1.2  # of the matched-filter S/N in mock galaxies, whose noise is correlated: the median of 860 has 1.19
KEY = tuple(column.name for column in schema.KEY if column.name != "run2d")
_COLUMNS = "group string, plate int, mjd int, fiberid int, line_snr double, scatter double, visible boolean, " \
           "found boolean, p_line double, line_wave double, snr double, errors string"
NONE, REPORTED, SCALED = "none", "reported", "scaled"  # errors, where a line was injected


def group_of(frame: pd.DataFrame) -> np.ndarray:
    """sky, galaxy, nearby (galaxies at z < Z_NEARBY), qso or star, (n,) of a frame with class, z, objtype, zwarning."""
    kind = frame["class"].fillna("").str.strip().str.lower().to_numpy(dtype=object)
    kind = np.where((kind == "galaxy") & (frame["z"] < Z_NEARBY), "nearby", kind)
    sky = (text(frame["objtype"]) == "SKY") | ((frame["zwarning"].fillna(0) % 2) == 1)
    return np.where(sky, "sky", kind)


def search_redshift(z: np.ndarray) -> np.ndarray:
    """The redshift (n,) at which a spectrum is searched: its own where a galaxy could have it."""
    low, high = Z_RANGE
    return np.where((z > low) & (z < high), z, Z_TYPICAL)


def deviates(spectra: dict[str, np.ndarray], k: int) -> np.ndarray:
    """(n, 6) uniform deviates of the k-th injection, from each spectrum's plate, mjd and fiberid alone."""
    keys = zip(*(spectra[name].tolist() for name in ("plate", "mjd", "fiberid")), strict=True)
    return np.array([np.random.default_rng([k, *key]).random(6) for key in keys])


def draw_lines(settings: Config, z: np.ndarray, group: np.ndarray, first: int, n_pix: int, u: np.ndarray
               ) -> dict[str, np.ndarray]:
    """One line for each of n spectra from `deviates` u: wave [A], fwhm [km/s], alpha, snr by [mock] and
    evaluation.injected_snr; `own` is where it falls on a quasar's own lines or into its Lya forest."""
    wave = wavelength(first + EDGE_PX + (n_pix - 2 * EDGE_PX) * u[:, 0])
    mean, scatter = settings.mock.line_fwhm
    too_narrow = ndtr((lines.LIGHT_KMS * settings.mock.min_line_fwhm / wave - mean) / scatter)
    fwhm = mean + scatter * ndtri(too_narrow + (1 - too_narrow) * u[:, 1])
    alpha = np.where(u[:, 2] < settings.mock.symmetric, 0.0, 8.0 * u[:, 3])
    low, high = settings.evaluation.injected_snr
    rest = wave / (1 + z)
    own = rest < lines.LYA
    for line in QSO_LINES:
        own |= np.abs(rest / line - 1) * lines.LIGHT_KMS < QSO_HALF_WIDTH
    return {"wave": wave, "fwhm": fwhm, "alpha": alpha, "snr": low + (high - low) * u[:, 4],
            "own": own & (group == "qso")}


def inject(spectra: dict[str, np.ndarray], score: Callable, settings: Config, first: int, k: int = 0,
           bare: bool = False, unit: float = 1.0) -> pd.DataFrame:
    """One row per spectrum of `spectra` (group, z, KEY, flux, ivar, and_mask, wdisp, loglam0) with the k-th line
    injected, or none if `bare`: what the search makes of it. The line's S/N, in units of `unit`, is that of the pixels
    that the mask bits leave, by the errors given; `scatter` is that of the spectrum's matched-filter S/N, 1 where the
    errors are right, not correlated, and the galaxy's fit is perfect. A line on a quasar's own lines is not visible."""
    flux, ivar, n_pix = spectra["flux"], spectra["ivar"], spectra["flux"].shape[1]
    line = draw_lines(settings, spectra["z"], spectra["group"], first, n_pix, deviates(spectra, k))
    at = pixel(line["wave"]) - first
    nearest = np.clip(np.rint(at).astype(int), 0, n_pix - 1)
    rows = np.arange(len(flux))
    if not bare:
        lsf = spectra["wdisp"][rows, nearest]
        lsf = np.where((lsf > 0) & np.isfinite(lsf), lsf, DEFAULT_LSF)
        shape = np.zeros_like(flux, dtype=np.float32)
        profiles.add_lines(shape, rows, line["wave"], np.ones(len(flux)), line["fwhm"], line["alpha"], lsf, first)
        bits_alone = replace(settings.input, sky_lines=(), lens_lines=())
        usable = usable_ivar(ivar, spectra["and_mask"], spectra["z"], bits_alone, first)
        power = np.sqrt(np.einsum("np,np,np->n", shape, shape, usable, dtype=np.float64))
        amount = np.divide(unit * line["snr"], power, out=np.zeros(len(flux)), where=power > 0)
        shape *= amount.astype(np.float32)[:, None]
        flux, ivar = with_light(flux, ivar, shape, wavelength(first + np.arange(n_pix)))
    prepared, p_line, heat = score(flux, ivar, spectra["and_mask"], search_redshift(spectra["z"]))
    found = measure_line(prepared, heat, spectra["loglam0"], settings.vetting.line_hits_snr)
    p_line = ranked(p_line, found["line_snr"])
    near = np.abs(pixel(found["line_wave"]) - first - at) <= POSITION_PX
    hit = (p_line > settings.score.threshold) & prepared.scorable
    return pd.DataFrame({
        "group": spectra["group"], **{name: spectra[name] for name in ("plate", "mjd", "fiberid")},
        "line_snr": np.nan if bare else line["snr"], "scatter": filter_scatter(prepared),
        "visible": prepared.scorable & (prepared.ivar[rows, nearest] > 0) & ~line["own"],
        "found": hit & (near | bare), "p_line": p_line, "line_wave": found["line_wave"], "snr": found["line_snr"],
    })


def trials(spectra: dict[str, np.ndarray], score: Callable, settings: Config, first: int, times: int
           ) -> Iterator[pd.DataFrame]:
    """`inject` of the spectra as they are, with `errors` NONE, and of those that are no hits so, `times` each with
    REPORTED and with SCALED errors: the latter make the `scatter` MOCK_SCATTER, and S/N is in units of that."""
    bare = inject(spectra, score, settings, first, bare=True)
    yield bare.assign(errors=NONE)
    chosen = (~bare["found"] & (bare["scatter"] > 0)).to_numpy()
    plain = {name: values[chosen] for name, values in spectra.items()}
    factor = (bare["scatter"].to_numpy()[chosen] / MOCK_SCATTER).astype(np.float32)
    scaled = plain | {"ivar": plain["ivar"] / factor[:, None] ** 2}
    for k in range(times if chosen.any() else 0):
        yield inject(plain, score, settings, first, k).assign(errors=REPORTED)
        yield inject(scaled, score, settings, first, k, unit=MOCK_SCATTER).assign(errors=SCALED)


def filter_scatter(prepared: Prepared) -> np.ndarray:
    """(n,) half the width of the central 68 % of each spectrum's matched-filter S/N on usable pixels, NaN without."""
    snr = np.where(prepared.ivar > 0, prepared.snr, np.nan)
    some = np.isfinite(snr).any(axis=1)
    snr[~some] = 0.0
    low, high = np.nanquantile(snr, (0.16, 0.84), axis=1)
    return np.where(some, (high - low) / 2, np.nan)


def read_survey(spark: SparkSession, root: str, model: Model, settings: Config, keys: list[tuple] | None = None
                ) -> DataFrame:
    """Readable spectra below `root` in the model's window: all, or those there of the (plate, mjd, fiberid) `keys`."""
    from lensspark import source

    low, high = model.window
    options = {"layout": settings.read.layout, "window": f"{low!r},{high!r}", "columns": "flux,ivar,and_mask,wdisp"}
    if keys is not None:
        options |= {"keys": ",".join("-".join(map(str, key)) for key in keys), "absent": "skip"}
    frame = source.load(spark, root, **options).where("reason IS NULL")
    return frame.select("plate", "mjd", "fiberid", "class", "subclass", "objtype", "zwarning", "z", "loglam0", "flux",
                        "ivar", "and_mask", "wdisp")


def on_survey(spark: SparkSession, root: str, model: Model, settings: Config) -> DataFrame:
    """`evaluation.injections` `trials` of every readable spectrum below `root`."""
    from lensspark import inference

    (first, n_pix), files = model.pixels, model.files

    def run(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        score = inference.scorer(Model(files).verified(), settings)
        for batch in batches:
            yield from trials(stack(batch, n_pix), score, settings, first, settings.evaluation.injections)

    return read_survey(spark, root, model, settings).mapInPandas(run, _COLUMNS)


def report(spark: SparkSession, root: str, model: Model, settings: Config) -> dict[str, Any]:
    """`recovery` of lines injected into the survey below `root` and into mock galaxies, and the spectra that are hits
    as they are: `hits` (at most SHOWN of each group, highest score first), with the number of `searched` spectra."""
    survey = on_survey(spark, root, model, settings).toPandas()
    mocks = [on_mock(model, settings, group, 1000, seed) for group, seed in (("mock", 5), ("mock sky", 6))]
    bare = survey[survey["errors"] == NONE]
    hits = bare[bare["found"]].sort_values(["group", "p_line", *KEY], ascending=[True, False] + [True] * len(KEY))
    told = hits.groupby("group").head(SHOWN)[["group", *KEY, "p_line", "line_wave", "snr"]]
    return {"threshold": settings.score.threshold, "recovery": recovery(pd.concat([survey, *mocks])),
            "searched": bare["group"].value_counts().to_dict(), "hits": told.to_dict("records")}


def hit_panels(spark: SparkSession, root: str, model: Model, settings: Config, hits: list[dict[str, Any]]
               ) -> list[dict[str, Any]]:
    """What figures.spectra draws of `report`'s hits."""
    if not hits:
        return []
    first, n_pix = model.pixels
    by_key = {tuple(hit[name] for name in KEY): hit for hit in hits}
    frame = read_survey(spark, root, model, settings, list(by_key)).toPandas()
    spectra = stack(frame, n_pix)
    prepared = prepare(spectra["flux"], spectra["ivar"], spectra["and_mask"], search_redshift(spectra["z"]),
                       model.basis, model.input, first)
    panels = []
    for i, key in enumerate(zip(*(frame[name] for name in KEY), strict=True)):
        hit = by_key[key]
        title = (f"{key[0]}-{key[1]}-{key[2]} {hit['group']} {frame['subclass'][i] or ''} z={frame['z'][i]:.3f} "
                 f"p={hit['p_line']:.3f} S/N={hit['snr']:.1f}")
        with np.errstate(divide="ignore"):
            sigma = np.where(prepared.ivar[i] > 0, prepared.ivar[i] ** -0.5, np.nan)
        panels.append({"title": title, "wave": wavelength(first + np.arange(n_pix)), "flux": spectra["flux"][i],
                       "sigma": sigma, "model": prepared.model[i], "at": hit["line_wave"]})
    return sorted(panels, key=lambda panel: panel["title"])


def on_model(spark: SparkSession, settings: Config, root: str, out: str | Path) -> str:
    """`report` of the configured model, written to `out`/injection.json and, where matplotlib is installed,
    recovery.png and hits.png; returns `summary`."""
    model, out = Model.named(settings.score.model), Path(out)
    result = report(spark, root, model, settings) | {"model": model.sha256}
    out.mkdir(parents=True, exist_ok=True)
    (out / "injection.json").write_text(json.dumps(result, indent=1))
    if importlib.util.find_spec("matplotlib"):
        figures.recovery(result["recovery"], out / "recovery.png")
        figures.spectra(hit_panels(spark, root, model, settings, result["hits"]), out / "hits.png")
    return summary(result)


def stack(frame: pd.DataFrame, n_pix: int) -> dict[str, np.ndarray]:
    """Arrays of a frame of spectra; a spectrum that begins or ends inside the window keeps ivar 0 where it has none."""
    planes = {name: np.stack(frame[name].to_numpy()) for name in ("flux", "ivar", "and_mask", "wdisp")}
    wrong = {plane.shape[1] for plane in planes.values()} - {n_pix}
    if wrong:
        raise ValueError(f"spectra of {sorted(wrong)} pixels: expected {n_pix} as the model's window")
    numbers = {name: frame[name].to_numpy() for name in ("plate", "mjd", "fiberid", "loglam0")}
    z = frame["z"].to_numpy(dtype=float)
    return planes | numbers | {"z": np.where(np.isfinite(z), z, 0.0), "group": group_of(frame)}


def on_mock(model: Model, settings: Config, group: str, n: int, seed: int) -> pd.DataFrame:
    """`evaluation.injections` / MOCK_TIMES `trials` of each of the clean mock galaxies among n in the searched range of
    redshift, or of n sky fibres if `group` is "mock sky"; for comparison."""
    from lensspark import inference

    first, n_pix = model.pixels
    score, parts = inference.scorer(model, settings), []
    sky = group == "mock sky"
    for start in range(0, n, AT_ONCE):
        fibres = np.arange(start, min(start + AT_ONCE, n)) % 1000 + 1
        kinds = only(settings, sky=1.0) if sky else only(settings)
        spectra = observe_plate(seed, 7000 + start // 1000, 58100, fibres, kinds, model.basis, first, n_pix)
        chosen = (spectra["z"] > settings.selection.z_min) | sky
        spectra = {name: values[chosen] for name, values in spectra.items()}
        spectra["group"] = np.full(chosen.sum(), group)
        if sky:
            spectra["z"] = np.full(len(spectra["z"]), Z_TYPICAL)
        parts += trials(spectra, score, settings, first, max(settings.evaluation.injections // MOCK_TIMES, 1))
    return pd.concat(parts, ignore_index=True)


def summary(result: dict[str, Any]) -> str:
    """`report`'s figures as text for people."""
    lines = []
    for column, title in (("recall", "S/N of the reported errors"),
                          ("recall_scaled", "S/N in units of the spectrum's own scatter, errors scaled by it")):
        lines.append(f"lines found within {POSITION_PX:g} px at p_line > {result['threshold']:g}, by {title}:")
        for group, found in result["recovery"].items():
            lines.append(f"  {group:8}{found['spectra']:>6,} spectra  " + "  ".join(
                f"{b['snr'][0]:g}-{b['snr'][1] or ''}: {b['recall']:.3f}+-{b['error']:.3f}" for b in found[column]))
    lines.append(f"hits without an injected line, of {result['searched']}:")
    lines += [f"  {hit['plate']}-{hit['mjd']}-{hit['fiberid']} {hit['group']}: p_line {hit['p_line']:.4f} at "
              f"{hit['line_wave']:.1f} A, S/N {hit['snr']:.1f}" for hit in result["hits"]]
    return "\n".join(lines)


def recovery(table: pd.DataFrame) -> dict[str, Any]:
    """Recall of visible injected lines by S/N for each group: `recall` of the reported errors, `recall_scaled` of the
    SCALED ones."""
    table = table[table["visible"] & (table["errors"] != NONE)]
    return {str(group): {"spectra": len(rows[list(KEY)].drop_duplicates()),
                         "recall": _recall(rows[rows["errors"] == REPORTED]),
                         "recall_scaled": _recall(rows[rows["errors"] == SCALED])}
            for group, rows in table.groupby("group")}


def _recall(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """metrics.recall_by_snr with `error`, its standard error; lines in the same spectrum share its noise, so that
    spectra are counted, not lines."""
    bins = metrics.recall_by_snr(rows["found"].to_numpy(), rows["line_snr"].to_numpy())
    for b in bins:
        low, high = b["snr"]
        inside = rows[rows["line_snr"].between(low, high or np.inf, inclusive="left")]
        excess = (inside["found"] - b["recall"]).groupby([inside[name] for name in KEY]).sum()
        b["error"] = round(float(np.sqrt((excess**2).sum())) / b["n"], 4)
    return bins
