"""A corpus without queries: spans of its documents are queries and positives."""

import json

import numpy as np
import pytest

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.ingest.crops import IngestCrops
from miner.ingest.ingest import ingest
from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
from miner.search.random_documents import MineRandom, mine_random
from miner.search.tokens import IndexBm25
from miner.store import Run
from scoring.export import export
from scoring.export_options import Export
from scoring.recipe import Select
from scoring.select import select

HOW = How()


def corpus(tmp_path, documents=30, words=400):
    """Documents of words that each stand once in the whole corpus, so that a word tells where it
    came from.
    """
    rows = [
        {
            "_id": f"d{n:02}",
            "title": f"title{n}",
            "text": " ".join(f"w{n}x{i}" for i in range(words)),
        }
        for n in range(documents)
    ]
    rows += [{"_id": "short", "text": "too few words"}, {"_id": "han", "text": "漢字仮名" * 20}]
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


def told(run):
    queries = [row for key in run.query_shards() for row in run.read(run.QUERIES, key).to_pylist()]
    positives = [
        row for key in run.query_shards() for row in run.read(run.POSITIVES, key).to_pylist()
    ]
    found = Corpus(run)
    of = {row["query_id"]: row["doc_id"] for row in positives}
    rows = found.rows([of[row["query_id"]] for row in queries])
    return [
        (of[row["query_id"]], row["text"], text)
        for row, text in zip(queries, found.texts(rows), strict=True)
    ]


def test_query_and_document_are_two_spans_of_one_document(tmp_path):
    run = Run(tmp_path / "run")
    made = ingest(run, IngestCrops(corpus=corpus(tmp_path), k=2), HOW)[0]
    assert made.rows["documents"] == 32 and made.rows["queries"] == 62
    assert made.drops["too_short"] == 1
    lengths, spans = [], []
    for doc_id, query, document in told(run):
        if doc_id == "han":
            assert set(query) <= set("漢字仮名") and 4 <= len(query) <= 40
            continue
        number = int(doc_id[1:])
        for text in (query, document):
            words = text.split()
            places = [int(word.split("x")[1]) for word in words if word[0] == "w"]
            assert places == sorted(places)
            assert all(word.startswith((f"w{number}x", "title")) for word in words)
            spans.append((places[-1] - places[0] + 1) / 256)
            lengths.append(len(places) / (places[-1] - places[0] + 1))
        assert query != document
    assert min(spans) > 0.05 and max(spans) <= 0.5 and 0.25 < np.mean(spans) < 0.35
    assert 0.87 < np.mean(lengths) < 0.93  # a tenth of the words is left out


def test_whole_documents_stay_as_they_are(tmp_path):
    run = Run(tmp_path / "run")
    ingest(run, IngestCrops(corpus=corpus(tmp_path), whole=True, delete=0.0), HOW)
    found = {doc_id: (query, document) for doc_id, query, document in told(run)}
    query, document = found["d03"]
    assert query in document and len(document.split()) == 401


def test_a_sample_has_queries_and_all_documents_stay(tmp_path):
    run = Run(tmp_path / "run")
    options = IngestCrops(corpus=corpus(tmp_path), sample=5, seed=1)
    made = ingest(run, options, HOW)[0]
    assert made.rows["documents"] == 32 and made.rows["queries"] <= 5
    again = Run(tmp_path / "again")
    ingest(again, options, HOW)
    assert told(run) == told(again)
    other = Run(tmp_path / "other")
    ingest(other, options.model_copy(update={"seed": 2}), HOW)
    assert told(run) != told(other)


def test_bare_text_goes_through_the_whole_flow(tmp_path):
    run = Run(tmp_path / "run")
    ingest(run, IngestCrops(corpus=corpus(tmp_path, words=60), delete=0.0), HOW)
    index_bm25(run, IndexBm25(), HOW)
    mine_bm25(run, MineBm25(k=5, variant="plus"), HOW)
    mine_random(run, MineRandom(k=5), HOW)
    select(run, Select(name="s", sources=("bm25", "random"), negatives=3), HOW)
    made = export(run, Export(name="s", format="n-tuple", negatives=3), HOW)
    assert made.rows["rows"] >= 28


def test_a_missing_column_is_said(tmp_path):
    with pytest.raises(UserError, match="corpus-text"):
        ingest(Run(tmp_path / "run"), IngestCrops(corpus=corpus(tmp_path), corpus_text="body"), HOW)
