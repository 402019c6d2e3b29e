"""Catalogue rows of BOSS files under the names of lensspark's schema, and the join with survey-wide catalogues.

The same columns occur in spZbest, in HDU 2 of spec files and in specObj and spAll, in upper or lower case; SDSS-I/II
files have fewer. Sources: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/ (spAll, platelist,
PLATE4/RUN1D/spZbest) and https://data.sdss.org/datamodel/files/SPECTRO_REDUX/specObj.html.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from lensspark import schema
from lensspark.boss.fits import hdus, read_table
from lensspark.boss.listing import Unit
from lensspark.boss.stream import DATA_ERRORS, Fault, fault_of, open_stream

# Schema column -> FITS columns, the first that is present counts. PLUG_RA/DEC are the fibre's place; RA/DEC of spAll
# are the photometric object's. SN_MEDIAN_ALL is over the whole spectrum where SN_MEDIAN is per band.
ALIASES = {
    "ra": ("PLUG_RA", "RA"),
    "dec": ("PLUG_DEC", "DEC"),
    "objtype": ("OBJTYPE", "SOURCETYPE"),
    "sn_median": ("SN_MEDIAN_ALL", "SN_MEDIAN"),
    "mag_i": ("CMODELFLUX",),
    "plate_quality": ("PLATEQUALITY",),
    "sky_chi2": ("SKYCHI2",),
}
KEY_COLUMNS = ("PLATE", "MJD", "FIBERID", "RUN2D")
ESSENTIAL = ("PLATE", "MJD", "FIBERID", "CLASS", "Z")
NOQSO = ("class_noqso", "subclass_noqso", "z_noqso", "z_err_noqso", "zwarning_noqso")
NULLABLE_TEXT = ("objtype", "class", "class_noqso", "plate_quality")  # a blank means "not given" there
I_BAND = 3  # of ugriz
ROWS_AT_ONCE = 20_000  # of spAll, 4 kB each


def fits_names(column: str) -> tuple[str, ...]:
    """FITS columns that can give schema column `column`."""
    return ALIASES.get(column, (column.upper(),))


FITS_COLUMNS = KEY_COLUMNS + tuple(name for column in schema.CATALOGUE for name in fits_names(column.name))


def catalogue_columns(table: dict[str, np.ndarray]) -> dict[str, list]:
    """schema.CATALOGUE's columns of `table` (FITS names, arrays (n, ...)) as lists of n values, None for null.

    Absent columns and non-finite numbers are null. `mag_i` is 22.5 - 2.5 log10 CMODELFLUX_i (nanomaggies), the
    photometric catalogue's, null where the flux is not positive; spectrophotometric fluxes are not used for it.
    SDSS-I/II leave CLASS_NOQSO blank: all *_NOQSO columns are null there.
    """
    n = len(table["PLATE"])
    columns = {}
    for column, name in _sources(tuple((name, array.ndim) for name, array in table.items())):
        columns[column.name] = [None] * n if name is None else _values(table[name], column)
    for i, given in enumerate(columns["class_noqso"]):
        if given is None:
            for name in NOQSO:
                columns[name][i] = None
    return columns


@lru_cache(maxsize=32)  # files of one kind have the same columns
def _sources(present: tuple[tuple[str, int], ...]) -> list[tuple[schema.Column, str | None]]:
    """schema.CATALOGUE's columns and the FITS column that gives each, of those `present`: (name, number of axes)."""
    def usable(name: str, column: str) -> bool:
        return (name, 2 if column == "mag_i" else 1) in present

    return [(column, next((name for name in fits_names(column.name) if usable(name, column.name)), None))
            for column in schema.CATALOGUE]


def _values(array: np.ndarray, column: schema.Column) -> list:
    if column.type == "string":
        blank = None if column.name in NULLABLE_TEXT else ""
        return [text or blank for text in texts(array)]
    if column.name == "mag_i":
        array = array[:, I_BAND].astype(np.float64)
        array = np.where(array > 0, 22.5 - 2.5 * np.log10(np.where(array > 0, array, 1.0)), np.nan)
    if column.type == "double":
        if len(array) > 1 and np.isfinite(array).all():
            return array.astype(np.float64).tolist()
        # Plain Python: a spec file has one row, for which numpy takes ten times as long.
        return [float(value) if math.isfinite(value) else None for value in array.tolist()]
    return (array if array.dtype.kind in "iu" else array.astype(np.int64)).tolist()


