"""What is known of two runs as wholes: their cuts, and what differs between their run cards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

# Packages that move numbers and compute none.
CARRIERS = frozenset({"fsspec", "pandas", "pyarrow", "pyspark"})
OWN_SETTINGS = ("read.window", "input.*", "network.*")  # the model brings them along (pipeline.plan)


@dataclass(frozen=True)
class CutFacts:
    """What is needed of a cut: its bit and name, the columns that it reads, the setting that is its limit.

    `value`: the column that the limit is about. `null_passes`: an unknown `value` is no reason to fail.
    """

    bit: int
    name: str
    columns: tuple[str, ...]
    value: str
    setting: str
    null_passes: bool = False
    spares_known: bool = False


@dataclass(frozen=True)
class Differences:
    """What differs between two runs as wholes; each a pair (of A, of B), or empty."""

    configuration: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # "section.key" -> values
    versions: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    model: tuple[str, str] | None = None
    input: tuple[str, str] | None = None
    grades: tuple[str, str] | None = None

    @classmethod
    def between(cls, a: Mapping[str, Any], b: Mapping[str, Any]) -> Differences:
        """Those of two run cards."""
        def pair(name: str) -> tuple[str, str] | None:
            one, other = a.get(name, ""), b.get(name, "")
            return None if one == other else (one, other)

        settings = [{f"{part}.{key}": value for part, keys in card["configuration"].items()
                     for key, value in keys.items()} for card in (a, b)]
        versions = [dict(card.get("versions", {})) for card in (a, b)]
        return cls(_unequal(*settings), _unequal(*versions), pair("model_sha256"), pair("input_manifest_sha256"),
                   pair("grades_sha256"))

    def keys(self, patterns: Iterable[str]) -> list[str]:
        """The settings that differ, of those that match one of `patterns`."""
        patterns = [p for p in patterns if not (self.model and p in OWN_SETTINGS)]
        return [key for key in self.configuration if any(fnmatch(key, pattern) for pattern in patterns)]

    @property
    def computing(self) -> list[str]:
        """Packages of another version that could change a number."""
        return [name for name in self.versions if name not in CARRIERS]


def _unequal(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys((*one, *other))
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def shown(value: Any) -> str:
    """A setting, version or measured value for people."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "none"
    return "none" if value is None else str(value)
