"""A standalone Spark cluster on loopback, for tests: one master and its workers, each a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lensspark.java import find_java


@dataclass
class Cluster:
    """`url` for --master; the processes, so that a test can kill one (the master is the first)."""

    folder: Path
    url: str = ""
    status_url: str = ""
    processes: list[subprocess.Popen] = field(default_factory=list)
    commands: list[tuple[str, ...]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def alive_workers(self) -> int:
        """How many workers the master counts on; 0 while it does not answer."""
        try:
            with urllib.request.urlopen(self.status_url, timeout=5) as answer:
                return json.load(answer)["aliveworkers"]
        except OSError:
            return 0

    def start(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [spark_program("spark-class"), *arguments], stdout=log, stderr=log,
                    env=bare_environment() | self.environment,
                )
            )
        self.commands.append((name, *arguments))

    def restart(self, number: int) -> None:
        """Another process for the one that ended, and wait until the master counts on as many workers as there were."""
        self.processes.pop(number).wait(20)
        self.start(*self.commands.pop(number))
        _wait_for(self, len(self.processes) - 1)


def spark_program(name: str) -> str:
    """Path of spark-class or spark-submit of the installed pyspark."""
    import pyspark

    return str(Path(pyspark.__file__).parent / "bin" / name)


def bare_environment() -> dict[str, str]:
    """What a worker machine has: Java and a bare Python on PATH, nothing of this virtual environment."""
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve().parent
    path = f"{base}{os.pathsep}/usr/local/bin{os.pathsep}/usr/bin{os.pathsep}/bin"
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    return kept | {
        "PATH": path, "JAVA_HOME": str(find_java()), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m"
    }


def said_in(log: Path, pattern: str, process: subprocess.Popen, seconds: float = 90) -> str:
    """The first group of `pattern` in the log of a starting process. Servers choose their own ports and name them
    there: a port chosen for them may be another's by the time they bind it.

    Raises RuntimeError with the log's end when it does not come.
    """
    end = time.monotonic() + seconds
    while not (found := re.search(pattern, log.read_text())):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{pattern!r} did not come within {seconds} s in {log}:\n{log.read_text()[-3000:]}")
        time.sleep(0.3)
    return found[1]


@contextmanager
def standalone_cluster(
    folder: Path, hosts: tuple[str, ...] = ("127.0.0.1", "127.0.0.1"), memory: str = "1g", **environment: str
) -> Iterator[Cluster]:
    """A running cluster with one one-core worker per entry of `hosts`; logs and work folders in `folder`. `environment`
    is that of its processes, beside what all have."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder, environment=environment)
    try:
        cluster.start(
            "master", "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0"
        )
        log, master = folder / "master.log", cluster.processes[0]
        cluster.url = said_in(log, r"Starting Spark master at (spark://\S+)", master)
        web_port = said_in(log, r"'MasterUI' on port (\d+)", master)
        cluster.status_url = f"http://127.0.0.1:{web_port}/json/"
        for number, host in enumerate(hosts):
            cluster.start(
                f"worker{number}", "org.apache.spark.deploy.worker.Worker", "--host", host, "--webui-port", "0",
                "--cores", "1", "--memory", memory, "--work-dir", str(folder / f"work{number}"), cluster.url,
            )
        _wait_for(cluster, len(hosts))
        yield cluster
    finally:
        for process in reversed(cluster.processes):
            process.terminate()
        for process in cluster.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(cluster: Cluster, workers: int, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while cluster.alive_workers() < workers:
        dead = [process.args for process in cluster.processes if process.poll() is not None]
        if dead or time.monotonic() > end:
            files = sorted(cluster.folder.glob("*.log"))
            logs = "\n".join(f"--- {file.name}\n{file.read_text()[-2000:]}" for file in files)
            raise RuntimeError(f"no cluster of {workers} workers within {seconds} s; ended: {dead}\n{logs}")
        time.sleep(0.3)
