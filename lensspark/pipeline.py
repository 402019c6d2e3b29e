"""A run of the search, stage by stage: from a survey tree to ledger, candidates, quarantine, report and run card."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lensspark import catalogue, config, delta, inference, report, schema, source, vetting
from lensspark.boss import survey_files
from lensspark.catalogue import join
from lensspark.config import Config
from lensspark.lines import source_redshift
from lensspark.model import Model
from lensspark.selection import select
from lensspark.session import EXIT_DONE, EXIT_QUARANTINE, progress
from lensspark.vetting import evidence, measuring
from lensspark.vetting.known import read_known

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

SCORED = "_scored"  # names that begin with _ are tables of the work, removed at a run's end


@dataclass
class Run:
    """One search: what it reads, where it writes, with which model and configuration."""

    spectra: str
    out: str
    model: Model | None  # None: a re-cut whose model is not at hand
    config: Config
    manifest_sha256: str
    model_sha256: str = ""
    known_lenses: pd.DataFrame | None = None
    grades: pd.DataFrame | None = None  # of people, for a re-cut
    parent: str = ""  # run_id of the run that is cut again
    facts: dict[str, Any] = field(default_factory=dict)  # for run.json
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def configuration(self) -> dict[str, Any]:
        return self.config.as_dict()

    @property
    def run_id(self) -> str:
        of_its_own = catalogue.run_id(self.configuration, self.model_sha256, self.manifest_sha256)
        facts = {name: value for name, value in self.facts.items() if name.endswith("sha256")}
        return catalogue.digest([self.parent, of_its_own, facts])[:16] if self.parent else of_its_own

    def path(self, name: str) -> str:
        return join(self.out, name)

    def table(self, name: str) -> str:
        return spark_path(self.path(name))

    @contextmanager
    def stage(self, spark: SparkSession, name: str) -> Iterator[None]:
        """Times a stage and tells people where the run is."""
        log.info("%s ...", name)
        start = time.monotonic()
        with progress(spark, name):
            yield
        self.timings[name] = time.monotonic() - start
        log.info("%s: %.1f s", name, self.timings[name])


def spark_path(path: str) -> str:
    """`path` as Spark takes it: a local path stays local where the cluster's default file system is another."""
    return path if "://" in path or "DATABRICKS_RUNTIME_VERSION" in os.environ else Path(path).resolve().as_uri()


def finished_card(out: str) -> dict[str, Any]:
    """run.json of the finished run in `out`. Raises ValueError if there is none."""
    import fsspec

    try:
        with fsspec.open(join(out, "run.json")) as file:
            card = json.load(file)
        return card | {"configuration": config.stored(card["configuration"]).as_dict()}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{out}: no finished run: run.json: {error}") from error


def finished_run(out: str) -> Config:
    """The configuration of the finished run in `out`. Raises ValueError if there is none."""
    return config.from_dict(finished_card(out)["configuration"])


def plan(spectra: str, out: str, settings: Config) -> Run:
    """Everything that can be wrong with a run's arguments is found here, before Spark starts.

    The model's own input, network and window take the place of the configured ones: it knows no others. Raises
    ValueError if there are no spectra, no such model, engine or table of known lenses, or if `out` cannot be written or
    holds another run.
    """
    model = Model.named(settings.score.model)
    inference.engine.choose(settings.score.engine)
    delta.check(settings)
    window = dataclasses.replace(settings.read, window=model.window)
    settings = dataclasses.replace(settings, read=window, input=model.input, network=model.network)
    lenses = read_known(settings.vetting.known_lenses)
    run = Run(spectra, out, model, settings, manifest(spectra, settings.read.layout), model.sha256, lenses)
    claim(run)
    return run


def manifest(spectra: str, layout: str) -> str:
    """sha256 over the files of a survey tree: paths below their common folder, and sizes where the listing gives them.

    A mirror that moved, or is named by another path, keeps its manifest.
    """
    units = survey_files(spectra, layout).units
    log.info("%d files of spectra in %s", len(units), spectra)
    common = len(os.path.commonprefix([unit.path for unit in units]).rpartition("/")[0])
    return catalogue.digest([(unit.path[common:], unit.size, unit.kind) for unit in units])


