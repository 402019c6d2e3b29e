"""One way for every job to get arguments, a Spark session and an exit code.

The session is whichever is there already (spark-submit, Databricks, Spark Connect), else a local one on all cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from lensspark import java
from lensspark.config import Config, ConfigError, load, resource
from lensspark.redaction import Formatter, without_credentials

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

log = logging.getLogger(__name__)
T = TypeVar("T")

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_ATTENTION = 0, 1, 2, 3
EXIT_QUARANTINE = EXIT_ATTENTION  # done, and somebody should look: more is quarantined than the limit
EXIT_TERMINATED = 128 + signal.SIGTERM
ERASE = "\r\x1b[K"  # takes back what stands in a terminal's line
_SESSION_KEYS = ("spark.sql.", "spark.databricks.")  # of the settings that a running session may take


# --- Spark ---


def spark_session(app_name: str, master: str | None = None, settings: Mapping[str, str] | None = None) -> SparkSession:
    """The running session, or a new one on `master` (default: all local cores, a failed task is tried four times).

    `settings` are Spark's, over conf/spark-defaults.conf. A session that others started keeps what they set; it only
    gets the SQL settings that they left alone, and UTC. Raises FileNotFoundError if a JVM is needed and Java is absent.
    """
    from pyspark.sql import SparkSession

    wanted = {**read_properties(resource("conf/spark-defaults.conf")), **(settings or {})}
    builder = SparkSession.builder.appName(app_name)
    if spark := SparkSession.getActiveSession():
        return _adopt(spark, wanted)
    if _is_managed():
        return _adopt((builder.master(master) if master else builder).getOrCreate(), wanted)
    os.environ["JAVA_HOME"] = str(java.find_java())
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    master = master or f"local[{_cores()},4]"
    wanted = {"spark.python.daemon.module": "lensspark.daemon"} | wanted
    if master.startswith("local"):
        wanted = {"spark.driver.host": "localhost", "spark.driver.bindAddress": "127.0.0.1"} | wanted
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_package_root()), os.environ.get("PYTHONPATH")]))
    options = [f"-Dlog4j2.configurationFile={resource('conf/log4j2.properties').as_uri()}", *java.archive_options()]
    wanted["spark.driver.extraJavaOptions"] = " ".join([*options, wanted.get("spark.driver.extraJavaOptions", "")])
    return builder.master(master).config(map=wanted).getOrCreate()


def read_properties(path: Path) -> dict[str, str]:
    """The `key value` lines of a Spark properties file."""
    lines = (line.split("#", 1)[0].split(None, 1) for line in path.read_text().splitlines())
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def is_remote(spark: SparkSession) -> bool:
    """Whether the session speaks Spark Connect, and so has no sparkContext."""
    return "connect" in type(spark).__module__


class _Closure:
    """What a broadcast looks like, for a value that travels with the function."""

    def __init__(self, value: Any):
        self.value = value


def share(spark: SparkSession, value: Any) -> Any:
    """Something with `value` that a function on the workers may use: a broadcast, sent once to each machine.

    Spark Connect has no broadcast of its own; the function's closure, shipped once per task, does it there.
    """
    return _Closure(value) if is_remote(spark) else spark.sparkContext.broadcast(value)


def tracker(spark: SparkSession) -> Any:
    """Spark's status tracker, None under Spark Connect, which has none."""
    return None if is_remote(spark) else spark.sparkContext.statusTracker()


def task_slots(spark: SparkSession) -> int:
    """How many tasks Spark runs at once, 0 if it does not tell: under Spark Connect."""
    return 0 if is_remote(spark) else spark.sparkContext.defaultParallelism


