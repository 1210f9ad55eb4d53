import shutil

import numpy as np
import pytest
from toy import GOLD, rows, toy_run

from miner.corpus import Corpus
from miner.engine import How
from miner.models.encoder import load_encoder
from miner.models.hub import Encoder
from miner.search.dense_index import IndexDense, index_dense
from miner.search.random_documents import MineRandom, draw, mine_random
from scoring.judge.similarity import JudgeSimilarity, judge_similarity


def cosines(run, encoder):
    """Every cosine by definition."""
    encode, corpus = load_encoder(Encoder(encoder=encoder, dtype="fp32")), Corpus(run)
    documents = encode(corpus.texts(np.arange(len(corpus))), "document")
    ids = corpus.doc_ids(np.arange(len(corpus))).to_pylist()
    queries = [
        row for key in run.query_shards() for row in run.read("1_tables/queries", key).to_pylist()
    ]
    vectors = encode([row["text"] for row in queries], "query")
    to_query = {
        (row["query_id"], doc_id): vectors[q] @ documents[d]
        for q, row in enumerate(queries)
        for d, doc_id in enumerate(ids)
    }
    near = {
        (query_id, doc_id): max(documents[ids.index(positive)] @ documents[d] for positive in gold)
        for query_id, gold in GOLD.items()
        for d, doc_id in enumerate(ids)
    }
    return to_query, near


@pytest.mark.parametrize("indexed", [True, False])
def test_every_candidate_and_positive_is_judged_and_nothing_else(tmp_path, encoder, indexed):
    run = toy_run(tmp_path, similarity=None)
    mine_random(run, MineRandom(k=2), How())
    if indexed:
        index_dense(run, IndexDense(encoder=encoder, dtype="fp32"), How())
    manifest = judge_similarity(run, JudgeSimilarity(encoder=encoder, dtype="fp32"), How())
    assert manifest.facts["vectors"] == ("2_index/dense" if indexed else "encoded per shard")
    to_query, near = cosines(run, encoder)
    pairs = {
        pair
        for source in ("bm25", "dense", "random")
        for pair in rows(run, f"3_candidates/{source}", "query_id", "doc_id")
    }
    positives = {(query_id, doc_id) for query_id, gold in GOLD.items() for doc_id in gold}
    judged = rows(run, "4_judgments/similarity", "query_id", "doc_id", "judge", "score")
    assert judged == sorted(judged, key=lambda row: row[:3])
    assert {row[:2]: row[3] for row in judged if row[2] == "similarity"} == pytest.approx(
        {pair: to_query[pair] for pair in pairs | positives}, abs=1e-6
    )
    assert {row[:2]: row[3] for row in judged if row[2] == "similarity.positive"} == pytest.approx(
        {pair: near[pair] for pair in pairs - positives}, abs=1e-6
    )


def test_the_dense_indexs_encoder_serves_when_none_is_named(tmp_path, encoder):
    run = toy_run(tmp_path, similarity=None)
    index_dense(run, IndexDense(encoder=encoder, dtype="fp32"), How())
    manifest = judge_similarity(run, JudgeSimilarity(), How())
    assert (manifest.options["encoder"], manifest.options["dtype"]) == (encoder, "fp32")
    assert manifest.facts["vectors"] == "2_index/dense"
    assert run.names("3_candidates") == ["bm25", "dense", "random"]  # the source that always exists


def test_another_target_encoder_does_not_read_the_indexs_vectors(tmp_path, encoder, other_encoder):
    run = toy_run(tmp_path, similarity=None)
    index_dense(run, IndexDense(encoder=encoder, dtype="fp32"), How())
    judge_similarity(run, JudgeSimilarity(encoder=other_encoder, dtype="fp32"), How())
    to_query, _ = cosines(run, other_encoder)
    scores = {
        row[:2]: row[2]
        for row in rows(run, "4_judgments/similarity", "query_id", "doc_id", "score", "judge")
        if row[3] == "similarity"
    }
    assert scores == pytest.approx({pair: to_query[pair] for pair in scores}, abs=1e-6)


def test_an_index_of_other_tables_does_not_lend_its_vectors(tmp_path, encoder):
    run, options = (
        toy_run(tmp_path / "run", similarity=None),
        JudgeSimilarity(encoder=encoder, dtype="fp32"),
    )
    index_dense(run, IndexDense(encoder=encoder, dtype="fp32"), How())
    newer = toy_run(tmp_path / "newer", similarity=None, shard_queries=2)
    shutil.copytree(run.path / "2_index", newer.path / "2_index")
    assert judge_similarity(newer, options, How()).facts["vectors"] == "encoded per shard"
    assert judge_similarity(run, options, How()).facts["vectors"] == "2_index/dense"


def test_random_documents_depend_on_seed_and_query_alone(tmp_path):
    found = []
    for shards in (1, 5):
        run = toy_run(tmp_path / str(shards), shard_queries=shards, candidates={}, similarity=None)
        mine_random(run, MineRandom(k=4, seed=3), How())
        found.append(rows(run, "3_candidates/random", "query_id", "doc_id", "rank", "score"))
    assert found[0] == found[1]
    assert {score for *_, score in found[0]} == {None}
    for query_id, gold in GOLD.items():
        assert len({row[1] for row in found[0] if row[0] == query_id} - set(gold)) == 4
    assert (
        draw(3, "q1", 1000, 5).tolist()
        != draw(4, "q1", 1000, 5).tolist()
        != draw(4, "q2", 1000, 5).tolist()
    )
    assert sorted(draw(0, "q1", 6, 10).tolist()) == [0, 1, 2, 3, 4, 5]
