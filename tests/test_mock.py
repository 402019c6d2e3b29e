"""Mock spectra: the same however they are asked for, with truth that the pixels bear out, and physics that holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lensspark import config, lines, matched_filter, schema
from lensspark.mock import instrument, objects, observe_plate, profiles
from lensspark.mock.objects import KINDS
from lensspark.spectrum import pixel, wavelength

ALL = np.arange(1, 1001)
FIRST, N_PIX = 35798, 1192
PLANES = ("flux", "ivar", "and_mask", "or_mask", "wdisp", "sky", "model")
KMS = 299792.458


@pytest.fixture(scope="module")
def settings():
    return config.load().mock


@pytest.fixture(scope="module")
def plate(basis, settings):
    """A whole plate in the search's window."""
    return observe_plate(5, 4000, 56600, ALL, settings, basis, FIRST, N_PIX)


@pytest.fixture(scope="module")
def twin(basis, settings):
    """`plate` with the same galaxies and noise, where nothing but clean galaxies is in the fibres."""
    return observe_plate(5, 4000, 56600, ALL, only(settings), basis, FIRST, N_PIX)


def only(settings, **fractions):
    """Settings in which every fibre that is not of the kinds given is a clean galaxy."""
    return dataclasses.replace(settings, **(dict.fromkeys(KINDS[1:], 0.0) | fractions))


def test_columns_are_those_of_the_schema(plate):
    declared = {c.name for c in schema.KEY + schema.CATALOGUE + schema.PIXELS} | set(schema.TRUTH.names)
    assert set(plate) == declared - {"path", "fault"}
    for column in schema.PIXELS[1:]:
        assert plate[column.name].shape == (1000, N_PIX)
        assert plate[column.name].dtype == (np.int32 if column.type == "array<int>" else np.float32)
    assert all(np.isfinite(plate[name]).all() for name in PLANES)


def test_a_spectrum_does_not_depend_on_its_company(plate, basis, settings):
    some = np.array([907, 3, 250, 251])
    few = observe_plate(5, 4000, 56600, some, settings, basis, FIRST, N_PIX)
    for name, values in few.items():
        np.testing.assert_array_equal(values, plate[name][some - 1], err_msg=name)


@pytest.mark.parametrize("kind", ["mock", "mock_training"])
def test_a_spectrum_does_not_depend_on_the_pixels_asked_for(basis, kind):
    how = getattr(config.load(), kind)
    fibres = ALL[:60]
    whole = observe_plate(1, 4001, 56607, fibres, how, basis)
    first = round(whole["loglam0"][0] * 1e4)
    part = observe_plate(1, 4001, 56607, fibres, how, basis, FIRST, N_PIX)
    at_edge = np.abs(pixel(whole["line_wave"]) - FIRST - N_PIX / 2) > N_PIX / 2 - 40  # lines drawn by S/N cut in two
    for name in PLANES:
        cut = whole[name][:, FIRST - first:FIRST - first + N_PIX]
        np.testing.assert_allclose(part[name][~at_edge], cut[~at_edge], rtol=1e-4, atol=2e-5, err_msg=name)
    assert at_edge.sum() < 20


def test_seed_plate_and_night_all_matter(plate, basis, settings):
    def flux(*key):
        return observe_plate(*key, ALL[:5], settings, basis, FIRST, N_PIX)["flux"]

    for other in (flux(6, 4000, 56600), flux(5, 4002, 56600), flux(5, 4000, 56601)):
        assert np.mean(np.abs(other - plate["flux"][:5])) > 0.1


@pytest.mark.parametrize("fibres, changes, message", [
    ([0, 1], {}, "fiberids 0 ... 1: expected 1 to 1000"),
    ([1001], {}, "expected 1 to 1000"),
    ([1], {"lya": 0.9, "sky": 0.2}, "add up to"),
])
def test_wrong_arguments_are_named(basis, settings, fibres, changes, message):
    with pytest.raises(ValueError, match=message):
        observe_plate(1, 4000, 56600, np.array(fibres), dataclasses.replace(settings, **changes), basis)


def test_pixels_out_of_range_are_refused(basis, settings):
    with pytest.raises(ValueError, match="pixels 30000"):
        observe_plate(1, 4000, 56600, ALL[:1], settings, basis, 30000, 100)


# --- Truth ---


def test_kinds_come_in_the_fractions_asked_for(basis, settings):
    kinds = np.concatenate([observe_plate(1, p, 56600, ALL, settings, basis, FIRST, 20)["kind"] for p in range(10, 20)])
    for name in KINDS[1:]:
        # Every crosstalk fibre makes the next one a bright lens_line galaxy.
        expected = getattr(settings, name) + (settings.crosstalk if name == "lens_line" else 0)
        assert abs(np.mean(kinds == name) - expected) < 4 * np.sqrt(expected / len(kinds)) + 0.002, name


