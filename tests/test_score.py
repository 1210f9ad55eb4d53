import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import COSINES, FOUND, GOLD, HOW, Toy, toy_run, write_source

from miner.engine import How
from miner.errors import UserError
from miner.seeds import generator
from miner.tables import METRICS
from scoring.compare import paired_difference
from scoring.eci import eci_v1
from scoring.metrics import Score, bootstrap, query_sums
from scoring.recipe import Select
from scoring.score import _answers_queries, metrics, score
from scoring.select import select

PLAIN = Score(resamples=0)
NEGATIVES = {  # of --from dense
    "q1": ["d09", "d08", "d12"],
    "q2": ["d11", "d09"],
    "q3": ["d11", "d09", "d02"],
    "q4": ["d12", "d09"],
}


def toy_set(path, *sources, name="set", options=None, **changes):
    run = toy_run(path, **changes)
    select(run, Select(name=name, sources=sources or ("dense",), **(options or {})), HOW)
    return run


def values(run, name="set"):
    return {
        row["measure"]: row["value"] for row in metrics(run).to_pylist() if row["set_name"] == name
    }


def triples(first=None):
    return [
        (COSINES[q][p], COSINES[q][n])
        for q, found in NEGATIVES.items()
        for p in GOLD[q]
        for n in found[:first]
    ]


def pairs(first=None):
    return [COSINES[q][n] for q, found in NEGATIVES.items() for n in found[:first]]


def test_signal_is_the_mean_of_pairs_and_margin_that_of_triples(tmp_path):
    run = toy_set(tmp_path / "run")
    score(run, PLAIN, HOW)
    found, pooled = values(run), triples()
    assert len(pooled) == 3 + 4 + 3 + 6  # q2 and q4 count by their 2 and 3 positives
    signal = sum(pairs()) / 10  # a negative counts once, however many positives its query has
    margin = sum(max(0, p - n) for p, n in pooled) / 16
    assert found["signal"] == pytest.approx(signal, abs=1e-15)
    assert found["margin"] == pytest.approx(margin, abs=1e-15)
    assert found["negatives"] == 10 / 5  # q5 has none and counts
    assert found["capacity"] == math.log(3)
    assert found["efficiency"] == pytest.approx(2 * signal * margin / (signal + margin))
    assert found["eci_v1"] == pytest.approx(eci_v1(2.0, signal, margin))
    # q1-d08, q2-d03-d11 (equal), q3-d02, q4-d07-d12 (equal)
    assert found["unsafe_share"] == sum(n >= p for p, n in pooled) / 16 == 4 / 16
    assert found["queries_without_negatives"] == 1 / 5


def test_unsafe_none_keeps_margins_below_zero(tmp_path):
    run = toy_set(tmp_path / "run")
    score(run, Score(resamples=0, unsafe="none"), HOW)
    assert values(run)["margin"] == pytest.approx(sum(p - n for p, n in triples()) / 16, abs=1e-15)


def test_matched_measures_use_the_first_negatives_of_each_query(tmp_path):
    run = toy_set(tmp_path / "run")
    score(run, PLAIN, HOW)
    found, first = values(run), triples(1)
    assert len(first) == 7
    assert found["signal@1"] == pytest.approx(sum(pairs(1)) / 4)
    assert found["margin@1"] == pytest.approx(sum(max(0, p - n) for p, n in first) / 7)
    assert found["eci_v1@1"] == pytest.approx(eci_v1(4 / 5, found["signal@1"], found["margin@1"]))
    assert "eci_v1@3" not in found  # the mean is 2
    rows_of = {row["measure"]: row for row in metrics(run).to_pylist() if row["set_name"] == "set"}
    assert rows_of["eci_v1@1"]["k"] == 1
    assert rows_of["eci_v1"]["k"] is None


def test_matched_sizes_go_up_to_the_rounded_mean(tmp_path):
    run = toy_set(tmp_path / "run", "bm25", "dense")
    score(run, PLAIN, HOW)
    select(run, Select(name="bm25", sources=("bm25",)), HOW)
    score(run, Score(sets=("bm25",), resamples=0), HOW)
    assert values(run)["negatives"] == (5 + 4 + 4 + 5) / 5
    assert {measure for measure in values(run) if "eci_v1" in measure} == {
        "eci_v1",
        "eci_v1@1",
        "eci_v1@3",
    }
    assert values(run, "bm25")["negatives"] == (4 + 3 + 2 + 4) / 5  # 2.6: near enough to 3
    assert "eci_v1@3" in values(run, "bm25")


