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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from miner.errors import UserError
from miner.files import fingerprint
from miner.models.encoder import AT_ONCE, attempt, one_behind, same_features, smallest
from miner.models.hub import (
    Reranker,
    locate,
    own_device,
    resolve,
    torch_keywords,
    weights_fingerprint,
)

# of a pair, where sentence-transformers is to make the batches and only a number of pairs can be
# given
PAIR_TOKENS = 256
# more are not needed to see how a model cuts pairs, whatever length it says it reads
PROBE_WORDS = 40_000
NO_LIMIT = 10**20  # tokenizers of models without a length of their own say a larger one


class Ids(NamedTuple):
    """Token ids of many texts, without special tokens.

    Attributes:
        values: ids of all texts, one after the other, each cut to what a pair can hold.
        starts: where each text begins (n,).
        lengths: tokens of each text before it was cut (n,).
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


class PairTokens(NamedTuple):
    """What batches of pairs are put together from.

    Attributes:
        values: ids of the frame (before, between, after), of all queries and of all documents, one
            after the other.
        queries, documents: where they begin in `values` (n,), and their tokens before they were cut
            (n,).
    """

    values: np.ndarray
    queries: tuple[np.ndarray, np.ndarray]
    documents: tuple[np.ndarray, np.ndarray]


class Frame(NamedTuple):
    """What a tokenizer puts around a pair: the ids before the query, between query and document,
    and after, with their types.

    Attributes:
        ids: before, between, after, each (s,) int64.
        types: token types of before, query, between, document, after; None if the model takes none.
    """

    ids: tuple[np.ndarray, np.ndarray, np.ndarray]
    types: tuple[int, int, int, int, int] | None


@dataclass(frozen=True)
class PairReader:
    """How a model reads pairs.

    Attributes:
        tokenizer: of transformers, a fast one.
        frame: the special tokens.
        limit: tokens of queries and documents together that the model reads.
        extras: what sentence-transformers hands the model with every batch beside matrices.
    """

    tokenizer: Any
    frame: Frame
    limit: int
    extras: Mapping[str, Any]

    def tokens(self, queries: list[str], documents: list[str]) -> PairTokens:
        """Tokenize texts, each once."""
        one, two = self._ids(queries), self._ids(documents)
        values = np.concatenate((*self.frame.ids, one.values, two.values))
        first = sum(map(len, self.frame.ids))
        second = first + len(one.values)
        return PairTokens(
            smallest(values), (first + one.starts, one.lengths), (second + two.starts, two.lengths)
        )

    def _ids(self, texts: list[str]) -> Ids:
        lengths, parts = [], [np.zeros(0, np.uint8)]
        for start in range(0, len(texts), AT_ONCE):
            rows = tokenized(self.tokenizer, texts[start : start + AT_ONCE])
            lengths += [len(row) for row in rows]
            parts.append(
                smallest(
                    np.fromiter(chain.from_iterable(row[: self.limit] for row in rows), np.int64)
                )
            )
        kept = np.minimum(np.array(lengths, np.int64), self.limit)
        return Ids(np.concatenate(parts), np.cumsum(kept) - kept, np.array(lengths, np.int64))

    def kept(
        self, tokens: PairTokens, query: np.ndarray, document: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return how many tokens of query and document pairs keep, given by places; both (r,)."""
        return cut(tokens.queries[1][query], tokens.documents[1][document], self.limit)

    def features(
        self, tokens: PairTokens, query: np.ndarray, document: np.ndarray
    ) -> dict[str, Any]:
        """Return what the model takes for pairs, given by places (r,): matrices padded to the
        longest pair, and the extras.
        """
        import torch

        one, two = self.kept(tokens, query, document)
        before, between, after = map(len, self.frame.ids)
        # of each part of each pair, in tokens
        size = np.stack(np.broadcast_arrays(before, one, between, two, after), 1)
        source = np.stack(
            np.broadcast_arrays(
                0, tokens.queries[0][query], before, tokens.documents[0][document], before + between
            ),
            1,
        )  # where in `values` it begins
        # where it begins in the line of all tokens of the batch
        begins = np.cumsum(size).reshape(size.shape) - size
        places = np.repeat(source - begins, size.ravel()) + np.arange(size.sum())
        lengths = size.sum(1)[:, None]
        width = int(lengths.max())
        column = np.arange(width) - (
            width - lengths if self.tokenizer.padding_side == "left" else 0
        )
        real = (column >= 0) & (column < lengths)

        def matrix(values: np.ndarray, padding: int) -> Any:
            out = np.full(real.shape, padding, np.int64)
            out[real] = values
            return torch.from_numpy(out)

        found = {
            "input_ids": matrix(tokens.values[places], self.tokenizer.pad_token_id),
            "attention_mask": matrix(np.ones_like(places), 0),
        }
        if self.frame.types:
            types = np.repeat(np.tile(self.frame.types, len(size)), size.ravel())
            found["token_type_ids"] = matrix(types, self.tokenizer.pad_token_type_id)
        return found | dict(self.extras)


