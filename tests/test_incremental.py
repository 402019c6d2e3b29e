"""A run that takes over what has not changed equals a full run; what has changed is all that is scored."""

import json
import os
import runpy
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from boss_files import make_plate, write_platelist
from small_survey import FIBRES, everything_in, ledger_hash, ledger_of, plan, search, settings, write_plates

from lensspark import blocks, config, manifest, pipeline, session
from lensspark.boss import Unit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    return settings(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tree(basis, tmp_path_factory):
    """Plates 4000 to 4002, of which the last cannot be read."""
    return write_plates(tmp_path_factory.mktemp("survey") / "redux", basis, (4000, 4001, 4002), broken=4002)


@pytest.fixture(scope="module")
def first(spark, tree, chosen, tmp_path_factory):
    out = tmp_path_factory.mktemp("first") / "run"
    search(spark, tree, out, chosen)
    return out


@pytest.fixture
def night(tree, first, tmp_path):
    """A copy of the survey and of its run, for a new night; each test changes the survey in another way."""
    shutil.copytree(tree, tmp_path / "redux")
    shutil.copytree(first, tmp_path / "run")
    return tmp_path / "redux", tmp_path / "run"


@pytest.fixture
def scored(monkeypatch):
    """The plates of the units that were scored since the test began."""
    plates, write = [], blocks.write_block
    monkeypatch.setattr(blocks, "write_block", lambda *args: plates.extend(
        unit.plate for unit in args[2].units) or write(*args))
    return plates


def quarantine_of(out):
    return pd.read_parquet(out / "quarantine").sort_values(["path", "fiberid"]).reset_index(drop=True)


def equal_to_a_full_run(spark, redux, run, chosen, tmp_path):
    full = tmp_path / "full"
    search(spark, redux, full, chosen)
    cards = [json.loads((out / "run.json").read_text()) for out in (run, full)]
    assert cards[0]["run_id"] == cards[1]["run_id"] and cards[0]["counts"] == cards[1]["counts"]
    # Batches of other spectra round differently in the last digits.
    pd.testing.assert_frame_equal(ledger_of(run), ledger_of(full), rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(quarantine_of(run), quarantine_of(full))
    assert (manifest.read(str(run / "manifest.parquet")).rows()
            == manifest.read(str(full / "manifest.parquet")).rows())
    assert {path.name for path in run.iterdir()} == {path.name for path in full.iterdir()}
    return cards[0]


def test_new_and_changed_plates_in_a_run_that_was_killed_and_resumed(spark, basis, night, chosen, scored, tmp_path):
    """4001 observed anew, 4003 new, 4002 still broken, all below another folder than before; then 4004 arrives too."""
    redux, run = night
    before = ledger_hash(run)
    write_plates(redux, basis, (4001,), seed=8)
    write_plates(redux, basis, (4003,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            search(spark, redux, run, chosen, incremental=True)
    assert sorted(scored) == [4001, 4003] and ledger_hash(run) == before
    write_plates(redux, basis, (4004,))
    search(spark, redux, run, chosen, incremental=True, resume=True)
    assert sorted(scored) == [4001, 4003, 4004]
    card = equal_to_a_full_run(spark, redux, run, chosen, tmp_path)
    told = card["incremental"]
    assert (told["n_new"], told["n_changed"], told["n_removed"], told["n_same"]) == (2, 1, 0, 2)
    assert card["counts"]["n_input"] == 4 * FIBRES + 1
    assert ledger_of(run)["path"].str.startswith(str(redux)).all()


def killed(*_):
    raise KeyboardInterrupt


def test_a_plate_with_other_catalogues_is_the_only_one_scored(spark, night, chosen, scored, tmp_path):
    """Another spZbest, a word in the platelist; a plate that is gone, and a full file, which is evidence, not input."""
    redux, run = night
    zbest = next(redux.rglob("spZbest-4001-*.fits"))
    os.utime(zbest, ns=(1, zbest.stat().st_mtime_ns + 1_000_000))
    mjd = int(zbest.name[13:18])
    write_platelist(redux / "platelist.fits", make_plate(plate=4001, mjd=mjd, n_fibre=1), "bad", 1.5)
    shutil.rmtree(next(redux.rglob("spPlate-4000-*.fits")).parent)
    full = redux / f"v5_7_0/spectra/full/4001/spec-4001-{mjd}-0003.fits"
    full.parent.mkdir(parents=True)
    full.write_bytes(b"not FITS")
    search(spark, redux, run, chosen, incremental=True)
    assert scored == [4001]
    told = equal_to_a_full_run(spark, redux, run, chosen, tmp_path)["incremental"]
    assert (told["n_new"], told["n_changed"], told["n_removed"], told["n_same"]) == (0, 1, 1, 1)
    assert (ledger_of(run)["plate_quality"] == "bad").all()


def test_what_else_a_run_takes_is_told_apart(night, chosen):
    """By the manifests alone: full files and catalogues are no units, and of what a platelist says each plate has its
    own."""
    redux, run = night
    before, read = manifest.read(str(run / "manifest.parquet")), config.load().read
    mjd = int(next(redux.rglob("spZbest-4001-*.fits")).name[13:18])
    write_platelist(redux / "platelist.fits", make_plate(plate=4001, mjd=mjd, n_fibre=1), "bad", 1.5)
    listed = manifest.of_survey(str(redux), read)
    found = manifest.changes(before, listed)
    assert found.others and not found.changed and not found.new, "no catalogue was opened"
    found = manifest.changes(before, listed.joined())
    assert [path.rpartition("/")[2][:12] for path, _ in found.changed] == ["spPlate-4001"]
    (redux / "platelist.fits").unlink()
    assert not manifest.changes(before, manifest.of_survey(str(redux), read).joined())
    full = redux / f"v5_7_0/spectra/full/4001/spec-4001-{mjd}-0003.fits"
    full.parent.mkdir(parents=True)
    full.write_bytes(b"x")
    (redux / "lenses.csv").write_text("name,ra,dec")
    found = manifest.changes(before, manifest.of_survey(str(redux), read, [str(redux / "lenses.csv")]))
    assert found.others and not found.new
    assert manifest.of_survey(str(redux), read, [str(redux / "lenses.csv")]).sha256 == manifest.of_survey(
        str(redux), read).sha256 != before.sha256


def job(monkeypatch, redux, out, chosen, *options):
    """jobs/predict.py, which may not start Spark."""
    def never(*_):
        raise AssertionError("Spark was started")

    monkeypatch.setattr(session, "spark_session", never)
    main = runpy.run_path(str(ROOT / "jobs/predict.py"))["main"]
    return main(["--spectra", str(redux), "--out", str(out), *options,
                 *(part for text in chosen for part in ("--set", text))])


def test_nothing_new_is_exit_0_without_spark_and_without_a_trace(first, tree, chosen, monkeypatch, capsys):
    before = everything_in(first)
    assert job(monkeypatch, tree, first, chosen, "--incremental", "--resume") == session.EXIT_DONE
    assert everything_in(first) == before


@pytest.mark.parametrize(("setting", "said"), [
    ("score.threshold=0.4", "another score.threshold (0.72, this one's is 0.4); take a new folder"),
    ("score.model='default'", "another model_sha256")])
def test_another_search_needs_another_folder(first, tree, chosen, monkeypatch, capsys, setting, said):
    before = everything_in(first)
    assert job(monkeypatch, tree, first, [*chosen, setting], "--incremental") == session.EXIT_USAGE
    assert said in capsys.readouterr().err
    assert everything_in(first) == before


def test_a_new_folder_is_a_full_run(tree, chosen, tmp_path):
    run = plan(tree, tmp_path / "run", chosen, incremental=True)
    assert run.former is None
    run.lock.release()


# --- The manifest alone ---


def test_2500_plates_are_decided_by_their_listing(tmp_path):
    """Files of real size without content: nothing is opened. The figure is printed (pytest -s)."""
    for plate in range(3500, 6000):
        for name, size in ((f"spPlate-{plate}-55555.fits", 110_000_000),
                           (f"v5_7_0/spZbest-{plate}-55555.fits", 20_000_000)):
            path = tmp_path / f"v5_7_0/{plate}/{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.truncate(path, size)
    read = config.load().read
    manifest.of_survey(str(tmp_path), read).joined().write(str(tmp_path / "old.parquet"))
    start = time.monotonic()
    old, new = manifest.read(str(tmp_path / "old.parquet")), manifest.of_survey(str(tmp_path), read)
    assert not manifest.changes(old, new)
    print(f"2,500 plates listed and compared in {time.monotonic() - start:.2f} s")
    assert sum(unit.nbytes for unit in new.survey.units) == 2500 * 110_000_000 and new.sha256 == old.sha256
    os.utime(tmp_path / "v5_7_0/4321/v5_7_0/spZbest-4321-55555.fits")
    found = manifest.changes(old, manifest.of_survey(str(tmp_path), read))
    assert found.changed == {("v5_7_0/4321/spPlate-4321-55555.fits", "plate")} and not found.new | found.removed
    assert found.counts["n_same"] == 2499


def test_contents_tell_where_times_do_not(tmp_path):
    folder = tmp_path / "v5_7_0/4055"
    folder.mkdir(parents=True)
    for name in ("spPlate-4055-55359.fits", "spZbest-4055-55359.fits"):
        (folder / name).write_bytes(b"x" * 5000)
    by_time, by_content = (config.load([], [f"read.fingerprint='{how}'"]).read for how in ("time", "content"))
    before = [manifest.of_survey(str(tmp_path), how) for how in (by_time, by_content)]
    os.utime(folder / "spZbest-4055-55359.fits", (1, 1))
    after = [manifest.of_survey(str(tmp_path), how) for how in (by_time, by_content)]
    assert manifest.changes(before[0], after[0]).changed and not manifest.changes(before[1], after[1])
    assert before[0].sha256 != after[0].sha256 and before[1].sha256 == after[1].sha256
    time_then = os.stat(folder / "spPlate-4055-55359.fits")
    (folder / "spPlate-4055-55359.fits").write_bytes(b"y" * 5000)
    os.utime(folder / "spPlate-4055-55359.fits", ns=(time_then.st_atime_ns, time_then.st_mtime_ns))
    later = [manifest.of_survey(str(tmp_path), how) for how in (by_time, by_content)]
    assert not manifest.changes(after[0], later[0]) and manifest.changes(after[1], later[1]).changed


def test_stores_tell_by_their_tags(tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    for name in ("spPlate-4055-55359.fits", "spZbest-4055-55359.fits"):
        fs.pipe_file(f"/manifest/v5_7_0/4055/{name}", b"x")
    info = fs.info("/manifest/v5_7_0/4055/spPlate-4055-55359.fits")
    assert manifest._remote(info | {"ETag": '"ab"', "LastModified": "x"}) == (1, None, '"ab"')
    assert manifest._remote({"size": 3, "mtime": 2.5}) == (3, 2_500_000_000, None)
    listed = manifest.of_survey("memory://manifest", config.load().read)
    (path, kind), = listed.rows()
    assert (path, kind) == ("v5_7_0/4055/spPlate-4055-55359.fits", "plate")
    assert listed.absolute(path) == listed.survey.units[0].path and isinstance(listed.survey.units[0], Unit)
    fs.rm("/manifest", recursive=True)
