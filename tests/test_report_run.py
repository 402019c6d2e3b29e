"""The report of a run on Spark: dossiers hold what the files hold; fakes pass the search and touch nothing."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import Page

from lensspark import catalogue, config, inference, pipeline, report, schema, source, store
from lensspark.boss import read_unit, survey_files
from lensspark.eigen import DLOGLAM
from lensspark.mock import files, observe_plate
from lensspark.report import blind, spectra
from lensspark.simulate import Plan, write_plate

KEY = spectra.KEY
FAKES = 3
HOSTILE = {"run2d": "<b>,../", "objtype": "<img src=x>\x1b[3m", "subclass": "</script>../\x07\"'&{{7"}


@pytest.fixture(scope="module")
def run(basis, tmp_path_factory):
    """The plan of a run on two plates that share objects, and one whose files hold hostile text."""
    folder = tmp_path_factory.mktemp("survey")
    mock = config.load([], ["mock.repeat=0.5", "mock.lya=0.2", "mock.sky=0.0", "mock.star=0.0"]).mock
    redux, survey = str(folder / "redux"), Plan(4000, 2, 30, 7, "spplate", 0)
    rows = [write_plate(redux, survey, plate, mock, basis).to_pandas() for plate in (4000, 4001)]
    pd.concat(rows).to_parquet(f"{redux}/truth.parquet")
    hostile = observe_plate(7, 4002, 56700, np.arange(1, 5), mock, basis)
    hostile |= {name: np.full(4, text) for name, text in HOSTILE.items()}
    for path, data in files.plate_files(hostile):
        catalogue.write_file(f"{redux}/{path}", data)
    options = (f"report.blind_fakes={FAKES}", "mock.line_flux=[40,60]", "score.engine='openvino'")
    return pipeline.plan(redux, str(folder / "run"), config.load([], options))


@pytest.fixture(scope="module")
def ledger(spark, run):
    """The ledger of the scored survey, without the evidence that needs a whole run."""
    source.register(spark)
    spectra = spark.read.format("boss").options(**inference.reading(run.model, run.config)).load(run.spectra)
    scored = inference.score(spectra, run.model, run.config)
    store.write(scored, run.path("_scored"))
    hits = scored.where(scored["p_line"] > run.config.score.threshold).drop("reason", "hdu")
    written = pipeline.write_ledger(store.Rows(spark, [run.path("_scored")], schema.SCORED), hits, run)
    pipeline.write_overdensity(run, pd.DataFrame(columns=schema.OVERDENSITY.names))
    return written


@pytest.fixture(scope="module")
def table(ledger):
    """A few scored galaxies, as if they were candidates."""
    rows = ledger.where("p_line IS NOT NULL").orderBy(*KEY).limit(6).toPandas()
    return rows.assign(rank=np.arange(len(rows)) + 1, name="SDSS J")


def funnel(n):
    """That of a run of 64 spectra with `n` hits, all candidates."""
    counts = {"n_input": 64, "n_quarantined": 0, "n_not_selected": 0, "n_scored": 64, "n_hits": n,
              "n_non_hits": 64 - n, "n_candidates": n, "n_vetoed": 0}
    return {"counts": counts, "not_selected": {}, "cuts": []}


def test_spectra_are_those_of_the_files(spark, run, table):
    keys = list(table[KEY].itertuples(index=False, name=None))
    pixels = spectra.read(spark, run, keys)
    unit = next(unit for unit in survey_files(run.spectra).units if unit.plate == 4000)
    own = read_unit(unit, ("flux", "ivar"), None)
    assert pixels.keys == keys and pixels.wave[0] < 3700 and pixels.wave[-1] > 9500
    for i, key in enumerate(keys):
        row = list(own.columns["fiberid"]).index(key[2])
        start = round(float(own.columns["loglam0"][row]) / DLOGLAM) - pixels.first
        for name in ("flux", "ivar"):
            values = np.asarray(own.planes[name][row])
            np.testing.assert_array_equal(pixels.planes[name][i, start : start + len(values)], values)


def test_neighbours_and_repeats_are_the_right_ones(spark, run, ledger, table):
    truth = pd.read_parquet(f"{run.spectra}/truth.parquet").set_index(KEY)
    found = spectra.others(spark, run, table)
    kinds = [other["kind"] for one in found.values() for other in one]
    assert kinds.count("neighbour") > 12 and kinds.count("repeat") >= 1
    for key, one in found.items():
        line = table.set_index(KEY).loc[[key], "line_wave"].item()
        for other in one:
            plate, mjd, fiberid = map(int, other["label"].split()[1].split("-"))
            assert abs(np.log10(other["wave"][[0, -1]] / line)).max() < 61e-4
            if other["kind"] == "neighbour":
                assert (plate, mjd) == key[:2] and 1 <= abs(fiberid - key[2]) <= 2
            else:
                same = truth.loc[[key, (plate, mjd, fiberid, key[3])], "object_id"]
                assert plate != key[0] and same.nunique() == 1


def test_neighbours_and_repeats_are_those_of_the_search(spark, run, tmp_path):
    spectra_of = [(1, 55000, f, "26", 10.0 + f, 0.0) for f in range(317, 324)]
    spectra_of += [(2, 55000, f, "v5_7_0", 20.0 + f, 0.0) for f in range(497, 504)]
    spectra_of += [(3, 55100, 9, "v5_7_0", 520.0 + 1.7 / 3600, 0.0), (4, 55100, 9, "v5_7_0", 520.0 + 2.3 / 3600, 0.0)]
    frame = spark.createDataFrame(spectra_of, "plate int, mjd int, fiberid int, run2d string, ra double, dec double")
    every = schema.LEDGER.conform(frame)
    store.write(every, str(tmp_path / "ledger"))
    own = every.where("plate = 1 AND fiberid = 320 OR plate = 2 AND fiberid = 500").toPandas()
    found = spectra._pairs(store.Rows(spark, [str(tmp_path / "ledger")], schema.LEDGER), own, run.config)
    assert {tuple(row) for row in found[["hit_fiberid", "role", "plate", "fiberid"]].itertuples(index=False)} == {
        (320, "neighbour", 1, 318), (320, "neighbour", 1, 319), (500, "neighbour", 2, 498),
        (500, "neighbour", 2, 499), (500, "repeat", 3, 9)}


def test_the_hits_of_the_histograms_are_a_sample(spark):
    hits = spark.range(1000, numPartitions=1).selectExpr(
        "int(id / 10) plate", "55000 mjd", "int(id) fiberid", "'x' run2d", "true is_hit", "double(id) line_wave",
        "0.5D z_lens", "0 veto")
    some = report.sample_of_hits(hits, 50)["line_wave"]
    assert len(some) == 50 and (some // 10).nunique() > 30, "of few plates"
    assert set(some) == set(report.sample_of_hits(hits.repartition(3), 50)["line_wave"])
    assert len(report.sample_of_hits(hits)) == 1000


def test_fakes_pass_the_search_and_touch_no_product(spark, run, ledger):
    made = blind.make_blind(spark, run, ledger)
    assert len(made.rows) == len(made.key) == len(made.spectra) == FAKES
    assert list(made.rows.columns) == schema.CANDIDATES.names and (made.rows["veto"] == 0).all()
    assert (made.rows["p_line"] > run.config.score.threshold).all()
    assert (made.rows["line_snr"] >= run.config.vetting.min_line_snr).all()
    both = made.rows.merge(made.key, on=KEY, suffixes=("", "_true"))
    assert len(both) == FAKES and (np.abs(both["line_wave"] / both["line_wave_true"] - 1) < 1e-3).all()
    assert made.rows["theta_e"].notna().any() and made.rows["q_value"].isna().all()
    hosts = ledger.toPandas().merge(made.key[KEY], on=KEY)
    assert len(hosts) == FAKES and not hosts["is_hit"].astype(bool).any()  # the ledger knows nothing of the line
    again = blind.make_blind(spark, run, ledger.repartition(5))
    pd.testing.assert_frame_equal(made.key, again.key)


def test_the_report_has_the_fakes_and_their_key(spark, run, ledger, table):
    before = ledger.count()
    report.make(spark, run, ledger, table, funnel(len(table)))
    html = Path(run.path("report/index.html")).read_text(encoding="utf-8")
    key = pd.read_csv(run.path("report/blind_key.csv"), dtype={"run2d": str})
    assert html.count("<article") == len(table) + FAKES == html.count('"spectrum":') and len(key) == FAKES
    assert ledger.count() == before


def test_hostile_text_in_files_does_no_harm(spark, run, ledger):
    rows = ledger.where("plate = 4002").orderBy(*KEY).toPandas()
    assert len(rows) == 4 and all((rows[name] == text).all() for name, text in HOSTILE.items())
    rows = rows[rows["p_line"].notna()].assign(name="SDSS J")
    rows["rank"] = np.arange(len(rows)) + 1
    unfaked = replace(run, config=replace(run.config, report=replace(run.config.report, blind_fakes=0)))
    report.make(spark, unfaked, ledger, rows, funnel(len(rows)))
    html = Path(run.path("report/index.html")).read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags["article"] == len(rows) > 0 == page.tags.get("img", 0) and page.tags["script"] == len(rows) + 1
    assert html.count('"spectrum":') == len(rows) and page.facts["keys"][0][3] == HOSTILE["run2d"]
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)
    made = {path.name for path in Path(run.path("")).iterdir()}
    assert made == {"_scored", "ledger", "overdensity", "report", "run.started.json"}


def test_no_hosts_give_no_fakes(spark, run, ledger):
    made = blind.make_blind(spark, run, ledger.where("false"))
    assert made.rows.empty and made.key.empty and list(made.key.columns) == list(blind.KEY_COLUMNS)
