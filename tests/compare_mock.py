"""Compare mock plates with real BOSS spectra, bin by bin in wavelength.

    python tests/compare_mock.py --spectra DIR [--plot docs/mock_vs_real.png] [--galaxies DIR ... [--basis FILE]]

DIR holds BOSS spec files (lite or full). Prints a table per bin of wavelength: flux of the galaxies, sky, LSF width;
reported error, and its 10-90 % range in ln, of spectra fainter than 1e-17 erg/s/cm2/A there; scatter of
(flux - model) * sqrt(ivar) about its running median (51 px) and the correlation of its neighbouring pixels, without
quasars, whose models fit worse; response, by how much (ln) a pixel's reported variance rises with one sigma of its
own flux, both against their running medians (31 px); fractions of pixels without measurement and with mask bits.
Medians over spectra but
for the correlation and the fractions, which are means.

With --galaxies, the search's own fit of the foreground galaxy is held against every quiescent galaxy (CLASS GALAXY,
no SUBCLASS, S/N > 2 per pixel) of those folders and against mock ones, in the search's window: scatter of residual *
sqrt(ivar) (1.48 MAD), mean chi2 per pixel, largest |matched-filter S/N|, magnitudes that the fibre loses; --basis
fits with other eigenspectra.
"""

import argparse
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.ndimage import median_filter

from lensspark import boss, config, eigen, matched_filter, spectrum
from lensspark.mock import observe_plate

EDGES = np.array([3650, 3800, 3900, 4000, 4200, 4500, 4800, 5000, 5500, 6000, 6800, 7600, 8400, 9200])
QUANTITIES = ("flux", "sigma", "sky", "wdisp", "pull", "correlation", "response", "unmeasured", "and_mask", "or_mask")
PLANES = ("flux", "ivar", "and_mask", "or_mask", "wdisp", "sky", "model")


def read_real(folder: Path) -> list[dict[str, np.ndarray]]:
    """Every BOSS spectrum below `folder` whose 1000-fibre plate has no BADFLAT fibre bit."""
    spectra = []
    for path in sorted(folder.glob("spec-*.fits")):
        table = fits.getdata(path, 1)
        columns = {name.lower(): name for name in table.names}
        row = {name: np.asarray(table[columns[name]]) for name in ("loglam", *PLANES)}
        catalogue = fits.getdata(path, 2)
        names = {name.lower(): name for name in catalogue.names}
        row["class"], row["z"] = str(catalogue[names["class"]][0]), float(catalogue[names["z"]][0])
        if not (row["and_mask"] & 4).any():
            spectra.append(row)
    return spectra


def make_mock(plates: int = 8, fibres: int = 25, seed: int = 12) -> list[dict[str, np.ndarray]]:
    """Spectra of as many mock plates; fibres spread over the slit."""
    basis = eigen.Basis.load(config.resource("data/eigenbasis.npz"))
    settings = config.load().mock
    spectra = []
    for plate in range(4000, 4000 + 2 * plates, 2):
        got = observe_plate(seed, plate, 55000, np.linspace(1, 1000, fibres).astype(int), settings, basis)
        loglam = got["loglam0"][0] + 1e-4 * np.arange(got["flux"].shape[1])
        for i in range(fibres):
            row = {name: got[name][i] for name in PLANES}
            spectra.append(row | {"loglam": loglam, "class": got["class"][i], "z": got["z"][i], "kind": got["kind"][i]})
    return spectra


