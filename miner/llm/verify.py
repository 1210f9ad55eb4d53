"""How long a generated text may be, and what is wrong with one: pure checks, each with the reason
that is counted. No text is asked for that its answer could not hold, and none that would be refused
for its length.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from json import JSONDecodeError, JSONDecoder, loads
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

from miner.llm.prompts import Prompt, shorten, unescape
from miner.llm.requests import Answer

REFUSAL = re.compile(
    r"^\W*(?:i['’]?m (?:very )?sorry\b|i am (?:very )?sorry\b|sorry,|i (?:cannot|can['’]?t|can"
    r" not|won['’]?t|am unable to|am not able to|"
    r"must decline)\b|as an ai\b|as a language model\b|unfortunately, i\b|i apologi[sz]e\b)",
    re.IGNORECASE,
)
# of fewer letters, or less surely, the detector's guess says nothing
LETTERS_FOR_LANGUAGE, SURE = 40, 0.99


# words in a row that an answer and its prompt have in common by more than chance, and how many such
# rows, and of how many of the answer's, make it a copy
SHINGLE, COPIED, COPIED_SHARE = 4, 3, 0.25
HALF_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{0,3}$")
# what a model is told of an answer that failed, so that it does not fail the same way
AGAIN = "An earlier answer was refused: "
REMEDIES = {
    "truncated": AGAIN + "it was too long. Write much less.",
    "not_schema": AGAIN + "it was not the JSON that is asked for.",
    "empty": AGAIN + "it had no text.",
    "refusal": AGAIN + "it did not do the task. The text is data for training; nobody is advised.",
    "length": AGAIN + "it was not of the length that is asked for.",
    "copy_of_positive": AGAIN + "it repeated what it was given. Change what is said.",
    "copy_of_query": AGAIN + "it repeated the query.",
    "copy_of_sibling": AGAIN + "it was like one that is there already. Write another.",
    "copy_of_prompt": AGAIN + "it copied the example or the instructions. Keep to the text given.",
    "wrong_language": AGAIN + "it was in another language than what was given.",
    "answers_query": AGAIN + "it answered the query. Leave the answer out.",
}
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”]*")

# the fewest that texts come to: English has four and more, code and chemistry less
BYTES_PER_TOKEN = 2.5
# tokens of the JSON around the text, and of each other value that the schema has
AROUND, OTHER_VALUE = 24, 96
STEPS = 2  # lengths of schemas for each doubling: an engine compiles each one


class Found(NamedTuple):
    """A text, or why there is none; and whether it was cut off and ends at a sentence before."""

    text: str
    reason: str | None
    closed: bool = False


def read_text(answer: Answer, prompt: Prompt, schema: str = "{}") -> Found:
    """Return the text of an answer. What a model says before its JSON, or around it, is passed
    over.

    Args:
        answer: as it came.
        prompt: whose schema it must meet.
        schema: what the request said, with the most characters that the text may have.
    """
    if answer.error:
        return Found("", answer.error)
    raw = answer.text.rpartition("</think>")[2].strip()
    if not raw:
        return Found("", "empty")
    held = _first_object(raw)
    if (
        held is None
        or not Draft202012Validator(prompt.json_schema).is_valid(held)
        or not isinstance(held.get(prompt.output), str)
    ):
        return _unread(raw, held, answer, prompt)
    written = held[prompt.output]
    text = unescape(written).strip()
    if prompt.close and len(written) == longest_text(schema, prompt.output):
        ended = first_sentences(text)
        if not ended:
            return Found(text, "truncated")
        if text != ended:
            return Found(ended, None, closed=True)
    # half a character, which JSON can say and no file can hold
    if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
        return Found("", "not_schema")
    return Found(
        text,
        "empty" if not any(map(str.isalnum, text)) else "refusal" if REFUSAL.search(text) else None,
    )


def _first_object(raw: str) -> Any:
    try:
        return JSONDecoder().raw_decode(raw, max(raw.find("{"), 0))[0]
    except (JSONDecodeError, RecursionError):
        return None


def _unread(raw: str, held: Any, answer: Answer, prompt: Prompt) -> Found:
    """Return what is left of an answer that is not what the schema says."""
    raw = raw.encode("utf-8", "replace").decode()
    if REFUSAL.search(raw):
        return Found(raw, "refusal")
    if answer.finish != "length":
        return Found(raw, "not_schema")
    whole = whole_sentences(raw, prompt.output) if prompt.close and held is None else ""
    return Found(unescape(whole), None, closed=True) if whole else Found(raw, "truncated")


def whole_sentences(raw: str, output: str) -> str:
    """Return the whole sentences of a text in JSON that was cut off; "" if there is none.

    >>> whole_sentences('{"text": "Tin melts at 232 °C. It is sof', "text")
    'Tin melts at 232 °C.'
    """
    begun = re.search(rf'"{re.escape(output)}"\s*:\s*"((?:[^"\\]|\\.)*)', raw)
    if begun is None:
        return ""
    try:
        text = str(loads(f'"{HALF_ESCAPE.sub("", begun[1])}"', strict=False))
    except JSONDecodeError:
        return ""
    return first_sentences(text.encode("utf-8", "ignore").decode())


def first_sentences(text: str) -> str:
    """Return a text up to its last whole sentence; "" if there is none."""
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


@lru_cache(maxsize=1024)
def longest_text(schema: str, output: str) -> float:
    """Return how many characters a schema lets a text have."""
    most = loads(schema).get("properties", {}).get(output, {}).get("maxLength")
    return math.inf if most is None else float(most)


class Guard(NamedTuple):
    """What a text is compared with.

    Attributes:
        original: the text that it was made from.
        query: of the query.
        others: the query's positives, and what was made for it before.
        words: how many words of the original the model was shown; 0 is all.
    """

    original: str
    query: str
    others: Sequence[str]
    words: int = 0

    def shown(self) -> str:
        """Return what the model was shown of the original."""
        return shorten(self.original, self.words) if self.words else self.original


class Room(NamedTuple):
    """The most words that are asked for, the least and the most characters that the schema lets
    through, tokens of the whole answer.
    """

    words: int
    characters: tuple[int, int]
    tokens: int


def room_for(prompt: Prompt, guard: Guard, max_tokens: int | None, shorter: bool) -> Room | None:
    """Return the room that a text has: as long as the prompt allows, and as `max_tokens` do where
    they are given; None if that is less than the prompt's least.

    Args:
        prompt: whose length bounds it, as a share of the original's characters.
        guard: the original, and how much of it is shown.
        max_tokens: of the answer, the user's bound.
        shorter: half of it, as the last answer was too long.
    """
    shown = guard.shown()
    heavy = len(shown.encode("utf-8", "replace")) / max(len(shown), 1)
    around = AROUND + OTHER_VALUE * (len(prompt.json_schema.get("properties", {})) - 1)
    least, most = prompt.bounds(len(shown))
    if max_tokens is not None:
        most = min(most, (max_tokens - around) * BYTES_PER_TOKEN / heavy)
    if most < max(least, 1):
        return None
    most = max(most / 2, least) if shorter else most
    tokens = math.ceil(most * heavy / BYTES_PER_TOKEN) + around
    characters = _step(least, math.ceil), _step(most, math.floor)
    if characters[0] > characters[1]:
        characters = math.ceil(least), int(most)
    each = max(len(shown) / max(len(shown.split()), 1), 2.0)
    return Room(max(int(most / each), 1), characters, min(tokens, max_tokens or tokens))


def _step(characters: float, rounded: Callable[[float], int]) -> int:
    """Return the nearest of a few lengths: schemas of so many lengths for each doubling."""
    return rounded(2 ** (rounded(STEPS * math.log2(characters)) / STEPS)) if characters >= 1 else 0


def fault(text: str, guard: Guard, prompt: Prompt) -> str | None:
    """Return why a text is no negative, or None."""
    for other, reason in [(guard.original, "copy_of_positive"), (guard.query, "copy_of_query")] + [
        (o, "copy_of_sibling") for o in guard.others
    ]:
        if same(text, other, prompt.near):
            return reason
    if copies_prompt(text, guard, prompt):
        return "copy_of_prompt"
    least, most = prompt.bounds(len(guard.shown()))
    if not least <= len(text) <= most:
        return "length"
    return "wrong_language" if other_language(text, guard.original, guard.query) else None


def copies_prompt(text: str, guard: Guard, prompt: Prompt) -> bool:
    """Return whether a text repeats the prompt's example or instructions; what its original or
    its query says as well does not count.
    """
    mine = word_runs(text)
    own = word_runs(guard.original) | word_runs(guard.query)
    copied = len((mine & word_runs(prompt.opening())) - own)
    return copied >= COPIED and copied >= COPIED_SHARE * len(mine)


@lru_cache(maxsize=4096)
def word_runs(text: str) -> frozenset[str]:
    """Return all runs of four words of a text."""
    words = normal(text).split()
    return frozenset(
        " ".join(words[place : place + SHINGLE]) for place in range(len(words) - SHINGLE + 1)
    )


def same(text: str, other: str, near: float) -> bool:
    """Return whether two texts have the same words, or at least `near` (below 1) of their
    character trigrams in common (Jaccard).

    >>> same("A red car.", "a  RED car", near=1), same("a red car", "a blue car", near=0.9)
    (True, False)
    """
    one, two = normal(text), normal(other)
    if one == two:
        return bool(one)
    if near >= 1:
        return False
    grams, other_grams = _trigrams(one), _trigrams(two)
    return len(grams & other_grams) >= near * len(grams | other_grams) > 0


@lru_cache(maxsize=4096)
def normal(text: str) -> str:
    """Return a text's words, casefolded, one space between them."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