def test_lines_in_the_truth_are_in_the_pixels(plate, twin):
    """Flux and S/N of each Lya line, measured in the difference to the spectrum without it, agree with the truth."""
    rows = np.flatnonzero((plate["kind"] == "lya") & (np.abs(pixel(plate["line_wave"]) - FIRST - N_PIX / 2) < 500))
    assert len(rows) > 8
    assert set(twin["kind"][rows]) == {"clean"}
    wave = wavelength(FIRST + np.arange(N_PIX))
    for row in rows:
        near = np.abs(wave / plate["line_wave"][row] - 1) < 2500 / KMS
        ivar = plate["ivar"][row]
        difference = (plate["flux"] - twin["flux"])[row]
        flux = np.sum((difference * wave * 1e-4 * np.log(10))[near])
        noise = np.sqrt(np.sum((wave * 1e-4 * np.log(10))[near & (ivar > 0)] ** 2 / ivar[near & (ivar > 0)]))
        assert abs(flux - plate["line_flux"][row]) < 0.1 * plate["line_flux"][row] + 0.5 * noise
        assert abs(wave[np.argmax(np.where(near, difference, -9))] / plate["line_wave"][row] - 1) < 300 / KMS
        snr = np.sqrt(np.sum(difference[near] ** 2 * ivar[near]))
        assert abs(snr - plate["line_snr"][row]) < 0.2 * snr + 1


def test_nothing_but_the_line_differs_between_twins(plate, twin):
    clean = plate["kind"] == "clean"
    assert clean.sum() > 700
    for name in PLANES:
        np.testing.assert_array_equal(plate[name][clean], twin[name][clean], err_msg=name)


def test_every_plate_lies_within_the_pixels_that_are_drawn_for():
    for plate in range(4000, 4400):
        grid = instrument.observe_conditions(11, plate, 56600)
        assert grid.first_pixel >= instrument.FULL_FIRST
        assert grid.first_pixel + grid.n_pix <= instrument.FULL_FIRST + instrument.FULL_N
        assert 4600 <= grid.n_pix <= 4660


def test_lines_drawn_by_snr_have_it(basis):
    chosen = config.load().mock_training
    got = observe_plate(3, 4000, 56600, ALL[:200], chosen, basis, FIRST, N_PIX)
    snr = got["line_snr"][got["kind"] == "lya"]
    low, high = chosen.line_snr
    assert len(snr) > 50
    assert abs(snr.min() - low) < 1.5 and abs(snr.max() - high) < 1.5
    assert snr.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / np.sqrt(12 * len(snr)))


def test_injected_lines_are_found_by_the_matched_filter(plate):
    """An independent measure: the filter's S/N on flux - model where the truth has the line."""
    rows = np.flatnonzero((plate["kind"] == "lya") & (plate["line_snr"] > 6))
    snr = matched_filter.snr((plate["flux"] - plate["model"])[rows], plate["ivar"][rows])
    at = np.clip(np.rint(pixel(plate["line_wave"][rows]) - FIRST).astype(int), 3, N_PIX - 4)
    found = np.array([snr[i, k - 3:k + 4].max() for i, k in enumerate(at)])
    assert len(rows) > 3
    assert np.median(found / plate["line_snr"][rows]) == pytest.approx(0.95, abs=0.2)


def test_truth_is_absent_where_there_is_no_line(plate):
    none = np.isin(plate["kind"], ["clean", "sky", "star"])
    weak = plate["kind"] == "clean"
    assert np.isnan(plate["line_wave"][none]).all()
    assert np.isnan(plate["line_snr"][none]).all()
    assert np.isnan(plate["z_lens"][plate["kind"] == "sky"]).all()
    assert not np.isnan(plate["z_lens"][weak]).any()
    assert (plate["line_snr"][plate["kind"] == "lya"] > 0).all()


def test_source_redshifts_follow_from_the_wavelengths(plate):
    lya, oii = (np.flatnonzero(plate["kind"] == kind) for kind in ("lya", "oii"))
    np.testing.assert_allclose(plate["z_source"][lya], plate["line_wave"][lya] / lines.LYA - 1)
    assert ((plate["z_source"][lya] > 2.1) & (plate["z_source"][lya] < 3.15)).all()
    assert ((plate["z_source"][oii] > 0.015) & (plate["z_source"][oii] < 0.345)).all()
    assert np.isnan(plate["z_source"][plate["kind"] == "airglow"]).all()


