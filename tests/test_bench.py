"""The benches at tiny sizes: a side's process, the inputs, the checks that must fail when
answers differ, the fits and floors.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import gpu  # noqa: E402
import inputs  # noqa: E402
import search  # noqa: E402
import sides  # noqa: E402
from parts import bm25, encode, flat, growth, job  # noqa: E402

CEILINGS = {"fp32_flops": 1e11, "bf16_flops": 2e11, "bytes": 1e10}


@pytest.fixture
def here(monkeypatch):
    """Run every side in this process: a process each would take seconds."""

    def run(side, **arguments):
        return json.loads(json.dumps(side(**arguments))) | {"peak_memory_mb": 100.0}

    for module in (sides, bm25, encode, flat, growth, job):
        monkeypatch.setattr(module, "run_side", run)
    for module in (bm25, flat):
        monkeypatch.setattr(module, "REPEATS", 1)


def met(part: dict) -> dict[str, bool]:
    return {goal["what"]: goal["met"] for goal in part["targets"]}


HOLD = """
import os, time
from pathlib import Path
def hold(megabytes):  # give it back and begin the kernel's count anew, as quarry's stages do
    block = b"x" * (megabytes * 2**20)
    time.sleep(0.3)
    del block
    Path("/proc/self/clear_refs").write_text("5")
    return {"process": os.getpid()}
