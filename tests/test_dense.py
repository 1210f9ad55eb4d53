import shutil

import numpy as np
import pytest
from conftest import make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import DOCUMENT_TEXTS, QUERY_TEXTS, rows, toy_run

from miner.dense import ENGINES, Vectors, engine_name, index_dense, mine_dense, search_block
from miner.engine import How
from miner.errors import UserError
from miner.exact import dots
from miner.models import encoder_fingerprint, load_encoder, locate
from miner.options import Encoder, IndexBm25, IndexDense, MineDense
from miner.tables import full_text

NO_SOURCE = {"candidates": {}, "similarity": None}


def slow(queries, block, depth):
    """The answer by definition: float64 products, cast, sorted by score, then row."""
    scores = (queries.astype(np.float64) @ block.astype(np.float64).T).astype(np.float32)
    order = [sorted(range(len(block)), key=lambda row, line=line: (-line[row], row))[:depth] for line in scores]
    return np.array(order), scores


@pytest.mark.parametrize("engine", sorted(ENGINES))
@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(1, 90), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_every_engine_gives_the_exact_answer_with_ties_by_row(engine, seed, documents, depth, distinct):
    random = np.random.default_rng(seed)
    # few distinct vectors: blocks of equal documents, larger than what an engine is asked for
    block = (random.integers(-2, 3, (min(distinct, 7), 8)).astype(np.float32))[random.integers(0, min(distinct, 7), documents)]
    queries = random.integers(-2, 3, (3, 8)).astype(np.float32)
    found, scores = search_block(ENGINES[engine], queries, block, depth)
    expected, all_scores = slow(queries, block, depth)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(all_scores, expected, 1))


def test_engines_agree_to_the_last_bit_on_real_numbers():
    random = np.random.default_rng(0)
    block, queries = (random.normal(size=(count, 96)).astype(np.float32) for count in (3000, 40))
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    first, second = (search_block(ENGINES[engine], queries, block, 50) for engine in ("faiss", "numpy"))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1].tobytes() == second[1].tobytes()
    np.testing.assert_array_equal(first[0], slow(queries, block, 50)[0])


def test_no_document_scores_minus_infinity():
    vectors = np.ones((2, 5), np.float32)
    assert dots(vectors, np.array([0, 1]), vectors, np.array([1, -1])).tolist() == [5.0, -np.inf]


def test_mined_candidates_are_the_nearest(tmp_path, encoder):
    run = toy_run(tmp_path, **NO_SOURCE)
    index_dense(run, IndexDense(encoder=encoder, dtype="fp32"), How())
    mine_dense(run, MineDense(k=3), How())
    encode, ids = load_encoder(Encoder(encoder=encoder, dtype="fp32")), sorted(DOCUMENT_TEXTS)
    documents = encode([full_text(*DOCUMENT_TEXTS[doc_id]) for doc_id in ids], "document")
    np.testing.assert_allclose(np.linalg.norm(documents, axis=1), 1, rtol=1e-6)
    scores = encode([QUERY_TEXTS["q5"]], "query") @ documents.T
    order = [ids[row] for row in np.argsort(-scores[0])]
    until = [doc_id for doc_id in order if doc_id != "d12"][2]
    expected = [doc_id for doc_id in order[: order.index(until) + 1]]
    found = rows(run, "3_candidates/dense", "query_id", "doc_id", "rank", "score")
    assert [row[1:3] for row in found if row[0] == "q5"] == [(doc_id, rank) for rank, doc_id in enumerate(expected, 1)]
    best = max(scores[0])
    assert next(row[3] for row in found if row[0] == "q5") == pytest.approx(best, abs=1e-6)


def test_more_asked_than_there_is_gives_all_and_no_padding(tmp_path, encoder):
    run = toy_run(tmp_path, **NO_SOURCE)
    index_dense(run, IndexDense(encoder=encoder), How())
    mine_dense(run, MineDense(k=500), How())
    found = rows(run, "3_candidates/dense", "query_id", "doc_id", "score")
    assert len(found) == len(QUERY_TEXTS) * len(DOCUMENT_TEXTS) == len(set(found))
    assert all(np.isfinite(score) for *_, score in found)


