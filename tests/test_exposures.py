"""Single exposures: read from full files, and compared; a line of the sky is in all of them, a cosmic ray in one."""

import boss_files as bf
import numpy as np
import pytest
from astropy.io import fits

from lensspark import exposures
from lensspark.boss import Fault, Key, Survey, full_files, read_exposures, survey_files

WAVE, WIDTH, SIGMA = 4300.0, 2.2, 1.0
PX = WAVE * np.log(10) * 1e-4  # Angstrom
ERROR = SIGMA * PX * np.sqrt(2 * np.sqrt(np.pi) * WIDTH / 0.97)  # of an ideal filter's flux on pixels of 0.97e-4 dex


def exposure(rng, flux, start=0.0, width=WIDTH):
    """(loglam, flux, ivar) of a line on a sloping continuum, on pixels as a CCD has them."""
    loglam = np.log10(WAVE) + 0.97e-4 * (np.arange(-60, 61) + start)
    x = (loglam - np.log10(WAVE)) * 1e4
    line = np.exp(-0.5 * (x / width) ** 2) / (np.sqrt(2 * np.pi) * width * PX)
    return loglam, 5 + 0.02 * x + flux * line + rng.normal(0, SIGMA, len(x)), np.full(len(x), SIGMA**-2)


def many(fluxes, trials=300, **how):
    rng = np.random.default_rng(77)
    found = [exposures.compare([exposure(rng, flux, rng.random(), **how) for flux in fluxes], WAVE, WIDTH, 0.2)
             for _ in range(trials)]
    return {name: np.array([one[name] for one in found]) for name in exposures.COLUMNS}


def test_flux_and_error_of_a_line_are_right_on_any_pixels():
    rng = np.random.default_rng(1)
    found = np.array([exposures.line_flux(*exposure(rng, 40.0, rng.random()), WAVE, WIDTH) for _ in range(500)])
    pull = (found[:, 0] - 40) / found[:, 1]
    assert abs(pull.mean()) < 0.15 and 0.9 < pull.std() < 1.1
    assert np.all((found[:, 1] > ERROR) & (found[:, 1] < 1.15 * ERROR))  # the continuum is fitted too


def test_a_line_in_all_exposures_has_no_tension_a_spike_in_one_has():
    line = many([20.0, 20.0, 20.0])
    assert (line["n_exposures"] == 3).all() and line["exposure_tension"].max() < 3
    assert 1.7 < line["exposure_chi2"].mean() < 2.3  # two degrees of freedom; 0.12 is one sigma
    np.testing.assert_allclose(line["exposure_rest_snr"].mean(), 20 / ERROR * np.sqrt(2), rtol=0.15)
    spike = many([0.0, 60.0, 0.0])  # of the same sum
    assert np.mean(spike["exposure_tension"] > 4) > 0.99 and abs(spike["exposure_rest_snr"].mean()) < 0.2
    assert np.mean(many([0.0, 60.0, 0.0], width=0.6)["exposure_tension"] > 4) > 0.99
    assert many([170.0, 200.0, 150.0])["exposure_tension"].max() < 4  # fluxes calibrated to 20 %


def test_a_masked_exposure_is_not_counted_and_one_alone_tells_nothing():
    rng = np.random.default_rng(2)
    one, two, other = (exposure(rng, 50.0) for _ in range(3))
    core = np.abs(other[0] - np.log10(WAVE)) < 2.5e-4
    masked = (other[0], np.where(core, 1e30, other[1]), np.where(core, 0, other[2]))
    assert exposures.compare([one, two, masked], WAVE, WIDTH, 0.2) == exposures.compare([one, two], WAVE, WIDTH, 0.2)
    edge = tuple(plane[:59] for plane in other)  # ends before the line
    empty = tuple(plane[:0] for plane in other)
    for alone in ([one], [one, masked], [one, edge, empty]):
        got = exposures.compare(alone, WAVE, WIDTH, 0.2)
        assert got["n_exposures"] == 1 and np.isnan([got[name] for name in exposures.COLUMNS[1:]]).all()
    assert exposures.compare([], WAVE, np.nan, 0.2)["n_exposures"] == 0
    assert exposures.compare([one, two], np.nan, WIDTH, 0.2)["n_exposures"] == 0
    assert exposures.compare([one, two], WAVE, np.nan, 0.2) == exposures.compare([one, two], WAVE, 2.2, 0.2)


# Files


