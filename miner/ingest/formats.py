"""BEIR folders -> rows to stage.

Each format is a function of its options that gives a `Reading`. An id says what a thing is: a
second text under the same id is refused as duplicate_id, and what refers to the id means the first.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from miner.errors import UserError
from miner.ingest.inputs import Bad, Input, Records, find_input, lines
from miner.ingest.readers import records
from miner.ingest.rows import (
    Build,
    Ingest,
    Item,
    Reading,
    Reject,
    Row,
    build_rows,
    filled,
    identifier,
    text_of,
    title_of,
)
from miner.options import option
from miner.store import Run

RELEVANCE = range(-(2**31), 2**31)  # what int32 holds


class IngestBeir(Ingest):
    """BEIR folder: corpus.jsonl[.gz], queries.jsonl[.gz], qrels/SPLIT.tsv."""

    folder: Path = option(..., "the BEIR folder", argument=True)
    split: str = option("test", "which qrels to read: qrels/SPLIT.tsv")

    def read(self, run: Run) -> Reading:
        """BEIR folder -> rows."""
        return beir(self)


def beir(options: IngestBeir) -> Reading:
    """BEIR folder -> rows.

    Raises:
        UserError: a file or the split is missing.
    """
    corpus, queries = (
        _beir_file(options.folder, f"{name}.jsonl") for name in ("corpus", "queries")
    )
    qrels = _beir_split(options.folder, options.split)
    return Reading(
        {file.name: file.fingerprint() for file in (corpus, queries, qrels)},
        chain(
            build_rows(
                corpus,
                "documents",
                records(corpus, {"_id": "", "text": ""}),
                listed_document("_id", "text"),
            ),
            build_rows(
                queries,
                "queries",
                records(queries, {"_id": "", "text": ""}),
                listed_query("_id", "text"),
            ),
            read_qrels(qrels),
        ),
    )


def _beir_file(folder: Path, name: str) -> Input:
    for candidate in (name, f"{name}.gz"):
        if (folder / candidate).is_file():
            return find_input(folder / candidate, name=candidate)
    found = (
        ", ".join(sorted(file.name for file in folder.iterdir()))
        if folder.is_dir()
        else "no such folder"
    )
    raise UserError(f"{folder}: missing {name} or {name}.gz (found {found or 'nothing'})")


def _beir_split(folder: Path, split: str) -> Input:
    for suffix in (".tsv", ".tsv.gz"):
        if (folder / "qrels" / f"{split}{suffix}").is_file():
            return find_input(folder / "qrels" / f"{split}{suffix}", name=f"qrels/{split}{suffix}")
    found = ", ".join(
        sorted(
            file.name.removesuffix(".gz").removesuffix(".tsv")
            for file in (folder / "qrels").glob("*.tsv*")
        )
    )
    raise UserError(
        f'{folder / "qrels"}: missing split "{split}" (found {found or "none"}); name one with'
        " --split"
    )


def listed_document(id_column: str, text_column: str) -> Build:
    """Return what makes a document of a record whose columns are known."""

    def build(record: dict[str, Any]) -> Iterator[Item]:
        doc_id, title, text = (
            identifier(record, id_column),
            title_of(record),
            text_of(record, text_column),
        )
        filled(title, text)
        yield "documents", (doc_id, title, "listed", text)

    return build


def listed_query(id_column: str, text_column: str) -> Build:
    """Return what makes a query of a record whose columns are known."""

    def build(record: dict[str, Any]) -> Iterator[Item]:
        query_id, text = identifier(record, id_column), text_of(record, text_column)
        filled(text)
        yield "queries", (query_id, "listed", text)

    return build


def read_qrels(file: Input) -> Iterator[Row]:
    """Qrels -> positives of any grade: BEIR's three columns, with a header or without, or TREC's
    four.
    """
    return build_rows(file, "positives", _qrels_cells(file), _judgment)


def _qrels_cells(file: Input) -> Records:
    """Yield query, document and relevance; a first line of three columns whose last is no
    integer is a header.
    """
    first = True
    for number, line in lines(file):
        if isinstance(line, Bad):
            yield number, line
            continue
        cells = line.split("\t")
        if len(cells) not in (3, 4):
            cells = line.split()
        if not cells or (first and len(cells) == 3 and not _is_integer(cells[2])):
            first = first and not cells
            continue
        first = False
        if len(cells) in (3, 4):
            yield number, {"query": cells[0], "document": cells[-2], "relevance": cells[-1]}
        else:
            yield number, Bad("bad_columns", line)


def _judgment(record: dict[str, Any]) -> Iterator[Item]:
    if not _is_integer(record["relevance"]):
        raise Reject("bad_relevance")
    yield (
        "positives",
        (identifier(record, "query"), identifier(record, "document"), int(record["relevance"])),
    )


def _is_integer(text: str) -> bool:
    digits = text.strip().lstrip("+-")
    return digits.isascii() and digits.isdigit() and len(digits) < 11 and int(text) in RELEVANCE
