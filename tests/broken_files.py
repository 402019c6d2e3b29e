"""Ways to break a file that boss_files.py wrote: each function damages the file at `path`, or makes one that does."""

import os
from pathlib import Path

import boss_files as bf
from astropy.io import fits as afits


def offsets(path: Path) -> list[tuple[int, int]]:
    """(first byte of the data, their unpadded length) per HDU, by astropy."""
    with afits.open(path) as file:
        return [(hdu.fileinfo()["datLoc"], hdu.size) for hdu in file]


def header_of(path: Path, hdu: int) -> int:
    """First byte of the header of `hdu`."""
    with afits.open(path) as file:
        return file[hdu].fileinfo()["hdrLoc"]


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def patch(path: Path, offset: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset:offset + len(data)] = data
    path.write_bytes(raw)


def card(path: Path, keyword: bytes, value: str, hdu: int = 0) -> None:
    """Overwrite a card's value in the header of `hdu`, leaving everything else."""
    at = path.read_bytes().index(keyword.ljust(8) + b"=", header_of(path, hdu))
    patch(path, at, f"{keyword.decode():8}= {value:>20}".ljust(80).encode())


def rewrite(path: Path, change) -> None:
    """Change the HDU list of a spec file with astropy and write it again."""
    with afits.open(path) as file:
        hdus = [hdu.copy() for hdu in file]
    change(hdus)
    path.unlink()
    bf.write(path, hdus)


def with_pixel(name: str, value: float):
    def change(hdus):
        hdus[1].data[name][400:403] = value
    return lambda path: rewrite(path, change)


def without(name: str, hdu: int):
    def change(hdus):
        hdus[hdu] = afits.BinTableHDU.from_columns(
            [c for c in hdus[hdu].columns if c.name.lower() != name], header=afits.Header())
    return lambda path: rewrite(path, change)


def set_row(name: str, value):
    def change(hdus):
        hdus[2].data[name] = value
    return lambda path: rewrite(path, change)


def grid(start: int, step: float):
    def change(hdus):
        hdus[1].data["loglam"][start:] += step
    return lambda path: rewrite(path, change)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def named_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def flip_under_checksum(hdu: int, header: bool = False, at: int = 101):
    def damage(path):
        with afits.open(path) as file:
            hdus = [h.copy() for h in file]
        path.unlink()
        bf.write(path, hdus, checksum=True)
        raw = path.read_bytes()
        place = raw.index(b"SKYCHI2 =") + 29 if header else offsets(path)[hdu][0] + at
        patch(path, place, bytes([raw[place] ^ 1]))
    return damage


def zbest(path: Path) -> Path:
    return next(path.parent.rglob("spZbest*.fits"))


def rewrite_plate(path: Path, hdu: int, value) -> None:
    rewrite(path, lambda hdus: hdus[hdu].data.__setitem__((1, 500), value))


def set_zbest(name: str, value):
    def change(hdus):
        hdus[1].data[name][1] = value
    return lambda path: rewrite(zbest(path), change)


def remove_fibre(path: Path) -> None:
    rewrite(zbest(path), lambda hdus: hdus.__setitem__(1, afits.BinTableHDU(hdus[1].data[:2])))
