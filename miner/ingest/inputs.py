"""Where input comes from: files, packed or not, and data sets of the hub."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from miner.errors import UserError
from miner.files import file_fingerprint, fingerprint

BATCH = 1024  # rows of a Parquet file that are turned into Python values at a time
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may leave half a character


class Bad(NamedTuple):
    """A row that could not be read: the reason that is counted, and the row as text."""

    reason: str
    raw: str


class Hub(NamedTuple):
    """A data set that `datasets` reads."""

    name: str
    config: str | None
    split: str

    def builder(self) -> Any:
        """Return the builder of the data set.

        Raises:
            UserError: there is no such data set, or it cannot be reached.
        """
        from datasets import load_dataset_builder
        from datasets.exceptions import DatasetsError

        try:
            return load_dataset_builder(self.name, self.config)
        except (OSError, ValueError, DatasetsError) as error:
            raise UserError(f"hf:{self.name}: {one_line(error)}") from error


class Input(NamedTuple):
    """An input: the name that places and the manifest give it, and where it is."""

    name: str
    where: Path | Hub

    @property
    def path(self) -> Path:
        """Return the file's path."""
        if isinstance(self.where, Hub):
            raise UserError(f"{self.name} is a data set of the hub; expected a file")
        return self.where

    def fingerprint(self) -> str:
        """Return 16 hex digits that stand for the contents: of a file its bytes, of a data set
        its files and their versions.
        """
        if isinstance(self.where, Path):
            return file_fingerprint(self.where)
        builder = self.where.builder()
        files = {
            str(split): [str(part) for part in found.origin_metadata]
            for split, found in (builder.config.data_files or {}).items()
        }
        return fingerprint([builder.hash, files])


Records: TypeAlias = Iterator[tuple[int, dict[str, Any] | Bad]]


def check_columns(file: Input, needs: Mapping[str, str], found: Collection[str]) -> None:
    """Refuse a file that lacks a column.

    Raises:
        UserError: names the first missing column, those found and the flag that helps.
    """
    for column, option in needs.items():
        if column not in found:
            hint = f"; name it with {option}" if option else ""
            raise UserError(
                f'{file.name}: missing "{column}" (found {", ".join(found) or "nothing"}){hint}'
            )


def find_input(given: str | Path, split: str = "train", name: str | None = None) -> Input:
    """Return the input that the user gave: a path, or hf:NAME[:CONFIG].

    Raises:
        UserError: there is no such file.
    """
    if str(given).startswith("hf:"):
        repository, _, config = str(given).removeprefix("hf:").partition(":")
        return Input(str(given), Hub(repository, config or None, split))
    path = Path(given)
    if not path.is_file():
        raise UserError(
            f"{given}: {'is a folder; expected a file' if path.is_dir() else 'no such file'}"
        )
    return Input(name or path.name, path)


@contextmanager
def opened(file: Input) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """Open a file for reading bytes: gzip unpacked, a UTF-8 mark skipped.

    Raises:
        UserError: it cannot be read, is a damaged gzip file, or is UTF-16.
    """
    try:
        with open(file.path, "rb") as plain, _unpacked(plain, file.path.suffix == ".gz") as stream:
            head = stream.peek(4)[:4]
            if head[:2] in UTF16 or b"\0" in head:
                raise UserError(
                    f"{file.name}: is UTF-16 or binary, expected UTF-8; convert it, for example"
                    " with iconv -f UTF-16 -t UTF-8"
                )
            if head.startswith(codecs.BOM_UTF8):
                stream.read(len(codecs.BOM_UTF8))
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{file.name}: truncated or corrupt gzip file ({one_line(error)}); fetch or pack it"
            " again"
        ) from error
    except OSError as error:
        raise UserError(f"{file.name}: cannot be read ({one_line(error)})") from error


def _unpacked(
    plain: io.BufferedReader, zipped: bool
) -> gzip.GzipFile | nullcontext[io.BufferedReader]:
    return (
        gzip.GzipFile(fileobj=plain)
        if zipped or plain.peek(2)[:2] == b"\x1f\x8b"
        else nullcontext(plain)
    )


def lines(file: Input) -> Iterator[tuple[int, str | Bad]]:
    """Yield the number and text of each line, without its end; a line that is not UTF-8 is bad."""
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield number, line.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, Bad("not_utf8", line.decode(errors="replace").rstrip("\r\n"))


def find_on_hub(file: Input, hub: Hub, needs: Mapping[str, str], also: Collection[str]) -> Records:
    """Yield the records of a data set of the hub, or of a folder that holds one."""
    from datasets.exceptions import DatasetsError

    try:
        rows = hub.builder().as_streaming_dataset(split=hub.split)
        columns = rows.column_names or list(next(iter(rows), {}))
        check_columns(file, needs, columns)
        # an image that is not asked for is not decoded
        rows = rows.select_columns([name for name in columns if name in {*needs, *also}])
        yield from enumerate(rows, 1)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"{file.name}: {one_line(error)}") from error


def one_line(error: object) -> str:
    """Return a message of another library as one line."""
    return " ".join(str(error).split())
