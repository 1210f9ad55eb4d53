"""What every input format yields: staged rows with their place, and the checks of ids and texts
that all formats share.

A format is a generator of `Row`. The first value of a row that stands for a thing is its id; a text
comes last, so that the stage can count how much it holds. What is wrong with a single row is a
`Reject`: it is counted, kept with its place, and the rest goes on.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from miner.ingest.inputs import Bad, Input, Quoting, Records, find_input
from miner.options import Options, option
from miner.store import Run

# bytes; ids are kept as fixed-width bytes, so a single long one would be paid for by all
LONGEST_ID = 512
LONGEST_RAW = 500

Name = Literal["documents", "queries", "positives", "negatives", "labels", "captions", "rejects"]
# A row's origin is "listed", "hashed" or "paired": a listed id must not come twice; a hashed one,
# or one of a pair, may with the same text.
Item: TypeAlias = tuple[Name, tuple[Any, ...]]
Build: TypeAlias = Callable[[dict[str, Any]], Iterator[Item]]


class Row(NamedTuple):
    """A row to stage: its table, the place it was read at, and the table's values as
    `miner.ingest.staging.STAGED` names them.
    """

    table: Name
    file: str
    line: int
    values: tuple[Any, ...]


class Reading(NamedTuple):
    """What a format gives: the fingerprint of each input by name, the rows, not yet begun, and what
    is to be said of how they were read, as far as they are.
    """

    inputs: Mapping[str, str]
    rows: Iterator[Row]
    notes: list[str]


class Ingest(Options):
    """What every ingest takes. The class of a format says how its input is read."""

    min_relevance: int = option(1, "qrels with a lower grade are no positives")
    encoding: str | None = option(
        None, "encoding of the files, such as latin-1 or utf-16 [default: UTF-8]"
    )
    quoting: Quoting = option(
        "auto", "cells of a TSV: quoted, as pandas writes them, or raw, quotes are letters"
    )
    limit: int | None = option(None, "keep only the first N queries, in order of query_id", ge=1)
    shard_queries: int = option(2048, "queries in a query shard", ge=1)
    shard_documents: int = option(16384, "documents in a document shard", ge=1)

    def read(self, run: Run) -> Reading:
        """Return the rows of the input, and fingerprints of its files.

        Raises:
            UserError: a file is missing.
        """
        raise NotImplementedError

    def input(self, given: str | Path, notes: list[str], **where: Any) -> Input:
        """Return an input of this ingest; how it is read is noted in `notes`.

        Raises:
            UserError: it is missing.
        """
        return self.opened(find_input(given, **where), notes)

    def opened(self, file: Input, notes: list[str]) -> Input:
        """Return an input that is read as the options say."""
        return file._replace(encoding=self.encoding, quoting=self.quoting, notes=notes)


class Hit(NamedTuple):
    """A line of a run; without a rank, that of all lines follows from the scores."""

    query_id: str
    doc_id: str
    rank: int | None
    score: float


class RunFile(NamedTuple):
    """What another retriever found.

    Attributes:
        name: of the source that it becomes.
        given: what the user named.
        file: that it is.
        form: "trec" or "table".
        hits: reads it; a `Reject` is what is wrong with a line that is no hit.
    """

    name: str
    given: str
    file: Input
    form: str
    hits: "Callable[[], Iterator[Hit | Reject]]"


class WithRuns(Ingest):
    """What an ingest takes whose ids another retriever knows."""

    run_file: tuple[str, ...] = option(
        (),
        "what another retriever found becomes a source: FILE or NAME=FILE, a TREC run, or Parquet,"
        " jsonl, csv, tsv with query_id, doc_id, score; repeat for more",
    )


class Reject(Exception):
    """What is wrong with a row: the message is the reason that is counted."""


def build_rows(file: Input, table: str, records: Records, build: Build) -> Iterator[Row]:
    """Yield what `build` makes of each record, and a reject of `table` for each record that is
    bad or that `build` refuses.
    """
    for line, record in records:
        try:
            if isinstance(record, Bad):
                raise Reject(record.reason)
            for name, values in build(record):
                yield Row(name, file.name, line, values)
        except Reject as reject:
            yield Row("rejects", file.name, line, (table, str(reject), raw(record)))


def raw(record: Mapping[str, Any] | Bad) -> str:
    """Return a record as text, cut: what the user needs to find it again."""
    text = (
        record.raw
        if isinstance(record, Bad)
        else json.dumps(record, ensure_ascii=False, default=str)
    )
    return text.encode("utf-8", "replace").decode()[:LONGEST_RAW]


def identifier(record: Mapping[str, Any], column: str) -> str:
    """Return an id as text; a number becomes its decimal form, a whole one without a point: tables
    turn integers into floats where one is missing.

    Raises:
        Reject: missing_<column>; bad_id for one that is empty, no text or number, holds NUL or is
            longer than 512 bytes.
    """
    value = record.get(column)
    if is_null(value):
        raise Reject(f"missing_{column}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Reject("bad_id")
    whole = isinstance(value, float) and value.is_integer()
    text = str(int(value) if whole else value)
    if not text or "\0" in text or len(text.encode()) > LONGEST_ID:
        raise Reject("bad_id")
    return text


def text_of(record: Mapping[str, Any], column: str) -> str:
    """Return a text as it stands, blank or not; a number becomes its decimal form.

    Raises:
        Reject: missing_<column>; bad_text for a list, an object or a truth value.
    """
    value = record.get(column)
    if isinstance(value, str):
        return value
    if is_null(value):
        raise Reject(f"missing_{column}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Reject("bad_text")
    return str(value)


def title_of(record: Mapping[str, Any]) -> str:
    """Return the title, empty if there is none."""
    return "" if is_null(record.get("title")) else text_of(record, "title")


def filled(*texts: str) -> None:
    """Refuse a row all of whose texts are blank.

    Raises:
        Reject: empty_text.
    """
    if not any(text.strip() for text in texts):
        raise Reject("empty_text")


def first_of(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the first of the names that the record has, else the first of them all."""
    return next((name for name in names if name in record), names[0])


def is_null(value: Any) -> bool:
    """Say whether a value is null, as JSON, Arrow or pandas mean it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def hash_id(prefix: Literal["q", "d"], text: str) -> str:
    """Return the id of a text that has none: the prefix and 16 hex digits of its blake2b."""
    return prefix + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
