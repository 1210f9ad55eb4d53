"""The models that bench/validity.py trains: each starts anew from the same weights, and gives the
vectors of all texts before and after.

static   MiniLM's token embeddings, centred, 128 dimensions by PCA, averaged; the table is trained
head     a linear map, at first the identity, of the vectors of MiniLM's first two layers
layer    the second of these two layers is trained, texts cut at 32 tokens
minilm   all-MiniLM-L6-v2, whole, texts cut at 48 tokens
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

TAU, BATCH = 0.05, 32
LENGTHS = {"static": 128, "head": 64, "layer": 32, "minilm": 48}


class Recipe(NamedTuple):
    """How a student is trained.

    Attributes:
        in_batch: the other documents of the batch are negatives too.
        optimiser: adam or sgd. rate: learning rate. epochs: over the training queries.
    """

    in_batch: bool
    optimiser: str
    rate: float
    epochs: int


class Student:
    """A model under training. `encode` gives unit vectors of texts by number: queries first, then
    documents.
    """

    weights: list[torch.Tensor]

    def encode(self, rows: np.ndarray) -> torch.Tensor:
        """Return the vectors of texts (n, d), with gradients."""
        raise NotImplementedError

    def vectors(self, count: int) -> np.ndarray:
        """Return the vectors of all texts as the weights are now, (count, d) float32."""
        with torch.inference_mode():
            parts = [
                self.encode(rows) for rows in np.array_split(np.arange(count), count // 256 + 1)
            ]
        return torch.cat(parts).numpy()

    def start(self) -> None:
        """Put the weights back to what they were at first."""
        if not hasattr(self, "_first"):
            self._first = [weight.detach().clone() for weight in self.weights]
        with torch.no_grad():
            for weight, first in zip(self.weights, self._first, strict=True):
                weight.copy_(first)


class Static(Student):
    """Averaged token embeddings."""

    def __init__(self, texts: list[str]):
        model, tokenizer = _minilm()
        tokens = tokenizer(texts, truncation=True, max_length=LENGTHS["static"])["input_ids"]
        flat = np.concatenate([np.array(one) for one in tokens])
        known, places = np.unique(flat, return_inverse=True)
        table = model.embeddings.word_embeddings.weight.detach().numpy()[known]
        share = np.bincount(places) / len(places)
        table = table - share @ table
        _, _, axes = np.linalg.svd(np.sqrt(share)[:, None] * table, full_matrices=False)
        self.table = torch.from_numpy(np.ascontiguousarray(table @ axes[:128].T)).requires_grad_()
        self.weights = [self.table]
        self.ends = np.cumsum([len(one) for one in tokens])
        self.places = torch.from_numpy(places)

    def encode(self, rows: np.ndarray) -> torch.Tensor:
        begins = np.concatenate(([0], self.ends))[rows]
        sizes = self.ends[rows] - begins
        bags = torch.cat([self.places[b : b + n] for b, n in zip(begins, sizes, strict=True)])
        offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(sizes)[:-1])))
        mean = torch.nn.functional.embedding_bag(bags, self.table, offsets, mode="mean")
        return normalize(mean)


class Head(Student):
    """A linear map of fixed vectors."""

    def __init__(self, texts: list[str]):
        hidden, mask = _layers(texts, LENGTHS["head"], 2)
        self.inputs = torch.cat([_pool(h, m) for h, m in zip(hidden, mask, strict=True)])
        self.map = torch.eye(self.inputs.shape[1]).requires_grad_()
        self.weights = [self.map]

    def encode(self, rows: np.ndarray) -> torch.Tensor:
        return normalize(self.inputs[torch.from_numpy(rows)] @ self.map.T)


class Layer(Student):
    """The second of two layers."""

    def __init__(self, texts: list[str]):
        model, _ = _minilm()
        self.layer = model.encoder.layer[1]
        hidden, mask = _layers(texts, LENGTHS["layer"], 1)
        self.hidden, self.mask = torch.cat(hidden), torch.cat(mask)
        self.weights = list(self.layer.parameters())
        for weight in self.weights:
            weight.requires_grad_()

    def encode(self, rows: np.ndarray) -> torch.Tensor:
        at = torch.from_numpy(rows)
        mask = self.mask[at]
        longest = int(mask.sum(1).max())
        hidden, mask = self.hidden[at, :longest], mask[:, :longest]
        return _pool(_apply(self.layer, hidden, mask), mask)


class MiniLm(Student):
    """The whole model."""

    def __init__(self, texts: list[str]):
        self.model, tokenizer = _minilm()
        self.tokens = tokenizer(texts, truncation=True, max_length=LENGTHS["minilm"])["input_ids"]
        self.weights = [
            weight for name, weight in self.model.named_parameters() if "pooler" not in name
        ]
        for weight in self.weights:
            weight.requires_grad_()

    def encode(self, rows: np.ndarray) -> torch.Tensor:
        tokens, mask = _padded([self.tokens[row] for row in rows.tolist()])
        hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return _pool(hidden, mask)


STUDENTS: dict[str, Callable[[list[str]], Student]] = {
    "static": Static,
    "head": Head,
    "layer": Layer,
    "minilm": MiniLm,
}


def _minilm() -> tuple[Any, Any]:
    from sentence_transformers import SentenceTransformer

    from miner.models.hub import default_encoder

    module = SentenceTransformer(default_encoder(), device="cpu")[0]
    model = module.auto_model.eval()  # no dropout: seeds move the order alone
    for weight in model.parameters():
        weight.requires_grad_(False)
    return model, module.tokenizer


def _padded(tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, tokens))
    ids = torch.tensor([one + [0] * (longest - len(one)) for one in tokens])
    return ids, torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in tokens])


def _pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return normalize((hidden * mask[..., None]).sum(1))


def _apply(layer: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    shut = torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)
    out = layer(hidden, shut[:, None, None, :])
    return out[0] if isinstance(out, tuple) else out


def _layers(
    texts: list[str], length: int, count: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return what the first layers make of texts, padded to one length, in blocks."""
    model, tokenizer = _minilm()
    hidden, masks = [], []
    for start in range(0, len(texts), 256):
        made = tokenizer(
            texts[start : start + 256],
            truncation=True,
            max_length=length,
            padding="max_length",
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = model.embeddings(made["input_ids"])
            for layer in model.encoder.layer[:count]:
                states = _apply(layer, states, made["attention_mask"])
        hidden.append(states.clone())
        masks.append(made["attention_mask"])
    return hidden, masks


def train(
    student: Student, queries: np.ndarray, documents: np.ndarray, recipe: Recipe, seed: int
) -> None:
    """Train from the first weights: softmax over the positive and the negatives.

    Args:
        student: the model.
        queries: (n,) texts. documents: (n, 1 + k) texts, the positive first.
        recipe: as above.
        seed: of the order of the queries.
    """
    student.start()
    kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.SGD
    optimiser, random = kind(student.weights, lr=recipe.rate), np.random.default_rng(seed)
    for _ in range(recipe.epochs):
        for part in np.array_split(random.permutation(len(queries)), -(-len(queries) // BATCH)):
            own = documents[part]
            texts, place = np.unique(own, return_inverse=True)
            vectors, asked = student.encode(texts), student.encode(queries[part])
            logits = asked @ vectors.T / TAU
            place = torch.from_numpy(place.reshape(own.shape))
            if recipe.in_batch:
                loss = cross_entropy(logits, place[:, 0])
            else:
                loss = cross_entropy(logits.gather(1, place), torch.zeros(len(part), dtype=int))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