"""


def test_a_side_runs_in_its_own_process_and_its_peak_is_seen(tmp_path, monkeypatch):
    (tmp_path / "holding.py").write_text(HOLD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    from holding import hold

    measured = sides.run_side(hold, megabytes=200)
    assert measured["process"] != os.getpid()
    assert 200 < measured["peak_memory_mb"] < 300


def test_a_side_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"zipf_texts(.|\n)*missing"):
        sides.run_side(inputs.zipf_texts)


def test_rounds_keep_the_best_of_speed_and_the_highest_memory(monkeypatch):
    rounds = iter(
        [
            {"clock": "c", "index_seconds": 2.0, "queries_per_second": 5.0, "peak_memory_mb": 7.0},
            {"clock": "c", "index_seconds": 3.0, "queries_per_second": 9.0, "peak_memory_mb": 8.0},
        ]
    )
    monkeypatch.setattr(sides, "run_side", lambda side, **arguments: next(rounds))
    assert sides.run_rounds({"a": (dict, {})}) == {
        "a": {"clock": "c", "index_seconds": 2.0, "queries_per_second": 9.0, "peak_memory_mb": 8.0}
    }


def test_targets_and_floors():
    assert (
        sides.target("speed", 1.2, at_least=1.2)["met"]
        and not sides.target("speed", 1.19, at_least=1.2)["met"]
    )
    assert (
        sides.target("memory", 0.5, at_most=0.5)["met"]
        and not sides.target("memory", 0.51, at_most=0.5)["met"]
    )
    by_flops, by_bytes = (
        sides.floor(4.0, CEILINGS, flops=2e11, moved=1e9),
        sides.floor(4.0, CEILINGS, flops=2e11, moved=8e10),
    )
    assert (by_flops["times_the_floor"], by_bytes["times_the_floor"]) == (2.0, 0.5)
    assert (
        sides.floor(4.0, CEILINGS, flops=2e11, moved=1e9, rate="bf16_flops")["times_the_floor"]
        == 4.0
    )


def test_a_result_keeps_the_parts_that_were_not_run(tmp_path):
    sides.write_result(tmp_path / "r" / "a.json", {"one": 1, "two": 2})
    sides.write_result(tmp_path / "r" / "a.json", {"two": 3})
    assert json.loads((tmp_path / "r" / "a.json").read_text()) == {"one": 1, "two": 3}


def test_texts_follow_their_seed_and_zipf_and_a_smaller_corpus_begins_a_larger_one(monkeypatch):
    monkeypatch.setattr(inputs, "TEXT_BLOCK", 300)
    texts = list(inputs.zipf_texts(1000, (5, 9), seed=1))
    assert texts[:450] == list(inputs.zipf_texts(450, (5, 9), seed=1))
    assert texts != list(inputs.zipf_texts(1000, (5, 9), seed=2))
    assert {len(text.split()) for text in texts} == {5, 9}
    words = " ".join(texts).split()
    harmonic = (1 / np.arange(1, inputs.VOCABULARY + 1)).sum()
    assert words.count("w0") / len(words) == pytest.approx(1 / harmonic, rel=0.2)
    assert words.count("w0") / words.count("w1") == pytest.approx(2, rel=0.2)


def test_vectors_follow_their_seed_wherever_a_shard_begins(monkeypatch):
    monkeypatch.setattr(inputs, "VECTOR_BLOCK", 7)
    vectors = inputs.unit_vectors(0, 30, 16, seed=3)
    assert np.array_equal(vectors[5:23], inputs.unit_vectors(5, 23, 16, seed=3))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert not np.array_equal(vectors, inputs.unit_vectors(0, 30, 16, seed=4))


def test_pairs_are_distinct_and_every_positive_is_there(tmp_path, monkeypatch):
    texts = {"a": "one", "b": "two", "c": "one", "d": "three", "e": "four", "f": "five"}
    pairs = [
        ("q1", "first", "a"),
        ("q2", "second", "c"),
        ("q3", "third", "b"),
        ("q4", "third", "d"),
    ]
    monkeypatch.setattr(inputs, "_medquad", lambda folder: (texts, pairs))
    monkeypatch.setattr(inputs, "_stdlib", lambda folder: (texts, pairs))
    written = inputs.write_pairs_run(str(tmp_path), documents=3, queries=0)
    assert (written["documents"], written["queries"]) == (3, 3)
    assert (tmp_path / "beir" / "qrels" / "train.tsv").read_text().splitlines()[1:] == [
        "q1\ta\t1",
        "q2\ta\t1",
        "q3\tb\t1",
    ]
    assert {"one", "two"} < set(inputs.read_texts(str(tmp_path), "corpus")) < set(texts.values())


@pytest.mark.parametrize("real", [pytest.param(True, marks=pytest.mark.slow), False])
def test_bm25_part(here, monkeypatch, real):
    def bm25s(folder, k):
        return {
            "clock": "none",
            "index_seconds": 1.0,
            "queries_per_second": 2.0,
            "queries_per_second_given_tokens": 3.0,
        }

    if not real:  # it compiles for ten seconds
        monkeypatch.setattr(bm25, "bm25s", bm25s)
    part = bm25.measure(CEILINGS, documents=300, queries=12, k=10, asked=5)
    assert part["sides"].keys() >= {"quarry", "rank_bm25", "bm25s"}
    assert ("tantivy" in part["sides"]) == (find_spec("tantivy") is not None)
    assert all(side["queries_per_second"] > 0 and side["clock"] for side in part["sides"].values())
    assert part["checked"].startswith("5 queries")
    assert len(met(part)) == 4


def test_a_search_touches_a_posting_once_for_each_word_of_a_query(tmp_path):
    write_texts(tmp_path, ["a a b", "b c", "c"], ["b b c x", "a"])
    assert bm25.least_work(str(tmp_path)) == {
        "index_bytes": 5 + 3 + 1 + 4 * 5,
        "postings": 7,
        "search_bytes": 56,
    }


def write_texts(folder: Path, documents: list[str], queries: list[str]) -> None:
    (folder / "beir").mkdir()
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [
            json.dumps({"_id": str(number), "text": text}) + "\n"
            for number, text in enumerate(texts)
        ]
        (folder / "beir" / f"{name}.jsonl").write_text("".join(lines))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda scores, rows: scores * 1.00001, "other scores"),
        (
            lambda scores, rows: np.where(np.arange(len(scores)) == rows[0], 0.0, scores),
            "other scores",
        ),
        (
            lambda scores, rows: np.where(np.isin(np.arange(len(scores)), rows), scores, 1e6),
            "a better document is missing",
        ),
    ],
)
def test_bm25_check_fails_when_answers_differ(tmp_path, change, reason):
    inputs.write_texts_run(str(tmp_path), documents=60, queries=4)
    inputs.write_texts_run(str(tmp_path / "tiny"), documents=8, queries=2)
    bm25.quarry(str(tmp_path), k=5)
    bm25.rank_bm25(str(tmp_path), k=5, asked=4)
    assert bm25.check(str(tmp_path), 5).startswith("4 queries")
    found = pq.read_table(tmp_path / "run" / "3_candidates" / "bm25" / "00000.parquet").to_pylist()
    rows = [int(row["doc_id"][1:]) for row in found if row["query_id"] == "q00000000"]
    scores = np.load(tmp_path / "scores.npy")
    scores[0] = change(scores[0], rows)
    np.save(tmp_path / "scores.npy", scores)
    with pytest.raises(RuntimeError, match=reason):
        bm25.check(str(tmp_path), 5)


def test_flat_part(here, monkeypatch):
    monkeypatch.setattr(flat, "search_capped", lambda *sizes: {"same_candidates": True})
    part = flat.measure(CEILINGS, documents=300, queries=12, k=10)
    assert part["sides"].keys() == {"quarry", "faiss.knn", "torch"}
    assert part["checked"].keys() == {"faiss.knn", "torch"}
    assert met(part)["out of core: same candidates"]


def test_flat_check_fails_when_answers_differ(tmp_path):
    inputs.write_vectors_run(str(tmp_path), documents=60, queries=4, width=8)
    inputs.write_vectors_run(str(tmp_path / "tiny"), documents=8, queries=2, width=8)
    flat.quarry(str(tmp_path), k=5)
    flat.faiss_knn(str(tmp_path), k=5)
    peer = tmp_path / "faiss.knn.npz"
    assert "of places hold the same row" in flat.same_answers(str(tmp_path), str(peer))
    found = dict(np.load(peer))
    found["rows"][2, 1] = 59 - found["rows"][2, 1]
    np.savez(peer, **found)
    with pytest.raises(RuntimeError, match="find other documents"):
        flat.same_answers(str(tmp_path), str(peer))
    found["scores"][2, 1] += 1e-3
    np.savez(peer, **found)
    with pytest.raises(RuntimeError, match="scores"):
        flat.same_answers(str(tmp_path), str(peer))


@pytest.mark.slow
def test_out_of_core_search_runs_under_a_cap():
    capped = flat.search_capped(documents=3000, queries=5, k=10)
    assert capped["same_candidates"] and capped["capped"]["peak_memory_mb"] > 0


def test_encode_and_job_parts(here, monkeypatch, encoder):
    for module in ("encoder", "hub"):
        monkeypatch.setattr(f"miner.models.{module}.default_encoder", lambda: encoder)
    monkeypatch.setattr(inputs, "MEDQUAD", Path("nowhere"))
    monkeypatch.setattr(inputs, "_stdlib", lambda folder: toy_pairs())
    part = encode.measure(CEILINGS, documents=90, queries=30)
    assert part["overlap with sentence_transformers fp32"]["quarry fp32"] > 0.99
    assert met(part)["bf16, overlap of neighbours"]
    part = job.measure(CEILINGS, documents=90, queries=30)
    assert part["negatives, fp32"]["ours"] > 50
    assert part["negatives, fp32"]["same"] == 1.0
    assert part["sides"]["quarry fp32"]["stages"].keys() == {
        "imports",
        "index",
        "mine",
        "judge",
        "select",
    }


def toy_pairs() -> tuple[dict, list]:
    words = [
        "copper",
        "bees",
        "glass",
        "tides",
        "moon",
        "lamps",
        "metal",
        "current",
        "dance",
        "honey",
    ]
    rng = np.random.default_rng(0)
    texts = {
        f"d{number:03d}": " ".join(rng.choice(words, rng.integers(3, 20))) for number in range(120)
    }
    return texts, [
        (f"q{number:03d}", f"query {text}", doc_id)
        for number, (doc_id, text) in enumerate(texts.items())
    ]


def test_job_compares_pair_by_pair(tmp_path, here):
    texts = {"a": "one", "b": "two", "c": "three", "d": "four"}
    inputs._write(str(tmp_path), texts.items(), [("q1", "first", "a"), ("q2", "second", "b")])
    folder = tmp_path / "run" / "5_sets" / "fp32"
    folder.mkdir(parents=True)
    names, rows = (
        ("query_id", "doc_id", "score", "positive_score"),
        [("q1", "b", 0.5, 0.8), ("q1", "c", 0.4, 0.8), ("q2", "c", 0.7499, 0.8)],
    )
    pq.write_table(
        pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]),
        folder / "00000.parquet",
    )
    peer = [["first", "two", 0.8, 0.5], ["first", "four", 0.8, 0.4002]]
    (tmp_path / "peer fp32.json").write_text(json.dumps(peer))
    compared = job.compare(str(tmp_path))
    assert (compared["ours"], compared["theirs"], compared["same"]) == (3, 2, 0.25)
    assert compared["largest distance of a differing pair to a tie"] == pytest.approx(0.0002)


@pytest.mark.slow
def test_growth_part(here):
    part = growth.measure(CEILINGS, documents=(50, 100), queries=(4, 8), middle=(100, 8), k=5)
    assert part["bm25"]["with documents"]["exponents"].keys() == {
        "index_seconds",
        "search_seconds",
        "memory_mb",
    }
    assert [point["queries"] for point in part["flat"]["with queries"]["points"]] == [4, 8]


def test_exponents_are_slopes_of_logarithms():
    points = [
        {"documents": size, "search_seconds": 3e-6 * size**1.5, "memory_mb": 7.0}
        for size in (10, 100, 1000)
    ]
    assert growth.exponents(points, "documents") == {"search_seconds": 1.5, "memory_mb": 0.0}


def test_the_command_writes_what_it_ran(tmp_path, monkeypatch):
    out = tmp_path / "search.json"
    monkeypatch.setattr(
        search, "PARTS", {"bm25": lambda limits, **sizes: {"targets": [], **sizes}, "flat": None}
    )
    monkeypatch.setattr(search, "run_side", lambda side: {**CEILINGS, "peak_memory_mb": 1.0})
    monkeypatch.setattr(
        sys, "argv", ["bench/search.py", "--only", "bm25", "--documents", "7", "--out", str(out)]
    )
    search.main()
    written = json.loads(out.read_text())
    assert written.keys() == {"bm25"}
    assert (written["bm25"]["command"], written["bm25"]["documents"]) == (
        f"python bench/search.py --only bm25 --documents 7 --out {out}",
        7,
    )
    assert written["bm25"]["machine"]["versions"]["numpy"] == np.__version__


def test_gpu_bench_runs_on_a_cpu_and_writes_only_where_told(tmp_path, monkeypatch):
    for name, value in {
        "WIDTH": 16,
        "LAYERS": 1,
        "HEADS": 2,
        "INNER": 16,
        "WORDS": 50,
        "LENGTHS": (8, 12),
        "BLOCK": 300,
    }.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "ceilings", lambda device, size: CEILINGS)
    monkeypatch.setattr(gpu, "RESULT", tmp_path / "gpu.json")
    sizes = (
        "--device cpu --documents 1000 --queries 50 --texts 20 --chunk 20 -k 10 --factory IVF4,Flat"
        " --parameters nprobe=4"
    )
    monkeypatch.setattr(sys, "argv", ["bench/gpu.py", *sizes.split(), "--only", "flat"])
    gpu.main()
    assert not gpu.RESULT.exists()
    monkeypatch.setattr(
        sys, "argv", ["bench/gpu.py", *sizes.split(), "--out", str(tmp_path / "cpu.json")]
    )
    gpu.main()
    written = json.loads((tmp_path / "cpu.json").read_text())
    assert written.keys() == {"encode", "flat", "ivf"}
    assert written["encode"]["8 tokens"]["texts"] == 20
    assert written["encode"]["12 tokens"]["floor"]["flops"] == 20 * (
        12 * (8 * 16**2 + 4 * 16 * 16) + 12**2 * 4 * 16
    )
    assert all(
        written["flat"][name]["queries_done"] == 50 and not written["flat"][name]["projected"]
        for name in ("torch", "faiss")
    )
    assert written["ivf"]["recall"] == 1.0  # all lists are probed


def test_a_search_that_takes_too_long_stops_and_is_projected():
    import time
    from argparse import Namespace

    done = gpu.in_chunks(
        np.zeros((50, 4)), Namespace(chunk=20, seconds=0.02), lambda part: time.sleep(0.03)
    )
    assert (done["queries_done"], done["projected"]) == (20, True)
    assert done["seconds_of_all_queries"] == pytest.approx(3 * done["seconds"], abs=0.06)
