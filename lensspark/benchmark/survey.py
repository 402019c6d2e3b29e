"""The plates that are measured: some are drawn, the others are the same spectra under numbers of their own."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.io import fits

from lensspark import mock
from lensspark.config import Config, resource
from lensspark.eigen import Basis
from lensspark.mock import files
from lensspark.mock.survey import RUN2D

FIRST_PLATE, MJD, N_LITE = 5000, 55500, 500
APART = 5.0  # degrees between plates of the same spectra: a plate is 3 degrees wide
# Lines per spectrum about as in a survey, where hits are some per mille (docs/science.md); the mock's own rates are for
# tests, and would measure little but the vetting.
RARE = {"lya": 1e-3, "oii": 1e-3, "airglow": 2e-4, "cosmic": 1e-3, "lens_line": 2e-3, "crosstalk": 2e-4}


def write(folder: Path, config: Config, plates: int, distinct: int = 4, seed: int = 1) -> Path:
    """`folder`/spplate with `plates` mock plates of 1,000 fibres, and `folder`/lite; what is there already stays.

    Plates with the spectra of another lie elsewhere on the sky: they are no repeated observations.
    """
    settings, basis = replace(config.mock, **RARE), Basis.load(resource("data/eigenbasis.npz"))
    drawn: dict[int, dict[str, np.ndarray]] = {}
    for number in range(plates):
        target = folder / "spplate" / files.spplate_path(FIRST_PLATE + number, MJD)
        if target.exists():
            continue
        if number % distinct not in drawn:
            drawn[number % distinct] = mock.observe_plate(seed, FIRST_PLATE + number % distinct, MJD,
                                                          np.arange(1, 1001), settings, basis)
        plate = drawn[number % distinct]
        plate = plate | {"plate": np.full(1000, FIRST_PLATE + number),
                         "ra": (plate["ra"] + APART * (number // distinct)) % 360}
        _write(folder / "spplate", files.plate_files(plate))
    if not (folder / "lite").exists():
        plate = drawn.get(0) or mock.observe_plate(seed, FIRST_PLATE, MJD, np.arange(1, 1001), settings, basis)
        _write(folder / "lite", files.lite_files({name: values[:N_LITE] for name, values in plate.items()}))
    return folder


def part(folder: Path, plates: int) -> Path:
    """A tree of the first `plates` plates, of hard links."""
    tree = folder / f"spplate-{plates}"
    whole = folder / "spplate"
    for path in sorted(whole.rglob("*.fits")):
        if int(path.name.split("-")[1]) < FIRST_PLATE + plates:
            target = tree / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                os.link(path, target)
    return tree


def many(folder: Path, copies: int) -> Path:
    """A tree of all plates under `copies` versions of the pipeline (RUN2D): more spectra than a disk holds.

    spPlate are links; each version has its own spZbest, without the models, which is a hole in the file.
    """
    tree, whole = folder / f"spplate-x{copies}", folder / "spplate"
    for path in sorted(whole.rglob("*.fits")):
        for copy in range(copies):
            run2d = f"v{6 + copy // 10}_{copy % 10}_0"
            target = tree / str(path.relative_to(whole)).replace(RUN2D, run2d)
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.name.startswith("spZbest"):
                _write_version(path, target, run2d)
            else:
                os.link(path, target)
    return tree


def _write_version(zbest: Path, target: Path, run2d: str) -> None:
    content = io.BytesIO()
    with fits.open(zbest) as hdus:
        hdus[1].data["RUN2D"], hdus[2].data = run2d, np.zeros_like(hdus[2].data)
        hdus.writeto(content)
        head = hdus[2].fileinfo()["datLoc"]
    partial = target.with_suffix(".part")
    partial.write_bytes(content.getbuffer()[:head])
    os.truncate(partial, content.tell())
    partial.rename(target)


def forget(folder: Path) -> None:
    """Drops the files of `folder` from the system's cache, so that the next read comes from the disk."""
    for path in folder.rglob("*.fits"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _write(folder: Path, contents: Iterator[tuple[str, bytes]]) -> None:
    for path, content in contents:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part")
        partial.write_bytes(content)
        partial.rename(target)
