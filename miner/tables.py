"""Every table of a run, in flow order: its columns and its key. One screen holds them all.

Schemas are declared, never inferred. `score` is comparable only within a source, `rank` starts at
1, ties are broken by doc_id.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from miner.errors import UserError


class Table(NamedTuple):
    """A table's name, its Arrow schema and the columns that identify a row."""

    name: str
    schema: pa.Schema
    key: tuple[str, ...]


def _table(name: str, key: str, **columns: pa.DataType) -> Table:
    return Table(name, pa.schema(list(columns.items())), tuple(key.split()))


TEXT, INT, REAL, DOUBLE = pa.string(), pa.int32(), pa.float32(), pa.float64()
# where a negative of a set came from
FOUND = pa.struct([("source", TEXT), ("rank", INT), ("score", REAL)])
EDIT = pa.struct(
    [
        ("span", TEXT),
        ("old", TEXT),
        ("new", TEXT),
        ("old_lemma", TEXT),
        ("new_lemma", TEXT),
        ("old_rating", REAL),
        ("new_rating", REAL),
        ("route", TEXT),
        ("meaning_effect", TEXT),
        ("prompt", TEXT),
        ("model", TEXT),
    ]
)

DOCUMENTS = _table("documents", "doc_id", doc_id=TEXT, title=TEXT, text=TEXT)
QUERIES = _table("queries", "query_id", query_id=TEXT, text=TEXT)
POSITIVES = _table("positives", "query_id doc_id", query_id=TEXT, doc_id=TEXT, relevance=INT)
# beside positives, where ingest was asked for them
LABELS = _table("labels", "doc_id label", doc_id=TEXT, label=TEXT)
# beside queries that are captions, where ingest was asked for them
IMAGES = _table("images", "query_id", query_id=TEXT, image=TEXT)
# beside queries, the negatives that they came with, where ingest was asked for them
NEGATIVES = _table("negatives", "query_id doc_id", query_id=TEXT, doc_id=TEXT, rank=INT, score=REAL)
CANDIDATES = _table(
    "candidates",
    "query_id doc_id source",
    query_id=TEXT,
    doc_id=TEXT,
    source=TEXT,
    rank=INT,
    score=REAL,
    parent_id=TEXT,
)
MADE = _table("made_documents", "doc_id", doc_id=TEXT, text=TEXT, parent_id=TEXT, detail=EDIT)
JUDGMENTS = _table(
    "judgments",
    "query_id doc_id judge",
    query_id=TEXT,
    doc_id=TEXT,
    judge=TEXT,
    score=REAL,
    verdict=TEXT,
    reason=TEXT,
)
SETS = _table(
    "sets",
    "query_id doc_id set_name",
    query_id=TEXT,
    doc_id=TEXT,
    set_name=TEXT,
    sources=pa.list_(FOUND),
    rank=INT,
    score=REAL,
    positive_score=REAL,
    weight=REAL,
)
REJECTED = _table(
    "rejected",
    "query_id doc_id set_name",
    query_id=TEXT,
    doc_id=TEXT,
    set_name=TEXT,
    reason=TEXT,
    value=DOUBLE,
    threshold=DOUBLE,
)
PROMOTED = _table(
    "promoted",
    "query_id doc_id set_name",
    query_id=TEXT,
    doc_id=TEXT,
    set_name=TEXT,
    reason=TEXT,
    value=DOUBLE,
    threshold=DOUBLE,
)
METRICS = _table(
    "metrics",
    "set_name measure",
    set_name=TEXT,
    measure=TEXT,
    k=INT,
    value=DOUBLE,
    low=DOUBLE,
    high=DOUBLE,
    n=pa.int64(),
)

FLOW = (
    DOCUMENTS,
    QUERIES,
    POSITIVES,
    LABELS,
    IMAGES,
    NEGATIVES,
    CANDIDATES,
    MADE,
    JUDGMENTS,
    SETS,
    REJECTED,
    PROMOTED,
    METRICS,
)


def conform(table: pa.Table, to: Table) -> pa.Table:
    """Return `table` with exactly the columns, order and types of `to`.

    Raises:
        UserError: a column is missing ("missing X (found Y)") or cannot be cast.
    """
    missing = [name for name in to.schema.names if name not in table.column_names]
    if missing:
        raise UserError(
            f"table {to.name}: missing {', '.join(missing)} (found"
            f" {', '.join(table.column_names) or 'nothing'})"
        )
    try:
        return table.select(to.schema.names).cast(to.schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise UserError(
            f"table {to.name}: {error}; expected {to.schema.to_string(show_field_metadata=False)!r}"
        ) from error


def from_rows(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table with exactly the columns and types of a schema."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema,
    )


def full_text(title: str | None, text: str | None) -> str:
    """Return what encoders and BM25 read of a document: title and text, as BEIR joins them."""
    return f"{title or ''} {text or ''}".strip()
