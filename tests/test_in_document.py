"""Spans of a query's own positives."""

import json
from itertools import pairwise

import pytest

from miner.corpus import Corpus, made_documents
from miner.engine import How
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestPairs
from miner.store import Run
from miner.words.in_document import MineInDocument, mine_in_document, spans_of

TEXT = (
    "Slate roofs last a century. They are heavy to carry. Thatch burns fast in summer! "
    "It needs care each year. Tiles are made of clay. Clay is dug in the north. "
    "Copper turns green in rain. Nobody knows who began it."
)


def run_of(path, texts, query="how long do slate roofs last"):
    file = path / "pairs.jsonl"
    rows = [{"query": f"{query} {n}", "positive": text} for n, text in enumerate(texts)]
    file.write_text("\n".join(map(json.dumps, rows)))
    run = Run(path / "run")
    ingest(run, IngestPairs(file=str(file), shard_queries=2), How())
    return run


@pytest.mark.parametrize("pick", ["hard", "random"])
def test_spans_are_whole_sentences_that_overlap_neither_the_answer_nor_each_other(tmp_path, pick):
    run = run_of(tmp_path, [TEXT, TEXT + " More of it.", "One sentence alone."])
    made = mine_in_document(run, MineInDocument(k=3, words=8, pick=pick), How(workers=2))
    assert made.drops == {"nothing_made": 1}
    documents = Corpus(run)
    seen = 0
    for key in run.query_shards():
        held = {}
        for row in made_documents(run, key).to_pylist():
            text = documents.texts(documents.rows([row["parent_id"]]))[0]
            start, end = map(int, row["detail"]["span"].split(":"))
            assert text[start:end] == row["text"] and row["text"][-1] in ".!"
            assert start == 0 or text[start - 2] in ".!"
            assert 8 <= len(row["text"].split()) <= 15
            assert "Slate roofs last" not in row["text"]  # the answer
            held.setdefault(row["parent_id"], []).append((start, end))
        for spans in held.values():
            spans.sort()
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
            seen += len(spans)
    assert seen == made.rows["candidates"] >= 4


def test_hard_spans_share_most_with_the_query():
    spans = spans_of(TEXT, "is clay dug", 4)
    best = max(spans, key=lambda one: one.share)
    assert "Clay is dug" in TEXT[best.start : best.end] and best.share == pytest.approx(1)
    assert min(one.share for one in spans) == 0


def test_random_spans_depend_on_seed_and_ids_alone(tmp_path):
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / name
        path.mkdir()
        run = run_of(path, [TEXT, TEXT + " More of it."])
        options = MineInDocument(k=1, words=4, pick="random", seed=seed)
        mine_in_document(run, options, How())
        keys = run.query_shards()
        texts.append([made_documents(run, key)["text"].to_pylist() for key in keys])
    assert texts[0] == texts[1] != texts[2]