def measure(spectra: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Each of QUANTITIES per bin of EDGES, over all spectra; and `spread`, the 10-90 % range of ln sigma."""
    result = {name: np.zeros(len(EDGES) - 1) for name in (*QUANTITIES, "spread")}
    for i, (low, high) in enumerate(zip(EDGES[:-1], EDGES[1:], strict=True)):
        rows = [_one_bin(s, (s["loglam"] > np.log10(low)) & (s["loglam"] < np.log10(high))) for s in spectra]
        values = {name: np.array([row[name] for row in rows]) for name in QUANTITIES}
        kind = np.array([s["class"] for s in spectra])
        values["sigma"][~(values["flux"] < 1)] = np.nan
        for name in ("pull", "correlation"):
            values[name][kind == "QSO"] = np.nan
        values["flux"][(kind != "GALAXY") | (np.array([s["z"] for s in spectra]) < 0.15)] = np.nan
        for name in QUANTITIES:
            average = np.nanmean if name in ("unmeasured", "and_mask", "or_mask", "correlation") else np.nanmedian
            result[name][i] = average(values[name])
        result["spread"][i] = np.ptp(np.log(np.nanpercentile(values["sigma"], [10, 90])))
    return result


def _one_bin(s: dict[str, np.ndarray], inside: np.ndarray) -> dict[str, float]:
    flux, ivar, model = (s[name][inside].astype(np.float64) for name in ("flux", "ivar", "model"))
    pull = (flux - model) * np.sqrt(ivar)
    pull = (pull - median_filter(pull, 51))[ivar > 0]
    width = 1.4826 * np.median(np.abs(pull)) if pull.size else np.nan
    pull = np.clip(pull, -4 * width, 4 * width)
    return {
        "flux": np.median(flux),
        "sigma": np.median(ivar[ivar > 0] ** -0.5) if (ivar > 0).any() else np.nan,
        "sky": np.median(s["sky"][inside]), "wdisp": np.median(s["wdisp"][inside]),
        "response": _response(flux, ivar), "pull": np.std(pull),
        "correlation": np.mean(pull[1:] * pull[:-1]) / np.mean(pull**2),
        "unmeasured": np.mean(ivar <= 0), "and_mask": np.mean(s["and_mask"][inside] != 0),
        "or_mask": np.mean(s["or_mask"][inside] != 0),
    }


def _response(flux: np.ndarray, ivar: np.ndarray) -> float:
    """Slope of ln variance against flux in sigma, pixel by pixel; NaN with too few pixels."""
    smooth = median_filter(ivar, 31)
    good = (ivar > 0) & (smooth > 0)
    if good.sum() < 60:
        return np.nan
    excess = -np.log(ivar[good] / smooth[good])
    sigmas = ((flux - median_filter(flux, 31)) * np.sqrt(smooth))[good]
    usual = (np.abs(excess) < 1) & (np.abs(sigmas) < 3)
    return np.polyfit(sigmas[usual], excess[usual], 1)[0]


def table(real: dict[str, np.ndarray], mock: dict[str, np.ndarray]) -> str:
    """Real / mock of every quantity, one line per bin."""
    names = (*QUANTITIES, "spread")
    out = ["  Angstrom " + "".join(f"{name:>16}" for name in names)]
    for i, low in enumerate(EDGES[:-1]):
        cells = "".join(f"{real[name][i]:>8.3f}/{mock[name][i]:<7.3f}" for name in names)
        out.append(f"{low:>5}-{EDGES[i + 1]:<5}{cells}")
    return "\n".join(out)


def fit_quality(spectra: dict[str, np.ndarray], basis: eigen.Basis) -> np.ndarray:
    """(n, 4): S/N per pixel, scatter, chi2 per pixel, largest |matched-filter S/N| of galaxies in the window.

    `spectra` has flux, ivar, and_mask (n, n_pix) and z (n,).
    """
    conf = config.load()
    first, _ = spectrum.window_pixels(conf.read.window)
    planes = [spectra[name] for name in ("flux", "ivar", "and_mask", "z")]
    prepared = spectrum.prepare(*planes, basis, conf.input, first)
    out = np.full((len(planes[0]), 4), np.nan)
    peak = np.abs(matched_filter.snr(prepared.residual, prepared.ivar)).max(axis=1)
    for i, (flux, residual, ivar) in enumerate(zip(planes[0], prepared.residual, prepared.ivar, strict=True)):
        good = ivar > 0
        if good.any():
            pull = (residual * np.sqrt(ivar))[good]
            snr = np.median((flux * np.sqrt(ivar))[good])
            out[i] = snr, 1.4826 * np.median(np.abs(pull)), np.mean(pull**2), peak[i]
    return out


def fibre_loss(unit: boss.Unit) -> float:
    """By how many magnitudes the median flux density of 6900-8200 A is fainter than the photometric i (AB)."""
    got = boss.read_unit(unit, ("flux",), (6900.0, 8200.0))
    mag_i = got.columns["mag_i"][0]
    flux = np.median(got.planes["flux"]) * 1e-17
    return np.nan if mag_i is None or flux <= 0 else -2.5 * np.log10(flux * 7500.0**2) - 2.408 - mag_i


def compare_fits(folders: list[Path], basis: eigen.Basis) -> None:
    """Prints `fit_quality` of real quiescent galaxies one by one, and of mock ones in bins of S/N."""
    conf = config.load()
    print(f"fit with: {basis.provenance}\n{'':32}     z   S/N  scatter  chi2  peak  loss")
    for unit in (unit for folder in folders for unit in boss.survey_files(str(folder)).units):
        got = boss.read_unit(unit, window=conf.read.window)
        if len(got) and (got.columns["class"][0], got.columns["subclass"][0]) == ("GALAXY", ""):
            z = np.array(got.columns["z"], float)
            (row,) = fit_quality(got.planes | {"z": z}, basis)
            if row[0] > 2:
                print(f"{Path(unit.path).name:<32}{z[0]:6.3f}{row[0]:6.1f}{row[1]:9.2f}{row[2]:6.2f}{row[3]:6.1f}"
                      f"{fibre_loss(unit):6.2f}")
    mine = eigen.Basis.load(config.resource("data/eigenbasis.npz"))
    pixels = spectrum.window_pixels(conf.read.window)
    mock = observe_plate(3, 4002, 56600, np.arange(1, 1001), conf.mock, mine, *pixels)
    quiet = (mock["kind"] == "clean") & (np.abs(mock["z"] - mock["z_lens"]) < 0.002)
    rows = fit_quality({name: mock[name][quiet] for name in ("flux", "ivar", "and_mask", "z")}, basis)
    for low, high in ((2, 4), (4, 8), (8, 99)):
        chosen = rows[(rows[:, 0] > low) & (rows[:, 0] <= high)]
        snr, scatter, chi2, peak = np.median(chosen, axis=0)
        print(f"{f'{len(chosen)} mock galaxies, medians':<38}{snr:6.1f}{scatter:9.2f}{chi2:6.2f}{peak:6.1f}")


def plot(real: list, mock: list, path: str) -> None:
    """Two real and two mock galaxies, their error, and the binned comparison."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 2, figsize=(13, 12))
    galaxies = [
        [s for s in group if s["class"] == "GALAXY" and 0.15 < s["z"] < 0.7 and s.get("kind", "clean") == "clean"]
        for group in (real, mock)
    ]
    pairs = zip(*([sorted(group, key=lambda s: -np.median(s["flux"]))[:40] for group in galaxies]), strict=False)
    for column, pair in zip((0, 1), list(pairs)[:2], strict=False):
        for row, (s, name) in enumerate(zip(pair, ("real", "mock"), strict=True)):
            _plot_spectrum(axes[row, column], s, name)
    measured = measure(real), measure(mock)
    centres = np.sqrt(EDGES[:-1] * EDGES[1:])
    for ax, name in zip(axes[2:].flat, ("sigma", "pull", "sky", "or_mask"), strict=True):
        for values, label in zip(measured, ("real", "mock"), strict=True):
            ax.plot(centres, values[name], "o-" if label == "real" else "s--", label=label)
        ax.set(xlabel="wavelength [Å]", ylabel=name)
        ax.set_yscale("log" if name == "sigma" else "linear")
        ax.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=70)