def texts(array: np.ndarray) -> list[str]:
    """A FITS text (or number) column as stripped strings."""
    if array.dtype.kind != "S":
        return [str(value) for value in array.tolist()]
    return [value.split(b"\0")[0].decode("latin-1").strip() for value in array.tolist()]


def join_catalogues(units: tuple[Unit, ...], paths: Iterable[str]) -> tuple[Unit, ...]:
    """`units` of kind plate with `plate_quality`, `sky_chi2` and `mag_i` from specObj, spAll and platelist files.

    Joined by plate, MJD and fibre, and by run2d where the folders name one. Spec files carry these values
    themselves. A catalogue that cannot be read becomes a unit of kind fault.
    """
    wanted = {(unit.plate, unit.mjd) for unit in units if unit.kind == "plate"}
    if not wanted:
        return units
    facts: dict[tuple, dict[str, Any]] = {}
    faults = []
    for path in paths:
        try:
            for table in _chunks(path):
                _collect(table, wanted, facts)
        except DATA_ERRORS + (Fault,) as error:
            faults.append(Unit(path, "fault", reason=f"catalogue cannot be used: {fault_of(error).reason}"))
    return tuple(_joined(unit, facts) if unit.kind == "plate" else unit for unit in units) + tuple(faults)


def _chunks(path: str) -> Iterable[dict[str, np.ndarray]]:
    names = (*KEY_COLUMNS, "PLATEQUALITY", "SKYCHI2", "CMODELFLUX")
    with open_stream(path) as stream:
        found = hdus(stream, 1)
        if len(found) < 2:
            raise Fault(f"{len(found)} HDU, expected a table in HDU 1")
        found[1].verify()
        for first in range(0, found[1].header.number("NAXIS2"), ROWS_AT_ONCE):
            yield read_table(found[1], names, slice(first, first + ROWS_AT_ONCE), ("PLATE", "MJD"))


def _collect(table: dict[str, np.ndarray], wanted: set[tuple[int, int]], facts: dict[tuple, dict[str, Any]]) -> None:
    """Add to `facts`, keyed by (plate, mjd, run2d), what `table` says of the `wanted` plates."""
    n = len(table["PLATE"])
    run2d = np.array(texts(table["RUN2D"])) if "RUN2D" in table else np.full(n, "")
    identity = np.rec.fromarrays([table["PLATE"].astype(np.int64), table["MJD"].astype(np.int64), run2d])
    groups, inverse = np.unique(identity, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(groups) + 1))
    for i, group in enumerate(groups.tolist()):
        if group[:2] not in wanted:
            continue
        rows = order[bounds[i]:bounds[i + 1]]
        columns = catalogue_columns({name: array[rows] for name, array in table.items()})
        known = facts.setdefault(group, {"mag_i": {}})
        for name in ("plate_quality", "sky_chi2"):
            value = columns[name][0]
            if value is not None:
                known.setdefault(name, value)
        if "FIBERID" in table:
            pairs = zip(table["FIBERID"][rows].tolist(), columns["mag_i"], strict=True)
            known["mag_i"] |= {fiberid: mag for fiberid, mag in pairs if mag is not None}


def _joined(unit: Unit, facts: dict[tuple, dict[str, Any]]) -> Unit:
    matches = [known for (plate, mjd, run2d), known in sorted(facts.items())
               if (plate, mjd) == (unit.plate, unit.mjd) and (not unit.run2d or run2d in ("", unit.run2d))]
    for known in matches:
        unit = replace(
            unit,
            plate_quality=unit.plate_quality or known.get("plate_quality"),
            sky_chi2=known.get("sky_chi2") if unit.sky_chi2 is None else unit.sky_chi2,
            mag_i=unit.mag_i or tuple(sorted(known["mag_i"].items())),
        )
    return unit
