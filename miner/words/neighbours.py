"""Which words may stand for one another in a negative: near in meaning and in rating, but not the
same thing.

Two words are neighbours if they have the same part of speech, their ratings differ by no more than
a band, and either the encoder puts them within a band of similarity and WordNet in one field
(noun.food), or WordNet has them under one parent (co-hyponyms) and they are not too similar, or
they are antonyms or of one kind whose members exclude each other (two, three). They never are if
WordNet knows one as a synonym, hypernym, hyponym, part, whole or derivation of the other, or does
not know one of them at all.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from miner.words.concreteness import CLOSED
from miner.words.kinds import PARTS, Key, member_of
from miner.words.wordnet import WordNet

POOL = 200  # of a word's most similar words, how many are looked at
CHUNK = 512
PIECE = re.compile(r"[ -]")


class Bands(NamedTuple):
    """What counts as near.

    Attributes:
        low, high: cosine under the encoder, both included.
        rating: largest difference of two ratings.
    """

    low: float
    high: float
    rating: float


def neighbours(
    words: Sequence[Key], ratings: np.ndarray, vectors: np.ndarray, wordnet: WordNet, bands: Bands
) -> list[list[int]]:
    """Return for each word those that may stand for it, the most similar first, ties by number;
    symmetric.

    Args:
        words: the vocabulary, w of them.
        ratings: (w,) float64; nan for words of closed classes.
        vectors: (w, d) float32 unit vectors.
        wordnet: relations.
        bands: what counts as near.
    """
    found: list[dict[int, float]] = [{} for _ in words]
    kinds = [PARTS.get(word.pos, word.pos) for word in words]
    open_class = [
        word.lemma not in CLOSED and wordnet.knows(word.lemma, kind)
        for word, kind in zip(words, kinds, strict=True)
    ]
    for kind in sorted(set(kinds)):
        mine = [place for place, known in enumerate(open_class) if known and kinds[place] == kind]
        lemmas = [words[place].lemma for place in mine]
        field = np.array([wordnet.field(lemma, kind) for lemma in lemmas], object)
        for one, two, cosine in _close(lemmas, kind, field, vectors[mine], wordnet, bands):
            a, b, left, right = mine[one], mine[two], lemmas[one], lemmas[two]
            fits = abs(ratings[a] - ratings[b]) <= bands.rating and b not in found[a]
            if fits and not (_share(left, right) or wordnet.related(left, right, kind)):
                found[a][b] = found[b][a] = cosine
    _add_closed(words, found)
    return [sorted(near, key=lambda other: (-near[other], other)) for near in found]


def _close(
    lemmas: list[str],
    kind: str,
    field: np.ndarray,
    vectors: np.ndarray,
    wordnet: WordNet,
    bands: Bands,
) -> Iterator[tuple[int, int, float]]:
    """Yield (one, other, cosine) of words of a part of speech that are similar and of one field,
    co-hyponyms, or known to exclude each other, each pair from the lower number.
    """
    number: dict[str, list[int]] = {}
    kinds: dict[str, list[int]] = {}
    for place, lemma in enumerate(lemmas):
        number.setdefault(lemma, []).append(place)
        if member := member_of(lemma, kind):
            kinds.setdefault(member.kind, []).append(place)
    for start in range(0, len(lemmas), CHUNK):
        cosine = vectors[start : start + CHUNK] @ vectors.T
        near = (cosine >= bands.low) & (field[start : start + CHUNK, None] == field[None])
        for row in range(len(cosine)):
            one = start + row
            for name in wordnet.co_hyponyms(lemmas[one], kind):
                near[row, number.get(name, [])] = True
            near[row] &= cosine[row] <= bands.high
            for name in wordnet.opposites(lemmas[one], kind):
                near[row, number.get(name, [])] = True
            if member := member_of(lemmas[one], kind):
                near[row, kinds[member.kind]] = True
            fits = np.flatnonzero(near[row])
            best = fits[np.argsort(-cosine[row, fits], kind="stable")[:POOL]]
            yield from ((one, two, float(cosine[row, two])) for two in best.tolist() if two != one)


def _share(one: str, two: str) -> bool:
    """Return whether two lemmas have a word in common: a water bottle and a bottle may be one
    thing.
    """
    return bool(set(PIECE.split(one)) & set(PIECE.split(two)))


def _add_closed(words: Sequence[Key], found: list[dict[int, float]]) -> None:
    """Tie words of closed classes: any of the same group but those that mean much the same."""
    for one, word in enumerate(words):
        for two, other in enumerate(words[:one] if word.lemma in CLOSED else ()):
            group = CLOSED[word.lemma]
            alike = any(word.lemma in part and other.lemma in part for part in group)
            if CLOSED.get(other.lemma) is group and other.pos == word.pos and not alike:
                found[one][two] = found[two][one] = 0.0
