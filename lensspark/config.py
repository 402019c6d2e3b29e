"""Configuration: TOML files laid over each other, checked, as frozen dataclasses.

`conf/default.toml` documents every key with its unit and reason; this module declares the types and limits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import shutil
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from lensspark.checked import ConfigError, between, field, one_of, section


def resource(name: str) -> Path:
    """Path of a file that ships with lensspark: `conf/default.toml`, `models/default`, ...

    Installed, everything lies inside the package; in a checkout conf/ and jobs/ lie beside it; of a zip on sys.path
    (--py-files) the files are unpacked into a folder of the user's own. Raises FileNotFoundError.
    """
    package = _unpacked(Path(__file__).resolve().parent)
    for folder in (package, package.parent):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} does not ship with lensspark (looked in {package} and {package.parent})")


@functools.cache
def _unpacked(package: Path) -> Path:
    """`package`, or where it lies in a zip, a copy on disk named by the zip's hash and shared by all its users."""
    archive = next((parent for parent in package.parents if parent.is_file()), None)
    if archive is None:
        return package
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"lensspark-{os.getuid()}-{digest}"
    if not folder.exists():
        scratch = tempfile.mkdtemp(dir=folder.parent)
        with zipfile.ZipFile(archive) as members:
            members.extractall(scratch)
        try:
            os.rename(scratch, folder)
        except OSError:  # another worker was first
            shutil.rmtree(scratch)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to user {folder.stat().st_uid}; expected {os.getuid()}")
    return folder / package.relative_to(archive)


@dataclass(frozen=True)
class Run:
    production: bool = field()
    gate: str = field()


@dataclass(frozen=True)
class Read:
    layout: str = field(**one_of("auto", "spplate", "lite"))
    window: tuple[float, ...] = field(**between(2500, 12000), length=2)
    max_rows_per_batch: int = field(**between(1, 10_000))
    target_partition_mb: int = field(**between(1, 100_000))
    block_mb: int = field(**between(1, 10_000_000))
    fingerprint: str = field(**one_of("time", "content"))


@dataclass(frozen=True)
class Selection:
    sample: str = field(**one_of("published", "classical", "all"))
    z_min: float = field(**between(-1, 10))
    max_sky_chi2: float = field(**between(0, 1e6))


@dataclass(frozen=True)
class Input:
    channels: tuple[str, ...] = field(low_length=1)
    bad_pixel_bits: tuple[int, ...] = field(**between(0, 31))
    bad_fibre_bits: tuple[int, ...] = field(**between(0, 31))
    lens_lines: tuple[float, ...] = field(**between(500, 12000))
    lens_line_half_width_px: int = field(**between(0, 100))
    sky_lines: tuple[float, ...] = field(**between(2500, 12000))
    sky_line_half_width_px: int = field(**between(0, 100))
    fit_components: int = field(**between(1, 100))
    fit_poly_terms: int = field(**between(0, 10))
    fit_passes: int = field(**between(1, 5))
    fit_clip_sigma: float = field(**between(1, 100))
    brightest_snr: float = field(**between(0, 1000))
    min_usable_fraction: float = field(**between(0, 1))


@dataclass(frozen=True)
class Network:
    channels: tuple[int, ...] = field(**between(1, 4096), low_length=1)
    convolutions_per_block: int = field(**between(1, 10))
    kernel: int = field(**between(1, 101))
    stem_stride: int = field(**between(1, 8))
    position_offsets: bool = field()
    normalise: bool = field()
    dropout: float = field(**between(0, 0.95))
    shortcuts: bool = field()
    pooled: tuple[str, ...] = field(**one_of("mean", "max", "flatten", "heat"), low_length=1)
    hidden: tuple[int, ...] = field(**between(1, 10_000))
    heat_block: int = field(**between(1, 8))


@dataclass(frozen=True)
class Loss:
    kind: str = field(**one_of("cross_entropy", "focal", "literal"))
    gamma: float = field(**between(0, 10))
    alpha: float = field(**between(0, 1))
    position_weight: float = field(**between(0, 100))


@dataclass(frozen=True)
class Training:
    epochs: int = field(**between(1, 10_000))
    batch_size: int = field(**between(1, 100_000))
    precision: str = field(**one_of("auto", "f32", "bf16"))
    calibrate: bool = field()
    learning_rate: float = field(**between(1e-8, 1))
    final_learning_rate: float = field(**between(0, 1))
    warmup_steps: int = field(**between(0, 10**6))
    weight_decay: float = field(**between(0, 1))
    seed: int = field(**between(0, 2**31))
    validation_plates: float = field(**between(0, 0.9))
    test_plates: float = field(**between(0, 0.9))
    mlflow: str = field()


