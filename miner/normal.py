"""The normal form of a text, in which copies are the same: NFKC, casefolded, every run of spaces,
punctuation, symbols and control characters one space.
"""

import hashlib
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache

import numba
import numpy as np

SPACE = 32


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


def code_points(text: str) -> np.ndarray:
    """Return the characters of a text as numbers, uint32."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def normalise(text: str) -> str:
    """Return the normal form of a text; of a text that is nothing but punctuation, its NFKC
    casefolded words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _squeeze(code_points(folded), _fold()).tobytes().decode("utf-32-le") or " ".join(
        folded.split()
    )


def text_hash(normal: str) -> np.uint64:
    """Return 64 bits that stand for a text in normal form."""
    return np.uint64(int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest()))


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """Return 64 bits that stand for each text in normal form, uint64: equal for copies."""
    return np.array([text_hash(normalise(text)) for text in texts], np.uint64)
