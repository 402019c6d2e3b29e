"""Models, training sets and tables from an untrusted place: nothing of theirs is run, whatever they hold."""

import ast
import builtins
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_model import make_model, settings

from lensspark import config, feed, grades
from lensspark.eigen import Basis
from lensspark.model import Model
from lensspark.vetting.known import read_table

ROOT = Path(__file__).resolve().parents[1]
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "h5py"}


class Bomb:
    """Unpickling this makes the file `mark`."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "code_has_run"


@pytest.fixture
def bomb(mark):
    """A pickle that goes off: a test of the tests."""
    raw = pickle.dumps(Bomb(mark))
    pickle.loads(raw)
    assert mark.exists()
    mark.rmdir()
    return raw


@pytest.fixture
def folder(tmp_path):
    make_model().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["weights.npz", "config.json", "basis.npz"])
def test_a_tampered_file_is_refused_before_any_of_them_is_parsed(folder, name, monkeypatch):
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    parsed = []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **how: parsed.append(bytes(text)) or real(text, **how))
    monkeypatch.setattr(np, "load", lambda *how, **more: parsed.append(how))
    with pytest.raises(ValueError, match=f"{name} has sha256"):
        Model.load(folder)
    assert parsed == [(folder / "card.json").read_bytes()]


@pytest.mark.parametrize("card", ["{}", "[]", '"x"', "null", '{"sha256": 3}', '{"sha256": ["weights.npz"]}', "{"])
def test_a_card_of_another_kind_is_refused(folder, card):
    (folder / "card.json").write_text(card)
    with pytest.raises(ValueError, match="model: "):
        Model.load(folder)


def rehashed(folder: Path) -> Model:
    """The model in `folder`, its card made anew, as one who wants to do harm would."""
    names = ("weights.npz", "config.json", "basis.npz")
    card = {"sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}}
    (folder / "card.json").write_text(json.dumps(card))
    return Model.load(folder)


@pytest.mark.parametrize(("name", "read"), [("weights.npz", "weights"), ("basis.npz", "basis")])
def test_pickled_arrays_are_refused(folder, name, read, bomb, mark):
    objects = np.array([Bomb(mark)], dtype=object)
    np.savez(folder / name, first_pixel=objects, vectors=objects, coefficients=objects, provenance=objects)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        getattr(rehashed(folder), read)
    with zipfile.ZipFile(folder / name, "w") as file:
        file.writestr("first_pixel.npy", bomb)
    with pytest.raises(ValueError):
        getattr(rehashed(folder), read)
    assert not mark.exists()


def test_a_keras_model_in_the_folder_is_not_looked_at(folder, mark):
    """A Lambda layer holds code, and legacy formats are loaded by code of their own: no file but the four is opened."""
    keras = pytest.importorskip("keras", reason="needs the extra `train`")
    x, name = keras.Input((3,)), str(mark)
    planted = keras.Model(x, keras.layers.Lambda(lambda v: (__import__("os").makedirs(name, exist_ok=True), v)[1])(x))
    mark.rmdir()  # it has run once, when it was made
    for name in ("model.keras", "weights.keras", "checkpoint.keras"):
        planted.save(folder / name)
    with pytest.raises(ValueError, match="safe"):  # what keras itself says of it
        keras.saving.load_model(folder / "model.keras")
    opened = []
    real = builtins.open

    def watched(path, *how, **more):
        opened.append(str(path))
        return real(path, *how, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", watched)
        patch.setattr(io, "open", watched)
        model = Model.load(folder)
        from lensspark.engine import engine_for

        channels = np.zeros((1, len(model.input.channels), model.pixels[1]), np.float32)
        engine_for(model, "tensorflow")(channels)
    assert {Path(path).name for path in opened if str(folder) in path} == {"card.json", "weights.npz", "config.json",
                                                                           "basis.npz"}
    assert not mark.exists()


def training_part(path: Path, field: pa.Field = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    n, numbers = 4, np.zeros((4, 1192))
    columns = {"plate": np.arange(n), "fiberid": np.arange(n), "kind": ["lya"] * n, "z": np.zeros(n),
               "label": np.zeros(n, "i4"), "line_pixel": np.zeros(n), "line_snr": np.zeros(n),
               **{name: list(numbers) for name in ("flux", "ivar", "and_mask")}}
    table = pa.table(columns)
    if field is not None:
        table = table.set_column(1, field, table["fiberid"])
    pq.write_table(table, path)


@pytest.mark.parametrize("where", ["train", "."])
def test_pickled_metadata_of_a_training_set_runs_nothing(where, tmp_path, bomb, mark):
    """petastorm would unpickle the schema that `_common_metadata` holds under this key."""
    data = tmp_path / "data"
    for split in feed.SPLITS:
        training_part(data / split / "part-0.parquet")
    hostile = pa.schema([], metadata={b"dataset-toolkit.unischema.v1": bomb,
                                      b"dataset-toolkit.num_row_groups_per_file.v1": bomb})
    for name in ("_common_metadata", "_metadata"):
        pq.write_metadata(hostile, data / where / name)
    (data / "data.json").write_text(json.dumps({"sha256": feed.data_hash(data)}))
    training = pytest.importorskip("lensspark.training")
    pytest.importorskip("petastorm", reason="needs the extra `train`")
    if where == "train":
        with pytest.raises(ValueError, match="pickled code"):
            training.train(data, tmp_path / "model", settings(), config.resource("data/eigenbasis.npz"), "x")
    else:
        list(feed.row_groups(feed.part_files(data / "train")))
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore")
def test_an_extension_type_of_python_runs_nothing(tmp_path, bomb, mark):
    """pyarrow before 14.0.1 unpickled what such a column's metadata hold (CVE-2023-47248)."""
    field = pa.field("fiberid", pa.int64(), metadata={"ARROW:extension:name": "arrow.py_extension_type",
                                                      "ARROW:extension:metadata": bomb})
    training_part(tmp_path / "part.parquet", field)
    import pandas as pd

    assert pd.read_parquet(tmp_path / "part.parquet")["fiberid"].tolist() == [0, 1, 2, 3]
    assert not mark.exists()


