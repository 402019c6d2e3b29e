"""10,000 files of which 1 % is broken, in ten ways: these are in quarantine, each with its reason, and cost no time."""

import gzip
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from broken_files import card, flip_under_checksum, grid, offsets, set_row, truncate, with_pixel, without
from searches import ROOT, Search

PLATES, FIBRES, EVERY = 10, 1000, 100
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20
WAYS = [  # what is done to a file, what its reason must say
    (lambda p: p.write_bytes(b""), "empty file"),
    (lambda p: p.write_bytes(HTML), "not FITS"),
    (lambda p: truncate(p, offsets(p)[1][0] + 5000), "truncated"),
    (lambda p: p.write_bytes(gzip.compress(p.read_bytes())[:20_000]), "gzip stream"),
    (flip_under_checksum(1), "DATASUM is"),
    (with_pixel("flux", float("nan")), "flux is non-finite in 3"),
    (without("ivar", 1), "no column IVAR"),
    (lambda p: card(p, b"NAXIS2", "999999999999", hdu=1), "claims data up to byte"),
    (grid(700, 3e-4), "loglam is no grid"),
    (set_row("fiberid", 999), "expected"),
]


@pytest.fixture(scope="module")
def surveys(tmp_path_factory):
    """(sound survey, the same with every hundredth file broken, path -> what its reason must say)."""
    folder = tmp_path_factory.mktemp("many")
    subprocess.run([sys.executable, ROOT / "jobs/simulate.py", "--out", folder / "sound", "--plates", str(PLATES),
                    "--fibres", str(FIBRES), "--layout", "lite", "--broken", "0"], check=True)
    shutil.copytree(folder / "sound", folder / "broken")
    expected = {}
    for i, path in enumerate(sorted((folder / "broken").rglob("spec-*.fits"))[EVERY // 2::EVERY]):
        damage, reason = WAYS[i % len(WAYS)]
        damage(path)
        expected[str(path)] = reason
    assert len(expected) == PLATES * FIBRES // EVERY
    return folder / "sound", folder / "broken", expected


def searched(survey: Path, out: Path, model: Path) -> tuple[float, float, Search]:
    """Seconds that the stage of scoring took, CPU seconds of the whole search, and the search."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    search = Search(str(survey), out, model, "--set", "read.target_partition_mb=512", "--set",
                    "limits.max_quarantine_fraction=0.02")
    assert search.wait(1200) == 0, search.said
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads((out / "run.json").read_text())["timings"]["score"], cpu, search


@pytest.mark.long
def test_ten_thousand_files(surveys, model, tmp_path):
    sound, broken, expected = surveys
    times: dict[str, list[tuple[float, float]]] = {"sound": [], "broken": []}
    for again in range(2):  # in turns, since the machine may be busier at one time than at another
        for name, survey in (("sound", sound), ("broken", broken)):
            *cost, search = searched(survey, tmp_path / f"{name}{again}", model)
            times[name].append(tuple(cost))
    for name, costs in times.items():
        seconds, cpu = (min(values) for values in zip(*costs, strict=True))
        print(f"{name}: {PLATES * FIBRES / seconds:.0f} files/s, {cpu:.0f} CPU s")
    quarantine = pd.read_parquet(search.out / "quarantine").set_index("path")
    assert set(quarantine.index) == set(expected) and quarantine.index.is_unique
    for path, reason in expected.items():
        assert re.search(reason, quarantine.at[path, "reason"]), (path, quarantine.at[path, "reason"])
        assert f"{quarantine.at[path, 'plate']}-" in Path(path).name and quarantine.at[path, "fiberid"] > 0
    ledger = pd.read_parquet(search.out / "ledger", columns=["path"])
    assert ledger["path"].is_unique and len(ledger) == PLATES * FIBRES - len(expected)
    assert not set(ledger["path"]) & set(expected)