def test_n_counts_queries_with_a_negative_and_no_resamples_give_no_interval(tmp_path):
    run = toy_set(tmp_path / "run")
    score(run, PLAIN, HOW)
    of_set = [row for row in metrics(run).to_pylist() if row["set_name"] == "set"]
    assert {row["n"] for row in of_set} == {4}
    assert {(row["low"], row["high"]) for row in of_set} == {(None, None)}
    assert metrics(run).schema.equals(METRICS.schema)


def test_scores_are_of_judge_similarity_whatever_the_recipe_used(tmp_path):
    run = toy_set(tmp_path / "run", options={"judge": "similarity.positive"})
    score(run, PLAIN, HOW)
    assert values(run)["signal"] == pytest.approx(sum(pairs()) / 10)


def test_histograms_count_negatives_positives_and_raw_margins(tmp_path):
    run = toy_set(tmp_path / "run", similarity=COSINES | {"q5": {"d12": 1.0}})
    score(run, PLAIN, HOW)
    counted = {}
    for key in run.query_shards():
        for row in run.read("6_metrics/_per_query/set/_histograms", key).to_pylist():
            place = (row["quantity"], row["low"], row["high"])
            counted[place] = counted.get(place, 0) + row["count"]
    total = {
        quantity: sum(count for place, count in counted.items() if place[0] == quantity)
        for quantity in ("s_n", "s_p", "margin")
    }
    assert total == {"s_n": 10, "s_p": 8, "margin": 16}
    assert [quantity for quantity, *_ in counted].count("s_n") == 100
    assert [quantity for quantity, *_ in counted].count("margin") == 200
    assert counted["s_p", 0.98, 1.0] == 1  # 1 is in the last bin
    assert counted["s_n", 0.86, 0.88] == 1
    # q1 d01-d08 and q3 d04-d02, below zero though the measure clamps them
    assert counted["margin", -0.14, -0.12] == 2
    assert counted["margin", 0.0, 0.02] == 2


def test_query_sums_of_truncated_and_empty_queries():
    names = ("negatives", "triples", "signal", "margin")
    sums = query_sums(np.array([0.5, 0.25]), np.array([0.5, -0.25, 0.125, 0.0]), hinge=True)
    assert sums[:4].tolist() == [4, 8, 0.375, 2.5]
    assert sums[4:6].tolist() == [2, 0]
    by_size = dict(zip((1, 3, 5), sums[6:18].reshape(3, len(names)).tolist(), strict=True))
    assert by_size == {1: [1, 2, 0.5, 0.0], 3: [3, 6, 0.375, 1.75], 5: [4, 8, 0.375, 2.5]}
    assert (
        query_sums(np.array([0.5]), np.empty(0), hinge=True).tolist()
        == [0, 0, 0, 0, 0, 1] + [0] * 37
    )
    assert query_sums(np.empty(0), np.array([0.5]), hinge=False)[:6].tolist() == [
        1,
        0,
        0.5,
        0,
        0,
        0,
    ]


def test_a_set_without_negatives_has_no_signal_and_no_eci(tmp_path):
    run = toy_set(tmp_path / "run", options={"max_score": -0.9})
    score(run, Score(resamples=50), HOW)
    found = {
        row["measure"]: (row["value"], row["low"], row["high"], row["n"])
        for row in metrics(run).to_pylist()
        if row["set_name"] == "set"
    }
    assert found["eci_v1"] == (0.0, 0.0, 0.0, 0)
    assert found["signal"] == (None, None, None, 0)
    assert found["queries_without_negatives"] == (1.0, 1.0, 1.0, 0)
    assert not any("@" in measure for measure in found)


def test_intervals_are_percentiles_over_resampled_queries(tmp_path):
    run = toy_set(tmp_path / "run", options={"negatives": 2})
    score(run, Score(resamples=400, confidence=0.8, seed=3), HOW)
    row = next(
        row
        for row in metrics(run).to_pylist()
        if row["measure"] == "signal" and row["set_name"] == "set"
    )
    chosen = [
        [COSINES[query_id][doc_id] for doc_id in NEGATIVES.get(query_id, [])[:2]]
        for query_id in sorted(GOLD)
    ]
    per_query = np.array([[sum(found), len(found)] for found in chosen])
    drawn = generator(3).integers(0, 5, (400, 5))
    signal, weight = per_query[drawn].sum(axis=1).T
    resampled = signal[weight > 0] / weight[weight > 0]
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(resampled, [0.1, 0.9])))
    assert row["low"] < row["value"] < row["high"]


def test_bootstrap_sums_are_those_of_drawn_rows():
    matrix = generator(1).normal(size=(7, 3))
    drawn = generator(5).integers(0, 7, (20, 7))
    np.testing.assert_allclose(bootstrap(matrix, 20, 5), matrix[drawn].sum(axis=1))
    assert bootstrap(matrix, 0, 5).shape == (0, 3)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    random, hits = generator(0), 0
    for seed in range(200):
        sample = random.normal(size=(60, 1))
        low, high = np.quantile(bootstrap(sample, 200, seed) / 60, [0.05, 0.95])
        hits += low < 0 < high
    assert 0.82 < hits / 200 < 0.96


