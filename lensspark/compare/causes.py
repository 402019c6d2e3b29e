"""Why a hit or candidate of two runs differs: named causes, decided from what the runs recorded.

Every change of a row is an effect: the spectrum is missing, a cut's verdict turned over, a measured value moved. For
each effect the causes that could have made it are listed; it is proven where one alone is left. Nothing is guessed:
where model and configuration both differ, a score that moved has two possible causes, and is said to have two.

No Spark here: rows are dictionaries with schema.CHANGES' columns of both sides, `name_a` and `name_b`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lensspark.compare.facts import OWN_SETTINGS, CutFacts, Differences, shown
from lensspark.spectrum import mask_bits

CAUSES = {
    "limit": "the same values, another limit",
    "data": "another input: files, catalogue or reduction",
    "mask": "other pixels are usable about the line",
    "model": "another model",
    "configuration": "another setting that is no cut's limit",
    "versions": "other versions of lensspark or what it computes with",
    "population": "the other hits of the run changed, and with them over-densities or the false-alarm rate",
    "known_lenses": "another table of known lenses",
    "people": "a person's grade",
    "unknown": "nothing that the runs recorded differs",
}
SAME = 1e-6  # relative: what is closer is the same value
CATALOGUE = ("ra", "dec", "class", "z", "zwarning", "sn_median", "z_lens")  # of the input, not of the search
SEARCH = ("read.layout", *OWN_SETTINGS, "selection.*", "score.engine", "score.precision")
_PROFILE = ("vetting.profile_half_width_px", "vetting.noise_correlation")
_IDENTITY = (*_PROFILE, "vetting.identity_priors")
_NEIGHBOUR = ("vetting.neighbour_*",)
_REPEAT = ("vetting.repeat_*",)
_COUNTED = ("vetting.overdensity_min_p_line", "vetting.overdensity_min_snr", "vetting.known_lens*")
_BINS = (*_COUNTED, "vetting.overdensity_bin_px", "vetting.overdensity_median_bins", "vetting.overdensity_grow",
         "vetting.overdensity_poisson", "read.window")
# Settings, beside SEARCH for what is measured in spectra, that a column depends on.
SETTINGS: dict[str, tuple[str, ...]] = {
    "n_line_hits": ("vetting.line_hits_snr",),
    **dict.fromkeys(("profile_chi2", "p_skew_positive", "dchi2_skew", "dchi2_spike"), _PROFILE),
    **dict.fromkeys(("p_lya", "p_sky", "sn_oii_veto"), _IDENTITY),
    "exposure_tension": (*_PROFILE, "vetting.exposure_flux_loss"),
    **dict.fromkeys(("n_neighbour", "neighbour_ratio"), _NEIGHBOUR),
    **dict.fromkeys(("n_repeat", "repeat_tension"), _REPEAT),
    **dict.fromkeys(("overdensity_lens", "overdensity_observed"), _BINS),
    **dict.fromkeys(("p_fibre", "p_plate", "p_night"), _COUNTED), "p_same_wave": (*_COUNTED, "vetting.same_wave_px"),
    "q_value": ("vetting.q_snr_edge", "score.threshold", "score.null_*"),
    "known_lens": ("vetting.known_lens*",),
}
# Settings of [vetting] that no cut reads, or only through another column.
NO_VERDICT = ("vetting.cosmology", "vetting.fibre_diameter", "vetting.min_p_identity")
POPULATION = frozenset(name for name in SETTINGS if name.startswith(("overdensity_", "p_fibre", "p_plate", "p_night",
                                                                     "p_same_wave", "q_value")))
OTHER_SPECTRA = frozenset({"n_neighbour", "neighbour_ratio", "n_repeat", "repeat_tension"})


@dataclass(frozen=True)
class Effect:
    """One thing that changed, in words, and the causes that could be: name -> detail in words, most direct first."""

    what: str
    causes: dict[str, str]
    proven: bool


@dataclass(frozen=True)
class Explained:
    """The causes of a row's changes; see schema.CHANGES."""

    cause: str
    proven: bool
    causes: list[str]
    why: str


