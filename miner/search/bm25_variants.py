"""The BM25 variants of rank_bm25 (https://github.com/dorianbrown/rank_bm25): for each what a word
weighs, with its own operations in its own order, so that every bit is its own.

See Trotman, Puurula & Burgess 2014, "Improvements to BM25 and Language Models Examined".
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Variant(NamedTuple):
    """A variant of BM25.

    Attributes:
        library: the class of rank_bm25 that it is.
        delta: the default of its delta; 0 where it has none.
        idf: (df, N, mean idf, epsilon) -> idf of terms that stand in df of N documents.
        weight: (idf, tf, norm, k1, delta) -> what a term weighs in a document, where norm is
            1 - b + b * length / mean length.
        absent: whether a term weighs idf * delta in every document, its `weight` on top.
    """

    library: str
    delta: float
    idf: Callable[[np.ndarray, int, float, float], np.ndarray]
    weight: Callable[[np.ndarray, np.ndarray, np.ndarray, float, float], np.ndarray]
    absent: bool = False


def okapi_idf(df: np.ndarray, total: int) -> np.ndarray:
    """Return rank_bm25's idf of terms before its floor: ln((N - df + .5) / (df + .5)).

    >>> okapi_idf(np.array([1.0, 2.0]), 4).round(4).tolist()
    [0.8473, 0.0]
    """
    return np.log(total - df + 0.5) - np.log(df + 0.5)


def _floored_idf(df: np.ndarray, total: int, mean: float, epsilon: float) -> np.ndarray:
    idf = okapi_idf(df, total)
    return np.where(idf < 0, epsilon * mean, idf)


def _l_weight(
    idf: np.ndarray, tf: np.ndarray, norm: np.ndarray, k1: float, delta: float
) -> np.ndarray:
    share = tf / norm
    return idf * tf * (k1 + 1) * (share + delta) / (k1 + share + delta)


VARIANTS = {
    "okapi": Variant(
        "BM25Okapi",
        0.0,
        _floored_idf,
        lambda idf, tf, norm, k1, delta: idf * (tf * (k1 + 1) / (tf + k1 * norm)),
    ),
    "l": Variant(
        "BM25L",
        0.5,
        lambda df, total, mean, epsilon: np.log(total + 1) - np.log(df + 0.5),
        _l_weight,
    ),
    "plus": Variant(
        "BM25Plus",
        1.0,
        lambda df, total, mean, epsilon: np.log((total + 1) / df),
        lambda idf, tf, norm, k1, delta: idf * (tf * (k1 + 1) / (k1 * norm + tf)),
        absent=True,
    ),
}
