"""The compiled loops of BM25: postings of one document shard are counted, weighed, and summed,
and each query's best are kept.
"""

from typing import NamedTuple

import numba
import numpy as np

from miner.search.topk import EMPTY, key_of, replace_worst, worst

VARIANT = {"okapi": 0, "l": 1, "plus": 2}  # as `weigh_postings` knows them
BLOCK = 64  # sums that are held against the limit at a time


class Weights(NamedTuple):
    """What decides what a term weighs in a document: a variant of rank_bm25 with its parameters."""

    variant: int
    k1: float
    b: float
    delta: float
    mean_length: float


class Columns(NamedTuple):
    """The weighed postings of t terms in one shard of m documents.

    Attributes:
        starts: (t + 1,) int64, where each term's postings lie.
        rows: int32, rows of the shard. weights: float64.
        column: (t,) int64, the line of `dense` that holds the same as a whole column, or -1.
        dense: (columns, m) float64.
    """

    starts: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    column: np.ndarray
    dense: np.ndarray


@numba.njit(cache=True, nogil=True)
def count_postings(text_starts, ids, terms):  # type: ignore[no-untyped-def] # compiled
    """Count: tokens of texts (starts and ids) -> frequencies, starts (terms + 1,) and rows of
    postings, by term, then row.
    """
    last, starts = np.full(terms, -1, np.int64), np.zeros(terms + 1, np.int64)
    for row in range(len(text_starts) - 1):
        for token in range(text_starts[row], text_starts[row + 1]):
            if last[ids[token]] != row:
                last[ids[token]] = row
                starts[ids[token] + 1] += 1
    starts = np.cumsum(starts)
    frequency, rows = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.int32)
    filled = starts[:-1].copy()
    last[:] = -1
    for row in range(len(text_starts) - 1):
        for token in range(text_starts[row], text_starts[row + 1]):
            term = ids[token]
            if last[term] == row:
                frequency[filled[term] - 1] += 1
            else:
                last[term] = row
                frequency[filled[term]], rows[filled[term]] = 1, row
                filled[term] += 1
    return frequency, starts, rows


@numba.njit(cache=True, nogil=True)
def weigh_postings(postings, begin, starts, idf, how, out_rows, out_weights):  # type: ignore[no-untyped-def] # compiled
    """Weigh postings of terms with rank_bm25's operations, one by one, so that every bit is its
    own.
    """
    rows, frequencies, lengths = postings
    variant, k1, b, delta, mean_length = how
    for term in range(len(begin)):
        for out in range(starts[term], starts[term + 1]):
            entry = begin[term] + out - starts[term]
            frequency, row = np.float64(frequencies[entry]), rows[entry]
            norm = 1 - b + b * lengths[row] / mean_length
            if variant == 0:
                weight = idf[term] * (frequency * (k1 + 1) / (frequency + k1 * norm))
            elif variant == 1:
                share = frequency / norm
                weight = idf[term] * frequency * (k1 + 1) * (share + delta) / (k1 + share + delta)
            else:  # beyond what every document gets for the word
                weight = idf[term] * (frequency * (k1 + 1) / (k1 * norm + frequency))
            out_rows[out], out_weights[out] = row, weight


@numba.njit(cache=True, nogil=True)
def search_postings(query_starts, ids, columns, first, base, keys):  # type: ignore[no-untyped-def] # compiled
    """Sum the columns of each query's tokens in one shard; let what beats the worst of its best so
    far into its heap.

    Args:
        query_starts: (n + 1,), ids: the tokens of n queries. columns: `Columns`. first: the shard's
            first row.
        base: (n,), what each query gives to every document.
        keys: (n, depth) int64, the heaps, which this changes.
    """
    sums = np.zeros(columns[-1].shape[1], np.float64)
    for query in range(len(query_starts) - 1):
        terms = ids[query_starts[query] : query_starts[query + 1]]
        if len(terms):
            _add(terms, columns, sums)
            _keep(sums, first, base[query], keys[query])


@numba.njit(cache=True, nogil=True)
def _add(terms, columns, sums):  # type: ignore[no-untyped-def] # compiled
    starts, rows, weights, column, dense = columns
    for term in terms:
        if column[term] >= 0:
            line = dense[column[term]]
            for row in range(len(sums)):
                sums[row] += line[row]
        else:
            for entry in range(starts[term], starts[term + 1]):
                sums[rows[entry]] += weights[entry]


@numba.njit(cache=True, nogil=True)
def _keep(sums, first, base, heap):  # type: ignore[no-untyped-def] # compiled
    """Let the rows whose sums beat the worst in a heap into it, and set the sums to zero."""
    limit = _sure(sums, len(heap)) if heap[0] == EMPTY else _limit(heap, base)
    for block in range(0, len(sums), BLOCK):
        part = sums[block : block + BLOCK]
        above = 0
        for place in range(len(part)):
            above += part[place] > limit
        if above:
            for place in range(len(part)):
                if part[place] > limit:
                    key = key_of(part[place] + base, first + block + place)
                    if key > heap[0]:
                        replace_worst(heap, key)
                        limit = max(limit, _limit(heap, base))
        part[:] = 0.0


@numba.njit(cache=True, nogil=True)
def _sure(sums, depth):  # type: ignore[no-untyped-def] # compiled
    """Return what at least `depth` sums exceed, 0 if that is not known: as many blocks have a
    largest sum above it.
    """
    blocks = len(sums) // BLOCK
    if blocks < depth:
        return 0.0
    largest = np.zeros(blocks)
    for block in range(blocks):
        for place in range(block * BLOCK, (block + 1) * BLOCK):
            largest[block] = max(largest[block], sums[place])
    return np.partition(largest, blocks - depth)[blocks - depth] * (1 - 1e-6)


@numba.njit(cache=True, nogil=True)
def _limit(heap, base):  # type: ignore[no-untyped-def] # compiled
    """Return what a sum must at least exceed to get into the heap; a little less, so that no
    rounding leaves anything out.
    """
    return max(0.0, worst(heap) * (1 - 1e-6) - base)  # 0 while there is room: the worst is -inf
