"""The documents of a run and, after them, those that sources made for one query shard: one row number stands for either.

A source that makes documents writes them beside its candidates, in `3_candidates/<source>/_documents`. Their doc_ids start with "~", which
sorts after letters and digits, so that rows compare as doc_ids do here too. What reads documents by row reads made ones alike.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner.corpus import Corpus
from miner.store import Run, Shard
from miner.tables import CANDIDATES, DOCUMENTS, MADE, from_rows

SOURCES, FOLDER = "3_candidates", "_documents"


def made_id(text: str, parent_id: str) -> str:
    """Return the doc_id of a made document: a hash of its text and its parent."""
    return "~" + hashlib.blake2b(f"{parent_id}\x1f{text}".encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


class Negative(NamedTuple):
    """A made text of a query, with what `made_documents` says of it; `turn` is its number among those of the query."""

    query_id: str
    parent_id: str
    text: str
    detail: dict[str, Any]
    score: float | None
    turn: int = 0


def made_shard(run: Run, source: str, made: Sequence[Negative], key: str) -> Shard:
    """Return the candidates of a source that makes documents, and these documents; the same text for the same query stands once."""
    kept, seen, rank = list[tuple[Negative, int]](), set[tuple[str, str]](), dict[str, int]()
    for negative in made:
        if (negative.query_id, negative.text) not in seen:
            seen.add((negative.query_id, negative.text))
            rank[negative.query_id] = rank.get(negative.query_id, 0) + 1
            kept.append((negative, rank[negative.query_id]))
    documents = {made_id(one.text, one.parent_id): one for one, _ in kept}
    rows = [(one.query_id, made_id(one.text, one.parent_id), source, place, one.score, one.parent_id) for one, place in kept]
    listed = [(doc_id, documents[doc_id].text, documents[doc_id].parent_id, documents[doc_id].detail) for doc_id in sorted(documents)]
    queries = run.read("1_tables/queries", key)["query_id"].to_pylist()
    missing = {"nothing_made": len(queries) - len(rank)} if len(rank) < len(queries) else {}
    return Shard({f"{FOLDER}/{key}": from_rows(listed, MADE.schema), key: from_rows(rows, CANDIDATES.schema)}, missing)


def made_documents(run: Run, key: str) -> pa.Table:
    """Return what all finished sources made for a query shard, in order of doc_id; what two sources made alike stands once."""
    files = [run.path / SOURCES / name / FOLDER / f"{key}.parquet" for name in run.names(SOURCES)]
    parts = [pq.read_table(file, partitioning=None) for file in files if file.exists()]
    table = pa.concat_tables([MADE.schema.empty_table(), *parts]).sort_by("doc_id").combine_chunks()
    again = pc.equal(table["doc_id"][1:], table["doc_id"][:-1]).to_numpy()
    return table.filter(pa.array(np.append(True, ~again)[: len(table)]))


class Shelf(Corpus):
    """The documents of a run, rows 0 to `count` - 1, and those made for one query shard, from row `count` on."""

    def __init__(self, run: Run, key: str):
        super().__init__(run)
        self.made = made_documents(run, key)

    def __len__(self) -> int:
        return self.count + len(self.made)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {doc_id: self.count + place for place, doc_id in enumerate(self.made["doc_id"].to_pylist())}

    def is_made(self, rows: np.ndarray) -> np.ndarray:
        """Return which rows are made documents."""
        return rows >= self.count

    def rows(self, doc_ids: Sequence[str | None]) -> np.ndarray:
        """Return the row of each doc_id as int64; -1 for an id that is neither in the corpus nor made."""
        rows = super().rows(doc_ids)
        if len(self.made):
            for place in np.flatnonzero(rows < 0).tolist():
                rows[place] = self._place.get(doc_ids[place] or "", -1)
        return rows

    def doc_ids(self, rows: np.ndarray) -> pa.Array:
        """Return the doc_ids of rows."""
        made = self.is_made(rows)
        if not made.any():
            return super().doc_ids(rows)
        own = self.made["doc_id"].combine_chunks().take(pa.array(rows[made] - self.count))
        both = pa.concat_arrays([super().doc_ids(rows[~made]), own])
        return both.take(pa.array(np.argsort(np.argsort(made, kind="stable"))))

    def documents(self, rows: np.ndarray) -> pa.Table:
        """Return the documents of rows (int64, any order, repeats allowed), in that order; made ones have no title."""
        made = self.is_made(rows)
        if not made.any():
            return super().documents(rows)
        taken = self.made.take(pa.array(rows[made] - self.count))
        titled = pa.table([taken["doc_id"], pa.array([""] * len(taken), pa.string()), taken["text"]], DOCUMENTS.schema)
        both = pa.concat_tables([super().documents(rows[~made]).cast(DOCUMENTS.schema), titled])
        return both.take(pa.array(np.argsort(np.argsort(made, kind="stable"))))
