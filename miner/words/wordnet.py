"""How two words are related, by Open English WordNet: which may never stand for one another, and
which stand under one parent.

Words are asked for as (lemma, part of speech), lowercased. `related` is the question for pairs,
`barred` writes out its answers for a word.

What ties two words, over all their senses:

    the same thing    synonyms; similar-to and see-also; by their first senses also adjectives that
                      hang on one head (huge, giant), unless its satellites exclude each other
                      (red, blue; striped, dotted)
    is a              hypernyms and hyponyms at any distance; of adjectives, those of the
                      attributes they go with (crimson, red)
                      also what a gloss begins with ("a very young child" makes a baby a child)
    has a             parts, members and substances, what a verb entails or causes; all handed down
                      (a taxi has a car's bumper)
    the same stem     derivations and pertainyms, of any part of speech; listed irregular forms;
                      verbs and adjectives whose derivations share a sense; adverbs of tied
                      adjectives
    the same end      nouns that make one thing of the same beginning (patrol boat, patrol ship)

Antonyms are no tie: "a hot plate" makes a fine negative of "a cold plate". Nor are numbers, days,
countries and other kinds of `miner.words.kinds`, each apart from the others of its kind.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from miner.words.data_files import data_file
from miner.words.kinds import member_of
from miner.words.relations import FAMILIES, KINDS, NAMED, Relations

ATTRIBUTE = "noun.attribute"
BREAK = re.compile("[ -]")


class Meaning(NamedTuple):
    """What a word is and what stands above it.

    Attributes:
        own: its synsets; of an adjective also the attributes of its name or that it is derived
            from.
        above: `own`, their hypernyms at any distance, the parts of all these, and what is similar.
        beside: words tied to it by their stem or by a shared head, forms, itself.
        stem: synsets of the words derived from it.
        opposite: its antonyms.
    """

    own: frozenset[int]
    above: frozenset[int]
    beside: frozenset[str]
    stem: frozenset[int] = frozenset()
    opposite: frozenset[str] = frozenset()


class WordNet(Relations):
    """What its relations say of two words; all questions are pure."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._meanings: dict[tuple[str, str], Meaning] = {}

    def knows(self, lemma: str, pos: str) -> bool:
        """Return whether anything is known of the word with this part of speech (NOUN, PROPN,
        VERB, ADJ, NUM, ADV; any other: no): WordNet has it, or it is a number or a name of a kind.
        """
        return self._number(lemma, pos) is not None or member_of(lemma, pos) is not None

    def field(self, lemma: str, pos: str) -> str:
        """Return the kind of a number or name, such as country, else the lexicographer file of
        the first sense, such as noun.food; "" for an unknown word.
        """
        number, member = self._number(lemma, pos), member_of(lemma, pos)
        if member:
            return member.kind
        return "" if number is None else self._fields[self._senses[number][0]]

    def forms(self, lemma: str, pos: str) -> tuple[str, ...]:
        """Return the irregular inflections that WordNet lists."""
        number = self._number(lemma, pos)
        return () if number is None else tuple(self._forms[number].as_py())

    def related(self, a: str, b: str, pos: str) -> bool:
        """Return whether one word may not stand for the other: symmetric, true of a word and
        itself, false if one is unknown.
        """
        same = _same_member(a, b, pos)
        if same is not None:
            return same
        one, two = self.meaning(a, pos), self.meaning(b, pos)
        if b in one.opposite:
            return False
        if b in one.beside or a in two.beside:
            return True
        return not (
            one.own.isdisjoint(two.above)
            and two.own.isdisjoint(one.above)
            and one.stem.isdisjoint(two.stem)
        )

    def opposites(self, lemma: str, pos: str) -> frozenset[str]:
        """Return the antonyms of a word, by any of its senses."""
        return self.meaning(lemma, pos).opposite

    @lru_cache(maxsize=8192)  # noqa: B019 -- load_wordnet keeps the one instance
    def barred(self, lemma: str, pos: str) -> frozenset[str]:
        """Return every lemma that must never replace the word, itself included: see the head of
        this module.
        """
        meaning, kind = self.meaning(lemma, pos), KINDS.get(pos, "")
        wholes = self._closure(meaning.own, self._wholes)
        stems = self._reach(meaning.stem, self._from)
        above = self._names(meaning.above | self._closure(wholes, self._hyponyms), kind)
        tied = {self.lemmas[one] for one in stems if one in self._ranges.get(kind, ())}
        tied |= meaning.beside | above
        apart = {one for one in tied if _same_member(lemma, one, pos) is False}
        return frozenset(tied - apart - meaning.opposite)

    @lru_cache(maxsize=8192)  # noqa: B019 -- load_wordnet keeps the one instance
    def co_hyponyms(self, lemma: str, pos: str, senses: int = 2) -> tuple[str, ...]:
        """Return words under one direct hypernym with the word, by one of its first senses and one
        of their first two; none is barred.

        Antonyms come first. Adjectives have no hypernyms: theirs are the antonym's cluster (large:
        small, tiny), the family of exclusive satellites (red: blue, black; striped: dotted), and
        what pertains to co-hyponyms of their noun (hepatic: cardiac). A compound with the word in
        it (reddish-brown, dining table) is none, nor for a lowercase word one with capitals. The
        order: the word's senses, then the other's, then the alphabet.

        Args:
            lemma, pos: the word.
            senses: how many of its first senses count.
        """
        number, kind = self._number(lemma, pos), KINDS.get(pos, "")
        if number is None:
            return ()
        found: dict[str, None] = {}
        for synset in self._senses[number][:senses]:
            antonyms = self._antonyms.get((number, synset), [])
            apart = self._apart(synset) if kind == "a" else self._siblings(synset)
            for numbers in (
                antonyms,
                *(self._reach(apart, named) for named in self._named),
                self._pertaining(number, synset),
            ):
                found.update(dict.fromkeys(sorted(self.lemmas[other] for other in numbers)))
        return tuple(
            name
            for name in found
            if self._fits(number, self._numbers[kind][name]) and not self.related(lemma, name, pos)
        )

    def _fits(self, one: int, two: int) -> bool:
        """Return whether a word may stand for another as far as capitals go, and neither is a
        piece of the other.
        """
        pieces = [set(BREAK.split(self.lemmas[number])) for number in (one, two)]
        return (self._cased[one] or not self._cased[two]) and not (
            pieces[0] <= pieces[1] or pieces[1] <= pieces[0]
        )

    def _number(self, lemma: str, pos: str) -> int | None:
        return self._numbers.get(KINDS.get(pos, ""), {}).get(lemma)

    def meaning(self, lemma: str, pos: str) -> Meaning:
        """Return what a word is and what stands above it; of an unknown one, itself."""
        key = (lemma, KINDS.get(pos, ""))
        meaning = self._meanings.get(key)
        if meaning is None:
            meaning = self._meanings[key] = self._weigh(
                lemma, key[1], self._numbers.get(key[1], {}).get(lemma)
            )
        return meaning

    def _weigh(self, lemma: str, kind: str, number: int | None) -> Meaning:
        if number is None:
            return Meaning(frozenset(), frozenset(), frozenset([lemma]))
        own = set(self._senses[number])
        near = self._reach(own, self._similar) | self._reach(own, self._also)
        beside = self._beside(lemma, number)
        if kind == "a":
            beside |= self._cluster(number)
            synonyms = self._of_synonyms(number)
            near |= synonyms | self._reach(synonyms, self._similar)
            heads = {head for sense in self._senses[number][:NAMED] for head in self._heads(sense)}
            near |= self._reach(heads, self._also)
            own |= self._attributes_of(number)
        elif kind == "r":  # said of what an adjective is said of
            near |= self._of_adjectives(number)
        above = self._closure(own, self._hypernyms)
        glossed = self._reach(self._senses[number][:NAMED], self._genus)
        glossed |= self._reach(glossed, self._genus)
        near |= self._closure(glossed, self._hypernyms)
        near |= self._reach(self._reach(own, self._hypernyms), self._wholes)
        parts = self._closure(self._reach(above, self._has), self._has)
        opposite = {
            self.lemmas[other]
            for synset in self._senses[number]
            for other in self._antonyms.get((number, synset), ())
        }
        return Meaning(
            frozenset(own),
            frozenset(above | parts | near),
            frozenset(beside),
            frozenset(self._derived.get(number, ())),
            frozenset(opposite),
        )

    def _beside(self, lemma: str, number: int) -> set[str]:
        """Return a word, its forms, and the words tied to it by stem, compounds and attributes."""
        attributes = self._reach(self._senses[number], self._attributes)
        return {
            lemma,
            *self._forms[number].as_py(),
            *(self.lemmas[other] for other in self._stems[number]),
            *(self.lemmas[other] for other in self._compounds.get(number, ())),
            *(self.lemmas[other] for synset in attributes for other in self._members[synset]),
        }

    def _attributes_of(self, number: int) -> set[int]:
        """Return the attributes that an adjective is derived from, or that have its name."""
        same_name = self._numbers["n"].get(self.lemmas[number])
        nouns = self._senses[same_name] if same_name is not None else []
        return {
            synset
            for synset in (*self._derived.get(number, ()), *nouns)
            if self._fields[synset] == ATTRIBUTE
        }

    def _of_synonyms(self, number: int) -> set[int]:
        """Return the first senses of the words that share one with a word."""
        return {
            synset
            for sense in self._senses[number][:NAMED]
            for other in self._members[sense]
            for synset in self._senses[other][:NAMED]
        }

    def _of_adjectives(self, number: int) -> set[int]:
        """Return the synsets of adverbs whose adjectives are the same as an adverb's, or tied."""
        mine = [other for other in self._stems[number] if other in self._ranges["a"]]
        tied = {other for word in mine for other in self.barred(self.lemmas[word], "ADJ")}
        adverbs = {
            other
            for lemma in tied
            for other in self._stems[self._numbers["a"].get(lemma, mine[0])]
            if other in self._ranges["r"]
        }
        return {synset for other in adverbs for synset in self._senses[other]}

    def _names(self, synsets: Iterable[int], kind: str) -> frozenset[str]:
        """Return the words of synsets; where adjectives are asked for, of adjectives and
        attributes, and those derived from the latter.
        """
        if kind != "a":
            return frozenset(
                self.lemmas[number] for synset in synsets for number in self._members[synset]
            )
        synsets = [
            synset
            for synset in synsets
            if self._fields[synset].startswith("adj.") or self._fields[synset] == ATTRIBUTE
        ]
        numbers = [
            (*self._members[synset], *self._adjectives.get(synset, ())) for synset in synsets
        ]
        return frozenset(self.lemmas[number] for some in numbers for number in some)

    def _cluster(self, number: int) -> set[str]:
        """Return the adjectives that share a head with one, by the first senses of both, where
        sharing it means much the same.
        """
        heads = {
            head
            for synset in self._senses[number][:NAMED]
            for head in self._heads(synset)
            if head not in self._family
        }
        near = {synset for head in heads for synset in (head, *self._satellites(head))}
        return {
            self.lemmas[other]
            for synset in near
            for other in self._members[synset]
            if synset in self._senses[other][:NAMED]
        }

    def _apart(self, synset: int) -> list[int]:
        """Return synsets of adjectives that exclude one: its antonyms' clusters, its family."""
        heads = [synset, *self._heads(synset)]
        families = sorted({self._family[head] for head in heads if head in self._family})
        opposite = {
            other
            for head in heads
            for other in self._opposite.get(head, ())
            if not (families and other in self._family)
        }
        found = {near for other in opposite for near in (other, *self._satellites(other))}
        for family in families:
            names, members = FAMILIES[family]
            found.update(near for name in names for near in self._satellites(self._head(name)))
            found.update(self._head(name) for name in members)
        return sorted(found)

    def _siblings(self, synset: int) -> list[int]:
        """Return the other synsets under the same direct hypernyms."""
        return sorted(self._reach(self._hypernyms[synset], self._hyponyms) - {synset})

    def _pertaining(self, number: int, synset: int) -> list[int]:
        """Return the adjectives that pertain to siblings of the nouns that this one pertains to."""
        nouns = self._pertains.get((number, synset), ())
        return [
            word
            for noun in nouns
            for sibling in self._siblings(noun)
            for word in self._pertainers.get(sibling, ())
        ]


def _same_member(a: str, b: str, pos: str) -> bool | None:
    """Return whether two words of one kind are the same member of it; None if of none, or two."""
    one = member_of(a, pos)
    two = member_of(b, pos) if one else None
    return one == two if one and two and one.kind == two.kind else None


@lru_cache(maxsize=1)
def load_wordnet() -> WordNet:
    """Return the WordNet that comes with quarry, read once."""
    return WordNet(data_file("wordnet"))
