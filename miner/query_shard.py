"""The distinct (query, document) pairs of one query shard: what a cross-encoder or a judge is
asked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.store import Run
from miner.tables import CANDIDATES, conform

BLOCK = 8192  # documents whose texts are read at once

SOURCES = f"{Run.SOURCES}/"
IDS = ["query_id", "doc_id"]


@dataclass(frozen=True)
class Pairs:
    """Distinct pairs of one query shard, in order of query, then document.

    Attributes:
        corpus: the documents.
        query_ids: of the shard, in order.
        query: places in `query_ids` (p,) int64.
        row: rows of the corpus (p,) int64.
    """

    corpus: Corpus
    query_ids: list[str]
    query: np.ndarray
    row: np.ndarray

    @property
    def codes(self) -> np.ndarray:
        """Return a number that stands for each pair (p,) int64, ascending."""
        return self.query * len(self.corpus) + self.row

    def take(self, which: np.ndarray) -> "Pairs":
        """Return some of the pairs, by mask or ascending places."""
        return replace(self, query=self.query[which], row=self.row[which])

    def join(self, query: np.ndarray, row: np.ndarray) -> "Pairs":
        """Return these pairs and more, each once."""
        codes = np.unique(np.concatenate((self.codes, query * len(self.corpus) + row)))
        return replace(self, query=codes // len(self.corpus), row=codes % len(self.corpus))

    def ids(self) -> tuple[pa.Array, pa.Array]:
        """Return query_ids and doc_ids, both (p,)."""
        return pa.array(self.query_ids, pa.string()).take(
            pa.array(self.query)
        ), self.corpus.doc_ids(self.row)

    def codes_of(self, table: pa.Table) -> np.ndarray:
        """Return the codes (rows,) int64 of a table's (query_id, doc_id); -1 for a document that
        there is not (any more).

        Raises:
            KeyError: it names a query of another shard: a stage wrote it wrong.
        """
        place = {query_id: number for number, query_id in enumerate(self.query_ids)}
        query = np.array([place[query_id] for query_id in table["query_id"].to_pylist()], np.int64)
        row = self.corpus.rows(table["doc_id"].to_pylist())
        return np.where(row < 0, -1, query * len(self.corpus) + row)

    def look_up(self, table: pa.Table) -> np.ndarray:
        """Return the scores (p,) float32 that a table (query_id, doc_id, score) has for these
        pairs; nan for none.
        """
        out, here, there = (
            np.full(len(self.query), np.nan, np.float32),
            self.codes,
            self.codes_of(table),
        )
        place = np.searchsorted(here, there)
        hit = (place < len(here)) & (there >= 0)
        hit[hit] = here[place[hit]] == there[hit]
        out[place[hit]] = table["score"].to_numpy().astype(np.float32)[hit]
        return out


def candidate_pairs(
    run: Run, corpus: Corpus, query_ids: list[str], sources: Sequence[str], key: str
) -> Pairs:
    """Return the distinct pairs that sources have in a shard.

    Raises:
        KeyError, ValueError: a candidate names a query of another shard, or a document that there
            is not: a source wrote it wrong.
    """
    none = Pairs(corpus, query_ids, np.empty(0, np.int64), np.empty(0, np.int64))
    table = pa.concat_tables(
        [
            pa.table([[], []], pa.schema([(name, pa.string()) for name in IDS])),
            *_ids_of(run, sources, key),
        ]
    )
    codes = none.codes_of(table)
    if (codes < 0).any():
        raise ValueError(
            f"candidates of shard {key} name documents that are not in the corpus, such as"
            f" {table['doc_id'][int(np.argmin(codes))]}"
        )
    return none.join(codes // len(corpus), codes % len(corpus))


def _ids_of(run: Run, sources: Sequence[str], key: str) -> list[pa.Table]:
    return [run.read(f"{SOURCES}{source}", key).select(IDS) for source in sources]


def positive_rows(
    corpus: Corpus, query_ids: list[str], positives: pa.Table
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row of a positives shard the place of its query in `query_ids` and the row
    of its document, both int64.
    """
    place = {query_id: number for number, query_id in enumerate(query_ids)}
    queries = np.array(
        [place[query_id] for query_id in positives["query_id"].to_pylist()], np.int64
    )
    return queries, corpus.rows(positives["doc_id"].to_pylist())


