"""The console script: `lensspark JOB ARGUMENTS` runs jobs/JOB.py, the file that spark-submit takes too."""

from __future__ import annotations

import runpy
import sys

from lensspark.config import resource


def main() -> int:
    """Run the named job as a script; an exit code other than 0 leaves with SystemExit.

    A Databricks wheel task calls this function: any SystemExit fails the task there, and what is returned is lost.
    """
    jobs = {path.stem: path for path in sorted(resource("jobs").glob("[a-z]*.py"))}
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help"):
        print("usage: lensspark JOB ARGUMENTS, with JOB one of\n\n" + "\n".join(map(_summary, jobs.values())))
        print("\n`lensspark JOB --help` tells a job's steps and options.")
        return 0 if name else 2
    if name not in jobs:
        print(f"lensspark: error: unknown job {name!r}; expected one of {', '.join(jobs)}", file=sys.stderr)
        return 2
    sys.argv[:2] = [f"lensspark {name}"]
    try:
        runpy.run_path(str(jobs[name]), run_name="__main__")
    except SystemExit as stopped:
        if stopped.code:
            raise
    return 0


def _summary(path) -> str:
    import ast

    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return f"  {path.stem:<16} {doc.partition(chr(10))[0]}"


if __name__ == "__main__":
    sys.exit(main())
