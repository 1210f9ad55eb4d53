"""(query, document) pairs -> scores of a cross-encoder, through batches of tokens rather than of
pairs.

One call takes all pairs of a shard. Each query and each document is tokenized once, however many
pairs it is in, and pairs are put together from token ids as the tokenizer itself does. They are
sorted by length, longest first, and cut where rows x longest would exceed a budget: so next to
nothing is padding, and the batch that may not fit the memory comes first.

Scores are those of sentence-transformers' own `predict`, but for the last bits, which also depend
on what else is in a batch. A model that reads pairs otherwise (chat templates, prompts, tokenizers
that are not fast) is run by `predict` itself.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from miner.errors import UserError
from miner.files import fingerprint
from miner.models.batches import attempt, one_behind, same_features
from miner.models.hub import (
    Reranker,
    locate,
    own_device,
    resolve,
    torch_keywords,
    weights_fingerprint,
)
from miner.models.pair_reading import (
    NO_LIMIT,
    PROBE_WORDS,
    PairReader,
    PairTokens,
    frame_of,
    probe_pairs,
)

# of a pair, where sentence-transformers is to make the batches and only a number of pairs can be
# given
PAIR_TOKENS = 256


def find_pair_reader(model: Any) -> PairReader | None:
    """Return how a cross-encoder reads pairs, or None where only sentence-transformers itself can
    tell.

    A trial decides: a few pairs must give exactly what sentence-transformers makes of them.
    """
    import torch
    from transformers import PreTrainedTokenizerBase

    tokenizer = getattr(model[0], "tokenizer", None)
    if (
        not isinstance(tokenizer, PreTrainedTokenizerBase)
        or not tokenizer.is_fast
        or model.prompts.get(model.default_prompt_name)
    ):
        return None
    length = tokenizer.model_max_length
    probes = probe_pairs(min(length, PROBE_WORDS))
    expected = [dict(model.preprocess(list(zip(*texts, strict=True)))) for texts in probes]
    frame = frame_of(tokenizer, "token_type_ids" in expected[0])
    limit = (length if length < NO_LIMIT else 2**62) - sum(len(part) for part in frame.ids)
    extras = {
        name: value for name, value in expected[0].items() if not isinstance(value, torch.Tensor)
    }
    reader = PairReader(tokenizer, frame, limit, extras)
    found = [
        reader.features(reader.tokens(*texts), *[np.arange(len(texts[0]))] * 2) for texts in probes
    ]
    return reader if all(map(same_features, found, expected)) else None


@dataclass
class PairScorer:
    """Scores pairs with a sentence-transformers CrossEncoder.

    Attributes:
        model: a CrossEncoder with one label.
        batch_tokens: tokens of a batch, padding counted.
        activation: what makes scores of logits.
        dtype: what the model computes in, for messages.
    """

    model: Any
    batch_tokens: int
    activation: Callable[[Any], Any]
    dtype: str = "fp32"

    def __call__(
        self, queries: list[str], documents: list[str], query: np.ndarray, document: np.ndarray
    ) -> np.ndarray:
        """Return the scores (p,) float32 of pairs.

        Args:
            queries: texts.
            documents: texts.
            query: (p,) places in `queries`.
            document: (p,) places in `documents`.

        Raises:
            UserError: a score is not finite, or a single pair does not fit the memory.
        """
        out = np.empty(len(query), np.float32)
        if not len(query):
            return out
        if self.reader is None:
            out[:] = self._score_elsewhere(
                [
                    (queries[q], documents[d])
                    for q, d in zip(query.tolist(), document.tolist(), strict=True)
                ]
            )
        else:
            for rows, scores in one_behind(
                self._batches(self.reader, self.reader.tokens(queries, documents), query, document)
            ):
                out[rows] = scores.cpu().numpy()
        if not np.isfinite(out).all():
            raise UserError(
                f"the reranker gives scores that are not finite under dtype {self.dtype}; try"
                " --dtype fp32"
            )
        return out

    @cached_property
    def reader(self) -> PairReader | None:
        """How the model reads pairs, None where `predict` must run it."""
        return find_pair_reader(self.model)

    def _batches(
        self, reader: PairReader, tokens: PairTokens, query: np.ndarray, document: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield places and scores of batch after batch, longest pairs first, ties by place;
        where memory runs out, halve the batch.
        """
        lengths = np.add(*reader.kept(tokens, query, document)) + sum(map(len, reader.frame.ids))
        order, start, budget = np.argsort(-lengths, kind="stable"), 0, self.batch_tokens
        while start < len(order):
            longest = max(1, int(lengths[order[start]]))
            rows = order[start : start + max(1, budget // longest)]
            scores = attempt(self._forward, reader.features(tokens, query[rows], document[rows]))
            if scores is None:
                budget = self._halve(len(rows), longest) * longest
                continue
            yield rows, scores
            start += len(rows)

    def _forward(self, features: dict[str, Any]) -> Any:
        import torch

        device = self.model.device
        if device.type == "cuda":
            features = {
                name: value.pin_memory() if isinstance(value, torch.Tensor) else value
                for name, value in features.items()
            }
        with torch.inference_mode():
            moved = {
                name: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
                for name, v in features.items()
            }
            return self.activation(self.model(moved)["scores"].float()).reshape(-1)

    def _score_elsewhere(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        size = max(1, self.batch_tokens // PAIR_TOKENS)
        while (scores := attempt(self._predict, pairs, size)) is None:
            size = self._halve(size, PAIR_TOKENS)
        return scores

    def _predict(self, pairs: list[tuple[str, str]], size: int) -> np.ndarray:
        return self.model.predict(
            pairs, batch_size=size, activation_fn=self.activation, show_progress_bar=False
        ).reshape(-1)

    def _halve(self, rows: int, longest: int) -> int:
        if rows == 1:
            raise UserError(
                f"even one pair at a time does not fit the memory of {self.model.device}; give a"
                " lower --max-length"
            )
        logging.getLogger("quarry").warning(
            f"out of memory with {rows} pairs of {longest} tokens on {self.model.device}: going on"
            f" with half as many; --batch-tokens {rows // 2 * longest} would begin with them"
        )
        return rows // 2


def bare(options: Reranker) -> Reranker:
    """Return the reranker of a source's or a judge's options alone: the same reranker is then
    loaded, and fingerprinted, as the same.
    """
    return Reranker(**{name: getattr(options, name) for name in Reranker.model_fields})


def reranker_fingerprint(options: Reranker) -> str:
    """Return what decides a cross-encoder's scores: weights, length, activation, dtype, batches
    (their last bits), and kind of device.
    """
    device, dtype, batch_tokens = resolve(options)
    weights = weights_fingerprint(locate(options.reranker, kind="reranker"))
    return fingerprint(
        [
            "reranker",
            weights,
            options.max_length,
            options.activation,
            dtype,
            batch_tokens,
            device.partition(":")[0],
        ]
    )


def reranker_facts(options: Reranker) -> dict[str, Any]:
    """Return what a reranker resolves to here, for manifests: name, device, dtype, tokens a
    batch, activation and scale of its scores.
    """
    device, dtype, batch_tokens = resolve(options)
    activation = type(load_reranker(bare(options)).activation).__name__
    scale = {"Identity": "logit", "Sigmoid": "probability"}.get(activation, activation)
    facts = {
        "reranker": options.reranker,
        "device": device,
        "dtype": dtype,
        "batch_tokens": batch_tokens,
    }
    return facts | {"activation": activation, "score_scale": scale}


@lru_cache(maxsize=2)  # a cheap one and a strong one
def load_reranker(options: Reranker) -> PairScorer:
    """Build the cross-encoder that `options` (as `bare` gives them) describe.

    Returns:
        score_pairs(queries, documents, query, document) -> (p,) float32; see `PairScorer`.

    Raises:
        UserError: there is no such model, it has no safetensors weights, or it does not give one
            score for a pair.
    """
    import torch

    device, dtype, batch_tokens = resolve(options)
    model = _load_cross_encoder(options, own_device(device), dtype)
    given = {
        "auto": model.activation_fn,
        "sigmoid": torch.nn.Sigmoid(),
        "identity": torch.nn.Identity(),
    }
    return PairScorer(model, batch_tokens, given[options.activation], dtype)


def _load_cross_encoder(options: Reranker, device: str, dtype: str) -> Any:
    from sentence_transformers import CrossEncoder

    folder = locate(options.reranker, kind="reranker")
    try:
        model = CrossEncoder(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
            max_length=options.max_length,
            model_kwargs=torch_keywords(dtype),
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load reranker {folder}: {str(error).splitlines()[0]}") from error
    if model.num_labels != 1:
        raise UserError(
            f"reranker {folder} gives {model.num_labels} labels for a pair; expected one score:"
            " take a model with one label"
        )
    kinds = model.config.architectures or []
    if len(model) == 1 and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        # transformers would put random weights where the head is missing
        raise UserError(
            f"reranker {folder} is {', '.join(kinds) or 'a model'} without a head that scores"
            " pairs; give a cross-encoder"
        )
    return model.eval()
