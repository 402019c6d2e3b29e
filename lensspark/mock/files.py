"""Mock spectra as the files that BOSS publishes: bytes of spPlate, spZbest, lite spec files, spAll and platelist.

Layout and names follow https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/ and the headers of DR12 files.
Headers are astropy's, data are appended as they are: the same spectra give the same bytes, whenever they are written.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from astropy.io import fits

from lensspark import lines
from lensspark.eigen import DLOGLAM
from lensspark.mock.survey import RUN2D

FAULTS = ("empty", "html", "truncated", "flipped_byte", "nan_flux", "wrong_step")
Spectra = dict[str, np.ndarray]  # what observe_plate gives for fibres of one plate

_BLOCK = 2880
_HTML = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n" * 40
# FITS column: (type, schema column). Text widths and number types are those of DR12's spAll.
_CATALOGUE = {
    "PLATE": (">i4", "plate"), "MJD": (">i4", "mjd"), "FIBERID": (">i4", "fiberid"), "RUN2D": ("S7", "run2d"),
    "RUN1D": ("S7", "run2d"), "OBJTYPE": ("S16", "objtype"), "PLUG_RA": (">f8", "ra"), "PLUG_DEC": (">f8", "dec"),
    "CLASS": ("S6", "class"), "SUBCLASS": ("S21", "subclass"), "Z": (">f4", "z"), "Z_ERR": (">f4", "z_err"),
    "ZWARNING": (">i4", "zwarning"), "SN_MEDIAN_ALL": (">f4", "sn_median"), "VDISP": (">f4", "vdisp"),
    "VDISP_ERR": (">f4", "vdisp_err"), "CLASS_NOQSO": ("S6", "class_noqso"),
    "SUBCLASS_NOQSO": ("S21", "subclass_noqso"), "Z_NOQSO": (">f4", "z_noqso"), "Z_ERR_NOQSO": (">f4", "z_err_noqso"),
    "ZWARNING_NOQSO": (">i4", "zwarning_noqso"),
}
_PHOTOMETRY = {"PLATEQUALITY": ("S8", "plate_quality"), "THING_ID": (">i4", "object_id")}
_COADD = np.dtype([("flux", ">f4"), ("loglam", ">f4"), ("ivar", ">f4"), ("and_mask", ">i4"), ("or_mask", ">i4"),
                   ("wdisp", ">f4"), ("sky", ">f4"), ("model", ">f4")])
_BANDS = ((3000, 4000), (4000, 5500), (5500, 7000), (7000, 8500), (8500, 10500))  # Angstrom: ugriz of SN_MEDIAN
_FITTED_LINES = (("[O_II] 3725", lines.OII[0]), ("[O_II] 3727", lines.OII[1]), ("H_beta", lines.HBETA),
                 ("[O_III] 5007", lines.OIII[1]), ("H_alpha", lines.HALPHA))


def spplate_path(plate: int, mjd: int) -> str:
    return f"{RUN2D}/{plate:04d}/spPlate-{plate:04d}-{mjd}.fits"


def spzbest_path(plate: int, mjd: int) -> str:
    return f"{RUN2D}/{plate:04d}/{RUN2D}/spZbest-{plate:04d}-{mjd}.fits"


def lite_path(plate: int, mjd: int, fiberid: int) -> str:
    return f"{RUN2D}/spectra/lite/{plate:04d}/spec-{plate:04d}-{mjd}-{fiberid:04d}.fits"


SPALL_PATH, PLATELIST_PATH = f"{RUN2D}/spAll-{RUN2D}.fits", f"{RUN2D}/platelist.fits"


def plate_files(spectra: Spectra, checksum: bool = False) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of a plate's spPlate and spZbest; row i of `spectra` must be fibre i + 1.

    checksum: whether the spZbest has them, for which readers must read all of its models; real ones have none.
    """
    if not np.array_equal(spectra["fiberid"], np.arange(1, len(spectra["fiberid"]) + 1)):
        raise ValueError(f"fiberids {spectra['fiberid'][:3]} ...: expected 1, 2, 3, ... for an spPlate")
    plate, mjd, header = int(spectra["plate"][0]), int(spectra["mjd"][0]), _primary(spectra)
    yield spplate_path(plate, mjd), _spplate(spectra, header)
    table = fits.BinTableHDU(_zbest_rows(spectra))
    grid = fits.Header([(key, header[key]) for key in ("COEFF0", "COEFF1")])
    model = fits.ImageHDU(spectra["model"], grid)
    yield spzbest_path(plate, mjd), b"".join(
        _hdu(hdu, checksum) for hdu in (fits.PrimaryHDU(header=header), table, model))


