"""What bench/validity.py rests on, without training: sets, nDCG, its analysis."""

import json
import sys
from pathlib import Path

import ir_measures
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from parts.validity_analysis import analyse
from parts.validity_sets import SIZE, greedy_pull, make_sets
from validity import Data, lists_of, ndcg, predictors

QUERIES, DOCUMENTS = 40, 400


def unit(random, *shape):
    vectors = random.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def toy():
    random = np.random.default_rng(0)
    vectors = unit(random, QUERIES + DOCUMENTS, 16)
    positives = [random.permutation(DOCUMENTS)[: 1 + number % 3] for number in range(QUERIES)]
    places = np.arange(QUERIES)
    data = Data(
        "toy", [""] * len(vectors), QUERIES, positives, places[:30], places[30:32], places[32:]
    )
    bm25 = random.random((30, DOCUMENTS))
    return data, vectors, lists_of(data, vectors, unit(random, len(vectors), 16), bm25)


def test_ndcg_is_that_of_ir_measures(toy):
    data, vectors, _ = toy
    measure = ir_measures.nDCG @ 10
    scores = vectors[data.test] @ vectors[QUERIES:].T
    run = {
        str(query): {str(row): float(score) for row, score in enumerate(line)}
        for query, line in zip(data.test, scores, strict=True)
    }
    gold = {str(query): {str(row): 1 for row in data.positives[query]} for query in data.test}
    expected = {one.query_id: one.value for one in ir_measures.iter_calc([measure], gold, run)}
    found = ndcg(vectors, data, data.test)
    assert found.tolist() == pytest.approx([expected[str(query)] for query in data.test])


def test_every_set_has_six_different_documents_a_query_and_no_positive(toy):
    data, _, lists = toy
    for name, chosen in make_sets(lists).items():
        assert chosen.shape == (30, SIZE), name
        for query, rows in zip(data.train, chosen, strict=True):
            if name not in ("bm25 + dense", "dense + random"):  # two lists may have the same one
                assert len(set(rows.tolist())) == SIZE, name
            assert not set(rows.tolist()) & set(data.positives[query].tolist()), name


def test_the_greedy_choice_is_the_best_at_each_step():
    random = np.random.default_rng(3)
    pulls, weights, target = random.normal(size=(12, 4)), random.random(12), random.normal(size=4)
    taken = []
    for _ in range(5):
        free = [i for i in range(12) if i not in taken]

        def distance(i):
            rows = [*taken, i]
            pulled = weights[rows] @ pulls[rows] / (1 + weights[rows].sum())
            return ((pulled - target) ** 2).sum()

        taken.append(min(free, key=distance))
    assert greedy_pull(pulls, weights, target, 5).tolist() == taken


def test_a_predictor_that_is_the_gain_is_perfect_and_its_opposite_is_not(toy, tmp_path):
    data, vectors, lists = toy
    said = predictors(data, vectors, lists, make_sets(lists))
    assert {"coverage", "safe coverage", "eci_v1", "eci_sem"} <= set(next(iter(said.values())))
    random, kept = np.random.default_rng(1), {"before": np.zeros(8), "rate": np.array(0.1)}
    for place, (name, row) in enumerate(sorted(said.items())):
        row["eci_v1"], row["signal"] = float(place), -float(place)
        for seed in range(2):
            kept[f"{name}|{seed}"] = place / 10 + random.normal(size=8) / 1000
    np.savez(tmp_path / "toy-head-explicit-adam.npz", **kept)
    (tmp_path / "toy-head-predictors.json").write_text(json.dumps(said))
    # the sampler's set is compared with others: let one of them stand for it
    result = json.loads(json.dumps(analyse(tmp_path, ours="random")))
    table = result["tables"]["explicit, adam, head and static"]
    assert table["eci_v1"]["spearman"] == table["eci_v1"]["pairs right"] == 1
    assert table["eci_v1"]["regret"] == 0 and table["signal"]["spearman"] == -1
    low, high = table["coverage"]["over eci_v1"]
    assert low <= high < 0
