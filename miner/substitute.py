"""positives + chosen words -> made documents and candidates: negatives in which one word, or the place of two phrases, is changed.

Words are picked and given out by `miner.slots`; here they are put into the texts. The other rewriter, `swap`, needs no words: two phrases
of one kind exchange places within a text ("a man on a horse", "a horse on a man").
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from miner.concreteness import Word
from miner.edits import put
from miner.engine import How
from miner.made import FOLDER, made_id
from miner.options import MineSubstitute
from miner.parsing import load_parser, parser_fingerprint
from miner.slots import GIVEN_FOLDER, asked_of, find_slots
from miner.store import Manifest, Run, Shard, Stage, run_stage
from miner.swap import swap
from miner.tables import CANDIDATES, MADE

EFFECT = "change"  # what a substitution does to the meaning: the text speaks of another thing, attribute or relation


class Negative(NamedTuple):
    """A made text of a query, with what `made_documents` says of it."""

    query_id: str
    parent_id: str
    text: str
    detail: dict[str, Any]
    score: float | None


def mine_substitute(run: Run, options: MineSubstitute, how: How) -> list[Manifest]:
    """Make negatives by changing words: positives -> 2_index/<name> (the words), 3_candidates/<name>.

    Raises:
        UserError: there are no tables, no such parser, encoder or lexicon.
    """
    inputs, done = {"1_tables": run.tables().fingerprint}, list[Manifest]()
    if options.rewriter == "lexical":
        done.append(find_slots(run, options, how))
        inputs[done[0].stage] = done[0].fingerprint
    stage = Stage(f"3_candidates/{options.name}", "candidates", options.record(), inputs, model=parser_fingerprint(options.spacy_model))
    facts = {"searched_with": "nothing: documents are made"}  # so that nobody asks how well this source finds positives
    return [*done, run_stage(run, stage, lambda: partial(_make_shard, run, options), run.query_shards(), how, lambda: facts)]


def _make_shard(run: Run, options: MineSubstitute, key: str) -> Shard:
    made = list(_substituted(run, options, key) if options.rewriter == "lexical" else _swapped(run, options, key))
    kept, seen, rank = list[tuple[Negative, int]](), set[tuple[str, str]](), dict[str, int]()
    for negative in made:
        if (negative.query_id, negative.text) not in seen:
            seen.add((negative.query_id, negative.text))
            rank[negative.query_id] = rank.get(negative.query_id, 0) + 1
            kept.append((negative, rank[negative.query_id]))
    documents = {made_id(one.text, one.parent_id): one for one, _ in kept}
    rows = [(one.query_id, made_id(one.text, one.parent_id), options.name, place, one.score, one.parent_id) for one, place in kept]
    listed = [(doc_id, documents[doc_id].text, documents[doc_id].parent_id, documents[doc_id].detail) for doc_id in sorted(documents)]
    queries = run.read("1_tables/queries", key)["query_id"].to_pylist()
    missing = {"nothing_to_change": len(queries) - len(rank)} if len(rank) < len(queries) else {}
    return Shard({f"{FOLDER}/{key}": _table(listed, MADE.schema), key: _table(rows, CANDIDATES.schema)}, missing)


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)


def _substituted(run: Run, options: MineSubstitute, key: str) -> Iterator[Negative]:
    """Put the words that were given into their texts, in order of query, then choice."""
    folder = f"2_index/{options.name}"
    slots, texts = run.read(folder, key), dict[str, str]()
    for _, asked in asked_of(run, key, options.k):
        texts |= dict(zip(asked.parents, asked.texts, strict=True))
    for given in run.read(f"{folder}/{GIVEN_FOLDER}", key).to_pylist():
        slot = {name: slots[name][given["slot"]].as_py() for name in slots.column_names}
        word = Word(0, 0, slot["start"], slot["end"], slot["old"], slot["lemma"], slot["pos"], slot["tag"], slot["rating"], slot["route"])
        text, edit = put(texts[slot["parent_id"]], word, given["new"], slot["opens"])
        detail = {
            "span": f"{edit.start}:{edit.end}", "old": word.surface, "new": edit.text, "old_lemma": word.lemma,
            "new_lemma": given["new_lemma"],
            "old_rating": word.rating, "new_rating": given["new_rating"], "route": word.route, "meaning_effect": EFFECT,
        }  # fmt: skip
        yield Negative(slot["query_id"], slot["parent_id"], text, detail, word.rating)


def _swapped(run: Run, options: MineSubstitute, key: str) -> Iterator[Negative]:
    """Exchange two phrases of each text."""
    asked = list(asked_of(run, key, options.k))
    texts = sorted({text for _, what in asked for text in what.texts})
    parsed = dict(zip(texts, load_parser(options.spacy_model)(texts), strict=True))
    for query_id, what in asked:
        for turn, (parent, text) in enumerate(zip(what.parents, what.texts, strict=True)):
            made = swap(text, parsed[text], options.seed, what.parents[:turn].count(parent), query_id, parent)
            if made is not None:
                detail = {"span": made.span, "old": made.first, "new": made.second, "route": made.route, "meaning_effect": EFFECT}
                yield Negative(query_id, parent, made.text, detail, None)
