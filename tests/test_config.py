"""Configuration: layers, and errors that name key, value and expectation."""

import dataclasses
import subprocess
import sys

import pytest

from lensspark import config
from lensspark.config import ConfigError


def test_defaults_are_complete_and_survive_a_round_trip():
    defaults = config.load()
    assert config.from_dict(defaults.as_dict()) == defaults
    assert (defaults.selection.z_min, defaults.vetting.min_line_snr, defaults.read.window) == (0.3, 6.0, (3800, 5000))


def test_paper_configuration_is_the_papers():
    paper = config.load([str(config.resource("conf/paper.toml"))])
    assert (paper.loss.kind, paper.training.epochs, paper.score.threshold) == ("focal", 20, 0.5)
    assert paper.input.channels == ("flux",) and paper.input.sky_lines == ()
    assert paper.vetting.overdensity_grow == 1 and not paper.vetting.overdensity_poisson


def test_files_overlay_in_order_and_settings_win(tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("[score]\nthreshold = 0.7\nbatch_size = 8\n")
    second.write_text("[score]\nthreshold = 0.8\n")
    got = config.load([str(first), str(second)], ["score.batch_size=16"])
    assert (got.score.threshold, got.score.batch_size) == (0.8, 16)
    assert config.load([str(second), str(first)]).score.threshold == 0.7


@pytest.mark.parametrize(("setting", "section", "name", "value"), [
    ("score.threshold=0.9", "score", "threshold", 0.9),
    ("score.threshold=1", "score", "threshold", 1.0),  # an integer does where a float is asked
    ("vetting.min_line_snr = 7.5", "vetting", "min_line_snr", 7.5),
    ("selection.sample=classical", "selection", "sample", "classical"),  # a bare word is a string
    ('selection.sample="all"', "selection", "sample", "all"),
    ("score.model=s3://bucket/a=b", "score", "model", "s3://bucket/a=b"),
    ("read.window=[3600, 5000.5]", "read", "window", (3600.0, 5000.5)),
    ("network.shortcuts=false", "network", "shortcuts", False),
    ("input.sky_lines=[]", "input", "sky_lines", ()),
])
def test_settings(setting, section, name, value):
    got = getattr(getattr(config.load(settings=[setting]), section), name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(("setting", "words"), [
    ("threshold=0.9", ["threshold=0.9", "section.key=value"]),
    ("score.threshold", ["score.threshold", "section.key=value"]),
    ("score.=1", ["score.=1", "section.key=value"]),
    ("scores.threshold=0.9", ["scores", "expected one of", "'score'"]),
    ("score.treshold=0.9", ["score.treshold", "expected one of", "'threshold'"]),
    ("score.threshold=high", ["score.threshold", "'high'", "float"]),
    ("score.threshold=true", ["score.threshold", "True", "float"]),
    ("score.threshold=1.1", ["score.threshold", "1.1", "0 to 1"]),
    ("score.threshold=nan", ["score.threshold", "nan", "0 to 1"]),
    ("score.batch_size=1.5", ["score.batch_size", "1.5", "int"]),
    ("score.batch_size=0", ["score.batch_size", "0", "1 to 100000"]),
    ("selection.sample=best", ["selection.sample", "'best'", "'published', 'classical', 'all'"]),
    ("network.shortcuts=1", ["network.shortcuts", "1", "bool"]),
    ("read.window=3800", ["read.window", "3800", "list"]),
    ("read.window=[3800]", ["read.window", "[3800]", "2 values"]),
    ("read.window=[3800, 50000]", ["read.window", "50000", "2500 to 12000"]),
    ("input.channels=[]", ["input.channels", "[]", "at least 1"]),
    ("input.channels=[1]", ["input.channels", "1", "str"]),
    ("network.pooled=['median']", ["network.pooled", "'median'", "'mean', 'max', 'flatten', 'heat'"]),
])
def test_a_wrong_setting_names_key_value_and_expectation(setting, words):
    with pytest.raises(ConfigError) as caught:
        config.load(settings=[setting])
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(("text", "words"), [
    ("[score\nthreshold = 1", ["cannot be read as TOML"]),
    ("threshold = 0.9", ["unknown section 'threshold'", "'score'"]),
    ("score = 0.9", ["unknown section 'score'"]),
    ("[scoring]\nthreshold = 0.9", ["unknown section 'scoring'"]),
    ("[score]\ncutoff = 0.9", ["unknown key score.cutoff", "'threshold'"]),
])
def test_a_wrong_file_is_named(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load([str(path)])
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(ConfigError, match="cannot be read as TOML"):
            config.load([str(path)])


def test_a_missing_key_is_named():
    tree = config.load().as_dict()
    del tree["vetting"]["min_line_snr"]
    with pytest.raises(ConfigError, match=r"vetting\.min_line_snr is missing"):
        config.from_dict(tree)


def test_a_configuration_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load().score.threshold = 0.1


def test_every_default_has_limits_or_needs_none():
    """Every number is limited, so that a slip of the pen cannot start a run."""
    for section in dataclasses.fields(config.Config):
        for item in dataclasses.fields(type(getattr(config.load(), section.name))):
            if "float" in str(item.type) or "int" in str(item.type):
                assert {"low", "high"} <= set(item.metadata), f"{section.name}.{item.name}"


def test_resources_that_do_not_ship_are_named():
    with pytest.raises(FileNotFoundError, match="conf/none.toml does not ship"):
        config.resource("conf/none.toml")


def test_contracts_load_no_heavy_library():
    code = ("import sys, lensspark.config, lensspark.schema, lensspark.svg, lensspark.report; "
            "sys.exit(', '.join({'pyspark', 'tensorflow', 'openvino', 'matplotlib'} & set(sys.modules)) or None)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
