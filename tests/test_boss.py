"""BOSS files -> arrays: astropy is the oracle, on every real file at hand and on small files in real layout."""

import csv
import os
from dataclasses import replace

import boss_files as bf
import numpy as np
import pytest
from astropy.io import fits as afits
from hypothesis import given
from hypothesis import strategies as st

from lensspark import schema
from lensspark.boss import PLANES, Key, join_catalogues, read_unit, survey_files
from lensspark.boss.grid import placement

ALL = tuple(PLANES)
WINDOW = (3800.0, 5000.0)
CHECKED = ("Z", "PLUG_RA", "PLUG_DEC", "VDISP", "SN_MEDIAN_ALL")  # numbers of HDU 2, by astropy


def read_all(root, planes=ALL, window=None, **how):
    """key -> (columns, planes) of the good spectra, and the faults."""
    survey = survey_files(str(root), **how)
    good, faults = {}, []
    for unit in join_catalogues(survey.units, survey.catalogues):
        spectra = read_unit(unit, planes, window)
        faults += spectra.faults
        for i in range(len(spectra)):
            columns = {name: values[i] for name, values in spectra.columns.items()}
            key = tuple(columns[c.name] for c in schema.KEY)
            assert key not in good, f"{key} was read twice"
            good[key] = columns, {name: values[i] for name, values in spectra.planes.items()}
    return good, faults


def assert_same(one, other, ignore=("path",)):
    assert one[0] | dict.fromkeys(ignore) == other[0] | dict.fromkeys(ignore)
    for name in one[1]:
        np.testing.assert_array_equal(one[1][name], other[1][name], name, strict=True)


# Real files


@pytest.fixture(scope="module")
def real(shared_data):
    return read_all(shared_data / "spectra")


def test_every_real_spectrum_is_read_and_listed_right(real, shared_data):
    good, faults = real
    assert faults == []
    with open(shared_data / "spectra" / "inventory.csv") as file:
        inventory = list(csv.DictReader(file))
    assert len(inventory) == len(good) == 274
    by_name = {columns["path"].split("/spectra/")[1]: columns for columns, _ in good.values()}
    for row in inventory:
        columns = by_name[row["file"].removeprefix("spectra/")]
        assert [columns[k] for k in ("plate", "mjd", "fiberid")] == [int(row[k]) for k in ("plate", "mjd", "fiberid")]
        assert columns["ra"] == pytest.approx(float(row["ra"]), abs=1e-9)
        assert columns["dec"] == pytest.approx(float(row["dec"]), abs=1e-9)
        assert columns["z"] == pytest.approx(float(row["z"]), abs=6e-6)
        assert (columns["class"], columns["zwarning"]) == (row["cls"], int(row["zwarning"]))
        assert columns["run2d"] == (row["run2d"] or "26")


def test_every_real_pixel_equals_astropys(real):
    for columns, planes in real[0].values():
        with afits.open(columns["path"]) as file:
            coadd, row = file[1].data, {name: file[2].data[name][0] for name in CHECKED}
            for name in ALL:
                expected = coadd[name].astype(coadd[name].dtype.newbyteorder("="))
                np.testing.assert_array_equal(planes[name], expected, strict=True)
            loglam = columns["loglam0"] + 1e-4 * np.arange(len(coadd))
            np.testing.assert_array_equal(loglam.astype("f4"), coadd["loglam"])
            assert (columns["z"], columns["ra"], columns["dec"]) == (row["Z"], row["PLUG_RA"], row["PLUG_DEC"])
            assert (columns["vdisp"], columns["sn_median"]) == (row["VDISP"], row["SN_MEDIAN_ALL"])


def test_real_windows_hold_the_pixels_of_their_wavelengths(real, shared_data):
    windowed, faults = read_all(shared_data / "spectra", ("flux", "ivar"), WINDOW)
    assert faults == [] and set(windowed) == set(real[0])
    for columns, planes in windowed.values():
        assert columns["loglam0"] == 3.5798 and planes["flux"].shape == (1192,)
        coadd = afits.getdata(columns["path"], 1)
        flux = {int(k): f for k, f in zip(np.rint(coadd["loglam"] * 1e4), coadd["flux"], strict=True)}
        assert planes["flux"].tolist() == [flux.get(k, 0) for k in range(35798, 36990)]


