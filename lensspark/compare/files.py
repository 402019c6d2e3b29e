"""What runs kept of their input's files: whether the file of a spectrum is the same in both."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lensspark.catalogue import join

MANIFEST = "manifest.parquet"  # of a run: path (below the survey's root), and stamps of the file and of its spZbest
STAMPS = ("size", "mtime_ns", "version", "zbest_size", "zbest_mtime_ns", "zbest_version")


@dataclass(frozen=True)
class Files:
    """Of the wanted files of one run: path as the ledger has it -> path below the root and stamps."""

    known: dict[str, tuple[Any, ...]]

    @classmethod
    def read(cls, run: str, wanted: Iterable[str]) -> Files | None:
        """From the manifest of `run`, of the files `wanted`; None where it kept none."""
        import fsspec
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        fs, place = fsspec.core.url_to_fs(join(run, MANIFEST))
        if not fs.exists(place):
            return None
        table = pq.read_table(io.BytesIO(fs.cat_file(place)))
        root = (table.schema.metadata or {}).get(b"root", b"").decode()
        below = {path.removeprefix(f"{root.rstrip('/')}/"): path for path in wanted}
        table = table.filter(pc.is_in(table["path"], pa.array(list(below), pa.string())))
        rows = table.to_pylist()
        return cls({below[row["path"]]: (row["path"], *(row.get(name) for name in STAMPS)) for row in rows})


def with_files(changed: pd.DataFrame, runs: tuple[str, str]) -> pd.DataFrame:
    """`changed` (schema.CHANGES' columns of both sides) with `file`: how the file of the spectrum differs between the
    `runs`, "" where it does not, None where they do not tell."""
    wanted = [set(changed[f"path_{side}"].dropna()) for side in "ab"] if len(changed) else [set(), set()]
    found = [Files.read(run, paths) for run, paths in zip(runs, wanted, strict=True)]
    if None in found or changed.empty:
        return changed.assign(file=None)
    pairs = zip(changed["path_a"], changed["path_b"], strict=True)
    told = [_told(found[0].known.get(a), found[1].known.get(b)) for a, b in pairs]
    return changed.assign(file=pd.Series(told, changed.index, dtype=object))


def _told(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> str | None:
    if a is None or b is None or all(value is None for value in a[1:]):
        return None
    if a == b:
        return ""
    parts = [f"{name} {x} → {y}" for name, x, y in zip(("file", *STAMPS), a, b, strict=True) if x != y]
    return ", ".join(parts)
