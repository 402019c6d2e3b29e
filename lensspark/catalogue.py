"""Products of a run: IAU names, the ranked candidate table in four formats, and the run card.

Every file is complete or absent: locally it is written beside its place and renamed, elsewhere it is one upload.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lensspark import __version__, schema
from lensspark.redaction import without_credentials

if TYPE_CHECKING:
    from astropy.table import Table
    from pyspark.sql import DataFrame

# A coordinate this close below the next digit of a name counts as that digit: 1e-6 s of time in right ascension,
# 1e-5 arcsec in declination. Far above binary rounding (and text with 9 decimals), far below any astrometric error.
NAME_TOLERANCE = 1e-4  # units of the last digit

_NUMPY_TYPES = {"int": "i4", "long": "i8", "float": "f4", "double": "f8", "boolean": "?"}
_COUNTED_PACKAGES = (
    "pyspark", "numpy", "pandas", "pyarrow", "scipy", "astropy", "tensorflow-cpu", "tensorflow", "keras", "openvino",
    "numba", "fsspec",
)
# counts of the run card: each total is the sum of its parts.
_SUMS = {
    "n_input": ("n_quarantined", "n_scored", "n_not_selected"),
    "n_scored": ("n_hits", "n_non_hits"),
    "n_hits": ("n_candidates", "n_vetoed"),
}


def iau_name(ra: Any, dec: Any) -> np.ndarray:
    """Names `SDSS JHHMMSS.ss+DDMMSS.s` for J2000 `ra`, `dec` in degrees, truncated as the IAU asks, not rounded.

    Any shape, returned as an object array of that shape; None where a coordinate is not finite or |dec| > 90.
    Convention: https://www.sdss.org/dr12/help/glossary/ and https://cdsweb.u-strasbg.fr/Dic/iau-spec.html
    """
    ra, dec = np.broadcast_arrays(np.asarray(ra, dtype="f8"), np.asarray(dec, dtype="f8"))
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    day = 24 * 3600 * 100
    hundredths = _truncate(np.where(good, ra, 0) % 360 * (day / 360)) % day  # of a second of time; 24 h is 0 h
    tenths = _truncate(np.where(good, np.abs(dec), 0) * 36000)  # of an arcsecond
    south = good & (np.nan_to_num(dec) * 36000 < -NAME_TOLERANCE)  # -0.0 and dust below zero are north
    names = np.full(ra.shape, None, dtype=object)
    for index in np.ndindex(ra.shape):
        if good[index]:
            h, d = int(hundredths[index]), int(tenths[index])
            names[index] = (
                f"SDSS J{h // 360000:02d}{h // 6000 % 60:02d}{h // 100 % 60:02d}.{h % 100:02d}"
                f"{'-' if south[index] else '+'}{d // 36000:02d}{d // 600 % 60:02d}{d // 10 % 60:02d}.{d % 10}"
            )
    return names


def _truncate(units: np.ndarray) -> np.ndarray:
    return np.floor(units + NAME_TOLERANCE).astype("i8")


def candidates(ledger: DataFrame) -> pd.DataFrame:
    """The ledger's rows with `veto == 0`, named and ranked, as schema.CANDIDATES: the few that people look at.

    Rank: followup, then p_line, then line_snr, all descending; then the key, so that the order is total.
    """
    table, best = ledger.where("veto = 0").toPandas(), ["followup", "p_line", "line_snr"]
    key = [column.name for column in schema.KEY]
    table = table.sort_values([*best, *key], ascending=[False] * len(best) + [True] * len(key), ignore_index=True)
    rank = np.arange(1, len(table) + 1, dtype=np.int32)
    return table.assign(rank=rank, name=iau_name(table["ra"], table["dec"]))[schema.CANDIDATES.names]


def write_products(run: str, table: pd.DataFrame) -> dict[str, str]:
    """Writes `table` (schema.CANDIDATES in pandas) below the folder or URL `run`; returns product -> path.

    candidates/ is Parquet; candidates.fits, .ecsv and .vot carry units, descriptions and UCDs. Nulls are masked.
    """
    formats = {
        "candidates/candidates.parquet": to_parquet, "candidates.fits": _fits, "candidates.ecsv": to_ecsv,
        "candidates.vot": _votable,
    }
    typed = to_astropy(table)
    for name, encode in formats.items():
        write_file(join(run, name), encode(typed))
    return {name: join(run, name) for name in formats}


def to_astropy(table: pd.DataFrame, declared: schema.Table = schema.CANDIDATES) -> Table:
    """`table` as a masked astropy Table with the declared types, units, descriptions and UCDs (`meta["ucd"]`).

    Raises ValueError for a missing column.
    """
    from astropy import units as u
    from astropy.table import MaskedColumn, Table

    missing = sorted(set(declared.names) - set(table.columns))
    if missing:
        raise ValueError(f"columns {missing} are missing; table {declared.name!r} needs them")
    result = Table(masked=True)
    for column in declared.columns:
        null = pd.isna(table[column.name]).to_numpy(dtype=bool)
        empty = "" if column.type == "string" else 0
        values = [empty if skip else value for value, skip in zip(table[column.name], null, strict=True)]
        dtype = _NUMPY_TYPES.get(column.type)
        data = np.array(values, dtype) if dtype else np.array([*map(str, values), " "], "U")[:-1]  # never zero wide
        result[column.name] = MaskedColumn(
            data, mask=null, unit=u.Unit(column.unit) if column.unit else None, description=column.description,
            meta={"ucd": column.ucd} if column.ucd else {}, fill_value=_fill_value(data.dtype),
        )
    return result


def _fill_value(dtype: np.dtype) -> Any:
    """What stands under the mask, where a format has no other way to say null (FITS TNULL): never a possible value."""
    return {"i": lambda: np.iinfo(dtype).min, "f": lambda: np.nan, "b": lambda: False}.get(dtype.kind, lambda: "")()


def to_parquet(table: Table, declared: schema.Table = schema.CANDIDATES) -> bytes:
    """One Parquet file of `table` (`to_astropy` of the same declaration), with units, descriptions and UCDs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = {"int": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(),
             "boolean": pa.bool_(), "string": pa.string()}
    fields, arrays = [], []
    for column in declared.columns:
        about = {"unit": column.unit, "description": column.description, "ucd": column.ucd}
        fields.append(pa.field(column.name, arrow[column.type], metadata=about))
        values = table[column.name]
        arrays.append(pa.array(np.asarray(values.data.data).tolist(), fields[-1].type, mask=np.asarray(values.mask)))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), buffer)
    return buffer.getvalue()


