"""What a survey was when it was listed, against what it is now."""

import dataclasses
import os

import boss_files as bf
import pytest
from broken_files import link_to_itself, named_pipe, truncate, zbest

from lensspark import config, manifest

READ = config.load().read


@pytest.fixture
def survey(tmp_path):
    """Two plates, a lite file, a file of no spectrum's name and a catalogue that cannot be read."""
    for number in (3586, 3587):
        bf.write_plate(tmp_path, bf.make_plate(2, 120, plate=number))
    bf.write_specs(tmp_path / "lite", bf.make_plate(1, 120, plate=4000))
    (tmp_path / "spec-1.fits").touch()
    (tmp_path / "spAll-v5_7_0.fits").write_bytes(b"no catalogue")
    return tmp_path


@pytest.mark.parametrize("fingerprint", ["time", "content"])
@pytest.mark.parametrize(("change", "expected"), [
    (lambda root: None, []),
    (lambda root: bf.write_plate(root, bf.make_plate(2, 120, plate=3588)), []),
    (lambda root: (root / "spec-1.fits").unlink(), []),
    (lambda root: next(root.rglob("spPlate-3587*")).unlink(), ["3587/spPlate-3587-55181.fits"]),
    (lambda root: truncate(next(root.rglob("spPlate-3587*")), 9000), ["3587/spPlate-3587-55181.fits"]),
    (lambda root: truncate(zbest(root / "3586/x"), 9000), ["3586/spPlate-3586-55181.fits"]),
    (lambda root: truncate(next(root.rglob("spec-4000*")), 9000), ["lite/spec-4000-55181-0001.fits"]),
])
def test_files_that_change_or_go_under_a_search_are_named(survey, fingerprint, change, expected):
    read = dataclasses.replace(READ, fingerprint=fingerprint)
    listed = manifest.of_survey(str(survey), read).joined()
    change(survey)
    assert manifest.altered(listed, str(survey), read) == expected


@pytest.mark.parametrize("fingerprint", ["time", "content"])
@pytest.mark.parametrize("damage", [named_pipe, link_to_itself])
def test_what_is_no_file_has_no_stamp(survey, fingerprint, damage):
    path = next(survey.rglob("spec-4000*"))
    damage(path)
    listed = manifest.of_survey(str(survey), dataclasses.replace(READ, fingerprint=fingerprint))
    row, = (row for row in listed.table.to_pylist() if row["path"].endswith(path.name))
    assert (row["size"], row["mtime_ns"], row["version"]) == (None, None, None)


def test_a_file_of_the_same_size_and_another_time_is_another(survey):
    listed = manifest.of_survey(str(survey), READ)
    path = next(survey.rglob("spPlate-3586*"))
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    assert manifest.altered(listed, str(survey), READ) == ["3586/spPlate-3586-55181.fits"]
