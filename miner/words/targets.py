"""positives -> the words in them that can be changed, and what each is changed to: what `mine
substitute` works from.

Shard by shard texts are parsed and words picked. Then, over all shards at once, words are given
out: by exchange between texts, so that each is brought in as often as it is taken out
(`miner.words.exchange`), and from the vocabulary where no exchange is left.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from miner.engine import How
from miner.files import file_fingerprint, fingerprint, write_table
from miner.models.encoder import encoder_fingerprint
from miner.query_shard import originals_of
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.tables import from_rows
from miner.words.concreteness import Word, load_ratings, pick, words_of
from miner.words.edits import lemmas_of
from miner.words.exchange import exchange
from miner.words.kinds import Key
from miner.words.parsing import Parsed, load_parser, parser_fingerprint
from miner.words.siblings import Guarded, content_of
from miner.words.vocabulary import MineSubstitute, TargetTable, Vocabulary, plain_form, word_encoder

GIVEN_FOLDER, GUARDED, CONTENTS = "_given", "_queries", "_texts"
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
PART = re.compile(r"[^\W_]+")
TEXT, INT = pa.string(), pa.int32()
T = TypeVar("T")
TARGETS = pa.schema(
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
GUARDS = pa.schema([("query_id", TEXT), ("words", pa.list_(TEXT)), ("texts", pa.list_(TEXT))])
SAID = pa.schema([("text", TEXT), ("said", pa.list_(TEXT))])
GIVEN = pa.schema(
    [
        ("target", INT),
        ("new", TEXT),
        ("new_lemma", TEXT),
        ("new_rating", pa.float32()),
        ("exchanged", pa.bool_()),
    ]
)


def find_targets(run: Run, options: MineSubstitute, how: How) -> Manifest:
    """Pick the words of all positives and give each text a new one: positives + ratings, parser,
    relations -> 2_index/<name>.

    Raises:
        UserError: there are no tables, no such parser, encoder or lexicon.
    """
    load_ratings(options.lexicon)  # a wrong file is said before anything is parsed
    lexicon = {"lexicon": file_fingerprint(options.lexicon)} if options.lexicon else {}
    model = fingerprint(
        [
            parser_fingerprint(options.spacy_model),
            encoder_fingerprint(word_encoder(options)),
            lexicon,
        ]
    )
    stage = Stage(
        f"{run.INDEXES}/{options.name}",
        "words",
        options.record(),
        run.table_input(),
        model=model,
        algorithm=3,
        made_by="mine substitute",
    )
    task, then = partial(_targets_shard, run, options), partial(give, run, options)
    return run_stage(run, stage, lambda: task, run.query_shards(), how, then)


def _targets_shard(run: Run, options: MineSubstitute, key: str) -> Shard:
    ratings, parse = load_ratings(options.lexicon), load_parser(options.spacy_model)
    rows: list[tuple[Any, ...]] = []
    asked = list(originals_of(run, key, options.k))
    # of captions each is a query of its own, and parsed where that is
    captions = run.tables().facts.get("format") == "captions"
    said = {text for _, what in asked for text in (what.guarded[:1] if captions else what.guarded)}
    texts = sorted(said | {text for _, what in asked for text in what.texts})
    parsed = dict(zip(texts, parse(texts), strict=True))
    number = 0
    for query_id, what in asked:
        for turn, (parent, text) in enumerate(zip(what.parents, what.texts, strict=True)):
            ways, way = what.parents.count(parent), what.parents[:turn].count(parent)
            found = words_of(parsed[text], ratings, options.route or "")
            chosen = pick(found, options.pick, options.top * ways, options.seed, query_id, parent)[
                way::ways
            ]
            rows += [(query_id, parent, number, *_row(parsed[text], word)) for word in chosen]
            number += 1
    guarded = [
        (query_id, sorted(words_in(what.guarded)), [fingerprint(text) for text in what.guarded])
        for query_id, what in asked
    ]
    contents = [
        (fingerprint(text), [" ".join(word) for word in sorted(content_of(parsed[text]))])
        for text in texts
    ]
    return Shard(
        {
            f"{GUARDED}/{key}": from_rows(guarded, GUARDS),
            f"{CONTENTS}/{key}": from_rows(contents, SAID),
            key: from_rows(rows, TARGETS),
        }
    )


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


def read_targets(run: Run, name: str) -> TargetTable:
    """Read the targets of all shards."""
    tables, starts, guarded, texts = [], [0], list[Guarded](), 0
    said = _contents(run, name)
    for key in run.query_shards():
        table = run.read(f"{run.INDEXES}/{name}", key)
        guards = {
            row["query_id"]: Guarded(
                frozenset(row["words"]),
                frozenset(word for text in row["texts"] for word in said.get(text, ())),
            )
            for row in run.read(f"{run.INDEXES}/{name}/{GUARDED}", key).to_pylist()
        }
        numbers = table["text"].to_numpy()
        distinct, number = np.unique(numbers, return_inverse=True)
        first = np.searchsorted(number, np.arange(len(distinct)))
        owners = table["query_id"].to_pylist()
        guarded += [guards[owners[place]] for place in first.tolist()]
        tables.append(table.set_column(2, "text", pa.array(number + texts, INT)))
        starts.append(starts[-1] + len(table))
        texts += len(distinct)
    return TargetTable(pa.concat_tables([TARGETS.empty_table(), *tables]), starts, guarded)


def _contents(run: Run, name: str) -> dict[str, list[Key]]:
    """Return the nouns, verbs and adjectives of each text that was parsed, by its fingerprint."""
    found: dict[str, list[Key]] = {}
    for key in run.query_shards():
        for row in run.read(f"{run.INDEXES}/{name}/{CONTENTS}", key).to_pylist():
            found[row["text"]] = [Key(*word.rsplit(" ", 1)) for word in row["said"]]
    return found


def by_shard(given: Mapping[int, T], starts: Sequence[int]) -> Iterator[list[tuple[int, T]]]:
    """Yield what each shard is given, in order: number of the target within the shard, and what.

    >>> list(by_shard({3: "c", 0: "a"}, [0, 2, 4]))
    [[(0, 'a')], [(1, 'c')]]
    """
    numbers = sorted(given)
    for low, high in pairwise(starts):
        mine = numbers[bisect_left(numbers, low) : bisect_left(numbers, high)]
        yield [(number - low, given[number]) for number in mine]


def give(run: Run, options: MineSubstitute) -> dict[str, Any]:
    """Give each text a new word; write that for each shard and return the manifest's facts."""
    ratings, found = load_ratings(options.lexicon), read_targets(run, options.name)
    vocabulary = Vocabulary.of(found, ratings, options)
    targets = vocabulary.targets(found)
    given: dict[int, tuple[int, str, bool]] = {}  # target -> word, as it is written, exchanged
    forbids = vocabulary.forbids(found)
    if options.balance:
        partner = exchange(targets, vocabulary.near, forbids, options.seed)
        forms, opens = (found.table[name].to_pylist() for name in ("old", "opens"))
        for target in np.flatnonzero(partner >= 0).tolist():
            other = int(partner[target])
            given[target] = int(targets.word[other]), plain_form(forms[other], opens[other]), True
    exchanged = len(given)
    given |= vocabulary.fill(found, targets, forbids, given, options)
    for key, mine in zip(run.query_shards(), by_shard(given, found.starts), strict=True):
        rows = [
            (target, new, vocabulary.words[word].lemma, vocabulary.ratings[word], swapped)
            for target, (word, new, swapped) in mine
        ]
        write_table(
            run.path / run.INDEXES / options.name / GIVEN_FOLDER / f"{key}.parquet",
            from_rows(rows, GIVEN),
        )
    return {
        "kind": "words",
        "texts": len(found.guarded),
        "exchanged": exchanged,
        "from_vocabulary": len(given) - exchanged,
        "vocabulary": len(vocabulary.words),
    }
