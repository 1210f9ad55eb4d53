"""positives -> made documents and candidates: spans of the positive itself that say something else
(after RankGen's INBOOK negatives, Krishna et al. 2022; **reconstructed** for search).

RankGen's positive is the true continuation, its negatives other spans of the same book, of the same
length. Here the span of the positive that shares most with the query stands for the answer;
negatives are others of about as many words, sentences whole, none of which overlaps it or another.
A long document may answer twice: judge them.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

from miner.engine import How
from miner.made import Negative, made_shard
from miner.options import NAME, Options, option
from miner.query_shard import originals_of
from miner.seeds import generator
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run

SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s|$)|[。！？]+|$)", re.MULTILINE)
WORD_OF = re.compile(r"\w+")
LEAST_SHARE = 0.8  # of the words asked for, in a span at a document's end


class MineInDocument(Options):
    """Made negatives: other spans of a query's own positives."""

    name: str = option("in-document", "name of the source", pattern=NAME)
    k: int = option(2, "spans per query", short="-k", ge=1)
    words: int = option(60, "words of a span, at least: whole sentences", ge=1)
    pick: Literal["hard", "random"] = option(
        "hard", "those that share most with the query after the answer, or any"
    )
    seed: int = option(0, "seed of --pick random")


class Stretch(NamedTuple):
    """Whole sentences of a text: where they stand in it, and the share of the query's words that
    they have, weighed by how few sentences have them.
    """

    start: int
    end: int
    share: float


def mine_in_document(run: Run, options: MineInDocument, how: How) -> Manifest:
    """Cut spans out of positives: positives -> 3_candidates/<name>."""
    stage = Stage(
        f"{run.SOURCES}/{options.name}",
        "candidates",
        options.record(),
        run.table_input(),
        made_by="mine in-document",
    )
    facts = {"searched_with": "nothing: documents are made"}

    task = partial(_cut_shard, run, options)
    return run_stage(run, stage, lambda: task, run.query_shards(), how, lambda: facts)


def spans_of(text: str, query: str, words: int) -> list[Stretch]:
    """Return every run of whole sentences of at least so many words, one from each sentence on.

    >>> text = "Slate lasts. It is heavy. Thatch burns fast. It needs care."
    >>> [(one.start, one.end, one.share) for one in spans_of(text, "does thatch burn", 4)]
    [(0, 25, 0.0), (13, 44, 1.0), (26, 59, 1.0)]
    """
    places = [(found.start(), found.end()) for found in SENTENCE.finditer(text)]
    held = [WORD_OF.findall(text[start:end].lower()) for start, end in places]
    spread = Counter(word for sentence in held for word in set(sentence))
    weight = {
        word: math.log(1 + len(places) / spread[word])
        for word in set(WORD_OF.findall(query.lower()))
        if word in spread
    }
    total, out = sum(weight.values()) or 1.0, []
    for first, (start, _) in enumerate(places):
        count, last = 0, first
        while last < len(places) and count < words:
            count, last = count + len(held[last]), last + 1
        if count >= LEAST_SHARE * words:
            shared = {word for sentence in held[first:last] for word in sentence if word in weight}
            share = sum(weight[word] for word in sorted(shared)) / total
            out.append(Stretch(start, places[last - 1][1], share))
    return out


def other_spans(spans: Sequence[Stretch], order: Sequence[int], count: int) -> list[Stretch]:
    """Return spans that overlap neither the answer, the first of the highest share, nor each
    other: the first `count` in an order of places.
    """
    taken = [max(spans, key=lambda one: one.share)] if spans else []
    for place in order:
        one = spans[place]
        if len(taken) <= count and all(one.end <= o.start or o.end <= one.start for o in taken):
            taken.append(one)
    return taken[1:]


def _cut_shard(run: Run, options: MineInDocument, key: str) -> Shard:
    return made_shard(run, options.name, list(_cut_spans(run, options, key)), key)


def _cut_spans(run: Run, options: MineInDocument, key: str) -> Iterator[Negative]:
    queries = run.read(run.QUERIES, key)
    asked = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    for query_id, what in originals_of(run, key, options.k):
        texts = dict(zip(what.parents, what.texts, strict=True))
        for parent, count in Counter(what.parents).items():
            spans = spans_of(texts[parent], asked[query_id], options.words)
            if options.pick == "hard":
                order = sorted(range(len(spans)), key=lambda place: -spans[place].share)
            else:
                draw = generator(options.seed, "in-document", query_id, parent)
                order = draw.permutation(len(spans)).tolist()
            for one in other_spans(spans, order, count):
                detail = {"span": f"{one.start}:{one.end}", "route": options.pick}
                text = texts[parent][one.start : one.end]
                yield Negative(query_id, parent, text, detail, one.share)
