"""The input of a run, file by file, so that a later run knows what is new, what has changed and what is gone.

Listing a survey opens no file: a file is the same if its size is, and its ETag where the store gives one, else its time
of change. `read.fingerprint = "content"` takes the sha256 of the content instead, which reads the whole survey.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lensspark import config, schema
from lensspark.boss import Survey, Unit, absolute, join_catalogues, survey_files
from lensspark.catalogue import digest, join, write_file

NAME = "manifest.parquet"
SEARCHED = ("plate", "lite", "spec", "full", "fault")  # kinds of rows that are units; the others are not searched
STAT_THREADS, STATS_AT_ONCE = 16, 1000
_TYPES = {"int": pa.int32(), "long": pa.int64(), "string": pa.string()}
_SCHEMA = pa.schema([(column.name, _TYPES[column.type]) for column in schema.MANIFEST.columns])
_TIMES = ("mtime", "LastModified", "last_modified", "updated")  # each store's word in fsspec's info
_TAGS = ("ETag", "etag", "md5Hash", "content_md5")


class Stamp(NamedTuple):
    """What tells that a file is the same."""

    size: int | None = None
    mtime_ns: int | None = None
    version: str | None = None


@dataclass(frozen=True)
class Manifest:
    """`root`: the survey as its paths begin; `table`: schema.MANIFEST; `survey`: what was listed, nothing in one that
    was read from a run. `complete`: what catalogues say of the plates is in it."""

    root: str
    table: pa.Table
    survey: Survey = Survey()
    complete: bool = False

    @property
    def sha256(self) -> str:
        """Over the survey's files, with their paths below their common folder: a mirror that moved, or is named by
        another path, keeps it if it kept sizes and times."""
        rows = [row for row in self.table.drop(["known"]).to_pylist() if row["kind"] != "lenses"]
        units = [row["path"] for row in rows if row["kind"] in SEARCHED]
        common = os.path.commonprefix(units).rpartition("/")[0]
        for row in rows:
            for name in ("path", "zbest"):
                text = row[name] or ""
                row[name] = text[len(common):].lstrip("/") if text.startswith(common) else text.rpartition("/")[2]
        return digest(sorted(list(map(str, row.values())) for row in rows))

    def absolute(self, path: str) -> str:
        """The whole path of a row's `path`."""
        return path if path.startswith("/") or "://" in path else join(self.root, path)

    def rows(self) -> dict[tuple[str, str], tuple]:
        """(path, kind) -> all else that makes the row what it is."""
        columns = [self.table[name].to_pylist() for name in _SCHEMA.names]
        return {row[:2]: row[2:] for row in zip(*columns, strict=True)}

    def joined(self) -> Manifest:
        """With what the survey's catalogues say of each plate; a catalogue that cannot be read is a unit of kind fault.

        Reads the catalogues, which may take a minute for a whole spAll.
        """
        listed = self.survey
        units = join_catalogues(listed.units, listed.catalogues)
        new = [_row(self.root, unit.path, unit.kind, (Stamp(), Stamp()), unit) for unit in units[len(listed.units):]]
        table = pa.concat_tables([self.table, pa.Table.from_pylist(new, _SCHEMA)])
        known = dict(zip(((_below(self.root, unit.path), unit.kind) for unit in units), map(_known, units),
                         strict=True))
        keys = zip(table["path"].to_pylist(), table["kind"].to_pylist(), strict=True)
        table = table.set_column(_SCHEMA.get_field_index("known"), "known", pa.array(map(known.get, keys), pa.string()))
        return dataclasses.replace(self, table=table, survey=dataclasses.replace(listed, units=units), complete=True)

    def write(self, path: str) -> None:
        stream = io.BytesIO()
        pq.write_table(self.table.replace_schema_metadata({"root": self.root}), stream)
        write_file(path, stream.getvalue())


@dataclass(frozen=True)
class Changes:
    """From an older manifest to a newer one. `new`, `changed`, `removed`, `same`: (path, kind) of units, without those
    of kind fault that are in both; `others`: whether anything else is another: catalogues, exposures, tables of lenses.
    """

    new: frozenset[tuple[str, str]]
    changed: frozenset[tuple[str, str]]
    removed: frozenset[tuple[str, str]]
    same: frozenset[tuple[str, str]]
    others: bool

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.removed or self.others)

    @property
    def counts(self) -> dict[str, int]:
        return {f"n_{name}": len(getattr(self, name)) for name in ("new", "changed", "removed", "same")}


def changes(old: Manifest, new: Manifest) -> Changes:
    """What is another in `new`; what catalogues say of a plate counts where both are complete."""
    before, after = old.rows(), new.rows()
    if not new.complete:
        before, after = ({key: row[:-1] for key, row in rows.items()} for rows in (before, after))
    both = before.keys() & after.keys()
    differ = set(before.keys() ^ after.keys()) | {key for key in both if before[key] != after[key]}
    units = {key for key in differ if key[1] in SEARCHED}
    same = {key for key in both - units if key[1] in SEARCHED and key[1] != "fault"}
    return Changes(*map(frozenset, (units - before.keys(), units & both, units - after.keys(), same)),
                   bool(differ - units))


