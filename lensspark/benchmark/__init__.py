"""How fast the search is, beside what the machine allows in the same run: mock plates in real size, limits, whole jobs.

`survey` writes the plates, `core` measures one core's stages and all cores' limits, `whole` runs jobs/predict.py,
`report` says what came out.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
from pathlib import Path
from typing import Any

from lensspark.benchmark import core, report, survey, whole
from lensspark.catalogue import versions, write_file
from lensspark.config import Config, over
from lensspark.model import Model

log = logging.getLogger(__name__)

# How whole searches are made; as they are by default the network sees only spectra that can be hits (score.min_snr).
SEARCHES = {"f32": ("score.precision=f32",), "bf16": ("score.precision=bf16",),
            "f32, every": ("score.precision=f32", "score.min_snr=0"),
            "bf16, every": ("score.precision=bf16", "score.min_snr=0")}
COPIES = 4  # of all plates, in the tree that shows what more spectra cost
PARTITION_MB = (128, 512, 2048)
MILLION = 1_000_000


def measure(out: Path, config: Config, plates: int, rounds: int, parts: tuple[str, ...], training: str | None) -> str:
    """Measures `parts`, writes benchmark.json, .md and .png below `out`; the table as text.

    Raises ValueError if `plates` or `rounds` are too few.
    """
    if plates < 16 or rounds < 1:
        raise ValueError(f"--plates {plates} --rounds {rounds}: expected 16 or more, and 1 or more")
    out = out.absolute()
    model, cores = Model.named(config.score.model), len(os.sched_getaffinity(0))
    log.info("writing %d plates below %s", plates, out)
    folder = survey.write(out / "survey", config, plates)
    results: dict[str, Any] = {"machine": machine(cores), "versions": versions(), "plates": plates, "rounds": rounds,
                               "model_sha256": model.sha256}
    steps = {"core": lambda: core.alternate(core.stages(folder, config, model), rounds),
             "keras": lambda: core.alternate({"keras predict": core.keras(folder, config, model)}, rounds),
             "scale": lambda: scale(out, folder, config, plates, rounds, cores),
             "partitions": lambda: partitions(out, survey.part(folder, plates // 2)),
             "cold": lambda: cold(out, survey.part(folder, plates // 2)),
             "executors": lambda: executors(out, folder, plates),
             "million": lambda: million(out, folder, config, plates),
             "training": lambda: core.alternate(core.training(Path(training), config), rounds, 1.0)}
    wanted = [name for name in steps if name in parts or (name == "training" and training)
              or (name == "keras" and "core" in parts)]
    for name in wanted:
        log.info("measuring %s", name)
        results[name] = steps[name]()
        write_file(str(out / "benchmark.json"), json.dumps(results, indent=1).encode())
    text = report.table(results)
    write_file(str(out / "benchmark.md"), text.encode())
    report.plot(results, out / "benchmark.png")
    return text


def machine(cores: int) -> dict[str, Any]:
    """What the figures are of."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = [unit for unit in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if unit in facts.get("flags", "").split()]
    return {"cpu": facts.get("model name", platform.processor()), "units": units, "cores": cores,
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)}


def sizes(plates: int) -> list[int]:
    """8, 16, ... and `plates`."""
    return sorted({*(8 * 2**i for i in range(20) if 8 * 2**i < plates), plates})


def scale(out: Path, folder: Path, config: Config, plates: int, rounds: int, cores: int) -> dict[str, Any]:
    """Limits of all cores and whole searches in turn, `rounds` times: of all plates, and of COPIES times as many, by
    links; once of fewer."""
    trees = {n: survey.part(folder, n) for n in sizes(plates)} | {COPIES * plates: survey.many(folder, COPIES)}
    found: dict[str, Any] = {"limits": {name: [] for name in SEARCHES}, "runs": []}
    for number in range(rounds):
        for name, settings in SEARCHES.items():
            found["limits"][name].append(core.together(folder, over(config, settings=settings), cores))
            smaller = sizes(plates)[:-1] if not number and "every" not in name else []
            for n in (*smaller, plates, COPIES * plates):
                found["runs"].append({"plates": n, "search": name, **_predict(out, trees[n], *settings)})
    return found


def partitions(out: Path, tree: Path) -> list[dict[str, Any]]:
    """Searches of `tree` with partitions of several sizes."""
    return [{"partition_mb": size, **_predict(out, tree, f"read.target_partition_mb={size}")} for size in PARTITION_MB]


def cold(out: Path, tree: Path) -> list[dict[str, Any]]:
    """A search of `tree` that the system's cache has forgotten, and one that it knows."""
    survey.forget(tree)
    return [{"cache": cache, **_predict(out, tree)} for cache in ("cold", "warm")]


def executors(out: Path, folder: Path, plates: int) -> list[dict[str, Any]]:
    """Searches of all plates and of a million spectra by one and by two executors of one core each."""
    trees = {plates: survey.part(folder, plates), plates * copies(plates): survey.many(folder, copies(plates))}
    return [{"executors": n, "plates": plates, **_predict(out, tree, master=f"local-cluster[{n},1,2048]")}
            for plates, tree in trees.items() for n in (1, 2)]


def million(out: Path, folder: Path, config: Config, plates: int) -> list[dict[str, Any]]:
    """A search of a million spectra and more: the plates under as many versions of the pipeline as that takes."""
    precision = config.score.precision
    found = _predict(out, survey.many(folder, copies(plates)), f"score.precision={precision}")
    return [{"plates": plates * copies(plates), "search": precision, **found}]


def copies(plates: int) -> int:
    """How often `plates` of 1,000 spectra make a million."""
    return math.ceil(MILLION / (1000 * plates))


def _predict(out: Path, tree: Path, *settings: str, master: str = "") -> dict[str, Any]:
    found = whole.predict(tree, out / "run", *settings, master=master)
    log.info("%s %s: %.1f s, score %.1f s", tree.name, " ".join((*settings, master)), found["seconds"],
             found["timings"]["score"])
    return found

