"""Files -> records: JSON lines, JSON, CSV, TSV, Parquet, Hugging Face datasets and TREC markup, one
row at a time with its line.

A row that cannot be read is a `Bad` in its place, for the caller to count; a file that cannot be
read is a `UserError`. TSV is one line a row and knows no quotes: passages begin with quotation
marks too often.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from miner.errors import UserError
from miner.files import file_fingerprint, fingerprint

BATCH = 1024  # rows of a Parquet file that are turned into Python values at a time
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may leave half a character
KINDS = "expected .jsonl, .json, .csv, .tsv (.gz may follow) or .parquet, or hf:NAME"


class Bad(NamedTuple):
    """A row that could not be read: the reason that is counted, and the row as text."""

    reason: str
    raw: str


Records: TypeAlias = Iterator[tuple[int, dict[str, Any] | Bad]]


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


def records(file: Input, needs: Mapping[str, str], also: Collection[str] = ()) -> Records:
    """Yield the rows of a file by its extension.

    Args:
        file: what to read.
        needs: column that the file must have -> the flag that names another one, or "".
        also: further columns that are read if they are there.

    Raises:
        UserError: the file is of no known kind, cannot be read, or lacks a column in all of its
            rows.
    """
    if isinstance(file.where, Hub):
        return _hub(file, file.where, needs, also)
    kind = Path(file.path.name.lower().removesuffix(".gz")).suffix
    if kind in (".jsonl", ".ndjson"):
        return json_lines(file, needs)
    if kind == ".json":
        return _json(file, needs)
    if kind in (".csv", ".tsv"):
        return _with_header(file, _csv_cells(file) if kind == ".csv" else tsv_cells(file), needs)
    if kind == ".parquet":
        return _parquet(file, needs, also)
    raise UserError(f"{file.name}: unknown kind of file; {KINDS}")


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


def json_lines(file: Input, needs: Mapping[str, str]) -> Records:
    """Yield one object a line; blank lines are passed over. A column may be absent from some
    rows, but not from all (UserError).
    """
    missing, found = set(needs), dict[str, None]()
    for number, line in lines(file):
        row = _parse(line) if isinstance(line, str) else line
        if isinstance(row, dict) and missing:
            missing -= row.keys()
            found.update(dict.fromkeys(row))
        if row is not None:
            yield number, row
    if found:
        check_columns(file, {column: needs[column] for column in needs if column in missing}, found)


def _parse(line: str) -> dict[str, Any] | Bad | None:
    if not line or line.isspace():
        return None
    try:
        return _checked(json.loads(line), lambda: line)
    except (ValueError, RecursionError):
        return Bad("not_json", line)


def _checked(row: Any, raw: Callable[[], str]) -> dict[str, Any] | Bad:
    """Return a row if it is an object whose text can be written as UTF-8: an escape may have
    left half a character.
    """
    if not isinstance(row, dict):
        return Bad("not_json", raw())
    try:
        if SURROGATE.search(raw()):
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Bad("not_utf8", raw())
    return row


def _json(file: Input, needs: Mapping[str, str]) -> Records:
    """Yield the objects of a JSON list, COCO's `annotations`, or JSON lines under another name;
    a place is the position in the list.
    """
    with opened(file) as stream:
        content = stream.read()
    try:
        value = json.loads(content.decode())
    except RecursionError as error:
        raise UserError(f"{file.name}: nested too deeply for a table") from error
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from json_lines(file, needs)
            return
        raise UserError(f"{file.name}: not valid JSON ({one_line(error)})") from error
    rows = value.get("annotations", [value]) if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise UserError(
            f'{file.name}: expected a list of objects, or an object with a list of "annotations" as'
            " COCO has it"
        )
    if isinstance(value, dict) and "file_name" in needs:
        _add_file_names(rows, value.get("images"))
    check_columns(
        file, needs, dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)
    )
    for number, row in enumerate(rows, 1):
        yield number, _checked(row, partial(json.dumps, row))


def _add_file_names(annotations: list[Any], images: Any) -> None:
    """Give COCO's annotations the file_name of their image; where a file has lost its "images",
    that which COCO 2017 gives every image.
    """
    images = (
        [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    )
    listed = {
        image["id"]: image.get("file_name") for image in images if isinstance(image.get("id"), int)
    }
    for row in annotations:
        if (
            isinstance(row, dict)
            and "file_name" not in row
            and isinstance(number := row.get("image_id"), int)
        ):
            row["file_name"] = listed.get(number) if listed else f"{number:012d}.jpg"


def tsv_cells(file: Input) -> Iterator[tuple[int, list[str] | Bad]]:
    """Yield the cells of each line that is not blank."""
    for number, line in lines(file):
        if isinstance(line, Bad):
            yield number, line
        elif line:
            yield number, line.split("\t")


def _csv_cells(file: Input) -> Iterator[tuple[int, list[str] | Bad]]:
    """Yield the cells of each row. A wrong quote would swallow the rows behind it, so it stops
    the reading (UserError).
    """
    csv.field_size_limit(2**31 - 1)
    with opened(file) as stream:
        reader = csv.reader((line.decode(errors="surrogateescape") for line in stream), strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f"{file.name}:{line}: {error}; expected quotes that are closed, and doubled"
                    " inside a field"
                ) from error
            if cells is None:
                return
            try:
                "".join(cells).encode()
            except UnicodeEncodeError:
                yield (
                    line,
                    Bad(
                        "not_utf8",
                        ",".join(cells).encode(errors="surrogateescape").decode(errors="replace"),
                    ),
                )
            else:
                if cells:
                    yield line, cells


def _with_header(
    file: Input, rows: Iterator[tuple[int, list[str] | Bad]], needs: Mapping[str, str]
) -> Records:
    _, header = next(rows, (0, []))
    if isinstance(header, Bad):
        raise UserError(f"{file.name}: its first line is not UTF-8; convert the file")
    check_columns(file, needs, header)
    for line, cells in rows:
        if isinstance(cells, Bad):
            yield line, cells
        elif len(cells) != len(header):
            yield line, Bad("bad_columns", "\t".join(cells))
        else:
            yield line, dict(zip(header, cells, strict=True))


def _parquet(file: Input, needs: Mapping[str, str], also: Collection[str]) -> Records:
    line = 0
    try:
        with pq.ParquetFile(file.path) as table:
            check_columns(file, needs, table.schema_arrow.names)
            columns = [name for name in table.schema_arrow.names if name in {*needs, *also}]
            for batch in table.iter_batches(BATCH, columns=columns):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.name}: cannot be read as Parquet ({one_line(error)})") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file.name}: holds text that is not UTF-8, near row {line + 1}"
        ) from error


def _hub(file: Input, hub: Hub, needs: Mapping[str, str], also: Collection[str]) -> Records:
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


def blocks(file: Input, tag: str) -> Iterator[tuple[int, str | Bad]]:
    """Yield each <tag>…</tag> of TREC markup, tags included, with the line it begins on."""
    start, held, broken = 0, list[str](), False
    for number, line in lines(file):
        text = line.raw if isinstance(line, Bad) else line
        if f"<{tag}>" in text.lower():
            if held:
                yield start, Bad("bad_markup", "\n".join(held))
            start, held, broken = number, [], False
        elif not held:
            continue
        held.append(text)
        broken |= isinstance(line, Bad)
        if f"</{tag}>" in text.lower():
            yield start, Bad("not_utf8", "\n".join(held)) if broken else "\n".join(held)
            held = []
    if held:
        yield start, Bad("bad_markup", "\n".join(held))


def one_line(error: object) -> str:
    """Return a message of another library as one line."""
    return " ".join(str(error).split())
