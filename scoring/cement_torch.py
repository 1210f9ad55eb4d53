"""The Cement loss of `scoring.cement` as torch modules: `CementLoss` of embeddings, and
`SentenceCementLoss` for sentence-transformers' trainer. Nothing else imports this file.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from miner.errors import UserError
from scoring.cement import MARGIN_BASE, MARGIN_SLOPE, TAU, cement_margins


def cement_loss(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    margin: Tensor,
    tau: Tensor | float = TAU,
    symmetric: bool = False,
) -> Tensor:
    """Return the loss of a batch as a scalar tensor; whatever has a gradient keeps it.

    Args:
        anchors: (b, d). positives: (b, d). Of any length but 0.
        negatives: (b, d), or (b, h, d) for h hard negatives a row.
        margin: (b,) or (b, h), as `margins` gives them.
        tau: temperature.
        symmetric: half of the loss is from positives to anchors.
    """
    u, v = normalize(anchors, dim=-1), normalize(positives, dim=-1)
    w = normalize(negatives.reshape(len(u), -1, u.shape[1]), dim=-1)
    logits, target = u @ v.T / tau, torch.arange(len(u), device=u.device)
    own = (torch.einsum("bd,bhd->bh", u, w) + margin.reshape(len(u), -1)) / tau
    loss = cross_entropy(torch.cat([logits, own], 1), target)
    return (loss + cross_entropy(logits.T, target)) / 2 if symmetric else loss


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
    def tau(self) -> Tensor | float:
        """Return the temperature."""
        return self.fixed if self.log_tau is None else self.log_tau.exp()

    def forward(
        self,
        anchors: Tensor,
        positives: Tensor,
        negatives: Tensor,
        concreteness: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss of anchors (b, d), positives (b, d), own negatives (b, d) or (b,
        h, d), ratings (b,) or (b, h).

        A rating that is nan, or no ratings at all, means the margin m0.
        """
        ratings = (
            np.full(negatives.shape[:-1], np.nan)
            if concreteness is None
            else concreteness.detach().cpu().double().numpy()
        )
        margin = torch.from_numpy(cement_margins(ratings, self.sign * self.m0, self.sign * self.a))
        return cement_loss(
            anchors,
            positives,
            negatives,
            margin.to(anchors.dtype).to(anchors.device),
            self.tau,
            self.symmetric,
        )


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
        self.model, self.loss = model, loss or CementLoss()

    def forward(self, sentence_features: Any, labels: Tensor | None = None) -> Tensor:
        """Return the mean loss of tokenized columns: anchor, positive, negatives."""
        embedded = [self.model(features)["sentence_embedding"] for features in sentence_features]
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
        return {"tau": float(self.loss.tau), **{name: getattr(self.loss, name) for name in names}}
