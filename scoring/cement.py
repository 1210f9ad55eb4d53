"""anchors, positives, own hard negatives, ratings -> the Cement loss, its gradients and where they
go.

InfoNCE in which each hard negative carries a margin that grows with the concreteness of the word
that was changed to make it (methods: arXiv 2604.13313, "Concrete Jungle". The formula is
**reconstructed** from the paper's words; sign and constants are options):

    L_i = -log  e^{s_ii/tau} / ( e^{s_ii/tau} + sum_k e^{(s_ik' + m_ik)/tau} + sum_{j != i}
    e^{s_ij/tau} )
    m   = m0 + a (c - 1) / 4          c in [1, 5]

s is the cosine; i' are i's own hard negatives (the paper has one), j the positives of the batch's
other anchors. With `symmetric`, half of the loss is InfoNCE from positives to anchors, which has no
hard negatives, as in CLIP: the made negatives are texts, the anchors images.

`CementLoss` (embeddings) and `SentenceCementLoss` (sentence-transformers' trainer) are torch
modules. They are built when they are first asked for, so that the exports, which need only
`margins`, import no torch.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from miner.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    CementLoss: Any
    SentenceCementLoss: Any

TAU = 0.05  # sentence-transformers' scale of 20
LOW, HIGH = 1.0, 5.0  # the scale of ratings
TINY = 1e-12  # shortest vector that is divided by its length, as in torch


# of the Cement loss: at tau .05 the most concrete word weighs e times the most abstract one
MARGIN_BASE, MARGIN_SLOPE = 0.0, 0.05


def margins(
    concreteness: npt.ArrayLike, m0: float = MARGIN_BASE, a: float = MARGIN_SLOPE
) -> np.ndarray:
    """Return m0 + a (c - 1) / 4 as float64, in units of cosine: m0 for the most abstract word, m0 +
    a for the most concrete one.

    Args:
        concreteness: ratings from 1 to 5, any shape; nan where a rating is missing, which gets m0.
        m0: margin at rating 1.
        a: what rating 5 has more than rating 1.

    Raises:
        UserError: a rating is outside 1 to 5.
    """
    ratings = np.asarray(concreteness, np.float64)
    outside = (ratings < LOW) | (ratings > HIGH)
    if outside.any():
        raise UserError(
            f"concreteness {ratings[outside].flat[0]:g} is outside 1 to 5; bring the ratings to"
            " that scale, 5 the most concrete"
        )
    return np.where(np.isnan(ratings), m0, m0 + a * (ratings - LOW) / (HIGH - LOW))


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


def cement_loss(
    anchors: "Tensor",
    positives: "Tensor",
    negatives: "Tensor",
    margin: "Tensor",
    tau: "Tensor | float" = TAU,
    symmetric: bool = False,
) -> "Tensor":
    """Return the loss of a batch as a scalar tensor. Shapes are those of `cement_reference`;
    whatever has a gradient keeps it.
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize

    u, v = normalize(anchors, dim=-1), normalize(positives, dim=-1)
    w = normalize(negatives.reshape(len(u), -1, u.shape[1]), dim=-1)
    logits, target = u @ v.T / tau, torch.arange(len(u), device=u.device)
    own = (torch.einsum("bd,bhd->bh", u, w) + margin.reshape(len(u), -1)) / tau
    loss = cross_entropy(torch.cat([logits, own], 1), target)
    return (loss + cross_entropy(logits.T, target)) / 2 if symmetric else loss


def _cement_loss_class() -> type:
    import torch

    class CementLoss(torch.nn.Module):
        """The Cement loss of embeddings: image-text or text-text.

        Args:
            tau: temperature.
            m0: margin of a negative made by changing the most abstract word, in units of cosine.
            a: what the most concrete word's margin is more.
            sign: 1 makes the negatives of concrete words weigh more, -1 less.
            symmetric: half of the loss is from positives to anchors.
            learn_tau: tau is a parameter, learned as its logarithm, without bounds.
        """

        def __init__(
            self,
            tau: float = TAU,
            m0: float = MARGIN_BASE,
            a: float = MARGIN_SLOPE,
            sign: int = 1,
            symmetric: bool = False,
            learn_tau: bool = False,
        ):
            super().__init__()
            self.m0, self.a, self.sign, self.symmetric, self.fixed = m0, a, sign, symmetric, tau
            self.log_tau = torch.nn.Parameter(torch.tensor(tau).log()) if learn_tau else None

        @property
        def tau(self) -> "Tensor | float":
            return self.fixed if self.log_tau is None else self.log_tau.exp()

        def forward(
            self,
            anchors: "Tensor",
            positives: "Tensor",
            negatives: "Tensor",
            concreteness: "Tensor | None" = None,
        ) -> "Tensor":
            """Return the mean loss of anchors (b, d), positives (b, d), own negatives (b, d) or (b,
            h, d), ratings (b,) or (b, h).

            A rating that is nan, or no ratings at all, means the margin m0.
            """
            ratings = (
                np.full(negatives.shape[:-1], np.nan)
                if concreteness is None
                else concreteness.detach().cpu().double().numpy()
            )
            margin = torch.from_numpy(margins(ratings, self.sign * self.m0, self.sign * self.a))
            return cement_loss(
                anchors,
                positives,
                negatives,
                margin.to(anchors.dtype).to(anchors.device),
                self.tau,
                self.symmetric,
            )

    return CementLoss


def _sentence_cement_loss_class() -> type:
    import torch

    class SentenceCementLoss(torch.nn.Module):
        """The Cement loss for sentence-transformers' trainer: columns anchor, positive, negative
        (or several), label.

        The label is the concreteness of each negative's changed word; nan where there is none.

        Args:
            model: the SentenceTransformer that is trained.
            loss: the loss of its embeddings [default: CementLoss()].
        """

        def __init__(self, model: Any, loss: Any = None):
            super().__init__()
            self.model, self.loss = model, loss or __getattr__("CementLoss")()

        def forward(self, sentence_features: Any, labels: "Tensor | None" = None) -> "Tensor":
            embedded = [
                self.model(features)["sentence_embedding"] for features in sentence_features
            ]
            if len(embedded) < 3:
                raise UserError(
                    "the Cement loss needs columns anchor, positive, negative; found"
                    f" {len(embedded)} columns of text"
                )
            anchors, positives, *negatives = embedded
            return self.loss(anchors, positives, torch.stack(negatives, 1), labels)

        def get_config_dict(self) -> dict[str, Any]:
            """Return what the model card says of the loss."""
            names = ("m0", "a", "sign", "symmetric")
            return {
                "tau": float(self.loss.tau),
                **{name: getattr(self.loss, name) for name in names},
            }

    return SentenceCementLoss


MODULES = {"CementLoss": _cement_loss_class, "SentenceCementLoss": _sentence_cement_loss_class}


def __getattr__(name: str) -> Any:
    """Build a torch module when it is first asked for, under the name by which pickle finds it
    again.
    """
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in globals():
        built = MODULES[name]()
        built.__qualname__ = name
        globals()[name] = built
    return globals()[name]