def tokenized(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the ids of texts, neither cut nor framed."""
    keywords = {
        "add_special_tokens": False,
        "return_attention_mask": False,
        "return_token_type_ids": False,
        "verbose": False,
    }
    return tokenizer(texts, **keywords)["input_ids"]


def cut(one: np.ndarray, two: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many tokens of each of two texts a pair keeps, as "longest_first" of the
    tokenizers library has it.

    The longer text is cut first, down to the shorter one; if that is not enough, each gets half,
    and the longer (or the second) one more.

    Args:
        one: tokens of the first texts (r,).
        two: tokens of the second texts (r,).
        limit: tokens of both together.
    """
    short, long = np.minimum(one, two), np.maximum(one, two)
    long = np.minimum(long, np.maximum(short, limit - short))
    halved = short + long > limit
    short, long = np.where(halved, limit // 2, short), np.where(halved, limit - limit // 2, long)
    return np.where(one > two, long, short), np.where(one > two, short, long)


def find_reader(model: Any) -> PairReader | None:
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
    probes = _probes(min(length, PROBE_WORDS))
    expected = [dict(model.preprocess(list(zip(*texts, strict=True)))) for texts in probes]
    frame = _frame(tokenizer, "token_type_ids" in expected[0])
    limit = (length if length < NO_LIMIT else 2**62) - sum(len(part) for part in frame.ids)
    extras = {
        name: value for name, value in expected[0].items() if not isinstance(value, torch.Tensor)
    }
    reader = PairReader(tokenizer, frame, limit, extras)
    found = [
        reader.features(reader.tokens(*texts), *[np.arange(len(texts[0]))] * 2) for texts in probes
    ]
    return reader if all(map(same_features, found, expected)) else None


def _probes(length: int) -> list[tuple[list[str], list[str]]]:
    """Return queries and documents that try a reader: short ones, and ones of which either or
    both are longer than `length` tokens.
    """
    words = [3, length + 2, length + 2, length + 3, length // 2 + 1, length]
    other = [length + 2, 3, length + 3, length + 2, length, length // 2 + 1]
    long = ["word " * count for count in words], ["word " * count for count in other]
    return [(["a", "two words", ""], ["three more words", "", "a"]), long]


def _frame(tokenizer: Any, typed: bool) -> Frame:
    """Return what a tokenizer puts around a pair, as it shows for one."""
    encoded = tokenizer([("a", "a")], return_token_type_ids=typed)
    ids, whose = (
        np.array(encoded["input_ids"][0], np.int64),
        np.array([-1 if of is None else of for of in encoded.sequence_ids(0)]),
    )
    types = np.array(encoded["token_type_ids"][0]) if typed else np.zeros_like(ids)
    one, two = np.flatnonzero(whose == 0), np.flatnonzero(whose == 1)
    edges = (0, one[0], one[-1] + 1, two[0], two[-1] + 1, len(ids))
    parts = [slice(*edge) for edge in pairwise(edges)]
    kinds = tuple(int(types[part][0]) if len(types[part]) else 0 for part in parts)
    return Frame((ids[parts[0]], ids[parts[2]], ids[parts[4]]), kinds if typed else None)  # type: ignore[arg-type]


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
        return find_reader(self.model)

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
