import shutil

import numpy as np
import pytest
from conftest import make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import DOCUMENT_TEXTS, GOLD, QUERY_TEXTS, rows, toy_run
from vectors import found_by, plane, write_vectors

from miner.engine import How
from miner.errors import UserError
from miner.models.encoder import encoder_fingerprint, load_encoder
from miner.models.hub import Encoder, locate
from miner.search.dense import MineDense, merge, mine_dense
from miner.search.dense_index import IndexDense, index_dense
from miner.search.tokens import IndexBm25
from miner.search.vectors import Vectors, find_index
from miner.tables import full_text

NO_SOURCE = {"candidates": {}, "similarity": None}


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
    assert [row[1:3] for row in found if row[0] == "q5"] == [
        (doc_id, rank) for rank, doc_id in enumerate(expected, 1)
    ]
    best = max(scores[0])
    assert next(row[3] for row in found if row[0] == "q5") == pytest.approx(best, abs=1e-6)


def test_more_asked_than_there_is_gives_all_and_no_padding(tmp_path, encoder):
    run = toy_run(tmp_path, **NO_SOURCE)
    index_dense(run, IndexDense(encoder=encoder), How())
    mine_dense(run, MineDense(k=500), How())
    found = rows(run, "3_candidates/dense", "query_id", "doc_id", "score")
    assert len(found) == len(QUERY_TEXTS) * len(DOCUMENT_TEXTS) == len(set(found))
    assert all(np.isfinite(score) for *_, score in found)


def test_shards_workers_and_engines_do_not_matter(tmp_path):
    random, results = np.random.default_rng(0), []
    # with ties
    documents, queries = (
        random.integers(-1, 2, (count, 3)).astype(np.float32) for count in (12, 5)
    )
    for shards, workers, engine in (
        (1, 1, "numpy"),
        (4, 2, "auto"),
        (12, 1, "torch"),
        (5, 1, "faiss"),
    ):
        run = write_vectors(
            toy_run(
                tmp_path / str(shards), shard_documents=shards, shard_queries=shards, **NO_SOURCE
            ),
            documents,
            queries,
        )
        made = mine_dense(run, MineDense(k=4, search=engine, device="cpu"), How(workers=workers))
        assert made.facts == {
            "engine": "torch" if engine == "auto" else engine,
            "device": "cpu",
            "searched_with": "query",
        }
        results.append(rows(run, "3_candidates/dense", "query_id", "doc_id", "rank", "score"))
    assert results[0] == results[1] == results[2] == results[3]


def test_engine_and_device_are_no_part_of_the_fingerprint_but_what_was_searched_with_is(tmp_path):
    run = write_vectors(toy_run(tmp_path, **NO_SOURCE), *plane())
    made = mine_dense(run, MineDense(k=2, search="numpy"), How())
    assert mine_dense(run, MineDense(k=2, search="faiss", device="cpu"), How()).skipped
    assert mine_dense(run, MineDense(k=2, index="dense"), How()).fingerprint == made.fingerprint
    with pytest.raises(UserError, match="searched_with='query', now 'positives'"):
        mine_dense(run, MineDense(k=2, queries_from_positives=True), How())


def test_a_source_of_another_name_can_share_an_index(tmp_path):
    run = write_vectors(toy_run(tmp_path, **NO_SOURCE), *plane())
    mine_dense(run, MineDense(k=2), How())
    mine_dense(run, MineDense(k=2, name="again", index="dense"), How())
    shown = ("query_id", "doc_id", "rank", "score")
    assert rows(run, "3_candidates/again", *shown) == rows(run, "3_candidates/dense", *shown)
    assert {source for (source,) in rows(run, "3_candidates/again", "source")} == {"again"}
    with pytest.raises(UserError, match="2_index/other does not exist; run `quarry index dense`"):
        mine_dense(run, MineDense(index="other"), How())


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
    from miner.models.hub import weights_fingerprint

    weights_fingerprint.cache_clear()
    with pytest.raises(UserError, match="another model"):
        index_dense(run, IndexDense(encoder=str(folder)), How())


def test_prompts_of_the_model_and_of_the_user(tmp_path):
    folder = make_encoder(tmp_path, seed=3, prompts={"query": "query : ", "document": "passage : "})
    encode = load_encoder(Encoder(encoder=str(folder), dtype="fp32"))
    bare = load_encoder(
        Encoder(encoder=str(folder), dtype="fp32", query_prompt="", document_prompt="")
    )
    np.testing.assert_allclose(
        encode(["bees"], "query"), bare(["query : bees"], "query"), atol=1e-6
    )
    np.testing.assert_allclose(
        encode(["bees"], "document"), bare(["passage : bees"], "document"), atol=1e-6
    )
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


def test_an_index_of_the_other_kind_is_refused(tmp_path, encoder):
    from miner.search.bm25 import index_bm25

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


@pytest.mark.parametrize("shards", [1, 3, 12])
def test_positives_search_instead_of_the_query_and_are_left_out(tmp_path, shards):
    run = write_vectors(
        toy_run(
            tmp_path,
            shard_documents=shards,
            shard_queries=shards,
            positives={**GOLD, "q3": []},
            **NO_SOURCE,
        ),
        *plane(),
    )
    made = mine_dense(run, MineDense(k=3, queries_from_positives=True), How())
    assert found_by(run) == {
        "q1": ["d02", "d03", "d04"],  # its positive is d01
        # d02 and d03: d01 is 10.3 degrees from one, d04 11.5 from the other
        "q2": ["d01", "d04", "d05"],
        "q4": ["d04", "d08", "d03"],  # d05, d06, d07; q3 has no positive and finds nothing
        "q5": ["d11", "d10", "d09"],  # d12
    }
    assert made.facts["searched_with"] == "positives"


