"""Spark's daemon of Python workers, which has imported what they need before it forks them: each starts at once.

`spark.python.daemon.module = lensspark.daemon`, where lensspark is on the workers' path when they start (local mode
sets it by itself; not with --py-files). Without it a search's Python workers spend a second each on imports.
"""

import gc
import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a worker has one core
# Spark puts its own copy of pyspark, a zip, before the installed one: importing from it takes three times as long.
_zips = [entry for entry in sys.path if entry.endswith("pyspark.zip")]
sys.path[:] = [entry for entry in sys.path if entry not in _zips] + _zips

import pyspark.daemon  # noqa: E402

from lensspark import inference, kernels, profile  # noqa: E402, F401

if __name__ == "__main__":
    gc.freeze()  # what the workers share stays shared: the collector does not write into it
    pyspark.daemon.manager()
