"""The results in words: tables for people and docs/benchmarks.md, and a plot."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

PUBLISHED = 1_241_799 / (1.5 * 3600)  # spectra per second on a laptop's CPU (Li et al. 2018)
NOTES = {
    "read plate": "one spPlate's window of flux, ivar and mask", "pread": "the same bytes, and nothing else",
    "read lite": "lite files, the same", "astropy": "the same files with astropy: flux, ivar, mask, redshift",
    "prepare": "masks, galaxy fit, channels", "matched filter": "the classical search: fit, filter, highest peak",
    "locate": "position and flux of the line", "openvino f32": "network", "openvino bf16": "network",
    "keras predict": "network, all cores", "feed of the training": "reading and preparing by petastorm, one core",
    "training step f32": "all cores, feed for free", "training step bf16": "all cores, feed for free",
}


def table(results: dict[str, Any]) -> str:
    """Markdown tables of all that was measured."""
    parts = [_machine(results["machine"])]
    if "core" in results:
        rates = results["core"] | results["keras"] | results.get("training", {})
        rows = [[name, NOTES.get(name, ""), *_spread(rates[name])] for name in rates]
        parts.append(_markdown(["stage, one core", "", "spectra/s", "lowest to highest"], rows))
    if "scale" in results:
        parts += [_limits(results), _runs(results["scale"]["runs"]), _steady(results)]
    if "million" in results:
        parts.append(_runs(results["million"]))
    rows = [[what, run[what], f"{run['timings']['score']:.1f}", f"{run['seconds']:.1f}",
             f"{run['memory_mb'].get('worker', np.nan):.0f}"]
            for name, what in (("partitions", "partition_mb"), ("cold", "cache"))
            for run in results.get(name, [])]
    if rows:
        parts.append(_markdown(["half the plates", "", "score, s", "whole, s", "worker, MB"], rows))
    if "executors" in results:
        parts.append(_executors(results["executors"]))
    return "\n\n".join(parts) + "\n"


def steady(results: dict[str, Any], search: str) -> dict[str, float]:
    """Of the searches made like `search`: spectra per second of the largest; of what it has more than the next smaller,
    which start-up and other costs that do not grow leave alone; the limits; and the ratios."""
    runs = [run for run in results["scale"]["runs"] if run["search"] == search]
    least, most = sorted({run["plates"] for run in runs})[-2:]

    def middle(plates: int, of: str = "seconds") -> float:
        return median(run[of] if of == "seconds" else run["timings"][of] for run in runs if run["plates"] == plates)

    n = {run["plates"]: run["counts"]["n_input"] for run in runs}
    limits = {name: median(limit[name] for limit in results["scale"]["limits"][search])
              for name in results["scale"]["limits"][search][0]}
    more = n[most] - n[least]
    rate = more / (middle(most) - middle(least))
    scoring = more / (middle(most, "score") - middle(least, "score"))
    infer = limits["infer"] / limits["selected"]
    return {"plates": most, "whole": n[most] / middle(most), "steady": rate, "score": scoring, "read": limits["read"],
            "infer": infer, "search": limits["search"], "of_infer": rate / infer, "of_search": rate / limits["search"],
            "of_published": rate / PUBLISHED}


def _limits(results: dict[str, Any]) -> str:
    rows = []
    for search, found in results["scale"]["limits"].items():
        for name in ("read", "infer", "search"):
            rates = [limit[name] / (limit["selected"] if name == "infer" else 1) for limit in found]
            rows.append([f"{name}: {search}", *_spread(rates)])
    return _markdown(["all cores, no Spark", "spectra of input/s", "lowest to highest"], rows)


def _runs(runs: list[dict[str, Any]]) -> str:
    rows = []
    for run in runs:
        times, memory = run["timings"], run["memory_mb"]
        rows.append([run["plates"], run["search"], f"{run['seconds']:.1f}", f"{run['to_first_task']:.1f}",
                     *(f"{times[name]:.1f}" for name in ("score", "measure", "vet", "publish", "report")),
                     *(f"{memory.get(name, np.nan):.0f}" for name in ("driver", "jvm", "worker"))])
    return _markdown(["plates", "", "whole, s", "to first task", "score", "measure", "vet", "publish", "report",
                      "driver, MB", "JVM", "worker"], rows)


def _steady(results: dict[str, Any]) -> str:
    rows = []
    for search in results["scale"]["limits"]:
        found = steady(results, search)
        rows.append([search, *(f"{found[name]:,.0f}" for name in ("whole", "steady", "score", "infer", "search")),
                     *(f"{found[name]:.2f}" for name in ("of_infer", "of_search")), f"{found['of_published']:.0f}"])
    return _markdown(["spectra of input/s", "whole", "steady", "score, steady", "limit: infer", "limit: search",
                      "steady / infer", "steady / search", "times the published"], rows)


def _executors(runs: list[dict[str, Any]]) -> str:
    """Seconds of the stage `score` and of the whole, of each number of plates and of what the larger has more."""
    took = {(run["executors"], run["plates"]): np.array([run["timings"]["score"], run["seconds"]]) for run in runs}
    numbers, (least, most) = sorted({n for n, _ in took}), sorted({plates for _, plates in took})
    times = {n: np.concatenate([took[n, least], took[n, most], took[n, most] - took[n, least]]) for n in numbers}
    rows = [[n, *(f"{t:.1f}" for t in times[n])] for n in numbers]
    rows.append(["ratio", *(f"{t:.2f}" for t in times[numbers[0]] / times[numbers[-1]])])
    heads = [f"{which}: {what}" for which in (f"{least} plates", f"{most} plates", f"the {most - least} more")
             for what in ("score, s", "whole, s")]
    return _markdown(["executors of one core", *heads], rows)


def _machine(facts: dict[str, Any]) -> str:
    return (f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, "
            f"{', '.join(facts['units']) or 'no vector units known'}")


def _spread(rates: list[float]) -> tuple[str, str]:
    return f"{median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"


def _markdown(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Whole searches against the number of plates, with the limits."""
    if "scale" not in results:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for search, colour in zip(results["scale"]["limits"], ("#1f5fa8", "#c2571a", "#3a8f4d", "#7d4fa3"), strict=False):
        runs = [run for run in results["scale"]["runs"] if run["search"] == search]
        n = np.array(sorted({run["counts"]["n_input"] for run in runs}))
        took = [median(run["seconds"] for run in runs if run["counts"]["n_input"] == m) for m in n]
        axes.plot(n, took, "o-", color=colour, ms=5, label=f"whole search, {search}")
        limit = steady(results, search)["search"]
        axes.plot(n, n / limit, ":", color=colour, label=f"limit of all cores, {search}")
    axes.set(xlabel="spectra", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
