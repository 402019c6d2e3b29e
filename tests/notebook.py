"""Runs a Databricks notebook in source format top to bottom as plain Python, with small stand-ins for what Databricks
puts into it: `python tests/notebook.py NOTEBOOK WIDGET=VALUE ...` runs one on the session that SPARK_REMOTE names."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parents[1] / "conf/databricks/notebooks"
HEADER, BREAK = "# Databricks notebook source\n", "\n# COMMAND ----------\n"


class Widgets:
    """dbutils.widgets: a value that was given, else the default."""

    def __init__(self, given: dict[str, str]):
        self.given, self.values = given, {}

    def text(self, name: str, default: str, label: str | None = None) -> None:
        self.values[name] = self.given.get(name, default)

    def get(self, name: str) -> str:
        return self.values[name]


def cells(name: str) -> list[str]:
    """The notebook's cells; fails for a file that is not in source format."""
    text = (NOTEBOOKS / f"{name}.py").read_text()
    assert text.startswith(HEADER), name
    return text.removeprefix(HEADER).split(BREAK)


def run(name: str, spark: Any, **widgets: str) -> list[Any]:
    """What the notebook displays: pandas tables (of DataFrames too) and figures, in order."""
    shown: list[Any] = []
    dbutils = SimpleNamespace(widgets=Widgets(widgets))
    names = {"spark": spark, "dbutils": dbutils, "__name__": "__main__",
             "display": lambda what: shown.append(what.toPandas() if hasattr(what, "toPandas") else what)}
    for number, cell in enumerate(cells(name)):
        exec(compile(cell, f"{name}.py, cell {number}", "exec"), names)
    assert set(widgets) <= set(dbutils.widgets.values), f"{name} has no widgets {set(widgets)}"
    return shown


if __name__ == "__main__":
    from lensspark.session import spark_session

    given = dict(word.split("=", 1) for word in sys.argv[2:])
    print(len(run(sys.argv[1], spark_session("notebook"), **given)), "displayed")