def lite_files(spectra: Spectra, checksum: bool = False) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of one lite spec file per row of `spectra`."""
    header, rows = _primary(spectra), catalogue_rows(spectra, photometry=True)
    n_pix = spectra["flux"].shape[1]
    loglam = spectra["loglam0"][0] + DLOGLAM * np.arange(n_pix)
    tables = [fits.BinTableHDU(np.zeros(n, dtype), name=name) for n, dtype, name in
              ((n_pix, _COADD, "COADD"), (1, rows.dtype, "SPALL"), (len(_FITTED_LINES), _line_rows(0, 0, 0).dtype,
                                                                   "SPZLINE"))]
    headers = [table.header.tostring().encode() for table in tables]  # the same for all fibres but for checksums
    for i, fiberid in enumerate(spectra["fiberid"].tolist()):
        header["FIBERID"] = fiberid
        header["PLUG_RA"], header["PLUG_DEC"] = float(spectra["ra"][i]), float(spectra["dec"][i])
        coadd = np.empty(n_pix, _COADD)
        for name in _COADD.names:
            coadd[name] = loglam if name == "loglam" else spectra[name][i]
        key = int(spectra["plate"][i]), int(spectra["mjd"][i]), fiberid
        parts = [_hdu(fits.PrimaryHDU(header=header))]
        for table, head, data in zip(tables, headers, (coadd, rows[i:i + 1], _line_rows(*key)), strict=True):
            parts.append(_hdu(fits.BinTableHDU(data, name=table.name), checksum=True) if checksum
                         else head + _padded(data.tobytes()))
        yield lite_path(*key), b"".join(parts)


def broken_file(spectra: Spectra, fault: str) -> tuple[str, bytes]:
    """(path, bytes) of a lite file of the one row in `spectra` that has `fault`, one of FAULTS."""
    if fault == "nan_flux":
        spectra = spectra | {"flux": spectra["flux"].copy()}
        spectra["flux"][:, 900:903] = np.nan  # near 4400 A, where the search looks
    ((path, data),) = lite_files(spectra, checksum=fault == "flipped_byte")
    at = data.index(b"COADD") // _BLOCK * _BLOCK + 20 * _COADD.itemsize + 2 * _BLOCK
    match fault:
        case "empty":
            data = b""
        case "html":
            data = _HTML
        case "truncated":
            data = data[:len(data) // 3]
        case "flipped_byte":
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
        case "wrong_step":
            data = data.replace(*(f"COEFF1  = {step!r:>20}".encode() for step in (DLOGLAM, 2 * DLOGLAM)))
        case "nan_flux":
            pass
        case _:
            raise ValueError(f"fault {fault!r}: expected one of {FAULTS}")
    return path, data


def spall(columns: Spectra) -> bytes:
    """spAll of all spectra of a survey; SPECPRIMARY marks the first observation of each object."""
    first = np.zeros(len(columns["plate"]), ">i2")
    order = np.lexsort([columns[name] for name in ("fiberid", "mjd", "plate")])
    first[order[np.unique(columns["object_id"][order], return_index=True)[1]]] = 1
    rows = _with(catalogue_rows(columns, photometry=True), "SPECPRIMARY", first)
    return _hdu(fits.PrimaryHDU()) + _hdu(fits.BinTableHDU(rows))


def platelist(columns: Spectra) -> bytes:
    """platelist: one row per plate of the spectra."""
    _, at = np.unique(columns["plate"], return_index=True)
    rows = np.zeros(len(at), [("PLATE", ">i4"), ("MJD", ">i4"), ("RUN2D", "S7"), ("RUN1D", "S7"),
                              ("PLATEQUALITY", "S8"), ("SKYCHI2", ">f8"), ("N_TOTAL", ">i4")])
    for name, column in zip(rows.dtype.names, ("plate", "mjd", "run2d", "run2d", "plate_quality", "sky_chi2"),
                            strict=False):
        rows[name] = columns[column][at]
    rows["N_TOTAL"] = np.unique(columns["plate"], return_counts=True)[1]
    return _hdu(fits.PrimaryHDU(), checksum=True) + _hdu(fits.BinTableHDU(rows), checksum=True)


def catalogue_rows(columns: Spectra, photometry: bool) -> np.ndarray:
    """A structured array (n,) of spZbest's columns, with `photometry` those that spec files and spAll add.

    CMODELFLUX is in nanomaggies and modelled in i alone: zero in the other bands, and where mag_i is not known.
    """
    wanted = _CATALOGUE | _PHOTOMETRY if photometry else _CATALOGUE
    rows = np.zeros(len(columns["plate"]), [(name, dtype) for name, (dtype, _) in wanted.items()])
    for name, (_, column) in wanted.items():
        rows[name] = columns[column]
    if not photometry:
        return rows
    flux = np.zeros((len(rows), 5), ">f4")
    flux[:, 3] = np.nan_to_num(10 ** (0.4 * (22.5 - columns["mag_i"])))
    return _with(rows, "CMODELFLUX", flux)


def _spplate(spectra: Spectra, header: fits.Header) -> bytes:
    plugmap = np.zeros(len(spectra["fiberid"]), [("OBJTYPE", "S16"), ("RA", ">f8"), ("DEC", ">f8"), ("FIBERID", ">i4"),
                                                 ("SPECTROGRAPHID", ">i4")])
    for name, column in (("OBJTYPE", "objtype"), ("RA", "ra"), ("DEC", "dec"), ("FIBERID", "fiberid")):
        plugmap[name] = spectra[column]
    plugmap["SPECTROGRAPHID"] = (spectra["fiberid"] - 1) // 500 + 1
    images = [fits.ImageHDU(spectra[plane], name=name) for plane, name in
              (("ivar", "IVAR"), ("and_mask", "ANDMASK"), ("or_mask", "ORMASK"), ("wdisp", "WAVEDISP"))]
    hdus = [fits.PrimaryHDU(spectra["flux"], header), *images, fits.BinTableHDU(plugmap, name="PLUGMAP"),
            fits.ImageHDU(spectra["sky"], name="SKY")]
    return b"".join(map(_hdu, hdus))


def _primary(spectra: Spectra) -> fits.Header:
    plate, mjd = int(spectra["plate"][0]), int(spectra["mjd"][0])
    cards = [
        ("TELESCOP", "LENSSPARK MOCK", "a simulation, no telescope"), ("FLAVOR", "science", ""),
        ("MJD", mjd, "MJD of the observation"), ("PLATEID", plate, "plate number"),
        ("NAME", f"{plate:04d}-{mjd}-01", "plate, MJD, mapping"), ("RUN2D", RUN2D, "version of the 2-D reduction"),
        ("SKYCHI2", float(spectra["sky_chi2"][0]), "mean chi2 of sky subtraction"),
        ("NWORDER", 2, "linear-log10 coefficients"), ("WFITTYPE", "LOG-LINEAR", "linear-log10 dispersion"),
        ("COEFF0", round(float(spectra["loglam0"][0]), 4), "log10 of wavelength [Angstrom] of first pixel"),
        ("COEFF1", DLOGLAM, "log10 dispersion per pixel"), ("VACUUM", True, "wavelengths are in vacuum"),
        ("DC-FLAG", 1, "log-linear flag"), ("BUNIT", "1E-17 erg/cm^2/s/Ang", ""),
    ]
    return fits.Header([fits.Card(*card) for card in cards])


def _zbest_rows(spectra: Spectra) -> np.ndarray:
    """spZbest's rows, with SN_MEDIAN per band (n, 5); a band that the pixels do not reach has 0."""
    wave = 10 ** (spectra["loglam0"][0] + DLOGLAM * np.arange(spectra["flux"].shape[1]))
    medians = np.zeros((len(spectra["plate"]), 5), ">f4")
    for band, (low, high) in enumerate(_BANDS):
        inside = np.flatnonzero((wave > low) & (wave < high))
        if inside.size:
            pixels = slice(inside[0], inside[-1] + 1)
            medians[:, band] = np.median(spectra["flux"][:, pixels] * np.sqrt(spectra["ivar"][:, pixels]), axis=1)
    return _with(catalogue_rows(spectra, photometry=False), "SN_MEDIAN", medians)