def test_tables_of_people_run_nothing(tmp_path, bomb, mark):
    """Known lenses and grades: whatever the name says, a pickle is no table; YAML in an ECSV makes no objects."""
    yaml = f"!!python/object/apply:os.mkdir ['{mark}']"
    ecsv = f"# %ECSV 1.0\n# ---\n# datatype:\n# - {{name: ra, datatype: float64}}\n# meta: {yaml}\nra\n1.0\n"
    for name, raw in {"a.csv": bomb, "a.fits": bomb, "a.vot": bomb, "a.ecsv": bomb, "b.ecsv": ecsv.encode(),
                      "a.pkl": bomb, "a.h5": bomb}.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ValueError):
            read_table(str(tmp_path / name))
        with pytest.raises((ValueError, OSError)):
            grades.read(str(tmp_path / name))
    with pytest.raises(ValueError, match="not a basis"):
        Basis.load(bomb)
    assert not mark.exists()


def test_no_module_knows_how_to_run_what_it_reads():
    """No pickle or its kind, no eval or exec, no YAML but safe, no Keras loader, and numpy never with pickles."""
    for path in [*(ROOT / "lensspark").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name.split(".")[0] for alias in node.names} | {(getattr(node, "module", "") or "")
                                                                                .split(".")[0]}
                assert not names & RUNS_CODE, f"{path}:{node.lineno}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "yaml.load", "np.fromregex"), f"{path}:{node.lineno}"
                assert not called.endswith(("load_model", "model_from_json", "read_pickle",
                                            "enable_unsafe_deserialization")), f"{path}:{node.lineno}"
                if called == "np.load":
                    allowed = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert allowed.get("allow_pickle") == "False", f"{path}:{node.lineno}"