def explain(row: Mapping[str, Any], runs: Differences, cuts: Sequence[CutFacts]) -> Explained:
    """The causes of everything that changed in `row`: schema.CHANGES' `hit`, `moved` and both sides' columns, `in_a`,
    `in_b`, where a side has no such spectrum `fate` (its quarantine's reason) or `reduction` (its run2d), and where the
    runs know it `file`, how its file differs ("": not at all)."""
    effects = _effects(row, runs, cuts)
    names = list(dict.fromkeys(name for effect in effects for name in effect.causes))
    return Explained(names[0], all(effect.proven for effect in effects), names,
                     "; ".join(f"{effect.what}: {', or '.join(effect.causes.values())}" for effect in effects))


def _effects(row: Mapping[str, Any], runs: Differences, cuts: Sequence[CutFacts]) -> list[Effect]:
    if not (row["in_a"] and row["in_b"]):
        return [_missing(row, runs)]
    if row["hit"] != "kept":
        return [_of_hit(row, runs)]
    turned = row["veto_a"] ^ row["veto_b"]
    effects = [_of_cut(row, runs, cut) for cut in cuts if turned & cut.bit]
    moved = [name for name in ("line_wave", "p_line") if name in row["moved"].split(",")]
    return effects + [_effect(f"{name} {_both(row, name)}", _of_value(row, name, runs)) for name in moved]


def _missing(row: Mapping[str, Any], runs: Differences) -> Effect:
    """A spectrum that one run has no row of."""
    where = "B" if row["in_a"] else "A"
    if row.get("fate"):
        found = {"data": f"quarantined there: {row['fate']}"}
        if "lensspark" in runs.versions:  # may have become stricter
            found["versions"] = _versions(runs, ["lensspark"])
        return _effect(f"no row in {where}", found)
    if row.get("reduction"):
        return _effect(f"no row in {where}", {"data": f"reduced as run2d {row['reduction']} there"})
    listed = "" if runs.input else ", though both runs list the same files"
    found = {"data": f"not in the input there{listed}"}
    if layout := runs.keys(("read.layout",)):
        found["configuration"] = _settings(runs, layout)
    return _effect(f"no row in {where}", found)


def _of_hit(row: Mapping[str, Any], runs: Differences) -> Effect:
    """A spectrum that both runs have, and that is a hit in one of them."""
    scored = [_known(row[f"p_line_{side}"]) for side in "ab"]
    if all(scored):
        threshold = CutFacts(0, "hit", ("p_line",), "p_line", "score.threshold")
        return _of_cut(row, runs, threshold)
    side = "b" if scored[0] else "a"
    because = row[f"not_selected_because_{side}"] or "not selected"
    pixels = "too_few_usable_pixels" in because
    found = _data(row, runs, mask=pixels)
    if pixels and runs.model:
        found["model"] = _model(runs)
    if keys := runs.keys(("selection.*", *(("input.*",) if pixels else ()))):
        found["configuration"] = _settings(runs, keys)
    if "lensspark" in runs.versions:
        found["versions"] = _versions(runs, ["lensspark"])
    return _effect(f"not scored in {side.upper()} ({because})", found)


def _of_cut(row: Mapping[str, Any], runs: Differences, cut: CutFacts) -> Effect:
    """A cut that passes in one run only."""
    a, b = row[f"{cut.value}_a"] if cut.value else None, row[f"{cut.value}_b"] if cut.value else None
    fails = "fails" if _fails(row, cut) else "passes"
    what = f"{cut.name} {fails}" if cut.bit else ("above the threshold" if fails == "passes" else "below the threshold")
    if cut.name == "human":
        return _effect(what, {"people": f"grade {_both(row, 'grade')}"})
    if cut.spares_known and _known(row["known_lens_a"]) != _known(row["known_lens_b"]):
        return _effect(f"{what}, as known lenses pass", _of_value(row, "known_lens", runs))
    changed = [name for name in dict.fromkeys((*cut.columns, cut.value)) if name and not _same(row, name)]
    limits = runs.configuration.get(cut.setting)
    by_limit = limits and _passes(a, cut, limits[0]) != _passes(a, cut, limits[1])
    by_limit = by_limit and _passes(b, cut, limits[0]) != _passes(b, cut, limits[1])
    if by_limit:
        limit = f"{cut.setting} {shown(limits[0])} → {shown(limits[1])} ({cut.value} {_both(row, cut.value)})"
        return Effect(what, {"limit": limit}, True)
    found: dict[str, str] = {}
    for name in changed:
        found = _of_value(row, name, runs, found)
    if limits:
        found["limit"] = f"{cut.setting} {shown(limits[0])} → {shown(limits[1])}"
        by_value = all(_passes(a, cut, limit) != _passes(b, cut, limit) for limit in limits)
        if changed and by_value:
            del found["limit"]
    if not changed and not found and "lensspark" in runs.versions:
        found["versions"] = _versions(runs, ["lensspark"])
    values = f" ({cut.value} {_both(row, cut.value)})" if cut.value in changed else ""
    return _effect(what + values, found)


