"""How a cross-encoder reads pairs: each text is tokenized once, and pairs are put together from
token ids as its tokenizer does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from miner.models.batches import AT_ONCE, smallest

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
        left = self.tokenizer.padding_side == "left"
        column = np.arange(width) - (width - lengths if left else 0)
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


def probe_pairs(length: int) -> list[tuple[list[str], list[str]]]:
    """Return queries and documents that try a reader: short ones, and ones of which either or
    both are longer than `length` tokens.
    """
    words = [3, length + 2, length + 2, length + 3, length // 2 + 1, length]
    other = [length + 2, 3, length + 3, length + 2, length, length // 2 + 1]
    long = ["word " * count for count in words], ["word " * count for count in other]
    return [(["a", "two words", ""], ["three more words", "", "a"]), long]


def frame_of(tokenizer: Any, typed: bool) -> Frame:
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
