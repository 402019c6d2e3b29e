"""What a line is: companions measured on synthetic residuals, and the posterior over identities."""

import numpy as np
import pytest

from lensspark import config, identity, lines, profile
from lensspark.identity import NAMES, Spectra
from lensspark.profile import shapes

FIRST, N_PIX, SIGMA, LSF = 35700, 4000, 0.2, 1.1
VETTING = config.load().vetting


def spectra(flux_of, n=8, seed=1, correlated=False):
    """n residuals with noise of SIGMA and the lines `flux_of` {wavelength: flux 1e-17 erg/s/cm2}, as wide as 1.6 px."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((n, N_PIX + 1))
    residual = SIGMA * (white[:, 1:] + (0.5 * white[:, :-1] if correlated else 0))
    for wave, flux in flux_of.items():
        position = np.log10(wave) * 1e4 - FIRST
        edges = np.arange(N_PIX + 1) - 0.5
        unit = shapes.gaussian(edges, np.float64(position), np.float64(1.6))
        residual += flux * unit / (np.log(10) * 1e-4 * wave)
    return Spectra(residual, np.full((n, N_PIX), SIGMA**-2), np.full((n, N_PIX), LSF), np.full(n, FIRST))


def examine(sky, wave, z_lens=0.5, priors=VETTING.identity_priors):
    n = len(sky.residual)
    cuts = profile.cut(sky.residual, sky.ivar, sky.lsf, sky.first_pixel, np.full(n, wave), 20)
    fits = profile.fit_lines(cuts)
    z = np.full(n, z_lens)
    found = identity.companions(identity.masked(sky, z), cuts, fits)
    return found, identity.posterior(cuts, fits, found, z, priors, 0.0)


def oii_galaxy(z, flux=15.0, companions=1.0):
    ratios = {line.rest: line.ratio for line in lines.IDENTITIES[1].companions}
    own = {rest * (1 + z): flux / 2 for rest in lines.OII}
    return own | {rest * (1 + z): companions * flux * ratio for rest, ratio in ratios.items()}


def test_flux_and_error_of_a_line():
    wave = np.array([6000.0])
    sky = spectra({6000.0: 10.0}, n=400)
    flux, error = identity.measure(sky, np.full(400, np.log10(wave[0]) * 1e4), np.full(400, 1.6))
    assert flux.mean() == pytest.approx(10, abs=4 * error.mean() / 20)
    assert np.std((flux - 10) / error) == pytest.approx(1, abs=0.12)
    empty, error = identity.measure(sky, np.full(400, np.log10(5000.0) * 1e4 + 0.4), np.full(400, 1.6))
    assert np.mean(np.abs(empty / error) > 2.5) < 0.03


def test_correlated_noise_and_sky_residuals_raise_the_error():
    position, width = np.full(200, 37500.0), np.full(200, 2.0)
    (_, white), (flux, correlated) = (identity.measure(spectra({}, 200, correlated=c), position, width)
                                      for c in (False, True))
    assert np.median(correlated) > 1.3 * np.median(white)
    assert np.std(flux / correlated) == pytest.approx(1, abs=0.15)


def test_what_is_not_seen_is_null():
    sky = spectra({}, n=5)
    centre = 37000.0
    ivar = sky.ivar.copy()
    ivar[1] = 0
    ivar[2, 1296:1305] = 0  # the core
    ivar[3, 1330:] = 0  # a neighbourhood cut short is no matter
    sky = Spectra(sky.residual, ivar, sky.lsf, sky.first_pixel)
    position = np.array([FIRST - 5.0, centre, centre, centre, np.nan])
    flux, error = identity.measure(sky, position, np.full(5, 1.6))
    assert np.isnan(flux).tolist() == np.isnan(error).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("z", [0.03, 0.2, 0.33])
def test_an_oii_galaxy_is_one(z):
    found, p = examine(spectra(oii_galaxy(z)), lines.IDENTITIES[1].rest * (1 + z))
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (identity.largest_snr(found, "oii") > 2.5).all()
    assert (p[:, NAMES.index("oii")] > 0.9).all()
    np.testing.assert_allclose(found["oii/Ha"]["wave"], lines.HALPHA * (1 + z), rtol=4e-4)


def test_without_companions_the_same_line_is_something_else():
    z = 0.2
    found, p = examine(spectra(oii_galaxy(z, companions=0.0)), lines.IDENTITIES[1].rest * (1 + z))
    assert (identity.largest_snr(found, "oii") < 4).all()
    assert np.median(p[:, NAMES.index("oii")]) < 0.1


def test_more_companions_never_make_oii_less_likely():
    z = 0.2
    p = [examine(spectra(oii_galaxy(z, companions=c)), lines.IDENTITIES[1].rest * (1 + z))[1][:, NAMES.index("oii")]
         for c in (0.0, 0.3, 1.0)]
    assert (np.diff([np.median(v) for v in p]) > 0).all()


def test_the_prior_decides_and_no_redshift_is_negative():
    only_oii = tuple(float(name == "oii") for name in NAMES)
    assert (examine(spectra({4500.0: 12.0}, n=2), 4500.0, priors=only_oii)[1][:, NAMES.index("oii")] == 1).all()
    p = examine(spectra({4500.0: 12.0}, n=2), 4500.0)[1]
    assert (p[:, [NAMES.index("hbeta"), NAMES.index("oiii")]] == 0).all()


def test_lines_of_lens_and_sky_are_known_by_their_place():
    z_lens = 0.4
    wave = lines.LENS_LINES[2] * (1 + z_lens)
    at, off = (examine(spectra({w: 8.0}), w, z_lens)[1][:, NAMES.index("lens")] for w in (wave, wave * 1.012))
    assert np.median(at) > 5 * np.median(off)
    at, off = (examine(spectra({w: 8.0}), w)[1][:, NAMES.index("sky")] for w in (4424.0, 4500.0))
    assert np.median(at) > 5 * np.median(off)


def test_companions_under_the_lens_and_the_sky_are_not_measured():
    z_lens = 0.3
    sky = identity.masked(spectra({}, n=2), np.array([z_lens, np.nan]))
    at = round(np.log10(lines.HALPHA * 1.3) * 1e4) - FIRST
    assert sky.ivar[0, at] == 0 and sky.ivar[1, at] > 0
    assert (sky.ivar[:, round(np.log10(5579.0) * 1e4) - FIRST] == 0).all()


def test_priors_must_fit_the_names():
    with pytest.raises(ValueError, match="identity_priors has 2 values; expected 10: lya, oii"):
        examine(spectra({4500.0: 12.0}, n=1), 4500.0, priors=(0.5, 0.5))
