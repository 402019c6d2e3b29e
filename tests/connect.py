"""A Spark Connect server of the installed pyspark on loopback, for tests: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import free_port, spark_program

from lensspark.java import find_java

ROOT = Path(__file__).resolve().parents[1]
SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"


@contextmanager
def connect_server(folder: Path, cores: int = 2) -> Iterator[str]:
    """The address for SPARK_REMOTE of a running server; its log is in `folder`. Its workers see this checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = {
        "spark.connect.grpc.binding.address": "127.0.0.1", "spark.connect.grpc.binding.port": port,
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
        _wait_for(server, folder / "server.log")
        yield f"sc://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(server: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while "Spark Connect server started" not in log.read_text():
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"no Spark Connect server within {seconds} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.3)