def altered(listed: Manifest, spectra: str, read: config.Read) -> list[str]:
    """The files of spectra that are gone or another since they were `listed`; new ones do not matter."""
    found = changes(dataclasses.replace(listed, complete=False), of_survey(spectra, read))
    return sorted(path for path, kind in found.changed | found.removed if kind != "fault")


def of_survey(spectra: str, read: config.Read, lenses: Iterable[str] = ()) -> Manifest:
    """The manifest of the survey in the folder or URL `spectra`, not joined, and of the tables `lenses`.

    Raises ValueError if there are no spectra.
    """
    survey, root = survey_files(spectra, read.layout), absolute(spectra)
    plates = [unit.zbest for unit in survey.units if unit.zbest]
    files = [unit.path for unit in survey.units if unit.kind != "fault"]
    exposures = [unit.path for unit in survey.exposures]
    stamp = _stamps([*files, *plates, *survey.catalogues, *exposures], read.fingerprint)
    stamp |= {path: _stamp(path, read.fingerprint) for path in lenses}
    units = tuple(dataclasses.replace(unit, size=stamp.get(unit.path, Stamp()).size if unit.size is None else unit.size)
                  for unit in survey.units)
    rows = [_row(root, unit.path, unit.kind, (stamp.get(unit.path, Stamp()), stamp.get(unit.zbest, Stamp())), unit)
            for unit in units]
    for kind, paths in (("catalogue", survey.catalogues), ("exposures", exposures), ("lenses", lenses)):
        rows += [_row(root, path, kind, (stamp[path], Stamp())) for path in paths]
    return Manifest(root, pa.Table.from_pylist(rows, _SCHEMA), dataclasses.replace(survey, units=units))


def read(path: str) -> Manifest:
    """What `Manifest.write` left at `path`. Raises OSError or ValueError (pyarrow's) if there is none."""
    import fsspec

    with fsspec.open(path) as file:
        table = pq.read_table(io.BytesIO(file.read()))
    root = (table.schema.metadata or {}).get(b"root", b"").decode()
    return Manifest(root, table.select(_SCHEMA.names).cast(_SCHEMA), complete=True)


def stamps_of(manifest: Manifest) -> dict[tuple[str, str], str]:
    """(path, kind) of each unit -> a short digest that names it as it is now."""
    return {key: digest([*key, *row])[:16] for key, row in manifest.rows().items() if key[1] in SEARCHED}


def key_of(manifest: Manifest, unit: Unit) -> tuple[str, str]:
    """(path, kind) of `unit` in the manifest's table."""
    return _below(manifest.root, unit.path), unit.kind


def _row(root: str, path: str, kind: str, stamps: tuple[Stamp, Stamp], unit: Unit | None = None) -> dict[str, Any]:
    values: dict[str, Any] = {"path": _below(root, path), "kind": kind, **stamps[0]._asdict()}
    if unit is not None:
        values |= {name: getattr(unit, name) for name in ("plate", "mjd", "fiberid", "run2d")}
        values |= {"zbest": unit.zbest and _below(root, unit.zbest), "known": unit.reason or None}
        values |= {f"zbest_{name}": value for name, value in stamps[1]._asdict().items()}
    return values


def _below(root: str, path: str) -> str:
    top = root.rstrip("/") + "/"
    return path[len(top):] if path.startswith(top) else path


def _known(unit: Unit) -> str | None:
    facts = [unit.plate_quality, unit.sky_chi2, unit.mag_i]
    return unit.reason or (digest(facts)[:16] if any(fact not in (None, ()) for fact in facts) else None)


def _stamps(paths: list[str], fingerprint: str) -> dict[str, Stamp]:
    chunks = [paths[first:first + STATS_AT_ONCE] for first in range(0, len(paths), STATS_AT_ONCE)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        parts = pool.map(lambda chunk: [_stamp(path, fingerprint) for path in chunk], chunks)
        return dict(zip(paths, (stamp for part in parts for stamp in part), strict=True))


def _stamp(path: str, fingerprint: str) -> Stamp:
    """A file that is gone, or cannot be looked at, has a stamp without values: reading it will say why."""
    try:
        if "://" not in path:
            facts = os.stat(path)
            if not stat.S_ISREG(facts.st_mode):  # a named pipe would be waited for
                return Stamp()
            stamp, opened = Stamp(facts.st_size, facts.st_mtime_ns), partial(open, path, "rb")
        else:
            import fsspec

            fs, name = fsspec.core.url_to_fs(path)
            stamp, opened = _remote(fs.info(name)), partial(fs.open, name)  # the listing's cache knows the file
        return stamp if fingerprint == "time" else Stamp(stamp.size, None, f"sha256:{_sha256(opened)}")
    except OSError as error:
        if "://" in path and not isinstance(error, (FileNotFoundError, PermissionError)):
            raise  # of the way to a store
        return Stamp()


def _remote(info: dict[str, Any]) -> Stamp:
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), None)
    time = next((info[name] for name in _TIMES if info.get(name)), None)
    if isinstance(time, datetime):
        time = time.timestamp()
    elif isinstance(time, str):
        tag, time = tag or time, None
    return Stamp(info.get("size"), None if tag or time is None else int(time * 1e9), tag)


def _sha256(opened: Callable[[], Any]) -> str:
    with opened() as file:
        found = hashlib.sha256()
        while data := file.read(1 << 22):
            found.update(data)
    return found.hexdigest()
