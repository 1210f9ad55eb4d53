"""Documents, queries and positives, each a table of its own -> rows to stage."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from miner.ingest.formats import grade_of, listed_document, listed_query
from miner.ingest.readers import read_rows
from miner.ingest.rows import Build, Ingest, Item, Name, Reading, Reject, identifier
from miner.options import option
from miner.store import Run

# the columns of each table: those that it must have, and those that it may have
NEEDED = {
    "documents": ("doc_id", "text"),
    "queries": ("query_id", "text"),
    "positives": ("query_id", "doc_id"),
}
OPTIONAL = {"documents": ("title",), "queries": (), "positives": ("relevance",)}


class IngestTables(Ingest):
    """Three files, a table each: documents (doc_id, title if any, text), queries (query_id, text)
    and positives (query_id, doc_id, relevance if any).
    """

    # free: what they hold decides, and that is the fingerprint of the input
    documents: str = option(
        ..., "jsonl, csv, tsv, parquet (.gz may follow), a folder of them, or hf:NAME", free=True
    )
    queries: str = option(..., "the same, of the queries", free=True)
    positives: str = option(..., "the same, of the positives", free=True)
    split: str = option("train", "split of hf:NAME")

    def read(self, run: Run) -> Reading:
        """Three tables -> rows."""
        return three_tables(self)


def three_tables(options: IngestTables) -> Reading:
    """Three tables -> rows.

    Raises:
        UserError: a file is missing.
    """
    notes: list[str] = []
    builds: dict[Name, Build] = {
        "documents": listed_document("doc_id", "text"),
        "queries": listed_query("query_id", "text"),
        "positives": _listed_positive,
    }
    files = {
        name: options.input(getattr(options, name), notes, split=options.split, name=name)
        for name in builds
    }
    rows = chain.from_iterable(
        read_rows(file, name, dict.fromkeys(NEEDED[name], ""), builds[name], OPTIONAL[name])
        for name, file in files.items()
    )
    return Reading({name: file.fingerprint() for name, file in files.items()}, rows, notes)


def _listed_positive(record: dict[str, Any]) -> Iterator[Item]:
    grade = grade_of(str(record["relevance"])) if "relevance" in record else 1
    if grade is None:
        raise Reject("bad_relevance")
    yield "positives", (identifier(record, "query_id"), identifier(record, "doc_id"), grade)
