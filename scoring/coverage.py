"""Coverage: how much of the gradient that training should follow a set of negatives carries. Ours
(docs/validity.md says how well it predicts fine-tuning).

For a query q with the positive p, unit vectors z of the encoder in the state in which training
starts, and the temperature tau of its loss:

    u = sum_{k in {p} + N_q} softmax_k(z_q . z_k / tau) z_k - z_p      the set's pull on the query
    v = the same with the corpus in place of N_q, without the query's other positives and what
        scores as high as p, which likely answers q too
    G = Z_Q' U + (Z_Q' U)'         R = Z_Q' V + (Z_Q' V)'              (d, d)

G / tau and R / tau are the gradients of both losses (softmax over the positive and the negatives)
by a linear head that queries and documents share, at the identity.

    coverage         sum |R| where G has its sign, minus where not, over sum |R|: the share of the
                     first-order fall of the corpus's loss that a step of a sign optimiser (Adam)
                     along G takes
    coverage_cosine  <G, R> / (|G| |R|): the like for plain gradient descent
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

EDGES = (-0.3, -0.2, -0.1, -0.05)  # bands of hardness, s_n - s_p, that reports tell apart
CHUNK = 1 << 16  # pairs whose vectors are in memory at a time


class Pull:
    """The pull on n queries of what is added, part by part: one softmax over all parts together.

    Args:
        queries: (n, d) unit vectors.
        positives: (n, d), of each query's positive.
        tau: temperature, above 0.
        edges: ascending; they part what is added into bands of s_n - s_p.
        safe: pass over documents that score as high as the positive: likely false negatives.
    """

    def __init__(
        self,
        queries: np.ndarray,
        positives: np.ndarray,
        tau: float,
        edges: Sequence[float] = (),
        safe: bool = False,
    ):
        self.queries, self.positives, self.tau = queries, positives, tau
        self.edges, self.safe = list(edges), safe
        self.score = np.einsum("nd,nd->n", queries, positives)
        self.top = self.score / tau  # the highest logit so far; mass and pulled are relative to it
        self.mass = np.ones(len(queries))
        self.pulled = np.zeros((len(self.edges) + 1, *queries.shape))

    def add(self, documents: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add documents that stand beside every query.

        Args:
            documents: (m, d).
            weights: (n, m): for how many documents each counts, 0 for one that the query must not
                meet; None is 1.
        """
        scores = self.queries @ documents.T
        logits = scores / self.tau
        if self.safe:
            logits = np.where(scores < self.score[:, None], logits, -np.inf)
        if weights is not None:
            logits = np.where(weights > 0, logits, -np.inf)
        self._rescale(logits.max(axis=1, initial=-np.inf))
        chances = np.exp(logits - self.top[:, None])
        if weights is not None:
            chances = chances * weights
        bands = np.searchsorted(self.edges, scores - self.score[:, None], side="right")
        for band in range(len(self.pulled)):
            mine = bands == band
            if mine.any():
                here = np.where(mine, chances, 0) if self.edges else chances
                self._take(band, here.sum(axis=1, dtype=np.float64), here @ documents)

    def add_own(self, owner: np.ndarray, row: np.ndarray, documents: np.ndarray) -> None:
        """Add to queries documents of their own.

        Args:
            owner: (p,) int64, places of queries.
            row: (p,) int64, places in documents.
            documents: (m, d).
        """
        scores = np.empty(len(owner), self.queries.dtype)
        for start in range(0, len(owner), CHUNK):
            part = slice(start, start + CHUNK)
            one, two = self.queries[owner[part]], documents[row[part]]
            scores[part] = np.einsum("nd,nd->n", one, two)
        if self.safe:
            below = scores < self.score[owner]
            owner, row, scores = owner[below], row[below], scores[below]
        top = self.top.copy()
        np.maximum.at(top, owner, scores / self.tau)
        self._rescale(top)
        chances = np.exp(scores / self.tau - self.top[owner])
        bands = np.searchsorted(self.edges, scores - self.score[owner], side="right")
        for band in range(len(self.pulled)):
            mine = np.where(bands == band, chances, 0)
            spread = csr_array((mine, (owner, row)), (len(self.queries), len(documents)))
            self._take(band, np.bincount(owner, mine, len(self.queries)), spread @ documents)

    def _rescale(self, top: np.ndarray) -> None:
        raised = np.maximum(self.top, top)
        scale = np.exp(self.top - raised)
        self.top, self.mass = raised, self.mass * scale
        self.pulled *= scale[:, None]

    def _take(self, band: int, mass: np.ndarray, sums: np.ndarray) -> None:
        self.mass += mass
        self.pulled[band] += sums - mass[:, None] * self.positives

    def by_band(self) -> np.ndarray:
        """Return what of u, or v, is due to each band (bands, n, d) float64: they add up to it."""
        return self.pulled / self.mass[:, None]

    def gradient(self) -> np.ndarray:
        """Return u, or v, (n, d) float64: the expected document minus the positive."""
        return self.by_band().sum(axis=0)


def joined(owner: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of two lists of queries are of one query, each with each: places in both.

    Args:
        owner: (n,) int64. query: (m,) int64, ascending.

    >>> [places.tolist() for places in joined(np.array([0, 2, 2]), np.array([0, 0, 1, 2]))]
    [[0, 0, 1, 2], [0, 1, 3, 3]]
    """
    first, last = (np.searchsorted(query, owner, side=side) for side in ("left", "right"))
    count = last - first
    one = np.repeat(np.arange(len(owner)), count)
    return one, np.arange(len(one)) + np.repeat(first - (np.cumsum(count) - count), count)


def head_gradient(queries: np.ndarray, pulls: np.ndarray) -> np.ndarray:
    """Return G of u, or R of v, (d, d) float64: a sum over queries, so that parts add up.

    Args:
        queries, pulls: (n, d).
    """
    half = queries.astype(np.float64).T @ pulls
    return half + half.T


def coverage(gradient: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the coverage of gradients, sign form, in [-1, 1]; nan where the reference is zero.

    Args:
        gradient: (..., d, d) G. reference: (..., d, d) R.

    >>> float(coverage(np.array([[2.0, -1.0], [-1.0, 0.0]]), np.array([[1.0, -1.0], [-1.0, 1.0]])))
    0.75
    """
    total = np.abs(reference).sum(axis=(-2, -1))
    agreed = (np.sign(gradient) * reference).sum(axis=(-2, -1))
    return np.divide(agreed, total, out=np.full(agreed.shape, np.nan), where=total > 0)[()]


def coverage_cosine(gradient: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the coverage of gradients, cosine form, in [-1, 1]; nan where either is zero.

    >>> float(coverage_cosine(np.diag([1.0, 0.0]), np.diag([3.0, 4.0])))
    0.6
    """
    lengths = np.sqrt((gradient**2).sum(axis=(-2, -1)) * (reference**2).sum(axis=(-2, -1)))
    product = (gradient * reference).sum(axis=(-2, -1))
    return np.divide(product, lengths, out=np.full(lengths.shape, np.nan), where=lengths > 0)[()]
