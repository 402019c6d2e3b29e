"""Scoring in blocks of files, one Spark job each: a block's rows are complete or absent, so that a killed run resumes.

    _staging/_blocks/ID.json   the mark of a finished block: its files as they were, its number of spectra
    _staging/_scored/ID/       its rows, schema.SCORED

Two blocks are in work at a time, so that no core waits for the last task of the first one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lensspark import catalogue, inference, manifest, schema, source, store
from lensspark.boss import Unit
from lensspark.run import Run
from lensspark.session import task_slots

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

SCORED, BLOCKS = "_scored", "_blocks"
IN_WORK = 2
PARTITIONS_PER_CORE = 2  # of one block, at least


@dataclass(frozen=True)
class Block:
    """Some units; `stamps` name their files as they are now; `plates`: how many plates end within it."""

    units: tuple[Unit, ...]
    stamps: tuple[str, ...]
    plates: int

    @property
    def name(self) -> str:
        return catalogue.digest(self.stamps)[:16]

    @property
    def nbytes(self) -> int:
        return sum(unit.nbytes for unit in self.units)


def score(spark: SparkSession, run: Run, units: Iterable[Unit]) -> tuple[list[str], dict[str, Any]]:
    """The tables (schema.SCORED) of `units`, finished blocks of a killed run among them; and what there is to tell."""
    named = manifest.stamps_of(run.manifest)
    stamps = {unit: named[manifest.key_of(run.manifest, unit)] for unit in units}
    found = finished(run, set(stamps.values()))
    taken = {stamp for record in found.values() for stamp in record["stamps"]}
    todo = cut([unit for unit, stamp in stamps.items() if stamp not in taken], stamps, block_bytes(spark, run))
    plates = len({(unit.plate, unit.mjd) for unit in stamps})
    if run.progress:
        nbytes = sum(unit.nbytes for unit in stamps)
        run.progress.blocks(plates, nbytes, max((block.nbytes for block in todo), default=0))
        for record in found.values():
            run.progress.block(record["plates"], record["nbytes"], record["spectra"], found=True)
    records = found | _write(spark, run, todo)
    facts = {"plates": plates, "files": len(stamps), "spectra": sum(r["spectra"] for r in records.values()),
             "blocks": len(records)} | ({"blocks_resumed": len(found)} if found else {})
    return [run.path(f"{SCORED}/{name}") for name in sorted(records)], facts


def finished(run: Run, stamps: set[str]) -> dict[str, dict[str, Any]]:
    """Name -> record of the blocks of an earlier, killed run whose files are all among `stamps`; others are removed."""
    import fsspec

    fs, place = fsspec.core.url_to_fs(run.path(BLOCKS))
    names = [path.rpartition("/")[2] for path in fs.ls(place, detail=False)] if fs.exists(place) else []
    found, seen = {}, set()
    for name in sorted(name.removesuffix(".json") for name in names):
        record = json.loads(fs.cat_file(f"{place}/{name}.json"))
        if set(record["stamps"]) <= stamps - seen:
            found[name] = record
            seen |= set(record["stamps"])
        else:
            fs.rm_file(f"{place}/{name}.json")
    return found


def block_bytes(spark: SparkSession, run: Run) -> int:
    """read.block_mb, or more where that would leave cores without work."""
    partitions = PARTITIONS_PER_CORE * task_slots(spark)
    return max(run.config.read.block_mb, partitions * run.config.read.target_partition_mb) * 1_000_000


def cut(units: list[Unit], stamps: dict[Unit, str], nbytes: int) -> list[Block]:
    """`units` in order, cut where `nbytes` are reached: what a block is does not depend on those after it, so that
    the blocks that a killed run left to do are those that it would have done."""
    last = {(unit.plate, unit.mjd): unit for unit in units}
    blocks, rows, size = [], [], 0
    for i, unit in enumerate(units):
        rows.append(unit)
        size += unit.nbytes
        if size >= nbytes or i == len(units) - 1:
            plates = sum(last[unit.plate, unit.mjd] is unit for unit in rows)
            blocks.append(Block(tuple(rows), tuple(stamps[unit] for unit in rows), plates))
            rows, size = [], 0
    return blocks


def _write(spark: SparkSession, run: Run, blocks: list[Block]) -> dict[str, dict[str, Any]]:
    """Scores `blocks`; if one fails, those in work are stopped and its error is raised."""
    tag = f"lensspark-{run.run_id}"

    def work(block: Block) -> dict[str, Any]:
        spark.addTag(tag)
        return write_block(spark, run, block)

    pool = ThreadPoolExecutor(IN_WORK, thread_name_prefix="block")
    try:
        futures = [pool.submit(work, block) for block in blocks]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            if future.exception():
                raise future.exception()
        return {block.name: future.result() for block, future in zip(blocks, futures, strict=True)}
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        with suppress(Exception):  # the session may be what failed
            spark.interruptTag(tag)
        raise
    finally:
        pool.shutdown()


def write_block(spark: SparkSession, run: Run, block: Block) -> dict[str, Any]:
    """Scores one block and marks it as finished; its record."""
    if run.lock:
        run.lock.check()
    path, partition_bytes = run.path(f"{SCORED}/{block.name}"), run.config.read.target_partition_mb * 1_000_000
    parts = source.blocks(block.units, partition_bytes, task_slots(spark) or 1)
    made = inference.score_files(spark, run.spectra, parts, run.model, run.config, store.writer(path), store.FILES)
    spectra = store.finish(made, path, schema.SCORED.struct_type())
    record = {"stamps": block.stamps, "plates": block.plates, "nbytes": block.nbytes, "spectra": spectra}
    catalogue.write_file(run.path(f"{BLOCKS}/{block.name}.json"), json.dumps(record).encode())
    if run.progress:
        run.progress.block(block.plates, block.nbytes, record["spectra"])
    return record
