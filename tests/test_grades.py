"""Grades: what the page exports is read back, what is wrong is named by row and value, shares are counted right."""

import math

import numpy as np
import pandas as pd
import pytest

from lensspark import grades

HEAD = "plate,mjd,fiberid,run2d,grade,comment\n"


def test_a_good_file_is_read(tmp_path):
    path = tmp_path / "grades.csv"
    path.write_bytes(("\ufeff" + HEAD + '4055,55359,12,v5_7_0,A,"red wing, ""blue"" edge\nand a second line"\r\n'
                      "4055,55359,13,v5_7_0,r,\n4055,55359,14,v5_7_0,,look again\n\n").encode())
    frame = grades.read(str(path))
    assert frame.to_dict("list") == {
        "plate": [4055, 4055], "mjd": [55359, 55359], "fiberid": [12, 13], "run2d": ["v5_7_0"] * 2, "grade": ["A", "R"],
        "comment": ['red wing, "blue" edge\nand a second line', ""]}
    assert frame["plate"].dtype == "int64"
    assert len(grades.parse(path.read_text(encoding="utf-8-sig"))) == 3  # with the row that is a comment alone


def test_an_empty_table_is_a_table():
    frame = grades.parse(HEAD)
    assert list(frame.columns) == list(grades.COLUMNS) and frame.empty


def test_columns_are_found_by_name_and_others_ignored():
    frame = grades.parse("grade,comment,who,plate,mjd,fiberid,run2d\nB,,me,1,2,3,103\n")
    assert frame.iloc[0].tolist() == [1, 2, 3, "103", "B", ""]


@pytest.mark.parametrize(("text", "message"), [
    ("", r"columns \['plate', .*\] are missing; expected the header plate,mjd,fiberid,run2d,grade,comment"),
    ("plate;mjd;fiberid;run2d;grade;comment\n", "are missing"),
    (HEAD + "4055,55359,12,v5_7_0,A,\n4055,55359,13,v5_7_0,S,\n", r"row 3: grade = 'S'; expected one of A, B, C, R"),
    (HEAD + "4055.0,55359,12,v5_7_0,A,\n", r"row 2: plate = '4055.0'; expected a positive whole number"),
    (HEAD + "4055,-1,12,v5_7_0,A,\n", "row 2: mjd = '-1'"),
    (HEAD + "4055,55359,99999999999999999999,v5_7_0,A,\n", "row 2: fiberid = '99999999999999999999'"),
    (HEAD + "٤,55359,1,v5_7_0,A,\n", "row 2: plate"),
    (HEAD + "4055,55359,12, ,A,\n", "row 2: run2d is empty"),
    (HEAD + "4055,55359,12,v5_7_0,A\n", "row 2: 5 values; expected 6"),
    (HEAD + "4055,55359,12,v5_7_0,A,a,b\n", "row 2: 7 values; expected 6"),
    (HEAD + '4055,55359,12,v5_7_0,A,"open\n', "not a CSV table"),
    (HEAD + f"4055,55359,12,v5_7_0,A,{'x' * 2001}\n", "row 2: comment of 2001 characters; expected 2000 at most"),
    (HEAD + "4055,55359,12,v5_7_0,A,\n1,1,1,x,C,\n04055,55359,12,v5_7_0,B,\n",
     r"row 4: 4055-55359-12-v5_7_0 is in row 2 too"),
    ("PK\x03\x04\0\0", "are missing"),
])
def test_what_is_wrong_is_named(tmp_path, text, message):
    path = tmp_path / "grades.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        grades.read(str(path))
    assert str(path) in str(caught.value)


def test_files_that_are_no_text_or_not_there(tmp_path):
    (tmp_path / "grades.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(ValueError, match="grades.xls"):
        grades.read(str(tmp_path / "grades.xls"))
    with pytest.raises(OSError):
        grades.read(str(tmp_path / "none.csv"))


def made_key(snr):
    n = len(snr)
    return pd.DataFrame({"plate": np.arange(n) + 1, "mjd": 55000, "fiberid": 7, "run2d": "103", "line_snr": snr})


def test_completeness_counts_by_bin():
    key = made_key([6.0, 7.9, 8.0, 30.0, 31.0, 32.0])
    given = pd.DataFrame({"plate": [1, 2, 3, 4, 5, 99], "mjd": 55000, "fiberid": 7, "run2d": "103",
                          "grade": ["A", "R", "B", "C", "A", "A"], "comment": ""})  # 6 is ungraded, 99 is no fake
    table = grades.completeness(given, key, edges=(0, 8, 20, math.inf))
    assert table[["n", "n_graded", "n_A", "n_B", "n_C", "n_R", "n_found"]].to_numpy().tolist() == [
        [2, 2, 1, 0, 0, 1, 1], [1, 1, 0, 1, 0, 0, 1], [3, 2, 1, 0, 1, 0, 1], [6, 5, 2, 1, 1, 1, 3]]
    np.testing.assert_allclose(table["share"], [0.5, 1, 0.5, 0.6])
    assert (table["low"] <= table["share"]).all() and (table["share"] <= table["high"]).all()


def test_nothing_graded_gives_no_share():
    table = grades.completeness(grades.parse(HEAD), made_key([5.0, 9.0]))
    assert table["n"].iloc[-1] == 2 and table[["share", "low", "high"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="line_snr"):
        grades.completeness(grades.parse(HEAD), made_key([5.0]).drop(columns="line_snr"))


def test_the_interval_is_that_of_the_score_test():
    """Its ends p solve |share - p| = sqrt(p (1 - p) / n), whatever the share."""
    for found, of in [(0, 1), (1, 1), (3, 7), (40, 50)]:
        share, *ends = grades.wilson(found, of)
        assert share == found / of
        for p in ends:
            assert abs(share - p) == pytest.approx(math.sqrt(p * (1 - p) / of), abs=1e-12)
