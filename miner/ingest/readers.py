"""Files -> records: JSON lines, JSON, CSV, TSV, Parquet, Hugging Face datasets and TREC markup, one
row at a time with its line.

A row that cannot be read is a `Bad` in its place, for the caller to count; a file that cannot be
read is a `UserError`. TSV is one line a row and knows no quotes: passages begin with quotation
marks too often.
"""

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from miner.errors import UserError
from miner.ingest.inputs import (
    BATCH,
    SURROGATE,
    Bad,
    Hub,
    Input,
    Records,
    check_columns,
    find_on_hub,
    lines,
    one_line,
    opened,
)

KINDS = "expected .jsonl, .json, .csv, .tsv (.gz may follow) or .parquet, or hf:NAME"


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
        return find_on_hub(file, file.where, needs, also)
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