def depth_for(k: int, positive_queries: np.ndarray) -> int:
    """Return how deep a search must go so that `k` documents that are no positives remain for
    each query.
    """
    return k + int(np.bincount(positive_queries).max(initial=0))


def candidates(
    corpus: Corpus,
    query_ids: list[str],
    positives: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
    k: int,
    source: str,
) -> pa.Table:
    """Turn a search's answer into a candidates table.

    Each query keeps its `k` best documents that are no positives of it, and every positive that
    ranks before the last of them.

    Args:
        corpus: gives doc_ids.
        query_ids: n ids.
        positives: from `positive_rows`.
        found: rows (n, m) and scores (n, m), in order of rank, -1 for no document.
        k: documents that are no positives.
        source: name of the source.
    """
    rows, scores = found
    size = len(corpus)
    pair = np.arange(len(query_ids))[:, None] * size + rows
    positive = np.isin(pair, positives[0] * size + positives[1])
    others = np.cumsum((rows >= 0) & ~positive, axis=1)
    keep = (rows >= 0) & np.where(positive, others < k, others <= k)
    query, rank = np.nonzero(keep)
    table = pa.table(
        {
            "query_id": pa.array(query_ids, pa.string()).take(pa.array(query)),
            "doc_id": corpus.doc_ids(rows[keep]),
            "source": pa.array([source] * len(query), pa.string()),
            "rank": pa.array(rank + 1, pa.int32()),
            # NaN, no score, is null
            "score": pa.array(scores[keep], pa.float32(), from_pandas=True),
            "parent_id": pa.nulls(len(query), pa.string()),
        }
    )
    return conform(table, CANDIDATES)


class Asked(NamedTuple):
    """A query's documents that are to be changed, one for each negative, and all texts that a
    new word must not stand in.
    """

    parents: list[str]
    texts: list[str]
    guarded: list[str]


def asked_of(run: Run, key: str, count: int) -> Iterator[tuple[str, Asked]]:
    """Yield each query of a shard with what is asked for it.

    A query whose own text is a positive (a caption) has that one changed; else its positives are
    taken in turn, by relevance, then doc_id.
    """
    corpus, queries, positives = (
        Corpus(run),
        run.read(run.QUERIES, key),
        run.read(run.POSITIVES, key),
    )
    positives = positives.sort_by(
        [("query_id", "ascending"), ("relevance", "descending"), ("doc_id", "ascending")]
    )
    query_ids = queries["query_id"].to_pylist()
    owner, rows = positive_rows(corpus, query_ids, positives)
    distinct, place = np.unique(rows, return_inverse=True)
    texts = [
        text
        for start in range(0, len(distinct), BLOCK)
        for text in corpus.texts(distinct[start : start + BLOCK])
    ]
    doc_ids = positives["doc_id"].to_pylist()
    for number, (query_id, query) in enumerate(
        zip(query_ids, queries["text"].to_pylist(), strict=True)
    ):
        mine = (
            np.flatnonzero(owner == number)
            if len(owner) < 2
            else np.arange(*np.searchsorted(owner, [number, number + 1]))
        )
        found = [(doc_ids[at], texts[place[at]]) for at in mine.tolist()]
        own = [pair for pair in found if pair[1] == query][:1] or found
        turns = [own[turn % len(own)] for turn in range(count)] if own else []
        yield (
            query_id,
            Asked(
                [doc_id for doc_id, _ in turns],
                [text for _, text in turns],
                [query, *(text for _, text in found)],
            ),
        )
