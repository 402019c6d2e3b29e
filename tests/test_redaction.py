"""Secrets stay out of texts: URLs, the environment's secrets, log lines, error messages, tracebacks and cards."""

import json
import logging
import sys

import pytest

from lensspark import pipeline, redaction, session
from lensspark.catalogue import run_card
from lensspark.config import load
from lensspark.run import Run

SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.fixture
def environment(monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "FSSPEC_S3_SECRET", "AZURE_STORAGE_ACCOUNT_KEY", "SOME_TOKEN"):
        monkeypatch.setenv(name, SECRET + name)
    monkeypatch.setenv("FSSPEC_ABFS", json.dumps({"account_name": "sky-survey", "nested": {"sas_token": SECRET + "X"}}))
    monkeypatch.setenv("SHORT_PASSWORD", "spectra")


def test_the_environments_secrets_are_hidden_and_nothing_else(environment):
    for name in ("AWS_SECRET_ACCESS_KEY", "FSSPEC_S3_SECRET", "AZURE_STORAGE_ACCOUNT_KEY", "SOME_TOKEN", "X"):
        assert redaction.without_credentials(f"denied: {SECRET}{name}; spectra of sky-survey") == (
            "denied: ***; spectra of sky-survey")


@pytest.mark.parametrize(("text", "left"), [
    ("s3://user:pass@bucket/redux", "s3://bucket/redux"),
    ("cannot list https://a@host/x, ftp://b:c@host/y", "cannot list https://host/x, ftp://host/y"),
    ("https://host/a.fits?sig=abc%2F&se=2026", "https://host/a.fits?sig=***&se=2026"),
    ("https://host/?X-Amz-Signature=ab12&X-Amz-Security-Token=cd", "https://host/?X-Amz-Signature=***"
                                                                   "&X-Amz-Security-Token=***"),
    ("spec-3586@55181 of s3://bucket/a@b", "spec-3586@55181 of s3://bucket/a@b"),
])
def test_urls(text, left):
    assert redaction.without_credentials(text) == left
    assert redaction.without_credentials({"a": [text, (1, text)]}) == {"a": [left, (1, left)]}


@pytest.mark.parametrize("setting", ["spectra", "out", "known_lenses"])
def test_a_password_in_a_url_is_refused_and_not_repeated(setting, tmp_path):
    url = f"s3://user:{SECRET.replace('/', '')}@bucket/x"
    lenses = [url] if setting == "known_lenses" else []
    settings = load([], [f"vetting.known_lenses={lenses}"])
    spectra, out = (url if setting == name else str(tmp_path / name) for name in ("spectra", "out"))
    with pytest.raises(ValueError, match="holds a password") as refused:
        pipeline.plan(spectra, out, settings)
    assert SECRET[:8] not in str(refused.value)


@pytest.mark.parametrize("verbose", [[], ["--verbose"]])
def test_errors_and_tracebacks_of_a_job_hide_them(environment, verbose, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(session.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("LENSSPARK_SPARK_LOG", "error")  # --verbose sets it, for the rest of its process

    def work(args, config):
        raise OSError(f"403 for s3://user:pass@bucket with {SECRET}SOME_TOKEN")

    assert session.run_job(session.job_parser("A job."), work, verbose) == 1
    said = capsys.readouterr().err + "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert "403 for s3://bucket with ***" in said and SECRET not in said and "pass@" not in said


def test_log_lines_hide_them(environment):
    said = (f"s3://a:b@c {SECRET}SOME_TOKEN",)
    record = logging.LogRecord("lensspark", logging.INFO, "", 0, "reading %s", said, None)
    assert redaction.Formatter("%(message)s").format(record) == "reading s3://c ***"
    try:
        raise OSError(SECRET + "SOME_TOKEN")
    except OSError:
        record.exc_info = sys.exc_info()
    assert SECRET not in redaction.Formatter("%(message)s").format(record)


def test_cards_hide_them(environment):
    settings = load([], [f"vetting.known_lenses=['https://host/lenses.csv?token={SECRET}']"])
    run = Run("s3://user@bucket", "out", None, settings, "m", "s")
    counts = dict.fromkeys(("n_input", "n_quarantined", "n_scored", "n_not_selected", "n_hits", "n_non_hits",
                            "n_candidates", "n_vetoed"), 0)
    finished = run_card({"counts": counts}, settings.as_dict(), "s", "m", {}, spectra=run.spectra)
    for card in (run.card(), finished):
        assert SECRET not in json.dumps(card) and "user@" not in json.dumps(card)
        assert "token=***" in card["configuration"]["vetting"]["known_lenses"][0]
