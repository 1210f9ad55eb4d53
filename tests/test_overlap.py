"""Lexical overlap, held against a plain reference: tokens, sets, logarithms."""

import math

import numpy as np
import pytest
from toy import DOCUMENT_TEXTS, GOLD, HOW, QUERY_TEXTS, rows, toy_run

from miner.engine import How
from miner.errors import UserError
from miner.files import Stopwatch
from miner.search.bm25 import index_bm25
from miner.search.tokens import IndexBm25, tokenizer
from miner.stages import Stage, begin, finish
from miner.tables import full_text
from scoring.judge.overlap import JudgeOverlap, judge_overlap

QUERIES = QUERY_TEXTS | {
    "q2": "how do bees bees talk; a BEE's dance",  # repeats count once
    "q3": "zzz qqq",  # no word of the corpus
    "q5": "unheardof lamps lit by moon",
    "q6": "!?",
}
POSITIVES = GOLD | {"q6": ["d02"]}
FOUND = {
    "x": {
        "q1": ["d08", "d01", "d09"],
        "q2": ["d02", "d08", "d12"],
        "q3": ["d09"],
        "q4": ["d05", "d11", "d06"],
        "q5": ["d06", "d05"],
    },
    "y": {"q1": ["d08", "d12"], "q4": ["d08", "d06"], "q6": ["d01"]},
    "random": {},
}
TOY = {"queries": QUERIES, "positives": POSITIVES, "candidates": FOUND, "similarity": None}


def expected(options, documents=DOCUMENT_TEXTS, found=FOUND):
    cut = tokenizer(options)
    tokens = {doc_id: set(cut(full_text(*texts))) for doc_id, texts in documents.items()}

    def idf(word):
        count = sum(word in words for words in tokens.values())
        return math.log(1 + (len(tokens) - count + 0.5) / (count + 0.5)) if count else 0.0

    said = {}
    for query_id, text in QUERIES.items():
        words = list(dict.fromkeys(cut(text)))
        whole = sum(idf(word) for word in words)
        asked = {doc_id for source in found.values() for doc_id in source.get(query_id, [])} | set(
            POSITIVES[query_id]
        )
        for doc_id in asked:
            said[query_id, doc_id] = (
                sum(idf(word) for word in words if word in tokens[doc_id]) / whole
                if whole
                else None
            )
    return said


def judged(run, how=HOW, **options):
    judge_overlap(run, JudgeOverlap(**options), how)
    return rows(
        run, "4_judgments/overlap", "query_id", "doc_id", "judge", "score", "verdict", "reason"
    )


@pytest.mark.parametrize(
    "options",
    [
        IndexBm25(),
        IndexBm25(stemmer="english"),
        IndexBm25(stop_words="english", stemmer="english"),
        IndexBm25(token_pattern=r"\w\w"),
    ],
    ids=["words", "stems", "stop words", "pattern"],
)
def test_overlap_is_that_of_a_plain_reference(tmp_path, options):
    run = toy_run(tmp_path / "run", **TOY)
    index_bm25(run, options, HOW)
    found, plain = judged(run), expected(options)
    assert [row[:2] for row in found] == sorted(plain)
    assert {row[2:3] + row[4:] for row in found} == {("overlap", None, None)}
    for query_id, doc_id, _, score, *_ in found:
        value = plain[query_id, doc_id]
        assert score is None if value is None else score == pytest.approx(value, rel=1e-6, abs=0), (
            query_id,
            doc_id,
        )
    values = [score for *_, score, _, _ in found if score is not None]
    assert {row[0] for row in found if row[3] is None} >= {"q6"}
    assert 0 <= min(values) <= max(values) <= 1
    assert len(set(values)) > 4


def test_exact_values_by_hand(tmp_path):
    documents = {
        "a": ("Copper", "wire"),
        "b": ("", "copper coin"),
        "c": ("", "tin"),
        "d": ("", "tin wire copper"),
    }
    toy = {
        "documents": documents,
        "queries": {"q": "Copper wire, copper tin unknown", "r": "coin"},
        "positives": {"q": ["a"], "r": ["b"]},
        "candidates": {"x": {"q": ["b", "c", "d"], "r": ["d"]}, "random": {}},
        "similarity": None,
    }
    run = toy_run(tmp_path / "run", **toy)
    index_bm25(run, IndexBm25(name="words"), HOW)
    copper, two = math.log(1 + 1.5 / 3.5), math.log(1 + 2.5 / 2.5)  # in 3 and in 2 of 4 documents
    whole = copper + two + two  # the unknown word counts in neither sum
    scores = {row[:2]: row[3] for row in judged(run, index="words")}
    assert scores == {
        ("q", "a"): np.float32((copper + two) / whole),
        ("q", "b"): np.float32(copper / whole),
        ("q", "c"): np.float32(two / whole),
        ("q", "d"): 1.0,
        ("r", "b"): 1.0,
        ("r", "d"): 0.0,
    }


def test_neither_shards_nor_workers_change_a_row(tmp_path):
    found = []
    for number, (how, queries, documents) in enumerate(
        [(HOW, 10, 20), (How(workers=2), 2, 5), (HOW, 1, 4), (HOW, 3, 1)]
    ):
        run = toy_run(
            tmp_path / str(number), **TOY, shard_queries=queries, shard_documents=documents
        )
        index_bm25(run, IndexBm25(), HOW)
        found.append(judged(run, how))
    assert found[0] == found[1] == found[2] == found[3]


def test_empty_documents_and_a_shard_without_a_word(tmp_path):
    documents = {"a": ("", ""), "b": ("", "?!"), "c": ("", "tin"), "d": ("", "tin tin")}
    toy = {
        "documents": documents,
        "queries": {"q": "tin"},
        "positives": {"q": ["a"]},
        "candidates": {"x": {"q": ["b", "c", "d"]}, "random": {}},
    }
    run = toy_run(tmp_path / "run", **toy, similarity=None, shard_documents=2)
    index_bm25(run, IndexBm25(), HOW)
    assert [row[3] for row in judged(run)] == [0.0, 0.0, 1.0, 1.0]


def test_without_its_index_it_says_what_to_run(tmp_path):
    run = toy_run(tmp_path / "run", **TOY)
    with pytest.raises(
        UserError, match=r"2_index/bm25 does not exist; run `quarry index bm25` first"
    ):
        judged(run)
    stage = Stage("2_index/dense", "documents", {}, {"1_tables": run.tables().fingerprint})
    begin(run, stage, force=False)
    finish(
        run,
        stage,
        Stopwatch(),
        rows={},
        drops={},
        facts={"kind": "dense"},
        shards=0,
        resumed_shards=0,
    )
    with pytest.raises(
        UserError,
        match=("2_index/dense is a dense index; expected one that `quarry index bm25` made"),
    ):
        judged(run, index="dense")
