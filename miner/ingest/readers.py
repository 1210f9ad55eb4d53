"""Files -> records: JSON lines, JSON, Parquet, Arrow, data sets and TREC markup, one row at a time
with its line; CSV and TSV are in `miner.ingest.delimited`.

A row that cannot be read is a `Bad` in its place, for the caller to count; a file that cannot be
read is a `UserError`.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from miner.errors import UserError
from miner.ingest.delimited import delimited
from miner.ingest.inputs import (
    BATCH,
    SURROGATE,
    Bad,
    Folder,
    Input,
    Records,
    check_columns,
    data_set_rows,
    lines,
    one_line,
    opened,
    wanted,
)
from miner.ingest.rows import Build, Name, Row, build_rows

KINDS = (
    "expected .jsonl, .json, .csv, .tsv (.gz, .zst, .bz2 or .zip may follow), .parquet or .arrow, a"
    " folder of such files, or hf:NAME"
)
# Flickr8k.token.txt, results_20130124.token
FLICKR = re.compile(r"(?P<id>(?P<image>[^\t]+\.(?:jpe?g|png|gif|webp))#\d+)\t(?P<caption>.*)", re.I)


def read_rows(
    file: Input, table: Name, needs: Mapping[str, str], build: Build, also: Collection[str] = ()
) -> Iterator[Row]:
    """Yield what `build` makes of the records of a file, or of each file of a folder; what is bad
    or refused is a reject of `table`. The rest is as in `records`.
    """
    return chain.from_iterable(
        build_rows(part, table, records(part, needs, also), build) for part in file.parts()
    )


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
    if isinstance(file.where, Folder):
        raise UserError(f"{file.name}: is a folder; expected a file")
    if not isinstance(file.where, Path):
        return data_set_rows(file, file.where, needs, also)
    if file.kind in (".jsonl", ".ndjson"):
        return json_lines(file, needs)
    if file.kind == ".json":
        return _json(file, needs)
    if file.kind in (".csv", ".tsv"):
        return delimited(file, needs)
    if file.kind in (".parquet", ".arrow"):
        return _columnar(file, needs, also)
    if file.kind in (".txt", ".token") and "caption" in needs:
        return _caption_lines(file, needs)
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


def _columnar(file: Input, needs: Mapping[str, str], also: Collection[str]) -> Records:
    """Yield the rows of a Parquet file, or of an Arrow file or stream."""
    line, reads = 0, _parquet if file.kind == ".parquet" else _arrow
    if file.member is not None:
        raise UserError(f"{file.name}: {file.member} is packed; unpack it")
    try:
        for batch in reads(file, needs, wanted(needs, also)):
            for row in batch.to_pylist():
                line += 1
                yield line, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file.name}: cannot be read as {file.kind[1:].title()} ({one_line(error)})"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file.name}: holds text that is not UTF-8, near row {line + 1}"
        ) from error


def _parquet(
    file: Input, needs: Mapping[str, str], read: Collection[str]
) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file.path) as table:
        names = table.schema_arrow.names
        check_columns(file, needs, names)
        yield from table.iter_batches(BATCH, columns=[name for name in names if name in read])


def _arrow(
    file: Input, needs: Mapping[str, str], read: Collection[str]
) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(file.path)) as source:
        if source.read(6) == b"ARROW1":
            stored = pa.ipc.open_file(source)
            names = stored.schema.names
            found = (stored.get_batch(number) for number in range(stored.num_record_batches))
        else:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            names, found = stream.schema.names, iter(stream)
        check_columns(file, needs, names)
        for batch in found:
            part = batch.select([name for name in names if name in read])
            for start in range(0, len(part), BATCH):
                yield part.slice(start, BATCH)


def _caption_lines(file: Input, needs: Mapping[str, str]) -> Records:
    """Yield the captions of a text file: Flickr's `image.jpg#0<TAB>caption`, a table whose first
    line names the columns, or one caption a line.
    """
    first = next((line for _, line in lines(file) if isinstance(line, str)), "")
    if FLICKR.match(first):
        check_columns(file, needs, ("caption", "id", "image_id", "file_name"))
        for number, line in lines(file):
            found = FLICKR.match(line) if isinstance(line, str) else None
            if found:
                name, caption = found["image"], found["caption"]
                row = {"id": found["id"], "image_id": name, "file_name": name, "caption": caption}
                yield number, row
            elif line:
                yield number, line if isinstance(line, Bad) else Bad("bad_columns", line)
    elif "caption" in re.split("[,;\t]", first):
        yield from delimited(file, needs)
    else:
        check_columns(file, needs, ("caption",))
        for number, line in lines(file):
            if line:
                yield number, line if isinstance(line, Bad) else {"caption": line}


def blocks(file: Input, tag: str) -> Iterator[tuple[int, str | Bad]]:
    """Yield each <tag …>…</tag> of TREC markup, tags included, with the line it begins on."""
    tags = re.compile(rf"<(?P<end>/?){tag}(?:\s[^>]*)?>", re.I)
    start, held, broken = 0, list[str](), False
    for number, line in lines(file):
        text, first = line.raw if isinstance(line, Bad) else line, 0
        for found in tags.finditer(text):
            if not found["end"]:
                if held:
                    yield start, Bad("bad_markup", "\n".join([*held, text[first : found.start()]]))
                start, held, broken, first = number, [""], isinstance(line, Bad), found.start()
            elif held:
                whole = "\n".join([*held, text[first : found.end()]])[1:]
                yield start, Bad("not_utf8", whole) if broken or isinstance(line, Bad) else whole
                held = []
        if held:
            held.append(text[first:])
            broken |= isinstance(line, Bad)
    if held:
        yield start, Bad("bad_markup", "\n".join(held)[1:])
