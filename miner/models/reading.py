"""How an encoder reads texts: its tokenizer, its prompts, and whether our batches give it exactly
what sentence-transformers would.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np

from miner.models.batches import AT_ONCE, same_features, smallest

Role = Literal["query", "document"]
# as encode_query and encode_document choose
PROMPTS = {"query": ["query"], "document": ["document", "passage", "corpus"]}
PROBES = (["a", "two words"], ["a", "word " * 600])  # short; and longer than most models read


@dataclass(frozen=True)
class TextTokens:
    """The tokens of many texts, without padding.

    Attributes:
        values: name of a model's input, such as "input_ids" -> a 0, then the values of all texts,
            one after the other.
        lengths: tokens of each text (n,).
        starts: where each text begins (n,).
    """

    values: dict[str, np.ndarray]
    lengths: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Reader:
    """How a model reads the texts of one role.

    Attributes:
        tokenizer: of transformers, a fast one.
        prompt: what is put before each text.
        extras: what sentence-transformers hands the model with every batch beside matrices, such as
            the prompt's length.
    """

    tokenizer: Any
    prompt: str
    extras: Mapping[str, Any]

    def tokens(self, texts: list[str]) -> TextTokens:
        """Tokenize texts, truncated to what the model reads."""
        lengths, parts = [], dict[str, list[np.ndarray]]()
        for start in range(0, len(texts), AT_ONCE):
            some = [self.prompt + text for text in texts[start : start + AT_ONCE]]
            encoded = self.tokenizer(some, truncation="longest_first", return_attention_mask=False)
            lengths += [len(row) for row in encoded["input_ids"]]
            for name, rows in encoded.items():
                parts.setdefault(name, [np.zeros(1, np.uint8)]).append(
                    smallest(np.fromiter(chain.from_iterable(rows), np.int64))
                )
        values = {name: np.concatenate(some) for name, some in parts.items()}
        return TextTokens(values, np.array(lengths), np.cumsum([1, *lengths[:-1]]))

    def features(self, tokens: TextTokens, rows: np.ndarray) -> dict[str, Any]:
        """Return what the model takes for some texts, given by place: matrices padded to the
        longest of them, and the extras.
        """
        import torch

        lengths = tokens.lengths[rows, None]
        width = max(1, int(lengths.max()))
        column = np.arange(width) - (
            width - lengths if self.tokenizer.padding_side == "left" else 0
        )
        real = (column >= 0) & (column < lengths)
        place = np.where(real, tokens.starts[rows, None] + column, 0)
        padding = {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        matrices = {
            name: np.where(real, values[place].astype(np.int64), padding.get(name, 0))
            for name, values in tokens.values.items()
        }
        matrices["attention_mask"] = real.astype(np.int64)
        return {name: torch.from_numpy(matrix) for name, matrix in matrices.items()} | dict(
            self.extras
        )


def find_reader(model: Any, role: Role, prompt: str | None) -> Reader | None:
    """Return how a model reads texts of a role, or None where only sentence-transformers itself can
    tell.

    A trial decides: a few texts must give exactly what sentence-transformers makes of them.
    """
    import torch
    from transformers import PreTrainedTokenizerBase

    tokenizer = getattr(model[0], "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        return None
    expected = [dict(model.preprocess(texts, prompt=prompt, task=role)) for texts in PROBES]
    reader = Reader(
        tokenizer,
        prompt or "",
        {name: value for name, value in expected[0].items() if not isinstance(value, torch.Tensor)},
    )
    found = [reader.features(reader.tokens(texts), np.arange(len(texts))) for texts in PROBES]
    return reader if all(map(same_features, found, expected)) else None


def resolve_prompt(model: Any, role: Role, prompt: str | None) -> str | None:
    """Return the prompt of a role as sentence-transformers chooses it: the given one, else the
    model's for the role, else its default.
    """
    names = [name for name in PROMPTS[role] if name in model.prompts] or [model.default_prompt_name]
    return model.prompts.get(names[0]) if prompt is None else prompt
