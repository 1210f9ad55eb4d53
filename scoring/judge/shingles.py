"""Texts -> shingles, and bounds that tell which pairs of texts need not be compared in full.

Texts are compared in normal form (miner.normal). Few pairs need to be compared in full. Each
shingle sets one bit of its document, which has one or two bits for each. A bit that only one of two
documents has set stands for at least one shingle that only one of them has; so with x such bits,
and at most m shingles in common, Jaccard <= m / (m + x). And a shingle of a positive whose bit a
candidate has not set is one that it lacks: with y of the positive's n lacking in this way, it has
at most (n - y) / n of them. These bounds never pass over a copy, and leave almost no other pair.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numba
import numpy as np

from miner.corpus import Corpus
from miner.normal import code_points, normalise, text_hash

CHUNK = 4096  # texts that are in memory at a time
MULTIPLIER, MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def shingles(normal: str, size: int) -> np.ndarray:
    """Return a hash of each run of `size` characters, (max(1, characters - size + 1),) uint64
    with repeats; none for an empty text.
    """
    return _hash_runs(code_points(normal), size)


@numba.njit(cache=True, nogil=True)
def _hash_runs(codes: np.ndarray, size: int) -> np.ndarray:
    size = min(size, len(codes))
    out = np.empty(len(codes) - size + 1 if size else 0, np.uint64)
    for place in range(len(out)):
        value = np.uint64(0)
        for code in codes[place : place + size]:
            value = value * MULTIPLIER + np.uint64(code)
        out[place] = value * MIXER
    return out


@numba.njit(cache=True, nogil=True)
def _set_bits(hashes: np.ndarray, width: int) -> np.ndarray:
    """Return the bits that hashes set, (width,) uint64; width is a power of two, and half as
    wide is one half over the other.
    """
    bits, last = np.zeros(width, np.uint64), np.uint64(64 * width - 1)
    for value in hashes:
        place = (value >> np.uint64(32)) & last
        bits[place >> np.uint64(6)] |= np.uint64(1) << (place & np.uint64(63))
    return bits


def likeness(document: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Return the Jaccard similarity of two sets, and the share of the second that the first has; 1
    for two, and for a second, empty ones.

    Args:
        document, positive: sorted, without repeats.

    >>> document, positive = (
    ...     np.unique(shingles(normalise(text), 5))
    ...     for text in ("Glass is a solid, not a liquid.", "glass is a solid")
    ... )
    >>> likeness(document, positive)
    (0.48, 1.0)
    """
    common = len(np.intersect1d(document, positive, assume_unique=True))
    union = len(document) + len(positive) - common
    return common / union if union else 1.0, common / len(positive) if len(positive) else 1.0


Reader = Callable[[np.ndarray], list[str]]  # rows of documents -> their texts


@dataclass(frozen=True)
class Digests:
    """What is kept in memory of n texts.

    Attributes:
        text: (n,) uint64, a hash of the normal form.
        count: (n,) int64, shingles, repeats counted.
        start: (n,) int64, where a text's bits begin in `bits`.
        width: (n,) int64, how many numbers they fill: a power of two.
        bits: (w,) uint64.
        shingles: place of a text -> its distinct shingles, (s,) uint64; of the positives only.
    """

    text: np.ndarray
    count: np.ndarray
    start: np.ndarray
    width: np.ndarray
    bits: np.ndarray
    shingles: Mapping[int, np.ndarray]

    def may_contain(self, left: np.ndarray, right: int, contain: float) -> np.ndarray:
        """Return which texts of `left` may have at least the share `contain` of the distinct
        shingles of the text `right`.
        """
        return _may_contain(
            self.shingles[right], self.bits, self.start[left], self.width[left], contain
        )

    def possible(self, left: np.ndarray, right: int, near: float) -> np.ndarray:
        """Return which texts of `left` may have a Jaccard similarity to the text `right` of at
        least `near`.
        """
        different = np.zeros(len(left), np.int64)
        for width in np.unique(self.width[left]):
            alike = np.flatnonzero(self.width[left] == width)
            shared = min(width, self.width[right])
            either = self._folded(left[alike], shared) ^ self._folded(np.array([right]), shared)
            different[alike] = np.bitwise_count(either).sum(axis=1)
        common = np.minimum(self.count[left], self.count[right])
        return common >= near * (common + different)

    def _folded(self, places: np.ndarray, width: int) -> np.ndarray:
        """Return the bits of texts of one width, (p, width): as they would be, had they been
        made that narrow.
        """
        whole = self.bits[self.start[places][:, None] + np.arange(self.width[places[0]])]
        return np.bitwise_or.reduce(whole.reshape(len(places), -1, width), axis=1)


@numba.njit(cache=True, nogil=True)
def _may_contain(
    hashes: np.ndarray, bits: np.ndarray, start: np.ndarray, width: np.ndarray, contain: float
) -> np.ndarray:
    possible = np.ones(len(start), np.bool_)
    for document in range(len(start)):
        last, lacking = np.uint64(64 * width[document] - 1), 0
        for value in hashes:
            place = (value >> np.uint64(32)) & last
            if not (
                bits[start[document] + np.int64(place >> np.uint64(6))] >> (place & np.uint64(63))
            ) & np.uint64(1):
                lacking += 1
                # as the share itself is computed and compared
                if (len(hashes) - lacking) / len(hashes) < contain:
                    possible[document] = False
                    break
    return possible


def digest(read: Reader, rows: np.ndarray, size: int, positives: np.ndarray) -> Digests:
    """Read the texts of rows, some at a time, and digest them; `positives` are places in `rows`."""
    text, count, bits = (
        np.zeros(len(rows), np.uint64),
        np.zeros(len(rows), np.int64),
        [np.empty(0, np.uint64)],
    )
    sets: dict[int, np.ndarray] = dict.fromkeys(positives.tolist(), bits[0])
    for start in range(0, len(rows), CHUNK):
        for place, raw in enumerate(read(rows[start : start + CHUNK]), start):
            normal = normalise(raw)
            hashes = shingles(normal, size)
            text[place], count[place] = text_hash(normal), len(hashes)
            bits.append(_set_bits(hashes, 1 << max(0, len(hashes).bit_length() - 6)))
            if place in sets:
                sets[place] = np.unique(hashes)
    width = np.array([len(part) for part in bits[1:]], np.int64)
    return Digests(text, count, np.cumsum(width) - width, width, np.concatenate(bits), sets)


def nearest_before(corpus: Corpus, rows: np.ndarray, least: float, size: int = 5) -> np.ndarray:
    """Return for each text its highest Jaccard similarity to a text before it that is itself no
    near-copy of one before (n,); 0 where there is none, or where it is surely below `least`.

    Args:
        corpus: the texts.
        rows: of them (n,).
        least: from which similarity a text is a near-copy.
        size: characters of a shingle.
    """
    sets = [np.unique(shingles(normalise(text), size)) for text in corpus.texts(rows)]
    out, kept = np.zeros(len(rows)), list[np.ndarray]()
    for place, mine in enumerate(sets):
        for other in kept:
            few, many = sorted((len(mine), len(other)))
            if few >= least * many:
                out[place] = max(out[place], likeness(mine, other)[0])
        if out[place] < least:
            kept.append(mine)
    return out