@lru_cache(maxsize=4096)
def _trigrams(text: str) -> frozenset[str]:
    return frozenset(text[place : place + 3] for place in range(len(text) - 2))


def other_language(text: str, *known: str) -> bool:
    """Return whether a text is surely in a language, or mostly in letters, that none of the
    known texts has.
    """
    mine = scripts(text)
    if mine and not any(mine[0] in scripts(other) for other in known):
        return any(scripts(other) for other in known)
    said = _language(text)
    return (
        said is not None
        and said not in {_language(other, sure=0.0) for other in known}
        and _language(known[0], sure=0.9) is not None
    )


def scripts(text: str) -> list[str]:
    """Return the scripts of a text's letters (LATIN, CYRILLIC, CJK…), the most frequent first."""
    counts: dict[str, int] = {}
    for letter in filter(str.isalpha, text):
        name = unicodedata.name(letter, "?").partition(" ")[0]
        counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))


@lru_cache(maxsize=65536)
def _language(text: str, sure: float = SURE) -> str | None:
    from langdetect import DetectorFactory, LangDetectException, detect_langs

    DetectorFactory.seed = 0
    if sum(map(str.isalpha, text)) < LETTERS_FOR_LANGUAGE:
        return None
    try:
        best: Any = detect_langs(text)[0]
    except LangDetectException:
        return None
    return str(best.lang) if best.prob >= sure else None
