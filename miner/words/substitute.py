"""positives + chosen words -> made documents and candidates: negatives in which one word, or the
place of two phrases, is changed.

Words are picked and given out by `miner.words.targets`; here they are put into the texts. The other
rewriter, `swap`, needs no words: two phrases of one kind exchange places within a text ("a man on a
horse", "a horse on a man"). With rewriter `llm` a language model is told the word that was picked,
and finds the other one itself.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from miner.engine import How
from miner.files import fingerprint
from miner.llm.client import Client
from miner.llm.generate import Task, facts, model_of, one_process, written_shard
from miner.llm.prompts import load_prompt
from miner.llm.verify import Guard
from miner.made import Negative, made_shard
from miner.query_shard import originals_of
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.words.concreteness import Word
from miner.words.edits import change_of, lemmas_of, put
from miner.words.kinds import PARTS
from miner.words.parsing import load_parser, parser_fingerprint
from miner.words.swap import swap
from miner.words.targets import GIVEN_FOLDER, find_targets, words_in
from miner.words.vocabulary import MineSubstitute
from miner.words.wordnet import load_wordnet

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
        algorithm=2,
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
            run, options, client, load_prompt(options.prompt), list(_tasks(run, options, key)), key
        )
    made = list(
        _substituted(run, options, key)
        if options.rewriter == "lexical"
        else _swapped(run, options, key)
    )
    return made_shard(run, options.name, made, key)


def _tasks(run: Run, options: MineSubstitute, key: str) -> Iterator[Task]:
    """Ask a language model for another word in place of the first that was picked of each text."""
    targets, asked = (
        run.read(f"{run.INDEXES}/{options.name}", key).to_pylist(),
        dict(originals_of(run, key, options.k)),
    )
    queries = dict(
        zip(
            *(run.read(run.QUERIES, key)[name].to_pylist() for name in ("query_id", "text")),
            strict=True,
        )
    )
    turns, seen = Counter[str](), set[int]()
    for target in targets:
        if target["text"] in seen:
            continue
        seen.add(target["text"])
        what = asked[target["query_id"]]
        text = what.texts[what.parents.index(target["parent_id"])]
        fields = {"text": text, "kind": KINDS[target["route"]], "word": target["old"]}
        check = partial(_change_check, text, target, words_in(what.guarded))
        guard = Guard(text, queries[target["query_id"]], what.guarded)
        yield Task(
            target["query_id"],
            target["parent_id"],
            turns[target["query_id"]],
            fields,
            guard,
            check,
            target["rating"],
        )
        turns[target["query_id"]] += 1


def _change_check(
    original: str, target: dict[str, Any], forbidden: set[str], text: str
) -> tuple[str | None, dict[str, Any]]:
    """Return what is wrong with a rewritten text, and what is said of it: one word was to
    change, into none that WordNet ties to it.
    """
    made = change_of(original, text, target["start"], target["end"], forbidden)
    reason, lemmas = made.reason, sorted(lemmas_of(made.new))
    if reason is None and any(
        load_wordnet().related(target["lemma"], lemma, PARTS.get(target["pos"], target["pos"]))
        for lemma in lemmas
    ):
        reason = "related_word"
    detail = {
        "span": f"{target['start']}:{target['end']}",
        "old": target["old"],
        "new": made.new,
        "old_lemma": target["lemma"],
        "old_rating": target["rating"],
        "route": target["route"],
    }
    return reason, detail


def _substituted(run: Run, options: MineSubstitute, key: str) -> Iterator[Negative]:
    """Put the words that were given into their texts, in order of query, then choice."""
    folder = f"{run.INDEXES}/{options.name}"
    targets, texts = run.read(folder, key), dict[str, str]()
    for _, asked in originals_of(run, key, options.k):
        texts |= dict(zip(asked.parents, asked.texts, strict=True))
    for given in run.read(f"{folder}/{GIVEN_FOLDER}", key).to_pylist():
        target = {name: targets[name][given["target"]].as_py() for name in targets.column_names}
        word = Word(
            0,
            0,
            target["start"],
            target["end"],
            target["old"],
            target["lemma"],
            target["pos"],
            target["tag"],
            target["rating"],
            target["route"],
        )
        text, edit = put(texts[target["parent_id"]], word, given["new"], target["opens"])
        detail = {
            "span": f"{edit.start}:{edit.end}",
            "old": word.surface,
            "new": edit.text,
            "old_lemma": word.lemma,
            "new_lemma": given["new_lemma"],
            "old_rating": word.rating,
            "new_rating": given["new_rating"],
            "route": word.route,
            "meaning_effect": EFFECT,
        }
        yield Negative(target["query_id"], target["parent_id"], text, detail, word.rating)


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
