"""Words that must not come into a text: those that stand in another text of the same thing, and
those that WordNet ties to a noun, verb or adjective of one that does ("sofa" where one says
"couch", "animal" where one says "dog").
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from miner.words.kinds import PARTS, Key, member_of
from miner.words.parsing import Parsed
from miner.words.wordnet import WordNet

CONTENT = ("NOUN", "PROPN", "VERB", "ADJ", "NUM")


class Guarded(NamedTuple):
    """What the texts of one thing say.

    Attributes:
        forms: all words, lowercased, and all lemmas that they may be forms of.
        said: their nouns, verbs and adjectives.
    """

    forms: frozenset[str]
    said: frozenset[Key]


def content_of(parsed: Parsed) -> set[Key]:
    """Return the nouns, verbs and adjectives of a text."""
    return {
        Key(lemma.lower(), pos)
        for lemma, pos in zip(parsed.lemma, parsed.pos, strict=True)
        if pos in CONTENT
    }


class WordSet:
    """A set of numbers of words, a bit for each.

    Args:
        bits: the number with these bits set.
    """

    __slots__ = ("_bytes", "_size")

    def __init__(self, bits: int):
        self._size = (bits.bit_length() + 7) // 8
        self._bytes = bits.to_bytes(self._size, "little")

    def __contains__(self, word: object) -> bool:
        place = int(word)  # type: ignore[call-overload]
        return place >> 3 < self._size and bool(self._bytes[place >> 3] >> (place & 7) & 1)


class Ties:
    """What a vocabulary's words are tied to, by what they mean.

    Args:
        words: the vocabulary.
        wordnet: relations.
    """

    def __init__(self, words: Sequence[Key], wordnet: WordNet):
        self.wordnet, self.words = wordnet, words
        self.first: dict[str, list[tuple[frozenset[str], int]]] = defaultdict(list)
        self.index: dict[str, dict[tuple[str, object], int]] = {}
        self.known: dict[Key, int] = {}
        for number, (lemma, tag) in enumerate(words):
            one, *rest = lemma.split()
            self.first[one].append((frozenset(rest), number))
            index = self.index.setdefault(PARTS.get(tag, tag), defaultdict(int))
            for entry in self._entries(lemma, PARTS.get(tag, tag)):
                index[entry] |= 1 << number

    def barred_from(self, guarded: Guarded) -> WordSet:
        """Return the words that must not come where some texts stand: all of whose parts are
        among their words, or that are tied to a word they say.
        """
        bits = 0
        for form in guarded.forms:
            for rest, number in self.first.get(form, ()):
                bits |= (rest <= guarded.forms) << number
        for lemma, tag in guarded.said:
            bits |= self._tied(lemma, PARTS.get(tag, tag))
        return WordSet(bits)

    def _entries(self, lemma: str, kind: str) -> list[tuple[str, object]]:
        meaning = self.wordnet.meaning(lemma, kind)
        names = ("own", "above", "beside", "stem")
        return [
            ("lemma", lemma),
            *((name, one) for name in names for one in getattr(meaning, name)),
        ]

    def _tied(self, form: str, kind: str) -> int:
        """Return the words, as bits, of a part of speech that `related` ties to a word."""
        key = Key(form, kind)
        if key not in self.known:
            self.known[key] = self._look_up(form, kind, self.index.get(kind, {}))
        return self.known[key]

    def _look_up(self, form: str, kind: str, index: Mapping[tuple[str, object], int]) -> int:
        meaning = self.wordnet.meaning(form, kind)
        keys: list[tuple[str, object]] = [("beside", form)]
        keys += [("lemma", one) for one in meaning.beside]
        keys += [("own", one) for one in meaning.above]
        keys += [("above", one) for one in meaning.own]
        keys += [("stem", one) for one in meaning.stem]
        found = 0
        for key in keys:
            found |= index.get(key, 0)
        for other in meaning.opposite:
            found &= ~index.get(("lemma", other), 0)
        return self._not_apart(form, kind, found) if member_of(form, kind) else found

    def _not_apart(self, form: str, kind: str, found: int) -> int:
        """Return the words, as bits, without other members of the form's own kind: three dogs are
        not two.
        """
        for number, (lemma, tag) in enumerate(self.words):
            if PARTS.get(tag, tag) == kind and member_of(lemma, kind):
                tied = self.wordnet.related(form, lemma, kind)
                found = found | 1 << number if tied else found & ~(1 << number)
        return found