# --- Physics ---


@pytest.mark.parametrize("alpha", [0.0, 2.0, 7.0])
def test_profiles_conserve_flux_and_peak_where_they_should(alpha):
    spectrum = np.zeros((1, 200))
    wave = wavelength(36000.3)
    profiles.add_lines(spectrum, np.array([0]), np.array([wave]), np.array([12.5]), np.array([350.0]),
                       np.array([alpha]), np.array([1.1]), 35900)
    grid = wavelength(35900 + np.arange(200))
    assert np.sum(spectrum[0] * grid * 1e-4 * np.log(10)) == pytest.approx(12.5, rel=3e-3)
    assert abs(np.argmax(spectrum[0]) - 100) <= 1
    mean = np.average(np.arange(200), weights=spectrum[0])
    assert (mean - 100.3 > 0.3) == (alpha > 0)  # the red tail


def test_broad_lines_have_no_edges():
    spectrum, grid = np.zeros((1, 1192)), wavelength(35798 + np.arange(1192))
    profiles.add_lines(spectrum, np.array([0]), np.array([wavelength(36400.0)]), np.array([50.0]),
                       np.array([9000.0]), np.array([0.0]), np.array([1.1]), 35798)
    assert np.sum(spectrum[0] * grid * 1e-4 * np.log(10)) == pytest.approx(50, rel=1e-3)
    assert np.abs(np.diff(spectrum[0])).max() < 0.02 * spectrum.max()


def test_lines_outside_the_limits_are_drawn_again_until_they_are_inside():
    limited = config.load(settings=["mock.min_line_peak=1.5", "mock.line_fwhm=[300,200]"]).mock
    u, v = np.random.default_rng(4).random((2, 40_000))
    flux, fwhm = objects._flux_and_width(np.full(len(u), 4200.0), u, v, limited)
    rng = np.random.default_rng(5)  # plain rejection
    all_flux, all_fwhm = objects._line_flux(rng.random(400_000), limited), rng.normal(300, 200, 400_000)
    angstrom = all_fwhm * 4200 / lines.LIGHT_KMS
    kept = (angstrom >= 0.5) & (0.9394 * all_flux / np.maximum(angstrom, 1e-9) >= 1.5)
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(flux, q) == pytest.approx(np.quantile(all_flux[kept], q), rel=0.03)
        assert np.quantile(fwhm, q) == pytest.approx(np.quantile(all_fwhm[kept], q), rel=0.03)


def test_lines_are_as_wide_as_the_instrument_makes_them():
    spectrum = np.zeros((1, 200))
    profiles.add_lines(spectrum, np.array([0]), np.array([wavelength(36000.0)]), np.array([1.0]), np.array([1.0]),
                       np.array([0.0]), np.array([1.3]), 35900)
    x = np.arange(200) - 100
    sigma = np.sqrt(np.average(x**2, weights=spectrum[0]))
    assert sigma == pytest.approx(np.sqrt(1.3**2 + 1 / 12), rel=0.02)  # a pixel's own width is 1/sqrt(12)


def test_airglow_of_a_plate_is_at_its_three_wavelengths(basis, settings):
    got = observe_plate(2, 4000, 56600, ALL, only(settings, airglow=0.3), basis, FIRST, N_PIX)
    wave = got["line_wave"][got["kind"] == "airglow"]
    nearest = np.abs(pixel(wave)[:, None] - pixel(instrument.AIRGLOW)).min(axis=1)
    assert nearest.max() <= 0.5001
    assert len(set(np.abs(pixel(wave)[:, None] - pixel(instrument.AIRGLOW)).argmin(axis=1))) == 3
    assert len(np.unique(got["z_lens"][got["kind"] == "airglow"])) > 100  # it has nothing to do with the galaxies


def test_oii_interlopers_show_their_other_lines(basis, settings):
    """Stacked at the implied wavelengths, [OIII] and Halpha stand out; in fibres without [OII] nothing does."""
    bright = only(dataclasses.replace(settings, line_flux=(59.0, 61.0)), oii=0.5)
    got = observe_plate(2, 4000, 56600, ALL[:400], bright, basis)
    first = round(got["loglam0"][0] * 1e4)
    residual = (got["flux"] - got["model"]) * np.sqrt(got["ivar"])
    rows = np.flatnonzero(got["kind"] == "oii")

    def stack(rest, of):
        centre = np.rint(pixel(rest * (1 + got["z_source"][rows]))).astype(int) - first
        return np.mean([np.sum(residual[row, k - 3:k + 4]) for row, k in zip(of, centre, strict=True)])

    others = np.flatnonzero(got["kind"] == "clean")[:len(rows)]
    rows = rows[:len(others)]
    for rest in (lines.OIII[1], lines.HALPHA, lines.HBETA):
        assert stack(rest, rows) > 8
        assert abs(stack(rest, others)) < 3


