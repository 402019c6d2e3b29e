"""A Spark Connect server of the installed pyspark on loopback, for tests: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import said_in, spark_program

from lensspark.java import find_java

ROOT = Path(__file__).resolve().parents[1]
SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"


@contextmanager
def connect_server(folder: Path, cores: int = 2) -> Iterator[str]:
    """The address for SPARK_REMOTE of a running server; its log is in `folder`. Its workers see this checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "spark.connect.grpc.binding.address": "127.0.0.1", "spark.connect.grpc.binding.port": 0,
        "spark.sql.shuffle.partitions": 2, "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.warehouse.dir": folder / "warehouse", "spark.python.daemon.module": "lensspark.daemon",
    }
    options = ["--properties-file", str(ROOT / "conf/spark-defaults.conf")]
    options += [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
    environment = os.environ | {"JAVA_HOME": str(find_java()), "PYTHONPATH": str(ROOT), "SPARK_LOCAL_IP": "127.0.0.1",
                                "PYSPARK_PYTHON": sys.executable}
    with open(folder / "server.log", "wb") as log:
        command = [spark_program("spark-submit"), "--class", SERVER, "--master", f"local[{cores}]", *options]
        server = subprocess.Popen([*command, "spark-internal"], stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        address = said_in(folder / "server.log", r"Spark Connect server started at: \S*?([\d.]+:\d+)", server)
        yield f"sc://{address}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
