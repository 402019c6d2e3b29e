"""Makes the archive of the JVM's classes with which jobs start seconds sooner: `python -m lensspark.class_archive`.

A Java that was upgraded, or other jars, want it made anew; until then they are loaded as if there were none.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pandas as pd
from pyspark import SparkContext
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F

from lensspark import java
from lensspark.config import resource
from lensspark.java import ARCHIVE, FOLDER, QUIET
from lensspark.session import read_properties, spark_session


def make() -> Path | None:
    """Makes the archive anew from the classes of a session that does some of what jobs do; None if this Java cannot."""
    ARCHIVE.unlink(missing_ok=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        partial = Path(scratch) / ARCHIVE.name
        options = read_properties(resource("conf/spark-defaults.conf"))["spark.driver.extraJavaOptions"]
        options += f' "-XX:ArchiveClassesAtExit={partial}" {" ".join(QUIET)}'
        spark = spark_session("lensspark class archive", settings={"spark.driver.extraJavaOptions": options})
        _exercise(spark, f"{scratch}/table")
        gateway = SparkContext._gateway
        spark.stop()
        gateway.shutdown()
        gateway.proc.stdin.close()  # the JVM ends, and writes the archive
        gateway.proc.wait(300)
        if not partial.exists():
            return None
        os.replace(partial, ARCHIVE)
    return ARCHIVE


def _exercise(spark: SparkSession, path: str) -> None:
    """What jobs ask of Spark: Arrow, Parquet by folder, joins, aggregates, windows, tables from and to pandas."""
    rows = spark.range(0, 100, 1, 2).mapInArrow(lambda batches: batches, "id long")
    rows = rows.withColumns({"plate": F.col("id") % 2, "name": F.col("id").cast("string"), "x": F.rand(1)})
    rows.repartition("plate").sortWithinPartitions("id").write.partitionBy("plate").parquet(path)
    stored = spark.read.schema(rows.schema).parquet(path)
    few = spark.createDataFrame(pd.DataFrame({"id": [1, 2], "y": [0.5, None]}))
    joined = stored.join(F.broadcast(few), on="id", how="left").join(few.drop("y"), on="id", how="left_anti")
    ranked = joined.withColumn("rank", F.row_number().over(Window.partitionBy("plate").orderBy("x")))
    ranked.where("name IS NOT NULL").groupBy("plate").agg(F.count("*"), F.max("rank"), F.max_by("id", "x")).toPandas()
    stored.unionByName(stored).groupBy("name").agg(F.collect_list("x"), F.percentile_approx("x", 0.5)).collect()


if __name__ == "__main__":
    if made := make():
        print(made)
    else:
        print(f"{java.find_java()}: makes no archive of classes; jobs start without one", file=sys.stderr)
