"""What the documents tell people to type works: jobs and options exist, and the copy patterns take what they say."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lensspark import config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TREE = """v5_7_0/platelist.fits v5_7_0/spAll-v5_7_0.fits v5_7_0/spAll-v5_7_0.dat.gz v5_7_0/4055/spPlate-4055-55359.fits
    v5_7_0/4055/spCFrame-b1-00115696.fits v5_7_0/4055/v5_7_0/spZbest-4055-55359.fits
    v5_7_0/4055/v5_7_0/spZall-4055-55359.fits v5_7_0/spectra/lite/4055/spec-4055-55359-0001.fits
    v5_7_0/spectra/full/4055/spec-4055-55359-0001.fits v5_7_2/7102/spPlate-7102-56666.fits
    v5_7_2/7102/v5_7_2/spZbest-7102-56666.fits v5_6_5/4055/spPlate-4055-55359.fits""".split()  # noqa: SIM905


def commands(page: Path) -> list[str]:
    """The shell commands in a page's fenced blocks, continued lines joined."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


JOBS = [(page.name, line) for page in PAGES if page.exists() for line in commands(page)
        if "jobs/" in re.sub(r"\s#.*", "", line)]


@pytest.fixture(scope="module")
def options():
    """Job -> the options that its --help names."""
    found = {}
    for job in sorted((ROOT / "jobs").glob("*.py")):
        text = subprocess.run([sys.executable, job, "--help"], capture_output=True, text=True, check=True).stdout
        found[job.name] = set(re.findall(r"--[a-z][a-z-]*", text))
    return found


def test_there_are_commands():
    assert len(JOBS) >= 8


@pytest.mark.parametrize(("page", "line"), JOBS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(JOBS)])
def test_jobs_and_options_exist(page, line, options):
    words = shlex.split(re.sub(r"\s#.*", "", line))
    start = next(i for i, word in enumerate(words) if word.startswith("jobs/"))
    job = words[start].removeprefix("jobs/")
    assert job in options, f"{page}: {line}"
    given = [word.partition("=")[0] for word in words[start:] if word.startswith("--")]
    assert set(given) <= options[job], f"{page}: {line}"
    settings = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set"]
    assert config.load([], settings)


@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")
def test_the_copy_patterns_take_what_a_search_needs(tmp_path):
    for name in TREE:
        (tmp_path / "redux" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "redux" / name).write_text(name)
    lines = [line for line in commands(ROOT / "docs/operations.md") if line.startswith("rsync")]
    assert len(lines) == 2
    copied = []
    for line in lines:
        words = shlex.split(line)
        words = ["-rtv" if word == "-nrtv" else word for word in words[:-2]]
        target = tmp_path / f"copy{len(copied)}"
        subprocess.run([*words, f"{tmp_path}/redux/", f"{target}/"], check=True, capture_output=True)
        copied.append({str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()})
    wanted = [name for name in TREE if name.startswith(("v5_7_0/", "v5_7_2/"))]
    plates = {name for name in wanted if re.search(r"spPlate|spZbest|platelist|spAll.*\.fits$", name)}
    assert copied == [plates, {name for name in wanted if "/lite/" in name}]
