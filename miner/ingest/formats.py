"""BEIR folders -> rows to stage.

Each format is a function of its options that gives a `Reading`. An id says what a thing is: a
second text under the same id is refused as duplicate_id, and what refers to the id means the first.
"""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from miner.errors import UserError
from miner.ingest.inputs import Bad, Input, Records, find_input, find_member, lines
from miner.ingest.packed import zip_members
from miner.ingest.readers import read_rows
from miner.ingest.rows import (
    Build,
    Item,
    Reading,
    Reject,
    Row,
    WithRuns,
    build_rows,
    filled,
    identifier,
    text_of,
    title_of,
)
from miner.options import option
from miner.store import Run

RELEVANCE = range(-(2**31), 2**31)  # what int32 holds
PACKINGS = ("", ".gz", ".zst", ".bz2")
# tables write integers as floats where one is missing: 1.0
GRADE = re.compile(r"\s*([+-]?\d{1,10})(?:\.0*)?\s*", re.ASCII)


class IngestBeir(WithRuns):
    """BEIR folder, or its zip file: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, packed or not."""

    folder: Path = option(..., "the BEIR folder, or the zip file that it comes in", argument=True)
    split: str = option("test", "which qrels to read: qrels/SPLIT.tsv")

    def read(self, run: Run) -> Reading:
        """BEIR folder -> rows."""
        return beir(self)


def beir(options: IngestBeir) -> Reading:
    """BEIR folder -> rows.

    Raises:
        UserError: a file or the split is missing.
    """
    notes: list[str] = []
    corpus, queries = (
        options.opened(_beir_file(options.folder, f"{name}.jsonl"), notes)
        for name in ("corpus", "queries")
    )
    qrels = options.opened(_beir_split(options.folder, options.split), notes)
    needs = {"_id": "", "text": ""}
    rows = chain(
        read_rows(corpus, "documents", needs, listed_document("_id", "text"), ("title",)),
        read_rows(queries, "queries", needs, listed_query("_id", "text")),
        read_qrels(qrels),
    )
    return Reading(
        {file.name: file.fingerprint() for file in (corpus, queries, qrels)}, rows, notes
    )


def _beir_file(folder: Path, name: str) -> Input:
    if folder.is_file() and zip_members(folder):
        return find_member(Input(name, folder), name)
    for candidate in (f"{name}{packing}" for packing in PACKINGS):
        if (folder / candidate).is_file():
            return find_input(folder / candidate, name=candidate)
    found = (
        ", ".join(sorted(file.name for file in folder.iterdir()))
        if folder.is_dir()
        else "no such folder"
    )
    raise UserError(f"{folder}: missing {name}, packed or not (found {found or 'nothing'})")


def _beir_split(folder: Path, split: str) -> Input:
    if folder.is_file():
        names = [f"/{name}" for name in zip_members(folder)]
        if any(name.endswith(f"/qrels/{split}.tsv") for name in names):
            return find_member(Input(f"qrels/{split}.tsv", folder), f"qrels/{split}.tsv")
        splits = {Path(name).stem for name in names if "/qrels/" in name}
    else:
        for packing in PACKINGS:
            if (folder / "qrels" / f"{split}.tsv{packing}").is_file():
                name = f"qrels/{split}.tsv{packing}"
                return find_input(folder / name, name=name)
        splits = {file.name.partition(".tsv")[0] for file in (folder / "qrels").glob("*.tsv*")}
    raise UserError(
        f'{folder / "qrels"}: missing split "{split}" (found'
        f" {', '.join(sorted(splits)) or 'none'});"
        " name one with --split"
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
    number is a header.
    """
    first = True
    for number, line in lines(file):
        if isinstance(line, Bad):
            yield number, line
            continue
        cells = line.split("\t")
        if len(cells) not in (3, 4):
            cells = line.split()
        if not cells or (first and len(cells) == 3 and grade_of(cells[2]) is None):
            first = first and not cells
            continue
        first = False
        if len(cells) in (3, 4):
            yield number, {"query": cells[0], "document": cells[-2], "relevance": cells[-1]}
        else:
            yield number, Bad("bad_columns", line)


def _judgment(record: dict[str, Any]) -> Iterator[Item]:
    if (grade := grade_of(record["relevance"])) is None:
        raise Reject("bad_relevance")
    yield "positives", (identifier(record, "query"), identifier(record, "document"), grade)


def grade_of(text: str) -> int | None:
    """Return a grade; None for what is no integer, whether written 1 or 1.0."""
    found = GRADE.fullmatch(text)
    return int(found[1]) if found and int(found[1]) in RELEVANCE else None
