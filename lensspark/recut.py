"""A re-cut: new limits, and the verdicts of people, on a finished run, from its ledger alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lensspark import catalogue, config, delta, grades, identity, inference, manifest, pipeline, schema, store
from lensspark.catalogue import join
from lensspark.config import Config
from lensspark.model import Model
from lensspark.promotion import products
from lensspark.run import Run, claim, finished_card
from lensspark.vetting import CUTS, evidence
from lensspark.vetting.known import read_known

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

# What a re-cut may change: section -> keys, or None for all of them. Of [vetting] these are the limits of the cuts and
# what is made of the ledger's columns; everything else was used on spectra.
FREE = {
    "vetting": {*(cut.threshold for cut in CUTS), "min_p_identity", "overdensity_min_p_line", "overdensity_min_snr",
                "overdensity_bin_px", "overdensity_median_bins", "overdensity_grow", "overdensity_poisson",
                "same_wave_px", "q_snr_edge", "known_lenses", "known_lens_radius"},
    "score": {"threshold"}, "report": None, "limits": None,
    "output": None,
}
# What it takes over of a ledger; columns that are younger than the run are null.
KEPT = schema.Table("ledger", tuple(column for column in schema.LEDGER.columns if column.name not in (
    "veto", "run_id", "model_sha256", *evidence.COLUMNS)))


def plan(parent: str, out: str, files: list[str], settings: list[str], graded: str | None = None) -> Run:
    """The re-cut of the finished run in `parent`, its configuration overlaid by `files` and `settings`.

    Raises ValueError if there is no such run, if a setting needs a new search, if a table cannot be read, or if `out`
    cannot be written, is in use, or holds another run.
    """
    card = finished_card(parent)
    before = config.from_dict(card["configuration"])
    wanted = config.over(before, files, settings)
    _check_free(before, wanted)
    delta.check(wanted)
    delta.check_final(products(parent))
    facts: dict[str, Any] = {"parent": parent, "parent_run_id": card["run_id"]}
    people = None
    if graded:
        try:
            people = grades.read(graded)
        except OSError as error:
            raise ValueError(f"--grades {graded}: {error.strerror or error}") from error
        facts |= {"grades": graded, "grades_sha256": catalogue.digest(people.astype(str).to_numpy().tolist())}
    run = Run(card["spectra"], out, _model(card), wanted, card["input_manifest_sha256"], card["model_sha256"],
              read_known(wanted.vetting.known_lenses), people, card["run_id"], facts)
    claim(run)
    return run


def _check_free(before: Config, wanted: Config) -> None:
    old, new = before.as_dict(), wanted.as_dict()
    for section, values in new.items():
        for key, value in values.items():
            free = section in FREE and (FREE[section] is None or key in FREE[section])
            if value != old[section][key] and not free:
                raise ValueError(f"{section}.{key} = {value!r}: the run was made with {old[section][key]!r}, and "
                                 "another value needs a new search (jobs/predict.py)")
    asked, needed = inference.least_snr(before), inference.least_snr(wanted)
    if needed < asked:
        raise ValueError(f"score.threshold = {wanted.score.threshold} and vetting.overdensity_min_snr = "
                         f"{wanted.vetting.overdensity_min_snr} need the scores of lines of S/N {max(needed, 0):.3g}; "
                         f"the run has those from {asked:.3g} on, and others need a new search (jobs/predict.py)")


def _model(card: dict[str, Any]) -> Model | None:
    """The run's model, for the report's plots; None where it or the survey is not at hand any more."""
    try:
        model = Model.named(card["model"])
        found = manifest.of_survey(card["spectra"], config.from_dict(card["configuration"]).read).sha256
    except (ValueError, OSError) as error:
        log.info("the report will have no plots: %s", error)
        return None
    same = (model.sha256, found) == (card["model_sha256"], card["input_manifest_sha256"])
    if not same:
        log.info("the report will have no plots: the survey or the model is another one than that of the run")
    return model if same else None


def recut(spark: SparkSession, run: Run, parent: str) -> int:
    """Writes the re-cut's ledger, candidates, report and run card; the exit code."""
    place = products(parent)
    with run.working(spark):
        with run.stage("vet") as facts:
            n_quarantined = pipeline.write_quarantine(spark, [join(place, "quarantine")], run)
            rows = store.Rows(spark, [join(place, "ledger")], KEPT)
            lines = evidence.at_stake(rows, run.config)
            found = lines.to_pandas()
            found["identity"] = identified(found, run.config.vetting.min_p_identity)
            if run.grades is not None:
                found = graded(found, run.grades, run.config.score.threshold)
            lines = evidence.attach(lines, found[["identity", "grade", "comment"]])
            written, funnel = pipeline.write_verdicts(rows, lines, n_quarantined, run)
            facts |= funnel["counts"]
        return pipeline.publish(spark, run, written, funnel)


def graded(lines: pd.DataFrame, people: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """`lines` with the grades and comments of `people` (grades.read), in place of those that they have for its keys.

    Only those that were hits, and are at `threshold`, get them; the log tells of others: what never was a hit is the
    galaxy of an injected fake.
    """
    key = [column.name for column in schema.KEY]
    new = lines[key].merge(people[[*key, "grade", "comment"]], on=key, how="left").set_index(lines.index)
    hit = (lines["is_hit"] == True) & (lines["p_line"] > threshold)  # noqa: E712  null is not
    again = new["grade"].notna() & hit
    if rest := len(people) - again.sum():
        log.info("%d of %d grades are of no hit: of fakes, or of what is none any more", rest, len(people))
    return lines.assign(**{name: lines[name].where(~again, new[name]) for name in ("grade", "comment")})


def identified(lines: pd.DataFrame, min_p: float) -> pd.Series:
    """`identity` of `lines` anew from their probabilities: the most probable, or undecided below `min_p`; where there
    are none it stays."""
    p = lines[[f"p_{name}" for name in identity.NAMES]].astype(float).fillna(-1.0).to_numpy()
    best = p.max(axis=1, initial=-1.0)
    named = np.where(best >= min_p, np.array(identity.NAMES, object)[p.argmax(axis=1)], identity.UNDECIDED)
    return lines["identity"].where(best < 0, pd.Series(named, lines.index))
