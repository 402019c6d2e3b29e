"""What dossiers draw is what the files hold and the search saw; fakes are keyed, pass the search, and touch nothing."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lensspark import config, inference, pipeline, report, schema, source, vetting
from lensspark.boss import read_unit, survey_files
from lensspark.config import resource
from lensspark.eigen import DLOGLAM, Basis
from lensspark.mock.survey import observe_plate
from lensspark.model import Model
from lensspark.report import blind, spectra
from lensspark.report.spectra import Pixels
from lensspark.simulate import Plan, simulate

KEY = spectra.KEY
FAKES = 3


@pytest.fixture(scope="module")
def run(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    settings = config.load([], ["mock.repeat=0.5", "mock.lya=0.2", "mock.sky=0.0", "mock.star=0.0"])
    basis = Basis.load(resource("data/eigenbasis.npz"))
    simulate(lambda: spark, str(folder / "redux"), Plan(4000, 2, 30, 7, "spplate", 0), settings.mock, basis)
    source.register(spark)
    options = (f"report.blind_fakes={FAKES}", "mock.line_flux=40", "score.engine='openvino'")
    return pipeline.plan(str(folder / "redux"), str(folder / "run"), config.load([], options))


@pytest.fixture(scope="module")
def ledger(spark, run):
    """A scored and vetted ledger, without the evidence that needs a whole run."""
    scored = inference.score(pipeline.read_selected(spark, run), run.model, run.config)
    names = [column.name for column in schema.LEDGER.columns if column.name in scored.columns]
    frame = vetting.vet(schema.LEDGER.conform(scored.select(*names)), run.config)
    return spark.createDataFrame(frame.toPandas(), schema=schema.LEDGER.struct_type()).cache()


@pytest.fixture(scope="module")
def table(ledger):
    """A few scored galaxies, as if they were candidates."""
    rows = ledger.where("p_line IS NOT NULL").orderBy(*KEY).limit(6).toPandas()
    return rows.assign(rank=np.arange(len(rows)) + 1, name="SDSS J")


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


@pytest.fixture(scope="module")
def mock(basis):
    """(run, pixels, table) of eight mock galaxies: what needs no Spark."""
    settings = config.load([], ["score.engine='openvino'"])
    columns = observe_plate(1, 4000, 56600, np.arange(1, 9), settings.mock, basis)
    keys = [(4000, 56600, i, "v5_7_0") for i in range(1, 9)]
    first = round(columns["loglam0"][0] / DLOGLAM)
    pixels = Pixels(keys, first, {name: columns[name] for name in spectra.PLANES})
    table = pd.DataFrame({name: columns.get(name) for name in schema.CANDIDATES.names}, index=range(8))
    table = table.assign(z_lens=columns["z_noqso"], line_wave=4321.0)
    return SimpleNamespace(model=Model.named("default"), config=settings), pixels, table


def test_dossiers_show_the_search(mock):
    run, pixels, table = mock
    found = spectra.shown(run, pixels, table)
    assert list(found) == pixels.keys
    low, high = run.model.window
    for i, one in enumerate(found.values()):
        inside = (one["wave"] > low) & (one["wave"] < high) & np.isfinite(one["sigma"] + one["model"])
        pull = (one["flux"] - one["model"])[inside] / one["sigma"][inside]
        assert inside.sum() > 900 and np.median(np.abs(pull)) < 1  # the model is this galaxy's
        assert np.isfinite(one["model"]).mean() > 0.9 and len(one["heat"][0]) == len(one["heat"][1])
        assert {"wave", "residual", "sigma", "skew", "gauss"} <= set(one["fit"])
        assert abs(np.median(one["fit"]["wave"]) - 4321) < 2 and "oii/Ha" in one["companions"]
        np.testing.assert_array_equal(one["flux"], pixels.planes["flux"][i][np.isin(pixels.wave, one["wave"])])


def test_fakes_are_measured_as_hits_are(mock):
    run, pixels, table = mock
    injected, truth = blind.inject(pixels, 1, run.config.mock)
    rows = blind._measured(run, injected, table)
    assert list(rows.columns) == schema.CANDIDATES.names and rows["q_value"].isna().all()
    bright = (truth["line_snr"] > 10) & rows["p_lya"].notna()
    assert bright.sum() >= 4 and (rows["p_line"][bright] > 0.5).all()
    np.testing.assert_allclose(rows["line_wave"][bright], truth["line_wave"][bright], rtol=5e-4)
    assert rows["theta_e"].notna().any() and rows["name"].str.startswith("SDSS J").all()


def test_neighbours_and_repeats_are_the_right_ones(spark, run, ledger, table):
    truth = pd.read_parquet(f"{run.spectra}/truth.parquet").set_index(KEY)
    found = spectra.others(spark, run, ledger, table)
    kinds = [other["kind"] for one in found.values() for other in one]
    assert kinds.count("neighbour") > 6 and kinds.count("repeat") >= 1
    for key, one in found.items():
        line = table.set_index(KEY).loc[[key], "line_wave"].item()
        for other in one:
            plate, mjd, fiberid = map(int, other["label"].split()[1].split("-"))
            assert abs(np.log10(other["wave"][[0, -1]] / line)).max() < 61e-4
            if other["kind"] == "neighbour":
                assert (plate, mjd) == key[:2] and abs(fiberid - key[2]) == 1
            else:
                same = truth.loc[[key, (plate, mjd, fiberid, key[3])], "object_id"]
                assert plate != key[0] and same.nunique() == 1


def blank(n, first=35500, n_pix=4600):
    planes = {"flux": np.zeros((n, n_pix), np.float32), "ivar": np.ones((n, n_pix), np.float32),
              "wdisp": np.full((n, n_pix), 1.1, np.float32)}
    return Pixels([(4000, 55000, i + 1, "v5_7_0") for i in range(n)], first, planes)


def test_an_injected_line_is_the_one_of_the_key():
    settings = config.load().mock
    pixels, truth = blind.inject(blank(200), 5, settings)
    width = np.gradient(pixels.wave)
    np.testing.assert_allclose(pixels.planes["flux"] @ width, truth["line_flux"], rtol=0.01)
    np.testing.assert_allclose(truth["line_snr"], np.linalg.norm(pixels.planes["flux"], axis=1), rtol=1e-5)
    peak = pixels.wave[pixels.planes["flux"].argmax(axis=1)]
    assert np.mean(np.abs(peak / truth["line_wave"] - 1) < 3e-4) > 0.9  # a few double peaks have a steeper second one
    low, high = settings.line_window
    assert truth["line_wave"].between(low, high).all() and truth["line_wave"].std() > 200
    assert np.median(truth["line_flux"]) == pytest.approx(settings.line_flux, rel=0.2)


def test_a_fake_depends_on_its_key_and_seed_alone():
    settings = config.load().mock
    all_of_them, truth = blind.inject(blank(9), 5, settings)
    some, again = blind.inject(blank(9)[np.array([7, 2])], 5, settings)
    np.testing.assert_array_equal(some.planes["flux"], all_of_them.planes["flux"][[7, 2]])
    pd.testing.assert_frame_equal(again, truth.iloc[[7, 2]].reset_index(drop=True))
    other, _ = blind.inject(blank(9), 6, settings)
    assert not np.array_equal(other.planes["flux"], all_of_them.planes["flux"])
    shifted, same = blind.inject(blank(9, first=35600, n_pix=4000), 5, settings)
    pd.testing.assert_series_equal(same["line_wave"], truth["line_wave"])
    np.testing.assert_allclose(shifted.planes["flux"], all_of_them.planes["flux"][:, 100:4100], atol=1e-6)


def test_pixels_are_cut_and_padded():
    pixels = Pixels([(1, 2, 3, "x")], 100, {"flux": np.arange(5, dtype=np.float32)[None]})
    for first, n_pix, expected in ((99, 3, [0, 0, 1]), (102, 6, [2, 3, 4, 0, 0, 0]), (0, 2, [0, 0]), (300, 1, [0])):
        (found,) = pixels.within(first, n_pix, ["flux"])
        assert found.tolist() == [expected]


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
    counts = {"n_input": 60, "n_quarantined": 0, "n_not_selected": 0, "n_scored": 60, "n_hits": len(table),
              "n_non_hits": 60 - len(table), "n_candidates": len(table), "n_vetoed": 0}
    before = ledger.count()
    report.make(spark, run, ledger, table, {"counts": counts, "not_selected": {}, "cuts": []})
    html = Path(run.path("report/index.html")).read_text(encoding="utf-8")
    key = pd.read_csv(run.path("report/blind_key.csv"), dtype={"run2d": str})
    assert html.count("<article") == len(table) + FAKES == html.count('"spectrum":') and len(key) == FAKES
    assert ledger.count() == before


def test_no_hosts_give_no_fakes(spark, run, ledger):
    made = blind.make_blind(spark, run, ledger.where("false"))
    assert made.rows.empty and made.key.empty and list(made.key.columns) == list(blind.KEY_COLUMNS)
