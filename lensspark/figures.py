"""Pictures of figures of merit, drawn with matplotlib (the extra `plots`); each function writes one PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PANELS_ACROSS = 3


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def training_curves(history: list[dict[str, Any]], path: str | Path) -> None:
    """Loss and, at p_line > 0.5, accuracy and completeness by epoch (Li et al. 2018, Figure 6)."""
    epochs = np.arange(1, len(history) + 1)
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for key, label in (("line_loss", "training"), ("test_loss", "held-out plates")):
        left.plot(epochs, [entry[key] for entry in history], "o-", ms=3, label=label)
    left.set(xlabel="epoch", ylabel="loss of p_line", yscale="log")
    for key in ("accuracy", "completeness"):
        right.plot(epochs, [entry[key] for entry in history], "o-", ms=3, label=key)
    right.set(xlabel="epoch", ylabel="held-out plates, p_line > 0.5")
    for axes in (left, right):
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)  # above: no curve is there
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=120)


def _centres(bins: list[dict[str, Any]]) -> np.ndarray:
    return np.array([(b["snr"][0] + (b["snr"][1] or b["snr"][0] + 2)) / 2 for b in bins])


def detectors(result: dict[str, Any], path: str | Path) -> None:
    """Recall by S/N of each detector, by false-hit rate and kind of line-free spectra (detectors.side_by_side)."""
    panels = [(rate, free, at) for rate, kinds in result["rates"].items() for free, at in kinds.items()]
    across = len(next(iter(result["rates"].values())))
    figure = _figure(3.6 * across, 3.2 * len(result["rates"]))
    axes = figure.subplots(len(result["rates"]), across, sharex=True, sharey=True, squeeze=False).ravel()
    styles = {"p_line": ("C0", "o-", "network"), "matched_filter": ("C1", "s-", "matched filter"),
              "oracle": ("0.6", ":", "oracle")}
    for axis, (rate, free, at) in zip(axes, panels, strict=True):
        for name, found in at.items():
            colour, style, label = styles[name]
            axis.plot(_centres(found["recall"]), [b["recall"] for b in found["recall"]], style, color=colour, ms=4,
                      label=label)
        axis.set_title(f"false hits {rate}, {free}", fontsize=9)
        axis.set(ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.supxlabel("S/N of the line")
    figure.supylabel("recall within 3 px")
    figure.savefig(path, dpi=110)


def recovery(result: dict[str, Any], path: str | Path) -> None:
    """Recall of injected lines by S/N for each group of spectra, with errors (injection.recovery)."""
    figure = _figure(6, 4)
    axis = figure.subplots()
    for i, (group, found) in enumerate(result.items()):
        bins = found["recall"]
        axis.errorbar(_centres(bins) + 0.06 * (i - len(result) / 2), [b["recall"] for b in bins],
                      [b["error"] for b in bins], fmt="o-", ms=4, label=f"{group} ({found['spectra']:,} spectra)",
                      color={"mock": "0.3", "mock sky": "0.65"}.get(group))
    axis.set(xlabel="S/N of the injected line", ylabel="recall within 3 px", ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def spectra(panels: list[dict[str, Any]], path: str | Path) -> None:
    """A panel per spectrum: `title`, and (n_pix,) `wave`, `flux`, `sigma`, `model`; `at` marks a wavelength."""
    down = max(-(-len(panels) // PANELS_ACROSS), 1)
    figure = _figure(4.4 * PANELS_ACROSS, 2.3 * down)
    axes = figure.subplots(down, PANELS_ACROSS, squeeze=False).ravel()
    for axis in axes[len(panels):]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        shown = np.abs(panel["wave"] - panel["at"]) < 60
        wave, flux, sigma = (panel[name][shown] for name in ("wave", "flux", "sigma"))
        axis.fill_between(wave, flux - sigma, flux + sigma, color="0.85", lw=0)
        axis.plot(wave, flux, color="0.25", lw=0.8, drawstyle="steps-mid")
        axis.plot(wave, panel["model"][shown], color="C1", lw=1)
        axis.axvline(panel["at"], color="C0", lw=0.8, ls=":")
        axis.set_title(panel["title"], fontsize=8)
        axis.tick_params(labelsize=7)
    figure.supxlabel("wavelength [Å]", fontsize=9)
    figure.supylabel("flux density [1e-17 erg/s/cm²/Å]", fontsize=9)
    figure.savefig(path, dpi=110)
