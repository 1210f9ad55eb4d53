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

EMPTY = np.iinfo(np.int64).min  # the key of no document
BLOCK = 64  # scores that are looked at together
HALF_BIT = 2.0**-8  # by which share of itself a number may move when it is rounded to bfloat16


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
        len(out), lambda part: _dots(left, left_rows[part], right, right_rows[part], out[part])
    )
    return out


@numba.njit(cache=True, nogil=True)
def _dots(left, left_rows, right, right_rows, out):  # type: ignore[no-untyped-def] # compiled
    query, room = np.empty(left.shape[1], np.float64), np.empty(left.shape[1] // 4, np.float64)
    at = -1
    for pair in range(len(left_rows)):
        if right_rows[pair] < 0:
            out[pair] = -np.inf
            continue
        if left_rows[pair] != at:
            at = left_rows[pair]
            query[:] = left[at]
        out[pair] = _dot(query, right, right_rows[pair], room)


@numba.njit(cache=True, nogil=True)
def _dot(query, vectors, row, room):  # type: ignore[no-untyped-def] # compiled
    """Return the inner product of `query` (d,) float64 and one row of `vectors` (m, d) float32, as
    float32.

    Products of float32 values are exact in float64. They are added in an order that depends on d
    alone: four quarters side by side into `room` (d // 4,), which is then folded upon itself.
    Unsigned indices, and no slices: so the compiler makes vector instructions of it.
    """
    row, width = np.uintp(row), np.uintp(vectors.shape[1])
    quarter = width // np.uintp(4)
    half, rest = quarter + quarter, quarter + quarter + quarter
    for i in range(quarter):
        room[i] = (query[i] * vectors[row, i] + query[quarter + i] * vectors[row, quarter + i]) + (
            query[half + i] * vectors[row, half + i] + query[rest + i] * vectors[row, rest + i]
        )
    size = quarter
    while size > np.uintp(6):
        half = size // np.uintp(2)
        size -= half
        for i in range(half):
            room[i] += room[size + i]
    total = 0.0
    for i in range(size):
        total += room[i]
    for i in range(rest + quarter, width):
        total += query[i] * vectors[row, i]
    return np.float32(total) + np.float32(0)  # of the two zeros, the positive one


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
        self, part: slice, scores: np.ndarray, doubt: np.ndarray, block: np.ndarray, first: int
    ) -> None:
        """Offer all documents of a block to some queries. Safe to call from several threads with
        different queries.

        Args:
            part: which queries: p of them.
            scores: (p, m), about right: float32, or uint16, which are the bits of bfloat16 and may
                be off by its rounding besides.
            doubt: (p,) float64, by how much at most a query's scores are off.
            block: (m, d) float32, the documents.
            first: row of the block's first document.
        """
        bits = scores.view(np.uint32) if scores.dtype == np.float32 else scores
        _require(_offer_tile(bits, doubt, self.queries[part], self.keys[part], block, first))

    def offer_some(
        self,
        found: tuple[np.ndarray, np.ndarray, np.ndarray],
        doubt: np.ndarray,
        block: np.ndarray,
        first: int,
    ) -> None:
        """Offer some documents of a block; the caller knows that the others are out.

        Args:
            found: counts (n,), how many documents each query is offered; their places in the block,
                query after query, int64, -1 for none; and about their scores, float32.
            doubt, block, first: as in `offer_tile`, for all n queries.
        """
        counts, places, scores = found
        starts = np.concatenate(([0], np.cumsum(counts)))
        sound: list[bool] = []

        def work(part: slice) -> None:
            bounds = starts[part.start : part.stop + 1]
            sound.append(
                _offer_some(
                    bounds,
                    places,
                    scores,
                    doubt[part],
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


# A heap is a line of keys with the worst document first, EMPTY where there is none yet. Numba does
# not see in the cached kernels of other files (miner/postings.py) that one of these three has
# changed: touch those files too.


@numba.njit(cache=True, nogil=True)
def key_of(score, row):  # type: ignore[no-untyped-def] # compiled
    """Return a document's key, int64: its float32 score above and its row (less is better)
    below, so that one comparison decides.
    """
    bits = np.int64(np.float32(score).view(np.int32))
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | (0xFFFFFFFF - row)


@numba.njit(cache=True, nogil=True)
def worst(heap):  # type: ignore[no-untyped-def] # compiled
    """Return the score of a heap's worst document, -inf while there is room."""
    if heap[0] == EMPTY:
        return np.float32(-np.inf)
    bits = heap[0] >> 32
    return np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)


@numba.njit(cache=True, nogil=True)
def replace_worst(heap, key):  # type: ignore[no-untyped-def] # compiled
    """Let a key, which must be better than the worst, take its place: it sinks from the root."""
    place, child = 0, 1
    while child < len(heap):
        if child + 1 < len(heap):
            child += heap[child + 1] < heap[child]
        if heap[child] >= key:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = key


@numba.njit(cache=True, nogil=True)
def _not_out(heap, doubt, scores):  # type: ignore[no-untyped-def] # compiled
    """Return base and span, of the kind of `scores`: only documents whose scores' bits lie in
    [base, base + span] may be among the best.

    Read as unsigned integers, positive scores go upwards from 0, negative ones (the sign bit set)
    upwards as they get lower. So the scores above a limit are one interval, and one subtraction and
    comparison tells.
    """
    kind, shift = scores.dtype.type, 32 - 8 * scores.itemsize
    half = 0x7FFFFFFF >> shift
    limit = worst(heap) - doubt
    if not limit > -np.inf:
        return kind(0), kind(2 * half + 1)
    if shift == 16:
        limit -= abs(limit) * HALF_BIT
    bits = (np.int64(np.float32(limit).view(np.int32)) & 0xFFFFFFFF) >> shift
    return (kind(bits), kind(half - bits)) if bits <= half else (kind(0), kind(bits))


@numba.njit(cache=True, nogil=True)
def _offer_tile(scores, doubt, queries, keys, block, first):  # type: ignore[no-untyped-def] # compiled
    kind, shift = scores.dtype.type, 32 - 8 * scores.itemsize
    query, room, sound = (
        np.empty(block.shape[1], np.float64),
        np.empty(block.shape[1] // 4, np.float64),
        True,
    )
    for line in range(len(queries)):
        heap, row, allowed = keys[line], scores[line], doubt[line]
        query[:] = queries[line]
        base, span = _not_out(heap, allowed, row)
        for start in range(0, len(row), BLOCK):
            part, hit = row[start : start + BLOCK], False
            for place in range(len(part)):
                hit |= kind(part[place] - base) <= span
            if not hit:
                continue
            for place in range(len(part)):
                if kind(part[place] - base) > span:
                    continue
                score, about = (
                    _dot(query, block, start + place, room),
                    np.int32(np.int64(part[place]) << shift).view(np.float32),
                )
                sound &= not abs(score - about) > allowed + abs(score) * (
                    HALF_BIT if shift == 16 else 0.0
                )
                key = key_of(score, first + start + place)
                if key > heap[0]:
                    replace_worst(heap, key)
                    base, span = _not_out(heap, allowed, row)
    return sound


@numba.njit(cache=True, nogil=True)
def _offer_some(starts, places, scores, doubt, queries, keys, block, first):  # type: ignore[no-untyped-def] # compiled
    query, room, sound = (
        np.empty(block.shape[1], np.float64),
        np.empty(block.shape[1] // 4, np.float64),
        True,
    )
    for line in range(len(queries)):
        heap = keys[line]
        query[:] = queries[line]
        for entry in range(starts[line], starts[line + 1]):
            place = places[entry]
            if place < 0 or scores[entry] < worst(heap) - doubt[line]:
                continue
            score = _dot(query, block, place, room)
            sound &= not abs(score - scores[entry]) > doubt[line]
            key = key_of(score, first + place)
            if key > heap[0]:
                replace_worst(heap, key)
    return sound


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
