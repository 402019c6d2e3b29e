"""Small BOSS files in real layout, for tests: one set of arrays, written as spPlate + spZbest, spec files, catalogues.

Written by astropy, which the reader does not use: the files are an independent statement of the format.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

PLANE_NAMES = ("flux", "ivar", "and_mask", "or_mask", "wdisp", "sky", "model")
N_PIX = 1500  # from COEFF0 = 3.5529: 3571 to 5045 Angstrom, which holds the default window


@dataclass
class Plate:
    """Spectra of one plate: `planes` name -> (n_fibre, n_pix), `catalogue` FITS column -> (n_fibre, ...)."""

    plate: int = 3586
    mjd: int = 55181
    run2d: str = "v5_7_0"
    coeff0: float = 3.5529
    planes: dict[str, np.ndarray] = field(default_factory=dict)
    catalogue: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.plate:04d}-{self.mjd}"

    @property
    def header(self) -> fits.Header:
        return fits.Header({"PLATEID": self.plate, "MJD": self.mjd, "RUN2D": self.run2d, "COEFF0": self.coeff0,
                            "COEFF1": 1e-4, "SKYCHI2": 1.25})


def make_plate(n_fibre: int = 3, n_pix: int = N_PIX, seed: int = 1, **names) -> Plate:
    """A plate of random spectra; `names` are Plate's plate, mjd, run2d, coeff0."""
    plate = Plate(**names)
    rng = np.random.default_rng([seed, plate.plate, plate.mjd])
    shape = (n_fibre, n_pix)
    plate.planes = {name: rng.normal(2, 1, shape).astype("f4") for name in ("flux", "wdisp", "sky", "model")}
    plate.planes["ivar"] = rng.gamma(2, 1, shape).astype("f4")
    plate.planes |= {name: rng.integers(0, 2**28, shape).astype("i4") for name in ("and_mask", "or_mask")}
    z = rng.uniform(0.3, 0.7, n_fibre).astype("f4")
    text = lambda value: np.full(n_fibre, value)  # noqa: E731
    plate.catalogue = {
        "PLATE": np.full(n_fibre, plate.plate, "i4"), "MJD": np.full(n_fibre, plate.mjd, "i4"),
        "FIBERID": np.arange(1, n_fibre + 1, dtype="i4"), "RUN2D": text(plate.run2d),
        "OBJTYPE": text("GALAXY"), "PLUG_RA": rng.uniform(0, 360, n_fibre), "PLUG_DEC": rng.uniform(-5, 60, n_fibre),
        "CLASS": text("GALAXY"), "SUBCLASS": np.array(["", "STARFORMING", "BROADLINE"] * n_fibre)[:n_fibre],
        "Z": z, "Z_ERR": z / 1e4, "ZWARNING": np.full(n_fibre, 4, "i4"), "CLASS_NOQSO": text("GALAXY"),
        "SUBCLASS_NOQSO": text(""), "Z_NOQSO": z, "Z_ERR_NOQSO": z / 1e4, "ZWARNING_NOQSO": np.zeros(n_fibre, "i4"),
        "SN_MEDIAN": rng.uniform(1, 9, (n_fibre, 5)).astype("f4"), "SN_MEDIAN_ALL": z * 10, "VDISP": z * 400,
        "VDISP_ERR": z * 20,
    }
    return plate


def photometry(plate: Plate) -> dict[str, np.ndarray]:
    """Columns that spec files and spAll have beside spZbest's; i = 20, 21, 22, ... mag."""
    n = len(plate.catalogue["PLATE"])
    nanomaggies = 10 ** ((22.5 - (20.0 + np.arange(n))) / 2.5)
    return {"CMODELFLUX": np.outer(nanomaggies, np.ones(5)).astype("f4"), "PLATEQUALITY": np.full(n, "good")}


