"""What the dossiers draw: the spectra of a few hundred candidates, their neighbours and repeats, read again.

On the driver, in numpy: candidates are scored once more, so that model and attention are those of the search.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lensspark import inference, measure, schema, source
from lensspark.eigen import DLOGLAM
from lensspark.spectrum import pixel, usable_ivar, wavelength
from lensspark.store import Rows
from lensspark.vetting import measuring
from lensspark.vetting.measuring import HIT_KEY, KEY

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lensspark.config import Config
    from lensspark.run import Run

Key = tuple[int, int, int, str]
PLANES = ("flux", "ivar", "and_mask", "wdisp", "model")
AROUND_PX = 60  # of a neighbour or repeat, on each side of the line
MAX_OTHERS = 8  # neighbours and repeats of one candidate, but never less than all repeats


@dataclass(frozen=True)
class Pixels:
    """Spectra on one grid: `keys`, the number of the first 1e-4 dex pixel, planes (n, n_pix); ivar 0 where no file."""

    keys: list[Key]
    first: int
    planes: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: np.ndarray) -> Pixels:
        return Pixels([self.keys[i] for i in rows], self.first, {k: v[rows] for k, v in self.planes.items()})

    @property
    def wave(self) -> np.ndarray:
        n_pix = next(iter(self.planes.values())).shape[1]
        return wavelength(self.first + np.arange(n_pix))

    def within(self, first: int, n_pix: int, names: Iterable[str]) -> list[np.ndarray]:
        """Planes (n, n_pix) from pixel `first` on, 0 beyond the spectra."""
        skip, found = first - self.first, []
        for name in names:
            plane = self.planes[name]
            out = np.zeros((len(self), n_pix), plane.dtype)
            low, high = max(skip, 0), min(skip + n_pix, plane.shape[1])
            if low < high:
                out[:, low - skip : high - skip] = plane[:, low:high]
            found.append(out)
        return found


def read(spark: SparkSession, run: Run, keys: Iterable[Key], planes: tuple[str, ...] = PLANES,
         window: str = "full") -> Pixels:
    """The readable ones of the spectra `keys`, in the order of the keys."""
    wanted = set(keys)  # asked for by their numbers alone: RUN2D is text from a file, which might hold anything
    options = {"layout": run.config.read.layout, "window": window, "columns": ",".join(planes),
               "keys": ",".join(sorted({"-".join(map(str, key[:3])) for key in wanted}))}
    frame = source.load(spark, run.spectra, **options).where("reason IS NULL")
    rows = frame.select(*KEY, "loglam0", *planes).toPandas().sort_values(KEY)
    rows = rows[[key in wanted for key in rows[KEY].itertuples(index=False, name=None)]]
    start = np.rint(rows["loglam0"].to_numpy() / DLOGLAM).astype(int)
    length = np.array([len(flux) for flux in rows["flux"]], dtype=int)
    first, end = (start.min(), (start + length).max()) if len(rows) else (0, 0)
    found = {}
    for name in planes:
        found[name] = np.zeros((len(rows), end - first), np.int32 if name == "and_mask" else np.float32)
        for plane, at, values in zip(found[name], start - first, rows[name], strict=True):
            if values is not None:
                plane[at : at + len(values)] = values
    return Pixels([tuple(row) for row in rows[KEY].itertuples(index=False)], int(first), found)


def score(run: Run, pixels: Pixels, z_lens: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """(Prepared, p_line, heat) of the spectra in the model's window, as the search has them."""
    return inference.scorer(run.model, run.config)(*pixels.within(*run.model.pixels, ("flux", "ivar", "and_mask")),
                                                   z_lens)


def shown(run: Run, pixels: Pixels, table: pd.DataFrame) -> dict[Key, dict[str, Any]]:
    """Per key of `pixels` what page.write_report draws; `table` has the columns of schema.CANDIDATES, a row per key."""
    if not len(pixels):
        return {}
    rows = table.set_index(KEY).loc[pixels.keys].reset_index()
    z_lens = rows["z_lens"].to_numpy(float)
    prepared, _, heat = score(run, pixels, z_lens)
    ivar = usable_ivar(pixels.planes["ivar"], pixels.planes["and_mask"], z_lens, run.model.input, pixels.first)
    model = _whole_model(pixels, prepared.model, *run.model.pixels)
    with np.errstate(divide="ignore"):
        sigma = np.where(ivar > 0, ivar**-0.5, np.nan)
    measured = arguments(run, pixels, rows)
    curves, companions = (function(*measured[0], **measured[1]) for function in
                          (measure.line_curves, measure.companions))
    first, n_pix = run.model.pixels
    centres = wavelength(first + (np.arange(heat.shape[1]) + 0.5) * n_pix / heat.shape[1] - 0.5)
    found = {}
    for i, key in enumerate(pixels.keys):
        inside = np.flatnonzero(pixels.planes["ivar"][i])
        near = slice(inside[0], inside[-1] + 1) if inside.size else slice(0, 0)
        found[key] = {"wave": pixels.wave[near], "flux": pixels.planes["flux"][i, near], "sigma": sigma[i, near],
                      "model": model[i, near], "heat": (centres, heat[i]), "fit": curves[i],
                      "companions": companions[i]}
    return found


