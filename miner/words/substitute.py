"""positives + chosen words -> made documents and candidates: negatives in which one word, or the
place of two phrases, is changed.

Words are picked and given out by `miner.words.targets`; here they are put into the texts. The other
rewriter, `swap`, needs no words: two phrases of one kind exchange places within a text ("a man on a
horse", "a horse on a man"). With rewriter `llm` a language model is told the word that goes and the
one that comes, which are those of `lexical`, and fits it in.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from miner.engine import How
from miner.files import fingerprint
from miner.llm.client import Client
from miner.llm.generate import facts, model_of, one_process, written_shard
from miner.llm.prompts import load_prompt
from miner.llm.verify import Guard
from miner.llm.writing import Task
from miner.made import Negative, made_shard
from miner.query_shard import originals_of
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.words.concreteness import Word
from miner.words.edits import Edit, change_of, put
from miner.words.parsing import load_parser, parser_fingerprint
from miner.words.swap import swap
from miner.words.targets import GIVEN_FOLDER, find_targets
from miner.words.vocabulary import MineSubstitute

KINDS = {"O": "object", "A": "attribute", "R": "relation"}
# what a substitution does to the meaning: the text speaks of another thing, attribute or relation
EFFECT = "change"


def mine_substitute(run: Run, options: MineSubstitute, how: How) -> list[Manifest]:
    """Make negatives by changing words: positives -> 2_index/<name> (the words),
    3_candidates/<name>.

    Raises:
        UserError: there are no tables, no such parser, encoder or lexicon.
    """
    inputs, done = run.table_input(), list[Manifest]()
    client = Client(run, options) if options.rewriter == "llm" else None
    if options.rewriter != "swap":
        done.append(find_targets(run, options, how))
        inputs[done[0].stage] = done[0].fingerprint
    model = parser_fingerprint(options.spacy_model)
    if client:
        model = fingerprint([model, model_of(client, options)])
    stage = Stage(
        f"{run.SOURCES}/{options.name}",
        "candidates",
        options.record(),
        inputs,
        model=model,
        algorithm=3,
        made_by="mine substitute",
    )
    # so that nobody asks how well this source finds positives
    plain = {"searched_with": "nothing: documents are made"}
    then = (
        partial(facts, run, options, client, load_prompt(options.prompt))
        if client
        else lambda: plain
    )
    how = one_process(how) if client else how
    task = partial(_make_shard, run, options, client)
    return [*done, run_stage(run, stage, lambda: task, run.query_shards(), how, then)]


def _make_shard(run: Run, options: MineSubstitute, client: Client | None, key: str) -> Shard:
    if client is not None:
        return written_shard(
            run,
            options,
            client,
            load_prompt(options.prompt),
            list(substitute_tasks(run, options, key)),
            key,
        )
    made = list(
        _substituted(run, options, key)
        if options.rewriter == "lexical"
        else _swapped(run, options, key)
    )
    return made_shard(run, options.name, made, key)


class Given(NamedTuple):
    """A text and the word that it was given.

    Attributes:
        target: a row of TARGETS.
        original: the text.
        text: the text with the word put in.
        edit: where, and the word as it stands there.
        detail: what `made_documents` says of it.
    """

    target: dict[str, Any]
    original: str
    text: str
    edit: Edit
    detail: dict[str, Any]


def _given(run: Run, options: MineSubstitute, key: str) -> Iterator[Given]:
    """Yield the texts of a shard that were given a word, in order of query, then choice."""
    folder = f"{run.INDEXES}/{options.name}"
    targets, texts = run.read(folder, key), dict[str, str]()
    for _, asked in originals_of(run, key, options.k):
        texts |= dict(zip(asked.parents, asked.texts, strict=True))
    for given in run.read(f"{folder}/{GIVEN_FOLDER}", key).to_pylist():
        target = {name: targets[name][given["target"]].as_py() for name in targets.column_names}
        names = ("start", "end", "old", "lemma", "pos", "tag", "rating", "route")
        word = Word(0, 0, *(target[name] for name in names))
        original = texts[target["parent_id"]]
        text, edit = put(original, word, given["new"], target["opens"])
        detail = {
            "span": f"{edit.start}:{edit.end}",
            "old": word.surface,
            "new": edit.text,
            "old_lemma": word.lemma,
            "new_lemma": given["new_lemma"],
            "old_rating": word.rating,
            "new_rating": given["new_rating"],
            "route": word.route,
        }
        yield Given(target, original, text, edit, detail)


def substitute_tasks(run: Run, options: MineSubstitute, key: str) -> Iterator[Task]:
    """Ask a language model to fit the word in that each text was given."""
    queries = dict(
        zip(
            *(run.read(run.QUERIES, key)[name].to_pylist() for name in ("query_id", "text")),
            strict=True,
        )
    )
    guarded = {query_id: what.guarded for query_id, what in originals_of(run, key, options.k)}
    turns = Counter[str]()
    for given in _given(run, options, key):
        target, query_id = given.target, given.target["query_id"]
        fields = {
            "text": given.original,
            "kind": KINDS[target["route"]],
            "word": target["old"],
            "new": given.edit.text,
        }
        yield Task(
            query_id,
            target["parent_id"],
            turns[query_id],
            fields,
            Guard(given.original, queries[query_id], guarded[query_id]),
            partial(_change_check, given),
            target["rating"],
        )
        turns[query_id] += 1


def _change_check(given: Given, text: str) -> tuple[str | None, dict[str, Any]]:
    """Return what is wrong with a rewritten text, and what is said of it."""
    made = change_of(given.original, text, given.edit.start, given.edit.end, given.edit.text)
    return made.reason, given.detail | {"new": made.new}


def _substituted(run: Run, options: MineSubstitute, key: str) -> Iterator[Negative]:
    """Put the words that were given into their texts."""
    for given in _given(run, options, key):
        target, detail = given.target, given.detail | {"meaning_effect": EFFECT}
        yield Negative(
            target["query_id"], target["parent_id"], given.text, detail, target["rating"]
        )


def _swapped(run: Run, options: MineSubstitute, key: str) -> Iterator[Negative]:
    """Exchange two phrases of each text."""
    asked = list(originals_of(run, key, options.k))
    texts = sorted({text for _, what in asked for text in what.texts})
    parsed = dict(zip(texts, load_parser(options.spacy_model)(texts), strict=True))
    for query_id, what in asked:
        for turn, (parent, text) in enumerate(zip(what.parents, what.texts, strict=True)):
            made = swap(
                text,
                parsed[text],
                options.seed,
                what.parents[:turn].count(parent),
                query_id,
                parent,
            )
            if made is not None:
                detail = {
                    "span": made.span,
                    "old": made.first,
                    "new": made.second,
                    "route": made.route,
                    "meaning_effect": EFFECT,
                }
                yield Negative(query_id, parent, made.text, detail, None)
