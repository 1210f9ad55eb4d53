"""The words that texts exchange: what may stand for what, and in which form."""

from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from miner.llm.requests import Generator
from miner.models.encoder import load_encoder
from miner.models.hub import Encoder
from miner.options import NAME, option
from miner.seeds import generator
from miner.words.concreteness import Ratings
from miner.words.edits import inflect
from miner.words.exchange import Targets
from miner.words.kinds import PARTS, Key
from miner.words.neighbours import Bands, neighbours
from miner.words.siblings import Guarded, Ties, WordSet
from miner.words.wordnet import WordNet, load_wordnet

SMALL = 300  # a vocabulary of more words has neighbours enough of its own
NEAREST = 24


class MineSubstitute(Generator):
    """Made negatives: a positive in which one concrete word is changed, or two phrases change
    places.
    """

    k: int = option(1, "negatives per query", short="-k", ge=1)
    name: str = option("substitute", "name of the source", pattern=NAME)
    rewriter: Literal["lexical", "swap", "llm"] = option(
        "lexical",
        "lexical: another word of the same kind; swap: two phrases change places; llm: an LLM"
        " fits that word in",
    )
    prompt: str = option(
        "rewrite",
        "rewriter llm: rewrite, or a file of your own (.toml) that names text, kind, word and new",
    )
    pick: Literal["concrete", "abstract", "uniform"] = option(
        "concrete", "which words are changed, by their ratings"
    )
    top: int = option(
        3, "words of a text that are candidates, the most concrete (or abstract)", ge=1
    )
    route: str | None = option(
        None,
        "attributes (A), relations (R), objects (O), as in AR; in/on/two only if named [default:"
        " all]",
        pattern="^[ARO]+$",
    )
    balance: bool = option(
        True,
        "a word is brought in as often as it is taken out, so that words do not tell negatives from"
        " originals",
    )
    lexicon: Path | None = option(
        None, "parquet, csv or tsv of word, rating [default: Brysbaert's norms of concreteness]"
    )
    rating_band: float = option(1.0, "largest difference of old and new word's ratings", ge=0)
    min_similarity: float = option(0.3, "least cosine of old and new word under the encoder")
    max_similarity: float = option(
        0.8, "highest cosine of old and new word: above it they may mean the same"
    )
    encoder: str | None = option(
        None,
        "hub id or local path of the sentence-transformers model that compares words [default:"
        " all-MiniLM-L6-v2]",
    )
    spacy_model: str = option(
        "auto",
        "an installed spaCy model or a path; auto: en_core_web if installed, else the bundled"
        " en_quarry",
    )


def word_encoder(options: MineSubstitute) -> Encoder:
    """Return the encoder that compares words, in float32: thresholds are cosines."""
    return Encoder(encoder=options.encoder, dtype="fp32")


class TargetTable(NamedTuple):
    """The targets of all shards.

    Attributes:
        table: TARGETS, with `text` counted over all shards.
        starts: shard -> its first target, and one more.
        guarded: text -> what must not be said in it.
    """

    table: pa.Table
    starts: list[int]
    guarded: list[Guarded]


def plain_form(word: str, opens: bool) -> str:
    """Return a word as it stands within a sentence; a capital stays where the word did not open
    one.
    """
    return word.lower() if opens or (word.isupper() and len(word) > 3) else word


