import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi
from toy import QUERY_TEXTS, Toy, rows, toy_run

from miner.bm25 import _search, index_bm25, mine_bm25, tokenizer
from miner.engine import How
from miner.errors import UserError
from miner.options import IndexBm25, MineBm25

NO_SOURCE = {"candidates": {}, "similarity": None}
LETTERS = random.Random(5)
# Forty texts over 26 words of falling frequency: "a" is in nearly all, so that its idf is negative; some texts have the same words.
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
TEXTS = {f"d{n:02d}": ("", " ".join(LETTERS.choices(ALPHABET, [60 / rank for rank in range(1, 27)], k=12))) for n in range(40)}
LETTER_TOY = {
    "documents": TEXTS | {"d40": TEXTS["d07"], "d41": TEXTS["d03"]},
    "queries": {"q1": "a b", "q2": "k z k", "q3": "e", "q4": "a", "q5": "x y z c"},
    **NO_SOURCE,
}


def reference(texts, query, options):
    """(-score, document number) of every document that scores above zero, as rank_bm25 says, best first."""
    tokens = [re.findall(options.token_pattern, text.lower()) for text in texts]
    scores = BM25Okapi(tokens, k1=options.k1, b=options.b, epsilon=options.epsilon).get_scores(
        re.findall(options.token_pattern, query.lower())
    )
    # rounded: documents that score the same up to the last bits are a tie, whichever way each formula rounds them
    return sorted((-round(score, 9), number) for number, score in enumerate(scores) if score > 1e-9)


@pytest.mark.parametrize("index", [IndexBm25(), IndexBm25(k1=0.9, b=0.4, epsilon=0.1), IndexBm25(b=1.0, token_pattern=r"[b-z]")])
def test_scores_and_order_are_rank_bm25s(tmp_path, index):
    run = toy_run(tmp_path, **LETTER_TOY)
    index_bm25(run, index, How())
    mine_bm25(run, MineBm25(k=9), How())
    ids = sorted(LETTER_TOY["documents"])
    texts = [LETTER_TOY["documents"][doc_id][1] for doc_id in ids]
    found = rows(run, "3_candidates/bm25", "query_id", "rank", "doc_id", "score", "source", "parent_id")
    for query_id, text in LETTER_TOY["queries"].items():
        expected = reference(texts, text, index)
        mine = [row[1:] for row in found if row[0] == query_id]
        assert len(mine) >= min(9, len(expected))
        assert [(rank, doc_id) for rank, doc_id, *_ in mine] == [(rank, ids[row]) for rank, (_, row) in enumerate(expected[: len(mine)], 1)]
        assert [score for *_, score, _, _ in mine] == pytest.approx([-score for score, _ in expected[: len(mine)]], rel=1e-6)
        assert {row[3:] for row in mine} <= {("bm25", None)}
    assert len(found) > 30


def test_index_weights_agree_with_rank_bm25_to_twelve_digits(tmp_path):
    run = toy_run(tmp_path, **LETTER_TOY)
    index_bm25(run, IndexBm25(), How())
    folder = run.path / "2_index/bm25"
    terms = run.read("2_index/bm25", "terms")["term"].to_pylist()
    indptr, rows_, weights = (np.load(folder / f"{name}.npy") for name in ("indptr", "rows", "weights"))
    texts = [text.split() for _, (_, text) in sorted(LETTER_TOY["documents"].items())]
    okapi = BM25Okapi(texts)
    assert okapi.idf["a"] == 0.25 * okapi.average_idf > 0  # the rule for a negative idf is at work
    assert sorted(terms) == sorted(okapi.idf)
    for number, term in enumerate(terms):
        mine = np.zeros(len(texts))
        mine[rows_[indptr[number] : indptr[number + 1]]] = weights[indptr[number] : indptr[number + 1]]
        np.testing.assert_allclose(mine, okapi.get_scores([term]), rtol=1e-12)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_the_heap_keeps_the_best_and_of_equal_scores_the_lower_rows(scores, depth):
    depth, width = min(depth, len(scores)), len(scores)
    out_rows, out_scores = np.full((1, depth), -1), np.full((1, depth), -np.inf)
    matrix = np.array([0, width]), np.arange(width, dtype=np.int32), np.array(scores, float)
    _search(*matrix, np.array([0, 1]), np.array([0]), width, out_rows, out_scores)
    expected = sorted((-score, row) for row, score in enumerate(scores) if score > 0)[:depth]
    assert sorted((-score, row) for row, score in zip(out_rows[0], out_scores[0], strict=True) if row >= 0) == expected


