"""positives -> the words in them that can be changed, and what each is changed to: what `mine
substitute` works from.

Shard by shard texts are parsed and words picked. Then, over all shards at once, words are given
out: by exchange between texts, so that each is brought in as often as it is taken out
(`miner.words.exchange`), and from the vocabulary where no exchange is left.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from miner.engine import How
from miner.files import file_fingerprint, fingerprint, write_table
from miner.llm.generate import Generator
from miner.models.encoder import encoder_fingerprint, load_encoder
from miner.models.hub import Encoder
from miner.options import NAME, option
from miner.query_shard import asked_of
from miner.seeds import generator
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.tables import from_rows
from miner.words.concreteness import Ratings, Word, load_ratings, pick, words_of
from miner.words.edits import inflect, lemmas_of
from miner.words.exchange import Slots, exchange
from miner.words.neighbours import PARTS, Bands, Key, neighbours
from miner.words.parsing import Parsed, load_parser, parser_fingerprint
from miner.words.wordnet import WordNet, load_wordnet

GIVEN_FOLDER, FORBIDS = "_given", "_queries"
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
PART = re.compile(r"[^\W_]+")
TEXT, INT = pa.string(), pa.int32()
SLOTS = pa.schema(
    [
        ("query_id", TEXT),
        ("parent_id", TEXT),
        ("text", INT),
        ("start", INT),
        ("end", INT),
        ("old", TEXT),
        ("lemma", TEXT),
        ("pos", TEXT),
        ("tag", TEXT),
        ("route", TEXT),
        ("rating", pa.float32()),
        ("left", TEXT),
        ("right", TEXT),
        ("article", pa.bool_()),
        ("opens", pa.bool_()),
    ]
)
GIVEN = pa.schema(
    [
        ("slot", INT),
        ("new", TEXT),
        ("new_lemma", TEXT),
        ("new_rating", pa.float32()),
        ("exchanged", pa.bool_()),
    ]
)
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
        " changes the word",
    )
    prompt: str = option(
        "rewrite",
        "rewriter llm: rewrite, or a file of your own (.toml) that names text, kind and word",
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


def find_slots(run: Run, options: MineSubstitute, how: How) -> Manifest:
    """Pick the words of all positives and give each text a new one: positives + ratings, parser,
    relations -> 2_index/<name>.

    Raises:
        UserError: there are no tables, no such parser, encoder or lexicon.
    """
    load_ratings(options.lexicon)  # a wrong file is said before anything is parsed
    lexicon = {"lexicon": file_fingerprint(options.lexicon)} if options.lexicon else {}
    model = fingerprint(
        [parser_fingerprint(options.spacy_model), encoder_fingerprint(_encoder(options)), lexicon]
    )
    then = partial(give, run, options) if options.rewriter == "lexical" else dict[str, Any]
    stage = Stage(
        f"{run.INDEXES}/{options.name}",
        "words",
        options.record(),
        run.table_input(),
        model=model,
        made_by="mine substitute",
    )
    return run_stage(
        run, stage, lambda: partial(_slots_shard, run, options), run.query_shards(), how, then
    )


def _encoder(options: MineSubstitute) -> Encoder:
    return Encoder(encoder=options.encoder, dtype="fp32")


def _slots_shard(run: Run, options: MineSubstitute, key: str) -> Shard:
    ratings, parse = load_ratings(options.lexicon), load_parser(options.spacy_model)
    rows: list[tuple[Any, ...]] = []
    forbids: list[tuple[str, list[str]]] = []
    asked = list(asked_of(run, key, options.k))
    texts = sorted({text for _, what in asked for text in what.texts})
    parsed = dict(zip(texts, parse(texts), strict=True))
    number = 0
    for query_id, what in asked:
        forbids.append((query_id, sorted(words_in(what.guarded))))
        for turn, (parent, text) in enumerate(zip(what.parents, what.texts, strict=True)):
            ways, way = what.parents.count(parent), what.parents[:turn].count(parent)
            found = words_of(parsed[text], ratings, options.route or "")
            chosen = pick(found, options.pick, options.top * ways, options.seed, query_id, parent)[
                way::ways
            ]
            rows += [(query_id, parent, number, *_row(parsed[text], word)) for word in chosen]
            number += 1
    words = pa.table(
        {
            "query_id": [query for query, _ in forbids],
            "words": pa.array([list(w) for _, w in forbids], pa.list_(TEXT)),
        }
    )
    return Shard({f"{FORBIDS}/{key}": words, key: from_rows(rows, SLOTS)})


def _row(parsed: Parsed, word: Word) -> tuple[Any, ...]:
    before = word.first - 1
    article = before >= 0 and parsed.word[before].lower() in ("a", "an")
    left = before - article
    return (
        *(
            word.start,
            word.end,
            word.surface,
            word.lemma,
            word.pos,
            word.tag,
            word.route,
            word.rating,
        ),
        parsed.word[left].lower() if left >= 0 else "",
        parsed.word[word.last + 1].lower() if word.last + 1 < len(parsed.word) else "",
        *(article, word.first == 0 or parsed.sentence[word.first] != parsed.sentence[before]),
    )


def words_in(texts: Sequence[str]) -> set[str]:
    """Return all words of some texts, the parts of hyphened and possessive ones too, and all
    lemmas of which they may be forms.
    """
    found = {word for text in texts for pattern in (WORD, PART) for word in pattern.findall(text)}
    return {form for word in found for form in lemmas_of(word)}


class Found(NamedTuple):
    """The slots of all shards.

    Attributes:
        table: SLOTS, with `text` counted over all shards.
        starts: shard -> its first slot, and one more.
        forbids: text -> words (lowercased forms) that must not come into it.
    """

    table: pa.Table
    starts: list[int]
    forbids: list[frozenset[str]]


def read_slots(run: Run, name: str) -> Found:
    """Read the slots of all shards."""
    tables, starts, forbids, texts = [], [0], list[frozenset[str]](), 0
    for key in run.query_shards():
        table, guarded = (
            run.read(f"{run.INDEXES}/{name}", key),
            run.read(f"{run.INDEXES}/{name}/{FORBIDS}", key),
        )
        words = {
            query: frozenset(forms)
            for query, forms in zip(
                *(guarded[c].to_pylist() for c in ("query_id", "words")), strict=True
            )
        }
        numbers = table["text"].to_numpy()
        distinct, number = np.unique(numbers, return_inverse=True)
        first = np.searchsorted(number, np.arange(len(distinct)))
        owners = table["query_id"].to_pylist()
        forbids += [words[owners[place]] for place in first.tolist()]
        tables.append(table.set_column(2, "text", pa.array(number + texts, INT)))
        starts.append(starts[-1] + len(table))
        texts += len(distinct)
    return Found(pa.concat_tables([SLOTS.empty_table(), *tables]), starts, forbids)


def give(run: Run, options: MineSubstitute) -> dict[str, Any]:
    """Give each text a new word; write that for each shard and return the manifest's facts."""
    ratings, found = load_ratings(options.lexicon), read_slots(run, options.name)
    vocabulary = Vocabulary.of(found, ratings, options)
    slots = vocabulary.slots(found)
    given: dict[int, tuple[int, str, bool]] = {}  # slot -> word, as it is written, exchanged
    forbids = vocabulary.forbids(found)
    if options.balance:
        partner = exchange(slots, vocabulary.near, forbids, options.seed)
        forms = found.table["old"].to_pylist()
        for slot in np.flatnonzero(partner >= 0).tolist():
            other = int(partner[slot])
            given[slot] = (
                int(slots.word[other]),
                _plain(forms[other], found.table["opens"][other].as_py()),
                True,
            )
    exchanged = len(given)
    given |= vocabulary.fill(found, slots, forbids, given, options)
    for number, key in enumerate(run.query_shards()):
        low, high = found.starts[number], found.starts[number + 1]
        rows = [
            (slot - low, new, vocabulary.words[word].lemma, vocabulary.ratings[word], swapped)
            for slot, (word, new, swapped) in sorted(given.items())
            if low <= slot < high
        ]
        write_table(
            run.path / run.INDEXES / options.name / GIVEN_FOLDER / f"{key}.parquet",
            from_rows(rows, GIVEN),
        )
    return {
        "kind": "words",
        "texts": len(found.forbids),
        "exchanged": exchanged,
        "from_vocabulary": len(given) - exchanged,
        "vocabulary": len(vocabulary.words),
    }


