"""The plates that are measured: some are drawn, the others are the same spectra under numbers of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lensspark import mock
from lensspark.config import Config, resource
from lensspark.eigen import Basis
from lensspark.mock import files

FIRST_PLATE, MJD, N_LITE = 5000, 55500, 500
# Lines per spectrum about as in a survey, where hits are some per mille (docs/science.md); the mock's own rates are for
# tests, and would measure little but the vetting.
RARE = {"lya": 1e-3, "oii": 1e-3, "airglow": 2e-4, "cosmic": 1e-3, "lens_line": 2e-3, "crosstalk": 2e-4}


def write(folder: Path, config: Config, plates: int, distinct: int = 4, seed: int = 1) -> Path:
    """`folder`/spplate with `plates` mock plates of 1,000 fibres, and `folder`/lite; what is there already stays."""
    settings, basis = replace(config.mock, **RARE), Basis.load(resource("data/eigenbasis.npz"))
    drawn: dict[int, dict[str, np.ndarray]] = {}
    for number in range(plates):
        target = folder / "spplate" / files.spplate_path(FIRST_PLATE + number, MJD)
        if target.exists():
            continue
        if number % distinct not in drawn:
            drawn[number % distinct] = mock.observe_plate(seed, FIRST_PLATE + number % distinct, MJD,
                                                          np.arange(1, 1001), settings, basis)
        plate = drawn[number % distinct] | {"plate": np.full(1000, FIRST_PLATE + number)}
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
