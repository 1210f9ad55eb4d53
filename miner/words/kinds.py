"""Words of kinds whose members exclude one another, whatever else a lexicon says of them: numbers
by their value, in words or digits, ordinals, and names that no edition of WordNet need have. Pure.
"""

import re
from functools import lru_cache
from typing import NamedTuple

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
ORDINALS = {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}
DIGITS = re.compile(r"(\d[\d,]*(?:\.\d+)?)(st|nd|rd|th)?")
SMALL_NUMBERS = {
    **{word: value for value, word in enumerate(UNITS.split())},
    **{word: 10 * value for value, word in enumerate(TENS.split(), 2)},
}
# names of one thing beside one another with "/"
NAMES = {
    "day": "monday tuesday wednesday thursday friday saturday sunday",
    "month": (
        "january february march april may june july august september october november december"
    ),
    "season": "spring summer autumn/fall winter",
    "planet": "mercury venus earth mars jupiter saturn uranus neptune",
    "continent": "africa antarctica asia europe",
    "country": (
        "afghanistan albania algeria argentina australia austria bangladesh belgium bolivia"
        " brazil britain/uk/united_kingdom/great_britain/england/scotland/wales bulgaria"
        " cambodia canada chile china colombia croatia cuba cyprus denmark ecuador egypt"
        " ethiopia finland france germany ghana greece haiti hungary iceland india indonesia"
        " iran/persia iraq ireland israel italy jamaica japan jordan kenya kuwait laos lebanon"
        " libya malaysia mali malta mexico mongolia morocco myanmar/burma nepal"
        " netherlands/holland nigeria norway pakistan panama paraguay peru philippines poland"
        " portugal qatar romania russia senegal serbia singapore slovakia slovenia somalia spain"
        " sudan sweden switzerland syria taiwan tanzania thailand/siam tunisia turkey uganda"
        " ukraine uruguay america/usa/us/united_states venezuela vietnam yemen zambia zimbabwe"
    ),
}


PARTS = {"PROPN": "NOUN"}  # parts of speech that count as another


class Key(NamedTuple):
    """A word of the vocabulary."""

    lemma: str
    pos: str


class Member(NamedTuple):
    """What kind a word is of, and which of its members: two words of one kind mean the same if
    they are the same member, else they exclude each other.
    """

    kind: str
    member: float


MEMBERS = {
    name.replace("_", " "): Member(kind, place)
    for kind, names in NAMES.items()
    for place, one in enumerate(names.split())
    for name in one.split("/")
}


@lru_cache(maxsize=100_000)
def member_of(word: str, pos: str) -> Member | None:
    """Return the place of a word, lowercased, in its kind; None for all other words.

    Args:
        word: a lemma.
        pos: universal part of speech; names are nouns, numbers not verbs.

    >>> member_of("2", "NUM") == member_of("two", "NUM"), member_of("21st", "ADJ")
    (True, Member(kind='ordinal', member=21.0))
    >>> member_of("twenty-one", "NUM").member, member_of("two hundred", "NUM").member
    (21, 200)
    """
    if pos in ("NOUN", "PROPN") and word in MEMBERS:
        return MEMBERS[word]
    if pos not in ("NOUN", "PROPN", "NUM", "ADJ"):
        return None
    digits = DIGITS.fullmatch(word)
    if digits:
        return Member("ordinal" if digits[2] else "number", float(digits[1].replace(",", "")))
    *rest, last = re.split("[ -]", word)
    value = _cardinal([*rest, last])
    if value is not None:
        return Member("number", value)
    ordinal = _ordinal(last)
    if ordinal is None or (pos == "NOUN" and word == "second"):
        return None
    before = _cardinal(rest) if rest else 0
    return None if before is None else Member("ordinal", before + ordinal)


def _ordinal(word: str) -> int | None:
    if word in ORDINALS:
        return ORDINALS[word]
    stem = word.removesuffix("th")
    stem = stem.removesuffix("ie") + "y" if stem.endswith("ie") else stem
    return _cardinal([stem]) if word.endswith("th") else None


def _cardinal(words: list[str]) -> int | None:
    total, part = 0, 0
    for word in words:
        if word in SMALL_NUMBERS:
            part += SMALL_NUMBERS[word]
        elif word in SCALES:
            part = (part or 1) * SCALES[word]
            total, part = (total + part, 0) if part >= 1000 else (total, part)
        elif word not in ("a", "and"):
            return None
    known = any(word in SMALL_NUMBERS or word in SCALES for word in words)
    return total + part if known else None
