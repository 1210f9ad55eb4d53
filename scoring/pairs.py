"""The distinct (query, document) pairs of all sources in one query shard: what a judge judges, and what of it was judged before.

A judge's stage grows with its sources (`Stage.grows`): another source, or one that was mined again, and only pairs that no earlier run has
judged are judged. Rows of pairs that no source has any more are dropped, so that the result is that of judging all of them afresh.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.engine import How
from miner.options import MineRandom
from miner.random_documents import mine_random
from miner.store import Run
from miner.tables import JUDGMENTS, conform

SOURCES = "3_candidates/"


def judged_sources(run: Run, how: How) -> tuple[list[str], dict[str, str]]:
    """Return what a judge judges: the names of all finished sources, and the judge's inputs. `random` is drawn if it is not there.

    Raises:
        UserError: there are no tables, or a source is older than they are.
    """
    inputs = {"1_tables": run.tables().fingerprint}
    if run.find("3_candidates/random") is None:
        mine_random(run, MineRandom(), how)
    names = run.names("3_candidates")
    return names, inputs | {f"3_candidates/{name}": run.need_current(f"3_candidates/{name}", f"mine {name}").fingerprint for name in names}


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
        return Pairs(self.corpus, self.query_ids, self.query[which], self.row[which])

    def join(self, query: np.ndarray, row: np.ndarray) -> "Pairs":
        """Return these pairs and more, each once."""
        return _distinct(self.corpus, self.query_ids, np.concatenate((self.query, query)), np.concatenate((self.row, row)))

    def table(self, judge: str, score: np.ndarray, verdict: pa.Array | None = None, reason: pa.Array | None = None) -> pa.Table:
        """Return rows of `judgments`, one for each pair; nan is a null score.

        Args:
            judge: name of the judge.
            score: (p,).
            verdict: (p,) strings; None is no verdict.
            reason: (p,) strings; None is none.
        """
        nothing = pa.nulls(len(score), pa.string())
        columns = {
            "query_id": pa.array(self.query_ids, pa.string()).take(pa.array(self.query)),
            "doc_id": self.corpus.doc_ids(self.row),
            "judge": pa.array(np.full(len(score), judge), pa.string()),
            "score": pa.array(score.astype(np.float32), mask=np.isnan(score)),
            "verdict": nothing if verdict is None else verdict,
            "reason": nothing if reason is None else reason,
        }
        return conform(pa.table(columns), JUDGMENTS)


def candidate_pairs(run: Run, corpus: Corpus, query_ids: list[str], sources: list[str], key: str) -> Pairs:
    """Return the distinct pairs that sources have in a shard.

    Raises:
        KeyError, ValueError: a candidate names a query of another shard, or a document that is not in the corpus: a source wrote it wrong.
    """
    parts = [run.read(f"{SOURCES}{source}", key).select(["query_id", "doc_id"]) for source in sources]
    table = pa.concat_tables([JUDGMENTS.schema.empty_table().select(["query_id", "doc_id"]), *parts])
    query, rows = _numbers(table, corpus, query_ids)
    if (rows < 0).any():
        raise ValueError(
            f"candidates of shard {key} name documents that are not in the corpus, such as {table['doc_id'][int(np.argmin(rows))]}"
        )
    return _distinct(corpus, query_ids, query, rows)


def only_new(run: Run, folder: str, key: str, pairs: Pairs) -> tuple[Pairs, pa.Table]:
    """Return the pairs that a judge has yet to judge, and its rows of the others from before its sources changed.

    Args:
        run: the run folder.
        folder: the judge's stage.
        key: the shard.
        pairs: all that it is asked.
    """
    before = run.read_before(folder, key)
    if before is None:
        return pairs, JUDGMENTS.schema.empty_table()
    query, row = _numbers(before, pairs.corpus, pairs.query_ids)
    codes, asked = query * len(pairs.corpus) + row, pairs.codes
    return pairs.take(~np.isin(asked, codes)), before.filter(pa.array(np.isin(codes, asked)))


def in_order(*parts: pa.Table) -> pa.Table:
    """Return judgments in order of query, document and judge."""
    return pa.concat_tables(parts).sort_by([("query_id", "ascending"), ("doc_id", "ascending"), ("judge", "ascending")])


def _numbers(table: pa.Table, corpus: Corpus, query_ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    place = {query_id: number for number, query_id in enumerate(query_ids)}
    query = np.array([place[query_id] for query_id in table["query_id"].to_pylist()], np.int64)
    return query, corpus.rows(table["doc_id"].to_pylist())


def _distinct(corpus: Corpus, query_ids: list[str], query: np.ndarray, row: np.ndarray) -> Pairs:
    codes = np.unique(query * len(corpus) + row)
    return Pairs(corpus, query_ids, codes // len(corpus), codes % len(corpus))
