import logging
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import WORDS, make_reranker
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import FOUND, GOLD, Toy, rows, toy_run, write_source

from cli.flow import make_plan
from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.models import pair_reading
from miner.models.hub import Reranker, gpu_count
from miner.models.reranker import (
    PairScorer,
    find_pair_reader,
    load_reranker,
    reranker_facts,
    reranker_fingerprint,
)
from miner.search.cross_encoder import MineCrossEncoder, mine_cross_encoder

LONG = " ".join(WORDS[29:])
QUERIES = ["moon bees", "", LONG * 3, "which metal", "lamps"]
DOCUMENTS = [
    "copper glass",
    "",
    LONG,
    LONG * 9,
    "bees",
    "x" * 90,
    "moon " * 16,
    "a b c d e f g h i j k l m n",
]
PAIRS = np.array(
    [(q, d) for q in range(5) for d in range(8) if (q * d) % 5 != 3] + [(0, 0), (2, 3)]
)
TEXTS = st.lists(
    st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=40).map(" ".join),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def model(reranker):
    """A CrossEncoder of sentence-transformers that any test may bend, and must leave as it was."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(reranker, device="cpu").eval()


def theirs(model, queries=QUERIES, documents=DOCUMENTS, pairs=PAIRS):
    return model.predict([(queries[q], documents[d]) for q, d in pairs], show_progress_bar=False)


def ours(model, budget=100, queries=QUERIES, documents=DOCUMENTS, pairs=PAIRS):
    return PairScorer(model, budget, model.activation_fn)(
        queries, documents, pairs[:, 0], pairs[:, 1]
    )


@contextmanager
def watched(model, break_over=None):
    seen = []

    def look(_, arguments):
        ids, mask = arguments[0]["input_ids"], arguments[0]["attention_mask"]
        if break_over is not None and ids.numel() > break_over:
            raise MemoryError
        seen.append((*ids.shape, int(mask.sum())))

    handle = model.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def asked_pairs(monkeypatch):
    """Record the (query text, document text) pairs that a model is asked for."""
    asked, call = [], PairScorer.__call__

    def spy(self, queries, documents, query, document):
        asked.extend(
            (queries[q], documents[d])
            for q, d in zip(query.tolist(), document.tolist(), strict=True)
        )
        assert len(set(queries)) == len(queries) and len(set(documents)) == len(documents)
        return call(self, queries, documents, query, document)

    with monkeypatch.context() as patch:
        patch.setattr(PairScorer, "__call__", spy)
        yield asked


@pytest.mark.parametrize("budget", [1, 100, 10**6])
def test_scores_are_those_of_predict(model, budget):
    with watched(model) as seen:
        found = ours(model, budget)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs(model), atol=1e-5)
    assert len(set(np.round(found, 4))) > 20
    assert sum(batch for batch, *_ in seen) == len(PAIRS)
    one = np.array([[3, 2]])
    np.testing.assert_allclose(ours(model, budget, pairs=one), theirs(model, pairs=one), atol=1e-5)
    assert ours(model, pairs=PAIRS[:0]).shape == (0,)


@given(TEXTS, TEXTS, st.integers(8, 40), st.integers(1, 200))
@settings(max_examples=12, deadline=None)
def test_any_texts_of_any_length_in_any_batches(model, queries, documents, length, budget):
    before, pairs = (
        model.max_seq_length,
        np.array([(q, d) for q in range(len(queries)) for d in range(len(documents))]),
    )
    try:
        model.max_seq_length = length
        with watched(model) as seen:
            found = ours(model, budget, queries, documents, pairs)
        np.testing.assert_allclose(found, theirs(model, queries, documents, pairs), atol=1e-5)
        assert all(batch * width <= budget or batch == 1 for batch, width, _ in seen)
        widths = [width for _, width, _ in seen]
        assert widths == sorted(widths, reverse=True) and max(widths) <= length
    finally:
        model.max_seq_length = before


def test_each_text_is_tokenized_once(model, monkeypatch):
    seen, tokenized = [], pair_reading.tokenized
    scorer = PairScorer(model, 100, model.activation_fn)
    assert scorer.reader is not None
    monkeypatch.setattr(
        pair_reading,
        "tokenized",
        lambda tokenizer, texts: seen.extend(texts) or tokenized(tokenizer, texts),
    )
    scorer(QUERIES, DOCUMENTS, PAIRS[:, 0], PAIRS[:, 1])
    assert seen == QUERIES + DOCUMENTS


def test_other_ways_to_read_are_left_to_predict(model):
    tokenizer = model.tokenizer
    assert find_pair_reader(model) is not None
    tokenizer.padding_side = "left"
    assert find_pair_reader(model) is not None
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    try:
        assert find_pair_reader(model) is None  # cut elsewhere: the trial sees it
        np.testing.assert_allclose(ours(model), theirs(model), atol=1e-5)
    finally:
        tokenizer.truncation_side = "right"
    model.prompts, model.default_prompt_name = {"rank": "copper "}, "rank"
    try:
        assert find_pair_reader(model) is None
        np.testing.assert_allclose(ours(model), theirs(model), atol=1e-5)
    finally:
        model.prompts, model.default_prompt_name = {}, None


def test_out_of_memory_halves_the_batch_and_goes_on(model, caplog):
    whole = ours(model, 10**6)
    with watched(model, break_over=120) as seen:
        np.testing.assert_allclose(ours(model, 640), whole, atol=1e-5)
    assert max(batch * width for batch, width, _ in seen) <= 120
    assert {record.levelno for record in caplog.records if record.name == "quarry"} == {
        logging.WARNING
    }
    with (
        watched(model, break_over=3),
        pytest.raises(UserError, match=r"even one pair at a time .*; give a lower --max-length"),
    ):
        ours(model, 64)


def test_activation_length_and_scale(model, reranker, other_reranker):
    def scores(**options):
        return load_reranker(Reranker(**{"reranker": reranker, "dtype": "fp32"} | options))(
            QUERIES, DOCUMENTS, PAIRS[:, 0], PAIRS[:, 1]
        )

    logits = scores(activation="identity")
    # this model's own is a sigmoid
    np.testing.assert_allclose(scores(), 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_allclose(scores(activation="sigmoid"), theirs(model), atol=1e-5)
    assert np.abs(scores(max_length=9, activation="identity") - logits).max() > 1e-3
    said = [
        reranker_facts(Reranker(reranker=name, device="cpu", dtype="fp32"))["score_scale"]
        for name in (reranker, other_reranker)
    ]
    assert said == ["probability", "logit"]
    plain = {"reranker": reranker, "dtype": "fp32", "device": "cpu"}
    others = (
        {},
        {"max_length": 9},
        {"activation": "sigmoid"},
        {"dtype": "bf16"},
        {"batch_tokens": 9},
        {"device": "cuda"},
        {"reranker": other_reranker},
    )
    assert len({reranker_fingerprint(Reranker(**plain | other)) for other in others}) == 7
    assert gpu_count(Reranker(**plain)) == 0


def test_models_that_give_no_one_score_are_refused(tmp_path):
    two, headless = (
        make_reranker(tmp_path / "two", 1, labels=2),
        make_reranker(tmp_path / "bare", 1, bare=True),
    )
    for folder, words in (
        (two, "gives 2 labels for a pair; expected one score"),
        (headless, "without a head that scores pairs"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_reranker(Reranker(reranker=str(folder)))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^reranker './no/such' is no folder"):
        reranker_fingerprint(Reranker(reranker="./no/such"))


def mine(run, reranker, sources=("bm25", "dense"), k=3, **options):
    return mine_cross_encoder(
        run,
        MineCrossEncoder(reranker=reranker, dtype="fp32", sources=sources, k=k, **options),
        How(),
    )


def by_predict(run, model):
    """Every score of every pair, by definition."""
    corpus = Corpus(run)
    ids, texts = (
        corpus.doc_ids(np.arange(len(corpus))).to_pylist(),
        corpus.texts(np.arange(len(corpus))),
    )
    queries = dict(rows_of_queries(run))
    scores = model.predict(
        [(text, document) for text in queries.values() for document in texts],
        show_progress_bar=False,
    )
    return dict(
        zip(
            ((query_id, doc_id) for query_id in queries for doc_id in ids),
            scores.tolist(),
            strict=True,
        )
    )


def rows_of_queries(run):
    return rows(run, "1_tables/queries", "query_id", "text")


def pairs_of(sources):
    return {
        (query_id, doc_id)
        for source in sources
        for query_id, found in FOUND[source].items()
        for doc_id in found
    }


@pytest.mark.parametrize("k", [1, 3, 50])
def test_candidates_are_the_best_of_what_others_found(tmp_path, reranker, model, k):
    run = toy_run(tmp_path)
    manifest, scores, pairs = (
        mine(run, reranker, k=k),
        by_predict(run, model),
        pairs_of(("bm25", "dense")),
    )
    expected = []
    for query_id in sorted(GOLD):
        ranked = sorted(
            (doc_id for query, doc_id in pairs if query == query_id),
            key=lambda doc_id: (-scores[query_id, doc_id], doc_id),
        )
        others = 0
        for rank, doc_id in enumerate(ranked, 1):
            positive = doc_id in GOLD[query_id]
            if others < k:
                expected.append((query_id, doc_id, "cross-encoder", rank))
            others += not positive
    found = rows(run, "3_candidates/cross-encoder", "query_id", "doc_id", "source", "rank", "score")
    assert [row[:4] for row in found] == expected
    assert {row[:2]: row[4] for row in found} == pytest.approx(
        {row[:2]: scores[row[:2]] for row in expected}, abs=1e-5
    )
    side = rows(run, "3_candidates/cross-encoder/_scores", "query_id", "doc_id", "score")
    assert [row[:2] for row in side] == sorted(pairs)
    assert {row[:2]: row[2] for row in side} == pytest.approx(
        {pair: scores[pair] for pair in pairs}, abs=1e-5
    )
    assert manifest.rows == {"candidates": len(expected), "scores": len(pairs)}
    assert manifest.facts["reranker"] == reranker and manifest.facts["score_scale"] == "probability"


def test_shards_do_not_change_what_is_found(tmp_path, reranker):
    found = []
    for size in (1, 5):
        run = toy_run(tmp_path / str(size), shard_queries=size)
        mine(run, reranker, k=2)
        found.append(rows(run, "3_candidates/cross-encoder", "query_id", "doc_id", "rank"))
    assert found[0] == found[1]


def test_a_source_that_is_mined_again_costs_only_its_new_pairs(tmp_path, reranker, monkeypatch):
    run = toy_run(tmp_path / "run")
    with asked_pairs(monkeypatch) as asked:
        mine(run, reranker)
    assert len(asked) == len(set(asked)) == len(pairs_of(("bm25", "dense")))
    changed = Toy(
        candidates={"bm25": FOUND["bm25"], "dense": {"q1": ["d12", "d02"], "q5": ["d03"]}}
    )
    write_source(run, changed, "dense", How(force=True))
    with asked_pairs(monkeypatch) as asked:
        mine(run, reranker)
    texts, documents = dict(rows_of_queries(run)), Corpus(run)
    assert set(asked) == {
        (texts[q], documents.texts(documents.rows([d]))[0])
        for q, d in (("q1", "d02"), ("q5", "d03"))
    }
    fresh = toy_run(tmp_path / "fresh", candidates=changed.candidates)
    mine(fresh, reranker)
    for folder in ("3_candidates/cross-encoder", "3_candidates/cross-encoder/_scores"):
        a, b = (rows(one, folder, "query_id", "doc_id", "score") for one in (run, fresh))
        assert [row[:2] for row in a] == [row[:2] for row in b]
        assert [row[2] for row in a] == pytest.approx([row[2] for row in b], abs=1e-5)


def test_sources_that_are_not_there_are_named_before_the_model_is(tmp_path):
    run = toy_run(tmp_path)
    for sources, words in (
        (("cross-encoder",), "--from cross-encoder names the source that is being made"),
        (("bm25", "bm25"), "--from names bm25 more than once"),
        (
            ("bm25", "nope"),
            (
                r"no finished source nope in .*3_candidates \(found bm25, dense\); .*`quarry mine"
                r" nope`"
            ),
        ),
        (("bm25",), "reranker './no/model' is no folder"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            mine(run, "./no/model", sources)
        assert "\n" not in str(caught.value)
    (run.path / "3_candidates/dense/_manifest.json").unlink()
    with pytest.raises(UserError, match=r"no finished source dense in .* \(found bm25\)"):
        mine(run, "./no/model", ("dense",))


def test_a_plan_mines_it_after_the_sources_that_it_reads():
    config = {
        "mine": {"cross-encoder": {"from": ["bm25", "dense"], "k": 5}, "dense": {}, "bm25": {}}
    }
    plan = make_plan(config, None, None)
    assert [planned.step.title for planned in plan] == [
        "index bm25",
        "index dense",
        "mine bm25",
        "mine dense",
        "mine cross-encoder",
    ]
    assert plan[-1].options == MineCrossEncoder(sources=("bm25", "dense"), k=5)
    with pytest.raises(UserError, match="--from is missing"):
        make_plan({"mine": {"cross-encoder": {}}}, None, None)
