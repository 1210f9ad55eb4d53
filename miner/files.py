"""Files that are written whole or not at all, and fingerprints of values and files."""

import hashlib
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, sync it and rename it to
    `path`, else remove it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, whole or not at all; the same table gives the same bytes. One without
    rows has no row group: `datasets` cannot load a file whose first one is empty.
    """
    with (
        atomic(path) as temporary,
        pq.ParquetWriter(temporary, table.schema, compression="zstd") as writer,
    ):
        if len(table):
            writer.write_table(table)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def write_lines(path: Path, lines: str) -> None:
    """Write JSON lines, whole or not at all; each line ends with a newline."""
    with atomic(path) as temporary:
        temporary.write_text(lines, "utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def fingerprint(value: Any, size: int = 8) -> str:
    """Return 2 * size hex digits that stand for a JSON value."""
    return hashlib.blake2b(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        digest_size=size,
    ).hexdigest()


def file_fingerprint(path: Path) -> str:
    """Return 16 hex digits that stand for a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def code_version() -> str:
    """Return quarry's version."""
    try:
        return version("quarry-negatives")
    except PackageNotFoundError:
        return "not installed"


class Stopwatch:
    """Seconds and peak memory of this process and its finished workers since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        try:  # Linux: begin the peak anew, so that a stage does not report an earlier one's
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return round(time.perf_counter() - self.start, 3)

    def peak_memory_mb(self) -> float:
        """Return the peak resident memory in MB: this process's since the start, or if larger
        the largest of any worker it ever had.
        """
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            pass
        return round(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024, 1)
