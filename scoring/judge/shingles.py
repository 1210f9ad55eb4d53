"""Texts -> shingles, and bounds that tell which pairs of texts need not be compared in full.

Texts are compared in normal form: NFKC, casefolded, every run of spaces, punctuation, symbols and
control characters one space. Few pairs need to be compared in full. Each shingle sets one bit of
its document, which has one or two bits for each. A bit that only one of two documents has set
stands for at least one shingle that only one of them has; so with x such bits, and at most m
shingles in common, Jaccard <= m / (m + x). And a shingle of a positive whose bit a candidate has
not set is one that it lacks: with y of the positive's n lacking in this way, it has at most
(n - y) / n of them. These bounds never pass over a copy, and leave almost no other pair.
"""

import hashlib
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np

from miner.corpus import Corpus

CHUNK = 4096  # texts that are in memory at a time
SPACE = 32
MULTIPLIER, MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


@cache
def _fold() -> np.ndarray:
    """Return for every code point itself, or a space for what separates words. Marks do not: in
    Devanagari they are vowels.
    """
    codes = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    categories = [unicodedata.category(chr(code)) for code in codes]
    separates = [
        (name[0] in "PSZ" or name in ("Cc", "Cf")) and code != ord("_")
        for code, name in enumerate(categories)
    ]
    return np.where(separates, np.uint32(SPACE), codes)


@numba.njit(cache=True, nogil=True)
def _squeeze(codes: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Fold characters, with no space at either end and never two in a row."""
    out, count = np.empty_like(codes), 0
    for code in codes:
        folded = fold[code]
        if folded != SPACE or (count > 0 and out[count - 1] != SPACE):
            out[count] = folded
            count += 1
    return out[: count - 1] if count > 0 and out[count - 1] == SPACE else out[:count]


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def normalise(text: str) -> str:
    """Return the normal form of a text; of a text that is nothing but punctuation, its NFKC
    casefolded words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _squeeze(_codes(folded), _fold()).tobytes().decode("utf-32-le") or " ".join(
        folded.split()
    )


def shingles(normal: str, size: int) -> np.ndarray:
    """Return a hash of each run of `size` characters, (max(1, characters - size + 1),) uint64
    with repeats; none for an empty text.
    """
    return _hash_runs(_codes(normal), size)


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


def digest(corpus: Corpus, rows: np.ndarray, size: int, positives: np.ndarray) -> Digests:
    """Read the documents of rows, some at a time, and digest their texts; `positives` are places
    in `rows`.
    """
    text, count, bits = (
        np.zeros(len(rows), np.uint64),
        np.zeros(len(rows), np.int64),
        [np.empty(0, np.uint64)],
    )
    sets: dict[int, np.ndarray] = dict.fromkeys(positives.tolist(), bits[0])
    for start in range(0, len(rows), CHUNK):
        for place, raw in enumerate(corpus.texts(rows[start : start + CHUNK]), start):
            normal = normalise(raw)
            hashes = shingles(normal, size)
            text[place], count[place] = text_hash(normal), len(hashes)
            bits.append(_set_bits(hashes, 1 << max(0, len(hashes).bit_length() - 6)))
            if place in sets:
                sets[place] = np.unique(hashes)
    width = np.array([len(part) for part in bits[1:]], np.int64)
    return Digests(text, count, np.cumsum(width) - width, width, np.concatenate(bits), sets)


def text_hash(normal: str) -> np.uint64:
    """Return 64 bits that stand for a text in normal form."""
    return np.uint64(int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest()))
