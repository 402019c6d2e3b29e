"""The population of massive galaxies and the basis made of it."""

import numpy as np
import pytest
from astropy.io import fits

from lensspark import config, population
from lensspark.eigen import DLOGLAM, Basis

FIRST, LAST = (round(np.log10(wave) / DLOGLAM) for wave in population.REST_RANGE)


def toy_grid(name: str = "bc03", metallicity: float = 0.0) -> population.Grid:
    """Black bodies that redden with age, with a break at 4000 A that grows with it."""
    wave = 10 ** (np.arange(FIRST, LAST + 1) * DLOGLAM)
    ages = population.BC03_AGES_GYR
    temperature = 12000 * ages[:, None] ** -0.3
    spectra = wave**-5 / np.expm1(1.4388e8 / wave / temperature) * np.where(wave < 4000, 1 / (1 + ages[:, None]), 1)
    spectra /= spectra.mean(axis=1, keepdims=True) * (1 + ages[:, None])
    return population.Grid(name, FIRST, spectra, ages, np.full(len(ages), metallicity))


@pytest.mark.parametrize("air, vacuum", [(6562.80, 6564.61), (5006.84, 5008.24), (4861.33, 4862.68),
                                         (3933.66, 3934.78)])
def test_air_to_vacuum_gives_the_wavelengths_of_the_line_lists(air, vacuum):
    assert population.air_to_vacuum(np.array([air]))[0] == pytest.approx(vacuum, abs=0.012)


def test_air_to_vacuum_leaves_the_far_ultraviolet_alone():
    assert population.air_to_vacuum(np.array([1900.0]))[0] == 1900.0


def test_resampling_conserves_flux():
    wave = np.arange(1700.0, 10700.0, 0.9)
    spectrum = 1 + np.exp(-0.5 * ((wave - 5000) / 3) ** 2)
    first, resampled = population._resample(wave, spectrum[None])
    edges = 10 ** ((first - 0.5 + np.arange(resampled.shape[1] + 1)) * DLOGLAM)
    near = (edges[:-1] > 4900) & (edges[1:] < 5100)
    excess = np.sum((resampled[0] - 1) * np.diff(edges) * near)
    assert excess == pytest.approx(3 * np.sqrt(2 * np.pi), rel=1e-3)
    peak = edges[:-1][resampled[0].argmax()]
    assert peak == pytest.approx(population.air_to_vacuum(np.array([5000.0]))[0], abs=1.0)


def test_galaxies_are_normalised_and_repeatable():
    one, two, other = (population.galaxies(toy_grid(), 20, seed) for seed in (1, 1, 2))
    wave = 10 ** (np.arange(FIRST, LAST + 1) * DLOGLAM)
    np.testing.assert_allclose(one[:, (wave > 4000) & (wave < 5500)].mean(axis=1), 1)
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0.01
    assert (one > 0).all()


def test_dust_reddens():
    wave = np.array([3000.0, 5500.0, 9000.0])
    none, some = population._attenuation(wave, np.array([0.0, 1.0]))
    np.testing.assert_allclose(none, 1)
    assert some[1] == pytest.approx(10**-0.4, rel=0.01)  # A_V at V
    assert some[0] < some[1] < some[2]


def test_broadening_conserves_flux_and_adds_its_width():
    spectrum = np.zeros((1, 400))
    spectrum[0, 200] = 1.0
    broad = population._broaden(spectrum, np.array([3.0]))[0]
    x = np.arange(400) - 200
    assert broad.sum() == pytest.approx(1)
    assert np.sqrt(np.sum(x**2 * broad)) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("grids", [["bc03"], ["bc03", "emiles"]])
def test_a_basis_spans_the_population_and_tells_its_sources(grids):
    grids = [toy_grid(name, metallicity) for name, metallicity in zip(grids, (0.0, 0.2), strict=False)]
    basis = population.build_basis(grids, n_vectors=6, n_galaxies=41, n_sample=30)
    assert basis.vectors.shape == (6, LAST - FIRST + 1) and basis.coefficients.shape == (30, 6)
    galaxies = population.galaxies(grids[0], 41 if len(grids) == 1 else 21, 1)
    of_first = basis.coefficients[::len(grids)] @ basis.vectors
    relative = np.sqrt(np.mean((of_first / galaxies[:len(of_first)] - 1) ** 2))
    assert relative < 0.02
    assert all(population.CITATION[grid.name] in basis.provenance for grid in grids)


def test_the_shipped_basis_is_what_its_provenance_says():
    basis = Basis.load(config.resource("data/eigenbasis.npz"))
    assert any(citation in basis.provenance for citation in population.CITATION.values())
    assert "jobs/build_basis.py" in basis.provenance
    assert basis.first_pixel == FIRST and basis.vectors.shape[1] == LAST - FIRST + 1
    galaxies = basis.coefficients @ basis.vectors
    wave = 10 ** (np.arange(FIRST, LAST + 1) * DLOGLAM)
    red, blue = (galaxies[:, (wave > low) & (wave < low + 200)].mean(axis=1) for low in (4050, 3750))
    assert 1.2 < np.median(red / blue) < 2.2  # the 4000 A break of old populations (Balogh et al. 1999: 1.0 to 2.1)


def test_what_is_no_grid_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent.fits"):
        with pytest.raises(ValueError, match="expected the file bc03"):
            population.read_grid(path)


def test_emiles_files_are_read_by_name_and_header(tmp_path):
    wave = np.arange(1680.0, 10900.0, 0.9)
    for name, slope in (("Zp0.06T01.0000", 1.0), ("Zm0.40T10.0000", 2.0), ("Zm1.71T10.0000", 9.0)):
        header = fits.Header({"CRVAL1": 1680.0, "CDELT1": 0.9})
        fits.writeto(tmp_path / f"Eun1.30{name}_iPp0.00_baseFe_linear_FWHM_variable.fits",
                     (slope * wave / 5000).astype("f4"), header)
    grid = population.read_grid(tmp_path)
    assert grid.name == "emiles"
    assert sorted(zip(grid.ages, grid.metallicities, strict=True)) == [(1.0, 0.06), (10.0, -0.4)]
    at_5000 = grid.spectra[:, round(np.log10(5001.4) / DLOGLAM) - FIRST]  # 5000 A in air
    np.testing.assert_allclose(at_5000, [1.0 if age == 1 else 2.0 for age in grid.ages], rtol=1e-4)
