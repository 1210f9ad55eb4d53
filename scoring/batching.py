"""BatchRows -> batches in which no row holds what is relevant to another's query.

In-batch losses take every text of the other rows for a negative. A row fits into a batch if none of
its texts is relevant to the query of a row that is there, and none of theirs to its own.
"""

from typing import NamedTuple

import numba
import numpy as np

WORD = 64  # batches that are looked at together


class BatchRows(NamedTuple):
    """n rows over m queries and t distinct texts, all int64.

    Attributes:
        query: of each row (n,).
        ends, texts: the texts of row i are texts[ends[i]:ends[i + 1]].
        relevant_ends, relevant: the texts that are relevant to query j, likewise.
    """

    query: np.ndarray
    ends: np.ndarray
    texts: np.ndarray
    relevant_ends: np.ndarray
    relevant: np.ndarray

    @property
    def distinct(self) -> int:
        """Return t."""
        return 1 + max(self.texts.max(initial=-1), self.relevant.max(initial=-1))


def batches_of(rows: BatchRows, which: np.ndarray, capacities: np.ndarray, seed: int) -> np.ndarray:
    """Give each of some rows a batch that it fits into (**ours**), at random. Rows that share a
    text choose one after the other, those that meet most others first.

    A bit for each batch says where a text stands, and where it is relevant to someone: memory is
    2 x t x batches / 8 bytes, and a row is placed in about as many steps as it has texts.

    Args:
        rows: all. which: places of the rows that are to be placed (k,).
        capacities: of the batches, rows.
        seed: of the draw.

    Returns:
        The batch of each (k,) int64; -1 for one that fits into none that has room.
    """
    draw = np.random.default_rng(seed)
    standing = np.bincount(rows.texts, minlength=rows.distinct)
    asked = np.bincount(rows.relevant, minlength=rows.distinct)
    meetings, crowd = _crowds(tuple(rows), standing, asked, which)
    most = np.zeros(rows.distinct, np.int64)
    np.maximum.at(most, crowd, meetings)
    order = np.lexsort((draw.random(len(which)), crowd, -most[crowd]))
    starts = draw.integers(0, max(1, len(capacities)), len(which))
    room = np.array(capacities, np.int64)
    found = np.full(len(which), -1, np.int64)
    found[order] = _place(tuple(rows), rows.distinct, which[order], room, starts)
    return found


def false_negatives(rows: BatchRows, order: np.ndarray, size: int) -> np.ndarray:
    """Tell which rows have, in their batch of `size` when taken in an order (k,), a text of
    another row that is relevant to their query, (k,) bool.
    """
    return np.asarray(_false_negatives(tuple(rows), rows.distinct, order, size))


@numba.njit(cache=True, nogil=True)
def _own(rows, row):  # type: ignore[no-untyped-def] # compiled
    """Return the texts of a row, of BatchRows as a tuple: a class would be named in the cache."""
    _, ends, texts, _, _ = rows
    return texts[ends[row] : ends[row + 1]]


@numba.njit(cache=True, nogil=True)
def _wanted(rows, row):  # type: ignore[no-untyped-def] # compiled
    """Return the texts that are relevant to a row's query."""
    query, _, _, ends, relevant = rows
    return relevant[ends[query[row]] : ends[query[row] + 1]]


@numba.njit(cache=True, nogil=True)
def _crowds(rows, standing, asked, which):  # type: ignore[no-untyped-def] # compiled
    """Return how many others each row may meet, and which of its texts most queries ask for."""
    meetings, crowd = np.zeros(len(which), np.int64), np.zeros(len(which), np.int64)
    for place in range(len(which)):
        crowd[place] = _own(rows, which[place])[0]
        for text in _own(rows, which[place]):
            meetings[place] += asked[text]
            if asked[text] > asked[crowd[place]]:
                crowd[place] = text
        for text in _wanted(rows, which[place]):
            meetings[place] += standing[text]
    return meetings, crowd


@numba.njit(cache=True, nogil=True)
def _place(rows, count, which, room, starts):  # type: ignore[no-untyped-def] # compiled
    words = (len(room) + WORD - 1) // WORD
    holds, wants = np.zeros((count, words), np.uint64), np.zeros((count, words), np.uint64)
    found = np.full(len(which), -1, np.int64)
    emptiest = _with_room(room, room.max() if len(room) else 1)
    for place in range(len(which)):
        row = which[place]
        mine, theirs = _own(rows, row), _wanted(rows, row)
        # evenly filled batches leave the last rows a choice
        batch = _fitting(holds, wants, mine, theirs, emptiest, starts[place])
        if batch < 0:
            batch = _fitting(holds, wants, mine, theirs, _with_room(room, 1), starts[place])
        if batch < 0:
            continue
        word, bit = batch // WORD, np.uint64(1) << np.uint64(batch % WORD)
        for text in mine:
            holds[text, word] |= bit
        for text in theirs:
            wants[text, word] |= bit
        room[batch] -= 1
        found[place] = batch
        emptiest[word] &= ~bit
        if not emptiest.any():
            emptiest = _with_room(room, max(1, room.max()))
    return found


@numba.njit(cache=True, nogil=True)
def _with_room(room, least):  # type: ignore[no-untyped-def] # compiled
    """Return a bit for each batch, set where there is room for at least so many rows."""
    out = np.zeros((len(room) + WORD - 1) // WORD, np.uint64)
    for batch in range(len(room)):
        if room[batch] >= least:
            out[batch // WORD] |= np.uint64(1) << np.uint64(batch % WORD)
    return out


@numba.njit(cache=True, nogil=True)
def _fitting(holds, wants, mine, theirs, among, start):  # type: ignore[no-untyped-def] # compiled
    """Return a batch among some that a row fits into, the first from `start` on; -1 for none."""
    for turn in range(len(among)):
        word = (start // WORD + turn) % len(among)
        fits = among[word]
        for text in mine:
            fits &= ~wants[text, word]
        for text in theirs:
            fits &= ~holds[text, word]
        if fits:
            bit = np.uint64(start % WORD)
            while not fits & (np.uint64(1) << bit):
                bit = (bit + np.uint64(1)) % np.uint64(WORD)
            return word * WORD + np.int64(bit)
    return -1


@numba.njit(cache=True, nogil=True)
def _false_negatives(rows, count, order, size):  # type: ignore[no-untyped-def] # compiled
    holds, out = np.zeros(count, np.int32), np.zeros(len(order), np.bool_)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        for row in batch:
            for text in _own(rows, row):
                holds[text] += 1
        for place in range(len(batch)):
            row = batch[place]
            for text in _wanted(rows, row):
                own = 0
                for other in _own(rows, row):
                    own += other == text
                if holds[text] > own:
                    out[start + place] = True
        for row in batch:
            for text in _own(rows, row):
                holds[text] -= 1
    return out