def test_sdss_files_have_nulls_for_what_they_lack(real):
    sdss = [columns for columns, _ in real[0].values() if columns["run2d"] == "26"]
    assert len(sdss) == 109
    for columns in sdss:
        assert all(columns[name] is None for name in ("mag_i", "z_noqso", "class_noqso", "zwarning_noqso"))
        assert columns["plate_quality"] and columns["sky_chi2"] > 0
    assert all(columns["z_noqso"] is not None for columns, _ in real[0].values() if columns["run2d"] != "26")


def test_a_real_spplate_gives_what_its_lite_files_give(shared_data, tmp_path):
    """Header and fluxes are the plate's own; the cut lacks the other HDUs, so those are filled from two lite files."""
    with afits.open(shared_data / "formats" / "spPlate-4055-55359-0020.fits") as cut:
        header, flux = cut[0].header.copy(), cut[0].data.copy()
    planes = {name: np.zeros(flux.shape, "i4" if "mask" in name else "f4") for name in bf.PLANE_NAMES[1:]}
    rows, lite = np.zeros(len(flux), int), []
    for i, fiberid in enumerate((10, 18)):
        lite.append(shared_data / "spectra" / "boss" / f"spec-4055-55359-{fiberid:04d}.fits")
        coadd = afits.getdata(lite[-1], 1)
        rows[fiberid - 1] = i
        for name, plane in planes.items():
            plane[fiberid - 1, :len(coadd)] = coadd[name]
    catalogue = np.concatenate([np.asarray(afits.getdata(path, 2)) for path in lite])[rows]
    catalogue["FIBERID"] = np.arange(len(flux)) + 1
    images = [afits.ImageHDU(planes[name]) for name in bf.PLANE_NAMES[1:-1]]
    images.insert(-1, bf.table_hdu({"FIBERID": catalogue["FIBERID"]}, "PLUGMAP"))
    folder = tmp_path / "plate" / "v5_7_0" / "4055"
    bf.write(folder / "spPlate-4055-55359.fits", [afits.PrimaryHDU(flux, header), *images])
    model = afits.ImageHDU(planes["model"], afits.Header({"COEFF0": header["COEFF0"]}))
    bf.write(folder / "v5_7_0" / "spZbest-4055-55359.fits",
             [afits.PrimaryHDU(), afits.BinTableHDU(catalogue), model])
    (tmp_path / "lite" / "v5_7_0").mkdir(parents=True)
    for path in lite:
        (tmp_path / "lite" / "v5_7_0" / path.name).symlink_to(path)
    by_lite, faults = read_all(tmp_path / "lite", window=WINDOW)
    by_plate, more = read_all(tmp_path / "plate", window=WINDOW, keys={Key(4055, 55359, 10), Key(4055, 55359, 18)})
    assert faults == more == [] and sorted(by_lite) == sorted(by_plate) and len(by_lite) == 2
    for key in by_lite:
        assert by_lite[key][1]["flux"].all() and by_lite[key][0]["z_noqso"] is not None
        assert_same(by_plate[key], by_lite[key])


def test_real_spall_cut_is_joined(shared_data, tmp_path):
    spall = afits.getdata(shared_data / "formats" / "spAll-plate3655.fits")
    spall = spall[(spall["PLATE"] == 3655) & (spall["MJD"] == 55240)]
    assert len(spall) > 5
    (tmp_path / "spAll-v5_13_0.fits").symlink_to(shared_data / "formats" / "spAll-plate3655.fits")
    plate = bf.make_plate(400, 10, plate=3655, mjd=55240, run2d="v5_13_0")
    bf.write_plate(tmp_path / "v5_13_0", plate)
    good, faults = read_all(tmp_path)
    assert faults == [] and len(good) == 400
    expected = {int(row["FIBERID"]): 22.5 - 2.5 * np.log10(float(row["CMODELFLUX"][3])) for row in spall}
    for (_, _, fiberid, _), (columns, _) in good.items():
        assert columns["plate_quality"] == "good"
        assert columns["mag_i"] == (pytest.approx(expected[fiberid], rel=1e-9) if fiberid in expected else None)


