import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25L, BM25Okapi, BM25Plus
from toy import QUERY_TEXTS, Toy, rows, toy_run

from miner.engine import How
from miner.errors import UserError
from miner.search.bm25 import Bm25, MineBm25, index_bm25, mine_bm25
from miner.search.kernels import EMPTY, key_of, replace_worst, worst
from miner.search.tokens import IndexBm25
from miner.search.topk import in_order

NO_SOURCE = {"candidates": {}, "similarity": None}
LETTERS = random.Random(5)
# Forty texts over 26 words of falling frequency: "a" is in nearly all, so that its idf is negative;
# some texts have the same words.
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
TEXTS = {
    f"d{n:02d}": (
        "",
        " ".join(LETTERS.choices(ALPHABET, [60 / rank for rank in range(1, 27)], k=12)),
    )
    for n in range(40)
}
LETTER_TOY = {
    "documents": TEXTS | {"d40": TEXTS["d07"], "d41": TEXTS["d03"]},
    "queries": {"q1": "a b", "q2": "k z k", "q3": "e", "q4": "a", "q5": "x y z c"},
    **NO_SOURCE,
}


KINDS = {"okapi": BM25Okapi, "l": BM25L, "plus": BM25Plus}
SETTINGS = [
    MineBm25(k=9),
    MineBm25(k=9, k1=0.9, b=0.4, epsilon=0.1),
    MineBm25(k=9, b=1.0),
    MineBm25(k=9, variant="l"),
    MineBm25(k=9, variant="l", k1=1.2, b=0.3, delta=0.25),
    MineBm25(k=9, variant="plus"),
    MineBm25(k=9, variant="plus", k1=2.0, b=0.0, delta=0.5),
]


def reference(texts, query, options, pattern=r"\w+"):
    """(-score, row) of every document that shares a word with the query and scores above zero,
    as rank_bm25 says, best first.
    """
    tokens, asked = (
        [re.findall(pattern, text.lower()) for text in texts],
        re.findall(pattern, query.lower()),
    )
    delta = {} if options.delta is None else {"delta": options.delta}
    last = {"epsilon": options.epsilon} if options.variant == "okapi" else delta
    scores = KINDS[options.variant](tokens, k1=options.k1, b=options.b, **last).get_scores(asked)
    # as float32, which the table keeps: documents that score the same but for the last bits are a
    # tie, whichever way each formula rounds
    return sorted(
        (-float(np.float32(score)), row)
        for row, score in enumerate(scores)
        if score > 0 and set(tokens[row]) & set(asked)
    )


@pytest.mark.parametrize("engine", ["quarry", "rank-bm25"])
@pytest.mark.parametrize(
    "options", SETTINGS, ids=lambda options: f"{options.variant}-{options.k1}-{options.b}"
)
@pytest.mark.parametrize("pattern", [r"(?u)\b\w+\b", r"[b-z]"])
def test_scores_and_order_are_rank_bm25s(tmp_path, options, engine, pattern):
    run = toy_run(tmp_path, **LETTER_TOY)
    index_bm25(run, IndexBm25(token_pattern=pattern), How())
    mine_bm25(run, options.model_copy(update={"engine": engine}), How())
    ids = sorted(LETTER_TOY["documents"])
    texts = [LETTER_TOY["documents"][doc_id][1] for doc_id in ids]
    found = rows(
        run, "3_candidates/bm25", "query_id", "rank", "doc_id", "score", "source", "parent_id"
    )
    for query_id, text in LETTER_TOY["queries"].items():
        expected = reference(texts, text, options, pattern)
        mine = [row[1:] for row in found if row[0] == query_id]
        assert len(mine) >= min(9, len(expected))
        assert [(rank, doc_id) for rank, doc_id, *_ in mine] == [
            (rank, ids[row]) for rank, (_, row) in enumerate(expected[: len(mine)], 1)
        ]
        assert [score for *_, score, _, _ in mine] == pytest.approx(
            [-score for score, _ in expected[: len(mine)]], rel=1e-6
        )
        assert {row[3:] for row in mine} <= {("bm25", None)}
    assert len(found) > 30


def test_a_word_in_most_documents_keeps_rank_bm25s_floor(tmp_path):
    run = toy_run(tmp_path, **LETTER_TOY)
    index_bm25(run, IndexBm25(), How())
    model = BM25Okapi([text.split() for _, (_, text) in sorted(LETTER_TOY["documents"].items())])
    assert model.idf["a"] == 0.25 * model.average_idf > 0  # the rule for a negative idf is at work
    found, scores = Bm25(run, MineBm25()).search(["a"], 50)
    assert scores[0][found[0] >= 0] == pytest.approx(
        sorted(filter(None, model.get_scores(["a"])), reverse=True), rel=1e-7
    )


def test_other_parameters_need_no_new_index(tmp_path):
    run = toy_run(tmp_path, **LETTER_TOY)
    index_bm25(run, IndexBm25(), How())
    mine_bm25(run, MineBm25(), How())
    other = mine_bm25(run, MineBm25(name="bm25-plus", index="bm25", variant="plus"), How())
    assert other.inputs["2_index/bm25"] == run.find("3_candidates/bm25").inputs["2_index/bm25"]
    both = [
        rows(run, f"3_candidates/{name}", "query_id", "doc_id", "score")
        for name in ("bm25", "bm25-plus")
    ]
    assert both[0] != both[1] and len(both[1]) > 30


