"""Postings of one document shard: counted from tokens, and weighed for a search."""

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from miner.search.topk import in_threads

# a term in more than a DENSE-th of a shard's documents is added as a whole column: that runs in
# vector registers
DENSE = 4


class Postings(NamedTuple):
    """What some of the t terms asked for have in one shard of m documents.

    Attributes:
        begin, size: (t,) int64, where each term's postings lie in the arrays below; 0 long where
            the shard has none.
        rows: rows of the shard. frequencies: of the term in that document.
        lengths: (m,) of the documents, in tokens.
    """

    begin: np.ndarray
    size: np.ndarray
    rows: np.ndarray
    frequencies: np.ndarray
    lengths: np.ndarray


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


def weigh(
    postings: Postings, weight: Callable[[slice, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> Columns:
    """Weigh postings.

    Args:
        postings: of t terms.
        weight: (which terms, how many postings each of these has, term frequencies, lengths) ->
            weights of all postings of these terms, one after the other.
    """
    starts = np.concatenate(([0], np.cumsum(postings.size)))
    rows, weights = np.empty(starts[-1], np.int32), np.empty(starts[-1])

    def work(part: slice) -> None:
        size, out = postings.size[part], slice(starts[part.start], starts[part.stop])
        shift = postings.begin[part] - starts[part.start : part.stop]
        entry = np.arange(out.start, out.stop) + np.repeat(shift, size)
        rows[out] = postings.rows[entry]
        lengths = postings.lengths[rows[out]]
        weights[out] = weight(part, size, postings.frequencies[entry].astype(np.float64), lengths)

    in_threads(len(postings.size), work)
    wide = np.flatnonzero(postings.size * DENSE > len(postings.lengths))
    column, dense = np.full(len(starts) - 1, -1), np.zeros((len(wide), len(postings.lengths)))
    column[wide] = np.arange(len(wide))
    for line, term in enumerate(wide):
        mine = slice(starts[term], starts[term + 1])
        dense[line, rows[mine]] = weights[mine]
    return Columns(starts, rows, weights, column, dense)
