"""Spark's daemon of Python workers, which has loaded what they need before it forks them: each starts at once.

`spark.python.daemon.module = lensspark.daemon`, where lensspark is on the workers' path when they start: not with
--py-files. Sessions that jobs start themselves have it. Without it each Python worker spends a second on imports, and
half a second and 50 MB on compiled kernels.
"""

import ctypes
import gc
import importlib.util
import os
import sys
from contextlib import suppress

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a worker has one core
# Spark puts its own copies of pyspark and py4j, zips, and a jar before what is installed: importing from them takes
# three times as long, and each task begins with reading anew what lies in every archive ever looked into, 0.1 s.
_archives = [entry for entry in sys.path if entry.endswith(("pyspark.zip", "-src.zip", ".jar"))]
sys.path[:] = [entry for entry in sys.path if entry not in _archives]
if importlib.util.find_spec("pyspark") and importlib.util.find_spec("py4j"):
    for _looked_into in [entry for entry in sys.path_importer_cache if entry.startswith(tuple(_archives))]:
        del sys.path_importer_cache[_looked_into]
else:  # they are installed nowhere else
    sys.path += _archives

import pyspark.daemon  # noqa: E402

from lensspark import inference, kernels, profile  # noqa: E402, F401

# mallopt(3): memory is taken from the system in pieces of their own from so many bytes on, and given back where so many
# are free at the heap's end. Of less, each batch would take its arrays' pages anew: a fifth of a worker's time.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
KEPT = 32 << 20

if __name__ == "__main__":
    with suppress(OSError, AttributeError):  # glibc alone has it
        for _parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(_parameter, KEPT)
    with suppress(Exception):  # what is wrong with it, the task that needs it tells
        inference.warm()
    gc.freeze()  # what the workers share stays shared: the collector does not write into it
    pyspark.daemon.manager()
