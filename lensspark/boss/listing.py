"""Which files of a survey tree hold spectra: one listing per folder, no file opened.

Trees follow the SDSS science archive (https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/), from any depth:
`[RUN2D/]PPPP/spPlate-PPPP-MMMMM.fits` with `PPPP/RUN1D/spZbest-PPPP-MMMMM.fits` (or beside it),
`[RUN2D/]spectra/{lite,full}/PPPP/spec-PPPP-MMMMM-FFFF.fits`, flat folders of spec files; each also as .fits.gz.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

LAYOUTS = ("auto", "spplate", "lite", "full")
MAX_DEPTH = 12  # folders below the root; ends the walk where links make a circle
LISTING_THREADS = 16
SPEC = re.compile(r"spec-(\d{4,6})-(\d{5})-(\d{4})\.fits(\.gz)?")
PLATE = re.compile(r"sp(?:Plate|Zbest)-(\d{4,6})-(\d{5})\.fits(\.gz)?")
CATALOGUE = re.compile(r"(specObj|spAll|platelist)[^/]*\.fits(\.gz)?")
CLAIMS = re.compile(r"(spec|spPlate)-.*\.fits(\.gz)?")  # a spectrum by its name, well-formed or not
RUN2D = re.compile(r"v\d+_\d+_\d+\w*|26|103|104")
FOLDER_PLATE = re.compile(r"\d{4,6}")
MOUNTS = (("dbfs:/Volumes/", "/Volumes/"), ("dbfs:/", "/dbfs/"), ("file:/", "/"))  # Spark's names of local folders
# Sizes where the listing of a local folder does not say: DR12's typical files.
NOMINAL_BYTES = {"plate": 110_000_000, "lite": 220_000, "spec": 220_000, "full": 2_000_000, "fault": 0}


class Key(NamedTuple):
    """One spectrum; run2d None means any."""

    plate: int
    mjd: int
    fiberid: int
    run2d: str | None = None


@dataclass(frozen=True)
class Unit:
    """One file (or spPlate + spZbest pair) to read: `kind` is plate, lite, spec, full or fault.

    `run2d` is what the folders say, '' if nothing; `fibers` are the wanted ones (empty: all) as (fiberid, run2d or
    None); `reason` is why a unit of kind fault cannot be read; `mag_i`, `plate_quality`, `sky_chi2` are filled from
    catalogues (see catalogue.py).
    """

    path: str
    kind: str
    plate: int | None = None
    mjd: int | None = None
    fiberid: int | None = None
    run2d: str = ""
    size: int | None = None
    zbest: str | None = None
    zbest_size: int | None = None
    fibers: tuple[tuple[int, str | None], ...] = ()
    reason: str = ""
    plate_quality: str | None = None
    sky_chi2: float | None = None
    mag_i: tuple[tuple[int, float], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes to read, as listed or, for local files, as is typical of the kind."""
        if self.fibers:
            return NOMINAL_BYTES["lite"] * len(self.fibers)
        return NOMINAL_BYTES[self.kind] if self.size is None else self.size


class Entry(NamedTuple):
    """One entry of a folder."""

    path: str
    is_dir: bool
    size: int | None
    error: str = ""


@dataclass(frozen=True)
class Survey:
    """What a root holds: units to read, in the order of plates, the paths of catalogues, and the units of spec files
    that are not read but may hold single exposures."""

    units: tuple[Unit, ...] = ()
    catalogues: tuple[str, ...] = ()
    exposures: tuple[Unit, ...] = ()