def full_file(path, plate=None, hdus=None, row=0):
    plate = plate or bf.make_plate()
    loglam = 3.5578 + 0.97e-4 * np.arange(1500)
    hdus = hdus or [bf.exposure_hdu(name, loglam + i, loglam, loglam * 0 + i, 1 << i) for i, name in
                    enumerate(("B1-00115658-00115659-00115660", "B1-00115659-00115659-00115660", "junk"))]
    return bf.write(path / bf.spec_name(plate, row), [*bf.spec_hdus(plate, row), *hdus])


KEY = Key(3586, 55181, 1, "v5_7_0")


def test_exposures_are_read_within_the_window(tmp_path):
    path = full_file(tmp_path, hdus=None)
    found = read_exposures(str(path), KEY, (3700.0, 3800.0))
    assert [one.name[:11] for one in found] == ["B1-00115658", "B1-00115659"]
    for i, one in enumerate(found):
        table = fits.getdata(path, 4 + i)
        inside = (table["loglam"] >= np.log10(3700)) & (table["loglam"] < np.log10(3800))
        for name in ("loglam", "flux", "ivar", "mask"):
            np.testing.assert_array_equal(getattr(one, name), table[name][inside])
    assert read_exposures(str(path), KEY, (9000.0, 9100.0)) == []
    (lite,) = bf.write_specs(tmp_path / "lite", bf.make_plate(1))
    assert read_exposures(str(lite), KEY, (3700.0, 3800.0)) == []


@pytest.mark.parametrize("fault, reason", [
    ("truncated", "truncated"), ("html", "not FITS"), ("gone", "No such file"), ("other", "catalogue row is of"),
    ("no ivar", "no column IVAR"), ("falling", "loglam does not rise"), ("huge", "pixels, expected at most"),
])
def test_a_broken_full_file_is_a_fault_that_names_it(tmp_path, fault, reason):
    loglam = np.arange(3.6, 3.601, 1e-4)
    hdus = {"no ivar": [bf.table_hdu({"flux": loglam, "loglam": loglam}, "B1-1")],
            "falling": [bf.exposure_hdu("r2-1", loglam, -loglam, loglam)],
            "huge": [bf.exposure_hdu("r2-1", *np.zeros((3, 20_000)))]}.get(fault)
    path = full_file(tmp_path, hdus=hdus)
    data = path.read_bytes()
    path.unlink()
    if fault != "gone":
        path.write_bytes({"truncated": data[:-9000], "html": b"<html>404</html>" * 300}.get(fault, data))
    key = KEY._replace(fiberid=2) if fault == "other" else KEY
    with pytest.raises(Fault, match=f"{path.name}: .*{reason}"):
        read_exposures(str(path), key, (3700.0, 3800.0))


def test_full_files_are_found_beside_whatever_the_search_reads(tmp_path):
    plate = bf.make_plate(3)
    bf.write_plate(tmp_path / "v5_7_0", plate)
    bf.write_specs(tmp_path / "v5_7_0/spectra/lite/3586", plate)
    for row in (0, 1):
        full_file(tmp_path / "v5_7_0/spectra/full/3586", plate, row=row)
    keys = {KEY, KEY._replace(fiberid=3), KEY._replace(fiberid=2, run2d="v5_7_2")}
    assert full_files(survey_files(str(tmp_path)), keys) == {
        KEY: str(tmp_path / "v5_7_0/spectra/full/3586" / bf.spec_name(plate, 0))}
    assert full_files(Survey(), keys) == {}


def test_real_exposures_together_are_the_coadd(shared_data):
    files = sorted((shared_data / "spectra/boss_full").glob("spec-*.fits"))
    assert files
    for path in files:
        coadd, row = fits.getdata(path, 1), fits.getdata(path, 2)[0]
        wave = 5008.24 * (1 + float(row["Z"]))  # [OIII], the strongest narrow line of these quasars
        key = Key(*(int(row[name]) for name in ("PLATE", "MJD", "FIBERID")))
        found = [(one.loglam, one.flux, one.ivar) for one in read_exposures(str(path), key, exposures.window(wave))]
        assert len(found) == 3  # of the red camera
        flux, error = np.array([exposures.line_flux(*one, wave, 3.0) for one in found]).T
        mean, mean_error = np.average(flux, weights=error**-2), np.sum(error**-2) ** -0.5
        whole, whole_error = exposures.line_flux(coadd["loglam"], coadd["flux"], coadd["ivar"], wave, 3.0)
        assert whole / whole_error > 20
        assert abs(mean - whole) < whole_error and 0.8 < mean_error / whole_error < 1.25
        got = exposures.compare(found, wave, 3.0, 0.2)
        assert got["n_exposures"] == 3 and got["exposure_tension"] < 2 and got["exposure_chi2"] < 15
