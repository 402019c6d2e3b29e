"""All that is measured of a hit: columns, nulls, independence of rows, and what it tells apart on mock spectra."""

import warnings

import compare_mock
import measure_lines
import numpy as np
import pytest

from lensspark import config, measure, schema

SETTINGS = config.load()


@pytest.fixture(scope="module")
def hits():
    return measure_lines.mock_hits(plates=3, fibres=120)


@pytest.fixture(scope="module")
def found(hits):
    args, settings, _ = hits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return measure.measure_hits(*args, **settings)


def some(hits, rows):
    args, settings, truth = hits
    return tuple(arg[rows] for arg in args), settings, {name: values[rows] for name, values in truth.items()}


def test_columns_are_the_declared_ones(found, hits):
    assert list(found) == list(measure.COLUMNS)
    declared = {column.name: column.type for column in schema.VETTING}
    assert {name: declared[name] for name in found} == {
        name: "string" if name == "identity" else "double" for name in found}
    assert {values.shape for values in found.values()} == {hits[0][5].shape}


def test_probabilities_add_up(found):
    measured = np.isfinite(found["p_lya"])
    assert measured.mean() > 0.9
    total = found["p_lya"] + found["p_oii"] + found["p_other"]
    np.testing.assert_allclose(total[measured], 1)
    others = sum(found[name] for name in measure._P_OTHER)
    np.testing.assert_allclose(others[measured], found["p_other"][measured])
    assert set(found["identity"]) <= {*measure.identity.NAMES, "undecided"}
    assert (found["identity"][~measured] == "undecided").all()


def test_kinds_are_told_apart(found, hits):
    """docs/science.md has the figures of more spectra; here the aims, with room for some 60-150 spectra of a kind."""
    _, _, truth = hits
    kind, measured = truth["kind"], np.isfinite(found["profile_flux"])
    oii, spike, skewed = (measured & (kind == k) for k in ("oii", "cosmic", "lya"))
    skewed &= truth["line_alpha"] >= 2
    assert min(oii.sum(), spike.sum(), skewed.sum()) > 20
    assert np.mean(found["sn_oii_veto"][oii] >= 2.5) > 0.92
    assert np.mean(found["dchi2_spike"][spike] >= 4) > 0.92
    keep = (found["sn_oii_veto"] < 2.5) & (found["dchi2_spike"] < 4) & (found["p_lya"] > 0.1)
    assert keep[skewed].mean() > 0.85


def test_flux_and_place_are_the_injected_ones(found, hits):
    truth = hits[2]
    single = (truth["kind"] == "lya") & (truth["line_snr"] > 15) & (found["dchi2_double"] > -4)
    ratio = found["profile_flux"][single] / truth["line_flux"][single]
    assert np.nanmedian(ratio) == pytest.approx(1, abs=0.1)
    assert np.nanmedian(np.abs(found["profile_wave"] - truth["line_wave"])[single]) < 1


def test_rows_are_independent_and_padding_is_ignored(hits, found, monkeypatch):
    rows = np.array([5, 1, 8])
    args, settings, _ = some(hits, rows)
    padded = tuple(np.pad(plane, ((0, 0), (0, 37))) for plane in args[:5]) + args[5:]
    monkeypatch.setattr(measure, "CHUNK", 2)
    again = measure.measure_hits(*padded, **settings)
    for name, values in again.items():
        if name == "identity":
            assert values.tolist() == found[name][rows].tolist()
        else:
            np.testing.assert_allclose(values, found[name][rows], rtol=2e-3, atol=2e-3, err_msg=name)


def test_digits_do_not_depend_on_the_company(hits, found):
    """A search that is disturbed and resumed measures other batches, and must give the same ledger."""
    rng = np.random.default_rng(1)
    for n in (1, 1, 2, 7, 60):
        rows = rng.permutation(len(hits[0][5]))[:n]
        args, settings, _ = some(hits, rows)
        for name, values in measure.measure_hits(*args, **settings).items():
            np.testing.assert_array_equal(values, found[name][rows], err_msg=f"{name} of {n} hits")


