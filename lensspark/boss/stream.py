"""Positioned reads from local paths and fsspec URLs, and which errors are a file's fault rather than the way's."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

READ_AT_ONCE_BYTES = 4 << 20  # a file up to this size is read in one go: one request instead of many
MAX_GUNZIPPED_BYTES = 1 << 29  # a plate takes 0.11e9; more is no spectra file and would fill the memory
GUNZIP_BYTES = 1 << 20
_KIND = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
# Of the way to a file, not of the file: a crowded or restarted store or machine. EBUSY is s3fs's word for SlowDown.
TRANSIENT = {errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENETUNREACH,
             errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED}
UNREADABLE = "cannot be read"  # begins the reason of a fault of the file system's, rather than of the content
# What reading bytes that are not what they claim to be can raise; a lost connection is not among them (see `fault_of`).
DATA_ERRORS = (OSError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, zlib.error)


class Fault(Exception):
    """A file, HDU or spectrum that cannot be trusted: `hdu` (None: the file as a whole) and `reason`."""

    def __init__(self, reason: str, hdu: int | None = None):
        super().__init__(reason)
        self.reason, self.hdu = reason, hdu


def fault_of(error: Exception) -> Fault:
    """`error` as a Fault. A lost connection is raised again: the task must be retried, the file is not at fault."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, (ConnectionError, TimeoutError)) or getattr(error, "errno", None) in TRANSIENT:
        raise error
    if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
        return Fault(f"gzip stream is damaged or truncated: {error}")
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Fault(f"{UNREADABLE}: {type(error).__name__}: {text}")


@dataclass(frozen=True)
class Stream:
    """Random access to one file: `read(offset, n)` gives n bytes, or raises Fault where the file ends before."""

    path: str
    size: int
    fetch: Callable[[int, int], bytes]
    cheap_seeks: bool
    fd: int | None = None  # of a local file

    def read(self, offset: int, n: int, hdu: int | None = None) -> bytes:
        if offset + n > self.size:
            raise Fault(f"truncated: the file has {self.size} bytes, expected at least {offset + n}", hdu)
        data = self.fetch(offset, n)
        if len(data) != n:
            raise Fault(f"truncated: {len(data)} bytes at offset {offset}, expected {n}", hdu)
        return data

    def read_into(self, out: memoryview, offset: int, hdu: int | None = None) -> None:
        """Fills `out`, bytes, from `offset` on: as `read`, but without a copy of a local file's bytes."""
        if self.fd is None:
            out[:] = self.read(offset, len(out), hdu)
        elif (n := os.preadv(self.fd, (out,), offset)) != len(out):
            raise Fault(f"truncated: {n} bytes at offset {offset}, expected {len(out)}", hdu)


@contextmanager
def open_stream(path: str, size: int | None = None) -> Iterator[Stream]:
    """Open a local path or fsspec URL for positioned reads; gzip is recognised by its content, whatever the name.

    `size` spares a remote look-up where a listing gave it. Credentials and endpoints are fsspec's own configuration.
    """
    if "://" in path:
        import fsspec

        fs, name = fsspec.core.url_to_fs(path)
        size = fs.size(name) if size is None else size
        yield _stream(path, size, lambda offset, n: fs.cat_file(name, start=offset, end=offset + n), False)
        return
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would be waited for, for ever
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise Fault(f"is a {_KIND.get(stat.S_IFMT(facts.st_mode), 'device')}, expected a file")
        yield _stream(path, facts.st_size, lambda offset, n: os.pread(fd, n, offset), True, fd)
    finally:
        os.close(fd)


def _stream(path: str, size: int, fetch: Callable[[int, int], bytes], cheap_seeks: bool, fd: int | None = None
            ) -> Stream:
    if size == 0:
        raise Fault("empty file")
    head = fetch(0, size if size <= READ_AT_ONCE_BYTES else 2)
    if head[:2] == b"\x1f\x8b":
        head = _unpacked(head if len(head) == size else fetch(0, size))
        size = len(head)
    if len(head) == size:
        return Stream(path, size, lambda offset, n: head[offset:offset + n], True)
    return Stream(path, size, fetch, cheap_seeks, fd)


def _unpacked(packed: bytes) -> bytes:
    """In pieces: asked for all at once, gzip reserves the memory of all that is asked for."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        while piece := file.read(GUNZIP_BYTES):
            out.write(piece)
            if out.tell() > MAX_GUNZIPPED_BYTES:
                raise Fault(f"gzip stream unpacks to more than {MAX_GUNZIPPED_BYTES} bytes")
    return out.getvalue()
