"""Two phrases of one kind exchange places within a text: pure, and seeded by ids."""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from miner.seeds import generator
from miner.words.edits import Edit, apply, carry_case
from miner.words.parsing import Parsed

MODIFIERS = ("compound", "amod", "nummod", "nmod:poss", "flat")
# What holds of A and B holds of B and A: an exchange across these leaves the text true.
SYMMETRIC = {
    "and",
    "or",
    "with",
    "near",
    "beside",
    "by",
    "alongside",
    "between",
    "next",
    "together",
    "meet",
    "match",
    "equal",
    "face",
}
TOGETHER = {"conj", "appos", "compound", "flat", "fixed"}


class Swapped(NamedTuple):
    """A text with two phrases exchanged: the characters they span, both phrases, A for
    adjectives and O for nouns.
    """

    text: str
    span: str
    first: str
    second: str
    route: str


class Phrase(NamedTuple):
    """Tokens `first` to `last` of a text with their head, and what they must share with another
    phrase to change places with it.
    """

    first: int
    last: int
    head: int
    kind: str


def swap(text: str, parsed: Parsed, seed: int, turn: int, *ids: str) -> Swapped | None:
    """Return a text in which two noun phrases (without their articles) or two adjectives changed
    places; None if nothing can.

    Args:
        text: the original.
        parsed: its parse.
        seed: with the ids it draws the pair.
        turn: the first, second… pair of the draw, so that more negatives of one text differ.
        ids: of the query and the document.
    """
    pairs = list(_phrase_pairs(parsed))
    if turn >= len(pairs):
        return None
    one, two = pairs[int(generator(seed, *ids, "swap").permutation(len(pairs))[turn])]
    (start, end), (second_start, second_end) = _characters(parsed, one), _characters(parsed, two)
    first, second = text[start:end], text[second_start:second_end]
    opens = one.first == 0 and first[:1].isupper() and not first.isupper()
    left = carry_case(second, "A") if opens else second
    right = first[:1].lower() + first[1:] if opens and parsed.pos[one.first] != "PROPN" else first
    changed = apply(text, [Edit(start, end, left), Edit(second_start, second_end, right)])
    return Swapped(
        changed,
        f"{start}:{second_end}",
        first,
        second,
        "A" if parsed.pos[one.head] == "ADJ" else "O",
    )


def _phrase_pairs(parsed: Parsed) -> Iterator[tuple[Phrase, Phrase]]:
    phrases = list(_phrases(parsed))
    for one, two in combinations(phrases, 2):
        lemmas = [
            {parsed.lemma[place].lower() for place in range(phrase.first, phrase.last + 1)}
            for phrase in (one, two)
        ]
        between = {parsed.lemma[place].lower() for place in range(one.last + 1, two.first)}
        apart = (
            one.kind == two.kind
            and one.last < two.first
            and parsed.sentence[one.head] == parsed.sentence[two.head]
        )
        if (
            apart
            and lemmas[0] != lemmas[1]
            and not between & SYMMETRIC
            and not _tied(parsed, one.head, two.head)
        ):
            yield one, two


def _tied(parsed: Parsed, one: int, two: int) -> bool:
    """Return whether two heads stand in one list or one name, or two adjectives at one noun:
    there an exchange changes nothing.
    """
    if parsed.pos[one] == "ADJ" and parsed.head[one] == parsed.head[two]:
        return True
    return any(
        parsed.head[below] == above and parsed.dep[below].split(":")[0] in TOGETHER
        for below, above in ((one, two), (two, one))
    )


def _phrases(parsed: Parsed) -> Iterator[Phrase]:
    """Yield nouns with what modifies them directly before, and adjectives before a noun."""
    for head, pos in enumerate(parsed.pos):
        if pos == "ADJ" and parsed.dep[head] == "amod" and parsed.head[head] == head + 1:
            yield Phrase(head, head, head, f"ADJ {parsed.tag[head]}")
        elif pos in ("NOUN", "PROPN") and parsed.dep[head] not in ("compound", "flat"):
            first = head
            while first and parsed.head[first - 1] == head and parsed.dep[first - 1] in MODIFIERS:
                first -= 1
            yield Phrase(first, head, head, parsed.tag[head])


def _characters(parsed: Parsed, phrase: Phrase) -> tuple[int, int]:
    return parsed.start[phrase.first], parsed.start[phrase.last] + len(parsed.word[phrase.last])
