"""Broken input: each fault gives one row that names it, and nothing else is lost."""

import errno
import gzip
import os
import re
from pathlib import Path

import boss_files as bf
import numpy as np
import pytest
from broken_files import (
    card,
    directory,
    flip_under_checksum,
    grid,
    header_of,
    link_to_itself,
    named_pipe,
    offsets,
    patch,
    remove_fibre,
    rewrite,
    rewrite_plate,
    set_row,
    set_zbest,
    truncate,
    with_pixel,
    without,
    zbest,
)

from lensspark.boss import Unit, join_catalogues, read_unit, survey_files

WINDOW = (3800.0, 5000.0)
PLANES = ("flux", "ivar", "and_mask")


def read_tree(root: Path):
    """(fiberids of the good spectra, faults)."""
    survey = survey_files(str(root))
    spectra = [read_unit(unit, PLANES, WINDOW) for unit in join_catalogues(survey.units, survey.catalogues)]
    return sorted(f for s in spectra for f in s.columns.get("fiberid", [])), [f for s in spectra for f in s.faults]


HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20

# name: (what is done to a good spec file, HDU of the fault, what its reason must say)
SPEC_FAULTS = {
    "empty": (lambda p: p.write_bytes(b""), None, "empty file"),
    "html": (lambda p: p.write_bytes(HTML), 0, "not FITS.*<!DOCTYPE html>.*SIMPLE"),
    "directory": (directory, None, "is a directory"),
    "link_to_itself": (link_to_itself, None, "cannot be read: OSError: Too many levels of symbolic links"),
    "named_pipe": (named_pipe, None, "is a named pipe, expected a file"),
    "cut_in_header_0": (lambda p: truncate(p, 1000), 0, "truncated: no END"),
    "cut_in_header_1": (lambda p: truncate(p, offsets(p)[1][0] - 2000), 1, "truncated: no END|not FITS"),
    "cut_in_data_1": (lambda p: truncate(p, offsets(p)[1][0] + 5000), 1, "truncated.*claims data up to byte"),
    "cut_after_1": (lambda p: truncate(p, header_of(p, 2)), 2, "no catalogue HDU"),
    "cut_in_data_2": (lambda p: truncate(p, offsets(p)[2][0] + 5), 2, "truncated.*claims data up to byte"),
    "cut_in_header_3": (lambda p: truncate(p, offsets(p)[3][0] - 2000), 3, "truncated: no END"),
    "cut_in_data_3": (lambda p: truncate(p, offsets(p)[3][0] + 5), 3, "truncated.*claims data up to byte"),
    "gzip_cut": (lambda p: p.write_bytes(gzip.compress(p.read_bytes())[:20_000]), None, "gzip stream"),
    "gzip_flip": (lambda p: (p.write_bytes(gzip.compress(p.read_bytes())), patch(p, 9000, b"\0" * 64)),
                  None, "gzip stream"),
    "checksum_1": (flip_under_checksum(1), 1, "DATASUM is"),
    "checksum_2": (flip_under_checksum(2), 2, "DATASUM is"),
    "checksum_3": (flip_under_checksum(3, at=3), 3, "DATASUM is"),
    "checksum_header": (flip_under_checksum(0, header=True), 0, "CHECKSUM mismatch"),
    "nan_flux": (with_pixel("flux", np.nan), 1, "flux is non-finite in 3 of 1192 pixels, first nan at file pixel 400"),
    "inf_flux": (with_pixel("flux", np.inf), 1, "flux is non-finite in 3"),
    "nan_ivar": (with_pixel("ivar", np.nan), 1, "ivar is non-finite or negative in 3 .* first nan"),
    "negative_ivar": (with_pixel("ivar", -2.0), 1, "ivar is non-finite or negative in 3 .* first -2.0"),
    "no_flux": (without("flux", 1), 1, "no column FLUX"),
    "no_loglam": (without("loglam", 1), 1, "no column LOGLAM"),
    "no_ivar": (without("ivar", 1), 1, "no column IVAR"),
    "no_asked_plane": (without("and_mask", 1), 1, "no column AND_MASK"),
    "no_z": (without("z", 2), 2, "no column Z;"),
    "no_class": (without("class", 2), 2, "no column CLASS"),
    "no_fiberid": (without("fiberid", 2), 2, "no column FIBERID"),
    "wrong_coeff1": (lambda p: card(p, b"COEFF1", "2.0E-4"), 0, "COEFF1 = 0.0002, expected 0.0001"),
    "nan_coeff1": (lambda p: card(p, b"COEFF1", "NaN"), 0, "COEFF1 = nan"),
    "nan_coeff0": (lambda p: card(p, b"COEFF0", "NaN"), 0, "COEFF0 = nan"),
    "nan_grid": (grid(700, np.nan), 1, "loglam is no grid .* at pixel 699"),
    "jump_in_grid": (grid(700, 3e-4), 1, "loglam is no grid .* at pixel 699"),
    "backward_grid": (grid(700, -3e-4), 1, "loglam is no grid"),
    "terabytes": (lambda p: card(p, b"NAXIS2", "999999999999", hdu=1), 1, "claims data up to byte"),
    "negative_axis": (lambda p: card(p, b"NAXIS2", "-5", hdu=1), 1, "NAXISn"),
    "odd_width": (lambda p: card(p, b"NAXIS1", "31", hdu=1), 1, "NAXIS1 = 31, but the columns take"),
    "other_object": (set_row("fiberid", 3), 2, "is of plate-mjd-fiberid 3586-55181-3, expected 3586-55181-2"),
    "other_plate": (set_row("plate", 4000), 2, "4000-55181-2, expected 3586-55181-2"),
}


