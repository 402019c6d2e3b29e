"""Fixtures for all tests: one Spark session, and the real data where they lie beside the checkout."""

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def spark():
    """A local session with two task slots; a failed task is retried as it would be on a cluster."""
    from pyspark.sql import SparkSession

    from lensspark.config import resource
    from lensspark.session import read_properties

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2,4]")
        .config(map=read_properties(resource("conf/spark-defaults.conf")))
        .config("spark.python.daemon.module", "lensspark.daemon")
        .appName("lensspark-tests")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real spectra and published tables beside the checkout; tests that ask for it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def basis():
    """The shipped eigenbasis."""
    from lensspark.config import resource
    from lensspark.eigen import Basis

    return Basis.load(resource("data/eigenbasis.npz"))