def survey_files(
    root: str, layout: str = "auto", plates: set[int] | None = None, keys: set[Key] | None = None,
    skip_absent: bool = False,
) -> Survey:
    """The spectra below `root` (local path or fsspec URL), each once per RUN2D tree.

    `layout`: spplate (spPlate + spZbest), lite (spec files, lite before full), full (spec files, full before lite), or
    auto: spPlate where it has its spZbest, else spec files, lite before full. `plates` and `keys` keep only those. A
    folder named like a spectrum, a folder that cannot be listed, a misnamed spectrum and an spPlate without spZbest are
    units of kind fault. Copies of one spec file within one RUN2D tree are one spectrum: the first path in order is
    read.

    Raises ValueError if `root` is missing or holds no spectra, or, unless `skip_absent`, none of an asked plate or key.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout = {layout!r}: expected one of {list(LAYOUTS)}")
    if keys is not None:
        plates = {key.plate for key in keys} & (plates or {key.plate for key in keys})
    entries = _walk(root, plates)
    units = _units(entries, layout)
    if not units and plates is None:
        raise ValueError(f"{root}: no spectra (layout {layout!r}); expected files named spPlate-PPPP-MMMMM.fits with "
                         "spZbest-PPPP-MMMMM.fits, or spec-PPPP-MMMMM-FFFF.fits, at any depth")
    if plates is not None:
        units = [unit for unit in units if unit.plate in plates or unit.plate is None]
        missing = sorted(plates - {unit.plate for unit in units})
        if missing and not skip_absent:
            raise ValueError(f"{root}: no spectra of plates {missing[:10]} (layout {layout!r})")
    if keys is not None:
        units = only(units, keys)
        found = {(unit.plate, unit.mjd, fiberid) for unit in units for fiberid, _ in unit.fibers}
        missing = sorted({key[:3] for key in keys} - found)
        if missing and not skip_absent:
            raise ValueError(f"no files of plate-mjd-fiberid {['-'.join(map(str, key)) for key in missing[:10]]}")
    files, searched = [entry for entry in entries if not entry.is_dir], {unit.path for unit in units}
    catalogues = sorted(entry.path for entry in files if CATALOGUE.fullmatch(_name(entry.path)))
    others = (entry for entry in files if entry.path not in searched and "/lite/" not in entry.path)
    named = ((entry, match) for entry in others if (match := SPEC.fullmatch(_name(entry.path))))
    specs = (_spec(entry, match, _tree(entry.path, int(match[1]))[1]) for entry, match in named)
    exposures = sorted(specs, key=lambda unit: unit.path)
    order = sorted(units, key=lambda u: (u.plate or 0, u.mjd or 0, u.path))
    return Survey(tuple(order), tuple(catalogues), tuple(exposures))


def only(units: Iterable[Unit], keys: Collection[Key]) -> list[Unit]:
    """Those of `units` that may hold spectra of `keys`, with the fibres that are wanted of each."""
    wanted: dict[tuple[int, int], list[tuple[int, str | None]]] = {}
    for key in sorted(keys, key=lambda k: k[:3]):
        wanted.setdefault((key.plate, key.mjd), []).append((key.fiberid, key.run2d))
    found = ((unit, [fibre for fibre in wanted.get((unit.plate, unit.mjd), []) if unit.fiberid in (None, fibre[0])])
             for unit in units)
    return [replace(unit, fibers=tuple(fibres)) for unit, fibres in found if fibres]


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _walk(root: str, plates: set[int] | None) -> list[Entry]:
    """Every entry below `root`, level by level; folders of other plates than `plates` are not entered."""
    list_folder, folders = _lister(root)
    found: list[Entry] = []
    top = folders[0].rstrip("/")
    if RUN2D.fullmatch(_name(top)):  # catalogues of all trees lie beside them
        beside = list_folder(top.rpartition("/")[0] or ".")
        found = [entry for entry in beside if CATALOGUE.fullmatch(_name(entry.path))]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for _ in range(MAX_DEPTH):
            level = [entry for entries in pool.map(list_folder, folders) for entry in entries]
            found += level
            folders = [e.path for e in level if e.is_dir and not e.error and _enter(_name(e.path), plates)]
    return found + [Entry(path, True, None, f"more than {MAX_DEPTH} folders below the root") for path in folders]


def _enter(name: str, plates: set[int] | None) -> bool:
    if CLAIMS.fullmatch(name):
        return False
    return plates is None or not FOLDER_PLATE.fullmatch(name) or int(name) in plates


def absolute(root: str) -> str:
    """`root` as the paths of its units begin: an absolute local path, since executors have a working directory of their
    own, or a URL."""
    if "://" not in root:
        mount = next((mount + root[len(name):] for name, mount in MOUNTS if root.startswith(name)), root)
        return os.path.abspath(mount)
    import fsspec

    fs, top = fsspec.core.url_to_fs(root)
    return fs.unstrip_protocol(top).rstrip("/")


def _lister(root: str):
    """A function that lists one folder, and the root as it wants it. Raises ValueError if root is no folder."""
    if "://" not in root:
        if not os.path.isdir(absolute(root)):
            raise ValueError(f"{root}: expected an existing folder of spectra")
        return _list_local, [absolute(root)]
    import fsspec

    fs, top = fsspec.core.url_to_fs(root)
    fs.invalidate_cache()  # this process may have listed the store before the latest upload
    if not fs.isdir(top):
        raise ValueError(f"{root}: expected an existing folder of spectra")

    def list_remote(folder: str) -> list[Entry]:
        try:
            listing = fs.ls(folder, detail=True)
        except (PermissionError, FileNotFoundError) as error:
            return [Entry(fs.unstrip_protocol(folder), True, None, str(error))]
        return [
            Entry(fs.unstrip_protocol(item["name"].rstrip("/")), item["type"] == "directory", item.get("size"))
            for item in listing
            if item["name"].rstrip("/") != folder.rstrip("/")
        ]

    return list_remote, [top]


def _list_local(folder: str) -> list[Entry]:
    try:
        with os.scandir(folder) as entries:
            return [Entry(entry.path, _is_folder(entry), None) for entry in entries]
    except OSError as error:
        return [Entry(folder, True, None, error.strerror or str(error))]


def _is_folder(entry: os.DirEntry) -> bool:
    """False for a link to itself, say: reading it will tell why, and the other files of its folder are none the worse.
    """
    try:
        return entry.is_dir()
    except OSError:
        return False


def _tree(path: str, plate: int | None = None) -> tuple[str, str]:
    """(path, run2d) of the RUN2D tree of a file, ('', '') outside any; a RUN1D folder in `plate`'s does not count."""
    parts = path.split("/")[:-1]
    for i in range(len(parts) - 1, -1, -1):
        if FOLDER_PLATE.fullmatch(parts[i]) and int(parts[i]) == plate:
            parts = parts[:i]
            break
    for i in range(len(parts) - 1, -1, -1):
        if RUN2D.fullmatch(parts[i]):
            return "/".join(parts[:i + 1]), parts[i]
    return "", ""


