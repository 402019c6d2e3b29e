"""Einstein radii against astropy and the published ones; the probability of multiple images against a simulation."""

import numpy as np
import pandas as pd
import pytest
from astropy import cosmology

from lensspark import catalogue, lensing

PLANCK = lensing.distances("Planck15")
Z_L, Z_S, SIGMA, THETA = "$z_l$", "$z_s$", r"$\rm \sigma_{eBOSS}$", r"$\theta_E$"


@pytest.mark.parametrize("name", ["Planck15", "WMAP9"])
def test_distance_ratio_is_astropys(name):
    model = getattr(cosmology, name)
    z = np.sort(np.random.default_rng(1).uniform(0.01, 6, (2, 500)), axis=0)
    expected = model.angular_diameter_distance_z1z2(*z) / model.angular_diameter_distance(z[1])
    np.testing.assert_allclose(lensing.distance_ratio(*z, lensing.distances(name)), expected.value, rtol=1e-5)


def test_curved_space_is_astropys(monkeypatch):
    model = cosmology.LambdaCDM(70, 0.3, 0.9)
    monkeypatch.setattr(cosmology, "WMAP5", model)
    lensing.distances.cache_clear()
    expected = (model.angular_diameter_distance_z1z2(0.5, 2.5) / model.angular_diameter_distance(2.5)).value
    assert lensing.distance_ratio(0.5, 2.5, lensing.distances("WMAP5")) == pytest.approx(expected, rel=1e-5)
    lensing.distances.cache_clear()


def test_known_radii():
    theta, error = lensing.einstein_radius(0.55, 2.5, [150.0, 200.0, 250.0, 300.0], 20.0, PLANCK)
    np.testing.assert_allclose(theta, [0.42, 0.75, 1.17, 1.68], atol=0.005)
    np.testing.assert_allclose(error, 2 * theta * 20 / np.array([150, 200, 250, 300]))


def test_published_radii(shared_data):
    """Cao et al. (2020): redshifts, dispersions, radii have two decimals; dispersions on the fit's rails give none."""
    table = pd.read_csv(shared_data / "tables" / "cao2020_361_laes.csv")
    z_l, z_s, sigma, published = (table[name].to_numpy(float) for name in (Z_L, Z_S, SIGMA, THETA))
    theta, _ = lensing.einstein_radius(z_l, z_s, sigma, 20.0, PLANCK)
    rails = (sigma <= 0) | (sigma >= 840)
    assert len(table) == 361 and rails.sum() == 9
    assert np.isnan(theta[rails]).all() and np.isfinite(theta[~rails]).all()
    corners = np.stack([lensing.einstein_radius(z_l + a, z_s + b, sigma + c, 20.0, PLANCK)[0]
                        for a in (-0.005, 0.005) for b in (-0.005, 0.005) for c in (-0.005, 0.005)])
    within = (corners.min(axis=0) - 0.00501 <= published) & (published <= corners.max(axis=0) + 0.00501)
    assert within[~rails].all(), table["name"][~rails & ~within].tolist()


@pytest.mark.parametrize(("z_lens", "z_source", "vdisp"), [
    (0.5, 0.4, 200), (0.5, 0.5, 200), (-0.1, 2, 200), (np.nan, 2, 200), (0.5, np.nan, 200), (0.5, 2, 0),
    (0.5, 2, -1), (0.5, 2, 840), (0.5, 2, 850), (0.5, 2, np.nan), (0.5, 21, 200)])
def test_what_cannot_be_known_is_null(z_lens, z_source, vdisp):
    theta, error = lensing.einstein_radius(z_lens, z_source, vdisp, 20.0, PLANCK)
    assert np.isnan(theta) and np.isnan(error) and np.isnan(lensing.p_multiple(theta, error, 2.0))


def test_an_error_that_failed_leaves_the_radius():
    theta, error = lensing.einstein_radius(0.5, 2.0, 200.0, [0.0, -1.0, np.nan], PLANCK)
    assert np.isfinite(theta).all() and np.isnan(error).all()
    assert np.isfinite(lensing.p_multiple(theta, error, 2.0)).all()


def test_unknown_cosmology():
    with pytest.raises(ValueError, match="cosmology 'Plank15': expected one of .*Planck15"):
        lensing.distances("Plank15")


@pytest.mark.parametrize("theta_e", [0.1, 0.3, 0.45, 0.6, 1.2])
def test_multiple_images_by_drawing_sources(theta_e):
    rng = np.random.default_rng(3)
    beta = np.sqrt(rng.random(400_000)) * 4  # uniform over a disc of 4 arcsec
    outer, inner = beta + theta_e, np.where(beta < theta_e, theta_e - beta, np.inf)
    seen = (outer < 1) | (inner < 1)
    expected = np.mean(beta[seen] < theta_e)
    got = lensing.p_multiple(np.array(theta_e), np.array(np.nan), 2.0)
    assert got == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / seen.sum()) + 1e-9)


def test_multiple_images_grow_with_the_radius_and_average_over_errors():
    theta = np.linspace(0.01, 2, 50)
    p = lensing.p_multiple(theta, np.full(50, np.nan), 2.0)
    assert (np.diff(p) >= 0).all() and 0 < p[0] < 0.001 and p[-1] == 1
    assert lensing.p_multiple(np.array(0.6), np.array(0.3), 2.0) < 1  # the dispersion may be smaller


def test_short_names_are_the_published_ones(shared_data):
    """The BELLS GALLERY lenses are called JHHMM+DDMM, truncated."""
    table = pd.read_csv(shared_data / "tables" / "bells_gallery21.csv")
    table = table[table["ra"].notna()]  # of three the table has no position
    short = [name[5:10] + name[15:20] for name in catalogue.iau_name(table["ra"], table["dec"])]
    assert len(short) == 18 and short == table["name"].tolist()