# One object, many layouts


@pytest.mark.parametrize("window", [None, WINDOW, (3000.0, 3600.0), (9000.0, 9100.0)])
def test_spplate_and_lite_give_the_same_rows(tmp_path, window):
    plate = bf.make_plate()
    bf.write_plate(tmp_path / "a" / "v5_7_0", plate)
    bf.write_spall(tmp_path / "a" / "spAll-v5_7_0.fits", plate)
    bf.write_specs(tmp_path / "b" / "v5_7_0" / "spectra" / "lite" / "3586", plate, trim=0 if window is None else 7)
    one, other = read_all(tmp_path / "a", window=window), read_all(tmp_path / "b", window=window)
    assert one[1] == other[1] == [] and list(one[0]) == list(other[0]) and len(one[0]) == 3
    for key in one[0]:
        if window == (3000.0, 3600.0):  # trimmed there: measured nowhere rather than elsewhere
            continue
        assert_same(one[0][key], other[0][key])
    columns = one[0][3586, 55181, 1, "v5_7_0"][0]
    assert columns["mag_i"] == pytest.approx(20, abs=1e-6) and columns["sky_chi2"] == 1.25
    assert (columns["subclass"], columns["plate_quality"], columns["zwarning"]) == ("", "good", 4)
    assert set(columns) == {c.name for c in schema.SPECTRA.columns} - set(PLANES)


@pytest.mark.parametrize("how", [{"upper": True}, {"suffix": ".gz"}, {"checksum": True}, {"trim": 30}])
def test_variants_of_spec_files_give_the_same_rows(tmp_path, how):
    plate = bf.make_plate(plate=10000, mjd=57346, run2d="v5_10_0")
    bf.write_specs(tmp_path / "plain", plate)
    bf.write_specs(tmp_path / "variant", plate, **how)
    one, faults = read_all(tmp_path / "plain", window=WINDOW)
    other, more = read_all(tmp_path / "variant", window=WINDOW)
    assert faults == more == [] and len(one) == 3
    for key in one:
        assert_same(one[key], other[key])


@pytest.mark.parametrize("how", [{"suffix": ".gz"}, {"checksum": True}, {"zbest": "."}, {"zbest": "v5_7_1"}])
def test_variants_of_plates_give_the_same_rows(tmp_path, how):
    plate = bf.make_plate()
    bf.write_plate(tmp_path / "plain", plate)
    bf.write_plate(tmp_path / "variant", plate, **how)
    one, other = read_all(tmp_path / "plain"), read_all(tmp_path / "variant")
    assert one[1] == other[1] == [] and len(one[0]) == 3
    for key in one[0]:
        assert_same(one[0][key], other[0][key])


def test_a_plate_of_sdss_has_640_fibres_and_no_noqso_columns(tmp_path):
    plate = bf.make_plate(640, 20, plate=266, mjd=51630, run2d="26")
    plate.catalogue = {name: v for name, v in plate.catalogue.items() if "NOQSO" not in name and name != "RUN2D"}
    bf.write_plate(tmp_path / "26", plate, zbest=".")
    good, faults = read_all(tmp_path)
    assert faults == [] and sorted(good) == [(266, 51630, fiberid, "26") for fiberid in range(1, 641)]
    columns, planes = good[266, 51630, 640, "26"]
    assert columns["z_noqso"] is None and columns["z"] == float(plate.catalogue["Z"][639])
    np.testing.assert_array_equal(planes["flux"], plate.planes["flux"][639])


def test_a_gzipped_file_without_the_name_is_read(tmp_path):
    plate = bf.make_plate(1)
    path, = bf.write_specs(tmp_path, plate, suffix=".gz")
    path.rename(path.with_suffix(""))
    assert len(read_all(tmp_path)[0]) == 1


