"""Spark's daemon of Python workers, which has imported what they need before it forks them: each starts at once.

`spark.python.daemon.module = lensspark.daemon`, where lensspark is on the workers' path when they start: not with
--py-files. Sessions that jobs start themselves have it. Without it each Python worker spends a second on imports.
"""

import ctypes
import gc
import os
import sys
from contextlib import suppress

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a worker has one core
# Spark puts its own copy of pyspark, a zip, before the installed one: importing from it takes three times as long.
_zips = [entry for entry in sys.path if entry.endswith("pyspark.zip")]
sys.path[:] = [entry for entry in sys.path if entry not in _zips] + _zips

import pyspark.daemon  # noqa: E402

from lensspark import inference, kernels, profile  # noqa: E402, F401

M_MMAP_THRESHOLD = -3  # mallopt(3)

if __name__ == "__main__":
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2 << 20)  # a plate's pixels go back to the system when searched
    gc.freeze()  # what the workers share stays shared: the collector does not write into it
    pyspark.daemon.manager()
