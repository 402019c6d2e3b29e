"""A run's tables as Delta tables: a transaction log beside the Parquet files that Spark wrote, nothing copied.

Off Databricks the package deltalake (delta-rs) writes the log from the files' footers, on Databricks Spark does. A
run's tables are final, so that its Parquet files and its Delta table are the same rows, and lensspark goes on reading
the former; `check_final` refuses a table that somebody changed through Delta, whose files are not its rows any more.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from lensspark.catalogue import join
from lensspark.config import Config

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PARTITIONS = {"ledger": "plate", "candidates": "", "quarantine": ""}  # table -> column that its folders name
LOG = "_delta_log"


def check(config: Config) -> None:
    """Raises ValueError if Delta tables are asked for where nothing can write them."""
    if config.output.format == "delta" and not _on_databricks() and not importlib.util.find_spec("deltalake"):
        raise ValueError("output.format = 'delta': the package deltalake is not installed; "
                         "expected `pip install 'lensspark[delta]'`, or parquet")


def convert(spark: SparkSession, folder: str) -> None:
    """Makes the tables of a run below the folder or URL `folder` Delta tables, where they lie.

    A log that is there is replaced: the files that it tells of are. A table without a file, of a run without readable
    spectra, stays as it is.
    """
    for name, column in PARTITIONS.items():
        fs, place = _place(folder, name)
        if fs.exists(join(place, LOG)):
            fs.rm(join(place, LOG), recursive=True)
        if not any(path.endswith(".parquet") for path in fs.find(place)):
            continue
        if _on_databricks():
            partitions = f" PARTITIONED BY ({column} INT)" if column else ""
            spark.sql(f"CONVERT TO DELTA parquet.`{join(folder, name)}`{partitions}")
        else:
            _log_of(join(folder, name), column)


def _log_of(table: str, column: str) -> None:
    from deltalake import convert_to_deltalake
    from deltalake.schema import Field, PrimitiveType, Schema

    options: dict[str, Any] = {}
    if column:
        options = {"partition_by": Schema([Field(column, PrimitiveType("integer"))]), "partition_strategy": "hive"}
    convert_to_deltalake(table, **options)


def check_final(folder: str) -> None:
    """Raises ValueError if one of the tables in a run's `folder` was changed through Delta after the run."""
    for name in PARTITIONS:
        fs, place = _place(folder, name)
        if fs.exists(join(place, f"{LOG}/{1:020}.json")):
            raise ValueError(f"{join(folder, name)}: the Delta table was changed after the run; "
                             "expected a run's tables as it left them: work on a copy")


def _place(folder: str, name: str) -> tuple[Any, str]:
    """(file system, path) of a table, seen as it is now: others write to a store besides fsspec."""
    import fsspec

    fs, place = fsspec.core.url_to_fs(join(folder, name))
    fs.invalidate_cache()
    return fs, place


def _on_databricks() -> bool:
    return "DATABRICKS_RUNTIME_VERSION" in os.environ
