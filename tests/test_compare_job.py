"""jobs/compare.py through its main: counts, causes and products from ledgers; text from headers stays text."""

import base64
import hashlib
import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from synthetic_run import write_run

from lensspark import recut, schema
from lensspark.arrow import schema_of
from lensspark.compare import files
from lensspark.session import EXIT_ATTENTION, EXIT_DONE, EXIT_USAGE

MAIN = runpy.run_path(str(Path(__file__).resolve().parents[1] / "jobs/compare.py"))["main"]
KEY = [column.name for column in schema.KEY]
HOSTILE = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)>'\"{{ 7*7 }}\x1b[31m\u202e"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "measured"
    write_run(folder, rows=4000, plates=4, hit_rate=0.05)
    return folder


@pytest.fixture(scope="module")
def run(spark, measured):
    """A finished run, with verdicts."""
    return cut(spark, measured, measured.parent / "run", "vetting.min_line_snr=4")


def cut(spark, parent, out, setting):
    chosen = recut.plan(str(parent), str(out), [], [setting, "limits.max_quarantine_fraction=1"])
    recut.recut(spark, chosen, str(parent))
    return out


def changed(run, out, card=None, quarantine=None, **edits):
    """A copy of `run` with `edits` by plate: a function from the plate's frame to another (None: no such plate)."""
    shutil.copytree(run, out)
    for name, edit in edits.items():
        path = part(out, name.removeprefix("plate_"))
        if edit is None:
            shutil.rmtree(path.parent)
            listed(out / "ledger", lambda file, name=path.parent.name: not file.startswith(name))
            continue
        frame = edit(pd.read_parquet(path))
        written = pa.Table.from_pandas(frame, pq.read_schema(path), preserve_index=False)
        pq.write_table(written, path)
    if quarantine:
        more = pa.Table.from_pylist(quarantine, schema_of(schema.QUARANTINE))
        pq.write_table(more, out / "quarantine/part-more.parquet")
        listed(out / "quarantine", more="part-more.parquet")
    facts = json.loads((out / "run.json").read_text()) | {"run_id": "other"} | (card or {})
    (out / "run.json").write_text(json.dumps(facts))
    return out


def listed(table, keep=lambda file: True, more=""):
    """The list of the files of `table` with those to keep, and one more."""
    files = [file for file in json.loads((table / "_files.json").read_text())["files"] if keep(file[0])]
    files += [[more, (table / more).stat().st_size]] if more else []
    (table / "_files.json").write_text(json.dumps({"files": files}))


def compared(a, b, out, *options):
    code = MAIN([str(a), str(b), "--out", str(out), *options])
    table = pd.read_parquet(out / "changes.parquet")
    assert list(table.columns) == schema.CHANGES.names
    assert len(Table.read(out / "changes.ecsv", format="ascii.ecsv")) == len(table)
    return code, table, json.loads((out / "compare.json").read_text())


def part(run, plate):
    """The one file of a plate's ledger."""
    (path,) = (run / f"ledger/plate={plate}").glob("*.parquet")
    return path


def hits_of(frame):
    return frame.index[frame["is_hit"] == True]  # noqa: E712


