"""Imports go one way, contracts <- pure <- network <- Spark <- jobs, and what must be light is light to import."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A new module of lensspark/ is entered here; what is named here and not written yet is no error.
LAYERS = {
    "contracts": {"schema", "checked", "config", "redaction"},
    "pure": {"arrow", "boss", "counterpart", "eigen", "exposures", "galaxy_bins", "grades", "identity", "kernels",
             "lensing", "lines", "locate", "matched_filter", "measure", "metrics", "mock", "model", "population",
             "profile", "spectrum", "svg", "weighted_pca"},
    "network": {"network", "engine", "feed", "figures", "tracking", "training"},
    "spark": {"benchmark", "blocks", "catalogue", "class_archive", "compare", "daemon", "delta", "detectors",
              "evaluation", "gate", "inference", "injection", "java", "ledger", "lock", "manifest", "pipeline",
              "progress", "promotion", "recut", "report", "run", "selection", "session", "simulate", "source", "store",
              "training_set", "vetting"},
    "jobs": {"cli"},
}
LEVEL = {module: level for level, modules in enumerate(LAYERS.values()) for module in modules}
LEVEL[""] = 0  # lensspark/__init__.py: the version
JOBS = len(LAYERS) - 1
HEAVY = ("pyspark", "petastorm", "tensorflow", "keras", "openvino", "matplotlib")


def module_of(path: Path) -> str:
    """lensspark/boss/fits.py -> boss, lensspark/schema.py -> schema, lensspark/__init__.py -> ''."""
    name = path.relative_to(ROOT / "lensspark").parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def source_files() -> list[tuple[Path, str | None]]:
    """(file, module of lensspark or None for a job)."""
    package = [(path, module_of(path)) for path in sorted((ROOT / "lensspark").rglob("*.py"))]
    return package + [(path, None) for path in sorted((ROOT / "jobs").glob("*.py"))]


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """(dotted name, line) of everything that is imported, in functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write it from lensspark"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def existing() -> set[str]:
    return {module for _, module in source_files() if module is not None}


def test_every_module_has_its_layer():
    assert len(LEVEL) == 1 + sum(map(len, LAYERS.values())), "a module is in two layers"
    unknown = sorted(existing() - set(LEVEL))
    assert not unknown, f"enter {unknown} into LAYERS"


def test_imports_go_down():
    upward, seen = [], 0
    for path, module in source_files():
        own = JOBS if module is None else LEVEL.get(module, JOBS)
        for name, line in imports(ast.parse(path.read_text())):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == "lensspark" and target in LEVEL:
                seen += 1
                if LEVEL[target] > own:
                    upward.append(f"{path.relative_to(ROOT)}:{line} imports lensspark.{target}")
            elif package == "lensspark" and target != "__version__":
                upward.append(f"{path.relative_to(ROOT)}:{line} imports lensspark.{target}, which is no module")
            elif package == "jobs":
                upward.append(f"{path.relative_to(ROOT)}:{line} imports a job")
    assert seen > 30
    assert not upward, "\n".join(upward)


def test_pure_modules_never_name_spark_or_a_network_library():
    """Not even inside a function; only the contracts may, to describe a table to Spark."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, module in source_files() if module in LAYERS["pure"]
        for name, line in imports(ast.parse(path.read_text())) if name.partition(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_petastorm_is_imported_in_one_function_at_most():
    places = [f"{path.relative_to(ROOT)}:{line}" for path, _ in source_files()
              for name, line in imports(ast.parse(path.read_text())) if name.partition(".")[0] == "petastorm"]
    assert all(place.startswith("lensspark/feed.py") for place in places), places
    functions = [
        node.name for node in ast.walk(ast.parse(_text("lensspark/feed.py")))
        if isinstance(node, ast.FunctionDef) and any(name.startswith("petastorm") for name, _ in imports(node))
    ]
    assert len(functions) == (1 if places else 0), functions


def _text(path: str) -> str:
    return (ROOT / path).read_text() if (ROOT / path).exists() else ""


LIGHT = sorted(existing() & (LAYERS["contracts"] | LAYERS["pure"] | {"network", "engine"}))


@pytest.fixture(scope="module")
def loaded() -> dict[str, subprocess.Popen]:
    """Module -> an interpreter, already running, that imports nothing else and prints which heavy packages came."""
    code = ("import importlib, json, sys; importlib.import_module(sys.argv[1]); "
            f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))")
    return {
        module: subprocess.Popen([sys.executable, "-c", code, f"lensspark.{module}"], cwd=ROOT, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for module in LIGHT
    }


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(loaded, module):
    out, err = loaded[module].communicate(timeout=120)
    assert loaded[module].returncode == 0, err
    assert json.loads(out) == []
