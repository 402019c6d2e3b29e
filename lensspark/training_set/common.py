"""What training sets share: splits by plate, pixels, labels, and how they are written."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lensspark import schema
from lensspark.arrow import to_arrow
from lensspark.boss import Spectra
from lensspark.config import Config
from lensspark.feed import data_hash
from lensspark.galaxy_bins import half_bin_pixels, shift_pixels
from lensspark.session import EXIT_DONE, EXIT_QUARANTINE
from lensspark.spectrum import pixel, wavelength, window_pixels

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger(__name__)

KEY = [column.name for column in schema.KEY]
LINE_KINDS = ("lya", "oii")  # within the window an [OII] interloper is a line like any other; vetting tells them apart
ROW_GROUP_BYTES = 8 << 20  # about 700 spectra: what the feed shuffles and holds in memory


@dataclass(frozen=True)
class Frame:
    """The pixels of backdrops: the window, and `margin` more on both sides so that spectra can be shifted."""

    first: int
    n_pix: int
    margin: int

    @classmethod
    def of(cls, config: Config) -> Frame:
        settings = config.survey_training
        # From a galaxy to the centre of the furthest bin that borrows it, and on to where that bin's vectors end.
        furthest = int(shift_pixels(0.0, (settings.max_borrowed_bins + 0.5) * settings.z_bin)) + 1
        return cls(*window_pixels(config.read.window), furthest + half_bin_pixels(settings.z_bin))

    @property
    def window(self) -> tuple[float, float]:
        """Angstrom, a quarter pixel beyond the first and last pixel so that rounding loses none."""
        edges = np.array([self.first - self.margin - 0.25, self.first + self.n_pix + self.margin - 0.75])
        return tuple(wavelength(edges).tolist())


def split_plates(plates: list[int], validation: float, test: float, seed: int) -> dict[int, str]:
    """The split of each plate: the given fractions of plates, at least one of each where the fraction is not 0.

    Raises ValueError if nothing is left to train on.
    """
    n_validation, n_test = (max(round(f * len(plates)), 1) if f else 0 for f in (validation, test))
    if n_validation + n_test >= len(plates):
        raise ValueError(f"{len(plates)} plates cannot be split: {n_validation} for validation and {n_test} for test "
                         "leave none to train on")
    order = np.random.default_rng(seed).permutation(len(plates))
    names = ["validation"] * n_validation + ["test"] * n_test + ["train"] * (len(plates) - n_validation - n_test)
    return {plates[i]: name for i, name in zip(order, names, strict=True)}


def new_folder(out: str | Path) -> Path:
    """`out` as a path. Raises ValueError if it exists and is not empty."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: expected a new folder")
    return out


def write_split(spectra: DataFrame, out: Path, split: str) -> None:
    """Write `spectra` (schema.TRAINING) as DATA/split, a file per partition, in row groups that fit the feed."""
    spectra.write.option("parquet.block.size", ROW_GROUP_BYTES).parquet(str(out / split))


def write_facts(out: Path, facts: dict[str, Any]) -> None:
    """Write DATA/data.json, the last file: a folder without it is unfinished. `facts` get the hash of the spectra."""
    (out / "data.json").write_text(json.dumps(facts | {"sha256": data_hash(out)}, indent=1))


def exit_code(out: str | Path, config: Config) -> int:
    """How the job that made `out` ends: EXIT_QUARANTINE if too much of its input could not be read."""
    facts = json.loads((Path(out) / "data.json").read_text())
    share = facts.get("n_quarantined", 0) / max(facts.get("n_input", 0), 1)
    if share <= config.limits.max_quarantine_fraction:
        return EXIT_DONE
    log.warning("%.2f %% of the input could not be read, above limits.max_quarantine_fraction = %g %%", 100 * share,
                100 * config.limits.max_quarantine_fraction)
    return EXIT_QUARANTINE


def labelled(mock: dict[str, np.ndarray], first: int) -> pa.RecordBatch:
    """Spectra with their truth (columns of n, planes of (n, n_pix)) as a batch of schema.TRAINING."""
    label = np.isin(mock["kind"], LINE_KINDS)
    mock |= {
        "label": label.astype(np.float32),
        "line_pixel": np.where(label, pixel(mock["line_wave"]) - first, np.nan).astype(np.float32),
        "line_snr": np.where(label, mock["line_snr"], np.nan),
    }
    planes = ("flux", "ivar", "and_mask")
    columns = {name: mock[name].tolist() for name in schema.TRAINING.names if name not in planes}
    return to_arrow([Spectra(columns, {name: mock[name] for name in planes})], schema.TRAINING)


def plates_of(splits: dict[int, str], split: str) -> list[int]:
    """The plates of one split, in order."""
    return sorted(plate for plate, name in splits.items() if name == split)


def by_hash(config: Config) -> list[Any]:
    """Columns that order spectra at random, the same for any partitioning: what a sample is taken by."""
    from pyspark.sql import functions as F

    return [F.xxhash64(F.lit(config.training.seed), *KEY), *map(F.col, KEY)]


def plane(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of lists of one length as (n, n_pix)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
