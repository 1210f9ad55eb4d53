"""The distinct (query, document) pairs of one query shard: what a cross-encoder or a judge is asked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.store import Run

SOURCES = "3_candidates/"
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
        return pa.array(self.query_ids, pa.string()).take(pa.array(self.query)), self.corpus.doc_ids(self.row)

    def codes_of(self, table: pa.Table) -> np.ndarray:
        """Return the codes (rows,) int64 of a table's (query_id, doc_id); -1 for a document that there is not (any more).

        Raises:
            KeyError: it names a query of another shard: a stage wrote it wrong.
        """
        place = {query_id: number for number, query_id in enumerate(self.query_ids)}
        query = np.array([place[query_id] for query_id in table["query_id"].to_pylist()], np.int64)
        row = self.corpus.rows(table["doc_id"].to_pylist())
        return np.where(row < 0, -1, query * len(self.corpus) + row)

    def look_up(self, table: pa.Table) -> np.ndarray:
        """Return the scores (p,) float32 that a table (query_id, doc_id, score) has for these pairs; nan for none."""
        out, here, there = np.full(len(self.query), np.nan, np.float32), self.codes, self.codes_of(table)
        place = np.searchsorted(here, there)
        hit = (place < len(here)) & (there >= 0)
        hit[hit] = here[place[hit]] == there[hit]
        out[place[hit]] = table["score"].to_numpy().astype(np.float32)[hit]
        return out


def candidate_pairs(run: Run, corpus: Corpus, query_ids: list[str], sources: Sequence[str], key: str) -> Pairs:
    """Return the distinct pairs that sources have in a shard.

    Raises:
        KeyError, ValueError: a candidate names a query of another shard, or a document that there is not: a source wrote it wrong.
    """
    none = Pairs(corpus, query_ids, np.empty(0, np.int64), np.empty(0, np.int64))
    table = pa.concat_tables([pa.table([[], []], pa.schema([(name, pa.string()) for name in IDS])), *_ids_of(run, sources, key)])
    codes = none.codes_of(table)
    if (codes < 0).any():
        raise ValueError(
            f"candidates of shard {key} name documents that are not in the corpus, such as {table['doc_id'][int(np.argmin(codes))]}"
        )
    return none.join(codes // len(corpus), codes % len(corpus))


def _ids_of(run: Run, sources: Sequence[str], key: str) -> list[pa.Table]:
    return [run.read(f"{SOURCES}{source}", key).select(IDS) for source in sources]