def _line_rows(plate: int, mjd: int, fiberid: int) -> np.ndarray:
    """HDU 3 of a spec file: lines that were not fitted, which the pipeline tells by negative errors."""
    rows = np.zeros(len(_FITTED_LINES), [("PLATE", ">i4"), ("MJD", ">i4"), ("FIBERID", ">i4"), ("LINENAME", "S13"),
                                         ("LINEWAVE", ">f8"), ("LINEAREA", ">f4"), ("LINEAREA_ERR", ">f4")])
    rows["PLATE"], rows["MJD"], rows["FIBERID"], rows["LINEAREA_ERR"] = plate, mjd, fiberid, -1
    rows["LINENAME"], rows["LINEWAVE"] = zip(*_FITTED_LINES, strict=True)
    return rows


def _with(rows: np.ndarray, name: str, values: np.ndarray) -> np.ndarray:
    out = np.empty(len(rows), [*rows.dtype.descr, (name, values.dtype.str, values.shape[1:])])
    for column in rows.dtype.names:
        out[column] = rows[column]
    out[name] = values
    return out


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def _hdu(hdu: fits.PrimaryHDU | fits.ImageHDU | fits.BinTableHDU, checksum: bool = False) -> bytes:
    """Header and data of one HDU, padded to blocks."""
    if checksum:
        hdu.add_checksum(when="FITS standard 4.0, appendix J")  # astropy's own comment holds the time of day
    with warnings.catch_warnings():
        warnings.simplefilter("error", fits.verify.VerifyWarning)
        header = hdu.header.tostring().encode()
    if hdu.data is None:
        return header
    data = np.asarray(hdu.data)  # of tables astropy has made native byte order
    data = data.astype(data.dtype.newbyteorder(">"), copy=False)
    return header + _padded(data.tobytes())