@pytest.fixture
def three(tmp_path):
    """A lite folder of three good files; the second one is for breaking."""
    bf.write_specs(tmp_path, bf.make_plate(3))
    return tmp_path


@pytest.mark.parametrize("name", sorted(SPEC_FAULTS))
def test_one_broken_spec_file_is_one_row(three, name):
    damage, hdu, reason = SPEC_FAULTS[name]
    path = three / "spec-3586-55181-0002.fits"
    damage(path)
    good, faults = read_tree(three)
    assert good == [1, 3]
    assert len(faults) == 1
    fault, = faults
    assert (fault["plate"], fault["mjd"], fault["fiberid"], fault["hdu"]) == (3586, 55181, 2, hdu)
    assert fault["path"] == str(path)
    assert re.search(reason, fault["reason"]), fault["reason"]


@pytest.mark.parametrize(("error", "reason"), [
    (PermissionError(13, "Permission denied"), "PermissionError: Permission denied"),
    (FileNotFoundError(2, "No such file or directory"), "FileNotFoundError: No such file"),
    (OSError(5, "Input/output error"), "OSError: Input/output error"),
])
def test_a_file_that_cannot_be_opened_is_one_row(three, monkeypatch, error, reason):
    """Root may open any file, so the refusal is the operating system call's, not the mode's."""
    real_open = os.open

    def refusing(path, *args, **kwargs):
        if str(path).endswith("0002.fits"):
            raise error
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    good, faults = read_tree(three)
    assert good == [1, 3] and [f["fiberid"] for f in faults] == [2]
    assert reason in faults[0]["reason"]


