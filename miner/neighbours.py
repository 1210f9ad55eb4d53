"""Which words may stand for one another in a negative: near in meaning and in rating, but not the same thing.

Two words are neighbours if they have the same part of speech, their ratings differ by no more than a band, and either the encoder puts them
within a band of similarity and WordNet in one field (noun.food), or WordNet has them under one parent (co-hyponyms). They never are if
WordNet knows one as a synonym, hypernym, hyponym, part, whole or derivation of the other, or does not know one of them at all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from miner.concreteness import CLOSED
from miner.wordnet import WordNet

MOST = 96  # neighbours of a word
POOL = 400  # the most similar words that are looked at for them
CHUNK = 512
PARTS = {"PROPN": "NOUN"}


class Key(NamedTuple):
    """A word of the vocabulary."""

    lemma: str
    pos: str


class Bands(NamedTuple):
    """What counts as near.

    Attributes:
        low, high: cosine under the encoder, both included.
        rating: largest difference of two ratings.
    """

    low: float
    high: float
    rating: float


def neighbours(words: Sequence[Key], ratings: np.ndarray, vectors: np.ndarray, wordnet: WordNet, bands: Bands) -> list[list[int]]:
    """Return for each word those that may stand for it, the most similar first, ties by number; symmetric.

    Args:
        words: the vocabulary, w of them.
        ratings: (w,) float64; nan for words of closed classes.
        vectors: (w, d) float32 unit vectors.
        wordnet: relations.
        bands: what counts as near.
    """
    found: list[dict[int, float]] = [{} for _ in words]
    pos = np.array([PARTS.get(word.pos, word.pos) for word in words])
    fields = [
        wordnet.field(word.lemma, kind) if wordnet.knows(word.lemma, kind) else "" for word, kind in zip(words, pos.tolist(), strict=True)
    ]
    for kind in sorted(set(pos.tolist())):
        places = np.flatnonzero(pos == kind)
        for one, two, cosine in _close(places, ratings, vectors, bands):
            if two not in found[one] and _apart(words, one, two, kind, fields, wordnet, cosine >= bands.low):
                found[one][two] = found[two][one] = cosine
    _add_closed(words, found)
    return [sorted(near, key=lambda other: (-near[other], other))[:] for near in found]


def _close(places: np.ndarray, ratings: np.ndarray, vectors: np.ndarray, bands: Bands):  # type: ignore[no-untyped-def] # an iterator of triples
    """Yield (word, other, cosine) of words near in rating and not too near in meaning, the most similar of each word first."""
    for start in range(0, len(places), CHUNK):
        mine = places[start : start + CHUNK]
        cosine = vectors[mine] @ vectors[places].T
        fits = (cosine <= bands.high) & (np.abs(ratings[mine][:, None] - ratings[places][None]) <= bands.rating)
        fits &= mine[:, None] != places[None]
        cosine = np.where(fits, cosine, -np.inf)
        for row, one in enumerate(mine.tolist()):
            order = np.argsort(-cosine[row], kind="stable")[:POOL]
            yield from (
                (one, int(places[column]), float(cosine[row, column])) for column in order.tolist() if np.isfinite(cosine[row, column])
            )


def _apart(words: Sequence[Key], one: int, two: int, kind: str, fields: Sequence[str], wordnet: WordNet, similar: bool) -> bool:
    """Return whether two words are of one kind, and WordNet sees no tie that could leave the text true."""
    a, b = words[one].lemma, words[two].lemma
    if not fields[one] or not fields[two] or a in CLOSED or b in CLOSED:
        return False
    if not (similar and fields[one] == fields[two]) and b not in wordnet.co_hyponyms(a, kind) and a not in wordnet.co_hyponyms(b, kind):
        return False
    return not (set(a.split()) & set(b.split())) and not wordnet.related(a, b, kind)


def _add_closed(words: Sequence[Key], found: list[dict[int, float]]) -> None:
    """Tie words of closed classes: any of the same group but those that mean much the same."""
    for one, word in enumerate(words):
        for two, other in enumerate(words[:one] if word.lemma in CLOSED else ()):
            group = CLOSED[word.lemma]
            if CLOSED.get(other.lemma) is group and other.pos == word.pos:
                if not any(word.lemma in part and other.lemma in part for part in group):
                    found[one][two] = found[two][one] = 0.0
