import logging

import numpy as np
import pytest
from toy import rows, toy_run
from vectors import found_by, plane, write_vectors

from miner.engine import How
from miner.errors import UserError
from miner.search import approximate
from miner.search.dense import MineDense, mine_dense
from miner.search.topk import dots

NO_SOURCE = {"candidates": {}, "similarity": None}
SHOWN = ("query_id", "doc_id", "rank", "score")


def directions(random, count, width=16):
    made = random.normal(size=(count, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def big(tmp_path):
    """600 documents in shards of 128, the last one of 88, and 40 queries in shards of 7."""
    ids, query_ids = (
        [f"d{number:03d}" for number in range(600)],
        [f"q{number:02d}" for number in range(40)],
    )
    documents = dict.fromkeys(ids, ("", "text"))
    toy = {
        "documents": documents,
        "queries": dict.fromkeys(query_ids, "text"),
        "positives": {q: ["d007"] for q in query_ids},
    }
    run = toy_run(tmp_path / "run", shard_documents=128, shard_queries=7, **toy, **NO_SOURCE)
    random = np.random.default_rng(1)
    return write_vectors(run, directions(random, 600), directions(random, 40))


def vectors_of(run):
    def read(table):
        files = sorted((run.path / "2_index/dense" / table).glob("*.npy"))
        return np.vstack([np.load(file) for file in files])

    return read("documents"), read("queries")


@pytest.mark.parametrize(
    ("factory", "group", "parameters"),
    [
        ("Flat", 640, None),
        ("Flat", 1, None),  # a group a shard
        ("IVF4,Flat", 256, "nprobe=4"),
        ("HNSW16", 300, "efSearch=400"),
        ("IVF2,PQ4x4fs,RFlat", 640, "nprobe=2,k_factor_rf=500"),
    ],
)
def test_a_factory_that_looks_everywhere_gives_the_exact_answer(big, factory, group, parameters):
    options = {
        "factory": factory,
        "group_documents": group,
        "parameters": parameters,
        "device": "cpu",
    }
    made = mine_dense(big, MineDense(k=9, name="about", index="dense", **options), How())
    mine_dense(big, MineDense(k=9), How())
    assert rows(big, "3_candidates/about", *SHOWN) == rows(big, "3_candidates/dense", *SHOWN)
    assert made.facts == {
        "engine": "faiss",
        "device": "cpu",
        "searched_with": "query",
        "recall@9": 1.0,
        "recall_queries": 40,
    }
    assert made.options["factory"] == factory and made.options["parameters"] == parameters


def test_what_is_missed_is_told_and_what_is_found_has_its_exact_score(big):
    made = mine_dense(big, MineDense(k=9, factory="IVF20,PQ2x4", group_documents=400), How())
    found, (documents, queries) = rows(big, "3_candidates/dense", *SHOWN), vectors_of(big)
    assert 0 < made.facts["recall@9"] < 0.9
    places = np.array([(int(query_id[1:]), int(doc_id[1:])) for query_id, doc_id, *_ in found])
    np.testing.assert_array_equal(
        [row[3] for row in found], dots(queries, places[:, 0], documents, places[:, 1])
    )
    for query_id in {row[0] for row in found}:
        own = [(-score, doc_id) for query, doc_id, _, score in found if query == query_id]
        assert own == sorted(own)
    # recall by hand: no query misses its positive's place, as d007 counts like any other document
    mine_dense(big, MineDense(k=9, name="exact", index="dense"), How())
    about, exact = found_by(big), found_by(big, "exact")
    share = np.mean([len(set(about[query][:9]) & set(exact[query][:9])) / 9 for query in exact])
    assert made.facts["recall@9"] == pytest.approx(share, abs=0.06)


def test_fewer_found_than_asked_is_no_padding(big):
    mine_dense(big, MineDense(k=50, factory="IVF60,Flat", parameters="nprobe=1"), How())
    found = rows(big, "3_candidates/dense", "query_id", "doc_id", "score")
    assert len(set(found)) == len(found) and all(np.isfinite(score) for *_, score in found)
    counts = [len(documents) for documents in found_by(big).values()]
    # -1 would be the last
    assert max(counts) < 51 and sum(document == "d599" for _, document, _ in found) < 10


def test_inner_product_is_searched_not_distance(tmp_path):
    documents, queries = plane()
    # the longer, the further away and the greater the product
    documents = documents * np.linspace(1, 4, 12, dtype=np.float32)[:, None]
    run = write_vectors(toy_run(tmp_path, **NO_SOURCE), documents, queries)
    mine_dense(run, MineDense(k=3, factory="HNSW8"), How())
    products = queries[4] @ documents.T
    assert found_by(run)["q5"] == [f"d{row + 1:02d}" for row in np.argsort(-products)[:4]]


def test_the_index_is_a_stage_of_its_own_named_after_the_factory(big):
    first = mine_dense(big, MineDense(k=3, factory="IVF4,Flat", group_documents=256), How())
    index = big.need("2_index/dense.IVF4_Flat", "")
    assert index.facts == {"kind": "faiss"} and index.shards == 3
    assert index.options == {"factory": "IVF4,Flat", "group_documents": 256}
    assert index.inputs == {"2_index/dense": big.need("2_index/dense", "").fingerprint}
    assert first.inputs["2_index/dense.IVF4_Flat"] == index.fingerprint
    # another source, other parameters, even --force: the index stays
    before = [file.stat().st_mtime_ns for file in sorted((big.path / index.stage).glob("*.npy"))]
    mine_dense(
        big,
        MineDense(k=4, factory="IVF4,Flat", parameters="nprobe=2", group_documents=256),
        How(force=True),
    )
    assert [
        file.stat().st_mtime_ns for file in sorted((big.path / index.stage).glob("*.npy"))
    ] == before
    with pytest.raises(UserError, match="group_documents=256, now 640"):
        mine_dense(big, MineDense(k=4, factory="IVF4,Flat", group_documents=640), How())
    mine_dense(big, MineDense(k=4, factory="IVF4,Flat", group_documents=640), How(force=True))
    assert big.need("2_index/dense.IVF4_Flat", "").shards == 1


def test_groups_are_of_about_the_same_size():
    for blocks, documents, sizes in (
        (5, 256, [1, 2, 2]),
        (5, 384, [2, 3]),
        (5, 640, [5]),
        (5, 1, [1] * 5),
        (7, 300, [1, 2, 2, 2]),
    ):
        what = approximate.Factory("2_index/dense", "Flat", "", documents)
        groups = what.groups([(number * 128, lambda: None) for number in range(blocks)], 128)
        assert [len(group) for group in groups] == sizes
        assert [block[0] for group in groups for block in group] == [
            number * 128 for number in range(blocks)
        ]


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,PQ2x4"])
def test_building_again_gives_the_same_bytes(big, factory):
    def built():
        how = How(force=True)
        mine_dense(big, MineDense(k=3, factory=factory, group_documents=384), how)
        folder = next(file for file in (big.path / "2_index").glob("dense.*"))
        content = [file.read_bytes() for file in sorted(folder.glob("*.npy"))]
        (folder / "_manifest.json").unlink()
        return content

    assert built() == built()


def test_neither_query_shards_nor_workers_change_candidates_or_recall(tmp_path):
    documents, queries = (
        directions(np.random.default_rng(3), 12),
        directions(np.random.default_rng(4), 5),
    )
    results = []
    for shards, workers in ((1, 1), (2, 2), (5, 1)):
        run = write_vectors(
            toy_run(tmp_path / str(shards), shard_queries=shards, **NO_SOURCE), documents, queries
        )
        made = mine_dense(run, MineDense(k=4, factory="IVF3,Flat"), How(workers=workers))
        results.append((rows(run, "3_candidates/dense", *SHOWN), made.facts))
    assert results[0] == results[1] == results[2]


def test_the_sample_for_recall_depends_on_query_ids_alone(big, monkeypatch):
    from miner.search import dense

    monkeypatch.setattr(dense, "RECALL_QUERIES", 12)
    sampled = [vectors for vectors, _ in dense._sample_queries(big, MineDense())]
    assert sum(len(vectors) for vectors in sampled) == 12 and len(sampled) > 1
    assert (
        sum(
            count for _, count in dense._sample_queries(big, MineDense(queries_from_positives=True))
        )
        == 12
    )
    made = mine_dense(big, MineDense(k=9, factory="IVF4,Flat"), How())
    assert made.facts["recall_queries"] == 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factory": "Nonsense"}, "--factory 'Nonsense' is nothing that FAISS can build"),
        ({"factory": "LSH"}, "inner products of 2 dimensions"),
        (
            {"factory": "IVF64,Flat"},
            (
                "cannot be trained with the 12 documents of a group .*at least as large as number"
                " of clusters"
            ),
        ),
        (
            {"factory": "IVF2,Flat", "parameters": "efSearch=3"},
            "--parameters 'efSearch=3' does not fit the factory",
        ),
        ({"factory": "IVF2,Flat", "parameters": "nprobe"}, "--parameters 'nprobe' does not fit"),
    ],
)
def test_what_faiss_cannot_do_is_said_in_one_line(tmp_path, options, words):
    run = write_vectors(toy_run(tmp_path, **NO_SOURCE), *plane())
    with pytest.raises(UserError, match=words) as caught:
        mine_dense(run, MineDense(k=3, **options), How())
    assert "\n" not in str(caught.value) and not (run.path / "3_candidates").exists()


