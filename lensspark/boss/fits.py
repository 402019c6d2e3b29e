"""The part of FITS that BOSS files use, read by position: nothing is allocated or believed before it was checked.

Headers are parsed lazily, tables and images are read only where asked, every size is held against the size of the
file, and CHECKSUM and DATASUM are verified where present (FITS standard 4.0, section 4.4.2.7 and appendix J). What
fails a check raises `Fault`, which says where and why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lensspark.boss.stream import Fault, Stream

BLOCK = 2880
EXTENSION = b"XTENSION="
MAX_HEADER_BYTES = 1000 * BLOCK  # the longest real header (spec files, HDU 2) takes 20 blocks
CHECK_BYTES = 300 * BLOCK        # of an HDU whose checksum is verified, in memory at a time: they fit the core's cache
REQUEST_BYTES = 16000 * BLOCK    # the same where each piece is a request
ROWS_BY_SEEK = 16                # remote images: up to this many rows are fetched one by one, more as one span
BITPIX = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
TFORM = {"L": "S1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8", "C": ">c8", "M": ">c16",
         "A": "S", "P": ">i8", "Q": ">c16"}

_ABSENT = object()


class Header:
    """One HDU's header: `get(keyword, default)`; a card is looked for and parsed when asked for, and kept."""

    def __init__(self, raw: bytes, hdu: int):
        self.raw, self.hdu = raw, hdu
        self._known: dict[str, Any] = {}

    def __contains__(self, keyword: str) -> bool:
        return self.get(keyword, _ABSENT) is not _ABSENT

    def get(self, keyword: str, default: Any = None) -> Any:
        value = self._known.get(keyword)
        if value is None:
            value = self._known[keyword] = self._find(keyword)
        return default if value is _ABSENT else value

    def _find(self, keyword: str) -> Any:
        """The value of the first card of that name."""
        name = keyword.encode("latin-1").ljust(8) + b"= "
        at = self.raw.find(name)
        while at % 80 and at >= 0:
            at = self.raw.find(name, at + 1)
        return _ABSENT if at < 0 else self._value(self.raw[at:at + 80])

    def number(self, keyword: str, default: Any = None) -> Any:
        """A numeric value; Fault if it is missing without a default, or no number."""
        value = self.get(keyword, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Fault(f"{keyword} = {value!r}, expected a number", self.hdu)
        return value

    @staticmethod
    def _value(card: bytes) -> Any:
        text = card[10:].decode("latin-1").strip()
        if text.startswith("'"):
            return text[1:].replace("''", "\0").partition("'")[0].replace("\0", "'").rstrip()
        text = text.partition("/")[0].strip()
        if text in ("T", "F"):
            return text == "T"
        for kind in (int, float):
            try:
                return kind(text.replace("D", "E"))
            except ValueError:
                continue
        return text


@dataclass(frozen=True)
class HDU:
    """Header and place of one HDU; `data` is the offset of its data, `nbytes` their unpadded length."""

    stream: Stream
    number: int
    header: Header
    start: int
    data: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.data + -(-self.nbytes // BLOCK) * BLOCK

    def verify(self) -> None:
        """Fault if CHECKSUM or DATASUM contradicts the bytes; costs reading the whole HDU, only where one is given."""
        datasum, checksum = self.header.get("DATASUM"), self.header.get("CHECKSUM")
        if datasum in (None, "") and checksum in (None, ""):
            return
        found, at_once = 0, CHECK_BYTES if self.stream.cheap_seeks else REQUEST_BYTES
        for offset in range(self.data, self.end, at_once):
            piece = self.stream.read(offset, min(at_once, self.end - offset), self.number)
            found = ones_complement_sum(piece, found)
        if datasum not in (None, "") and int(datasum) != found:
            raise Fault(f"DATASUM is {datasum}, but the data sum to {found}", self.number)
        total = ones_complement_sum(self.header.raw, found)
        if checksum not in (None, "") and total != 0xFFFFFFFF:
            raise Fault(f"CHECKSUM mismatch: the HDU sums to {total}, expected {0xFFFFFFFF}", self.number)


def ones_complement_sum(data: bytes, start: int = 0) -> int:
    """FITS's 32-bit ones'-complement sum (standard 4.0, appendix J) of `data`, whose length is a multiple of 4."""
    total = start + int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def hdus(stream: Stream, last: int) -> list[HDU]:
    """The HDUs of a file; their data lie within it, also those of HDUs that nobody asks for: a file is whole or is not.

    Raises Fault if the file is not FITS, a header has no END, or data are claimed beyond the end of the file. What
    follows HDU `last` without being an HDU is left alone: the standard allows special records at the end.
    """
    found: list[HDU] = []
    offset = 0
    while offset < stream.size:
        number = len(found)
        if number > last and not _begins_extension(stream, offset):
            break
        raw = _header_bytes(stream, offset, number)
        header, nbytes = _header(raw, number)
        unit = HDU(stream, number, header, offset, offset + len(raw), nbytes)
        if unit.data + unit.nbytes > stream.size:
            raise Fault(
                f"truncated: the header claims data up to byte {unit.data + unit.nbytes}, the file has {stream.size}",
                number,
            )
        found.append(unit)
        offset = unit.end
    return found


def _begins_extension(stream: Stream, offset: int) -> bool:
    return stream.read(offset, min(len(EXTENSION), stream.size - offset)) == EXTENSION


def _header_bytes(stream: Stream, offset: int, number: int) -> bytes:
    expected = EXTENSION if number else b"SIMPLE  ="
    raw = b""
    while True:
        # Extensions of images are short, primary headers and tables are not: begin with little, then take more.
        step = BLOCK if number and not raw else 8 * BLOCK
        step = min(step, stream.size - offset - len(raw)) // BLOCK * BLOCK
        if not raw and not stream.read(offset, min(9, stream.size - offset), number).startswith(expected):
            begin = stream.read(offset, min(20, stream.size - offset), number)
            raise Fault(f"not FITS: HDU {number} begins with {begin!r}, expected {expected.decode()!r}", number)
        if step == 0 or len(raw) >= MAX_HEADER_BYTES:
            raise Fault(f"truncated: no END card in the {len(raw)} bytes of the header", number)
        raw += stream.read(offset + len(raw), step, number)
        end = _end_card(raw)
        if end is not None:
            return raw[:-(-(end + 80) // BLOCK) * BLOCK]


def _end_card(raw: bytes) -> int | None:
    end = raw.find(b"END" + b" " * 77)
    while end >= 0 and end % 80:
        end = raw.find(b"END" + b" " * 77, end + 1)
    return end if end >= 0 else None


@lru_cache(maxsize=32)  # a plate's spec files have equal headers, but for the first one of each
def _header(raw: bytes, hdu: int) -> tuple[Header, int]:
    header = Header(raw, hdu)
    return header, _data_bytes(header)


def _data_bytes(header: Header) -> int:
    axes = [header.number(f"NAXIS{i + 1}") for i in range(header.number("NAXIS"))]
    if header.get("GROUPS") is True or any(type(n) is not int or n < 0 for n in axes):
        raise Fault(f"NAXISn = {axes}, expected counts >= 0", header.hdu)
    bitpix, gcount, pcount = header.number("BITPIX"), header.number("GCOUNT", 1), header.number("PCOUNT", 0)
    if bitpix not in BITPIX or gcount != 1 or type(pcount) is not int or pcount < 0:
        raise Fault(f"BITPIX = {bitpix}, GCOUNT = {gcount}, PCOUNT = {pcount}, expected {sorted(BITPIX)}, 1 and >= 0",
                    header.hdu)
    return abs(bitpix) // 8 * (pcount + (math.prod(axes) if axes else 0))


@lru_cache(maxsize=32)  # the headers of a plate's lite files differ in little but their first cards
def _layout(raw: bytes, hdu: int) -> dict[str, tuple[int, np.dtype]]:
    """Upper-case column name -> (offset in the row, dtype)."""
    header, offset, columns = Header(raw, hdu), 0, {}
    for i in range(1, header.number("TFIELDS") + 1):
        form = str(header.get(f"TFORM{i}")).strip()
        digits = len(form) - len(form.lstrip("0123456789"))
        repeat, code = int(form[:digits] or 1), form[digits:digits + 1]
        if code == "X":
            repeat, code = (repeat + 7) // 8, "B"
        if code not in TFORM:
            raise Fault(f"TFORM{i} = {form!r}, expected one of {''.join(TFORM)}X", hdu)
        if code == "A":
            dtype = np.dtype(f"S{repeat}")
        else:
            dtype = np.dtype((TFORM[code], (repeat,))) if repeat != 1 else np.dtype(TFORM[code])
        if header.get(f"TSCAL{i}", 1) == 1 and header.get(f"TZERO{i}", 0) == 0:
            columns.setdefault(str(header.get(f"TTYPE{i}", "")).upper(), (offset, dtype))
        offset += dtype.itemsize
    if offset != header.number("NAXIS1"):
        raise Fault(f"NAXIS1 = {header.number('NAXIS1')}, but the columns take {offset} bytes", hdu)
    return columns


def read_table(unit: HDU, names: tuple[str, ...], rows: slice = slice(None), essential: tuple[str, ...] = ()):
    """Columns `names` (upper case; those present) of rows `rows` of a binary table, as a dict of arrays (n, ...).

    Numbers come in native byte order, text as stripped bytes. Raises Fault for a missing `essential` column.
    """
    if unit.header.get("XTENSION") != "BINTABLE":
        raise Fault(f"XTENSION = {unit.header.get('XTENSION')!r}, expected 'BINTABLE'", unit.number)
    columns = _layout(unit.header.raw, unit.number)
    for name in essential:
        if name not in columns:
            raise Fault(f"no column {name}; has {', '.join(list(columns)[:12])}, ...", unit.number)
    width, (first, stop, _) = unit.header.number("NAXIS1"), rows.indices(unit.header.number("NAXIS2"))
    count = max(stop - first, 0)
    raw = unit.stream.read(unit.data + first * width, count * width, unit.number)
    stored, wanted = _record(unit.header.raw, unit.number, names)
    table = np.frombuffer(raw, stored, count)
    if count == 1:  # of which numpy converts all columns in little more time than one
        table = table.astype(wanted)
        return {name: table[name] for name in wanted.names}
    return {name: native(table[name]) for name in wanted.names}


@lru_cache(maxsize=32)
def _record(raw: bytes, hdu: int, names: tuple[str, ...]) -> tuple[np.dtype, np.dtype]:
    """Those of the columns `names` that a table has: as they lie in its rows, and in native byte order side by side."""
    columns, width = _layout(raw, hdu), Header(raw, hdu).number("NAXIS1")
    present = [name for name in names if name in columns]
    stored = np.dtype({"names": present, "offsets": [columns[name][0] for name in present],
                       "formats": [columns[name][1] for name in present], "itemsize": width})
    return stored, np.dtype([(name, columns[name][1].newbyteorder("=")) for name in present])


def read_image(unit: HDU, rows: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Pixels [first, stop) of `rows` of a 2-D image -> (len(rows), stop - first), native byte order.

    Only these bytes are read, but for remote files with many rows, where one request for all of them is cheaper.
    """
    header, number = unit.header, unit.number
    if header.number("NAXIS") != 2 or header.get("BSCALE", 1) != 1 or header.get("BZERO", 0) != 0:
        raise Fault(f"NAXIS = {header.get('NAXIS')}, BSCALE = {header.get('BSCALE', 1)}, BZERO = "
                    f"{header.get('BZERO', 0)}, expected an unscaled image of 2 axes", number)
    dtype = np.dtype(BITPIX[header.number("BITPIX")])
    width, size = header.number("NAXIS1"), dtype.itemsize
    if not len(rows) or stop <= first:
        return np.zeros((len(rows), max(stop - first, 0)), dtype.newbyteorder("="))
    if unit.stream.cheap_seeks or len(rows) <= ROWS_BY_SEEK:
        out = np.empty((len(rows), stop - first), dtype)
        view, nbytes = memoryview(out.view(np.uint8).reshape(-1)), (stop - first) * size
        for i, row in enumerate(rows.tolist()):
            start = unit.data + (row * width + first) * size
            unit.stream.read_into(view[i * nbytes:(i + 1) * nbytes], start, number)
        return out if dtype.isnative else out.byteswap(inplace=True).view(dtype.newbyteorder("="))
    low, high = int(rows.min()), int(rows.max()) + 1
    raw = unit.stream.read(unit.data + low * width * size, (high - low) * width * size, number)
    return native(np.frombuffer(raw, dtype).reshape(high - low, width)[rows - low, first:stop])


def native(array: np.ndarray) -> np.ndarray:
    """`array` in this machine's byte order, contiguous; text as is."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