def test_what_is_missing_is_null(hits):
    args, settings, _ = some(hits, np.arange(4))
    flux, ivar, and_mask, wdisp, model, loglam0, z_lens, line_wave, vdisp, vdisp_err = args
    line_wave, vdisp, z_lens = line_wave.copy(), np.array([200.0, 0.0, 850.0, np.nan]), z_lens.copy()
    line_wave[0], line_wave[1], z_lens[2] = np.nan, 20_000.0, np.nan
    args = (flux, ivar, and_mask, None, None, loglam0, z_lens, line_wave, vdisp, vdisp_err)
    got = measure.measure_hits(*args, **settings)
    everything = [name for name in measure.COLUMNS if name not in ("identity", "z_source")]
    assert all(np.isnan(got[name][:2]).all() for name in everything)
    assert got["identity"][:2].tolist() == ["undecided", "undecided"]
    for name in ("dchi2_spike", "line_width_over_lsf", "sn_oii_veto", "theta_e", "p_multiple"):
        assert np.isnan(got[name]).all(), name
    assert np.isfinite(got["profile_flux"][2:]).all() and np.isfinite(got["p_lya"][2:]).all()


def test_shapes_must_agree(hits):
    args, settings, _ = some(hits, np.arange(3))
    with pytest.raises(ValueError, match=r"expected \(n, n_pix\), \(n,\)"):
        measure.measure_hits(args[0][:, :-1], *args[1:], **settings)
    with pytest.raises(ValueError, match=r"expected \(n, n_pix\), \(n,\)"):
        measure.measure_hits(*args[:5], args[5][:2], *args[6:], **settings)


def test_no_hits_give_no_rows(hits):
    args, settings, _ = some(hits, np.arange(0))
    assert all(values.shape == (0,) for values in measure.measure_hits(*args, **settings).values())


def test_curves_are_the_fits(hits, found):
    args, settings, _ = some(hits, np.arange(6))
    curves = measure.line_curves(*args, **settings)
    companions = measure.companions(*args, **settings)
    for i, curve in enumerate(curves):
        if curve is None:
            assert np.isnan(found["profile_flux"][i])
            continue
        good = np.isfinite(curve["sigma"])
        chi2 = {name: np.sum(((curve["residual"] - curve[name]) / curve["sigma"])[good] ** 2)
                for name in ("skew", "gauss", "oii", "double")}
        assert chi2["skew"] == pytest.approx(found["profile_chi2"][i], rel=1e-3)
        for rival, column in (("gauss", "dchi2_skew"), ("oii", "dchi2_oii"), ("double", "dchi2_double")):
            assert chi2[rival] - chi2["skew"] == pytest.approx(found[column][i], abs=0.02 + 1e-3 * chi2[rival])
        veto = [snr for name, (_, snr) in companions[i].items() if name.startswith("oii/")]
        assert max(veto, default=np.nan) == pytest.approx(found["sn_oii_veto"][i], nan_ok=True)


def test_pad():
    got = measure.pad([np.array([1.0, 2.0]), None, np.array([3.0])])
    np.testing.assert_array_equal(got, [[1, 2], [0, 0], [3, 0]])
    assert measure.pad([np.array([1, 2], np.int32)]).dtype == np.int32
    assert measure.pad([]).shape == (0, 0)


def test_real_spectra_are_measured_without_a_warning(shared_data, basis):
    """A line is asked for in each real spectrum, where its own flux over error is highest; most are quasars."""
    rows = compare_mock.read_real(shared_data / "spectra" / "boss")[::4]
    planes = [measure.pad([row[name] for row in rows]) for name in measure_lines.PLANES]
    loglam0 = np.array([row["loglam"][0] for row in rows], np.float64)
    wave = 10 ** (loglam0[:, None] + 1e-4 * np.arange(planes[0].shape[1]))
    excess = (planes[0] - planes[4]) * np.sqrt(planes[1])
    brightest = np.where((wave > 3810) & (wave < 4990), excess, -np.inf).argmax(axis=1)
    n = len(rows)
    args = (*planes, loglam0, np.array([row["z"] for row in rows]), wave[np.arange(n), brightest], np.full(n, 200.0),
            np.full(n, 20.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = measure.measure_hits(*args, basis=basis, window=SETTINGS.read.window, input_settings=SETTINGS.input,
                                   settings=SETTINGS.vetting)
    measured = np.isfinite(got["p_lya"])
    assert measured.mean() > 0.5
    np.testing.assert_allclose((got["p_lya"] + got["p_oii"] + got["p_other"])[measured], 1)
