"""One query shard of a run: its queries, their positives, and the (query, document) pairs of its
candidates. What mines and what judges works shard by shard, from this.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from miner.corpus import Corpus, Documents
from miner.store import Run
from miner.tables import CANDIDATES, conform

IDS = ("query_id", "doc_id")
BLOCK = 8192  # documents whose texts are read at once


def _look_up(column: pa.ChunkedArray, look_up: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """Return what `look_up` gives for each text of a column; it is asked for each distinct one
    once.
    """
    ids = column.combine_chunks()
    ids = ids if pa.types.is_dictionary(ids.type) else ids.dictionary_encode()
    found = look_up(ids.dictionary.to_pylist())
    return found[ids.indices.to_numpy(zero_copy_only=False)]


class QueryShard:
    """The n queries of one shard, read as they are asked for.

    A query is known by its place in `query_ids`, a document by its row in `documents`.

    Attributes:
        run, key: where it lies.
        documents: the corpus and, with `made`, what sources made for these queries.
    """

    def __init__(self, run: Run, key: str, made: bool = True):
        self.run, self.key = run, key
        self.documents = Documents(run, key) if made else Corpus(run)

    @cached_property
    def _queries(self) -> pa.Table:
        return self.run.read(Run.QUERIES, self.key)

    @cached_property
    def query_ids(self) -> list[str]:
        """The ids of the queries, in order, (n,)."""
        return list(self._queries["query_id"].to_pylist())

    @cached_property
    def texts(self) -> list[str]:
        """The texts of the queries, (n,)."""
        return list(self._queries["text"].to_pylist())

    @cached_property
    def positives(self) -> tuple[np.ndarray, np.ndarray]:
        """Places and rows of the positives, in order of query, then document, both (m,) int64."""
        return self.places(self.run.read(Run.POSITIVES, self.key, IDS))

    def places(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return place and row of each line of a table (query_id, doc_id, …), both int64; the row
        of a document that there is not (any more) is -1.

        Raises:
            KeyError: it names a query of another shard: a stage wrote it wrong.
        """
        place = {query_id: number for number, query_id in enumerate(self.query_ids)}
        return (
            _look_up(
                table["query_id"], lambda ids: np.array([place[one] for one in ids], np.int64)
            ),
            _look_up(table["doc_id"], self.documents.rows),
        )

    def codes(self, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Return a number that stands for each pair, in their order; -1 where the row is."""
        return np.where(row < 0, -1, query * len(self.documents) + row)

    def is_positive(self, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Return which pairs are positives."""
        return np.isin(self.codes(query, row), self.codes(*self.positives))

    def same_text(self, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Return which pairs have the text of a positive of their query, in normal form; a positive
        has.
        """
        owner, positive = self.positives
        owner, positive = owner[positive >= 0], positive[positive >= 0]
        hashes = (self.documents.text_hashes(rows) for rows in (row, positive))
        number = np.unique(np.concatenate(list(hashes)), return_inverse=True)[1]
        size = len(number) + 1
        mine, theirs = number[: len(row)], number[len(row) :]
        return np.isin(query * size + mine, owner * size + theirs)

    def depth(self, k: int) -> int:
        """Return how deep a search must go so that `k` documents that are no positives remain for
        each query.
        """
        return k + int(np.bincount(self.positives[0]).max(initial=0))

    def pairs(self, sources: Sequence[str], positives: bool = False) -> "Pairs":
        """Return the distinct pairs that sources have, and with `positives` those too.

        Raises:
            KeyError, ValueError: a candidate names a query of another shard, or a document that
                there is not: a source wrote it wrong.
        """
        parts = [self.codes(*self.positives)] if positives else [np.empty(0, np.int64)]
        for source in sources:
            table = self.run.read(f"{Run.SOURCES}/{source}", self.key, IDS)
            parts.append(self.candidate_codes(table))
        codes = np.unique(np.concatenate(parts))
        return Pairs(self, *divmod(codes, max(len(self.documents), 1)))

    def candidate_codes(self, table: pa.Table) -> np.ndarray:
        """Return the codes of a table of candidates.

        Raises:
            KeyError, ValueError: one names a query of another shard, or a document that there is
                not: a source wrote it wrong.
        """
        query, row = self.places(table)
        if (row < 0).any():
            doc_id = table["doc_id"][int(np.argmin(row))]
            raise ValueError(
                f"candidates of shard {self.key} name documents that are not in the corpus, such as"
                f" {doc_id}"
            )
        return self.codes(query, row)

    def candidates(self, found: tuple[np.ndarray, np.ndarray], k: int, source: str) -> pa.Table:
        """Turn a search's answer into a candidates table.

        Each query keeps its `k` best documents that are no positives of it, and every positive that
        ranks before the last of them.

        Args:
            found: rows (n, m) and scores (n, m), in order of rank, -1 for no document.
            k: documents that are no positives.
            source: name of the source.
        """
        rows, scores = found
        positive = self.is_positive(np.arange(len(self.query_ids))[:, None], rows) & (rows >= 0)
        others = np.cumsum((rows >= 0) & ~positive, axis=1)
        keep = (rows >= 0) & np.where(positive, others < k, others <= k)
        query, rank = np.nonzero(keep)
        table = pa.table(
            {
                "query_id": pa.array(self.query_ids, pa.string()).take(pa.array(query)),
                "doc_id": self.documents.doc_ids(rows[keep]),
                "source": pa.array([source] * len(query), pa.string()),
                "rank": pa.array(rank + 1, pa.int32()),
                # NaN, no score, is null
                "score": pa.array(scores[keep], pa.float32(), from_pandas=True),
                "parent_id": pa.nulls(len(query), pa.string()),
            }
        )
        return conform(table, CANDIDATES)


@dataclass(frozen=True)
class Pairs:
    """Distinct pairs of one query shard, in order of query, then document.

    Attributes:
        shard: gives ids and texts.
        query: places of queries (p,) int64.
        row: rows of documents (p,) int64.
    """

    shard: QueryShard
    query: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.query)

    @property
    def codes(self) -> np.ndarray:
        """Return a number that stands for each pair (p,) int64, ascending."""
        return self.shard.codes(self.query, self.row)

    @property
    def positive(self) -> np.ndarray:
        """Return which pairs are positives (p,)."""
        return self.shard.is_positive(self.query, self.row)

    def take(self, which: np.ndarray) -> "Pairs":
        """Return some of the pairs, by mask or ascending places."""
        return replace(self, query=self.query[which], row=self.row[which])

    def ids(self) -> tuple[pa.Array, pa.Array]:
        """Return query_ids and doc_ids, both (p,)."""
        query_ids = pa.array(self.shard.query_ids, pa.string())
        return query_ids.take(pa.array(self.query)), self.shard.documents.doc_ids(self.row)

    def look_up(self, table: pa.Table) -> np.ndarray:
        """Return the scores (p,) float32 that a table (query_id, doc_id, score) has for these
        pairs; nan for none.
        """
        here, there = self.codes, self.shard.codes(*self.shard.places(table))
        out = np.full(len(self), np.nan, np.float32)
        place = np.searchsorted(here, there)
        hit = (place < len(here)) & (there >= 0)
        hit[hit] = here[place[hit]] == there[hit]
        out[place[hit]] = table["score"].to_numpy().astype(np.float32)[hit]
        return out


class Originals(NamedTuple):
    """A query's documents that are to be changed, one for each negative, and all texts that a
    new word must not stand in.
    """

    parents: list[str]
    texts: list[str]
    guarded: list[str]


def originals_of(run: Run, key: str, count: int) -> Iterator[tuple[str, Originals]]:
    """Yield each query of a shard with what is asked for it.

    A query whose own text is a positive (a caption) has that one changed; else its positives are
    taken in turn, by relevance, then doc_id.
    """
    shard = QueryShard(run, key, made=False)
    positives = run.read(run.POSITIVES, key).sort_by(
        [("query_id", "ascending"), ("relevance", "descending"), ("doc_id", "ascending")]
    )
    owner, rows = shard.places(positives)
    distinct, place = np.unique(rows, return_inverse=True)
    blocks = (distinct[start : start + BLOCK] for start in range(0, len(distinct), BLOCK))
    texts = [text for block in blocks for text in shard.documents.texts(block)]
    doc_ids = positives["doc_id"].to_pylist()
    for number, (query_id, query) in enumerate(zip(shard.query_ids, shard.texts, strict=True)):
        first, last = np.searchsorted(owner, [number, number + 1])
        found = [(doc_ids[at], texts[place[at]]) for at in range(first, last)]
        own = [pair for pair in found if pair[1].strip() == query.strip()][:1] or found
        turns = [own[turn % len(own)] for turn in range(count)] if own else []
        parents, chosen = [doc_id for doc_id, _ in turns], [text for _, text in turns]
        yield query_id, Originals(parents, chosen, [query, *(text for _, text in found)])