class Vocabulary:
    """The words that targets hold: what may stand for what, and in which form.

    Attributes:
        words: lemma and part of speech, w of them, in order.
        ratings: (w,) as a list; nan where the table has none.
        near: word -> its neighbours, the most similar first.
    """

    def __init__(self, words: list[Key], ratings: list[float], near: list[list[int]]):
        self.words, self.ratings, self.near = words, ratings, near
        self.number = {word: place for place, word in enumerate(words)}

    @classmethod
    def of(cls, found: TargetTable, ratings: Ratings, options: MineSubstitute) -> "Vocabulary":
        """Gather the words of targets; of those with few neighbours also what WordNet puts beside
        them, so that small data have words too.
        """
        wordnet = load_wordnet()
        lemmas, tags = (found.table[name].to_pylist() for name in ("lemma", "pos"))
        words = {Key(*pair) for pair in zip(lemmas, tags, strict=True)}
        if len(words) <= SMALL:
            words |= {
                Key(other, word.pos) for word in words for other in _beside(word, ratings, wordnet)
            }
        chosen = sorted(words)
        seen = dict(zip(lemmas, found.table["rating"].to_pylist(), strict=True))
        rated = [ratings.of(word.lemma) for word in chosen]
        known = [
            seen.get(word.lemma, np.nan) if rating is None else rating
            for word, rating in zip(chosen, rated, strict=True)
        ]
        vectors = np.empty((0, 1), np.float32)
        if chosen:
            encode = load_encoder(word_encoder(options))
            vectors = encode([word.lemma for word in chosen], "document")
        bands = Bands(options.min_similarity, options.max_similarity, options.rating_band)
        near = neighbours(chosen, np.array(known, np.float64), vectors, wordnet, bands)
        return cls(chosen, known, near)

    def targets(self, found: TargetTable) -> Targets:
        """Return the targets as numbers."""
        columns = {
            name: found.table[name].to_pylist()
            for name in ("lemma", "pos", "old", "tag", "left", "right", "opens")
        }
        plain = [
            plain_form(old, opens)
            for old, opens in zip(columns["old"], columns["opens"], strict=True)
        ]
        tokens = {
            token: place
            for place, token in enumerate(sorted({*plain, *columns["left"], *columns["right"]}))
        }
        tags = {tag: place for place, tag in enumerate(sorted(set(columns["tag"])))}
        words = [
            self.number[Key(*pair)] for pair in zip(columns["lemma"], columns["pos"], strict=True)
        ]
        number = lambda names, of: np.array([of[name] for name in names], np.int64)  # noqa: E731
        return Targets(
            found.table["text"].to_numpy().astype(np.int64),
            np.array(words, np.int64),
            number(plain, tokens),
            number(columns["tag"], tags),
            number(columns["left"], tokens),
            number(columns["right"], tokens),
            found.table["article"].to_numpy().astype(np.int64),
        )

    def forbids(self, found: TargetTable) -> list[WordSet]:
        """Return for each text the words that must not come into it, by what it guards."""
        ties, known = Ties(self.words, load_wordnet()), dict[Guarded, WordSet]()
        for guarded in found.guarded:
            if guarded not in known:
                known[guarded] = ties.barred_from(guarded)
        return [known[guarded] for guarded in found.guarded]

    def fill(
        self,
        found: TargetTable,
        targets: Targets,
        forbids: Sequence[Container[int]],
        given: dict[int, tuple[int, str, bool]],
        options: MineSubstitute,
    ) -> dict[int, tuple[int, str, bool]]:
        """Give the texts that have none a word from the vocabulary: of what fits, what was brought
        in least beyond what was taken out.

        Without balance the first choice of each text gets one of its nearest neighbours, drawn by
        seed.
        """
        tags, forms = found.table["tag"].to_pylist(), self._forms(found)
        served = {int(targets.text[target]) for target in given}
        net, filled = Counter[int](), dict[int, tuple[int, str, bool]]()
        of_text: dict[int, list[int]] = defaultdict(list)
        for target, text in enumerate(targets.text.tolist()):
            of_text[text].append(target)
        for text, mine in of_text.items():
            for target in mine if text not in served else ():
                near, tag = self.near[targets.word[target]], tags[target]
                inflected = {
                    word: form
                    for word in islice((one for one in near if one not in forbids[text]), NEAREST)
                    if (form := forms.get((word, tag)) or inflect(self.words[word].lemma, tag))
                }
                if not inflected:
                    continue
                choices = list(inflected)
                drawn = int(generator(options.seed, str(text), "word").integers(len(choices)))
                word = min(choices, key=net.__getitem__) if options.balance else choices[drawn]
                net.update({word: 1, int(targets.word[target]): -1})
                filled[target] = word, inflected[word], False
                break
        return filled

    def _forms(self, found: TargetTable) -> dict[tuple[int, str], str]:
        """Return for a word and a tag the form in which it stands in the texts most often."""
        counts: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
        names = ("lemma", "pos", "tag", "old", "opens")
        for lemma, pos, tag, old, opens in zip(
            *(found.table[name].to_pylist() for name in names), strict=True
        ):
            counts[self.number[Key(lemma, pos)], tag][plain_form(old, opens)] += 1
        return {
            key: min(forms, key=lambda form: (-forms[form], form)) for key, forms in counts.items()
        }


def _beside(word: Key, ratings: Ratings, wordnet: WordNet) -> list[str]:
    beside = (
        wordnet.co_hyponyms(word.lemma, PARTS.get(word.pos, word.pos))
        if word.pos != "PROPN"
        else ()
    )
    return [other for other in beside if ratings.of(other) is not None][:NEAREST]
