"""The basis: redshifting is shifting, the weighted fit is least squares, the PCA finds what was put in."""

import numpy as np
import pytest
from astropy.io import fits

from lensspark import eigen
from lensspark.config import resource


@pytest.fixture(scope="module")
def basis():
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(3, 6000)), axis=1).astype(np.float32)
    return eigen.Basis(32500, smooth, rng.normal(size=(5, 3)).astype(np.float32), "test")


def test_save_and_load(basis, tmp_path):
    basis.save(tmp_path / "b.npz")
    loaded = eigen.Basis.load(tmp_path / "b.npz")
    assert loaded.first_pixel == basis.first_pixel and loaded.provenance == "test"
    np.testing.assert_array_equal(loaded.vectors, basis.vectors)
    assert np.array_equal(eigen.Basis.load((tmp_path / "b.npz").read_bytes()).coefficients, basis.coefficients)


@pytest.mark.parametrize("content", [b"", b"no zip", None], ids=["empty", "text", "absent"])
def test_load_refuses_other_files(tmp_path, content):
    path = tmp_path / "broken.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.npz"):
        eigen.Basis.load(path)


def fits_file(path, vectors, coeff0=3.3, coeff1=1e-4):
    header = fits.Header({"COEFF0": coeff0, "COEFF1": coeff1, "OBJECT": "GALAXY"})
    fits.PrimaryHDU(vectors, header).writeto(path)
    return path


def test_load_takes_files_like_speigengal(tmp_path):
    vectors = np.random.default_rng(8).normal(size=(2, 900)).astype(np.float32)
    path = fits_file(tmp_path / "spEigenGal-1.fits", vectors * [[1e3], [1e-3]])
    for loaded in (eigen.Basis.load(path), eigen.Basis.load(path.read_bytes())):
        assert loaded.first_pixel == 33000 and loaded.coefficients.shape == (0, 2)
        np.testing.assert_allclose(loaded.vectors, vectors / np.std(vectors, axis=1, keepdims=True), rtol=0.01)
    loaded.save(tmp_path / "again.npz")
    assert eigen.Basis.load(tmp_path / "again.npz").first_pixel == 33000


@pytest.mark.parametrize(("shape", "coeff1", "said"), [((2, 900), 2e-4, "COEFF1 = 0.0002"), ((900,), 1e-4, "image")])
def test_load_refuses_fits_files_of_another_kind(tmp_path, shape, coeff1, said):
    path = fits_file(tmp_path / "other.fits", np.ones(shape, np.float32), coeff1=coeff1)
    with pytest.raises(ValueError, match=f"other.fits: not a basis.*{said}"):
        eigen.Basis.load(path)


@pytest.mark.parametrize(("name", "first"), [("spEigenGal-55740.fits", 32552), ("spEigenGal-56436.fits", 30730)])
def test_the_surveys_own_templates_fit_galaxies(shared_data, name, first):
    """spEigenGal's four vectors fit a noiseless galaxy of the shipped population to 10 %."""
    loaded = eigen.Basis.load(shared_data / "templates" / name)
    assert loaded.first_pixel == first and len(loaded.vectors) == 4
    z, basis = np.full(50, 0.5), eigen.Basis.load(resource("data/eigenbasis.npz"))
    flux = (basis.coefficients[:50, None] @ basis.at(z, 35798, 1192))[:, 0]
    design = np.concatenate([loaded.at(z, 35798, 1192), np.tile(eigen.legendre(1192, 3), (50, 1, 1))], axis=1)
    model = np.stack([d.T @ np.linalg.lstsq(d.T, f, rcond=None)[0] for d, f in zip(design, flux, strict=True)])
    assert np.median(np.std(flux - model, axis=1) / flux.mean(axis=1)) < 0.1


def test_load_refuses_pickles(tmp_path):
    np.savez(tmp_path / "p.npz", first_pixel=0, vectors=np.array([{}], dtype=object), coefficients=0, provenance="")
    with pytest.raises(ValueError, match="not a basis"):
        eigen.Basis.load(tmp_path / "p.npz")


def test_a_redshift_of_whole_pixels_is_a_shift(basis):
    z = 10 ** (1500e-4) - 1
    at = basis.at(np.array([0.0, z]), 34000, 1192)
    np.testing.assert_array_equal(at[0], basis.vectors[:, 1500:1500 + 1192])
    np.testing.assert_array_equal(at[1], basis.vectors[:, :1192])


def test_a_fraction_of_a_pixel_interpolates_to_a_quarter(basis):
    z = 10 ** (1000.5e-4) - 1  # rest pixels 499.5 onwards
    expected = 0.5 * (basis.vectors[:, 499:599] + basis.vectors[:, 500:600])
    np.testing.assert_allclose(basis.at(np.array([z]), 34000, 100)[0], expected, rtol=1e-5, atol=1e-4)


def test_beyond_its_ends_the_basis_is_zero(basis):
    at = basis.at(np.array([-0.9, 30.0, 0.6]), 34000, 1192)
    assert not at[0].any() and not at[1].any()
    assert at[2].any() and not at[2, 0, 0]


def test_pca_spans_what_the_spectra_are_made_of():
    rng = np.random.default_rng(2)
    templates = rng.uniform(1, 2, (3, 400))
    spectra = rng.uniform(0.5, 1.5, (200, 3)) @ templates
    vectors, coefficients = eigen.pca(spectra, 3)
    np.testing.assert_allclose(coefficients @ vectors, spectra, rtol=1e-8)
    np.testing.assert_allclose(np.sqrt(np.mean(vectors**2, axis=1)), 1.0)


def test_the_shipped_basis_covers_the_window_of_every_redshift():
    shipped = eigen.Basis.load(resource("data/eigenbasis.npz"))
    assert shipped.provenance and len(shipped.coefficients) >= 1000
    at = shipped.at(np.array([0.0, 0.8, 1.05]), 35798, 1192)
    assert (np.abs(at[:, 0]) > 0).all()


def test_eigenspectra_of_others_are_mixed_like_a_population(basis):
    """Here the others are the same three vectors, mixed by a matrix and shifted by 40 pixels: nothing is lost."""
    turn = np.array([[2.0, 1, 0], [0, 1, 1], [1, 0, 1]], np.float32)
    others = eigen.Basis(32540, turn @ basis.vectors[:, 40:], np.zeros((0, 3), np.float32), "others")
    mixed = others.mixed_like(basis)
    expected = basis.coefficients @ basis.vectors[:, 40:]
    np.testing.assert_allclose(mixed.coefficients @ mixed.vectors, expected, atol=1e-3 * np.abs(expected).max())
    assert mixed.provenance == "others, mixed like test"
    with pytest.raises(ValueError, match="pixels in common"):
        eigen.Basis(1, others.vectors, others.coefficients).mixed_like(basis)
    with pytest.raises(ValueError, match="sample of galaxies"):
        basis.mixed_like(others)
