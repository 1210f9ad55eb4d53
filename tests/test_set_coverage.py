"""Coverage of sets of the toy run, against plain loops over its vectors."""

import json
import math

import numpy as np
import pytest
from test_coverage import plain_pull, unit
from toy import FOUND, GOLD, HOW, rows, toy_run
from vectors import write_vectors

from miner.made import Negative, made_shard
from miner.query_shard import QueryShard
from miner.stages import Stage, run_stage
from scoring.compare import paired_difference
from scoring.coverage import coverage, coverage_cosine, head_gradient
from scoring.diagnostics import centroid_gap, effective_size, uniformity
from scoring.eci import eci_sem
from scoring.judge.similarity import JudgeSimilarity, judge_similarity
from scoring.metrics import Score
from scoring.recipe import Select
from scoring.report import Report, report, verdict
from scoring.score import metrics, score
from scoring.select import select

VECTORS = unit(np.random.default_rng(5), 17, 6).astype(np.float32)
DOCUMENTS = {f"d{number:02d}": VECTORS[number - 1] for number in range(1, 13)}
QUERIES = {f"q{number}": VECTORS[11 + number] for number in range(1, 6)}
pytestmark = pytest.mark.usefixtures("by_hand")
WHOLE = Score(resamples=20, reference=0, reference_unsafe=True)


def made(path, **changes):
    run = toy_run(path, similarity=None, **changes)
    write_vectors(run, VECTORS[:12], VECTORS[12:])
    judge_similarity(run, JudgeSimilarity(), HOW)
    for name, sources in (("dense", ["dense"]), ("both", ["bm25:2", "dense"])):
        select(run, Select(name=name, sources=sources, negatives=3), HOW)
    return run


def values(run, name):
    return {row["measure"]: row for row in metrics(run).to_pylist() if row["set_name"] == name}


def gradients(run, name, first=None, safe=False, asked=None):
    """G and R of a set by plain loops; a query without a negative counts in neither."""
    chosen = {}
    for query_id, doc_id, rank in rows(run, f"5_sets/{name}", "query_id", "doc_id", "rank"):
        chosen.setdefault(query_id, []).append((rank, doc_id))
    own, reference = np.zeros((2, 6, 6))
    for query_id, found in chosen.items():
        if asked is not None and query_id not in asked:
            continue
        negatives = [doc_id for _, doc_id in sorted(found)][:first]
        near = max(DOCUMENTS[one] @ DOCUMENTS[two] for one in negatives for two in GOLD[query_id])
        assert near < 0.98  # nothing is left out of the reference but positives
        others = [doc_id for doc_id in DOCUMENTS if doc_id not in GOLD[query_id]]
        for positive in GOLD[query_id]:
            least = QUERIES[query_id] @ DOCUMENTS[positive] if safe else 2
            left = [doc_id for doc_id in others if QUERIES[query_id] @ DOCUMENTS[doc_id] < least]
            for doc_ids, total in ((negatives, own), (left, reference)):
                documents = np.array([DOCUMENTS[one] for one in doc_ids], float).reshape(-1, 6)
                pull = plain_pull(
                    QUERIES[query_id].astype(float), DOCUMENTS[positive].astype(float), documents
                )
                total += head_gradient(QUERIES[query_id][None], pull[None])
    return own, reference


@pytest.mark.parametrize("name", ["dense", "both"])
@pytest.mark.parametrize("shards", [{}, {"shard_queries": 1, "shard_documents": 2}])
def test_coverage_is_that_of_plain_loops_however_the_run_is_cut(tmp_path, name, shards):
    run = made(tmp_path / "run", **shards)
    score(run, WHOLE, HOW)
    found = values(run, name)
    for suffix, first in (("", None), ("@1", 1)):
        own, reference = gradients(run, name, first)
        for measure, form in (("coverage", coverage), ("coverage_cosine", coverage_cosine)):
            row = found[f"{measure}{suffix}"]
            assert row["value"] == pytest.approx(form(own, reference), abs=1e-5)
            assert row["k"] == first and row["low"] <= row["value"] <= row["high"]