@dataclass(frozen=True)
class Score:
    model: str = field()
    threshold: float = field(**between(0, 1))
    engine: str = field(**one_of("auto", "openvino", "tensorflow"))
    precision: str = field(**one_of("auto", "f32", "bf16"))
    batch_size: int = field(**between(1, 100_000))
    min_snr: float = field(**between(-1e6, 1e6))
    null_fraction: float = field(**between(0, 1))
    null_seed: int = field(**between(0, 2**31 - 1))
    null_sky: bool = field()
    null_shift_fraction: float = field(**between(0, 1))


@dataclass(frozen=True)
class Vetting:
    min_line_peak: float = field(**between(-1e6, 1e6))
    min_line_snr: float = field(**between(-1e6, 1e6))
    max_mask_fraction: float = field(**between(0, 1))
    max_line_hits: int = field(**between(1, 10_000))
    line_hits_snr: float = field(**between(-1e6, 1e6))
    profile_half_width_px: int = field(**between(8, 100))
    noise_correlation: float = field(**between(0, 0.5))
    identity_priors: tuple[float, ...] = field(**between(0, 1), length=10)
    min_p_identity: float = field(**between(0, 1))
    cosmology: str = field(**one_of("WMAP5", "WMAP7", "WMAP9", "Planck13", "Planck15", "Planck18"))
    fibre_diameter: float = field(**between(0.1, 100))
    max_sn_oii_veto: float = field(**between(-1e6, 1e6))
    min_lens_line_px: float = field(**between(0, 100))
    max_p_sky: float = field(**between(0, 1))
    bad_zwarning_bits: tuple[int, ...] = field(**between(0, 31))
    min_p_lya: float = field(**between(0, 1))
    min_p_skew_positive: float = field(**between(0, 1))
    min_dchi2_skew: float = field(**between(-1e6, 1e6))
    max_dchi2_spike: float = field(**between(-1e6, 1e6))
    exposure_flux_loss: float = field(**between(0, 1))
    max_exposure_tension: float = field(**between(-1e6, 1e6))
    overdensity_min_p_line: float = field(**between(0, 1))
    overdensity_min_snr: float = field(**between(-1e6, 1e6))
    overdensity_bin_px: int = field(**between(1, 100))
    overdensity_median_bins: int = field(**between(1, 10_001))
    overdensity_grow: int = field(**between(0, 10))
    overdensity_poisson: bool = field()
    max_overdensity: float = field(**between(0, 1e6))
    min_p_overdensity: float = field(**between(0, 1))
    same_wave_px: float = field(**between(0, 100))
    min_p_same_wave: float = field(**between(0, 1))
    neighbour_fibres: int = field(**between(0, 10))
    neighbour_max_px: float = field(**between(0, 20))
    neighbour_min_snr: float = field(**between(0, 1e6))
    max_neighbour_ratio: float = field(**between(0, 1e6))
    repeat_radius: float = field(**between(0.01, 60))
    repeat_min_snr: float = field(**between(0, 1e6))
    repeat_flux_loss: float = field(**between(0, 1))
    max_repeat_tension: float = field(**between(0, 1e6))
    q_snr_edge: float = field(**between(-1e6, 1e6))
    max_q_value: float = field(**between(0, 1))
    known_lenses: tuple[str, ...] = field()
    known_lens_radius: float = field(**between(0.01, 60))


@dataclass(frozen=True)
class Limits:
    max_quarantine_fraction: float = field(**between(0, 1))
    keep_former: int = field(**between(0, 1000))


@dataclass(frozen=True)
class Report:
    max_candidates: int = field(**between(0, 100_000))
    blind_fakes: int = field(**between(0, 10_000))
    blind_seed: int = field(**between(0, 2**31))


@dataclass(frozen=True)
class Output:
    format: str = field(**one_of("parquet", "delta"))


@dataclass(frozen=True)
class SurveyTraining:
    spectra: int = field(**between(1, 100_000_000))
    z_bin: float = field(**between(1e-4, 0.1))
    eigenvectors: int = field(**between(1, 50))
    min_galaxies: int = field(**between(2, 100_000))
    max_galaxies: int = field(**between(2, 10_000))
    max_borrowed_bins: int = field(**between(0, 100))
    smooth_px: float = field(**between(0, 10))
    clip_sigma: float = field(**between(1, 1000))
    max_chi2: float = field(**between(1, 1000))
    coefficients: str = field(**one_of("bootstrap", "gaussian"))
    noise: str = field(**one_of("sky", "paper"))
    convolve_lines: bool = field()
    sky_per_plate: int = field(**between(1, 1000))
    galaxies_per_plate: int = field(**between(1, 1000))
    basis_vectors: int = field(**between(1, 50))
    basis_galaxies: int = field(**between(2, 10_000_000))
    basis_iterations: int = field(**between(1, 1000))