def test_run2d_is_taken_from_header_then_folder(tmp_path):
    plate = bf.make_plate(1)
    del plate.catalogue["RUN2D"]
    bf.write_specs(tmp_path / "header", plate)
    assert list(read_all(tmp_path / "header")[0]) == [(3586, 55181, 1, "v5_7_0")]
    hdus_ = bf.spec_hdus(plate, 0)
    del hdus_[0].header["RUN2D"]
    bf.write(tmp_path / "103" / "spectra" / "3586" / bf.spec_name(plate, 0), hdus_)
    assert list(read_all(tmp_path / "103")[0]) == [(3586, 55181, 1, "103")]


# Trees


def test_each_tree_gives_a_spectrum_once_and_the_cheapest_way(tmp_path):
    for run2d in ("v5_7_0", "v5_7_2", "v5_13_0"):
        plate = bf.make_plate(2, run2d=run2d)
        tree = tmp_path / run2d
        if run2d != "v5_7_2":
            bf.write_plate(tree, plate)
        bf.write_specs(tree / "spectra" / "full" / "3586", plate)
        bf.write_specs(tree / "spectra" / "lite" / "3586", plate)
    for name in ("README.md", "truth.csv", "truth.parquet", "notes.txt", "photoPlate-3586-55181.fits"):
        (tmp_path / name).write_text("not a spectrum")
    survey = survey_files(str(tmp_path))
    assert sorted((u.run2d, u.kind) for u in survey.units) == [
        ("v5_13_0", "plate"), ("v5_7_0", "plate"), ("v5_7_2", "lite"), ("v5_7_2", "lite")]
    assert {u.kind for u in survey_files(str(tmp_path), "lite").units} == {"lite"}
    assert len(survey_files(str(tmp_path), "spplate").units) == 2
    good, faults = read_all(tmp_path)
    assert len(good) == 6 and faults == []
    only, _ = read_all(tmp_path, keys={Key(3586, 55181, 2, "v5_7_2"), Key(3586, 55181, 1, "v5_13_0")})
    assert sorted(only) == [(3586, 55181, 1, "v5_13_0"), (3586, 55181, 2, "v5_7_2")]
    for key in only:
        assert_same(only[key], good[key], ignore=())


def test_local_roots_by_other_names(tmp_path, monkeypatch):
    """Paths come out absolute: an executor's working directory is not the driver's."""
    path, = bf.write_specs(tmp_path / "lite", bf.make_plate(1))
    monkeypatch.chdir(tmp_path)
    for root in ("lite", "./lite/", f"file:{tmp_path}/lite", f"{tmp_path}/lite"):
        assert [unit.path for unit in survey_files(root).units] == [str(path)]
    asked = []
    monkeypatch.setattr(os.path, "isdir", asked.append)
    for root in ("dbfs:/Volumes/sky/boss", "dbfs:/mnt/boss"):
        with pytest.raises(ValueError, match=f"{root}: expected an existing folder"):
            survey_files(root)
    assert asked == ["/Volumes/sky/boss", "/dbfs/mnt/boss"]


def test_a_number_in_the_path_above_is_no_plate(tmp_path):
    for run2d in ("v5_7_0", "v5_7_2"):
        bf.write_specs(tmp_path / "2024" / run2d / "3586", bf.make_plate(1, run2d=run2d))
    assert len(read_all(tmp_path)[0]) == 2


def test_catalogues_beside_a_run2d_folder_are_joined(tmp_path):
    plate = bf.make_plate(2)
    bf.write_plate(tmp_path / "v5_7_0", plate)
    bf.write_platelist(tmp_path / "platelist.fits", plate, "marginal", 1.5)
    good, _ = read_all(tmp_path / "v5_7_0")
    assert {(c["plate_quality"], c["sky_chi2"], c["mag_i"]) for c, _ in good.values()} == {("marginal", 1.5, None)}


