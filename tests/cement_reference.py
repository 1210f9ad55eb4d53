"""x"""

from typing import NamedTuple

import numpy as np

from scoring.cement import TAU

TINY = 1e-12  # shortest vector that is divided by its length, as in torch


class Reference(NamedTuple):
    """What `cement_reference` gives: the loss of a batch and its gradients, all float64."""

    loss: float  # mean of rows
    rows: np.ndarray  # (b,) L_i; with `symmetric`, half of it and half of the loss the other way
    similarities: np.ndarray  # (b, b) of the loss by s_ij
    own: np.ndarray  # (b, h) by s_ik'
    anchors: np.ndarray  # (b, d) by the embeddings as given, before they are brought to length 1
    positives: np.ndarray  # (b, d)
    negatives: np.ndarray  # (b, h, d)


class Shares(NamedTuple):
    """What `gradient_shares` gives, for each row of a batch."""

    own: np.ndarray  # (b,) share of the pull away from negatives that falls on the own hard ones
    in_batch: np.ndarray  # (b,) and on the other rows' positives; both sum to 1
    imbalance: np.ndarray  # (b,) R = sum_j p_ij / sum_k p_ik' = in_batch / own


def cement_reference(
    anchors: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    margin: np.ndarray,
    tau: float = TAU,
    symmetric: bool = False,
) -> Reference:
    """Return the loss and its analytic gradients, in plain NumPy: what the torch modules are tested
    against.

    Args:
        anchors: (b, d), of any length but 0.
        positives: (b, d).
        negatives: (b, d), or (b, h, d) for h hard negatives a row.
        margin: (b,) or (b, h) as `margins` gives them.
        tau: temperature.
        symmetric: half of the loss is from positives to anchors.
    """
    negatives = negatives.reshape(len(anchors), -1, anchors.shape[1])
    u, v, w = _unit(anchors), _unit(positives), _unit(negatives)
    own = _own_logits(u, w, margin, tau)
    logits, eye, weight = u @ v.T / tau, np.eye(len(u)), 0.5 if symmetric else 1.0
    joint = np.concatenate([logits, own], 1)
    p = np.exp(joint - _logsumexp(joint)[:, None])
    rows = weight * (_logsumexp(joint) - np.diag(logits))
    by_similarity = weight * (p[:, : len(u)] - eye)
    if symmetric:
        back = np.exp(logits - _logsumexp(logits.T)[None, :])
        rows = rows + weight * (_logsumexp(logits.T) - np.diag(logits))
        by_similarity = by_similarity + weight * (back - eye)
    scale = 1 / (tau * len(u))
    by_similarity, by_own = by_similarity * scale, weight * p[:, len(u) :] * scale
    by_u = by_similarity @ v + np.einsum("bh,bhd->bd", by_own, w)
    return Reference(
        float(rows.mean()),
        rows,
        by_similarity,
        by_own,
        _through_length(by_u, anchors),
        _through_length(by_similarity.T @ u, positives),
        _through_length(by_own[:, :, None] * u[:, None, :], negatives),
    )


def gradient_shares(
    anchors: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    margin: np.ndarray,
    tau: float = TAU,
) -> Shares:
    """Return how each row's gradient is shared between its own hard negatives and the rest of the
    batch.

    The gradient by a negative's similarity is its probability / tau, so the shares are those of the
    probabilities. A margin m multiplies the imbalance by e^{-m/tau}. Shapes are those of
    `cement_reference`.
    """
    negatives = negatives.reshape(len(anchors), -1, anchors.shape[1])
    u, v, w = _unit(anchors), _unit(positives), _unit(negatives)
    others = np.where(np.eye(len(u), dtype=bool), -np.inf, u @ v.T / tau)
    imbalance = np.exp(
        np.logaddexp.reduce(others, axis=1) - _logsumexp(_own_logits(u, w, margin, tau))
    )
    return Shares(1 / (1 + imbalance), 1 - 1 / (1 + imbalance), imbalance)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), TINY)


def _own_logits(u: np.ndarray, w: np.ndarray, margin: np.ndarray, tau: float) -> np.ndarray:
    return (np.einsum("bd,bhd->bh", u, w) + np.asarray(margin).reshape(len(u), -1)) / tau


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]


def _through_length(gradient: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the gradient by vectors, given that by the same vectors at length 1."""
    unit = _unit(vectors)
    across = gradient - (gradient * unit).sum(-1, keepdims=True) * unit
    return across / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), TINY)