def _fits(table: Table) -> bytes:
    """FITS with TCOMMn and TUCDn, which TOPCAT reads, beside astropy's own record of the descriptions."""
    from astropy.io import fits

    buffer = io.BytesIO()
    table.write(buffer, format="fits")
    out = io.BytesIO()
    with fits.open(io.BytesIO(buffer.getvalue())) as hdus:
        header = hdus[1].header
        header["EXTNAME"] = "CANDIDATES"
        for i, column in enumerate(schema.CANDIDATES.columns, start=1):
            header[f"TCOMM{i}"] = column.description
            header[f"TUCD{i}"] = column.ucd
        hdus.writeto(out, checksum=True)
    return out.getvalue()


def to_ecsv(table: Table) -> bytes:
    """`table` as ECSV text."""
    text = io.StringIO()
    table.write(text, format="ascii.ecsv")
    return text.getvalue().encode()


def _votable(table: Table) -> bytes:
    from astropy.units import UnitsWarning

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnitsWarning)  # VOUnit calls erg and Angstrom deprecated, and accepts them
        table.write(buffer, format="votable")
    return buffer.getvalue()


def join(folder: str, name: str) -> str:
    """`name` below the folder or URL."""
    return f"{folder.rstrip('/')}/{name}" if folder.strip("/") else f"{folder}{name}"


def write_file(path: str, data: bytes) -> None:
    """Writes a small file to a local path or any fsspec URL, whole or not at all; makes the folders above it."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    fs, place = fsspec.core.url_to_fs(path)
    fs.makedirs(fs._parent(place), exist_ok=True)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(place, data)
        return
    target = Path(place)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp keeps others out
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def digest(value: Any) -> str:
    """sha256 of anything JSON can hold, independent of the order of keys: manifests, configurations."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def run_id(configuration: dict[str, Any], model_sha256: str, manifest_sha256: str) -> str:
    """16 hex digits that name a run: the same input, model, configuration and lensspark give the same identifier."""
    return digest([__version__, configuration, model_sha256, manifest_sha256])[:16]


def check_counts(counts: dict[str, int]) -> None:
    """Raises RuntimeError if a count is missing or negative, or if the counts do not add up."""
    for total, parts in _SUMS.items():
        for name in (total, *parts):
            if not isinstance(counts.get(name), int) or counts[name] < 0:
                raise RuntimeError(f"counts.{name} = {counts.get(name)!r}: expected a number of rows")
        if counts[total] != sum(counts[part] for part in parts):
            terms = " + ".join(f"{part} ({counts[part]})" for part in parts)
            raise RuntimeError(f"counts do not add up: {total} ({counts[total]}) is not {terms}")


def run_card(funnel: dict[str, Any], configuration: dict[str, Any], model_sha256: str, manifest_sha256: str,
             timings: dict[str, float], **facts: Any) -> dict[str, Any]:
    """The content of run.json. `funnel` is vetting.funnel's; `timings` in seconds; `facts` are added as they are.

    Credentials are taken out. Raises RuntimeError if the counts do not add up.
    """
    check_counts(funnel["counts"])
    card = {
        "run_id": run_id(configuration, model_sha256, manifest_sha256),
        "counts": funnel["counts"],
        "funnel": {name: value for name, value in funnel.items() if name != "counts"},
        "model_sha256": model_sha256,
        "input_manifest_sha256": manifest_sha256,
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        "versions": versions(),
        "configuration": configuration,
        **facts,
    }
    return without_credentials(card)


def write_run_card(run: str, card: dict[str, Any]) -> None:
    """Writes run.json below the folder or URL `run`, after checking that its counts add up."""
    check_counts(card["counts"])
    write_file(join(run, "run.json"), (json.dumps(card, indent=2, allow_nan=False) + "\n").encode())


def versions() -> dict[str, str]:
    """Versions of lensspark, Python and the installed packages that results depend on."""
    import platform

    found = {"lensspark": __version__, "python": platform.python_version()}
    for name in _COUNTED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
