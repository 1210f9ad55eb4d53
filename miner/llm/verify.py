"""What is wrong with a generated text: pure checks, each with the reason that is counted."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from json import JSONDecodeError, JSONDecoder
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

from miner.llm.prompts import Prompt, unescape
from miner.llm.requests import Answer

REFUSAL = re.compile(
    r"^\W*(?:i['’]?m (?:very )?sorry\b|i am (?:very )?sorry\b|sorry,|i (?:cannot|can['’]?t|can"
    r" not|won['’]?t|am unable to|am not able to|"
    r"must decline)\b|as an ai\b|as a language model\b|unfortunately, i\b|i apologi[sz]e\b)",
    re.IGNORECASE,
)
# of fewer letters, or less surely, the detector's guess says nothing
LETTERS_FOR_LANGUAGE, SURE = 40, 0.99


class Found(NamedTuple):
    """A text, or why there is none."""

    text: str
    reason: str | None


def read_text(answer: Answer, prompt: Prompt) -> Found:
    """Return the text of an answer. What a model says before its JSON, or around it, is passed
    over.

    Args:
        answer: as it came.
        prompt: whose schema it must meet.
    """
    if answer.error:
        return Found("", answer.error)
    raw = answer.text.rpartition("</think>")[2].strip()
    if not raw:
        return Found("", "empty")
    held, start = None, raw.find("{")
    try:
        held, _ = JSONDecoder().raw_decode(raw, max(start, 0))
    except (JSONDecodeError, RecursionError):
        pass
    if (
        held is None
        or not Draft202012Validator(prompt.json_schema).is_valid(held)
        or not isinstance(held.get(prompt.output), str)
    ):
        refused = REFUSAL.search(raw) is not None
        raw = raw.encode("utf-8", "replace").decode()
        return Found(
            raw,
            "refusal" if refused else "truncated" if answer.finish == "length" else "not_schema",
        )
    text = unescape(held[prompt.output]).strip()
    # half a character, which JSON can say and no file can hold
    if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
        return Found("", "not_schema")
    return Found(
        text,
        "empty" if not any(map(str.isalnum, text)) else "refusal" if REFUSAL.search(text) else None,
    )


class Guard(NamedTuple):
    """What a text is compared with.

    Attributes:
        original: the text that it was made from.
        query: of the query.
        others: the query's positives, and what was made for it before.
    """

    original: str
    query: str
    others: Sequence[str]


def fault(text: str, guard: Guard, prompt: Prompt) -> str | None:
    """Return why a text is no negative, or None."""
    for other, reason in [(guard.original, "copy_of_positive"), (guard.query, "copy_of_query")] + [
        (o, "copy_of_sibling") for o in guard.others
    ]:
        if same(text, other, prompt.near):
            return reason
    words, least, most = (
        len(text.split()),
        *(share * max(len(guard.original.split()), 1) for share in prompt.length),
    )
    if not least <= words <= max(most, least + 1):
        return "length"
    return "wrong_language" if other_language(text, guard.original, guard.query) else None


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