def test_a_folder_that_cannot_be_listed_is_one_row(tmp_path, monkeypatch):
    bf.write_specs(tmp_path / "3586", bf.make_plate(2))
    (tmp_path / "3587").mkdir()
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("3587"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    good, faults = read_tree(tmp_path)
    assert good == [1, 2]
    assert [(f["plate"], f["fiberid"], f["reason"]) for f in faults] == [
        (3587, None, "folder cannot be listed: Permission denied")]


def test_links_in_a_circle_end(three):
    (three / "again").symlink_to(three)
    good, faults = read_tree(three)
    assert good == [1, 2, 3]
    assert [f["reason"] for f in faults] == ["folder cannot be listed: more than 12 folders below the root"]


def test_a_misnamed_spectrum_is_one_row(three):
    (three / "spec-3586-55181-0002 (copy).fits").write_bytes((three / "spec-3586-55181-0002.fits").read_bytes())
    good, faults = read_tree(three)
    assert good == [1, 2, 3]
    assert len(faults) == 1 and "expected spec-PPPP-MMMMM-FFFF.fits" in faults[0]["reason"]


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), ConnectionResetError(), TimeoutError(),
                                   OSError(errno.EBUSY, "Please reduce your request rate"), OSError(errno.EMFILE, "")])
def test_what_is_not_the_files_fault_is_raised(three, monkeypatch, error):
    def failing(*args):
        raise error
    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(type(error)):
        read_tree(three)


def test_special_records_after_the_last_hdu_are_left_alone(three):
    path = three / "spec-3586-55181-0002.fits"
    path.write_bytes(path.read_bytes() + b"\0" * 2880)
    assert read_tree(three) == ([1, 2, 3], [])


def test_a_packed_file_takes_the_memory_of_its_content(three):
    import tracemalloc

    path = three / "spec-3586-55181-0002.fits"
    path.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    good, faults = read_tree(three)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert good == [1, 2, 3] and not faults and peak < 20e6


def test_a_gzip_stream_without_end_does_not_fill_the_memory(three, monkeypatch):
    monkeypatch.setattr("lensspark.boss.stream.MAX_GUNZIPPED_BYTES", 1 << 20)
    path = three / "spec-3586-55181-0002.fits"
    path.write_bytes(gzip.compress(path.read_bytes() + bytes(1 << 20)))
    good, faults = read_tree(three)
    assert good == [1, 3] and [f["reason"] for f in faults] == ["gzip stream unpacks to more than 1048576 bytes"]


def test_an_all_masked_window_is_a_good_row_without_information(tmp_path):
    plate = bf.make_plate(1)
    plate.planes["ivar"][:] = 0
    plate.planes["and_mask"][:] = 1 << 24
    bf.write_specs(tmp_path, plate)
    unit, = survey_files(str(tmp_path)).units
    spectra = read_unit(unit, PLANES, WINDOW)
    assert spectra.faults == [] and len(spectra) == 1
    assert not spectra.planes["ivar"].any() and (spectra.planes["and_mask"] == 1 << 24).all()


def test_a_redshift_that_is_nan_is_null_not_a_fault(tmp_path):
    plate = bf.make_plate(1)
    plate.catalogue["Z"][0] = np.nan
    bf.write_specs(tmp_path, plate)
    unit, = survey_files(str(tmp_path)).units
    spectra = read_unit(unit, PLANES, WINDOW)
    assert spectra.columns["z"] == [None] and spectra.columns["reason"] == [None]


def test_a_header_of_terabytes_allocates_nothing(three):
    import tracemalloc

    path = three / "spec-3586-55181-0002.fits"
    card(path, b"NAXIS2", "999999999999", hdu=1)
    tracemalloc.start()
    read_tree(three)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


# Plates