def test_lens_lines_are_at_the_lens_redshift(basis, settings):
    got = observe_plate(2, 4000, 56600, ALL, only(settings, lens_line=0.3), basis, FIRST, N_PIX)
    rest = got["line_wave"] / (1 + got["z_lens"])
    strong = got["kind"] == "lens_line"
    assert np.abs(rest[strong][:, None] - np.array(lines.OII)).min(axis=1).max() < 0.01


def test_crosstalk_repeats_the_lines_of_the_next_fibre(basis, settings):
    got = observe_plate(2, 4000, 56600, ALL, only(settings, crosstalk=0.1), basis)
    rows = np.flatnonzero((got["kind"] == "crosstalk") & (got["fiberid"] % 500 != 0))
    assert (got["kind"][rows + 1] == "lens_line").all()
    np.testing.assert_allclose(got["line_wave"][rows], got["line_wave"][rows + 1])
    ratio = got["line_flux"][rows] / got["line_flux"][rows + 1]
    assert np.median(ratio) == pytest.approx(0.03, rel=0.2)


def test_repeats_share_the_object_but_not_the_noise(basis, settings):
    often = dataclasses.replace(settings, repeat=0.6, lya=0.2)
    even = observe_plate(2, 4000, 56600, ALL, often, basis, FIRST, N_PIX)
    odd = observe_plate(2, 4001, 56607, ALL, often, basis, FIRST, N_PIX)
    shared, at_even, at_odd = np.intersect1d(even["object_id"], odd["object_id"], return_indices=True)
    assert len(shared) > 200
    for name in ("ra", "dec", "z_lens", "kind", "line_wave", "line_flux"):
        np.testing.assert_array_equal(even[name][at_even], odd[name][at_odd], err_msg=name)
    assert odd["is_repeat"][at_odd].all() and even["is_repeat"][at_even].all()
    pulls = [((p["flux"] - p["model"]) * np.sqrt(p["ivar"]))[at] for p, at in ((even, at_even), (odd, at_odd))]
    clean = even["kind"][at_even] == "clean"
    assert abs(np.mean(pulls[0][clean] * pulls[1][clean])) < 0.15
    alone = np.setdiff1d(even["object_id"], odd["object_id"])
    assert len(alone) + len(shared) == 1000


def test_noise_is_what_ivar_promises(plate):
    """Scatter of (flux - model) * sqrt(ivar) of sky fibres over that of ivar: 1.14 at 3900 A to 1.00 at 4900 A."""
    sky = np.flatnonzero(plate["kind"] == "sky")
    pull = plate["flux"][sky] * np.sqrt(plate["ivar"][sky])
    wave = wavelength(FIRST + np.arange(N_PIX))
    assert np.std(pull[:, wave < 3950]) == pytest.approx(1.14, abs=0.06)
    assert np.std(pull[:, wave > 4700]) == pytest.approx(1.00, abs=0.06)
    assert np.mean(pull[:, 1:] * pull[:, :-1]) / np.mean(pull**2) == pytest.approx(0.2, abs=0.04)


def test_sky_has_its_lines_where_the_night_sky_does(plate):
    wave = wavelength(FIRST + np.arange(N_PIX))
    sky = np.median(plate["sky"], axis=0)
    for lamp in (4047.7, 4359.6):
        near, around = np.abs(wave - lamp) < 3, (np.abs(wave - lamp) > 8) & (np.abs(wave - lamp) < 25)
        assert sky[near].max() > 1.8 * np.median(sky[around])


def test_masked_pixels_have_no_weight(basis, settings):
    got = observe_plate(2, 4000, 56600, ALL, settings, basis)
    lost = (got["and_mask"] & (1 << 18)) != 0
    assert 1e-4 < lost.mean() < 0.01
    assert (got["ivar"][lost] == 0).all() and (got["ivar"][~lost] > 0).all()
    assert ((got["or_mask"] & got["and_mask"]) == got["and_mask"]).all()


def test_a_spike_on_lost_pixels_leaves_no_gaps(basis, settings):
    spikes = dataclasses.replace(settings, **dict.fromkeys(KINDS[1:], 0.0) | {"cosmic": 1.0})
    got = observe_plate(4, 21007, 57000, np.arange(1, 1000), spikes, basis, 35798, 1192)
    assert np.isfinite(got["flux"]).all() and np.isfinite(got["ivar"]).all() and (got["ivar"] >= 0).all()
