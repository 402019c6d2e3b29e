"""Single exposures from full spec files: tables from HDU 4 on, one per camera and exposure, each on its own pixels.

Data model: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from lensspark.boss.catalogue import texts
from lensspark.boss.fits import HDU, hdus, read_table
from lensspark.boss.listing import Key, Survey, only
from lensspark.boss.stream import DATA_ERRORS, Fault, fault_of, open_stream

FIRST_HDU = 4
CAMERA = re.compile(r"[BR][12]-\d+.*", re.IGNORECASE)  # EXTNAME: camera-exposure-flat-arc
MAX_PIXELS = 10_000  # of one exposure; BOSS's cameras have 4128 rows
PLANES = ("LOGLAM", "FLUX", "IVAR", "MASK")


class Exposure(NamedTuple):
    """Some pixels of one exposure of one camera, (n_pix,): loglam log10 Angstrom (vacuum, heliocentric, steps as the
    CCD has them), flux 1e-17 erg/s/cm2/A, ivar, and mask, its own bits."""

    name: str
    loglam: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray


def full_files(survey: Survey, keys: Collection[Key]) -> dict[Key, str]:
    """Paths of the spec files in `survey` that may hold single exposures of `keys`, whatever the search reads."""
    units = only((unit for unit in (*survey.units, *survey.exposures) if unit.kind in ("full", "spec")), keys)
    units.sort(key=lambda unit: unit.path, reverse=True)
    units.sort(key=lambda unit: (unit.run2d, unit.kind == "full"))  # a named tree comes after one without a name
    found = {Key(unit.plate, unit.mjd, fiberid, run2d): unit.path for unit in units
             for fiberid, run2d in unit.fibers if unit.run2d in ("", run2d)}
    return {key: found[key] for key in keys if key in found}


def read_exposures(path: str, key: Key, window: tuple[float, float]) -> list[Exposure]:
    """The exposures with pixels in `window` (low, high in Angstrom) of the spec file of `key`; none of a lite file.

    One exposure is in memory at a time, and its pixels in the window are kept. Raises Fault for a file that cannot be
    trusted; a lost connection is raised as it is, for a retry.
    """
    try:
        with open_stream(path) as stream:
            found = hdus(stream, FIRST_HDU - 1)
            tables = [unit for unit in found[FIRST_HDU:] if CAMERA.fullmatch(str(unit.header.get("EXTNAME")))]
            if tables:
                _check_key(found[2], key)
            exposures = (_exposure(unit, np.log10(window)) for unit in tables)
            return [exposure for exposure in exposures if len(exposure.loglam)]
    except DATA_ERRORS + (Fault,) as error:
        fault = fault_of(error)
        raise Fault(f"{path}: {fault.reason}", fault.hdu) from error


def _check_key(row: HDU, key: Key) -> None:
    row.verify()
    names = ("PLATE", "MJD", "FIBERID")
    table = read_table(row, (*names, "RUN2D"), slice(1), names)
    found = Key(*(int(table[name][0]) for name in names), *(texts(table["RUN2D"]) if "RUN2D" in table else (None,)))
    if found[:3] != key[:3] or (found.run2d and key.run2d and found.run2d != key.run2d):
        raise Fault(f"catalogue row is of {'-'.join(map(str, found))}, expected {'-'.join(map(str, key))}", row.number)


def _exposure(unit: HDU, loglam_window: np.ndarray) -> Exposure:
    n_pix = unit.header.number("NAXIS2")
    if n_pix > MAX_PIXELS:
        raise Fault(f"an exposure of {n_pix} pixels, expected at most {MAX_PIXELS}", unit.number)
    unit.verify()
    table = read_table(unit, PLANES, essential=PLANES)
    loglam = table["LOGLAM"].astype(np.float64)
    if not (np.diff(loglam) > 0).all():
        raise Fault("loglam does not rise from pixel to pixel", unit.number)
    first, stop = np.searchsorted(loglam, loglam_window)
    return Exposure(str(unit.header.get("EXTNAME")), *(values[first:stop].copy() for values in
                                                       (loglam, *(table[name] for name in PLANES[1:]))))