def test_a_gpu_that_fails_is_said_loudly_and_the_cpu_searches(tmp_path, monkeypatch, caplog):
    run = write_vectors(toy_run(tmp_path, **NO_SOURCE), *plane())
    monkeypatch.setattr("miner.search.flat.gpus", lambda name: name == "faiss")

    def full(index):
        raise RuntimeError(
            "Error in x at y.cu:3: Error: 'err == cudaSuccess' failed: out of memory\nand more"
        )

    monkeypatch.setattr(approximate, "_on_gpus", full)
    mine_dense(run, MineDense(k=3, name="gpu", index="dense", factory="Flat"), How())
    assert (
        caplog.records[0].getMessage()
        == "FAISS on the GPU failed (out of memory): searching on the CPU"
    )
    assert caplog.records[0].levelno == logging.WARNING
    assert found_by(run, "gpu")["q5"] == ["d12", "d11", "d10", "d09"]


def test_indexes_are_let_go_when_memory_is_short_and_when_all_is_done(big, monkeypatch):
    opened, free = [], type("Memory", (), {"available": 0})
    monkeypatch.setattr(approximate.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(
        approximate,
        "_set_parameters",
        lambda index, parameters: opened.append(len(approximate._opened)),
    )
    mine_dense(big, MineDense(k=3, factory="Flat", group_documents=256), How())
    assert max(opened) == 0 and not approximate._opened