def test_paired_difference_of_two_sets(tmp_path):
    run = toy_set(tmp_path / "run", name="a")
    select(run, Select(name="b", sources=("bm25",)), HOW)
    select(run, Select(name="c", sources=("bm25:100",)), HOW)
    options = Score(resamples=300)
    score(run, options, HOW)
    value, low, high, common = paired_difference(run, "a", "b", "eci_v1", options)
    assert value == pytest.approx(values(run, "a")["eci_v1"] - values(run, "b")["eci_v1"])
    assert low <= high
    assert common is None
    back = paired_difference(run, "b", "a", "eci_v1", options)
    assert back[:3] == pytest.approx((-value, -high, -low))
    # the same queries in every resample
    assert paired_difference(run, "b", "c", "eci_v1@1", options) == (0, 0, 0, None)
    assert paired_difference(run, "a", "b", "signal@1", PLAIN)[1:] == (None, None, None)
    with pytest.raises(UserError, match=r"has no measure 'eci_v1@50'; take one of .*eci_v1@1"):
        paired_difference(run, "a", "b", "eci_v1@50", options)
    with pytest.raises(UserError, match="run `quarry score d` first"):
        paired_difference(run, "a", "d", "eci_v1", options)


def ndcg(ranks, positives, k=10):
    gain = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= k)
    return gain / sum(1 / math.log2(1 + rank) for rank in range(1, min(positives, k) + 1))


def test_sources_are_measured_with_the_positives_that_they_found(tmp_path):
    run = toy_run(tmp_path / "run", k=100)
    score(run, PLAIN, HOW)
    bm25 = [ndcg([2], 1), ndcg([1, 4], 2), ndcg([3], 1), ndcg([1, 3], 3), 0]
    assert values(run, "bm25") == pytest.approx(
        {"ndcg@10": sum(bm25) / 5, "recall@100": (1 + 1 + 1 + 2 / 3 + 0) / 5}
    )
    assert values(run, "dense") == pytest.approx({"ndcg@10": 4 / 5, "recall@100": 4 / 5})
    row = next(row for row in metrics(run).to_pylist() if row["measure"] == "recall@100")
    assert (row["k"], row["n"]) == (100, 5)


def test_a_shallow_source_is_named_by_its_depth(tmp_path):
    run = toy_run(tmp_path / "run", k=3)  # ranks beyond 3 are there for some queries only
    score(run, PLAIN, HOW)
    assert values(run, "bm25") == pytest.approx(
        {
            "ndcg@3": (
                (ndcg([2], 1, 3) + ndcg([1], 2, 3) + ndcg([3], 1, 3) + ndcg([1, 3], 3, 3)) / 5
            ),
            "recall@3": (1 + 1 / 2 + 1 + 2 / 3) / 5,
        }
    )


def test_a_source_without_k_is_as_deep_as_its_deepest_rank(tmp_path):
    run = toy_run(tmp_path / "run", k=None)
    score(run, PLAIN, HOW)
    assert set(values(run, "bm25")) == {"ndcg@6", "recall@6"}
    assert set(values(run, "dense")) == {"ndcg@5", "recall@5"}


def test_sources_not_searched_with_the_query_alone_are_not_measured(tmp_path):
    run = toy_run(tmp_path)
    score(run, PLAIN, HOW)
    assert "ndcg@5" in values(run, "dense")
    for name, searched_with in (("dense", "positives"), ("bm25", "query")):
        file = run.path / "3_candidates" / name / "_manifest.json"
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"facts": {"searched_with": searched_with}})
        )
    score(run, PLAIN, HOW)
    # what an earlier source of the name left is gone
    assert not values(run, "dense") and "ndcg@5" in values(run, "bm25")


def test_queries_without_positives_do_not_count_for_sources(tmp_path):
    run = toy_run(tmp_path / "run", positives=GOLD | {"q5": []}, k=100)
    score(run, Score(resamples=100), HOW)
    assert values(run, "dense") == {"ndcg@10": 1.0, "recall@100": 1.0}
    assert {
        (row["low"], row["high"], row["n"])
        for row in metrics(run).to_pylist()
        if row["set_name"] == "dense"
    } == {(1.0, 1.0, 4)}


