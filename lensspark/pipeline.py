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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensspark import catalogue, inference, report, schema, source, vetting
from lensspark.boss import survey_files
from lensspark.catalogue import join
from lensspark.config import Config, from_dict
from lensspark.lines import source_redshift
from lensspark.model import Model
from lensspark.selection import select
from lensspark.session import EXIT_DONE, EXIT_QUARANTINE, progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

STAGING = "_scored"  # below the run's folder, removed at its end


@dataclass
class Run:
    """One search: what it reads, where it writes, with which model and configuration."""

    spectra: str
    out: str
    model: Model
    config: Config
    manifest_sha256: str
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def configuration(self) -> dict[str, Any]:
        return self.config.as_dict()

    @property
    def run_id(self) -> str:
        return catalogue.run_id(self.configuration, self.model.sha256, self.manifest_sha256)

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


def finished_run(out: str) -> Config:
    """The configuration of the finished run in `out`. Raises ValueError if there is none."""
    import fsspec

    try:
        with fsspec.open(join(out, "run.json")) as file:
            return from_dict(json.load(file)["configuration"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{out}: no finished run: run.json: {error}") from error


def plan(spectra: str, out: str, config: Config) -> Run:
    """Everything that can be wrong with a run's arguments is found here, before Spark starts.

    The model's own input, network and window take the place of the configured ones: it knows no others. Raises
    ValueError if there are no spectra, no such model or engine, or if `out` cannot be written or holds another run.
    """
    model = Model.named(config.score.model)
    inference.engine.choose(config.score.engine)
    window = dataclasses.replace(config.read, window=model.window)
    config = dataclasses.replace(config, read=window, input=model.input, network=model.network)
    run = Run(spectra, out, model, config, manifest(spectra, config.read.layout))
    _claim(run)
    return run


def manifest(spectra: str, layout: str) -> str:
    """sha256 over the files of a survey tree: paths below their common folder, and sizes where the listing gives them.

    A mirror that moved, or is named by another path, keeps its manifest.
    """
    units = survey_files(spectra, layout).units
    log.info("%d files of spectra in %s", len(units), spectra)
    common = len(os.path.commonprefix([unit.path for unit in units]).rpartition("/")[0])
    return catalogue.digest([(unit.path[common:], unit.size, unit.kind) for unit in units])


def _claim(run: Run) -> None:
    """Writes RUN/run.started.json, the mark of a run that is not finished; see `plan` for what it refuses."""
    import fsspec

    fs, place = fsspec.core.url_to_fs(run.out)
    mine = {"run_id": run.run_id, "model_sha256": run.model.sha256}
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
        scored.write.mode("overwrite").parquet(run.table(STAGING))
    with run.stage(spark, "vet"):
        scored = spark.read.schema(schema.SCORED.struct_type()).parquet(run.table(STAGING))
        write_quarantine(scored, run)
        write_ledger(scored.where("reason IS NULL"), run)
        ledger = spark.read.schema(schema.LEDGER.struct_type()).parquet(run.table("ledger"))
        quarantine = spark.read.schema(schema.QUARANTINE.struct_type()).parquet(run.table("quarantine"))
        funnel = vetting.funnel(ledger, run.config, quarantine.count())
    with run.stage(spark, "publish"):
        table = catalogue.candidates(ledger).toPandas()
        catalogue.write_products(run.out, table)
    with run.stage(spark, "report"):
        report.make(spark, run, ledger, table, funnel)
    return finish(run, funnel)


def read_selected(spark: SparkSession, run: Run) -> DataFrame:
    """Every spectrum of the survey in the model's window, with the selection's columns; faults as rows."""
    read, (low, high) = run.config.read, run.model.window
    options = {"layout": read.layout, "window": f"{low!r},{high!r}", "target_partition_mb": read.target_partition_mb,
               "max_rows_per_batch": read.max_rows_per_batch}
    return select(spark.read.format("boss").options(**options).load(run.spectra), run.config.selection)


def write_quarantine(scored: DataFrame, run: Run) -> None:
    faults = scored.where("reason IS NOT NULL").select(*schema.QUARANTINE.names)
    schema.QUARANTINE.conform(faults).coalesce(1).write.mode("overwrite").parquet(run.table("quarantine"))


def write_ledger(scored: DataFrame, run: Run) -> None:
    """Vets `scored` and writes the ledger, partitioned by plate; a plate's folder is replaced as a whole."""
    from pyspark.sql import functions as F

    vetted = vetting.vet(scored.drop("reason", "hdu"), run.config)
    z_source = F.when(F.col("is_hit"), source_redshift(F.col("line_wave")))
    vetted = vetted.withColumns({"run_id": F.lit(run.run_id), "model_sha256": F.lit(run.model.sha256),
                                 "z_source": z_source})
    (schema.LEDGER.conform(vetted).repartition("plate").sortWithinPartitions("plate", "mjd", "fiberid", "run2d")
     .write.mode("overwrite").option("partitionOverwriteMode", "dynamic").partitionBy("plate")
     .parquet(run.table("ledger")))


def finish(run: Run, funnel: dict[str, Any]) -> int:
    """Writes run.json, removes what only an unfinished run needs, and says how the run ended."""
    import fsspec

    facts = {"spectra": run.spectra, "model": run.config.score.model}
    card = catalogue.run_card(funnel, run.configuration, run.model.sha256, run.manifest_sha256, run.timings, **facts)
    catalogue.write_run_card(run.out, card)
    fs, place = fsspec.core.url_to_fs(run.out)
    for name in (STAGING, "run.started.json"):
        if fs.exists(join(place, name)):
            fs.rm(join(place, name), recursive=True)
    counts = card["counts"]
    parts = ("quarantined", "not_selected", "scored", "hits", "candidates")
    log.info("%s spectra: %s", f"{counts['n_input']:,}",
             ", ".join(f"{counts[f'n_{part}']:,} {part.replace('_', ' ')}" for part in parts))
    limit, share = run.config.limits.max_quarantine_fraction, counts["n_quarantined"] / max(counts["n_input"], 1)
    if share > limit:
        log.warning("%.2f %% of the input is quarantined, above limits.max_quarantine_fraction = %g %%: see %s",
                    100 * share, 100 * limit, run.path("quarantine"))
        return EXIT_QUARANTINE
    return EXIT_DONE