def test_what_scores_as_high_as_the_positive_is_no_reference(tmp_path):
    run = made(tmp_path / "run")
    score(run, Score(resamples=0, reference=0), HOW)
    own, reference = gradients(run, "both", safe=True)
    assert values(run, "both")["coverage"]["value"] == pytest.approx(
        coverage(own, reference), abs=1e-5
    )
    assert coverage(own, reference) != pytest.approx(coverage(*gradients(run, "both")), abs=0.01)


def test_bands_share_out_what_the_corpus_asks_for(tmp_path):
    run = made(tmp_path / "run")
    score(run, WHOLE, HOW)
    bands = run.need("6_metrics/_per_query/both", "score").facts["coverage_bands"]
    assert [band["above"] for band in bands] == [None, -0.3, -0.2, -0.1, -0.05]
    assert sum(band["asked"] for band in bands) == pytest.approx(1, abs=1e-3)
    assert all(abs(band["given"]) <= 1 for band in bands)


def test_a_sample_with_all_candidates_comes_near_to_the_whole(tmp_path):
    run = made(tmp_path / "run")
    score(run, WHOLE, HOW)
    whole = run.path / "6_metrics/_reference/00000.npy"
    expected = np.load(whole)
    for size, off in ((12, 1e-6), (11, 0.2)):
        score(
            run,
            Score(resamples=0, reference=size, reference_unsafe=True),
            HOW.__class__(force=True),
        )
        assert np.abs(np.load(whole) - expected).max() <= off
    facts = run.need("6_metrics/_per_query/both", "score").facts["coverage_reference"]
    assert facts["documents"] == 11 and "positives" in facts["left_out"]


def test_near_copies_of_positives_and_what_duplicates_drops_are_no_reference(tmp_path):
    run = toy_run(tmp_path / "run", similarity=None)
    copied = VECTORS.copy()
    copied[8] = copied[0]  # d09 is d01, q1's positive
    write_vectors(run, copied[:12], copied[12:])
    judge_similarity(run, JudgeSimilarity(), HOW)
    select(run, Select(name="dense", sources=["dense"]), HOW)
    score(run, WHOLE, HOW)
    shard = QueryShard(run, "00000")
    first = np.load(run.path / "6_metrics/_reference/00000.npy")[0]
    assert shard.positives[0][0] == 0 and "d09" in FOUND["dense"]["q1"]
    others = [row for row in range(12) if row not in (0, 8)]
    expected = plain_pull(QUERIES["q1"], DOCUMENTS["d01"], copied[others])
    np.testing.assert_allclose(first, expected, atol=1e-6)


def test_a_batch_brings_the_texts_of_others_along(tmp_path):
    run = made(tmp_path / "run", shard_queries=5)
    score(run, Score(resamples=0, reference=0, reference_unsafe=True, batch=64), HOW)
    chosen = rows(run, "5_sets/dense", "query_id", "doc_id")
    asked = {query_id for query_id, _ in chosen}
    # one batch: all positives of queries with negatives, and all negatives
    own, reference = np.zeros((2, 6, 6))
    pairs = [(q, p) for q in sorted(asked) for p in GOLD[q]]
    for query_id, positive in pairs:
        own_negatives = [doc_id for q, doc_id in chosen if q == query_id]
        beside = [
            *own_negatives,
            *sorted({d for _, d in chosen} - set(own_negatives)),
            *(other for q, other in pairs if q != query_id),
        ]
        documents = np.array([DOCUMENTS[doc_id] for doc_id in beside], float)
        pull = plain_pull(QUERIES[query_id], DOCUMENTS[positive], documents)
        own += head_gradient(QUERIES[query_id][None], pull[None])
    reference = gradients(run, "dense")[1]
    assert values(run, "dense")["coverage"]["value"] == pytest.approx(
        coverage(own, reference), abs=1e-5
    )