def _plot_spectrum(ax, s: dict[str, np.ndarray], name: str) -> None:
    wave = 10 ** s["loglam"]
    inside = (wave > 3600) & (wave < 9300)
    good = inside & (s["ivar"] > 0)
    ax.plot(wave[good], s["flux"][good], lw=0.4, color="0.3", label=f"{name}, z = {s['z']:.3f}")
    ax.plot(wave[inside], s["model"][inside], lw=0.8, color="C1", label="model")
    ax.plot(wave[good], s["ivar"][good] ** -0.5, lw=0.4, color="C0", label="error")
    ax.set(ylim=(-1.5, 1.15 * np.percentile(s["flux"][good], 99.8)), ylabel="flux [1e-17 cgs/Å]")
    ax.legend(loc="upper left", fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spectra", required=True, type=Path)
    parser.add_argument("--plot")
    parser.add_argument("--galaxies", nargs="+", type=Path, default=[])
    parser.add_argument("--basis", default=config.resource("data/eigenbasis.npz"))
    args = parser.parse_args()
    real, mock = read_real(args.spectra), make_mock()
    print(f"{len(real)} real, {len(mock)} mock spectra; each cell real/mock")
    print(table(measure(real), measure(mock)))
    if args.plot:
        plot(real, mock, args.plot)
    if args.galaxies:
        compare_fits(args.galaxies, eigen.Basis.load(args.basis))


if __name__ == "__main__":
    main()
