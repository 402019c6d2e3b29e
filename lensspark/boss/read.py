"""Spectra from spec files and from spPlate + spZbest pairs, each checked before it is given out.

Data models: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html,
.../RUN2D/PLATE4/spPlate.html and .../RUN2D/PLATE4/RUN1D/spZbest.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from lensspark import schema
from lensspark.boss.catalogue import ESSENTIAL, FITS_COLUMNS, catalogue_columns, texts
from lensspark.boss.fits import HDU, Header, hdus, read_image, read_table
from lensspark.boss.grid import Placement, check_coeff0, check_step, grid_start, placement
from lensspark.boss.listing import Unit
from lensspark.boss.stream import DATA_ERRORS, Fault, fault_of, open_stream

PLATE_HDU = {"flux": 0, "ivar": 1, "and_mask": 2, "or_mask": 3, "wdisp": 4, "sky": 6}  # model is spZbest's HDU 2
PLANES = {column.name: np.int32 if column.type == "array<int>" else np.float32
          for column in schema.PIXELS if column.type.startswith("array")}
SPEC_ESSENTIAL = ("FLUX", "LOGLAM", "IVAR")

Window = tuple[float, float] | None


@dataclass
class Spectra:
    """n good spectra of one file and the faults of others.

    `columns`: every scalar column of schema.SPECTRA as a list of n values, None for null. `planes`: the asked planes,
    (n, n_pix) float32 or int32, native byte order, units as in schema.PIXELS. `faults`: dicts with plate, mjd,
    fiberid, run2d, path, hdu, reason; fiberid None stands for the whole file.
    """

    columns: dict[str, list] = field(default_factory=dict)
    planes: dict[str, np.ndarray] = field(default_factory=dict)
    faults: list[dict] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.columns.get("plate", ()))

    def __getitem__(self, rows: slice) -> Spectra:
        """The spectra of `rows`, without the faults."""
        return Spectra({name: values[rows] for name, values in self.columns.items()},
                       {name: values[rows] for name, values in self.planes.items()})

    def rows(self, rows: np.ndarray) -> Spectra:
        """The spectra of the indices `rows`, without the faults."""
        at = rows.tolist()
        return Spectra({name: [values[i] for i in at] for name, values in self.columns.items()},
                       {name: values[rows] for name, values in self.planes.items()})


def read_unit(unit: Unit, planes: tuple[str, ...] = ("flux", "ivar", "and_mask"), window: Window = None) -> Spectra:
    """The spectra of `unit`: `planes` in `window` (low, high in Angstrom; None: the file's own pixels).

    Never raises for what is wrong with a file: that is in `faults`. A lost connection is raised, for a retry.
    """
    try:
        if unit.kind == "fault":
            raise Fault(unit.reason)
        read = _read_plate if unit.kind == "plate" else _read_spec
        return read(unit, planes, window)
    except DATA_ERRORS + (Fault,) as error:
        fault = fault_of(error)
        return Spectra(faults=[_fault_row(unit, fault.reason, fault.hdu)])


def _fault_row(unit: Unit, reason: str, hdu: int | None, fiberid: int | None = None, run2d: str | None = None) -> dict:
    return {"plate": unit.plate, "mjd": unit.mjd, "fiberid": fiberid or unit.fiberid,
            "run2d": run2d or unit.run2d or None, "path": unit.path, "hdu": hdu, "reason": reason}


def _hdu(found: list[HDU], number: int, what: str) -> HDU:
    if number >= len(found):
        raise Fault(f"no {what} HDU: the file has {len(found)} HDUs, expected {what} in HDU {number}", number)
    return found[number]


def _read_spec(unit: Unit, planes: tuple[str, ...], window: Window) -> Spectra:
    with open_stream(unit.path, unit.size) as stream:
        found = hdus(stream, 2)
        primary, coadd, row = (_hdu(found, i, what) for i, what in enumerate(("primary", "coadd", "catalogue")))
        for used in found:
            used.verify()
        if "COEFF1" in primary.header:
            check_step(primary.header.number("COEFF1"))
        loglam = read_table(coadd, ("LOGLAM",), essential=SPEC_ESSENTIAL)["LOGLAM"]
        coeff0 = primary.header.number("COEFF0") if "COEFF0" in primary.header else None
        start = grid_start(loglam, coeff0)
        place = placement(start, len(loglam), window)
        names = tuple(plane.upper() for plane in planes)
        pixels = read_table(coadd, names, slice(place.first, place.stop), names)
        table = read_table(row, FITS_COLUMNS, essential=ESSENTIAL)
    if len(table["PLATE"]) != 1:
        raise Fault(f"{len(table['PLATE'])} catalogue rows, expected 1", 2)
    expected = np.array([[unit.plate, unit.mjd, unit.fiberid]])
    return _checked(unit, primary.header, table, 2, expected, place,
                    {plane: pixels[plane.upper()][None] for plane in planes},
                    dict.fromkeys(planes, 1))


def _read_plate(unit: Unit, planes: tuple[str, ...], window: Window) -> Spectra:
    """Row i of the spPlate's images and of the spZbest table is fibre i + 1."""
    pixels = {}
    with open_stream(unit.path, unit.size) as stream:
        found = hdus(stream, max(PLATE_HDU.get(plane, 1) for plane in (*planes, "ivar")))
        primary, _ = _hdu(found, 0, "flux"), _hdu(found, 1, "ivar")
        shape, coeff0 = _shape(primary), primary.header.number("COEFF0")
        check_coeff0(coeff0)
        check_step(primary.header.number("COEFF1"))
        _check_name(primary.header, unit)
        place, rows = placement(coeff0, shape[1], window), _wanted_rows(unit, shape[0])
        for plane in (plane for plane in planes if plane in PLATE_HDU):
            image = _hdu(found, PLATE_HDU[plane], plane)
            if _shape(image) != shape:
                raise Fault(f"{plane} image is {_shape(image)}, expected {shape} as flux", image.number)
            image.verify()
            pixels[plane] = read_image(image, rows, place.first, place.stop)
    with _naming(unit.zbest), open_stream(unit.zbest, unit.zbest_size) as stream:
        found = hdus(stream, 2 if "model" in planes else 1)
        table = _zbest_table(_hdu(found, 1, "catalogue"), shape[0])
        if "model" in planes:
            pixels["model"] = _model(_hdu(found, 2, "model"), rows, place, coeff0, shape)
    expected = np.stack([np.full(len(rows), unit.plate), np.full(len(rows), unit.mjd), rows + 1], 1)
    table = {name: array[rows] for name, array in table.items()}
    hdu_of = {plane: PLATE_HDU.get(plane, 2) for plane in planes}
    return _checked(unit, primary.header, table, 1, expected, place, pixels, hdu_of)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """What goes wrong inside is a Fault that names `path`, which is not the file that the row names."""
    try:
        yield
    except DATA_ERRORS + (Fault,) as error:
        fault = fault_of(error)
        raise Fault(f"{path}: {fault.reason}", fault.hdu) from error


def _shape(image: HDU) -> tuple[int, int]:
    return image.header.number("NAXIS2", 0), image.header.number("NAXIS1", 0)


def _check_name(header: Header, unit: Unit) -> None:
    named = {"PLATEID": unit.plate, "MJD": unit.mjd}
    for keyword, value in named.items():
        if header.get(keyword, value) != value:
            raise Fault(f"{keyword} = {header.get(keyword)}, but the file name says {value}", header.hdu)


def _zbest_table(unit: HDU, n_fibre: int) -> dict[str, np.ndarray]:
    unit.verify()
    table = read_table(unit, FITS_COLUMNS, essential=ESSENTIAL)
    if len(table["PLATE"]) != n_fibre:
        raise Fault(f"{len(table['PLATE'])} catalogue rows, but spPlate has {n_fibre} fibres", 1)
    return table


def _wanted_rows(unit: Unit, n_fibre: int) -> np.ndarray:
    fibers = np.array(sorted({fiberid for fiberid, _ in unit.fibers}) or range(1, n_fibre + 1))
    if len(fibers) and not 1 <= fibers[0] <= fibers[-1] <= n_fibre:
        raise Fault(f"fibres {fibers.tolist()} are asked for, the file has 1 to {n_fibre}")
    return fibers - 1


def _model(image: HDU, rows: np.ndarray, place: Placement, coeff0: float, shape: tuple[int, int]) -> np.ndarray:
    """spZbest's synthetic spectra, which must lie on the spPlate's pixels."""
    if _shape(image) != shape or not abs(image.header.number("COEFF0", coeff0) - coeff0) <= 1e-6:
        raise Fault(f"model image is {_shape(image)} from COEFF0 = {image.header.get('COEFF0')}, expected {shape} from "
                    f"{coeff0} as spPlate", image.number)
    image.verify()
    return read_image(image, rows, place.first, place.stop)


def _checked(
    unit: Unit, header: Header, table: dict[str, np.ndarray], table_hdu: int, expected: np.ndarray, place: Placement,
    pixels: dict[str, np.ndarray], hdu_of: dict[str, int],
) -> Spectra:
    """Spectra of the rows whose catalogue key is the `expected` (n, 3) plate, mjd, fiberid and whose pixels are sane.

    `table` arrays and `pixels` planes have n rows; the others become faults of single spectra.
    """
    n = len(expected)
    run2d = [name or str(header.get("RUN2D") or "").strip() or unit.run2d
             for name in (texts(table["RUN2D"]) if "RUN2D" in table else [""] * n)]
    reasons: dict[int, tuple[str, int | None]] = {}
    found = np.stack([table[name].astype(np.int64) for name in ("PLATE", "MJD", "FIBERID")], 1)
    for i in np.flatnonzero((found != expected).any(1)).tolist():
        reasons[i] = ("catalogue row is of plate-mjd-fiberid {}-{}-{}, expected {}-{}-{}".format(
            *found[i].tolist(), *expected[i].tolist()), table_hdu)
    for i in (i for i in range(n) if not run2d[i]):
        reasons.setdefault(i, ("no RUN2D in the catalogue row, the primary header or a folder's name", table_hdu))
    for plane, array in pixels.items():
        for i, reason in _bad_pixels(plane, array, place):
            reasons.setdefault(i, (reason, hdu_of[plane]))
    wanted = [not unit.fibers or any(f == fiber and r in (None, run2d[i]) for f, r in unit.fibers)
              for i, fiber in enumerate(expected[:, 2].tolist())]
    faults = [_fault_row(unit, reason, hdu, int(expected[i, 2]), run2d[i])
              for i, (reason, hdu) in sorted(reasons.items()) if wanted[i]]
    good = np.array([i for i in range(n) if wanted[i] and i not in reasons], np.int64)
    kept = (lambda array: array) if len(good) == n else (lambda array: array[good])  # no copy of a whole good plate
    columns = _columns(unit, header, {k: kept(v) for k, v in table.items()}, kept(found), [run2d[i] for i in good])
    columns["loglam0"] = [place.loglam0] * len(good)
    planes = {plane: place.place(kept(array).astype(PLANES[plane], copy=False)) for plane, array in pixels.items()}
    return Spectra(columns, planes, faults)


def _bad_pixels(plane: str, array: np.ndarray, place: Placement) -> list[tuple[int, str]]:
    """(row, reason) of the rows of `array` (n, n_pix) with values that no measurement can have."""
    if array.dtype.kind != "f":
        return []
    bad, what = ~np.isfinite(array), "non-finite"
    if plane == "ivar":
        bad, what = bad | (array < 0), "non-finite or negative"
    return [
        (i, f"{plane} is {what} in {int(bad[i].sum())} of {bad.shape[1]} pixels, first {array[i, bad[i]][0]} "
            f"at file pixel {place.first + int(bad[i].argmax())}")
        for i in np.flatnonzero(bad.any(1)).tolist()
    ]


def _columns(
    unit: Unit, header: Header, table: dict[str, np.ndarray], key: np.ndarray, run2d: list[str]
) -> dict[str, list]:
    columns = dict(zip(("plate", "mjd", "fiberid"), key.T.tolist(), strict=True))
    columns |= {"run2d": run2d} | catalogue_columns(table)
    sky_chi2 = header.get("SKYCHI2")  # what platelist copies from the spPlate header
    if not isinstance(sky_chi2, (int, float)) or not np.isfinite(sky_chi2):
        sky_chi2 = None
    mag_i = dict(unit.mag_i)
    for name, value in (("plate_quality", unit.plate_quality), ("sky_chi2", unit.sky_chi2), ("sky_chi2", sky_chi2)):
        columns[name] = [value if own is None else own for own in columns[name]]
    columns["mag_i"] = [mag_i.get(fiber) if own is None else own
                        for fiber, own in zip(columns["fiberid"], columns["mag_i"], strict=True)]
    return columns | {name: [value] * len(run2d) for name, value in
                      (("path", unit.path), ("hdu", None), ("reason", None))}