def test_two_sets_are_compared_with_the_same_queries(tmp_path):
    run = made(tmp_path / "run")
    score(run, WHOLE, HOW)
    value, low, high, common = paired_difference(run, "both", "dense", "coverage", WHOLE)
    one, two = (values(run, name)["coverage"]["value"] for name in ("both", "dense"))
    assert value == pytest.approx(one - two) and low <= high and common is None
    assert paired_difference(run, "both", "both", "coverage@1", WHOLE) == (0, 0, 0, None)
    plain = WHOLE.model_copy(update={"resamples": 0})
    assert paired_difference(run, "both", "dense", "coverage", plain)[1:] == (None, None, None)


def test_sets_of_different_queries_are_compared_on_those_of_both(tmp_path):
    run = made(tmp_path / "run", shard_queries=2)
    select(run, Select(name="few", sources=["dense"], max_score=("0.2",)), HOW)
    select(run, Select(name="some", sources=["bm25"], negatives=1), HOW)
    score(run, WHOLE, HOW)
    asked = {name: set(rows(run, f"5_sets/{name}", "query_id")) for name in ("few", "some")}
    both = {one for (one,) in asked["few"] & asked["some"]}
    assert 1 < len(both) < max(map(len, asked.values()))
    found = paired_difference(run, "few", "some", "coverage", WHOLE)
    one, two = (coverage(*gradients(run, name, asked=both)) for name in ("few", "some"))
    assert found.value == pytest.approx(one - two, abs=1e-5) and found.queries == len(both)
    assert found.low < found.value < found.high
    whole = [values(run, name)["coverage"]["value"] for name in ("few", "some")]
    assert found.value != pytest.approx(whole[0] - whole[1], abs=1e-3)


def test_without_vectors_of_the_target_encoder_there_is_none(tmp_path):
    run = toy_run(tmp_path / "run")
    select(run, Select(name="dense", sources=["dense"]), HOW)
    score(run, WHOLE, HOW)
    found = values(run, "dense")
    assert "eci_v1" in found and not any(name.startswith("coverage") for name in found)
    assert not math.isnan(found["eci_v1"]["value"])


def test_the_report_orders_by_coverage_and_says_what_sets_miss(tmp_path):
    run = made(tmp_path / "run")
    score(run, WHOLE, HOW)
    said = report(run, Report(), HOW).facts["verdict"]
    data = json.loads((run.path / "7_report/report.json").read_text())
    found = {name: values(run, name)["coverage@1"]["value"] for name in ("dense", "both")}
    assert data["by"] == "coverage" and data["matched"] == 1
    assert [row["name"] for row in data["sets"]] == sorted(found, key=lambda name: -found[name])
    assert "highest coverage" in said[0] and said == data["findings"] == verdict(run)
    page = (run.path / "7_report/report.html").read_text()
    asked = data["sets"][0]["bands"][0]["asked"]
    assert "What each set misses" in page and f"{100 * asked:.1f} %" in page
    assert "effective documents" in page and "How to read coverage" in page


def test_what_describes_a_set_as_a_whole(tmp_path):
    run = made(tmp_path / "run")
    score(run, WHOLE, HOW)
    chosen = rows(run, "5_sets/both", "query_id", "doc_id")
    found = {measure: row["value"] for measure, row in values(run, "both").items()}
    counts = np.unique([doc_id for _, doc_id in chosen], return_counts=True)[1]
    assert found["effective_documents"] == pytest.approx(effective_size(counts))
    negatives = np.array([DOCUMENTS[doc_id] for _, doc_id in chosen])
    positives = np.array([DOCUMENTS[GOLD[query_id][0]] for query_id, _ in chosen])
    queries = np.array([QUERIES[query_id] for query_id, _ in chosen])
    assert found["uniformity"] == pytest.approx(uniformity(negatives), abs=1e-5)
    assert found["centroid_gap"] == pytest.approx(centroid_gap(positives, negatives), abs=1e-5)
    assert found["eci_sem"] == pytest.approx(eci_sem(queries, positives, negatives), abs=1e-5)
    shares = [found[f"gradient_{kind}"] for kind in ("unsafe", "hard", "easy")]
    assert sum(shares) == pytest.approx(1) and 1 <= found["n_eff_0.05"] <= 3


