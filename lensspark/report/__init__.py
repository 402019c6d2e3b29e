"""The report of a run, RUN/report/: the page, its dossiers, and injected fakes for a blind test of the inspector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lensspark import catalogue
from lensspark.report.page import render, write_report

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from lensspark.pipeline import Run

__all__ = ["make", "render", "write_report"]

MAX_HITS = 200_000  # rows of three numbers for the histograms; a sample beyond that


def make(spark: SparkSession, run: Run, ledger: DataFrame, candidates: pd.DataFrame, funnel: dict[str, Any]) -> None:
    """Writes RUN/report/ of a vetted `ledger`: the page with its best `candidates`, and the key of the fakes, if any.

    candidates: schema.CANDIDATES in rank order; funnel: vetting.funnel's.
    """
    from lensspark.report.blind import make_blind
    from lensspark.report.spectra import candidate_spectra

    facts = catalogue.run_card(funnel, run.configuration, run.model_sha256, run.manifest_sha256, run.timings)
    table = candidates.head(run.config.report.max_candidates)
    hits = ledger.where("is_hit").select("line_wave", "z_lens", "veto").limit(MAX_HITS).toPandas()
    blind = None
    if run.config.report.blind_fakes and run.model is not None:
        blind = make_blind(spark, run, ledger)
        catalogue.write_file(run.path("report/blind_key.csv"), blind.key.to_csv(index=False).encode())
    shown = candidate_spectra(spark, run, ledger, table) if run.model is not None else {}
    write_report(run.path("report/index.html"), table, shown, facts, hits, blind)
