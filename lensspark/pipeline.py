"""A run of the search, stage by stage: from a survey tree to ledger, candidates, quarantine, report and run card."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lensspark import blocks, catalogue, delta, gate, inference, ledger, manifest, report, schema, store, vetting
from lensspark.config import Config
from lensspark.lines import source_redshift
from lensspark.model import Model
from lensspark.progress import line
from lensspark.promotion import products
from lensspark.redaction import refuse_passwords
from lensspark.run import Run, claim, finished_card, promote
from lensspark.session import EXIT_DONE, EXIT_QUARANTINE
from lensspark.store import Rows
from lensspark.vetting import evidence, measuring
from lensspark.vetting.known import read_known

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)


def plan(spectra: str, out: str, settings: Config, resume: bool = False, incremental: bool = False) -> Run | None:
    """Everything that can be wrong with a run's arguments is found here, before Spark starts; takes the folder's lock.

    None if there is nothing to do (run.claim). The model's own input, network and window take the place of the
    configured ones: it knows no others. Raises ValueError if there are no spectra, no such model, engine or table of
    known lenses, if the run is marked production and the model has not passed the gate, or if `out` cannot be written,
    is in use, or holds another run.
    """
    refuse_passwords([("--spectra", spectra), ("--out", out),
                      *(("vetting.known_lenses", path) for path in settings.vetting.known_lenses)])
    model = Model.named(settings.score.model)
    gate.require(settings, model)
    inference.engine.choose(settings.score.engine)
    delta.check(settings)
    if incremental:
        delta.check_final(products(out))
    window = dataclasses.replace(settings.read, window=model.window)
    score = dataclasses.replace(settings.score, precision=gate.precision(settings, model))
    settings = dataclasses.replace(settings, read=window, input=model.input, network=model.network, score=score)
    lenses = read_known(settings.vetting.known_lenses)
    start = time.monotonic()
    listed = manifest.of_survey(spectra, settings.read, settings.vetting.known_lenses)
    log.info(line("list", seconds=time.monotonic() - start, files=len(listed.survey.units), spectra=spectra))
    run = Run(spectra, out, model, settings, listed.sha256, model.sha256, lenses, manifest=listed)
    return run if claim(run, resume, incremental) else None


def predict(spark: SparkSession, run: Run) -> int:
    """The whole search; the exit code. A second call for the same run replaces its products."""
    with run.working(spark):
        if run.manifest.survey.catalogues:
            with run.stage("join") as facts:
                run.manifest = run.manifest.joined()
                facts["catalogues"] = len(run.manifest.survey.catalogues)
        with run.stage("score") as facts:
            tables, told = score(spark, run)
            facts |= told
            rows = Rows(spark, tables, schema.SCORED)
        with run.stage("measure") as facts:
            lines = evidence.at_stake(rows, run.config)
            lines, facts["hits"] = measure(rows, lines, run)
        check_unaltered(run)
        with run.stage("vet") as facts:
            n_quarantined = write_quarantine(spark, tables, run)
            written, funnel = write_verdicts(rows, lines, n_quarantined, run)
            facts |= funnel["counts"]
        run.manifest.write(run.path(manifest.NAME))
        return publish(spark, run, written, funnel)


def score(spark: SparkSession, run: Run) -> tuple[list[str], dict[str, Any]]:
    """The tables (schema.SCORED) of the survey, and what there is to tell; what the former run knows is not read."""
    if run.former is None:
        return blocks.score(spark, run, run.manifest.survey.units)
    found = manifest.changes(run.former, run.manifest)
    todo = [unit for unit in run.manifest.survey.units if manifest.key_of(run.manifest, unit) not in found.same]
    run.facts["incremental"] = {"former_run_id": finished_card(run.out)["run_id"], **found.counts}
    tables, facts = blocks.score(spark, run, todo)
    store.write(carried(spark, run, found), table := run.path("_carried"))
    return [*tables, table], facts | found.counts


def carried(spark: SparkSession, run: Run, found: manifest.Changes) -> DataFrame:
    """schema.SCORED of the files that are the same, from the former run's ledger and quarantine."""
    from pyspark.sql import functions as F

    def rows(table: schema.Table, name: str) -> DataFrame:
        df = store.read(spark, run.product(name), table.struct_type())
        return schema.SCORED.conform(df.select(*(column for column in table.names if column in schema.SCORED.names)))

    old, new = run.former, run.manifest
    gone = {old.absolute(key[0]) for key in old.rows() if key[1] in manifest.SEARCHED and key not in found.same}
    paths = spark.createDataFrame([(path,) for path in sorted(gone)], "path string")
    both = rows(schema.LEDGER, "ledger").unionByName(rows(schema.QUARANTINE, "quarantine"))
    kept = both.join(F.broadcast(paths), on="path", how="left_anti")
    if old.root != new.root:
        below = F.substring("path", len(old.root) + 1, 10_000)
        inside = F.col("path").startswith(f"{old.root}/")
        kept = kept.withColumn("path", F.when(inside, F.concat(F.lit(new.root), below)).otherwise(F.col("path")))
    return kept.select(*schema.SCORED.names)


