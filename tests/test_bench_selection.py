"""bench/selection.py at tiny sizes: what it counts and compares, and select on written
candidates.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import train_reranker  # noqa: E402
from parts import agreement, false_negatives, selecting  # noqa: E402

from miner.store import Run  # noqa: E402
from scoring.recipe import Select  # noqa: E402


def test_sets_are_cut_to_equal_numbers_of_each_query():
    one, other = (
        {"q1": [["a", 0.5], ["b", 0.4], ["c", 0.3]], "q2": [["d", 0.9]]},
        {"q1": [["c", 0.3], ["x", 0.2]], "q3": [["e", 0.1]]},
    )
    assert false_negatives.equal(one, other) == (
        {"q1": [["a", 0.5], ["b", 0.4]], "q2": []},
        {"q1": [["c", 0.3], ["x", 0.2]], "q2": []},
    )
    assert false_negatives.count(one, {"q1": ["b", "d"], "q2": ["b"]}) == {
        "negatives": 4,
        "hidden": 1,
        "hardness": 0.525,
        "hardness of the others": pytest.approx(0.5667),
    }


@pytest.mark.parametrize(
    "settings", [*false_negatives.RIVALS.values(), *false_negatives.OURS.values()]
)
def test_every_recipe_of_the_bench_is_one(settings):
    assert Select(name="x", sources=("a",), **settings).negatives is None
    assert set(false_negatives.DUELS) == set(false_negatives.RIVALS)
    assert set(false_negatives.DUELS.values()) <= set(false_negatives.OURS)


def test_agreement_counts_pairs_of_either_side_and_sets_early_positives_apart(tmp_path):
    theirs = {
        "top": [["q1", "a", 0.5], ["q1", "b", 0.25]],
        "range": [["q1", "a", 0.5], ["q2", "c", 0.5]],
    }
    ours = {
        "top": [["q1", "a", 0.5], ["q1", "c", 0.25]],
        "range": [["q1", "x", 0.5], ["q2", "c", 0.75]],
    }
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    (tmp_path / "ours.json").write_text(json.dumps({"found": ours, "early": ["q1"]}))
    compared = agreement.compare(tmp_path)
    assert compared["top"] == {
        "ours": 2,
        "theirs": 2,
        "same": 1 / 3,
        "largest difference of a score": 0.0,
    }
    assert (compared["range"]["same"], compared["range"]["largest difference of a score"]) == (
        1.0,
        0.25,
    )


def test_select_on_written_candidates(tmp_path):
    selecting.write_candidates_run(str(tmp_path), queries=5)
    run = Run(tmp_path / "run")
    assert run.need("3_candidates/dense", "").rows == {"candidates": 1000}
    measured = selecting.quarry(str(tmp_path), workers=1)
    assert measured["sets"] == 50
    assert measured["sets"] + measured["rejected"] == 1000
    assert run.need("5_sets/set", "").drops["positive"] == 5


def test_training_pairs_are_of_one_query_each():
    training = train_reranker.Training(["q0", "q1"], list("abcde"), [[0], [1]], [[2, 3], [3, 4]])
    pairs, labels = train_reranker.draw(training, np.random.default_rng(0))
    assert len(pairs) == len(labels) == 4 * train_reranker.QUERIES
    for (query, document), label in zip(pairs, labels, strict=True):
        assert label == float((query, document) in {("q0", "a"), ("q1", "b")})