def test_query_and_positives_search_together_and_the_best_score_counts(tmp_path):
    run = write_vectors(toy_run(tmp_path, positives={**GOLD, "q3": []}, **NO_SOURCE), *plane())
    made = mine_dense(run, MineDense(k=3, symmetric=True), How())
    found = found_by(run)
    # the query, at 200 degrees, is 53.7 from its best document
    assert found["q1"] == ["d02", "d03", "d04"]
    assert found["q3"] == ["d12", "d11", "d10"]  # no positive: the query alone
    assert made.facts["searched_with"] == "query and positives"
    scores = {
        row[0]: row[1]
        for row in rows(run, "3_candidates/dense", "doc_id", "score", "query_id")
        if row[2] == "q1"
    }
    assert scores["d02"] == pytest.approx(np.cos(np.radians(10.3)))


def test_captions_find_captions_that_are_near_to_the_text_or_to_its_document(tmp_path):
    """Each caption is a query and its own positive; an image has two of them. Prompts make query
    and document vectors differ.
    """
    captions = [f"c{number:02d}" for number in range(8)]
    images = {
        caption: [captions[place // 2 * 2], captions[place // 2 * 2 + 1]]
        for place, caption in enumerate(captions)
    }
    toy = {
        "documents": dict.fromkeys(captions, ("", "a caption")),
        "queries": dict.fromkeys(captions, "a caption"),
        "positives": images,
    }
    random = np.random.default_rng(0)
    documents, queries = (random.normal(size=(8, 4)).astype(np.float32) for _ in range(2))
    run = write_vectors(toy_run(tmp_path, **toy, **NO_SOURCE), documents, queries)
    mine_dense(run, MineDense(k=3, symmetric=True), How())
    for place, caption in enumerate(captions):
        own = [captions.index(other) for other in images[caption]]
        best = np.max(np.vstack((queries[[place]], documents[own])) @ documents.T, axis=0)
        order = [captions[row] for row in np.argsort(-best) if row not in own][:3]
        assert found_by(run)[caption] == order


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_folding_is_by_best_score_then_row_without_positives(seed, queries, k):
    random = np.random.default_rng(seed)
    searchers, width = random.integers(0, 10), random.integers(1, 8)
    found = np.array(
        [random.choice(9, width, replace=False) for _ in range(searchers)], np.int64
    ).reshape(-1, width)
    found[random.random(found.shape) < 0.2] = -1
    scores = np.where(found < 0, -np.inf, random.integers(-2, 3, found.shape)).astype(np.float32)
    owners = (
        np.sort(random.integers(0, queries, searchers))
        if seed % 2
        else random.integers(0, queries, searchers)
    )
    positives = random.integers(0, queries, 4), random.integers(0, 9, 4)
    rows, values = merge((found, scores), owners, positives, queries, k)
    own = set(zip(*(part.tolist() for part in positives), strict=True))
    for query in range(queries):
        best = {}
        for row, score in zip(
            found[owners == query].ravel().tolist(),
            scores[owners == query].ravel().tolist(),
            strict=True,
        ):
            if row >= 0 and (query, row) not in own:
                best[row] = max(score, best.get(row, -np.inf))
        order = sorted(best, key=lambda row: (-best[row], row))[:k]
        assert rows[query].tolist() == order + [-1] * (k - len(order))
        assert values[query].tolist() == [best[row] for row in order] + [-np.inf] * (k - len(order))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"symmetric": True, "queries_from_positives": True}, "give one of them"),
        ({"parameters": "nprobe=3"}, "name it with --factory"),
        ({"factory": "Flat", "search": "torch"}, "not by --search torch"),
        ({"factory": "Flat", "search": "numpy"}, "not by --search numpy"),
    ],
)
def test_options_that_contradict_each_other_are_refused_in_one_line(tmp_path, options, words):
    run = write_vectors(toy_run(tmp_path, **NO_SOURCE), *plane())
    with pytest.raises(UserError, match=words) as caught:
        mine_dense(run, MineDense(**options), How())
    assert "\n" not in str(caught.value) and not (run.path / "3_candidates").exists()


def test_no_gpu_though_asked_for_is_one_loud_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("miner.search.flat.gpus", lambda name: 0)
    run = write_vectors(toy_run(tmp_path, shard_queries=1, **NO_SOURCE), *plane())
    made = mine_dense(run, MineDense(k=2, device="cuda"), How())
    assert [record.getMessage() for record in caplog.records] == [
        "--device cuda, but torch sees no GPU here: searching on the CPU"
    ]
    # d12 is its positive, and comes on top
    assert made.facts["device"] == "cpu" and found_by(run)["q5"] == ["d12", "d11", "d10"]


def test_an_approximate_index_is_not_taken_for_a_dense_one(tmp_path, encoder):
    run = toy_run(tmp_path, **NO_SOURCE)
    options = IndexDense(encoder=encoder, dtype="fp32", name="z")
    index_dense(run, options, How())
    mine_dense(run, MineDense(k=2, name="z", factory="Flat"), How())
    assert run.names("2_index") == ["z", "z.Flat"]
    assert find_index(run, Encoder(encoder=encoder, dtype="fp32")) == "z"
    with pytest.raises(UserError, match="is a faiss index"):
        mine_dense(run, MineDense(index="z.Flat"), How())