def measure(rows: Rows, lines: pa.Table, run: Run) -> tuple[pa.Table, int]:
    """`lines` with what their spectra, and those of their neighbours and repeats among `rows`, say of the hits among
    them; and how many hits they are."""
    every = lines.to_pandas()
    hits = every[measuring.is_hit(every, run.config)]
    wanted = measuring.targets(rows, hits, run.config)
    found = measuring.measured(rows.spark, run.manifest.survey, wanted, run.model, run.config)
    measured = every[measuring.KEY].merge(measuring.gathered(wanted, found, run.config), on=measuring.KEY, how="left")
    return evidence.attach(lines, measured.drop(columns=measuring.KEY)), len(hits)


def check_unaltered(run: Run) -> None:
    """Raises RuntimeError if a file that was listed is gone or another: what it gave may be half of the old one."""
    if paths := manifest.altered(run.manifest, run.spectra, run.config.read):
        raise RuntimeError(f"{len(paths)} files of {run.spectra} changed or went while they were searched, the first "
                           f"is {paths[0]}; --resume searches these again")


def write_verdicts(rows: Rows, lines: pa.Table, n_quarantined: int, run: Run) -> tuple[DataFrame, dict[str, Any]]:
    """Gathers the evidence for all hits, cuts, writes ledger and overdensity; the ledger and the funnel.

    rows: every spectrum, scored, or of a ledger; lines: those of them `at_stake`, hits with what was measured of them.
    """
    found = evidence.gather(rows, lines, run.known_lenses, run.config)
    write_overdensity(run, found.overdensity)
    written = write_ledger(rows, rows.spark.createDataFrame(found.hits), run)
    ranges = evidence.overdensity_ranges(found.overdensity, run.config.vetting.overdensity_bin_px)
    funnel = vetting.funnel(written, run.config, n_quarantined)
    return written, funnel | {"nulls": found.nulls, "overdensity": ranges}


def publish(spark: SparkSession, run: Run, rows: DataFrame, funnel: dict[str, Any]) -> int:
    """Candidates, report and run card of a vetted run, whose ledger is `rows`; the exit code."""
    with run.stage("publish") as facts:
        table = catalogue.candidates(rows)
        made = run.path("").rstrip("/")
        catalogue.write_products(made, table)
        for name in ("ledger", "quarantine"):  # whoever lists its folder, as Delta does, must see what its list says
            store.tidy(run.path(name))
        if run.config.output.format == "delta":
            delta.convert(spark, made)
        facts["candidates"] = len(table)
    with run.stage("report"):
        report.make(spark, run, rows, table, funnel)
    return finish(run, funnel)


def write_quarantine(spark: SparkSession, tables: Sequence[str], run: Run) -> int:
    """The faults in `tables`, schema.SCORED or QUARANTINE, as the run's quarantine; how many they are."""
    path, columns = run.path("quarantine"), schema.QUARANTINE.struct_type()
    write = store.writer(path)

    def faults(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found = (batch.filter(pc.is_valid(batch["reason"])) for batch in batches)
        return write(batch for batch in found if len(batch))

    return store.finish(store.map_rows(spark, tables, columns, faults, store.FILES.ddl), path, columns)


def write_ledger(rows: Rows, hits: DataFrame, run: Run) -> DataFrame:
    """Vets `hits`, with all that the cuts read, and writes the ledger of all `rows`, by plate; the ledger."""
    from pyspark.sql import functions as F

    vetted = vetting.vet(hits, run.config).withColumn("z_source", source_redshift(F.col("line_wave")))
    ledger.write(rows, schema.LEDGER.conform(vetted), run)
    return store.read(rows.spark, run.path("ledger"), schema.LEDGER.struct_type())


def write_overdensity(run: Run, table: pd.DataFrame) -> None:
    """RUN/overdensity/: the bins and groups that were compared, one Parquet file."""
    import io

    stream = io.BytesIO()
    table.astype({"bin": "int64", "n": "int64", "flagged": bool}).to_parquet(stream, index=False)
    catalogue.write_file(run.path("overdensity/overdensity.parquet"), stream.getvalue())


def finish(run: Run, funnel: dict[str, Any]) -> int:
    """Writes run.json, puts the result into its place, and says how the run ended."""
    facts = {"run_id": run.run_id, "spectra": run.spectra, "model": run.config.score.model, **run.facts}
    card = catalogue.run_card(funnel, run.configuration, run.model_sha256, run.manifest_sha256, run.timings, **facts)
    catalogue.write_run_card(run.path("").rstrip("/"), card)
    promote(run)
    counts = card["counts"]
    log.info(line("done", seconds=sum(run.timings.values()), run_id=run.run_id, **counts))
    if sys.stderr.isatty():
        log.info("hits\n%s", vetting.funnel_text(funnel))
    limit, share = run.config.limits.max_quarantine_fraction, counts["n_quarantined"] / max(counts["n_input"], 1)
    if share > limit:
        log.warning("%.2f %% of the input is quarantined, above limits.max_quarantine_fraction = %g %%: see %s",
                    100 * share, 100 * limit, run.product("quarantine"))
        return EXIT_QUARANTINE
    return EXIT_DONE
