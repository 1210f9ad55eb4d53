"""Rows by ids -> rows with their texts, and rows as JSON lines."""

import json
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import Documents
from miner.errors import UserError
from miner.store import Run

SLICE = 512  # rows whose texts are fetched at once: an Arrow array of strings holds at most 2 GiB
RATED = ("concreteness", "margin")
# columns that are told beside the texts, where there are any
TOLD = ("label", "labels", "scores", "weight", "weights", *RATED)


def with_texts(run: Run, key: str, rows: pa.Table, negatives: int) -> pa.Table:
    """Put the texts that ids stand for before the ids; each document is read once.

    Raises:
        UserError: a document is not in the corpus.
    """
    names = [
        name
        for name in ("positive_id", "negative_id", "negative_ids", "doc_id", "doc_ids")
        if name in rows.column_names
    ]
    columns = [
        rows[name] if name.endswith("_id") else pc.list_flatten(rows[name]) for name in names
    ]
    ids = pc.unique(
        pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    )
    corpus, queries = Documents(run, key), run.read(run.QUERIES, key)
    places = corpus.rows(ids.to_pylist())
    if (places < 0).any():
        raise UserError(
            f"document {ids[int((places < 0).argmax())].as_py()!r} is not in the corpus; make the"
            " set anew from these tables"
        )
    documents = Texts(ids, pa.array(corpus.texts(places), pa.large_string()))
    anchors = Texts(queries["query_id"], queries["text"])
    slices = [
        rows.slice(start, SLICE).combine_chunks() for start in range(0, max(len(rows), 1), SLICE)
    ]
    return pa.concat_tables(_fill(part, anchors, documents, negatives) for part in slices)


class Texts:
    """Texts by id."""

    def __init__(self, ids: pa.Array | pa.ChunkedArray, texts: pa.Array | pa.ChunkedArray):
        self.ids, self.texts = ids, texts

    def of(self, ids: pa.Array) -> pa.Array:
        """Return the text of each id, or a list of texts for each list of ids."""
        if pa.types.is_list(ids.type):
            return pa.ListArray.from_arrays(offsets_of(ids), self.of(ids.flatten()))
        return self.texts.take(pc.index_in(ids, self.ids)).cast(pa.string())


def _fill(rows: pa.Table, anchors: Texts, documents: Texts, negatives: int) -> pa.Table:
    queries, rest = (anchors.of(one_array(rows["query_id"])), (*TOLD, *id_columns(rows)))
    images = "filepath" in rows.column_names
    columns = {"filepath": rows["filepath"], "title": queries} if images else {"anchor": queries}
    for name, text in {
        "positive_id": "positive",
        "negative_id": "negative",
        "doc_id": "text",
        "doc_ids": "texts",
    }.items():
        if name in rows.column_names:
            columns[text] = documents.of(one_array(rows[name]))
    if images:
        columns["neg_caption"] = documents.of(one_array(rows["negative_ids"]))
    elif "negative_ids" in rows.column_names:
        for place in range(negatives):
            columns[f"negative_{place + 1}"] = documents.of(
                pc.list_element(one_array(rows["negative_ids"]), place)
            )
    return pa.table(columns | {name: rows[name] for name in rest if name in rows.column_names})


def offsets_of(lists: pa.ListArray) -> pa.Array:
    """Return where each list begins, and the end, from 0."""
    return pa.array([0, *pc.cumulative_sum(pc.list_value_length(lists)).to_pylist()], pa.int32())


def id_columns(rows: pa.Table) -> list[str]:
    """Return the names of columns of ids."""
    return [name for name in rows.column_names if name.endswith(("_id", "_ids"))]


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece."""
    chunks: Iterable[pa.Array] = column.chunks
    return pa.concat_arrays([*chunks, pa.array([], column.type)])


def json_lines_of(table: pa.Table) -> str:
    """Return a table as JSON lines."""
    # Three characters end a line for some readers and stand unescaped in JSON.
    escapes = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
    return "".join(
        json.dumps(row, ensure_ascii=False).translate(escapes) + "\n"
        for batch in table.to_batches()
        for row in batch.to_pylist()
    )
