"""Ratings of concreteness, and which words of a text to change: pure, and seeded by ids.

How words are picked follows ConcretePlant (arXiv 2604.13313, its figure): lemmas and parts of
speech from a parser; nouns, adjectives, numerals, adpositions and verbs stay, stop words go;
unigrams and bigrams are looked up in a table of ratings; the k most concrete are the candidates,
one of them drawn is the target; its part of speech says whether an object, an attribute or a
relation is changed. The ratings are those of Brysbaert, Warriner & Kuperman (2014), 1 abstract to 5
concrete, or any other table of words and ratings.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import numpy as np

from miner.errors import UserError
from miner.seeds import generator
from miner.words.data_files import data_file
from miner.words.parsing import Parsed

Pick = Literal["concrete", "abstract", "uniform"]
Route = Literal["A", "R", "O"]
ROUTES: dict[str, Route] = {
    "NOUN": "O",
    "PROPN": "O",
    "ADJ": "A",
    "NUM": "A",
    "ADP": "R",
    "VERB": "R",
}
# Words of closed classes, which norms leave out or rate low: a group is of one kind, the words of a
# part mean much the same.
SPACE = (
    ("in", "inside", "into", "within"),
    ("on", "onto", "atop", "upon"),
    ("under", "beneath", "below", "underneath"),
    ("above", "over"),
)
PLACE = (
    ("behind",),
    ("outside",),
    ("beside", "near", "by", "alongside"),
    ("across",),
    ("around",),
    ("through",),
)
NUMBERS = tuple(
    (word,)
    for word in [
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
)
BOUNDS = (
    r"\b(?:at (?:least|most)|(?:more|less|fewer|greater|no more) than|up to|over|under|above|below"
    r"|minimum(?: of)?|maximum(?: of)?)$"
)
CLOSED = {
    word: group
    for group in (SPACE + PLACE, (("with",), ("without",)), NUMBERS)
    for part in group
    for word in part
}


class Ratings:
    """Words and bigrams, lowercased -> a rating."""

    def __init__(self, ratings: Mapping[str, float], name: str):
        self.by_word, self.name = ratings, name

    def of(self, *forms: str) -> float | None:
        """Return the rating of the first of some forms that has one."""
        return next((self.by_word[form] for form in forms if form in self.by_word), None)


class Word(NamedTuple):
    """A word or a listed bigram of a text.

    Attributes:
        first, last: tokens, both included.
        start, end: characters.
        surface: as it stands in the text.
        lemma: as the parser gives it, lowercased; of a bigram, both.
        pos, tag: part of speech, universal and of the Penn Treebank; of a bigram, its second
            token's.
        rating: 1 to 5; None for words of closed classes that the table does not have.
        route: O object, A attribute, R relation.
    """

    first: int
    last: int
    start: int
    end: int
    surface: str
    lemma: str
    pos: str
    tag: str
    rating: float
    route: Route


@lru_cache(maxsize=2)
def load_ratings(file: Path | None = None) -> Ratings:
    """Read ratings: the norms that come with quarry, or the first two columns (word, rating) of a
    Parquet, CSV or TSV file.

    Raises:
        UserError: the file cannot be read, or its second column holds no numbers.
    """
    path = data_file("concreteness/ratings.parquet") if file is None else file
    if not path.exists():
        raise UserError(
            f"--lexicon {path} does not exist; expected a parquet, csv or tsv file whose first"
            " columns are word and rating"
        )
    read = "read_parquet(?)" if path.suffix == ".parquet" else "read_csv(?)"
    try:
        with duckdb.connect(config={"threads": 1}) as db:
            columns = db.execute(f"DESCRIBE FROM {read}", [str(path)]).fetchall()
            rating = "mean" if file is None else str(columns[1][0])
            rows = db.execute(
                f'SELECT lower("{columns[0][0]}"), "{rating}"::DOUBLE FROM {read}', [str(path)]
            ).fetchall()
    except (duckdb.Error, IndexError) as error:
        raise UserError(
            f"--lexicon {path}: {str(error).splitlines()[0]}; expected the columns word and rating"
            " first"
        ) from error
    return Ratings(
        {word: rating for word, rating in rows if word and rating is not None}, path.name
    )


def words_of(parsed: Parsed, ratings: Ratings, routes: str = "") -> list[Word]:
    """Return the words of a text that can be changed, in their order: kept parts of speech, no stop
    words, rated, longest match first.

    Args:
        parsed: the text.
        ratings: the table.
        routes: only these; words of closed classes (two, under) count as candidates only where
            routes are named, stop words as they are.
    """
    found, place, wanted = [], 0, set(routes)
    while place < len(parsed.word):
        word = _bigram(parsed, ratings, place) or _unigram(parsed, ratings, place, bool(wanted))
        if word and (not wanted or word.route in wanted):
            found.append(word)
        place = word.last + 1 if word else place + 1
    return found


def pick(words: list[Word], how: Pick, top: int, seed: int, *ids: str) -> list[Word]:
    """Return the words to change, the first choice first: the `top` most concrete (or abstract) in
    an order drawn from seed and ids.

    A word that stands in the text more than once is no choice: changing one of two leaves the old
    one there.
    """
    count: dict[str, int] = {}
    for word in words:
        count[word.lemma] = count.get(word.lemma, 0) + 1
    ranked = ranking([word for word in words if count[word.lemma] == 1], how)
    chosen = ranked if how == "uniform" else ranked[:top]
    return [chosen[place] for place in generator(seed, *ids).permutation(len(chosen)).tolist()]


def ranking(words: list[Word], how: Pick) -> list[Word]:
    """Return words by rating, the most concrete or the most abstract first, ties by place;
    uniform leaves them as they are.
    """
    if how == "uniform":
        return words
    sign = -1 if how == "concrete" else 1
    return sorted(words, key=lambda word: (sign * word.rating, word.first))


def _unigram(parsed: Parsed, ratings: Ratings, place: int, closed: bool) -> Word | None:
    surface, lemma, pos = parsed.word[place], parsed.lemma[place].lower(), parsed.pos[place]
    route = ROUTES.get(pos)
    if route is None:
        return None
    low = surface.lower()
    rating = ratings.of(low, lemma)
    if (low,) in NUMBERS and _bounded(parsed, place):
        return None
    if closed and low in CLOSED and route in "AR":
        rating = rating if rating is not None else np.nan
    elif parsed.stop[place] or rating is None or not low[0].isalpha():
        return None
    start = parsed.start[place]
    return Word(
        place,
        place,
        start,
        start + len(surface),
        surface,
        lemma,
        pos,
        parsed.tag[place],
        rating,
        route,
    )


def _bounded(parsed: Parsed, place: int) -> bool:
    """Tell whether a number is a bound: at least three is also at least two, so that another number
    may follow from it.
    """
    before = " ".join(parsed.word[max(0, place - 3) : place]).lower()
    return re.search(BOUNDS, before) is not None


def _bigram(parsed: Parsed, ratings: Ratings, place: int) -> Word | None:
    """Return the bigram that begins here if the table lists it; two tokens with one space
    between them, neither a stop word.
    """
    if place + 1 >= len(parsed.word) or parsed.sentence[place] != parsed.sentence[place + 1]:
        return None
    (one, two), start = parsed.word[place : place + 2], parsed.start[place]
    end = parsed.start[place + 1] + len(two)
    if end - start != len(one) + len(two) + 1 or parsed.stop[place] or parsed.stop[place + 1]:
        return None
    pos, lemma = parsed.pos[place + 1], f"{parsed.lemma[place]} {parsed.lemma[place + 1]}".lower()
    half = f"{one} {parsed.lemma[place + 1]}".lower()  # "dining tables": only its head is inflected
    rating = ratings.of(f"{one} {two}".lower(), half, lemma)
    if rating is None or pos not in ROUTES or parsed.pos[place] not in ROUTES:
        return None
    return Word(
        place,
        place + 1,
        start,
        end,
        f"{one} {two}",
        half,
        pos,
        parsed.tag[place + 1],
        rating,
        ROUTES[pos],
    )
