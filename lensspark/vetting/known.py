"""Known lenses: tables of any user, and the lenscat catalogue where it is installed, matched to hits.

lenscat (https://github.com/lenscat/lenscat, MIT) is taken as the one CSV file in its wheel and never imported:
`pip install --no-deps lenscat` is enough.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd

from lensspark.vetting import sky

log = logging.getLogger(__name__)

# What a column may be called, in the order of preference; case and blanks do not matter.
ALIASES = {
    "name": ("name", "iau_name", "sdss_name", "id", "system", "lens", "objid"),
    "ra": ("ra_deg", "ra [deg]", "ra", "raj2000", "_raj2000", "ra_j2000", "plug_ra", "alpha"),
    "dec": ("dec_deg", "dec [deg]", "dec", "dej2000", "_dej2000", "decj2000", "dec_j2000", "plug_dec", "de", "delta"),
    "plate": ("plate",),
    "mjd": ("mjd",),
    "fiberid": ("fiberid", "fiber", "fibre", "fiber_id"),
}
SPECTRUM = re.compile(r"\b(\d{3,5})-(\d{5})-(\d{1,4})\b")  # plate-mjd-fiber within a name
COLUMNS = list(ALIASES)
SPECTRUM_KEY = ["plate", "mjd", "fiberid"]


def installed() -> str | None:
    """Path of lenscat's table, None where the package is not installed."""
    found = importlib.util.find_spec("lenscat")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations))) / "data/catalog.csv"
    return str(path) if path.exists() else None


def read_known(paths: tuple[str, ...]) -> pd.DataFrame:
    """The lenses of all tables `paths` and of lenscat: name, ra, dec (degrees or NaN), plate, mjd, fiberid (or -1).

    A name such as 6281-56295-811 gives plate, mjd and fibre where no columns do. Raises ValueError for a table that
    cannot be read, or that has neither positions nor spectra.
    """
    every = [*paths, *filter(None, [installed()])]
    tables = [read_table(path) for path in every]
    for path, table in zip(every, tables, strict=True):
        log.info("%d known lenses in %s", len(table), path)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def read_table(path: str) -> pd.DataFrame:
    """One table of known lenses; see `read_known`."""
    from astropy.table import Table

    kind = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv"}.get(Path(path).suffix.lower())
    try:
        table = Table.read(path, format=kind) if kind else Table.read(path)
    except Exception as error:  # each format has errors of its own
        raise ValueError(f"vetting.known_lenses: {path}: cannot be read: {error}") from error
    names = {name.lower().strip(): name for name in table.colnames}
    chosen = {what: next((names[a] for a in aliases if a in names), None) for what, aliases in ALIASES.items()}
    found = {what: table[name] for what, name in chosen.items() if name is not None}
    frame = pd.DataFrame(index=range(len(table)))
    frame["name"] = [str(value) for value in found["name"]] if "name" in found else ""
    frame["ra"], frame["dec"] = (_degrees(found.get(what), len(table), hours) for what, hours in
                                 (("ra", True), ("dec", False)))
    if set(SPECTRUM_KEY) <= set(found):
        for what in SPECTRUM_KEY:
            frame[what] = np.ma.filled(np.ma.asarray(found[what]).astype("i8"), -1)
    else:
        matches = [SPECTRUM.search(name) for name in frame["name"]]
        numbers = [[int(part) for part in m.groups()] if m else [-1] * 3 for m in matches]
        frame[SPECTRUM_KEY] = np.array(numbers, "i8").reshape(-1, 3)  # a table may have no rows
    if len(frame) and frame["ra"].isna().all() and (frame["plate"] < 0).all():
        raise ValueError(f"vetting.known_lenses: {path}: has columns {table.colnames}; expected positions (ra, dec) or "
                         "spectra (plate, mjd, fiberid)")
    frame["name"] = np.where(frame["name"].isin(["", "--"]), "unnamed", frame["name"])
    return frame[COLUMNS]


def _degrees(column, n: int, hours: bool) -> np.ndarray:
    """Degrees from numbers or from sexagesimal text (hours for right ascension); NaN where there is none."""
    from astropy.coordinates import Angle

    if column is None:
        return np.full(n, np.nan)
    if np.asarray(column).dtype.kind in "if":
        return np.ma.filled(np.ma.asarray(column).astype("f8"), np.nan)
    out = np.full(n, np.nan)
    for i, text in enumerate(map(str, column)):
        try:
            out[i] = float(text) if ":" not in text and " " not in text.strip() else (
                Angle(text, "hourangle" if hours else "deg").degree)
        except ValueError:
            continue  # no position: the row may still name a spectrum
    return out


def match_known(lines: pd.DataFrame, known: pd.DataFrame, radius: float) -> pd.Series:
    """`known_lens` of each of `lines` (plate, mjd, fiberid, ra, dec): the nearest one of `known` within `radius`
    arcsec, else the one of the same spectrum, else None."""
    lens, line, separation = sky.pairs(known, lines, radius)
    nearest = pd.Series(known["name"].to_numpy(object)[lens], index=lines.index[line]).iloc[np.argsort(separation)]
    nearest = nearest[~nearest.index.duplicated()].reindex(lines.index)
    spectra = known[known["plate"] >= 0].groupby(SPECTRUM_KEY)["name"].min()
    same = lines[SPECTRUM_KEY].join(spectra, on=SPECTRUM_KEY)["name"]
    return nearest.where(nearest.notna(), same).astype(object).where(lambda name: name.notna(), None)