def claim(run: Run) -> None:
    """Writes RUN/run.started.json, the mark of a run that is not finished; see `plan` for what it refuses."""
    import fsspec

    fs, place = fsspec.core.url_to_fs(run.out)
    mine = {"run_id": run.run_id, "model_sha256": run.model_sha256}
    try:
        if fs.exists(place) and fs.ls(place):
            _check_owner(fs, place, run, mine)
        catalogue.write_file(run.path("run.started.json"), json.dumps(mine).encode())
    except OSError as error:
        raise ValueError(f"--out {run.out}: cannot be written: {error.strerror or error}") from error


def _check_owner(fs: Any, place: str, run: Run, mine: dict[str, str]) -> None:
    for name in ("run.started.json", "run.json"):
        if fs.exists(join(place, name)):
            found = json.loads(fs.cat_file(join(place, name)))
            differing = [key for key in mine if found.get(key) != mine[key]]
            if differing:
                other, this = found.get(differing[-1]), mine[differing[-1]]
                raise ValueError(f"--out {run.out}: holds a run with another {differing[-1]} ({other}, this one's is "
                                 f"{this}); take a new folder")
            return
    raise ValueError(f"--out {run.out}: is not empty and holds no run; take a new folder")


def predict(spark: SparkSession, run: Run) -> int:
    """The whole search; the exit code. A second call for the same run replaces its products."""
    source.register(spark)
    with run.stage(spark, "score"):
        scored = inference.score(read_selected(spark, run), run.model, run.config)
        scored.write.mode("overwrite").parquet(run.table(SCORED))
    with run.stage(spark, "measure"):
        scored = spark.read.schema(schema.SCORED.struct_type()).parquet(run.table(SCORED))
        measured = measure(spark, scored, run)
    with run.stage(spark, "vet"):
        write_quarantine(scored.where("reason IS NOT NULL"), run)
        rows = evidence.attach(scored.where("reason IS NULL").drop("reason", "hdu"), measured)
        funnel = write_verdicts(spark, rows, run)
    return publish(spark, run, funnel)


def measure(spark: SparkSession, scored: DataFrame, run: Run) -> DataFrame:
    """What the spectra of hits, their neighbours and repeats say, one row per hit (vetting.measuring)."""
    wanted = keep(spark, run, measuring.targets(scored, run.config), "targets")
    pixels = measuring.read_targets(spark, run.spectra, wanted, run.config)
    if pixels is not None:
        pixels = keep(spark, run, measuring.measure_targets(pixels, run.model, run.config), "measured")
    return keep(spark, run, measuring.gathered(wanted, pixels, run.config), "gathered")


def keep(spark: SparkSession, run: Run, df: DataFrame, name: str) -> DataFrame:
    """`df`, a small table, stored below the run's folder until its end."""
    df.write.mode("overwrite").parquet(run.table(f"_{name}"))
    return spark.read.schema(df.schema).parquet(run.table(f"_{name}"))


def write_verdicts(spark: SparkSession, rows: DataFrame, run: Run, by_plate: bool = False) -> dict[str, Any]:
    """Gathers the evidence for the hits among `rows` (readable spectra, measured), cuts, writes ledger and overdensity.

    `by_plate`: each of the partitions of `rows` holds whole plates. Returns the funnel.
    """
    hits = rows.where(measuring.is_hit(run.config))
    present = [name for name in schema.VETTING_NAMES if name in rows.columns and name not in evidence.COLUMNS]
    store = partial(keep, spark, run)
    found = evidence.gather(rows, hits.select(*measuring.KEY, *present), run.known_lenses, run.config, store)
    write_overdensity(run, found.overdensity)
    write_ledger(evidence.attach(rows, found.hits), run, by_plate)
    ledger = spark.read.schema(schema.LEDGER.struct_type()).parquet(run.table("ledger"))
    quarantine = spark.read.schema(schema.QUARANTINE.struct_type()).parquet(run.table("quarantine"))
    ranges = evidence.overdensity_ranges(found.overdensity, run.config.vetting.overdensity_bin_px)
    return vetting.funnel(ledger, run.config, quarantine.count()) | {"nulls": found.nulls, "overdensity": ranges}


