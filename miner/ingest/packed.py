"""Packed files -> their bytes, and bytes of any encoding -> UTF-8."""

import bz2
import codecs
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

KINDS_OF_PACKING = (".gz", ".zst", ".bz2", ".zip")
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile)
GZIP, ZSTD, BZ2, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"PK\x03\x04"
STEP = 1 << 16  # bytes that are decoded at a time


def zip_members(path: Path) -> list[str]:
    """Return the files in a zip file, without what systems add; none if it is no zip file."""
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return []
    with zipfile.ZipFile(path) as packed:
        names = [info.filename for info in packed.infolist() if not info.is_dir()]
    return [name for name in names if not name.startswith("__MACOSX/") and "/." not in f"/{name}"]


@contextmanager
def unpacked(plain: io.BufferedReader, member: str | None = None) -> Iterator[io.BufferedReader]:
    """Yield the bytes of a file: of the member of a zip file; of gzip, zstd and bzip2, whatever
    the file's name says, unpacked.

    Raises:
        DAMAGED, OSError: it is damaged.
    """
    head = plain.peek(4)[:4]
    if member is not None:
        with zipfile.ZipFile(plain) as packed, packed.open(member) as inner:
            yield _buffered(inner)
    elif head[:2] == GZIP:
        yield _buffered(gzip.GzipFile(fileobj=plain))
    elif head[:3] == BZ2:
        yield _buffered(bz2.BZ2File(plain))
    elif head == ZSTD:
        with pa.CompressedInputStream(plain, "zstd") as stream:
            yield _buffered(stream)
    elif Path(str(plain.name)).suffix.lower() in KINDS_OF_PACKING:
        raise EOFError(f"it does not begin as such a file does, but with {head!r}")
    else:
        yield plain


def _buffered(stream: Any) -> io.BufferedReader:
    return io.BufferedReader(stream, STEP)


class Transcoded(io.RawIOBase):
    """A stream of text in some encoding, as UTF-8. Bytes that do not decode become 0xFF, which
    UTF-8 does not know, so that the line they stand in is found.
    """

    def __init__(self, stream: io.BufferedReader, encoding: str):
        self.stream, self.held, self.ended = stream, b"", False
        self.decoder = codecs.getincrementaldecoder(encoding)("replace")

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        """Fill a buffer."""
        while not self.held and not self.ended:
            step = self.stream.read(STEP)
            self.ended = not step
            text = self.decoder.decode(step, self.ended)
            parts = (part.encode("utf-8", "surrogatepass") for part in text.split("\ufffd"))
            self.held = b"\xff".join(parts)
        count = min(len(buffer), len(self.held))
        buffer[:count], self.held = self.held[:count], self.held[count:]
        return count