def test_the_report_says_why_there_is_no_coverage(tmp_path):
    run = toy_run(tmp_path / "run")
    select(run, Select(name="dense", sources=["dense"]), HOW)
    score(run, WHOLE, HOW)
    report(run, Report(), HOW)
    assert "Coverage is not measured" not in (run.path / "7_report/report.html").read_text()
    write_vectors(run, VECTORS[:12], VECTORS[12:])  # of an encoder that no judge compared
    report(run, Report(), HOW)
    assert "Coverage is not measured" in (run.path / "7_report/report.html").read_text()


def test_a_set_without_negatives_has_no_coverage(tmp_path):
    run = made(tmp_path / "run", shard_queries=1)
    select(run, Select(name="none", sources=["dense"], min_score=2), HOW)
    score(run, WHOLE, HOW)
    found = values(run, "none")
    assert found["coverage"]["value"] is None and found["coverage"]["low"] is None
    assert values(run, "both")["coverage"]["value"] is not None
    report(run, Report(), HOW)
    data = json.loads((run.path / "7_report/report.json").read_text())
    assert data["by"] == "coverage" and data["sets"][-1]["name"] == "none"


def test_made_documents_count_for_the_set_and_not_for_the_corpus(tmp_path, monkeypatch):
    """Their vectors are made once, with the reference; here from their text."""
    spoken = {f"made {number}": VECTORS[number] * [-1, 1, 1, -1, 1, 1] for number in range(5)}

    def vectors_of(run, index, documents, rows):
        made = [spoken[text] for text in documents.texts(rows[documents.is_made(rows)])]
        out = np.zeros((len(rows), 6), np.float32)
        plain = ~documents.is_made(rows)
        out[plain] = VECTORS[:12][rows[plain]]
        out[~plain] = made
        return out

    for module in ("scoring.reference", "scoring.judge.similarity"):
        monkeypatch.setattr(f"{module}.document_vectors", vectors_of)
    run = toy_run(tmp_path / "run", similarity=None)
    write_vectors(run, VECTORS[:12], VECTORS[12:])
    stage = Stage("3_candidates/made", "candidates", {}, run.table_input(), made_by="mine made")

    def make(key):
        query_ids = run.read("1_tables/queries", key)["query_id"].to_pylist()
        texts = [(query_id, f"made {int(query_id[1]) - 1}") for query_id in query_ids]
        made = [Negative(one, GOLD[one][0], text, {}, None) for one, text in texts]
        return made_shard(run, "made", made, key)

    run_stage(run, stage, lambda: make, run.query_shards(), HOW)
    judge_similarity(run, JudgeSimilarity(), HOW)
    select(run, Select(name="made", sources=["made"]), HOW)
    score(run, WHOLE, HOW)
    own, reference = np.zeros((2, 6, 6))
    for query_id, gold in GOLD.items():
        others = [DOCUMENTS[doc_id] for doc_id in DOCUMENTS if doc_id not in gold]
        negative = spoken[f"made {int(query_id[1]) - 1}"]
        for positive in gold:
            for documents, total in (([negative], own), (others, reference)):
                pull = plain_pull(QUERIES[query_id], DOCUMENTS[positive], np.array(documents))
                total += head_gradient(QUERIES[query_id][None], pull[None])
    found = values(run, "made")
    assert found["coverage"]["value"] == pytest.approx(coverage(own, reference), abs=1e-5)
    assert found["effective_documents"]["value"] == pytest.approx(5)