def arguments(run: Run, pixels: Pixels, rows: pd.DataFrame) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The arguments of lensspark.measure's functions for `rows`, in the order of `pixels`."""
    loglam0 = np.full(len(pixels), pixels.first * DLOGLAM)
    numbers = [rows[name].to_numpy(float) for name in ("z_lens", "line_wave", "vdisp", "vdisp_err")]
    return [*(pixels.planes[name] for name in PLANES), loglam0, *numbers], {
        "basis": run.model.basis, "window": run.model.window, "input_settings": run.model.input,
        "settings": run.config.vetting}


def _whole_model(pixels: Pixels, fitted: np.ndarray, first: int, n_pix: int) -> np.ndarray:
    """The galaxy: the search's own fit inside the window, the pipeline's best fit outside; NaN where there is none."""
    model = pixels.planes["model"].astype(float)
    model[(model == 0) | ~np.isfinite(model)] = np.nan
    at = np.arange(model.shape[1]) + pixels.first - first
    inside = (at >= 0) & (at < n_pix)
    model[:, inside] = fitted[:, at[inside]]
    return model


def others(spark: SparkSession, run: Run, table: pd.DataFrame) -> dict[Key, list[dict[str, Any]]]:
    """Per candidate of `table` what lies about its line in other spectra: neighbours, nearest first, then repeats."""
    pairs = drawn(_pairs(Rows(spark, [run.path("ledger")], schema.LEDGER), table, run.config), table)
    if pairs.empty:
        return {}
    low, high = run.model.window
    keys = sorted(set(pairs[KEY].itertuples(index=False, name=None)))
    pixels = read(spark, run, keys, ("flux", "ivar", "and_mask"), f"{low!r},{high!r}")
    place = {key: i for i, key in enumerate(pixels.keys)}
    no_lines = np.zeros(len(pixels))
    ivar = usable_ivar(pixels.planes["ivar"], pixels.planes["and_mask"], no_lines, run.model.input, pixels.first)
    line = dict(zip(table[KEY].itertuples(index=False, name=None), table["line_wave"], strict=True))
    found: dict[Key, list[dict[str, Any]]] = {}
    for key, own, role in zip(*(pairs[names].itertuples(index=False, name=None) for names in (KEY, HIT_KEY)),
                              pairs["role"], strict=True):
        if key not in place or not np.isfinite(line[own]):
            continue
        centre = int(np.rint(pixel(line[own]))) - pixels.first
        near = slice(max(centre - AROUND_PX, 0), max(centre + AROUND_PX + 1, 0))
        weight = ivar[place[key], near]
        if weight.size:
            with np.errstate(divide="ignore"):
                sigma = np.where(weight > 0, weight**-0.5, np.nan)
            found.setdefault(own, []).append({
                "kind": role, "label": f"{role} {'-'.join(map(str, key[:3]))}", "wave": pixels.wave[near],
                "flux": pixels.planes["flux"][place[key], near], "sigma": sigma})
    return found


def _pairs(rows: Rows, table: pd.DataFrame, config: Config) -> pd.DataFrame:
    """KEY, HIT_KEY and role of the neighbours and repeats of the rows of `table`, by the search's own conditions."""
    found = measuring.targets(rows, table, config)
    return found[found["role"] != measuring.HIT]


def drawn(pairs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Those of `pairs` that a dossier has room for: every repeat, the neighbour that the ledger names, the nearest.

    In the order of the plot: neighbours, nearest first, then repeats by date.
    """
    named = table[[*KEY, "neighbour_fiber"]].set_axis([*HIT_KEY, "named"], axis=1)
    pairs = pairs.merge(named, on=HIT_KEY, how="left")
    repeat = pairs["role"] == measuring.REPEAT
    pairs = pairs.assign(told=repeat | (pairs["fiberid"] == pairs["named"]),
                         steps=np.where(repeat, 0, (pairs["fiberid"] - pairs["hit_fiberid"]).abs()))
    pairs = pairs.sort_values(["told", "steps", "fiberid"], ascending=[False, True, True])
    room = pairs.groupby(HIT_KEY).cumcount() < MAX_OTHERS
    return pairs[pairs["told"] | room].sort_values(["role", "steps", *KEY[1:], KEY[0]])[[*KEY, *HIT_KEY, "role"]]


def candidate_spectra(spark: SparkSession, run: Run, table: pd.DataFrame) -> dict[Key, Mapping[str, Any]]:
    """What the report draws of each candidate of `table`, read and scored again: a few hundred spectra."""
    if table.empty:
        return {}
    pixels = read(spark, run, table[KEY].itertuples(index=False, name=None))
    found, beside = shown(run, pixels, table), others(spark, run, table)
    return {key: {**spectrum, "others": beside.get(key, [])} for key, spectrum in found.items()}