def test_listing_reads_each_folder_once_and_opens_nothing(tmp_path, monkeypatch):
    for number in (3586, 3587, 10000):
        folder = tmp_path / "v5_7_0" / "spectra" / "lite" / str(number)
        folder.mkdir(parents=True)
        for fiberid in range(1, 21):
            (folder / f"spec-{number}-55181-{fiberid:04d}.fits").touch()
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(str(folder)) or scandir(folder))
    monkeypatch.setattr(os, "open", lambda *a, **k: pytest.fail("opened a file"))
    assert len(survey_files(str(tmp_path)).units) == 60
    assert len(listed) == len(set(listed)) == 7
    listed.clear()
    assert len(survey_files(str(tmp_path), plates={10000}).units) == 20
    assert len(listed) == 5


def test_a_wrong_root_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: expected an existing folder"):
        survey_files(str(tmp_path / "nowhere"))
    (tmp_path / "README").touch()
    with pytest.raises(ValueError, match="no spectra.*spPlate-PPPP-MMMMM.fits"):
        survey_files(str(tmp_path))
    bf.write_specs(tmp_path, bf.make_plate(1))
    with pytest.raises(ValueError, match=r"no spectra of plates \[9999\]"):
        survey_files(str(tmp_path), plates={3586, 9999})
    with pytest.raises(ValueError, match="3586-55181-77"):
        survey_files(str(tmp_path), keys={Key(3586, 55181, 77)})
    with pytest.raises(ValueError, match="layout = 'plate'.*spplate"):
        survey_files(str(tmp_path), "plate")


# Windows


def test_the_default_window_is_1192_pixels():
    place = placement(3.5529, 4600, WINDOW)
    assert (place.n_pix, place.first, place.stop, place.at, place.loglam0) == (1192, 269, 1461, 0, 3.5798)


@given(st.integers(35000, 37000), st.integers(0, 80), st.integers(35000, 37000), st.integers(1, 60))
def test_placement_is_by_pixel_number(k0, n_file, k_first, width):
    window = 10 ** ((k_first - 0.3) / 1e4), 10 ** ((k_first + width - 1 + 0.3) / 1e4)
    place = placement(k0 * 1e-4, n_file, window)
    values = np.arange(1, n_file + 1)[None]
    expected = [k - k0 + 1 if 0 <= k - k0 < n_file else 0 for k in range(k_first, k_first + width)]
    assert place.place(values[:, place.first:place.stop])[0].tolist() == expected
    assert place.loglam0 == pytest.approx(k_first * 1e-4, abs=1e-9)


def test_a_grid_off_by_a_fraction_keeps_its_offset():
    place = placement(3.55293, 100, (3800.0, 5000.0))
    assert place.loglam0 == pytest.approx(3.57983, abs=1e-9)


def test_only_the_window_is_read_from_a_plate(tmp_path, monkeypatch):
    plate = bf.make_plate(20, 4600)
    bf.write_plate(tmp_path, plate)
    unit, = survey_files(str(tmp_path)).units
    sizes, pread, preadv = [], os.pread, os.preadv
    monkeypatch.setattr("lensspark.boss.stream.READ_AT_ONCE_BYTES", 0)
    monkeypatch.setattr(os, "pread", lambda fd, n, offset: sizes.append(n) or pread(fd, n, offset))
    monkeypatch.setattr(os, "preadv", lambda fd, out, offset: sizes.append(len(out[0])) or preadv(fd, out, offset))
    spectra = read_unit(unit, ("flux", "ivar"), WINDOW)
    np.testing.assert_array_equal(spectra.planes["flux"], plate.planes["flux"][:, 269:269 + 1192])
    headers_and_catalogue = 200_000
    assert sum(sizes) < 2 * 20 * 1192 * 4 + headers_and_catalogue < 2 * 20 * 4600 * 4
    sizes.clear()
    one = read_unit(replace(unit, fibers=((7, None),)), ("flux",), WINDOW)
    assert one.columns["fiberid"] == [7] and sum(sizes) < 1192 * 4 + headers_and_catalogue
    np.testing.assert_array_equal(one.planes["flux"][0], spectra.planes["flux"][6])
