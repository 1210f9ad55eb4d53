"""How long a text a model may write: no text is asked for that its answer could not hold, and none
that would be refused for its length.
"""

import math
from typing import NamedTuple

from miner.llm.prompts import Prompt
from miner.llm.verify import Guard

# the fewest that texts come to: English has four and more, code and chemistry less
BYTES_PER_TOKEN = 2.5
# tokens of the JSON around the text, and of each other value that the schema has
AROUND, OTHER_VALUE = 24, 96
STEPS = 2  # schemas of so many lengths for each doubling: an engine compiles each one


class Room(NamedTuple):
    """The most words that are asked for, characters that the schema lets through, tokens of the
    whole answer.
    """

    words: int
    characters: int
    tokens: int


def room_for(prompt: Prompt, guard: Guard, max_tokens: int | None, shorter: bool) -> Room | None:
    """Return the room that a text has: as long as the prompt allows, and as `max_tokens` do where
    they are given; None if that is less than the prompt's least.

    Args:
        prompt: whose length bounds it, as a share of the original's words.
        guard: the original, and how much of it is shown.
        max_tokens: of the answer, the user's bound.
        shorter: half of it, as the last answer was too long.
    """
    shown = guard.length()
    each = max(len(guard.original) / max(len(guard.original.split()), 1), 2.0)
    heavy = len(guard.original.encode("utf-8", "replace")) / max(len(guard.original), 1)
    around = AROUND + OTHER_VALUE * (len(prompt.json_schema.get("properties", {})) - 1)
    words = prompt.most_words(shown)
    if max_tokens is not None:
        words = min(words, (max_tokens - around) * BYTES_PER_TOKEN / (each * heavy))
    least = prompt.length[0] * shown
    if words < max(least, 1.0):
        return None
    words = max(words / 2, least + 1) if shorter and words / 2 >= 1 else words
    characters = math.ceil(words * each) + 16
    tokens = math.ceil(characters * heavy / BYTES_PER_TOKEN) + around
    return Room(int(words), _step(characters), min(tokens, max_tokens or tokens))


def _step(characters: int) -> int:
    """Return the next of a few lengths that is no shorter."""
    return math.ceil(2 ** (math.ceil(STEPS * math.log2(characters)) / STEPS))
