"""Files of random damage: reading them ends, within stated memory, with rows or with a reason, and with nothing else.

LENSSPARK_FUZZ sets the number of files of each kind; ./build.sh chaos takes 3,000.
"""

import gzip
import os
import signal
import tracemalloc
from pathlib import Path

import boss_files as bf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lensspark import source
from lensspark.boss import read_exposures, survey_files
from lensspark.boss.exposures import Fault, Key

EXAMPLES = int(os.environ.get("LENSSPARK_FUZZ", "60"))
OPTIONS = source.Options("", columns=("flux", "ivar", "and_mask", "wdisp", "model"))
NEVER_ENDS_S = 60
# Bytes that reading a file of n bytes may take: its content unpacked, planes of a plate, Arrow's copies.
MEMORY_FLOOR, MEMORY_PER_BYTE = 20e6, 8
VALUES = ["0", "1", "-1", "7", "-32", "1.5", "1e308", "-1e400", "NaN", "inf", "T", "F", "", "''", "'open", "'", "1E",
          "65E", "999999999999", "2147483648", "9" * 60, "1_000", "0x10", "\xff", "'BINTABLE'", "'IMAGE'", "'D'",
          "'0A'", "'99999999999999A'", "'9X'", "'1PE(99)'", "'-1E'", "'\xb2D'",
          "'K'", "'A'", "'4K'", "'1B'", "'FLUX'", "'Z'"]


def card(raw: bytearray, where: float, value: str) -> None:
    """Another value for one of the cards of a header."""
    cards = [i for i in range(0, len(raw) - 80, 80) if raw[i + 8:i + 10] == b"= "]
    if cards:
        at = cards[int(where * len(cards))]
        raw[at + 10:at + 80] = f"{value:>20}".encode("latin-1").ljust(70)[:70]


def keyword(raw: bytearray, where: float, other: float) -> None:
    """The name of one card given to another one."""
    cards = [i for i in range(0, len(raw) - 80, 80) if raw[i + 8:i + 10] == b"= "]
    if cards:
        at, source_at = cards[int(where * len(cards))], cards[int(other * len(cards))]
        raw[at:at + 8] = raw[source_at:source_at + 8]


def overwrite(raw: bytearray, where: float, data: bytes) -> None:
    at = int(where * len(raw))
    raw[at:at + len(data)] = data[:len(raw) - at]


def cut(raw: bytearray, where: float) -> None:
    del raw[int(where * len(raw)):]


def drop(raw: bytearray, where: float, n: int) -> None:
    at = int(where * len(raw))
    del raw[at:at + n]


def insert(raw: bytearray, where: float, data: bytes) -> None:
    at = int(where * len(raw))
    raw[at:at] = data


def pack(raw: bytearray) -> None:
    raw[:] = gzip.compress(bytes(raw), 1)


PLACE = st.floats(0, 1, exclude_max=True)
DAMAGE = st.one_of(
    st.tuples(st.just(card), PLACE, st.sampled_from(VALUES)),
    st.tuples(st.just(card), PLACE, st.sampled_from(VALUES)),
    st.tuples(st.just(keyword), PLACE, PLACE),
    st.tuples(st.just(overwrite), PLACE, st.binary(min_size=1, max_size=12)),
    st.tuples(st.just(overwrite), PLACE, st.sampled_from([b"\xff" * 400, b"\0" * 400, b"\x7f\xc0\0\0" * 8])),
    st.tuples(st.just(cut), PLACE),
    st.tuples(st.just(drop), PLACE, st.sampled_from([1, 80, 2880])),
    st.tuples(st.just(insert), PLACE, st.sampled_from([b"X", b"END".ljust(80), b" " * 2880, b"\0" * 2880])),
    st.tuples(st.just(pack)),
)


def lite(folder: Path) -> Path:
    return bf.write_specs(folder, bf.make_plate(1, 120))[0]


def checked(folder: Path) -> Path:
    return bf.write_specs(folder, bf.make_plate(1, 120), checksum=True)[0]


def wide(folder: Path) -> Path:
    """Whole numbers and redshifts of more bytes than any survey's."""
    one = bf.make_plate(1, 120)
    one.catalogue = {name: values.astype({"i": "i8", "f": "f8"}.get(values.dtype.kind, values.dtype))
                     for name, values in one.catalogue.items()}
    return bf.write_specs(folder, one)[0]


def plate(folder: Path) -> Path:
    return bf.write_plate(folder, bf.make_plate(2, 120))


def zbest(folder: Path) -> Path:
    return next(plate(folder).parent.rglob("spZbest*"))


def catalogue(folder: Path) -> Path:
    """A platelist or spAll beside a plate."""
    plate(folder)
    return bf.write_spall(folder / "spAll-v5_7_0.fits", bf.make_plate(2, 120))


def full(folder: Path) -> Path:
    hdus = bf.spec_hdus(bf.make_plate(1, 120), 0)
    loglam = 3.58 + 1e-4 * np.arange(60)
    hdus.append(bf.exposure_hdu("B1-00001234-00001235-00001236", np.ones(60), loglam, np.ones(60)))
    return bf.write(folder / "spec-3586-55181-0001.fits", hdus)


def read(folder: Path) -> None:
    """All that a search reads of the survey in `folder`."""
    survey = survey_files(str(folder))
    units = source.join_catalogues(survey.units, survey.catalogues)
    seen = 0
    for batch in source.batches(units, OPTIONS):
        for row in batch.to_pylist():
            seen += 1
            if row["reason"] is None:
                assert np.isfinite(row["flux"]).all() and (np.array(row["ivar"]) >= 0).all()
                assert row["plate"] == 3586 and row["run2d"]
            else:
                assert row["path"] and row["flux"] is None
    assert seen
    for unit in units:
        if unit.kind in ("spec", "full"):
            try:
                read_exposures(unit.path, Key(3586, 55181, 1, "v5_7_0"), (3800.0, 5000.0))
            except Fault as fault:
                assert fault.reason


@pytest.fixture
def ends():
    """Raises where a test does not end."""
    def give_up(*_):
        raise TimeoutError(f"reading has not ended within {NEVER_ENDS_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    yield lambda: signal.alarm(NEVER_ENDS_S)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", [lite, checked, wide, plate, zbest, catalogue, full])
def test_damaged_files(kind, tmp_path, ends):
    path = kind(tmp_path)
    sound = path.read_bytes()
    read(tmp_path)

    @settings(max_examples=EXAMPLES, deadline=None, database=None,
              suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
    @given(st.lists(DAMAGE, min_size=1, max_size=4))
    def damaged(damages):
        raw = bytearray(sound)
        for damage, *how in damages:
            damage(raw, *how)
        path.write_bytes(raw)
        ends()
        tracemalloc.start()
        try:
            read(tmp_path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < MEMORY_FLOOR + MEMORY_PER_BYTE * len(sound)

    damaged()
