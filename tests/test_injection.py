"""Injection and recovery: what is injected is what was asked for, and it is found where it was put."""

import numpy as np
import pandas as pd
import pytest
from small_model import prepared

from lensspark import config, injection
from lensspark.locate import measure_line
from lensspark.spectrum import pixel

N, N_PIX, FIRST = 200, 1192, 35798
DRAWS = np.random.default_rng(0).random((N, 6))


@pytest.fixture(scope="module")
def settings():
    return config.load([], ["evaluation.injected_snr=[8, 12]"])


def flat(**changes):
    spectra = {"group": np.full(N, "star", dtype=object), "z": np.zeros(N), "plate": np.full(N, 1),
               "mjd": np.full(N, 2), "fiberid": np.arange(N), "loglam0": np.full(N, FIRST * 1e-4),
               "flux": np.zeros((N, N_PIX), "f4"), "ivar": np.full((N, N_PIX), 4.0, "f4"),
               "and_mask": np.zeros((N, N_PIX), "i4"), "wdisp": np.full((N, N_PIX), 1.2, "f4")}
    return spectra | changes


class Scorer:
    """A search that knows nothing but the highest pixel; it keeps what it was given."""

    def __call__(self, flux, ivar, and_mask, z):
        self.flux, self.z = flux, z
        heat = np.zeros((len(flux), N_PIX // 4))
        heat[np.arange(len(flux)), np.minimum(flux.argmax(axis=1) // 4, heat.shape[1] - 1)] = 1
        return prepared(flux, ivar), np.ones(len(flux)), heat


class Silent(Scorer):
    """A search that has hits only where a pixel is bright."""

    def __call__(self, flux, ivar, and_mask, z):
        prepared, p_line, heat = super().__call__(flux, ivar, and_mask, z)
        return prepared, np.where(flux.max(axis=1) > 20, p_line, 0.0), heat


def test_lines_have_the_signal_to_noise_that_was_drawn_and_are_found_there(settings):
    score = Scorer()
    table = injection.inject(flat(), score, settings, FIRST)
    snr = np.sqrt((score.flux.astype(float) ** 2 * 4.0).sum(axis=1))
    np.testing.assert_allclose(snr, table["line_snr"], rtol=1e-4)
    assert table["line_snr"].between(8, 12).all() and table["visible"].all() and table["found"].mean() > 0.99


def test_bare_spectra_stay_as_they_are(settings):
    score, spectra = Scorer(), flat()
    table = injection.inject(spectra, score, settings, FIRST, bare=True)
    assert np.array_equal(score.flux, spectra["flux"]) and table["line_snr"].isna().all()


def test_negative_errors_and_missing_dispersions_do_no_harm(settings):
    bad = flat(wdisp=np.zeros((N, N_PIX), "f4"), ivar=np.full((N, N_PIX), -1.0, "f4"))
    table = injection.inject(bad, Scorer(), settings, FIRST)
    assert not table["visible"].any()


def test_a_quasars_own_lines_are_left_out(settings):
    qso = np.full(N, "qso", dtype=object)
    line = injection.draw_lines(settings, np.full(N, 2.3), qso, FIRST, N_PIX, DRAWS)
    forest = line["wave"] < 1215.67 * 3.3
    assert line["own"][forest].all() and not line["own"].all()
    assert not injection.draw_lines(settings, np.full(N, 2.3), np.full(N, "star"), FIRST, N_PIX,
                                    DRAWS)["own"].any()


def test_groups_and_redshifts_of_what_is_searched():
    frame = pd.DataFrame({"class": ["GALAXY", "QSO ", None, "STAR", "GALAXY"], "zwarning": [0, 4, 0, 1, 0],
                          "objtype": ["GALAXY", None, "SKY", "GALAXY", None], "z": [0.5, 2.0, 0.3, 0.0, 0.05]})
    assert injection.group_of(frame).tolist() == ["galaxy", "qso", "sky", "sky", "nearby"]
    assert injection.search_redshift(np.array([0.5, 2.5, -1.0])).tolist() == [0.5, 0.55, 0.55]


def test_recovery_counts_visible_lines_alone():
    table = pd.DataFrame({"group": "star", "plate": 1, "mjd": 1, "fiberid": [1, 1, 2, 3],
                          "line_snr": 5.5, "errors": injection.REPORTED,
                          "visible": [True, True, True, False], "found": [True, False, True, False]})
    scaled = table.assign(errors=injection.SCALED, line_snr=6.5)
    star = injection.recovery(pd.concat([table, scaled]))["star"]
    assert star["spectra"] == 2 and star["recall"][0]["recall"] == pytest.approx(0.6667, abs=1e-4)
    assert star["recall"][0]["error"] == pytest.approx(np.hypot(1 / 3, 1 / 3) / 3, abs=1e-3)  # of 1, 0 | 1
    assert star["recall_scaled"] == [star["recall"][0] | {"snr": [6.0, 7.0]}]


def test_spectra_whose_errors_are_wrong_are_tried_with_right_ones_as_well(settings):
    noise = np.random.default_rng(4).normal(size=(N, N_PIX)).astype("f4")
    table = pd.concat(injection.trials(flat(flux=noise), Silent(), settings, FIRST, 2))  # ivar 4: errors half too small
    reported, scaled = (table[table["errors"] == errors] for errors in (injection.REPORTED, injection.SCALED))
    assert len(reported) == len(scaled) == 2 * N and len(table) == 5 * N
    assert reported["line_snr"].between(8, 12).all() and scaled["line_snr"].between(8, 12).all()
    assert reported["scatter"].median() == pytest.approx(2, rel=0.05)
    assert scaled["scatter"].median() == pytest.approx(injection.MOCK_SCATTER, rel=0.05)
    ratio = scaled["snr"].to_numpy() / reported["snr"].to_numpy()
    assert np.median(ratio) == pytest.approx(injection.MOCK_SCATTER, rel=0.1), "in units of the scatter"


def test_a_spectrum_that_is_a_hit_as_it_is_gets_no_line(settings):
    bright = flat(flux=np.random.default_rng(5).normal(0, 0.5, (N, N_PIX)).astype("f4"))
    bright["flux"][0, 600:604] = 50.0
    table = pd.concat(injection.trials(bright, Silent(), settings, FIRST, 1))
    assert set(table.loc[table["errors"] != injection.NONE, "fiberid"]) == set(range(1, N))
    assert table.loc[table["errors"] == injection.NONE, "found"].tolist() == [True] + [False] * (N - 1)
    alone = {name: values[:1] for name, values in bright.items()}
    assert [len(one) for one in injection.trials(alone, Silent(), settings, FIRST, 1)] == [1], "as it is, and no more"


def test_the_scatter_is_that_of_the_filtered_noise():
    noise = np.random.default_rng(2).normal(size=(50, N_PIX)).astype("f4")
    ivar = np.ones_like(noise)
    ivar[0] = 0
    scatter = injection.filter_scatter(prepared(1.5 * noise, ivar))
    assert np.isnan(scatter[0]) and np.mean(scatter[1:]) == pytest.approx(1.5, rel=0.05)


def test_the_measured_place_is_the_injected_one(settings):
    score = Scorer()
    table = injection.inject(flat(), score, settings, FIRST)
    prepared, _, heat = score(score.flux, flat()["ivar"], None, None)
    found = measure_line(prepared, heat, flat()["loglam0"], 6.0)
    injected = injection.draw_lines(settings, np.zeros(N), np.full(N, "star"), FIRST, N_PIX,
                                    injection.deviates(flat(), 0))["wave"]
    assert np.abs(pixel(found["line_wave"]) - pixel(injected)).max() < 1.5  # skewed lines
    assert np.allclose(pixel(found["line_wave"]), pixel(table["line_wave"]))


def test_lines_depend_on_the_spectrum_and_the_count_alone():
    some = {name: values[50:60] for name, values in flat().items()}
    assert np.array_equal(injection.deviates(some, 3), injection.deviates(flat(), 3)[50:60])
    assert not np.isclose(injection.deviates(some, 3), injection.deviates(some, 4)).any()


def test_flagged_pixels_do_not_count_in_the_signal_to_noise(settings):
    flagged = np.zeros((N, N_PIX), "i4")
    flagged[:, ::2] = 1 << settings.input.bad_pixel_bits[0]
    first, second = Scorer(), Scorer()
    plain = injection.inject(flat(), first, settings, FIRST)
    half = injection.inject(flat(and_mask=flagged), second, settings, FIRST)
    assert np.allclose(plain["line_snr"], half["line_snr"])
    ratio = second.flux.max(axis=1) / first.flux.max(axis=1)
    assert np.median(ratio) == pytest.approx(np.sqrt(2), rel=0.1), "half of the pixels need twice the power"


def test_widths_are_a_normal_distributions_above_the_limit(settings):
    u = np.random.default_rng(3).random((20_000, 6))
    line = injection.draw_lines(settings, np.zeros(len(u)), np.full(len(u), "star"), FIRST, N_PIX, u)
    mean, scatter = settings.mock.line_fwhm
    assert np.median(line["fwhm"]) == pytest.approx(mean, rel=0.03)
    assert (line["fwhm"] * line["wave"] / 299792.458 >= settings.mock.min_line_fwhm * 0.999).all()
    assert np.mean(line["fwhm"] < mean - scatter) == pytest.approx(0.15, abs=0.02)