@dataclass(frozen=True)
class Mock:
    lya: float = field(**between(0, 1))
    oii: float = field(**between(0, 1))
    airglow: float = field(**between(0, 1))
    cosmic: float = field(**between(0, 1))
    lens_line: float = field(**between(0, 1))
    crosstalk: float = field(**between(0, 1))
    sky: float = field(**between(0, 1))
    star: float = field(**between(0, 1))
    broad: float = field(**between(0, 1))
    repeat: float = field(**between(0, 1))
    symmetric: float = field(**between(0, 1))
    double_peaked: float = field(**between(0, 1))
    line_window: tuple[float, ...] = field(**between(3600, 10000), length=2)
    line_flux: tuple[float, ...] = field(**between(1e-6, 1e6), low_length=2)
    line_fwhm: tuple[float, ...] = field(**between(0, 10_000), length=2)
    min_line_fwhm: float = field(**between(0, 100))
    min_line_peak: float = field(**between(0, 1e6))
    line_snr: tuple[float, ...] = field(**between(0, 1e6))


@dataclass(frozen=True)
class Evaluation:
    injections: int = field(**between(1, 100_000))
    injected_snr: tuple[float, ...] = field(**between(0, 1e6), length=2)
    false_hit_rates: tuple[float, ...] = field(**between(1e-9, 1), low_length=1)
    excesses: tuple[float, ...] = field(**between(0, 100))
    lens_line: float = field(**between(0, 1e-2))
    airglow: float = field(**between(0, 1e-2))
    cosmic: float = field(**between(0, 1e-2))
    crosstalk: float = field(**between(0, 1e-2))


@dataclass(frozen=True)
class Config:
    """The whole configuration; `load` is the way to get one."""

    run: Run
    read: Read
    selection: Selection
    input: Input
    network: Network
    loss: Loss
    training: Training
    score: Score
    vetting: Vetting
    limits: Limits
    report: Report
    output: Output
    evaluation: Evaluation
    survey_training: SurveyTraining
    mock: Mock
    mock_training: Mock

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load(files: list[str] | tuple[str, ...] = (), settings: list[str] | tuple[str, ...] = ()) -> Config:
    """The defaults, overlaid by TOML `files` in order and then by `settings` such as "score.threshold=0.9".

    Raises ConfigError for a file that cannot be read, an unknown key, a wrong type or a value out of its limits.
    """
    return over(from_dict(_read_toml(resource("conf/default.toml"))), files, settings)


def over(base: Config, files: list[str] | tuple[str, ...] = (), settings: list[str] | tuple[str, ...] = ()) -> Config:
    """`base`, overlaid by TOML `files` in order and then by `settings`, as `load` overlays the defaults."""
    tree = base.as_dict()
    for file in files:
        _overlay(tree, _read_toml(Path(file)), str(file))
    for setting in settings:
        _overlay(tree, _parse_setting(setting), f"--set {setting}")
    return from_dict(tree)


def stored(tree: dict[str, Any]) -> Config:
    """The configuration that a run card holds; keys that are younger than it have their defaults."""
    base = _read_toml(resource("conf/default.toml"))
    _overlay(base, tree, "run.json")
    return from_dict(base)


def from_dict(tree: dict[str, Any]) -> Config:
    """A Config from nested dictionaries, such as `Config.as_dict` gives or a model's card holds; raises ConfigError."""
    return Config(**{name: section(kind, tree.get(name, {}), name) for name, kind in get_type_hints(Config).items()})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error


def _parse_setting(setting: str) -> dict[str, Any]:
    key, equals, text = setting.partition("=")
    part, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise ConfigError(f"--set {setting!r}: expected section.key=value")
    try:
        value = tomllib.loads(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    return {part: {name: value}}


def _overlay(tree: dict[str, Any], top: dict[str, Any], origin: str) -> None:
    for part, values in top.items():
        if part not in tree or not isinstance(values, dict):
            raise ConfigError(f"{origin}: unknown section {part!r}; expected one of {sorted(tree)}")
        for key, value in values.items():
            if key not in tree[part]:
                raise ConfigError(f"{origin}: unknown key {part}.{key}; expected one of {sorted(tree[part])}")
            tree[part][key] = value