def _fails(row: Mapping[str, Any], cut: CutFacts) -> bool:
    return bool(row["veto_b"] & cut.bit) if cut.bit else not row["is_hit_b"]


def _passes(value: Any, cut: CutFacts, limit: float | Sequence[int]) -> bool:
    if not _known(value):
        return cut.null_passes
    if isinstance(limit, (list, tuple)):  # bits that warn
        return not int(value) & mask_bits(tuple(limit))
    at_least = cut.setting.rpartition(".")[2].startswith("min_")
    if cut.setting == "score.threshold":
        return value > limit
    return value >= limit if at_least else value <= limit


def _of_value(row: Mapping[str, Any], name: str, runs: Differences, found: dict[str, str] | None = None
              ) -> dict[str, str]:
    """The causes that could have changed the column `name`, added to those `found`."""
    found = dict(found or {})
    own = runs.keys(SETTINGS.get(name, ()))
    if name == "known_lens":
        found["known_lenses"] = f"known_lens {_both(row, name)}"
        if own:
            found["known_lenses"] += f": {_settings(runs, own)}"
        return found if all(_same(row, place) for place in ("ra", "dec")) else found | _data(row, runs)
    if name in POPULATION:
        itself = [part for part in ("line_wave", "z_lens", "p_line", "line_snr") if not _same(row, part)]
        if itself:  # its own place among the others is another one
            found = _of_value(row, itself[0], runs, found)
        found["population"] = f"{name} {_both(row, name)} among other hits"
        if own:
            found["configuration"] = _settings(runs, own)
        return found
    found |= _data({**row, "file": None} if name in OTHER_SPECTRA else row, runs, mask=name not in OTHER_SPECTRA)
    if runs.model:
        found["model"] = _model(runs)
    if keys := [*runs.keys(SEARCH), *own]:
        found["configuration"] = _settings(runs, keys)
    if runs.computing:
        found["versions"] = _versions(runs, runs.computing)
    return found


def _data(row: Mapping[str, Any], runs: Differences, mask: bool = False) -> dict[str, str]:
    """`data`, and `mask` where the usable pixels about the line are others, if the input can be a cause at all."""
    found = {}
    moved = [name for name in CATALOGUE if not _same(row, name)]
    z_alone = moved == ["z_lens"] and bool(runs.keys(("selection.*",)))  # another of the catalogue's redshifts
    unit = row.get("file")
    if mask and not _same(row, "line_mask_fraction") and _same(row, "line_wave", 1e-4):
        found["mask"] = f"line_mask_fraction {_both(row, 'line_mask_fraction')}"
    if moved and not z_alone:
        found["data"] = ", ".join(f"{name} {_both(row, name)}" for name in moved)
    elif unit:
        found["data"] = f"its file differs: {unit}"
    elif runs.input and unit is None:
        found["data"] = "the input differs"
    return found


def _effect(what: str, found: dict[str, str]) -> Effect:
    if not found:
        return Effect(what, {"unknown": "nothing recorded differs (a file rewritten at its old size would not show)"},
                      False)
    roots = [name for name in found if name != "mask"]  # whichever it was, it is what changed the mask
    return Effect(what, found, len(roots) <= 1)


def _model(runs: Differences) -> str:
    a, b = runs.model or ("", "")
    return f"model {a[:12]} → {b[:12]}"


def _settings(runs: Differences, keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {shown(runs.configuration[key][0])} → {shown(runs.configuration[key][1])}" for key in keys)


def _versions(runs: Differences, names: Iterable[str]) -> str:
    return ", ".join(f"{name} {runs.versions[name][0]} → {runs.versions[name][1]}" for name in names)


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _same(row: Mapping[str, Any], name: str, tolerance: float = SAME) -> bool:
    a, b = row[f"{name}_a"], row[f"{name}_b"]
    if not (_known(a) and _known(b)):
        return _known(a) == _known(b)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-12)
    return a == b


def _both(row: Mapping[str, Any], name: str) -> str:
    a, b = (shown(row[f"{name}_{side}"]) for side in "ab")
    return a if a == b else f"{a} → {b}"