def test_equal_scores_are_in_order_of_doc_id_and_copies_are_not_lost(tmp_path):
    texts = {f"d{number:02d}": ("", "same words here" if number < 15 else f"others {number}") for number in range(40)}
    toy = {"documents": texts, "queries": {"q": "same"}, "positives": {"q": ["d00"]}}
    for shards in (3, 40):
        run = toy_run(tmp_path / str(shards), **toy, **NO_SOURCE, shard_documents=shards)
        index_bm25(run, IndexBm25(b=1.0), How())
        mine_bm25(run, MineBm25(k=3), How())
        assert rows(run, "3_candidates/bm25", "doc_id", "rank") == [("d00", 1), ("d01", 2), ("d02", 3), ("d03", 4)]


def test_a_query_with_no_known_word_finds_nothing(tmp_path):
    run = toy_run(tmp_path, queries=QUERY_TEXTS | {"q1": "zyzzyva ???"}, **NO_SOURCE)
    index_bm25(run, IndexBm25(), How())
    mine_bm25(run, MineBm25(), How())
    found = rows(run, "3_candidates/bm25", "query_id")
    assert ("q1",) not in found and ("q2",) in found


def test_k_counts_documents_that_are_no_positives(tmp_path):
    run = toy_run(tmp_path, **NO_SOURCE)
    index_bm25(run, IndexBm25(), How())
    mine_bm25(run, MineBm25(k=2), How())
    mine_bm25(run, MineBm25(k=12), How(force=True))
    deep = rows(run, "3_candidates/bm25", "query_id", "doc_id", "rank")
    mine_bm25(run, MineBm25(k=2), How(force=True))
    for query_id, gold in Toy().positives.items():
        ranked = [doc_id for other, doc_id, _ in deep if other == query_id]
        negatives = [doc_id for doc_id in ranked if doc_id not in gold][:2]
        until = ranked.index(negatives[-1]) + 1 if len(negatives) == 2 else len(ranked)
        assert [row[1] for row in rows(run, "3_candidates/bm25", "query_id", "doc_id") if row[0] == query_id] == ranked[:until]


def test_stop_words_and_stemmer():
    assert tokenizer(IndexBm25())("The Bees' dances!") == ["the", "bees", "dances"]
    assert tokenizer(IndexBm25(stop_words="english", stemmer="english"))("The Bees' dances!") == ["bee", "danc"]


def test_a_wrong_pattern_and_a_pattern_that_finds_nothing_are_said(tmp_path):
    run = toy_run(tmp_path, **NO_SOURCE)
    with pytest.raises(UserError, match="no regular expression"):
        index_bm25(run, IndexBm25(token_pattern="("), How())
    with pytest.raises(UserError, match="no document has a token"):
        index_bm25(run, IndexBm25(token_pattern="[0-9]{9}"), How())


def test_mining_needs_the_index_and_shards_do_not_matter(tmp_path):
    results = []
    for shards in (1, 2, 5):
        run = toy_run(tmp_path / str(shards), shard_queries=shards, shard_documents=shards, **NO_SOURCE)
        with pytest.raises(UserError, match="quarry index bm25"):
            mine_bm25(run, MineBm25(), How())
        index_bm25(run, IndexBm25(), How())
        mine_bm25(run, MineBm25(k=3), How(workers=2))
        results.append(rows(run, "3_candidates/bm25", "query_id", "doc_id", "rank", "score"))
    assert results[0] == results[1] == results[2]
