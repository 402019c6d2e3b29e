"""The report of a run, RUN/report/: the page, its dossiers, and injected fakes for a blind test of the inspector."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lensspark import catalogue, schema
from lensspark.report.page import render, write_report

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from lensspark.run import Run

__all__ = ["make", "render", "write_report"]

log = logging.getLogger(__name__)

MAX_HITS = 200_000  # rows of three numbers for the histograms; beyond that a sample, drawn by a hash of the key


def make(spark: SparkSession, run: Run, ledger: DataFrame, candidates: pd.DataFrame, funnel: dict[str, Any]) -> None:
    """Writes RUN/report/ of a vetted `ledger`: the page with its best `candidates`, and the key of the fakes, if any.

    candidates: schema.CANDIDATES in rank order; funnel: vetting.funnel's.
    """
    from lensspark.report.blind import make_blind
    from lensspark.report.spectra import candidate_spectra

    facts = catalogue.run_card(funnel, run.configuration, run.model_sha256, run.manifest_sha256, run.timings,
                               run_id=run.run_id)
    table = candidates.head(run.config.report.max_candidates)
    hits = sample_of_hits(ledger)
    blind = None
    if run.config.report.blind_fakes and run.model is None:
        log.warning("report.blind_fakes = %d: no fakes, since the run's survey or model is not at hand",
                    run.config.report.blind_fakes)
    elif run.config.report.blind_fakes:
        blind = make_blind(spark, run, ledger)
        catalogue.write_file(run.path("report/blind_key.csv"), blind.key.to_csv(index=False).encode())
    shown = candidate_spectra(spark, run, table) if run.model is not None else {}
    write_report(run.path("report/index.html"), table, shown, facts, hits, blind, overdensity_bins(run))


def overdensity_bins(run: Run) -> pd.DataFrame:
    """schema.OVERDENSITY of the run, as pipeline.write_overdensity left it."""
    import fsspec
    import pandas as pd

    with fsspec.open(run.path("overdensity/overdensity.parquet")) as file:
        return pd.read_parquet(file)


def sample_of_hits(ledger: DataFrame, number: int = MAX_HITS) -> pd.DataFrame:
    """line_wave, z_lens and veto of `number` hits, whatever plates they are from; of all if there are no more."""
    from pyspark.sql import functions as F

    drawn = ledger.where("is_hit").orderBy(F.xxhash64(*(column.name for column in schema.KEY))).limit(number)
    return drawn.select("line_wave", "z_lens", "veto").toPandas()