def test_the_same_run_twice_has_no_changes(spark, run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, table, facts = compared(run, run, tmp_path / "out", "--fail-on-change")
    assert code == EXIT_DONE and table.empty and facts["causes"] == {}
    assert facts["spectra"] == {"both": 4000, "only_a": 0, "only_b": 0}
    assert facts["hits"]["kept"] > 100 and sum(facts["hits"].values()) == facts["hits"]["kept"]
    assert not any(facts["differences"].values())
    assert "No hit or candidate changed." in (tmp_path / "out/index.html").read_text()
    assert "differing: nothing" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_recut_names_its_cut_and_nothing_else(spark, measured, run, tmp_path):
    stricter = cut(spark, measured, tmp_path / "b", "vetting.min_line_snr=7")
    code, table, facts = compared(run, stricter, tmp_path / "out", "--fail-on-change")
    assert code == EXIT_ATTENTION
    ledger = [pd.read_parquet(folder / "ledger") for folder in (run, stricter)]
    lost = int((ledger[0]["veto"] == 0).sum() - (ledger[1]["veto"] == 0).sum())
    assert facts["candidates"]["vanished"] == lost > 10 and facts["candidates"]["appeared"] == 0
    assert facts["hits"]["appeared"] == facts["hits"]["vanished"] == 0 and facts["hits"]["moved"] == len(table)
    assert set(table["cause"]) == {"limit"} and table["proven"].all() and set(table["causes"]) == {"limit"}
    assert set(table["cuts_failed"]) == {"line_snr"} and set(table["cuts_passed"]) == {""}
    assert table["why"].str.contains("vetting.min_line_snr 4 → 7", regex=False).all()
    assert table["line_snr_b"].between(4, 7).all()
    assert list(facts["differences"]["configuration"]) == ["vetting.min_line_snr"]


def test_causes_that_only_two_ledgers_can_tell(spark, run, tmp_path):
    """Plate 1000 is gone, 1001 in quarantine but for a fibre, 1002 reduced anew; on 1003 a hit moved, one is lost."""
    frame = pd.read_parquet(part(run, 1001))
    fibres = [int(n) for n in frame.loc[hits_of(frame), "fiberid"]]
    kept = fibres[0]

    def moved(frame):
        first, second, third = hits_of(frame)[:3]
        frame.loc[first, "line_wave"] += 5
        frame.loc[second, "p_line"] = 0.5
        frame.loc[second, "is_hit"], frame.loc[second, "veto"] = False, None
        frame.loc[third, "p_line"] -= 1e-4
        return frame

    faults = [{"path": "/b/spZbest-1000-56000.fits", "plate": 1000, "mjd": 56000, "reason": "not FITS"},
              *({"path": "/b/spPlate-1001-56001.fits", "plate": 1001, "mjd": 56001, "fiberid": n, "run2d": "v5_7_0",
                 "hdu": 1, "reason": HOSTILE} for n in fibres[1:])]
    other = changed(run, tmp_path / "b", {"input_manifest_sha256": "9" * 64}, faults, plate_1000=None,
                    plate_1001=lambda f: f[~f["fiberid"].isin(fibres[1:])],
                    plate_1002=lambda f: f.assign(run2d="v5_10_0"), plate_1003=moved)
    code, table, facts = compared(run, other, tmp_path / "out")
    assert code == EXIT_DONE and facts["hits"]["moved"] == 1
    by_plate = dict(list(table.groupby("plate")))
    assert kept not in set(by_plate[1001]["fiberid"]) and len(by_plate[1001]) == len(fibres) - 1
    for plate in (1000, 1001, 1002):
        assert set(by_plate[plate]["cause"]) == {"data"} and by_plate[plate]["proven"].all(), plate
    assert by_plate[1000]["why"].str.contains("quarantined there: not FITS").all()
    assert set(by_plate[1002]["hit"]) == {"appeared", "vanished"}
    assert by_plate[1002].loc[lambda t: t["hit"] == "vanished", "why"].str.contains("run2d v5_10_0").all()
    assert len(by_plate[1003]) == 2 and (by_plate[1003]["why"].str.contains("the input differs")).all()
    shift = by_plate[1003].loc[lambda t: t["moved"] == "line_wave"].iloc[0]
    assert shift["line_wave_b"] - shift["line_wave_a"] == pytest.approx(5)
    assert facts["spectra"] == {"both": 1000 + 1000 - len(fibres) + 1, "only_a": 2000 + len(fibres) - 1, "only_b": 1000}
    there, back = facts["hits"], compared(other, run, tmp_path / "back")[2]["hits"]
    assert back == there | {"appeared": there["vanished"], "vanished": there["appeared"]}


def test_files_that_the_runs_know(run, tmp_path):
    """Plate 1000's file grew, 1001's is the same in another place, 1002's was never looked at, 1003's is not listed."""
    for name, root, size in (("a", "/data/old", 5), ("b", "s3://new", 6)):
        rows = [{"path": "1000/spPlate-1000.fits", "size": size, "mtime_ns": 7, "zbest_size": 1},
                {"path": "1001/spPlate-1001.fits", "size": 5, "mtime_ns": 7, "zbest_size": 1},
                {"path": "1002/spPlate-1002.fits"}]
        (tmp_path / name).mkdir()
        table = pa.Table.from_pylist(rows).replace_schema_metadata({"root": root})
        pq.write_table(table, tmp_path / name / "manifest.parquet")
    paths = pd.DataFrame([{"path_a": f"/data/old/{n}/spPlate-{n}.fits", "path_b": f"s3://new/{n}/spPlate-{n}.fits"}
                          for n in (1000, 1001, 1002, 1003)])
    both = (str(tmp_path / "a"), str(tmp_path / "b"))
    assert files.with_files(paths, both)["file"].tolist() == ["size 5 → 6", "", None, None]
    assert files.with_files(paths, (both[0], str(run)))["file"].tolist() == [None] * 4


def test_hostile_text_stays_text(spark, run, tmp_path, capsys):
    def hostile(frame):
        frame.loc[hits_of(frame), "known_lens"] = HOSTILE
        return frame.assign(z=frame["z"] + 0.01, **{"class": HOSTILE}, p_line=np.where(frame["p_line"] > 0.9, 0.1, 0.0))

    card = {"run_id": f"../../{HOSTILE}", "model": HOSTILE, "versions": {"lensspark": HOSTILE, HOSTILE: "1"}}
    named = changed(run, tmp_path / "a", card)
    other = changed(run, tmp_path / "b", plate_1000=hostile)
    assert MAIN([str(named), str(other)]) == EXIT_DONE
    (out,) = (other / "compare").iterdir()
    assert re.fullmatch(r"[\w-]{1,64}", out.name)
    html = (out / "index.html").read_text()
    assert len(json.loads((out / "compare.json").read_text())["causes"]) > 0 and "alert(1)" in html
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1 and f"script-src 'sha256-{digest}'" in html
    assert "<img" not in html and "\x1b" not in html and "\u202e" not in html
    assert not re.search(r"<[^>]* (src|href)\s*=", html)
    printed = capsys.readouterr().out
    assert "alert(1)" in printed and "\x1b" not in printed and "\u202e" not in printed


@pytest.mark.parametrize(("arguments", "named"), [
    (["{run}", "{none}"], "no finished run"), (["{none}", "{run}"], "no finished run"), (["{run}"], "RUN_B"),
    (["{run}", "{run}", "--wave-px", "-1"], "--wave-px -1"), (["{run}", "{run}", "--p-line", "nan"], "--p-line nan")])
def test_wrong_arguments_are_exit_code_2_and_write_nothing(run, tmp_path, capsys, arguments, named):
    filled = [part.format(run=run, none=tmp_path / "none") for part in arguments]
    try:
        code = MAIN([*filled, "--out", str(tmp_path / "out")])
    except SystemExit as left:
        code = left.code
    assert code == EXIT_USAGE and named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