def test_shards_workers_and_engines_do_not_matter(tmp_path, encoder):
    results = []
    for shards, workers, engine in ((1, 1, "numpy"), (4, 2, "faiss"), (12, 1, "faiss")):
        run = toy_run(tmp_path / str(shards), shard_documents=shards, shard_queries=shards, **NO_SOURCE)
        index_dense(run, IndexDense(encoder=encoder, dtype="fp32"), How(workers=workers))
        mine_dense(run, MineDense(k=4, search=engine), How())
        results.append(rows(run, "3_candidates/dense", "query_id", "doc_id", "rank"))
    assert results[0] == results[1] == results[2]


def test_two_checkpoints_never_share_vectors(tmp_path, encoder, other_encoder):
    fingerprints = {
        encoder_fingerprint(Encoder(encoder=encoder, dtype="fp32")),
        encoder_fingerprint(Encoder(encoder=other_encoder, dtype="fp32")),
        encoder_fingerprint(Encoder(encoder=encoder, dtype="fp16")),
        encoder_fingerprint(Encoder(encoder=encoder, dtype="fp32", max_length=8)),
        encoder_fingerprint(Encoder(encoder=encoder, dtype="fp32", query_prompt="query : ")),
        encoder_fingerprint(Encoder(encoder=encoder, dtype="fp32", document_prompt="query : ")),
    }
    assert len(fingerprints) == 6
    copy = tmp_path / "copy"
    shutil.copytree(encoder, copy)
    same = encoder_fingerprint(Encoder(encoder=str(copy), dtype="fp32"))
    assert same in fingerprints  # a path is only a name: the same files are the same model
    run = toy_run(tmp_path / "run", **NO_SOURCE)
    index_dense(run, IndexDense(encoder=encoder), How())
    with pytest.raises(UserError, match="was made with encoder="):
        index_dense(run, IndexDense(encoder=other_encoder), How())


def test_weights_that_change_under_one_path_are_noticed(tmp_path, encoder, other_encoder):
    folder = tmp_path / "model"
    shutil.copytree(encoder, folder)
    run = toy_run(tmp_path / "run", **NO_SOURCE)
    index_dense(run, IndexDense(encoder=str(folder)), How())
    shutil.copy(f"{other_encoder}/model.safetensors", folder / "model.safetensors")
    from miner.models import weights_fingerprint

    weights_fingerprint.cache_clear()
    with pytest.raises(UserError, match="another model"):
        index_dense(run, IndexDense(encoder=str(folder)), How())


def test_prompts_of_the_model_and_of_the_user(tmp_path):
    folder = make_encoder(tmp_path, seed=3, prompts={"query": "query : ", "document": "passage : "})
    encode = load_encoder(Encoder(encoder=str(folder), dtype="fp32"))
    bare = load_encoder(Encoder(encoder=str(folder), dtype="fp32", query_prompt="", document_prompt=""))
    np.testing.assert_allclose(encode(["bees"], "query"), bare(["query : bees"], "query"), atol=1e-6)
    np.testing.assert_allclose(encode(["bees"], "document"), bare(["passage : bees"], "document"), atol=1e-6)
    assert np.abs(encode(["bees"], "query") - bare(["bees"], "query")).max() > 1e-3


def test_pickled_weights_are_not_loaded(tmp_path, encoder):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(encoder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load encoder"):
        load_encoder(Encoder(encoder=str(folder)))


def test_a_model_that_is_not_to_be_had_is_one_line():
    for name in ("./no/such/folder", "no-such-owner/no-such-model"):
        with pytest.raises(UserError) as caught:
            locate(name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_faiss_asked_for_but_missing(monkeypatch):
    monkeypatch.setattr("miner.dense.find_spec", lambda name: None)
    assert engine_name("auto") == "numpy"
    with pytest.raises(UserError, match="pip install"):
        engine_name("faiss")


def test_an_index_of_the_other_kind_is_refused(tmp_path, encoder):
    from miner.bm25 import index_bm25

    run = toy_run(tmp_path, **NO_SOURCE)
    index_bm25(run, IndexBm25(name="dense"), How())
    with pytest.raises(UserError, match="is a bm25 index"):
        mine_dense(run, MineDense(), How())


def test_vectors_are_read_by_row_in_any_order(tmp_path, encoder):
    run = toy_run(tmp_path, **NO_SOURCE)
    index_dense(run, IndexDense(encoder=encoder), How())
    vectors = Vectors(run, "dense")
    whole = np.vstack([vectors.block(key) for key in vectors.corpus.keys])
    order = np.array([11, 0, 5, 4, 5])
    np.testing.assert_array_equal(vectors.documents(order), whole[order])