def _plain(word: str, opens: bool) -> str:
    """Return a word as it stands within a sentence; a capital stays where the word did not open
    one.
    """
    return word.lower() if opens or (word.isupper() and len(word) > 3) else word


class Vocabulary:
    """The words that slots hold: what may stand for what, and in which form.

    Attributes:
        words: lemma and part of speech, w of them, in order.
        ratings: (w,) as a list; nan where the table has none.
        near: word -> its neighbours, the most similar first.
    """

    def __init__(self, words: list[Key], ratings: list[float], near: list[list[int]]):
        self.words, self.ratings, self.near = words, ratings, near
        self.number = {word: place for place, word in enumerate(words)}

    @classmethod
    def of(cls, found: Found, ratings: Ratings, options: MineSubstitute) -> "Vocabulary":
        """Gather the words of slots; of those with few neighbours also what WordNet puts beside
        them, so that small data have words too.
        """
        wordnet = load_wordnet()
        own = sorted(
            {
                Key(*pair)
                for pair in zip(
                    found.table["lemma"].to_pylist(), found.table["pos"].to_pylist(), strict=True
                )
            }
        )
        more = (
            own
            if len(own) > SMALL
            else sorted(
                {
                    *own,
                    *(
                        Key(other, word.pos)
                        for word in own
                        for other in _beside(word, ratings, wordnet)
                    ),
                }
            )
        )
        rated = [ratings.of(word.lemma) for word in more]
        seen = dict(
            zip(found.table["lemma"].to_pylist(), found.table["rating"].to_pylist(), strict=True)
        )
        known = [
            rating if rating is not None else seen.get(word.lemma, np.nan)
            for word, rating in zip(more, rated, strict=True)
        ]
        vectors = (
            load_encoder(_encoder(options))([word.lemma for word in more], "document")
            if more
            else np.empty((0, 1), np.float32)
        )
        bands = Bands(options.min_similarity, options.max_similarity, options.rating_band)
        return cls(
            more, known, neighbours(more, np.array(known, np.float64), vectors, wordnet, bands)
        )

    def slots(self, found: Found) -> Slots:
        """Return the slots as numbers."""
        columns = {
            name: found.table[name].to_pylist()
            for name in ("lemma", "pos", "old", "tag", "left", "right", "opens")
        }
        plain = [
            _plain(old, opens) for old, opens in zip(columns["old"], columns["opens"], strict=True)
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
        return Slots(
            found.table["text"].to_numpy().astype(np.int64),
            np.array(words, np.int64),
            number(plain, tokens),
            number(columns["tag"], tags),
            number(columns["left"], tokens),
            number(columns["right"], tokens),
            found.table["article"].to_numpy().astype(np.int64),
        )

    def forbids(self, found: Found) -> list[frozenset[int]]:
        """Return for each text the words that must not come into it: all of whose parts stand in
        what it guards.
        """
        by_first: dict[str, list[tuple[frozenset[str], int]]] = defaultdict(list)
        for number, word in enumerate(self.words):
            first, *rest = word.lemma.split()
            by_first[first].append((frozenset(rest), number))
        return [
            frozenset(
                number
                for form in forms
                if form in by_first
                for rest, number in by_first[form]
                if rest <= forms
            )
            for forms in found.forbids
        ]

    def fill(
        self,
        found: Found,
        slots: Slots,
        forbids: Sequence[frozenset[int]],
        given: dict[int, tuple[int, str, bool]],
        options: MineSubstitute,
    ) -> dict[int, tuple[int, str, bool]]:
        """Give the texts that have none a word from the vocabulary: of what fits, what was brought
        in least beyond what was taken out.

        Without balance the first choice of each text gets one of its nearest neighbours, drawn by
        seed.
        """
        tags, forms = found.table["tag"].to_pylist(), self._forms(found)
        served = {int(slots.text[slot]) for slot in given}
        net, filled = Counter[int](), dict[int, tuple[int, str, bool]]()
        of_text: dict[int, list[int]] = defaultdict(list)
        for slot, text in enumerate(slots.text.tolist()):
            of_text[text].append(slot)
        for text, mine in of_text.items():
            for slot in mine if text not in served else ():
                fits = [word for word in self.near[slots.word[slot]] if word not in forbids[text]][
                    :NEAREST
                ]
                inflected = {
                    word: form
                    for word in fits
                    if (
                        form := forms.get((word, tags[slot]))
                        or inflect(self.words[word].lemma, tags[slot])
                    )
                }
                if not inflected:
                    continue
                choices = list(inflected)
                drawn = int(generator(options.seed, str(text), "word").integers(len(choices)))
                word = (
                    min(choices, key=lambda word: net[word]) if options.balance else choices[drawn]
                )
                net.update({word: 1, int(slots.word[slot]): -1})
                filled[slot] = word, inflected[word], False
                break
        return filled

    def _forms(self, found: Found) -> dict[tuple[int, str], str]:
        """Return for a word and a tag the form in which it stands in the texts most often."""
        counts: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
        names = ("lemma", "pos", "tag", "old", "opens")
        for lemma, pos, tag, old, opens in zip(
            *(found.table[name].to_pylist() for name in names), strict=True
        ):
            counts[self.number[Key(lemma, pos)], tag][_plain(old, opens)] += 1
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