def publish(spark: SparkSession, run: Run, funnel: dict[str, Any]) -> int:
    """Candidates, report and run card of a vetted run; the exit code."""
    ledger = spark.read.schema(schema.LEDGER.struct_type()).parquet(run.table("ledger"))
    with run.stage(spark, "publish"):
        table = catalogue.candidates(ledger).toPandas()
        catalogue.write_products(run.out, table)
        if run.config.output.format == "delta":
            delta.convert(spark, run.out)
    with run.stage(spark, "report"):
        report.make(spark, run, ledger, table, funnel)
    return finish(run, funnel)


def read_selected(spark: SparkSession, run: Run) -> DataFrame:
    """Every spectrum of the survey in the search's pixels, with the selection's columns; faults as rows."""
    read, (low, high) = run.config.read, inference.read_window(run.model, run.config)
    options = {"layout": read.layout, "window": f"{low!r},{high!r}", "target_partition_mb": read.target_partition_mb,
               "max_rows_per_batch": read.max_rows_per_batch}
    return select(spark.read.format("boss").options(**options).load(run.spectra), run.config.selection)


def write_quarantine(faults: DataFrame, run: Run) -> None:
    faults = faults.select(*schema.QUARANTINE.names)
    schema.QUARANTINE.conform(faults).coalesce(1).write.mode("overwrite").parquet(run.table("quarantine"))


def write_ledger(rows: DataFrame, run: Run, by_plate: bool) -> None:
    """Vets `rows` and writes the ledger, partitioned by plate; a plate's folder is replaced as a whole."""
    from pyspark.sql import functions as F

    vetted = vetting.vet(rows, run.config)
    vetted = vetted.withColumns({"run_id": F.lit(run.run_id), "model_sha256": F.lit(run.model_sha256),
                                 "z_source": F.when(F.col("is_hit"), source_redshift(F.col("line_wave")))})
    ledger = schema.LEDGER.conform(vetted)
    ledger = ledger if by_plate else ledger.repartition("plate")
    (ledger.sortWithinPartitions("plate", "mjd", "fiberid", "run2d")
     .write.mode("overwrite").option("partitionOverwriteMode", "dynamic").partitionBy("plate")
     .parquet(run.table("ledger")))


def write_overdensity(run: Run, table: pd.DataFrame) -> None:
    """RUN/overdensity/: the bins and groups that were compared, one Parquet file."""
    import io

    stream = io.BytesIO()
    table.astype({"bin": "int64", "n": "int64", "flagged": bool}).to_parquet(stream, index=False)
    catalogue.write_file(run.path("overdensity/overdensity.parquet"), stream.getvalue())


def finish(run: Run, funnel: dict[str, Any]) -> int:
    """Writes run.json, removes what only an unfinished run needs, and says how the run ended."""
    import fsspec

    facts = {"run_id": run.run_id, "spectra": run.spectra, "model": run.config.score.model, **run.facts}
    card = catalogue.run_card(funnel, run.configuration, run.model_sha256, run.manifest_sha256, run.timings, **facts)
    catalogue.write_run_card(run.out, card)
    fs, place = fsspec.core.url_to_fs(run.out)
    names = [path.rstrip("/").rpartition("/")[2] for path in fs.ls(place, detail=False)]
    for name in names:
        if name.startswith("_") or name == "run.started.json":
            fs.rm(join(place, name), recursive=True)
    counts = card["counts"]
    parts = ("quarantined", "not_selected", "scored", "hits", "candidates")
    log.info("%s spectra: %s", f"{counts['n_input']:,}",
             ", ".join(f"{counts[f'n_{part}']:,} {part.replace('_', ' ')}" for part in parts))
    log.info("hits\n%s", vetting.funnel_text(funnel))
    limit, share = run.config.limits.max_quarantine_fraction, counts["n_quarantined"] / max(counts["n_input"], 1)
    if share > limit:
        log.warning("%.2f %% of the input is quarantined, above limits.max_quarantine_fraction = %g %%: see %s",
                    100 * share, 100 * limit, run.path("quarantine"))
        return EXIT_QUARANTINE
    return EXIT_DONE
