"""How well the measurement of a line can be trusted.

    python tests/measure_lines.py [--lines 2000] [--plates 8]

First the profile, on simulated Lya lines of S/N >= 10 (median 15; FWHM 300 +- 200 km/s, a third with alpha = 0, the
rest uniform to 8; LSF of 1.15 px): pulls, coverage of alpha's interval, calibration of p_skew_positive, CPU time. The
pull of alpha is its distance from the truth over the part of its interval on that side. Then the identity, on whole
mock spectra with a line of S/N >= 8: what each cut leaves of each kind.
"""

import argparse
import dataclasses
import time

import numpy as np

from lensspark import config, eigen, measure, profile
from lensspark.mock import observe_plate, profiles

FIRST, N_PIX, LSF, SIGMA = 35798, 101, 1.15, 0.3
KINDS = {"lya": 0.5, "oii": 0.25, "cosmic": 0.15, "airglow": 0.1}
PLANES = ("flux", "ivar", "and_mask", "wdisp", "model")


def simulate(alpha, snr, noise_correlation=0.0, seed=1, fwhm=None):
    """Residuals of one line each, cut out 0.7 px or less beside its peak, and the truth."""
    rng = np.random.default_rng(seed)
    n = len(alpha)
    wave = 10 ** ((FIRST + N_PIX // 2 + rng.uniform(-0.5, 0.5, n)) * 1e-4)
    fwhm = np.maximum(np.abs(rng.normal(300, 200, n)), 38.0) if fwhm is None else np.full(n, fwhm)
    shape = np.zeros((n, N_PIX))
    for sign in (1, -1):  # add_lines takes alpha >= 0: a blue tail is a red one mirrored about the peak
        mine = np.flatnonzero(np.sign(alpha + 0.5 * (alpha == 0)) == sign)
        part = np.zeros((len(mine), N_PIX))
        centre = np.log10(wave[mine]) / 1e-4 - FIRST
        mirrored = 10 ** ((FIRST + (centre if sign > 0 else N_PIX - 1 - centre)) * 1e-4)
        profiles.add_lines(part, np.arange(len(mine)), mirrored, np.ones(len(mine)), fwhm[mine], np.abs(alpha[mine]),
                           np.full(len(mine), LSF), FIRST)
        shape[mine] = part[:, ::sign]
    flux = snr * SIGMA / np.sqrt((shape**2).sum(axis=1))
    white = rng.standard_normal((n, N_PIX + 1))
    noise = white[:, 1:]
    if noise_correlation:
        share = (1 - np.sqrt(1 - 4 * noise_correlation**2)) / (2 * noise_correlation)
        noise = (white[:, :-1] + share * white[:, 1:]) / np.sqrt(1 + share**2)
    ivar, lsf = np.full((n, N_PIX), SIGMA**-2), np.full((n, N_PIX), LSF)
    near = wave * 10 ** (1e-4 * rng.uniform(-0.7, 0.7, n))
    cuts = profile.cut(shape * flux[:, None] + SIGMA * noise, ivar, lsf, np.full(n, FIRST), near, 20)
    return cuts, {"flux": flux, "wave": wave, "width": _width(fwhm, alpha), "alpha": alpha, "snr": snr}


def _width(fwhm, alpha):
    """Rms width as observed, px, of a skew normal of intrinsic `fwhm` km/s."""
    omega = fwhm / profiles.PIXEL_KMS / np.interp(np.abs(alpha), *profiles._shape_table()[::2])
    delta = alpha / np.sqrt(1 + alpha**2)
    return np.hypot(omega * np.sqrt(1 - 2 / np.pi * delta**2), LSF)


def population(n, rng, symmetric=False):
    "(alpha, S/N) of n lines; with `symmetric` half of the alphas are negative."
    alpha = np.where(rng.random(n) < 1 / 3, 0.0, 8 * rng.random(n))
    sign = np.where(symmetric & (rng.random(n) < 0.5), -1, 1)
    return alpha * sign, 10 * np.exp(np.abs(0.6 * rng.standard_normal(n)))


def pulls(found, truth):
    "(estimate - truth) / error of flux, peak, width, and of alpha by the side of its interval."
    out = {name: (found[f"profile_{name}"] - truth[name]) / found[f"profile_{name}_err"]
           for name in ("flux", "wave", "width")}
    off = found["alpha"] - truth["alpha"]
    side = np.where(off > 0, found["alpha"] - found["alpha_low"], found["alpha_high"] - found["alpha"])
    return out | {"alpha": off / np.maximum(side, 0.05)}


def report_profiles(n):
    rng = np.random.default_rng(3)
    for noise_correlation in (0.0, 0.18):
        alpha, snr = population(n, rng)
        cuts, truth = simulate(alpha, snr, noise_correlation)
        start = time.process_time()
        fits = profile.fit_lines(cuts)
        found = profile.measures(cuts, fits, noise_correlation)
        seconds = (time.process_time() - start) / n * 1000
        print(f"\nnoise correlation {noise_correlation}: {seconds:.1f} s of CPU per 1,000 lines, all profiles")
        print(f"{'true alpha':12}{'lines':>6}" + "".join(f"{name:>14}" for name in ("flux", "peak", "width", "alpha"))
              + "  in 68 % interval   |alpha| = 25")
        values = pulls(found, truth)
        covered = (found["alpha_low"] <= alpha) & (alpha <= found["alpha_high"])
        for low, high in ((0, 8), (0, 0), (0, 2), (2, 4), (4, 8)):
            rows = (alpha >= low) & (alpha <= high) & ((alpha > 0) | (low == 0) & (high in (0, 8)))
            cells = "".join(f"{np.mean(v[rows]):8.2f} ±{np.std(v[rows]):5.2f}" for v in values.values())
            print(f"{low} - {high:<8}{rows.sum():>6}{cells}{covered[rows].mean():14.2f}"
                  f"{(np.abs(found['alpha'][rows]) > 24.9).mean():16.2f}")
        report_calibration(n, rng, noise_correlation)


def report_calibration(n, rng, noise_correlation):
    alpha, snr = population(n, rng, symmetric=True)
    cuts, _ = simulate(alpha, snr, noise_correlation, seed=2)
    p = profile.measures(cuts, profile.fit_lines(cuts), noise_correlation)["p_skew_positive"]
    null = p[alpha == 0]
    print(f"alpha = 0: p_skew_positive > 0.95 in {np.mean(null > 0.95):.3f}, > 0.9 in {np.mean(null > 0.9):.3f}, "
          f"> 0.5 in {np.mean(null > 0.5):.3f}, < 0.05 in {np.mean(null < 0.05):.3f} of {len(null)} lines")
    skewed = alpha != 0
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1)):
        rows = skewed & (p >= low) & (p <= high)
        print(f"    p {low:4.2f} - {high:4.2f}: mean {p[rows].mean():.3f}, alpha > 0 in "
              f"{(alpha[rows] > 0).mean():.3f} of {rows.sum()}")


