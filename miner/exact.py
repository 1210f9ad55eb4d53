"""The one place that decides scores and order: the same candidates on any engine, any number of shards, threads or GPUs.

Search engines (FAISS, NumPy, BLAS of any make) differ in the last bits, and in which of several equal documents they return. So an engine
only proposes; the pairs it proposes are scored again here, in float64 with a fixed order of additions, and sorted by score, then row. Rows
are in order of doc_id, so ties are broken by doc_id.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.tables import CANDIDATES, conform


def in_threads(count: int, work: Callable[[slice], object]) -> None:
    """Call `work` with slices that cover range(count), on all cores: for compiled functions, which let go of the interpreter."""
    threads = min(numba.config.NUMBA_NUM_THREADS, max(count, 1))
    edges = np.linspace(0, count, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, map(slice, edges[:-1], edges[1:])))


def dots(left: np.ndarray, left_rows: np.ndarray, right: np.ndarray, right_rows: np.ndarray) -> np.ndarray:
    """Return the inner products of pairs of rows.

    Args:
        left: (n, d) float32; right: (m, d) float32.
        left_rows, right_rows: (p,) int64, which rows make a pair; a negative right row stands for no document.

    Returns:
        (p,) float32: each product summed in float64 over four fixed lanes, -inf where there is no document.
    """
    out = np.empty(len(left_rows), np.float32)
    in_threads(len(out), lambda part: _dots(left, left_rows[part], right, right_rows[part], out[part]))
    return out


@numba.njit(cache=True, nogil=True)
def _dots(left, left_rows, right, right_rows, out):  # type: ignore[no-untyped-def] # compiled
    width = left.shape[1]
    whole = width - width % 4
    for pair in range(len(left_rows)):
        if right_rows[pair] < 0:
            out[pair] = -np.inf
            continue
        a, b = left[left_rows[pair]], right[right_rows[pair]]
        lane0, lane1, lane2, lane3 = 0.0, 0.0, 0.0, 0.0
        for i in range(0, whole, 4):
            lane0 += np.float64(a[i]) * np.float64(b[i])
            lane1 += np.float64(a[i + 1]) * np.float64(b[i + 1])
            lane2 += np.float64(a[i + 2]) * np.float64(b[i + 2])
            lane3 += np.float64(a[i + 3]) * np.float64(b[i + 3])
        for i in range(whole, width):
            lane0 += np.float64(a[i]) * np.float64(b[i])
        out[pair] = np.float32((lane0 + lane1) + (lane2 + lane3))


def best(rows: np.ndarray, scores: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `depth` best of each line, by score downwards, then by row.

    Args:
        rows: (n, m) int64, -1 for no document (its score must be -inf).
        scores: (n, m).

    Returns:
        rows and scores, both (n, min(depth, m)).
    """
    order = np.lexsort((rows, -scores), axis=1)[:, :depth]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def positive_rows(corpus: Corpus, query_ids: list[str], positives: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row of a positives shard the place of its query in `query_ids` and the row of its document, both int64."""
    place = {query_id: number for number, query_id in enumerate(query_ids)}
    queries = np.array([place[query_id] for query_id in positives["query_id"].to_pylist()], np.int64)
    return queries, corpus.rows(positives["doc_id"].to_pylist())


def depth_for(k: int, positive_queries: np.ndarray) -> int:
    """Return how deep a search must go so that `k` documents that are no positives remain for each query."""
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

    Each query keeps its `k` best documents that are no positives of it, and every positive that ranks before the last of them.

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
            "score": pa.array(scores[keep], pa.float32(), from_pandas=True),  # NaN, no score, is null
            "parent_id": pa.nulls(len(query), pa.string()),
        }
    )
    return conform(table, CANDIDATES)
