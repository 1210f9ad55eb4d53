"""What describes a set of negatives beside ECI and coverage: pure formulas.

Scores are similarities under the target encoder, vectors are of length 1.
"""

from collections.abc import Iterable

import numpy as np

TAUS = (0.02, 0.05, 0.1)
NEAR = 0.1  # hard is what scores less than this below the positive


def hardness(negative: np.ndarray, tau: float) -> tuple[float, float]:
    """Return N_eff and the top share of a query's negatives: 1 / sum r^2 and max r, with
    r = softmax(s_n / tau): over how many of them a gradient is spread.

    Args:
        negative: (n,) scores, n > 0.
        tau: temperature.

    >>> [round(number, 2) for number in hardness(np.array([0.5, 0.5, 0.0]), 0.05)]
    [2.0, 0.5]
    """
    share = np.exp((negative - negative.max()) / tau)
    share /= share.sum()
    return float(1 / (share**2).sum()), float(share.max())


def gradient_shares(positive: np.ndarray, negative: np.ndarray, tau: float) -> np.ndarray:
    """Return where the gradient of the softmax loss over a positive and the negatives falls: sums
    over the positives of what unsafe (s_n >= s_p), hard and easy negatives have of it, (3,).

    Args:
        positive: (p,) scores. negative: (n,) scores. tau: temperature.

    >>> gradient_shares(np.array([0.5]), np.array([0.6, 0.45, 0.1]), 0.1).round(3).tolist()
    [0.626, 0.14, 0.004]
    """
    logits = np.concatenate([positive[:, None], np.tile(negative, (len(positive), 1))], 1) / tau
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances = (chances / chances.sum(axis=1, keepdims=True))[:, 1:]
    margin = positive[:, None] - negative
    unsafe, hard = margin <= 0, (margin > 0) & (margin < NEAR)
    return np.array([(chances * mine).sum() for mine in (unsafe, hard, ~unsafe & ~hard)])


def effective_size(counts: np.ndarray) -> float:
    """Return how many different documents a set is worth: 2^I, I = log2 N - sum n log2 n / N.

    Args:
        counts: (c,) how often each document is a negative, above 0; N is their sum.

    >>> effective_size(np.array([1, 1, 1, 1])), effective_size(np.array([4]))
    (4.0, 1.0)
    """
    total = counts.sum()
    return float(total / np.exp2((counts * np.log2(counts)).sum() / total)) if total else 0.0


def alignment(one: np.ndarray, two: np.ndarray) -> float:
    """Return the mean |x - y|^2 of pairs (n, d): Wang & Isola 2020, lower is closer."""
    return float(((one - two) ** 2).sum(axis=1).mean())


def uniformity(one: np.ndarray, two: np.ndarray | None = None) -> float:
    """Return log E exp(-2 |x - y|^2) over pairs of different rows, or over all pairs of two sets:
    Wang & Isola 2020, lower is more spread out.

    Args:
        one: (n, d). two: (m, d).

    >>> round(uniformity(np.eye(2)), 3), round(uniformity(np.eye(2), np.eye(2)[:1]), 3)
    (-4.0, -0.675)
    """
    other = one if two is None else two
    close = np.exp(-2 * np.maximum(2 - 2 * (one @ other.T), 0))
    if two is None:
        return float(np.log((close.sum() - np.trace(close)) / max(len(one) * (len(one) - 1), 1)))
    return float(np.log(close.mean()))


def centroid_gap(one: np.ndarray, two: np.ndarray) -> float:
    """Return the distance of the means of two sets of vectors (n, d), (m, d)."""
    return float(np.linalg.norm(one.mean(axis=0) - two.mean(axis=0)))


def ngram_diversity(texts: Iterable[str]) -> float:
    """Return the product over n = 2, 3, 4 of distinct / all word n-grams of all texts together: 1
    is no repetition.

    >>> ngram_diversity(["a b c d e", "a b c d f"])
    0.3125
    """
    words, product = [text.casefold().split() for text in texts], 1.0
    for size in (2, 3, 4):
        grams = [
            tuple(line[at : at + size]) for line in words for at in range(len(line) - size + 1)
        ]
        product *= len(set(grams)) / len(grams) if grams else 1.0
    return product