def write(path: Path, hdus: list, checksum: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(path, checksum=checksum)
    return path


def table_hdu(columns: dict[str, np.ndarray], name: str | None = None) -> fits.BinTableHDU:
    hdu = fits.table_to_hdu(Table(columns))
    if name:
        hdu.name = name
    return hdu


def write_plate(tree: Path, plate: Plate, checksum: bool = False, zbest: str | None = "", suffix: str = "") -> Path:
    """`tree`/PPPP/spPlate-... and the spZbest in the folder `zbest` below ('': named as run2d; None: no spZbest)."""
    p, folder = plate.planes, tree / f"{plate.plate:04d}"
    images = [fits.ImageHDU(p[name]) for name in ("ivar", "and_mask", "or_mask", "wdisp")]
    path = write(
        folder / f"spPlate-{plate.name}.fits{suffix}",
        [fits.PrimaryHDU(p["flux"], plate.header), *images,
         table_hdu({"FIBERID": plate.catalogue["FIBERID"]}, "PLUGMAP"), fits.ImageHDU(p["sky"])],
        checksum,
    )
    if zbest is not None:
        model = fits.ImageHDU(p["model"], fits.Header({"COEFF0": plate.coeff0, "COEFF1": 1e-4}))
        write(folder / (zbest or plate.run2d) / f"spZbest-{plate.name}.fits{suffix}",
              [fits.PrimaryHDU(header=plate.header), table_hdu(plate.catalogue), model], checksum)
    return path


def spec_hdus(plate: Plate, row: int, upper: bool = False, trim: int = 0) -> list:
    """The HDUs of the spec file of `row`; `trim` drops pixels at both ends of the coadd, as real files do."""
    header = plate.header
    header["FIBERID"] = row + 1
    case = str.upper if upper else str.lower
    keep = slice(trim, plate.planes["flux"].shape[1] - trim)
    loglam = plate.coeff0 + 1e-4 * np.arange(plate.planes["flux"].shape[1])
    coadd = {"flux": plate.planes["flux"][row], "loglam": loglam.astype("f4")}
    coadd |= {name: plate.planes[name][row] for name in PLANE_NAMES[1:]}
    catalogue = {case(name): values[row:row + 1] for name, values in (plate.catalogue | photometry(plate)).items()}
    return [fits.PrimaryHDU(header=header), table_hdu({case(n): v[keep] for n, v in coadd.items()}, "COADD"),
            table_hdu(catalogue, "SPALL"), table_hdu({"LINEZ": np.zeros(3)}, "SPZLINE")]


def exposure_hdu(name: str, flux: np.ndarray, loglam: np.ndarray, ivar: np.ndarray, mask: np.ndarray | int = 0):
    """A single exposure of a full spec file: HDU 4 and on."""
    columns = {"flux": flux, "loglam": loglam, "ivar": ivar, "mask": np.zeros(len(flux), "i4") + mask}
    return table_hdu({key: values.astype("i4" if key == "mask" else "f4") for key, values in columns.items()}, name)


def spec_name(plate: Plate, row: int, suffix: str = "") -> str:
    return f"spec-{plate.name}-{row + 1:04d}.fits{suffix}"


def write_specs(folder: Path, plate: Plate, suffix: str = "", checksum: bool = False, **how) -> list[Path]:
    """One spec file per fibre, directly in `folder`; `how` goes to spec_hdus."""
    return [write(folder / spec_name(plate, row, suffix), spec_hdus(plate, row, **how), checksum)
            for row in range(len(plate.planes["flux"]))]


def write_spall(path: Path, plate: Plate) -> Path:
    return write(path, [fits.PrimaryHDU(), table_hdu(plate.catalogue | photometry(plate))])


def write_platelist(path: Path, plate: Plate, quality: str, sky_chi2: float) -> Path:
    columns = {"PLATE": [plate.plate], "MJD": [plate.mjd], "RUN2D": [plate.run2d], "PLATEQUALITY": [quality],
               "SKYCHI2": [sky_chi2]}
    return write(path, [fits.PrimaryHDU(), table_hdu(columns)])
