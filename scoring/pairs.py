"""The distinct (query, document) pairs of all sources in one query shard: what a judge judges."""

import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.store import Run


def candidate_pairs(run: Run, corpus: Corpus, query_ids: list[str], sources: list[str], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs of a shard in order of query, then document.

    Returns:
        places in `query_ids` and rows of the corpus, both (p,) int64.
    """
    if not sources:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    table = pa.concat_tables(run.read(f"3_candidates/{source}", key).select(["query_id", "doc_id"]) for source in sources)
    place = {query_id: number for number, query_id in enumerate(query_ids)}
    query = np.array([place[query_id] for query_id in table["query_id"].to_pylist()], np.int64)
    pairs = np.unique(query * len(corpus) + corpus.rows(table["doc_id"].to_pylist()))
    return pairs // len(corpus), pairs % len(corpus)
