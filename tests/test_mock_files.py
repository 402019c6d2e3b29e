"""The mock survey's files: read back as they were written, as real ones are laid out, broken where they should be."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from astropy.io import fits

from lensspark import boss, config, schema
from lensspark.mock import files, observe_plate

ALL = np.arange(1, 1001)
PLANES = tuple(boss.PLANES)


@pytest.fixture(scope="module")
def settings():
    return config.load().mock


@pytest.fixture(scope="module")
def spectra(basis, settings):
    return observe_plate(5, 4000, 56600, ALL[:40], settings, basis)


def write(folder, pairs):
    for path, data in pairs:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def read(folder, layout):
    survey = boss.survey_files(str(folder), layout)
    units = boss.join_catalogues(survey.units, survey.catalogues)
    return [boss.read_unit(unit, PLANES) for unit in units]


@pytest.mark.parametrize("layout", ["spplate", "lite"])
def test_files_read_back_identical(tmp_path, spectra, layout):
    write(tmp_path, (files.plate_files if layout == "spplate" else files.lite_files)(spectra))
    write(tmp_path, [(files.SPALL_PATH, files.spall(spectra)), (files.PLATELIST_PATH, files.platelist(spectra))])
    got = read(tmp_path, layout)
    assert not any(part.faults for part in got)
    for plane in PLANES:
        np.testing.assert_array_equal(np.concatenate([part.planes[plane] for part in got]), spectra[plane], plane)
    for column in schema.KEY + schema.CATALOGUE + schema.PIXELS[:1]:
        values = [value for part in got for value in part.columns[column.name]]
        if column.type == "double":  # files hold most numbers in float32
            values = np.array(values, dtype=float)
            np.testing.assert_allclose(values, spectra[column.name], rtol=2e-6, atol=1e-6, err_msg=column.name)
        else:
            assert values == spectra[column.name].tolist(), column.name


def test_files_satisfy_the_fits_standard(tmp_path, spectra):
    few = {name: values[:2] for name, values in spectra.items()}
    pairs = [*files.plate_files(few, checksum=True), *files.lite_files(few, checksum=True)]
    pairs += [(files.PLATELIST_PATH, files.platelist(few)), (files.SPALL_PATH, files.spall(few))]
    write(tmp_path, pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path, _ in pairs:
            with fits.open(tmp_path / path, checksum=True) as hdus:
                hdus.verify("exception")
                assert all(hdu.data is None or len(hdu.data) for hdu in hdus)
    header = fits.getheader(tmp_path / files.spzbest_path(4000, 56600), 1)
    assert "CHECKSUM" in header and header["CHECKSUM"]


def test_files_have_the_columns_and_planes_of_real_ones(shared_data, tmp_path, spectra):
    few = {name: values[:2] for name, values in spectra.items()}
    write(tmp_path, [*files.lite_files(few), *files.plate_files(few), (files.SPALL_PATH, files.spall(spectra))])
    with fits.open(shared_data / "spectra/boss/spec-4055-55359-0001.fits") as real, \
            fits.open(tmp_path / files.lite_path(4000, 56600, 1)) as mock:
        assert [hdu.name for hdu in mock] == [hdu.name for hdu in real]
        assert mock[1].columns.names == real[1].columns.names
        assert mock[1].columns.formats == real[1].columns.formats
        assert set(mock[2].columns.names) <= set(real[2].columns.names)
        assert {mock[2].columns[n].format[-1] for n in ("PLUG_RA", "Z", "CLASS")} == {"D", "E", "A"}
    with fits.open(shared_data / "formats/spAll-plate3655.fits") as real:
        assert set(fits.getdata(tmp_path / files.SPALL_PATH).names) <= set(real[1].columns.names)
    with fits.open(shared_data / "formats/spPlate-4055-55359-0020.fits") as real:
        mine = fits.getheader(tmp_path / files.spplate_path(4000, 56600))
        assert mine["COEFF1"] == real[0].header["COEFF1"] and mine["BITPIX"] == real[0].header["BITPIX"]
        added = set(mine) - set(real[0].header) - {"EXTEND"}
    assert added <= {"SKYCHI2", "VACUUM"}


@pytest.mark.parametrize("fault, reason", [
    ("empty", "empty file"), ("html", "not FITS"), ("truncated", "truncated"), ("flipped_byte", "DATASUM"),
    ("nan_flux", "flux is non-finite"), ("wrong_step", "COEFF1 = 0.0002"),
])
def test_broken_files_are_faults_named_so(tmp_path, spectra, fault, reason):
    one = {name: values[:1] for name, values in spectra.items()}
    write(tmp_path, [files.broken_file(one, fault)])
    (got,) = read(tmp_path, "auto")
    assert len(got) == 0
    assert reason in got.faults[0]["reason"]
    assert (got.faults[0]["plate"], got.faults[0]["fiberid"]) == (4000, 1)


def test_every_fault_is_tested_and_others_are_refused(spectra):
    tested = test_broken_files_are_faults_named_so.pytestmark[0].args[1]
    assert {fault for fault, _ in tested} == set(files.FAULTS)
    with pytest.raises(ValueError, match="expected one of"):
        files.broken_file({name: values[:1] for name, values in spectra.items()}, "rust")


def test_an_spplate_needs_its_fibres_in_order(spectra):
    with pytest.raises(ValueError, match="expected 1, 2, 3"):
        list(files.plate_files({name: values[1:3] for name, values in spectra.items()}))


def test_spall_marks_the_first_observation(basis, settings):
    often = dataclasses.replace(settings, repeat=0.6)
    both = [observe_plate(2, p, m, ALL, often, basis, 35798, 20) for p, m in ((4000, 56600), (4001, 56607))]
    both = {name: np.concatenate([part[name] for part in both]) for name in both[0]}
    table = fits.HDUList.fromstring(files.spall(both))[1].data
    again = np.array([np.count_nonzero(both["object_id"][:1000] == i) for i in both["object_id"][1000:]]) > 0
    assert (table["SPECPRIMARY"][:1000] == 1).all()
    np.testing.assert_array_equal(table["SPECPRIMARY"][1000:] == 1, ~again)