def _units(entries: list[Entry], layout: str) -> list[Unit]:
    plates, specs, zbests, faults = {}, {}, {}, []
    for entry in sorted(entries, key=lambda e: (e.is_dir, e.path)):
        name = _name(entry.path)
        spec, plate = SPEC.fullmatch(name), PLATE.fullmatch(name)
        tree, run2d = _tree(entry.path, int((spec or plate)[1])) if spec or plate else ("", "")
        if entry.error:
            number = int(name) if FOLDER_PLATE.fullmatch(name) else None
            faults.append(Unit(entry.path, "fault", number, reason=f"folder cannot be listed: {entry.error}"))
        elif spec:
            specs.setdefault((tree, *map(int, spec.groups()[:3])), []).append(
                _if_file(_spec(entry, spec, run2d), entry))
        elif plate and name.startswith("spPlate"):
            unit = Unit(entry.path, "plate", *map(int, plate.groups()[:2]), None, run2d, entry.size)
            plates.setdefault((tree, unit.plate, unit.mjd), _if_file(unit, entry))
        elif plate and not entry.is_dir:
            zbests.setdefault((tree, *map(int, plate.groups()[:2])), []).append(entry)
        elif CLAIMS.fullmatch(name):
            reason = f"name {name!r}, expected spec-PPPP-MMMMM-FFFF.fits or spPlate-PPPP-MMMMM.fits"
            faults.append(Unit(entry.path, "fault", reason=reason))
    paired = {} if layout in ("lite", "full") else {key: _pair(unit, zbests.get(key)) for key, unit in plates.items()}
    whole = {key for key, unit in paired.items() if unit.kind == "plate"}
    order = ("full", "spec", "lite", "fault") if layout == "full" else ("lite", "spec", "full", "fault")
    single = [] if layout == "spplate" else [
        min(copies, key=lambda unit: order.index(unit.kind)) for key, copies in specs.items() if key[:3] not in whole
    ]
    return faults + list(paired.values()) + single


def _spec(entry: Entry, match: re.Match, run2d: str) -> Unit:
    """The unit of a spec file, whose name is `match` of SPEC."""
    kind = next((kind for kind in ("lite", "full") if f"/{kind}/" in entry.path), "spec")
    return Unit(entry.path, kind, *map(int, match.groups()[:3]), run2d, entry.size)


def _if_file(unit: Unit, entry: Entry) -> Unit:
    if entry.is_dir:
        return replace(unit, kind="fault", reason="is a directory, expected a file")
    return unit


def _pair(unit: Unit, zbests: list[Entry] | None) -> Unit:
    """The spPlate with its spZbest: that of the RUN1D of the same name as RUN2D, else the last one in order."""
    if unit.kind == "fault":
        return unit
    if not zbests:
        return replace(unit, kind="fault", reason=f"no spZbest-{unit.plate:04d}-{unit.mjd}.fits in its folder or "
                                                  "a RUN1D folder below it")
    best = max(zbests, key=lambda entry: (entry.path.split("/")[-2] == unit.run2d, entry.path))
    return replace(unit, zbest=best.path, zbest_size=best.size)