def map_tasks(spark: SparkSession, tasks: Sequence[T], work: Callable[[Iterator[T]], Iterator[pa.RecordBatch]],
              made: StructType | str) -> DataFrame:
    """What `work` makes of the values in `tasks`, each by a Spark task of its own: rows of the schema `made`.

    The values go to the workers (`share`); of what these read only what `work` gives back passes through the JVM.
    """
    shared = share(spark, tuple(tasks))

    def run(numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from work(shared.value[i] for batch in numbers for i in batch.column(0).to_pylist())

    return spark.range(0, len(tasks), 1, len(tasks)).mapInArrow(run, made)


@contextmanager
def progress(spark: SparkSession, label: str, every: float = 10.0) -> Iterator[None]:
    """Tells how many tasks of the running Spark stages are done, every so many seconds, until the block ends."""
    status, done = tracker(spark), threading.Event()

    def tell() -> None:
        while status and not done.wait(every):
            for stage in filter(None, map(status.getStageInfo, status.getActiveStageIds())):
                log.info("%s: %d of %d tasks", label, stage.numCompletedTasks, stage.numTasks)

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _is_managed() -> bool:
    """Whether something else decides where Spark runs: spark-submit, Spark Connect or Databricks."""
    return any(name in os.environ for name in ("PYSPARK_GATEWAY_PORT", "SPARK_REMOTE", "DATABRICKS_RUNTIME_VERSION"))


def _package_root() -> Path:
    """The folder, or the zip, that lensspark is imported from."""
    return Path(__file__).resolve().parents[1]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _adopt(spark: SparkSession, wanted: Mapping[str, str]) -> SparkSession:
    """`spark` with the SQL settings of `wanted` that can still be changed and that nobody chose; and with UTC."""
    chosen = set() if is_remote(spark) else {key for key, _ in spark.sparkContext.getConf().getAll()}
    for key, value in wanted.items():
        if key == "spark.sql.session.timeZone" or (key.startswith(_SESSION_KEYS) and key not in chosen):
            try:
                spark.conf.set(key, value)
            except Exception as error:  # each platform refuses other settings, each in its own way
                log.debug("%s stays as the session has it: %s", key, error)
    return spark


# --- Jobs ---


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def job_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with `doc` as its help and the options that all jobs share."""
    parser = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    common = parser.add_argument_group("common options")
    common.add_argument("--config", metavar="FILE", action="append", default=[], dest="config_files",
                        help="TOML file laid over the defaults; can be repeated")
    common.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[], dest="settings",
                        help="one setting, over every file; can be repeated")
    common.add_argument("--master", help="Spark master; default: the running session, else all local cores")
    common.add_argument("--verbose", action="store_true", help="Spark's warnings and full tracebacks")
    return parser


def run_job(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, Config], int | None],
    argv: list[str] | None = None,
) -> int:
    """Parse `argv`, load the configuration, `work(args, config)`; the exit code.

    0 or what `work` returns; 2 with one line on stderr for wrong arguments or configuration, that is for a ConfigError
    and for a ValueError that lensspark itself raised; 1 with the reason, and the traceback in a file, for the rest.
    """
    args = parser.parse_args(argv)
    _log_to_stderr(args.verbose)
    _end_on_sigterm()
    try:
        return work(args, load(args.config_files, args.settings)) or EXIT_DONE
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.verbose:
            print(without_credentials(traceback.format_exc()), file=sys.stderr, end="")
        if _is_callers_fault(error):
            print(f"{parser.prog}: error: {_one_line(str(error))}", file=sys.stderr)
            return EXIT_USAGE
        print(f"{parser.prog}: failed: {_reason(error)}", file=sys.stderr)
        if not args.verbose:
            print(f"{parser.prog}: the full traceback is in {_keep_traceback()}", file=sys.stderr)
        return EXIT_FAILED


def _log_to_stderr(verbose: bool) -> None:
    over = ERASE if sys.stderr.isatty() else ""  # a progress bar may stand in the line
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(f"{over}%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("lensspark").setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        os.environ["LENSSPARK_SPARK_LOG"] = "warn"  # read by conf/log4j2.properties when the JVM starts


def _end_on_sigterm() -> None:
    """A scheduler's SIGTERM ends the job as an exception would: locks are given back, Spark is told."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))


def _is_callers_fault(error: Exception) -> bool:
    """A ConfigError, or a ValueError from lensspark's own lines; one from within numpy or Spark is a fault of ours."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    own = str(frame.f_globals.get("__name__")).split(".")[0] in ("lensspark", "__main__", "jobs")
    return isinstance(error, ConfigError) or (own and isinstance(error, ValueError))


def _reason(error: Exception) -> str:
    """One line for people: from a failed Spark task, what the Python worker, or Java at the root, raised."""
    raised = re.findall(r"^(?:Caused by: )?(?:\w+\.)*(\w*(?:Error|Exception))(?:: (.+))?$", str(error), re.MULTILINE)
    if raised and type(error).__module__.startswith(("pyspark", "py4j")):
        name, said = raised[-1]
        return f"{name}: {_one_line(said or _SILENT.get(name, 'without a message'))}"
    return f"{type(error).__name__}: {_one_line(str(error))}"


_SILENT = {"MemoryError": "a Python worker had no more memory; see docs/operations.md, Cluster"}


def _one_line(text: str) -> str:
    return " ".join(without_credentials(text).split())[:500]


def _keep_traceback() -> Any:
    with tempfile.NamedTemporaryFile("w", prefix="lensspark-", suffix=".log", delete=False) as file:
        file.write(without_credentials(traceback.format_exc()))
    return file.name
