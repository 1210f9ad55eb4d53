"""Tables in memory -> files for `quarry ingest tables`, so that the same code reads, checks and
fingerprints them. No library is imported for it: Arrow's C stream is what they have in common.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa

from miner.errors import UserError
from miner.ingest.inputs import BATCH, Input, check_columns, one_line
from miner.ingest.three_tables import NEEDED, OPTIONAL

EXPECTED = (
    "a pyarrow table, a DataFrame of pandas or polars, a data set of datasets, a list of dicts, or"
    " the path of a file"
)
STREAMS = ("__arrow_c_stream__", "to_arrow")  # ways to Arrow, the better first
Rows = Iterator[Mapping[str, Any]]


def written(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the tables among the options of `ingest tables` into a folder, a file each, and name
    the files instead; the same rows give the same bytes, however they were held.

    Raises:
        UserError: one is of a type that cannot be read, or lacks a column.
    """
    given = dict(options)
    for name in NEEDED:
        if not isinstance(given.get(name), str | PathLike | None):
            file = folder / f"{name}.jsonl"
            with open(file, "w", encoding="utf-8") as stream:
                stream.writelines(_lines(name, given[name]))
            given[name] = file
    return given


def refuse_tables(command: str, options: Mapping[str, Any]) -> None:
    """Refuse tables in memory where a file is expected.

    Raises:
        UserError: there is one.
    """
    for name, value in options.items():
        rows = _is_list(value) and len(value) > 0
        if rows or any(hasattr(value, way) for way in (*STREAMS, "with_format")):
            raise UserError(
                f"{command}: {name} is a {type(value).__name__}; expected the name of a file:"
                " tables in memory go in as ingest(documents=…, queries=…, positives=…)"
            )


def _lines(name: str, given: Any) -> Iterator[str]:
    """Yield the rows of a table as JSON lines, the columns that are read of it in fixed order."""
    wanted = (*NEEDED[name], *OPTIONAL[name])
    try:
        columns, rows = _opened_table(name, given, wanted)
        if columns is not None:
            check_columns(Input(name, Path()), dict.fromkeys(NEEDED[name], ""), columns)
        for row in rows:
            told = {column: row[column] for column in wanted if column in row}
            yield json.dumps(told, default=_python_number) + "\n"
    except (pa.ArrowException, ValueError, _NotPlain) as error:
        raise UserError(f"{name}: cannot be read ({one_line(error)})") from error


def _opened_table(name: str, given: Any, wanted: Sequence[str]) -> tuple[list[str] | None, Rows]:
    """Return the names of the columns, None if they are not known yet, and the rows."""
    if _is_list(given):
        return list(dict.fromkeys(column for row in given for column in row)), iter(given)
    if hasattr(given, "__arrow_c_stream__"):
        stream = pa.RecordBatchReader.from_stream(given)
        return stream.schema.names, _rows_of(stream, wanted)
    if hasattr(given, "to_arrow"):
        table = given.to_arrow()
        return table.column_names, _rows_of(table.to_batches(), wanted)
    if hasattr(given, "with_format") and hasattr(given, "iter"):  # of datasets; keeps its order
        return given.column_names, _rows_of(given.with_format("arrow").iter(BATCH), wanted)
    raise UserError(f"{name}: is a {type(given).__name__}; expected {EXPECTED}")


def _is_list(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(isinstance(row, Mapping) for row in given)


def _rows_of(batches: Iterable[Any], wanted: Sequence[str]) -> Rows:
    for batch in batches:
        part = batch.select([column for column in batch.schema.names if column in wanted])
        for start in range(0, part.num_rows, BATCH):
            yield from part.slice(start, BATCH).to_pylist()


class _NotPlain(Exception):
    """What a cell holds that is neither text nor a number."""


def _python_number(value: Any) -> Any:
    """Return a number of NumPy as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise _NotPlain(f"holds a {type(value).__name__}; expected text or a number")
