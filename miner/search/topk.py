"""The one place that decides scores and order: the same candidates on any engine, any number of
shards, threads or GPUs.

Search engines (FAISS, NumPy, BLAS of any make, bfloat16 units) differ in the last bits, and in
which of several equal documents they return. So an engine's scores only rule documents out, where
they leave no doubt; the others are scored here, in float64 with a fixed order of additions, and
sorted by score, then row. Rows are in order of doc_id, so ties are broken by doc_id.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from miner.errors import UserError
from miner.search.kernels import EMPTY, offer_some, offer_tile, pair_dots


def in_threads(count: int, work: Callable[[slice], object]) -> None:
    """Call `work` with slices that cover range(count), on all cores: for compiled functions,
    which let go of the interpreter.
    """
    threads = min(numba.config.NUMBA_NUM_THREADS, max(count, 1))
    edges = np.linspace(0, count, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, map(slice, edges[:-1], edges[1:])))


def dots(
    left: np.ndarray, left_rows: np.ndarray, right: np.ndarray, right_rows: np.ndarray
) -> np.ndarray:
    """Return the inner products of pairs of rows.

    Args:
        left: (n, d) float32; right: (m, d) float32.
        left_rows, right_rows: (p,) int64, which rows make a pair; a negative right row stands for
            no document.

    Returns:
        (p,) float32: each product summed in float64 in a fixed order, -inf where there is no
        document.
    """
    out = np.empty(len(left_rows), np.float32)
    in_threads(
        len(out), lambda part: pair_dots(left, left_rows[part], right, right_rows[part], out[part])
    )
    return out


class Top:
    """The best documents so far of each query, by exact score, then row.

    Every document must be offered, once, in any order and through any engine; the result does not
    depend on either.

    Attributes:
        queries: (n, d) float32, contiguous.
        keys: (n, depth) int64, each line a heap of keys (`key_of`).
    """

    def __init__(self, queries: np.ndarray, depth: int):
        self.queries = np.ascontiguousarray(queries, np.float32)
        self.keys = np.full((len(queries), depth), EMPTY, np.int64)

    def worst(self) -> np.ndarray:
        """Return each query's worst score so far (n,) float32; -inf where there is still room."""
        return _split(self.keys[:, 0])[1]

    def offer_tile(
        self, part: slice, scores: np.ndarray, error: np.ndarray, block: np.ndarray, first: int
    ) -> None:
        """Offer all documents of a block to some queries. Safe to call from several threads with
        different queries.

        Args:
            part: which queries: p of them.
            scores: (p, m), about right: float32, or uint16, which are the bits of bfloat16 and may
                be off by its rounding besides.
            error: (p,) float64, by how much at most a query's scores are off.
            block: (m, d) float32, the documents.
            first: row of the block's first document.
        """
        bits = scores.view(np.uint32) if scores.dtype == np.float32 else scores
        _require(offer_tile(bits, error, self.queries[part], self.keys[part], block, first))

    def offer_some(
        self,
        found: tuple[np.ndarray, np.ndarray, np.ndarray],
        error: np.ndarray,
        block: np.ndarray,
        first: int,
    ) -> None:
        """Offer some documents of a block; the caller knows that the others are out.

        Args:
            found: counts (n,), how many documents each query is offered; their places in the block,
                query after query, int64, -1 for none; and about their scores, float32.
            error, block, first: as in `offer_tile`, for all n queries.
        """
        counts, places, scores = found
        starts = np.concatenate(([0], np.cumsum(counts)))
        sound: list[bool] = []

        def work(part: slice) -> None:
            bounds = starts[part.start : part.stop + 1]
            sound.append(
                offer_some(
                    bounds,
                    places,
                    scores,
                    error[part],
                    self.queries[part],
                    self.keys[part],
                    block,
                    first,
                )
            )

        in_threads(len(self.queries), work)
        _require(all(sound))

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows (n, depth) int64 and scores (n, depth) float32 in order of rank; -1 and
        -inf where there are fewer documents.
        """
        return in_order(self.keys)


def in_order(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what heaps hold (n, depth), best first: rows int64 and scores float32; -1 and -inf
    where a heap still has room.
    """
    return _split(np.sort(keys, axis=1)[:, ::-1])


def _split(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and scores that keys hold."""
    bits = (keys >> 32).astype(np.int32)
    scores = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
    return np.where(keys == EMPTY, -1, 0xFFFFFFFF - (keys & 0xFFFFFFFF)), np.where(
        keys == EMPTY, np.float32(-np.inf), scores
    )


def _require(sound: bool) -> None:
    if not sound:
        raise UserError(
            "the search engine's scores are further off than its arithmetic allows; take another"
            " with --search or --device"
        )


def best(rows: np.ndarray, scores: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `depth` best of each line, by score downwards, then by row.

    Args:
        rows: (n, m) int64, -1 for no document (its score must be -inf).
        scores: (n, m).

    Returns:
        rows and scores, both (n, min(depth, m)).

    >>> rows, scores = best(np.array([[4, 2, 9]]), np.array([[0.5, 0.5, 0.9]]), 2)
    >>> rows.tolist()
    [[9, 2]]
    """
    order = np.lexsort((rows, -scores), axis=1)[:, :depth]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