@given(
    st.lists(st.integers(-2, 5), min_size=1, max_size=60).flatmap(
        lambda s: st.permutations(list(enumerate(s)))
    ),
    st.integers(1, 60),
)
@settings(max_examples=200, deadline=None)
def test_the_heap_keeps_the_best_and_of_equal_scores_the_lower_rows(offered, depth):
    heap = np.full(depth, EMPTY)
    for row, score in offered:
        key = key_of(score, row)
        if key > heap[0]:
            replace_worst(heap, key)
    expected = sorted((-score, row) for row, score in offered)[:depth]
    found, scores = in_order(heap[None])
    size = len(expected)
    assert [
        (-score, row) for row, score in zip(found[0, :size], scores[0, :size], strict=True)
    ] == expected
    assert set(found[0, size:]) <= {-1} and set(scores[0, size:]) <= {-np.inf}
    assert worst(heap) == (-expected[-1][0] if size == depth else -np.inf)


@given(st.integers(0, 10**6), st.integers(1, 30))
@settings(max_examples=8, deadline=None)
def test_any_number_of_shards_is_one_answer(tmp_path_factory, seed, k):
    letters = random.Random(seed)
    falling = [60 / rank for rank in range(1, 27)]
    texts = {
        f"d{n:03d}": ("", " ".join(letters.choices(ALPHABET, falling, k=letters.randint(0, 9))))
        for n in range(51)
    }
    queries = {
        f"q{n}": " ".join(letters.choices(ALPHABET, k=letters.randint(0, 4))) or "?"
        for n in range(6)
    }
    toy = {
        "documents": texts,
        "queries": queries,
        "positives": {"q0": ["d003", "d050"]},
        **NO_SOURCE,
    }
    answers = []
    for shards in (1, 3, 17):
        run = toy_run(tmp_path_factory.mktemp("run"), **toy, shard_documents=51 // shards)
        index_bm25(run, IndexBm25(), How())
        mine_bm25(run, MineBm25(k=k), How())
        answers.append([run.read("3_candidates/bm25", key) for key in run.query_shards()])
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    "options", [MineBm25(), MineBm25(variant="plus", b=0.0)], ids=["okapi", "plus"]
)
def test_in_shards_of_many_blocks_nothing_of_the_best_is_left_out(tmp_path, options):
    letters = random.Random(3)
    texts = [
        " ".join(
            letters.choices(
                ALPHABET, [60 / rank for rank in range(1, 27)], k=letters.randint(1, 12)
            )
        )
        for _ in range(700)
    ]
    run = toy_run(
        tmp_path,
        documents={f"d{n:03d}": ("", text) for n, text in enumerate(texts)},
        **NO_SOURCE,
        shard_documents=400,
    )
    index_bm25(run, IndexBm25(), How())
    queries = ["a b", "k z k", "e", "x y z c"]
    found, scores = Bm25(run, options).search(queries, 4)
    for number, query in enumerate(queries):
        expected = reference(texts, query, options)[:4]
        assert found[number].tolist() == [row for _, row in expected]
        assert scores[number] == pytest.approx([-score for score, _ in expected], rel=1e-6)


def test_equal_scores_are_in_order_of_doc_id_and_copies_are_not_lost(tmp_path):
    texts = {
        f"d{number:02d}": ("", "same words here" if number < 15 else f"others {number}")
        for number in range(40)
    }
    toy = {"documents": texts, "queries": {"q": "same"}, "positives": {"q": ["d00"]}}
    for shards in (3, 40):
        run = toy_run(tmp_path / str(shards), **toy, **NO_SOURCE, shard_documents=shards)
        index_bm25(run, IndexBm25(), How())
        mine_bm25(run, MineBm25(k=3, b=1.0), How())
        assert rows(run, "3_candidates/bm25", "doc_id", "rank") == [
            ("d00", 1),
            ("d01", 2),
            ("d02", 3),
            ("d03", 4),
        ]


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
        assert [
            row[1]
            for row in rows(run, "3_candidates/bm25", "query_id", "doc_id")
            if row[0] == query_id
        ] == ranked[:until]


def test_a_wrong_pattern_and_a_pattern_that_finds_nothing_are_said(tmp_path):
    run = toy_run(tmp_path, **NO_SOURCE)
    with pytest.raises(UserError, match="no regular expression"):
        index_bm25(run, IndexBm25(token_pattern="("), How())
    with pytest.raises(UserError, match="no document has a token"):
        index_bm25(run, IndexBm25(token_pattern="[0-9]{9}"), How())


def test_mining_needs_the_index_and_shards_do_not_matter(tmp_path):
    results = []
    for shards in (1, 2, 5):
        run = toy_run(
            tmp_path / str(shards), shard_queries=shards, shard_documents=shards, **NO_SOURCE
        )
        with pytest.raises(UserError, match="quarry index bm25"):
            mine_bm25(run, MineBm25(), How())
        index_bm25(run, IndexBm25(), How())
        mine_bm25(run, MineBm25(k=3), How(workers=2))
        results.append(rows(run, "3_candidates/bm25", "query_id", "doc_id", "rank", "score"))
    assert results[0] == results[1] == results[2]