# name: (damage, fibres that stay good, fibre of the fault, HDU, reason)
PLATE_FAULTS = {
    **{f"cut_in_{i}": (lambda p, i=i: truncate(p, offsets(p)[i][0] + 5), [], None, i, "truncated") for i in range(7)},
    "flux_alone": (lambda p: truncate(p, header_of(p, 1)), [], None, 1, "no ivar HDU: the file has 1 HDUs"),
    "no_zbest": (lambda p: zbest(p).unlink(), [], None, None, "no spZbest-3586-55181.fits"),
    "empty_zbest": (lambda p: zbest(p).write_bytes(b""), [], None, None, "spZbest-3586-55181.fits: empty file"),
    "cut_zbest": (lambda p: truncate(zbest(p), offsets(zbest(p))[1][0] + 9), [], None, 1, "spZbest.*truncated"),
    "short_zbest": (remove_fibre, [], None, 1, "spZbest.*2 catalogue rows, but spPlate has 3 fibres"),
    "checksum": (flip_under_checksum(1), [], None, 1, "DATASUM is"),
    "wrong_coeff1": (lambda p: card(p, b"COEFF1", "3.0E-4"), [], None, 0, "COEFF1 = 0.0003, expected 0.0001"),
    "no_coeff0": (lambda p: rewrite(p, lambda hdus: hdus[0].header.remove("COEFF0")), [], None, 0, "COEFF0 = None"),
    "wrong_name": (lambda p: card(p, b"PLATEID", "4000"), [], None, 0, "PLATEID = 4000, but the file name says 3586"),
    "terabytes": (lambda p: card(p, b"NAXIS2", "999999999999"), [], None, 0, "claims data up to byte"),
    "nan_flux": (lambda p: rewrite_plate(p, 0, np.nan), [1, 3], 2, 0, "flux is non-finite in 1 of 1192 .* pixel 500"),
    "negative_ivar": (lambda p: rewrite_plate(p, 1, -1.0), [1, 3], 2, 1, "ivar is non-finite or negative in 1"),
    "other_fibre": (set_zbest("FIBERID", 9), [1, 3], 2, 1, "3586-55181-9, expected 3586-55181-2"),
    "other_mjd": (set_zbest("MJD", 55000), [1, 3], 2, 1, "3586-55000-2, expected 3586-55181-2"),
}


@pytest.mark.parametrize("name", sorted(PLATE_FAULTS))
def test_broken_plates(tmp_path, name):
    damage, still_good, fiberid, hdu, reason = PLATE_FAULTS[name]
    bf.write_plate(tmp_path / "a", bf.make_plate(2, plate=4055))
    path = bf.write_plate(tmp_path / "b", bf.make_plate(3))
    damage(path)
    good, faults = read_tree(tmp_path)
    assert good == sorted([1, 2, *still_good])
    assert len(faults) == 1
    fault, = faults
    assert (fault["plate"], fault["mjd"], fault["fiberid"], fault["hdu"]) == (3586, 55181, fiberid, hdu)
    assert re.search(reason, fault["reason"]), fault["reason"]


def test_lite_files_stand_in_for_a_plate_without_its_catalogue(tmp_path):
    plate = bf.make_plate(3)
    bf.write_plate(tmp_path / "v5_7_0", plate, zbest=None)
    bf.write_specs(tmp_path / "v5_7_0" / "spectra" / "lite" / "3586", plate)
    good, faults = read_tree(tmp_path)
    assert good == [1, 2, 3] and [f["fiberid"] for f in faults] == [None]


def test_a_broken_catalogue_is_one_row(tmp_path):
    plate = bf.make_plate(3)
    bf.write_plate(tmp_path, plate)
    bf.write_spall(tmp_path / "spAll-v5_7_0.fits", plate)
    truncate(tmp_path / "spAll-v5_7_0.fits", 9000)
    good, faults = read_tree(tmp_path)
    assert good == [1, 2, 3] and len(faults) == 1
    assert "catalogue cannot be used: truncated" in faults[0]["reason"]
    assert faults[0]["path"].endswith("spAll-v5_7_0.fits")


def test_a_fibre_that_a_plate_has_not_is_one_row(tmp_path):
    unit = Unit(str(bf.write_plate(tmp_path, bf.make_plate(3))), "plate", 3586, 55181, fibers=((1001, None),))
    fault, = read_unit(unit).faults
    assert "fibres [1001] are asked for, the file has 1 to 3" in fault["reason"]