@pytest.mark.parametrize(
    "changes", [{"shard_queries": 1}, {"shard_queries": 2}, {"shard_queries": 50}]
)
def test_neither_shards_nor_workers_change_a_metric(tmp_path, changes):
    expected = toy_set(tmp_path / "a", "bm25", "dense")
    score(expected, Score(resamples=50), HOW)
    run = toy_set(tmp_path / "b", "bm25", "dense", **changes)
    score(run, Score(resamples=50), How(workers=2 if changes["shard_queries"] == 2 else 1))
    assert metrics(run).equals(metrics(expected))
    for name in ("set-set", "source-bm25", "source-dense"):
        file = f"6_metrics/{name}.parquet"
        assert (run.path / file).read_bytes() == (expected.path / file).read_bytes()


def test_scoring_again_is_skipped_and_other_options_are_refused(tmp_path):
    run = toy_set(tmp_path / "run")
    assert [manifest.stage for manifest in score(run, PLAIN, HOW)] == [
        "6_metrics/_per_query/set",
        *(f"6_metrics/_sources/{s}" for s in FOUND),
    ]
    assert all(manifest.skipped for manifest in score(run, Score(sets=("set",), resamples=0), HOW))
    with pytest.raises(UserError, match="unsafe='hinge', now 'none'"):
        score(run, Score(resamples=0, unsafe="none"), HOW)


def test_what_is_missing_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="neither a set nor a source"):
        score(toy_run(tmp_path / "empty", candidates={}), PLAIN, HOW)
    with pytest.raises(UserError, match=r"no set 'other' \(found set\)"):
        score(toy_set(tmp_path / "other"), Score(sets=("other",)), HOW)
    with pytest.raises(UserError, match="run `quarry judge similarity` first"):
        score(toy_set(tmp_path / "judge", similarity=None), PLAIN, HOW)


def test_pairs_without_similarity_are_counted(tmp_path):
    of_dense = {
        q: {d: s for d, s in found.items() if d in {*FOUND["dense"].get(q, []), *GOLD[q]}}
        for q, found in COSINES.items()
    }
    run = toy_set(tmp_path / "run", candidates={"dense": FOUND["dense"]}, similarity=of_dense)
    write_source(run, Toy(), "bm25")
    select(run, Select(name="later", sources=("bm25",)), HOW)
    with pytest.raises(
        UserError,
        match=(
            r"8 pairs of 5_sets/later have no row by judge similarity.*`quarry judge similarity`"
            r" first: it judges only these"
        ),
    ):
        score(run, Score(sets=("later",), resamples=0), HOW)
    assert score(run, Score(sets=("set",), resamples=0), HOW)  # what the judge has seen is scored


def test_scores_that_are_not_finite_are_dropped_and_counted(tmp_path):
    run = toy_set(
        tmp_path / "run",
        similarity=COSINES | {"q1": COSINES["q1"] | {"d08": math.nan}, "q5": {"d12": None}},
    )
    manifest = score(run, PLAIN, HOW)[0]
    assert manifest.drops == {"no_score": 2}
    assert values(run)["signal"] == pytest.approx((sum(pairs()) - COSINES["q1"]["d08"]) / 9)
    assert values(run)["negatives"] == 9 / 5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(-1, 1), max_size=3), st.lists(st.floats(-1, 1), max_size=6)),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_sums_are_those_of_the_definition(queries, hinge):
    total = np.sum(
        [query_sums(np.array(p, float), np.array(n, float), hinge) for p, n in queries], axis=0
    )
    pooled = [(p, n) for positives, negatives in queries for p in positives for n in negatives]
    expected = [
        sum(len(n) for _, n in queries),
        len(pooled),
        sum(n for _, negatives in queries for n in negatives),
        sum(max(p - n, 0) if hinge else p - n for p, n in pooled),
    ]
    assert total[:4] == pytest.approx(expected)
    assert total[4] == sum(n >= p for p, n in pooled)
    at_3 = [(p, n) for positives, negatives in queries for p in positives for n in negatives[:3]]
    assert total[10:14][1] == len(at_3)
    assert total[10:14][2] == pytest.approx(
        sum(n for _, negatives in queries for n in negatives[:3])
    )


def test_asking_whether_a_source_answers_queries_deletes_nothing(tmp_path):
    run = toy_run(tmp_path)
    select(run, Select(name="s", sources=("bm25",)), HOW)
    score(run, Score(resamples=0), HOW)
    file = tmp_path / "6_metrics/source-bm25.parquet"
    assert _answers_queries(run, "bm25") and file.exists()
    manifest = tmp_path / "3_candidates/bm25/_manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"facts": {"searched_with": "positives"}}))
    assert not _answers_queries(run, "bm25") and file.exists()
    score(run, Score(resamples=0), HOW)  # only scoring takes away what says nothing any more
    assert not file.exists() and (tmp_path / "6_metrics/source-dense.parquet").exists()