def mock_hits(plates, seed=77, fibres=250):
    """Whole mock spectra with a line of S/N >= 8, as arguments of measure_hits, and their truth."""
    settings = config.load()
    none = dict.fromkeys(("lens_line", "crosstalk", "sky", "star", "repeat"), 0.0)
    mock = dataclasses.replace(settings.mock, **none, **KINDS)
    basis = eigen.Basis.load(config.resource("data/eigenbasis.npz"))
    fiberids = np.linspace(1, 1000, fibres).astype(int)
    parts = [observe_plate(seed, 6000 + 2 * i, 55000, fiberids, mock, basis) for i in range(plates)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if parts[0][name].ndim == 1}
    chosen = columns["line_snr"] >= 8
    planes = [measure.pad([row for part in parts for row in part[name]])[chosen] for name in PLANES]
    columns = {name: values[chosen] for name, values in columns.items()}
    near = columns["line_wave"] * 10 ** (0.6e-4 * np.random.default_rng(seed).standard_normal(chosen.sum()))
    args = (*planes, columns["loglam0"], columns["z"], near, columns["vdisp"], columns["vdisp_err"])
    return args, {"basis": basis, "window": settings.read.window, "input_settings": settings.input,
                  "settings": settings.vetting}, columns


def report_identities(plates):
    args, settings, truth = mock_hits(plates)
    start = time.process_time()
    found = measure.measure_hits(*args, **settings)
    seconds = (time.process_time() - start) / len(truth["kind"])
    print(f"\n{len(truth['kind'])} mock hits, {seconds * 1e3:.0f} ms of CPU each")
    cuts = {"sn_oii_veto < 2.5": found["sn_oii_veto"] < 2.5, "sn_oii_veto < 3": found["sn_oii_veto"] < 3,
            "dchi2_spike < 4": found["dchi2_spike"] < 4, "p_lya > 0.1": found["p_lya"] > 0.1}
    cuts["all at 2.5"] = np.logical_and.reduce(list(cuts.values()))
    print(f"{'share that passes':20}{'lines':>6}{'measured':>10}" + "".join(f"{name:>18}" for name in cuts)
          + "  identity right / wrong / undecided")
    groups = {kind: truth["kind"] == kind for kind in KINDS}
    groups["lya, alpha >= 2"] = groups["lya"] & (truth["line_alpha"] >= 2)
    right = {"lya": "lya", "oii": "oii", "cosmic": "cosmic", "airglow": "sky", "lya, alpha >= 2": "lya"}
    for name, rows in groups.items():
        measured = rows & np.isfinite(found["profile_flux"])
        cells = "".join(f"{cut[measured].mean():18.3f}" for cut in cuts.values())
        identity = found["identity"][measured]
        good, open_ = np.mean(identity == right[name]), np.mean(identity == "undecided")
        print(f"{name:20}{rows.sum():>6}{measured.sum():>10}{cells}{good:12.3f} {1 - good - open_:.3f} {open_:.3f}")
    for name, rows in (("alpha >= 2", truth["line_alpha"] >= 2), ("alpha = 0", truth["line_alpha"] == 0)):
        rows = rows & groups["lya"] & np.isfinite(found["profile_flux"])
        sure = np.mean(found["p_skew_positive"][rows] > 0.95)
        better = np.mean((found["alpha"] > 0)[rows] & (found["dchi2_skew"][rows] > 4))
        print(f"lya, {name}: p_skew_positive > 0.95 in {sure:.3f}, alpha > 0 and dchi2_skew > 4 in {better:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000, help="simulated lines (0: skip)")
    parser.add_argument("--plates", type=int, default=8, help="mock plates of 250 fibres (0: skip)")
    options = parser.parse_args()
    if options.lines:
        report_profiles(options.lines)
    if options.plates:
        report_identities(options.plates)
