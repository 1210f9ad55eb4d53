"""Putting a word into a text in place of another: inflection, case, spacing, and the article
before it. Pure.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from miner.words.concreteness import Word

TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
ARTICLES = {"a", "an"}

NUMBERED = {("is", "are"), ("was", "were"), ("has", "have"), ("this", "these"), ("that", "those")}
PLURAL = re.compile(r"(?<=[a-z]{2})(?:(ie)s|(?<=[sxzho])es|s)$")
ARTICLE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)
# Letters lie about sounds in these: a European, a one-way street, an hour, an MRI.
CONSONANT = re.compile(
    r"(?:eu|ewe|one(?!i)|once|ouija|u(?=[bcfhjklnrstq][aeiou])(?!nin|nim)|uni(?!n|m)|u$)",
    re.IGNORECASE,
)
VOWEL = re.compile(r"(?:hour|honest|hono|heir)", re.IGNORECASE)
SPELLED = re.compile(r"[AEFHILMNORSX](?![a-z])(?=[A-Z0-9]*\b)(?:[^AEIOUaeiou\s]|\b)")


class Edit(NamedTuple):
    """Characters start to end of a text, and what stands there instead."""

    start: int
    end: int
    text: str


def article_for(word: str) -> str:
    """Return a or an, as the word begins in speech.

    >>> [article_for(word) for word in ("hour", "dog", "unicorn", "X-ray")]
    ['an', 'a', 'a', 'an']
    """
    if SPELLED.match(word):
        return "an"
    if word[:1].lower() in set("aeiou"):
        return "a" if CONSONANT.match(word) else "an"
    return "an" if VOWEL.match(word) else "a"


def carry_case(word: str, old: str) -> str:
    """Return a word in the case of the one whose place it takes: Capital, ALL CAPITALS, else its
    own.

    >>> carry_case("cat", "Dog"), carry_case("cat", "DOG"), carry_case("Paris", "dog")
    ('Cat', 'CAT', 'Paris')
    """
    if len(old) > 1 and old.isupper() and any(letter.isalpha() for letter in old):
        return word.upper()
    return word[:1].upper() + word[1:] if old[:1].isupper() else word


@lru_cache(maxsize=100_000)
def inflect(lemma: str, tag: str) -> str | None:
    """Return a lemma in the form that a tag of the Penn Treebank asks for; of several words the
    last one is inflected. None if unknown.
    """
    from lemminflect import getInflection

    *rest, head = lemma.split()
    forms = (
        (head,)
        if tag in ("NN", "JJ", "VB", "CD", "IN", "NNP", "RB", "VBP")
        else getInflection(head, tag)
    )
    return " ".join((*rest, forms[0])) if forms else None


@lru_cache(maxsize=200_000)
def lemmas_of(word: str) -> frozenset[str]:
    """Return a word, lowercased, and all lemmas that it may be a form of, whatever its part of
    speech.
    """
    from lemminflect import getAllLemmas

    low = word.lower()
    return frozenset(
        (low, *(lemma.lower() for lemmas in getAllLemmas(low).values() for lemma in lemmas))
    )


def apply(text: str, edits: Sequence[Edit]) -> str:
    """Return a text with some places replaced, a and an before them repaired.

    Args:
        text: the original.
        edits: places that do not overlap, in any order.
    """
    for edit in sorted(edits, reverse=True):
        before, after = text[: edit.start], text[edit.end :]
        article = ARTICLE.search(before)
        if article and edit.text:
            fitting = carry_case(
                article_for(edit.text),
                (
                    article[1]
                    if len(article[1]) > 1 or not article[1].isupper()
                    else article[1].title()
                ),
            )
            fitting = fitting.capitalize() if article[1][0].isupper() else fitting
            before = before[: article.start()] + fitting + article[2]
        text = before + edit.text + after
    return text


def put(text: str, word: Word, new: str, at_start: bool) -> tuple[str, Edit]:
    """Return a text with one word changed, and the edit. A word in capitals of its own (TV, Boston)
    keeps them.

    Args:
        text: the original.
        word: the word that goes.
        new: the word that comes, inflected.
        at_start: whether a capital of the old word comes from its place, so that the new one takes
            it.
    """
    cased = (
        carry_case(new, word.surface)
        if at_start or not word.surface[:1].isupper() or (new.islower() and word.pos == "PROPN")
        else new
    )
    edit = Edit(word.start, word.end, cased)
    return apply(text, [edit]), edit


class Change(NamedTuple):
    """What a rewriter changed: the characters of the original, and what stands there now; or why
    it is not what was asked for.
    """

    start: int
    end: int
    new: str
    reason: str | None


def change_of(original: str, text: str, start: int, end: int, wanted: str) -> Change:
    """Compare a rewritten text with its original: where characters start to end stood a given word
    must stand, in whatever form of its lemma, and else only what agrees with it may differ: a and
    an, the s of a plural or a verb, is and are.

    Args:
        original: the text.
        text: as it was rewritten.
        start, end: the word that was to go.
        wanted: the word that was to come.
    """
    one, two = list(TOKEN.finditer(original)), [found[0] for found in TOKEN.finditer(text)]
    before = [found[0] for found in one if found.end() <= start]
    after = [found[0] for found in one if found.start() >= end]
    last = len(two) - len(after)
    if last < len(before):
        return Change(start, end, "", "word_missing")
    pairs = [*zip(before, two, strict=False), *zip(after, two[last:], strict=True)]
    if not all(_agree(*pair) for pair in pairs):
        return Change(start, end, "", "other_change")
    come, asked = two[len(before) : last], TOKEN.findall(wanted)
    new = " ".join(come)
    if not come:
        return Change(start, end, "", "word_missing")
    if _key(original[start:end]) == _key(new):
        return Change(start, end, new, "word_kept")
    fits = len(come) == len(asked) and all(
        lemmas_of(got) & lemmas_of(word) for got, word in zip(come, asked, strict=True)
    )
    return Change(start, end, new, None if fits else "other_word")


def _agree(one: str, two: str) -> bool:
    """Return whether two words are the same, or forms that agree with another number: a, an; runs,
    run; is, are.
    """
    keys = _key(one), _key(two)
    stems = {PLURAL.sub(lambda found: "y" if found[1] else "", key) for key in keys}
    return len({*keys}) == 1 or keys in NUMBERED or keys[::-1] in NUMBERED or len(stems) == 1


def _key(token: str) -> str:
    return "a" if token.lower() in ARTICLES else token.lower()
