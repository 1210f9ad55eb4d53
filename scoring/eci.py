"""ECI, Effective Contrastive Information (arXiv 2603.20990, v1 of March 2026): pure formulas.

Every function takes floats or arrays of one shape and gives the like. The later, different
definition of the same paper would be `eci_sem`; a changed formula is a new name.
"""

from typing import Any, TypeVar

import numpy as np

Real = TypeVar("Real", float, np.ndarray)


def capacity(n: Real) -> Real:
    """Return I = ln(1 + n) of n negatives a query, in nats. Published: the paper's table fits
    this logarithm and no other.

    >>> round(float(capacity(6.0)), 3)
    1.946
    """
    return np.log1p(n)


def efficiency(signal: Real, margin: Real) -> Real:
    """Return E = 2 S D / (S + D), the harmonic mean of signal and margin; 0 where S <= 0 or D <= 0,
    or where one is not a number.

    The harmonic mean is published; zero outside its domain is reconstructed (it has a pole at D =
    -S).

    Args:
        signal: S, mean similarity of query and negative.
        margin: D, mean of s(q, p) - s(q, n), each clamped at zero or not.

    >>> efficiency(np.array([0.5, 0.5]), np.array([0.25, -0.1])).round(3).tolist()
    [0.333, 0.0]
    """
    safe = np.logical_and(np.greater(signal, 0), np.greater(margin, 0))
    total = np.where(safe, np.add(signal, margin), 1.0)
    value: Any = np.where(safe, 2 * np.multiply(signal, margin) / total, 0.0)[()]
    return value


def eci_v1(n: Real, signal: Real, margin: Real) -> Real:
    """Return ECI = ln(1 + n) * 2 S D / (S + D).

    Published: in words, and by the paper's table. Reconstructed: S as the mean over all pairs
    (query, negative) of a set, D as the mean over all its triples (query, positive, negative); with
    one positive a query these are means over the same triples.

    Args:
        n: |N|, mean number of negatives a query.
        signal: S, mean similarity of query and negative.
        margin: D, mean of s(q, p) - s(q, n), each clamped at zero or not.

    >>> round(float(eci_v1(6.0, 0.5, 0.25)), 3)
    0.649
    """
    return capacity(n) * efficiency(signal, margin)


def margins(positive: np.ndarray, negative: np.ndarray, hinge: bool) -> np.ndarray:
    """Return s(q, p) - s(q, n) of every positive with every negative of one query.

    That unsafe negatives are penalised is published in words; the clamp at zero is reconstructed.

    Args:
        positive: (p,) similarities of the query to its positives.
        negative: (n,) similarities of the query to its negatives.
        hinge: clamp margins below zero, of negatives nearer than the positive, at zero.

    Returns:
        (p, n).

    >>> margins(np.array([0.9, 0.6]), np.array([0.7, 0.2]), hinge=True).round(1).tolist()
    [[0.2, 0.7], [0.0, 0.4]]
    """
    margin = positive[:, None] - negative[None, :]
    return np.maximum(margin, 0.0) if hinge else margin


def eci_sem(
    queries: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    overlap: np.ndarray | None = None,
    tau: float = 0.05,
) -> float:
    """Return the later, semantic ECI of m triples: log det(I + M), M = (1/m) sum w r r', in nats.

    w = c l h with target consistency c = sigmoid((s_p - s_n) / tau), semantic locality
    l = max(0, z_p . z_n) and lexical residuality h = 1 - overlap; r = (z_n - z_p) / |z_n - z_p|.
    Published in words (arXiv 2603.20990, v2 and v3 of June 2026); the formula is reconstructed.

    Args:
        queries, positives, negatives: (m, d) unit vectors.
        overlap: (m,) share of the query's words that the negative has, weighed by idf; None is 0.
        tau: temperature of the consistency.

    >>> query, positive = np.array([[1.0, 0.0]]), np.array([[0.8, 0.6]])
    >>> round(eci_sem(query, positive, np.array([[0.6, 0.8]])), 3)
    0.664
    """
    safe = ((queries * positives).sum(1) - (queries * negatives).sum(1)) / tau
    consistency = 0.5 * (1 + np.tanh(safe / 2))
    locality = np.maximum((positives * negatives).sum(1), 0.0)
    weight = consistency * locality * (1.0 if overlap is None else 1 - overlap)
    apart = negatives - positives
    length = np.linalg.norm(apart, axis=1)
    scaled = apart * (np.sqrt(weight / max(len(apart), 1)) / np.where(length, length, 1))[:, None]
    small = scaled @ scaled.T if len(scaled) < scaled.shape[1] else scaled.T @ scaled
    return float(np.linalg.slogdet(np.eye(len(small)) + small)[1])
