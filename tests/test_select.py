import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import (
    COSINES,
    FOUND,
    GOLD,
    HOW,
    NEAREST,
    Toy,
    rows,
    toy_run,
    write_judge,
    write_similarity,
    write_source,
)
from vectors import plane, write_vectors

from cli.flags import build_options
from miner.engine import How
from miner.errors import UserError
from miner.files import write_json, write_table
from scoring.judge.duplicates import JudgeDuplicates, judge_duplicates
from scoring.recipe import Select, parse_source
from scoring.select import preview, select


@pytest.fixture
def run(tmp_path):
    return toy_run(tmp_path / "run")


def make(run, *sources, name="set", how=HOW, **options):
    """Make a set and return it as query -> documents in order."""
    select(run, Select(name=name, sources=sources, **options), how)
    found = {}
    for query_id, doc_id, rank in rows(run, f"5_sets/{name}", "query_id", "doc_id", "rank"):
        found.setdefault(query_id, []).append(doc_id)
        assert rank == len(found[query_id])
    return found


def why(run, name="set"):
    return {
        row[:2]: row[2:]
        for row in rows(
            run, f"5_sets/{name}/_rejected", "query_id", "doc_id", "reason", "value", "threshold"
        )
    }


def reasons(run, reason, name="set"):
    return {pair for pair, (said, *_) in why(run, name).items() if said == reason}


ALL_POSITIVES = {
    ("q1", "d01"),
    ("q2", "d02"),
    ("q2", "d03"),
    ("q3", "d04"),
    ("q4", "d05"),
    ("q4", "d06"),
}


def test_without_rules_all_but_the_positives_in_order_of_rank(run):
    assert make(run, "bm25") == {
        "q1": ["d08", "d09", "d10", "d11"],
        "q2": ["d08", "d09", "d10"],
        "q3": ["d09", "d10"],
        "q4": ["d08", "d09", "d10", "d11"],
    }
    assert why(run) == {pair: ("positive", None, None) for pair in ALL_POSITIVES}
    manifest = run.find("5_sets/set")
    assert manifest.drops == {"positive": 6}
    assert manifest.rows == {"sets": 13, "rejected": 6}
    assert manifest.facts["protected_by"] == "ids, text, vectors"
    assert set(manifest.inputs) == {"1_tables", "3_candidates/bm25", "4_judgments/similarity"}


def test_scores_and_the_lowest_positive_stand_beside_each_negative(run):
    make(run, "dense")
    columns = ("query_id", "doc_id", "set_name", "score", "positive_score", "weight")
    assert rows(run, "5_sets/set", *columns)[:5] == [
        ("q1", "d09", "set", 0.625, 0.75, 1.0),
        ("q1", "d08", "set", 0.875, 0.75, 1.0),
        ("q1", "d12", "set", -0.25, 0.75, 1.0),
        ("q2", "d11", "set", 0.5, 0.5, 1.0),
        ("q2", "d09", "set", 0.4375, 0.5, 1.0),
    ]


def test_rank_window_counts_retrieval_ranks_not_survivors(run):
    assert make(run, "bm25", min_rank=2, max_rank=3) == {
        "q1": ["d09"],
        "q2": ["d08", "d09"],
        "q3": ["d10"],
        "q4": ["d08"],
    }
    found = why(run)
    assert found["q1", "d08"] == ("min_rank", 1.0, 2.0)
    assert found["q1", "d10"] == ("max_rank", 4.0, 3.0)
    assert found["q1", "d01"] == ("positive", None, None)
    # outside the window too: the first rule that fails is the reason
    assert found["q2", "d03"] == ("positive", None, None)


def test_absolute_margin_is_taken_from_the_lowest_positive_of_the_same_query(run):
    assert make(run, "bm25", "dense", absolute_margin=0.125) == {
        "q1": ["d10", "d12", "d11"],
        "q2": ["d10"],
        "q3": ["d09"],
        "q4": ["d10", "d11"],
    }
    found = why(run)
    assert found["q1", "d09"] == ("absolute_margin", 0.625, 0.625)  # s_n < s_p - a is strict
    # .5 is the lower positive of q2, .875 the other
    assert found["q2", "d09"] == ("absolute_margin", 0.4375, 0.375)
    assert found["q4", "d12"] == ("absolute_margin", 0.25, 0.125)
    assert found["q3", "d02"] == ("absolute_margin", -0.125, -0.375)


def test_percent_margin_holds_for_negative_scores(run):
    assert make(run, "bm25", "dense", percent_margin=0.5) == {
        "q1": ["d11", "d12"],
        "q2": ["d10"],
        "q3": ["d09"],  # s_p = -.25: below -.375, not below -.125
        "q4": ["d10", "d11"],
    }
    assert why(run)["q3", "d11"] == ("percent_margin", -0.3125, -0.375)
    assert why(run)["q1", "d10"] == ("percent_margin", 0.5, 0.375)


def test_percentile_margin_is_that_of_all_positives_of_all_shards(run):
    positives = [COSINES[query_id][doc_id] for query_id, found in GOLD.items() for doc_id in found]
    threshold = float(np.percentile(positives, 40))
    assert threshold == 0.5
    assert make(run, "bm25", "dense", percentile_margin=40) == {
        "q1": ["d11", "d12"],
        "q2": ["d09", "d10"],
        "q3": ["d09", "d11", "d10", "d02"],
        "q4": ["d09", "d12", "d10", "d11"],
    }
    assert why(run)["q1", "d10"] == ("percentile_margin", 0.5, threshold)
    assert make(run, "bm25", name="linear", percentile_margin=45)["q2"] == ["d09", "d10"]
    assert why(run, "linear")["q1", "d08"] == (
        "percentile_margin",
        0.875,
        float(np.percentile(positives, 45)),
    )


def test_bounds_are_inclusive(run):
    assert make(run, "bm25", min_score=0.125, max_score=0.5) == {
        "q1": ["d10", "d11"],
        "q2": ["d09", "d10"],
        "q4": ["d08", "d09"],
    }
    found = why(run)
    assert found["q1", "d09"] == ("max_score", 0.625, 0.5)
    assert found["q4", "d11"] == ("min_score", -0.5, 0.125)


def test_the_first_rule_that_fails_is_the_reason(run):
    make(run, "bm25:1", min_rank=2, absolute_margin=0.0, max_score=0.5)
    found = why(run)
    assert found["q1", "d08"][0] == "min_rank"  # fails all three
    assert found["q2", "d08"][0] == "absolute_margin"
    assert found["q1", "d09"][0] == "max_score"
    assert found["q1", "d11"] == ("quota", 2.0, 1.0)


def test_fewer_candidates_than_asked_for_are_not_filled_up(run):
    kept = make(run, "bm25:100", min_rank=4, negatives=50)
    assert kept == {"q1": ["d10", "d11"], "q2": ["d10"], "q4": ["d09", "d10", "d11"]}
    assert set(run.find("5_sets/set").drops) == {"positive", "min_rank"}


def test_quota_counts_survivors_of_the_source(run):
    assert make(run, "bm25:2", max_score=0.7) == {
        "q1": ["d09", "d10"],
        "q2": ["d09", "d10"],
        "q3": ["d09", "d10"],
        "q4": ["d08", "d09"],
    }
    assert reasons(run, "quota") == {("q1", "d11"), ("q4", "d10"), ("q4", "d11")}
    assert why(run)["q4", "d11"] == ("quota", 4.0, 2.0)


def test_sources_take_turns_and_a_document_of_two_is_one_negative(run):
    assert make(run, "dense:2", "bm25:2") == {
        "q1": ["d09", "d08"],  # both sources' two are the same two: no slot is filled again
        "q2": ["d11", "d08", "d09"],
        "q3": ["d11", "d09", "d10"],
        "q4": ["d12", "d08", "d09"],
    }
    sources = {row[:2]: row[2] for row in rows(run, "5_sets/set", "query_id", "doc_id", "sources")}
    assert sources["q1", "d08"] == [
        {"source": "dense", "rank": 3, "score": 7.0},
        {"source": "bm25", "rank": 1, "score": 9.0},
    ]
    assert sources["q2", "d08"] == [{"source": "bm25", "rank": 2, "score": 8.0}]
    # bm25 has it beyond its quota, as its third: it is listed all the same
    assert make(run, "bm25:1", "dense:3", name="other")["q4"] == ["d08", "d12", "d09"]
    listed = {
        row[:2]: row[2] for row in rows(run, "5_sets/other", "query_id", "doc_id", "sources")
    }["q4", "d09"]
    assert listed == [
        {"source": "bm25", "rank": 4, "score": 6.0},
        {"source": "dense", "rank": 5, "score": 5.0},
    ]
    assert ("q4", "d09") not in why(run, "other")


def test_only_listed_sources_are_named(run):
    make(run, "dense")
    assert {
        tuple(found["source"] for found in row[0]) for row in rows(run, "5_sets/set", "sources")
    } == {("dense",)}


def test_negatives_cut_the_mixture(run):
    assert make(run, "bm25:3", "dense:2", negatives=2) == {
        "q1": ["d08", "d09"],
        "q2": ["d08", "d11"],
        "q3": ["d09", "d11"],
        "q4": ["d08", "d12"],
    }
    found = why(run)
    assert found["q1", "d10"] == ("negatives", 3.0, 2.0)
    assert found["q4", "d10"] == ("negatives", 4.0, 2.0)
    assert found["q4", "d11"] == ("quota", 4.0, 3.0)
    make(run, "bm25:1", "dense", name="other", negatives=2)
    # beyond bm25's quota, but not beyond that of dense
    assert why(run, "other")["q4", "d09"] == ("negatives", 3.0, 2.0)


def test_a_rejected_document_has_the_reason_of_the_source_in_which_it_got_furthest(run):
    make(run, "bm25:5", "dense:1", min_rank=2)
    assert why(run)["q1", "d08"] == ("quota", 2.0, 1.0)  # first in bm25: min_rank; third in dense
    make(run, "bm25", "dense", name="tie", max_rank=3)
    assert why(run, "tie")["q4", "d09"] == ("max_rank", 4.0, 3.0)
    make(run, "dense", "bm25", name="turned", max_rank=3)
    # equally far: the source that the recipe names first
    assert why(run, "turned")["q4", "d09"] == ("max_rank", 5.0, 3.0)


@pytest.mark.parametrize("broken", [None, math.nan, math.inf, -math.inf])
def test_a_score_that_is_none_is_a_reason_where_a_rule_needs_it(tmp_path, broken):
    similarity = COSINES | {
        "q1": COSINES["q1"] | {"d10": broken},
        "q2": COSINES["q2"] | {"d02": broken},
    }
    run = toy_run(tmp_path / "run", similarity=similarity)
    assert make(run, "bm25", absolute_margin=0.1) == {
        "q1": ["d09", "d11"],
        "q3": ["d09"],
        "q4": ["d10", "d11"],
    }
    assert reasons(run, "no_score") == {("q1", "d10"), ("q2", "d08"), ("q2", "d09"), ("q2", "d10")}
    assert make(run, "bm25", name="bound", min_score=-2)["q2"] == ["d08", "d09", "d10"]
    assert reasons(run, "no_score", "bound") == {("q1", "d10")}
    assert make(run, "bm25", name="free")["q1"] == ["d08", "d09", "d10", "d11"]
    scores = {
        row[:2]: row[2:]
        for row in rows(run, "5_sets/free", "query_id", "doc_id", "score", "positive_score")
    }
    assert scores["q1", "d10"] == (None, 0.75)
    assert scores["q2", "d10"] == (0.125, None)
    finite = [COSINES[q][d] for q, found in GOLD.items() for d in found if (q, d) != ("q2", "d02")]
    make(run, "bm25", name="percentile", percentile_margin=45)
    assert why(run, "percentile")["q1", "d08"][2] == np.percentile(finite, 45)


def test_query_without_positives(tmp_path):
    run = toy_run(tmp_path / "run", positives=GOLD | {"q1": []})
    assert make(run, "bm25")["q1"] == FOUND["bm25"]["q1"]
    assert "q1" not in make(run, "bm25", name="margin", absolute_margin=0.1)
    assert reasons(run, "no_score", "margin") == {("q1", doc_id) for doc_id in FOUND["bm25"]["q1"]}


def test_random_choice_depends_on_seed_and_ids_alone(tmp_path):
    ids = [f"d{number:02d}" for number in range(1, 13)]
    found = {"many": {query_id: ids for query_id in GOLD}, "dense": FOUND["dense"]}
    similarity = {query_id: dict.fromkeys(ids, 0.5) for query_id in GOLD}
    first = make(
        toy_run(tmp_path / "a", candidates=found, similarity=similarity), "many:4", sampler="random"
    )
    runs = toy_run(
        tmp_path / "b",
        candidates=found | {"many": {q: ids[::-1] for q in GOLD}},
        similarity=similarity,
        shard_queries=1,
    )
    assert make(runs, "many:4", sampler="random") == first  # neither shards nor ranks
    mixed = make(runs, "dense", "many:4", name="mixed", sampler="random")
    # nor other sources
    assert all(set(first[query_id]) <= set(mixed[query_id]) for query_id in GOLD)
    assert make(runs, "many:4", name="seed", sampler="random", seed=1) != first
    assert len({tuple(found) for found in first.values()}) == 5
    assert all(
        len(set(found)) == 4 and not set(found) & set(GOLD[query_id])
        for query_id, found in first.items()
    )
    assert [doc_id for doc_id in make(runs, "many", name="all", sampler="random")["q1"]][
        :4
    ] == first["q1"]


def test_without_a_judge_there_are_no_scores(tmp_path):
    run = toy_run(tmp_path / "run", similarity=None)
    assert make(run, "bm25:1") == {"q1": ["d08"], "q2": ["d08"], "q3": ["d09"], "q4": ["d08"]}
    assert set(rows(run, "5_sets/set", "score", "positive_score", "weight")) == {(None, None, 1.0)}
    assert list(run.find("5_sets/set").inputs) == ["1_tables", "3_candidates/bm25"]


@pytest.mark.parametrize(
    "rule",
    [
        {"absolute_margin": 0.0},
        {"percent_margin": 0.95},
        {"percentile_margin": 50},
        {"min_score": 0},
        {"max_score": 1},
    ],
)
def test_a_rule_without_its_judge_names_the_command(tmp_path, rule):
    run = toy_run(tmp_path / "run", similarity=None)
    with pytest.raises(UserError, match="run `quarry judge similarity` first"):
        make(run, "bm25", **rule)
    assert not (run.path / "5_sets").exists()


def test_a_judge_that_is_not_there_is_not_passed_over(run):
    with pytest.raises(UserError, match="run `quarry judge simlarity` first"):
        make(run, "bm25", judge="simlarity")
    with pytest.raises(
        UserError,
        match=r"no scores of judge 'similarity.x' \(found similarity, similarity.positive\)",
    ):
        make(run, "bm25", judge="similarity.x")


def test_scores_of_a_judge_beside_the_main_one(run):
    make(run, "bm25", judge="similarity.positive", max_score=0.9)
    assert {row[:1] for row in why(run).values()} == {("positive",), ("max_score",)}
    assert why(run)["q1", "d08"] == ("max_score", NEAREST, 0.9)
    with pytest.raises(UserError, match="has no score of any positive"):
        make(run, "bm25", name="other", judge="similarity.positive", percentile_margin=50)


def test_a_source_that_the_judge_has_not_seen(run):
    found = {"new": {"q1": ["d02", "d08", "d01"], "q4": ["d01", "d05", "d03"]}}
    toy = Toy(candidates=FOUND | found)
    write_source(run, toy, "new")
    with pytest.raises(
        UserError,
        match=(
            r"3 pairs of 3_candidates/new have no row by judge similarity.*`quarry judge"
            r" similarity` first"
        ),
    ):
        make(run, "new", "bm25", max_score=0.9)
    assert make(run, "new", name="free")["q1"] == ["d02", "d08"]  # no rule needs a score
    scores = {
        query_id: {"d01": 0.5, "d02": 0.25, "d03": 0.5} | COSINES[query_id] for query_id in COSINES
    }
    write_similarity(run, replace(toy, similarity=scores), How(force=True))
    # the refusal left nothing behind
    assert make(run, "new", "bm25", max_score=0.9)["q1"] == ["d02", "d08", "d09", "d10", "d11"]


def test_copies_are_left_out_if_that_judge_was_asked(tmp_path):
    texts = dict(Toy().documents)
    texts["d08"] = ("", "COPPER conducts -- electric current better than any other base metal!")
    texts["d10"] = ("Copper", "conducts electric current better than any other base metals")
    texts["d09"] = ("How do bees", "talk?")
    run = toy_run(tmp_path / "run", documents=texts, candidates=FOUND | {"random": {}})
    assert make(run, "bm25", name="before")["q1"] == ["d09", "d10", "d11"]  # d08 by its text
    judge_duplicates(run, JudgeDuplicates(), HOW)
    kept = make(run, "bm25", "dense", min_rank=2)
    assert kept == {
        "q1": ["d09", "d11", "d12"],
        "q2": ["d08", "d11", "d10"],
        "q3": ["d10", "d11", "d09", "d02"],
        "q4": ["d08", "d12", "d09", "d10", "d11"],
    }
    assert reasons(run, "same_text") == {("q1", "d08")}
    assert reasons(run, "near_duplicate") == {("q1", "d10")}
    assert reasons(run, "equals_query") == {("q2", "d09")}
    assert why(run)["q1", "d10"] == ("near_duplicate", pytest.approx(0.97, abs=0.02), 0.9)
    assert why(run)["q1", "d08"] == ("same_text", None, None)
    assert run.find("5_sets/set").facts["protected_by"] == "ids, text, near-duplicates, vectors"
    assert reasons(run, "positive") == {*ALL_POSITIVES, ("q4", "d07")}
    write_source(run, Toy(candidates={"new": {"q1": ["d02"]}}), "new")
    with pytest.raises(
        UserError, match="1 pairs of 3_candidates/new have no row by judge duplicates"
    ):
        make(run, "new", name="later")


def test_preview_says_what_select_does_and_writes_nothing(run):
    options = Select(
        name="set", sources=("bm25:2", "dense"), percent_margin=0.9, sampler="random", negatives=3
    )
    said = preview(run, options)
    assert not (run.path / "5_sets").exists()
    manifest = select(run, options, HOW)
    assert said["rows"] == manifest.rows
    assert said["drops"] == manifest.drops
    assert said["queries"] == 4
    assert (said["set_name"], said["protected_by"]) == ("set", "ids, text, vectors")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("bm25", ("bm25", None)), ("bm25:50", ("bm25", 50)), ("run.v1+x:3", ("run.v1+x", 3))],
)
def test_source_with_its_quota(text, expected):
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":5", "bm25:", "bm25:0", "bm25:-1", "bm25:x", "bm25:1:2", "bm25: 5", "bm25:1.5", "bm25:٣"],
)
def test_bad_quota(text):
    with pytest.raises(UserError, match="expected SOURCE, or SOURCE:K"):
        parse_source(text)


def test_unknown_source_and_source_named_twice(run):
    with pytest.raises(
        UserError,
        match=r"no finished source splade .*\(found bm25, dense\); .*`quarry mine splade` first",
    ):
        make(run, "bm25", "splade:5")
    with pytest.raises(UserError, match="names bm25 more than once"):
        make(run, "bm25:5", "dense", "bm25:3")


def test_what_was_made_from_other_tables_is_refused(run):
    """Its shards would hold other queries."""
    manifest = run.tables().model_dump(exclude={"skipped"}) | {"fingerprint": "0" * 16}
    write_json(run.path / "1_tables" / "_manifest.json", manifest)
    with pytest.raises(
        UserError,
        match=(
            r"bm25 was made from tables that have changed since; run `quarry mine bm25 --force`"
            r" first"
        ),
    ):
        make(run, "bm25")
    with pytest.raises(UserError, match=r"bm25 was made from tables that have changed since"):
        judge_duplicates(run, JudgeDuplicates(), HOW)


def test_other_recipe_under_the_same_name_is_refused(run):
    make(run, "bm25", max_score=0.5)
    assert select(run, Select(name="set", sources=("bm25",), max_score=0.5), HOW).skipped
    with pytest.raises(UserError, match=r"max_score=0.5, now 0.25"):
        make(run, "bm25", max_score=0.25)


def test_bytes_do_not_depend_on_workers_nor_on_order_of_rows(tmp_path):
    runs = [toy_run(tmp_path / name) for name in ("a", "b")]
    for folder in ("3_candidates/bm25", "4_judgments/similarity", "1_tables/positives"):
        for key in runs[1].query_shards():
            table = runs[1].read(folder, key)
            write_table(
                runs[1].path / folder / f"{key}.parquet", table.take(list(range(len(table)))[::-1])
            )
    written = []
    for run, workers in zip(runs, (1, 2), strict=True):
        make(
            run, "bm25:3", "dense", sampler="random", percent_margin=0.95, how=How(workers=workers)
        )
        folder = run.path / "5_sets" / "set"
        written.append(
            {
                file.relative_to(folder).as_posix(): file.read_bytes()
                for file in sorted(folder.rglob("*.parquet"))
            }
        )
    assert written[0] == written[1]
    assert sorted(written[0]) == [
        "00000.parquet",
        "00001.parquet",
        "_rejected/00000.parquet",
        "_rejected/00001.parquet",
    ]


# Logits of a second judge. It holds d08 of q1 to be far below the positive, and d10 above; q4 has
# no score of one positive.
LOGITS = {
    "q1": {"d01": 4.0, "d08": -3.0, "d09": 1.0, "d10": 5.0, "d11": 3.5, "d12": -6.0},
    "q2": {"d02": 2.0, "d03": -1.0, "d08": -1.5, "d09": -4.0, "d10": 3.0, "d11": None},
    "q3": {"d04": 6.0, "d02": 0.5, "d09": -2.0, "d10": 5.5, "d11": 2.0},
    "q4": {
        "d05": 3.0,
        "d06": None,
        "d07": 1.0,
        "d08": -2.0,
        "d09": 0.5,
        "d10": -5.0,
        "d11": 4.0,
        "d12": 2.5,
    },
    "q5": {"d12": 1.0},
}
# Verdicts of a third one, without scores but for one.
SAID = {
    query_id: {doc_id: (None, "keep", None) for doc_id in found}
    for query_id, found in LOGITS.items()
}
SAID["q1"] = SAID["q1"] | {
    "d08": (None, "drop", "answers"),
    "d10": (0.75, "promote", "relevant"),
    "d11": (None, "promote", None),
}
SAID["q2"] = SAID["q2"] | {"d08": (0.25, "drop", None), "d10": (None, "promote", None)}
SAID["q4"] = SAID["q4"] | {"d05": (None, "drop", "wrong"), "d11": (None, None, None)}


@pytest.fixture
def judges(run):
    """The toy with the judges ce and llm beside similarity."""
    write_judge(run, "ce", LOGITS)
    write_judge(run, "llm", SAID)
    return run


def test_a_bound_reads_the_same_from_flags_toml_and_python():
    def bound(value):
        return Select(name="s", sources=("a",), max_score=value).max_score

    assert bound(0.5) == bound("0.5") == bound(["0.5"]) == bound(("0.5",)) == 0.5
    assert bound(["0.5", "ce=-2"]) == bound(("0.5", "ce=-2")) == ("0.5", "ce=-2")
    assert bound({"similarity": 0.5, "ce": -2}) == ("similarity=0.5", "ce=-2")
    assert bound("ce=-2") == bound(["ce=-2"]) == bound({"ce": -2}) == ("ce=-2",)
    assert bound(2) == 2.0 and bound(None) is None
    again = Select(**Select(name="s", sources=("a",), max_score={"ce": 0.1}).record())
    assert again == Select(name="s", sources=("a",), max_score="ce=0.1")


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        ("max_score", ["ce=1", "ce=2"], "more than one value for judge ce"),
        ("max_score", ["1", "2"], "more than one value for the judge of --judge"),
        (
            "max_score",
            "ce=high",
            "expected VALUE, or JUDGE=VALUE such as cross-encoder=0.9 .found 'ce=high'.",
        ),
        ("max_score", "=", "expected VALUE, or JUDGE=VALUE"),
        ("max_score", "nan", "expected -inf to inf .found nan."),
        ("percentile_margin", ["ce=101"], "expected 0 to 100 .found 101."),
        ("percent_margin", {"ce": 0}, "expected 1e-06 to inf .found 0."),
    ],
)
def test_a_bad_bound_is_named(rule, value, message):
    with pytest.raises(UserError, match=message) as caught:
        build_options(Select, {"name": "s", "sources": ["a"], rule: value}, "select")
    assert "\n" not in str(caught.value) and f"--{rule.replace('_', '-')} is" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_score": "similarity=1", "min_score": ["0", "similarity=1"]},
            "more than one value for judge similarity",
        ),
        (
            {"promote": ("ce=1", "ce")},
            "--promote 'ce': expected JUDGE=SCORE or JUDGE, each judge once",
        ),
        (
            {"promote": ("ce=x",)},
            "--promote: expected VALUE, or JUDGE=VALUE such as cross-encoder=0.9",
        ),
        ({"promote": ("=1",)}, "--promote '=1': expected JUDGE=SCORE or JUDGE"),
        (
            {"max_score": "cf=1"},
            (
                r"4_judgments/cf does not exist \(found ce, llm, similarity\); run `quarry judge"
                r" cf` first"
            ),
        ),
        ({"promote": ("cf",)}, "run `quarry judge cf` first"),
        ({"max_score": "ce.first=1"}, r"has no scores of judge 'ce.first' \(found ce\)"),
    ],
)
def test_a_bad_recipe_of_several_judges_is_one_line(judges, options, message):
    with pytest.raises(UserError, match=message) as caught:
        make(judges, "bm25", **options)
    assert "\n" not in str(caught.value) and not (judges.path / "5_sets").exists()


def test_a_judge_that_is_half_done_or_lacks_pairs_is_refused(judges):
    (judges.path / "4_judgments/ce/_manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"4_judgments/ce is only half done; run `quarry judge ce` first"
    ):
        make(judges, "bm25", max_score="ce=1")
    without = {q: {d: s for d, s in found.items() if d != "d10"} for q, found in LOGITS.items()}
    write_judge(judges, "ce", without, How(force=True), sources=["dense"])
    message = (
        "4 pairs of 3_candidates/bm25 have no row by judge ce, which saw other inputs; run `quarry"
        " judge ce` first: it judges only these"
    )
    with pytest.raises(UserError, match=message):
        make(judges, "bm25", "dense", max_score="ce=1")
    assert make(judges, "dense:1", max_score="ce=1")["q1"] == ["d09"]  # what it has seen is enough


def test_all_judges_must_let_a_candidate_pass(judges):
    assert make(judges, "bm25", "dense", max_score=["0.5", "ce=2.5"]) == {
        "q1": ["d12"],
        "q2": ["d09"],
        "q3": ["d09", "d11", "d02"],
        "q4": ["d08", "d12", "d09", "d10"],
    }
    found = why(judges)
    assert found["q1", "d08"] == ("max_score", 0.875, 0.5)
    assert found["q1", "d10"] == ("max_score:ce", 5.0, 2.5)
    assert found["q2", "d11"] == ("no_score:ce", None, None)
    assert found["q4", "d11"] == ("max_score:ce", 4.0, 2.5)
    assert list(judges.find("5_sets/set").inputs)[-2:] == [
        "4_judgments/similarity",
        "4_judgments/ce",
    ]


def test_with_any_one_judge_is_enough(judges):
    kept = make(judges, "bm25", "dense", max_score=["0.25", "ce=2.5"], agree="any")
    assert kept == {
        "q1": ["d08", "d09", "d11", "d12"],
        "q2": ["d08", "d09", "d10"],
        "q3": ["d09", "d11", "d10", "d02"],
        "q4": ["d08", "d12", "d09", "d10", "d11"],
    }
    assert {pair: said for pair, said in why(judges).items() if said[0] != "positive"} == {
        # both leave it out: the reason is the first judge's
        ("q1", "d10"): ("max_score", 0.5, 0.25),
        ("q2", "d11"): ("max_score", 0.5, 0.25),  # ce has no score of it: no vote for it
    }


def test_with_any_a_null_score_is_no_vote_and_no_veto(judges):
    make(judges, "dense", min_score=["ce=-9", "0.5"], agree="any")
    assert ("q2", "d11") not in why(judges)  # ce cannot say, similarity lets it pass
    make(
        judges, "dense", name="other", judge="ce", min_score=["-9", "similarity=0.75"], agree="any"
    )
    assert why(judges, "other")["q2", "d11"] == ("no_score", None, None)
    make(judges, "dense", name="one", max_score="ce=2.5", agree="any")  # one judge: any is all
    assert why(judges, "one")["q2", "d11"] == ("no_score:ce", None, None)


def test_each_judge_measures_from_its_own_lowest_positive(judges):
    assert make(judges, "bm25", "dense", absolute_margin=["0.125", "ce=0.5"]) == {
        "q1": ["d12"],
        "q3": ["d09"],
    }
    found = why(judges)
    assert found["q1", "d08"] == ("absolute_margin", 0.875, 0.625)
    # its positive has 4.0 of ce, .75 of similarity
    assert found["q1", "d11"] == ("absolute_margin:ce", 3.5, 3.5)
    assert found["q1", "d10"] == ("absolute_margin:ce", 5.0, 3.5)
    assert found["q2", "d10"] == ("absolute_margin:ce", 3.0, -1.5)  # -1, not 2: the lowest of two
    assert found["q4", "d10"] == ("no_score:ce", -5.0, None)  # ce has none of d06
    assert found["q4", "d08"] == ("absolute_margin", 0.5, 0.125)
    make(judges, "bm25", name="percent", percent_margin="ce=0.5")
    assert why(judges, "percent")["q2", "d08"] == ("percent_margin:ce", -1.5, -1.5)


def test_percentile_margins_of_two_judges(judges):
    cosines = [COSINES[q][d] for q, found in GOLD.items() for d in found]
    logits = [LOGITS[q][d] for q, found in GOLD.items() for d in found if LOGITS[q][d] is not None]
    low, high = float(np.percentile(cosines, 60)), float(np.percentile(logits, 50))
    assert (round(low, 3), high) == (0.65, 2.0)
    kept = make(judges, "bm25", percentile_margin=["60", "ce=50"])
    assert kept == {"q1": ["d09"], "q2": ["d09"], "q3": ["d09"], "q4": ["d08", "d09", "d10"]}
    assert why(judges)["q1", "d11"] == ("percentile_margin:ce", 3.5, high)
    assert why(judges)["q2", "d08"] == ("percentile_margin", 0.75, low)
    assert judges.find("5_sets/set").facts["percentile_margins"] == {"similarity": low, "ce": high}


def promoted(run, name="set"):
    columns = ("query_id", "doc_id", "reason", "value", "threshold")
    return {row[:2]: row[2:] for row in rows(run, f"5_sets/{name}/_promoted", *columns)}


def test_what_reaches_a_score_is_promoted_and_stands_nowhere_else(judges):
    kept = make(judges, "bm25", "dense", promote=("ce=3.5",), max_score=0.25)
    found = promoted(judges)
    assert found == {
        ("q1", "d10"): ("promote:ce", 5.0, 3.5),
        ("q1", "d11"): ("promote:ce", 3.5, 3.5),
        ("q3", "d10"): ("promote:ce", 5.5, 3.5),
        ("q4", "d11"): ("promote:ce", 4.0, 3.5),
    }
    negatives = {(query_id, doc_id) for query_id, listed in kept.items() for doc_id in listed}
    assert not set(found) & (negatives | set(why(judges)))
    assert ("q3", "d04") not in found  # 6.0, but a positive
    manifest = judges.find("5_sets/set")
    assert manifest.drops["promote:ce"] == manifest.rows["promoted"] == 4
    assert sum(manifest.drops.values()) == manifest.rows["promoted"] + manifest.rows["rejected"]
    assert not (judges.path / "5_sets/none").exists()
    make(judges, "bm25", name="none")
    assert not (judges.path / "5_sets/none/_promoted").exists()


def test_promotion_by_verdict_and_by_judges_that_must_agree(judges):
    make(judges, "bm25", promote=("llm",))
    assert promoted(judges) == {
        ("q1", "d10"): ("promote:llm", 0.75, None),
        ("q1", "d11"): ("promote:llm", None, None),
        ("q2", "d10"): ("promote:llm", None, None),
    }
    make(judges, "bm25", name="both", promote=("ce=3.5", "llm"))
    assert promoted(judges, "both") == {
        ("q1", "d10"): ("promote:ce", 5.0, 3.5),
        ("q1", "d11"): ("promote:ce", 3.5, 3.5),
    }
    make(judges, "bm25", name="turned", promote=("llm", "ce=3.5"))
    assert promoted(judges, "turned")["q1", "d10"] == ("promote:llm", 0.75, None)
    make(judges, "bm25", name="all", promote=("ce=3.5", "llm", "similarity=0.5"))
    assert set(promoted(judges, "all")) == {("q1", "d10")}


def test_a_drop_by_a_judge_of_the_recipe_counts_and_that_of_another_does_not(judges):
    make(judges, "bm25", max_score="llm=1")
    assert why(judges)["q1", "d08"] == ("answers:llm", None, None)
    assert why(judges)["q2", "d08"] == ("drop:llm", 0.25, None)
    # a likely positive is no negative, though nothing is to be promoted
    assert why(judges)["q1", "d11"] == ("drop:llm", None, None)
    assert why(judges)["q4", "d05"] == ("positive", None, None)
    assert make(judges, "bm25", name="free")["q1"][0] == "d08"  # llm is not in the recipe


def test_other_queries_positives_are_counted_and_dropped_on_request(run):
    found = {"far": {"q1": ["d02", "d08", "d12"], "q2": ["d05", "d02"], "q5": ["d04", "d12"]}}
    write_source(run, Toy(candidates=FOUND | found), "far")
    assert make(run, "far") == {"q1": ["d02", "d08", "d12"], "q2": ["d05"], "q5": ["d04"]}
    assert run.find("5_sets/set").facts["other_positives"] == 4
    assert make(run, "far", name="without", drop_other_positives=True) == {"q1": ["d08"]}
    assert reasons(run, "other_positive", "without") == {
        ("q1", "d02"),
        ("q1", "d12"),
        ("q2", "d05"),
        ("q5", "d04"),
    }
    assert run.find("5_sets/without").facts["other_positives"] == 0
    assert why(run, "without")["q2", "d02"] == ("positive", None, None)


def test_what_is_near_to_a_positive_by_vectors_is_left_out(run):
    make(run, "bm25", name="default")
    assert reasons(run, "near_positive", "default") == set()  # .9375 is below .98
    kept = make(run, "bm25", near_positive=NEAREST)
    assert kept == {} and why(run)["q1", "d08"] == ("near_positive", NEAREST, NEAREST)  # inclusive
    assert why(run)["q1", "d01"] == ("positive", None, None)
    assert make(run, "bm25", name="off", near_positive=1.5)["q1"] == ["d08", "d09", "d10", "d11"]
    assert run.find("5_sets/off").facts["protected_by"] == "ids, text"
    write_source(run, Toy(candidates={"new": {"q1": ["d02", "d08"]}}), "new")
    # it has not seen the source
    assert make(run, "new", name="new", near_positive=0.5)["q1"] == ["d02", "d08"]
    assert run.find("5_sets/new").facts["protected_by"] == "ids, text"


# ---- samplers


DRAWN = ["random", "hardest", "simans", "quantile", "propensity", "diverse", "eci"]
# overlap, by hand
WORDS = {
    q: {d: (number * 7 % 11) / 10 for number, d in enumerate(sorted(found))}
    for q, found in LOGITS.items()
}


def sampled_run(path, **changes):
    run = toy_run(path, **changes)
    write_judge(run, "overlap", WORDS)
    return write_vectors(run, *plane())


@pytest.mark.parametrize("sampler", DRAWN)
def test_a_sampler_is_independent_of_shards_and_workers_and_keeps_quotas(tmp_path, sampler):
    found = []
    for number, (size, workers) in enumerate([(3, 1), (1, 2), (5, 1)]):
        run = sampled_run(tmp_path / str(number), shard_queries=size)
        kept = make(
            run,
            "bm25:2",
            "dense:1",
            negatives=2,
            sampler=sampler,
            how=HOW if workers == 1 else How(workers=workers),
        )
        found.append((kept, why(run), run.find("5_sets/set").facts))
    assert found[0] == found[1] == found[2]
    for query_id, listed in found[0][0].items():
        assert len(listed) <= 2 and not set(listed) & set(GOLD[query_id])
        in_source = {source: set(FOUND[source].get(query_id, [])) for source in FOUND}
        assert (
            len([d for d in listed if d not in in_source["dense"]]) <= 2
            and len([d for d in listed if d not in in_source["bm25"]]) <= 1
        )
    facts = found[0][2]
    assert facts["mixture"] == f"one order of all sources, by sampler {sampler}"
    assert ("effective_sample_size" in facts) == (sampler == "propensity")


def test_propensity_says_what_its_survivors_are_worth(tmp_path):
    run = sampled_run(tmp_path)
    make(run, "bm25", "dense", sampler="propensity", bins=2)
    survivors = {
        (q, d)
        for found in FOUND.values()
        for q, ids in found.items()
        for d in ids
        if d not in GOLD[q]
    }
    low, high = (pick(COSINES[q][d] for q, d in survivors) for pick in (min, max))
    cells = Counter(
        (min(int(WORDS[q][d] * 2), 1), min(int((COSINES[q][d] - low) / (high - low) * 2), 1))
        for q, d in survivors
    )
    weights = [
        (1 / len(cells)) / (count / len(survivors))
        for count in cells.values()
        for _ in range(count)
    ]
    facts = run.find("5_sets/set").facts
    assert facts["survivors"] == len(survivors) == 18
    assert facts["effective_sample_size"] == round(
        sum(weights) ** 2 / sum(weight**2 for weight in weights), 1
    )
    with pytest.raises(
        UserError,
        match=(
            "no candidate passes the rules of set nothing; `quarry select … --dry-run` shows at"
            " which they fail"
        ),
    ):
        make(run, "bm25", name="nothing", sampler="propensity", min_score=2)


def test_what_a_sampler_leaves_out_and_cannot_weigh_has_its_reason(tmp_path):
    cosines = COSINES | {"q1": COSINES["q1"] | {"d10": None}, "q2": COSINES["q2"] | {"d03": None}}
    run = sampled_run(tmp_path, similarity=cosines)
    make(run, "bm25", sampler="quantile", quantile=0.5)
    assert reasons(run, "no_score") == {("q1", "d10")}  # quantile does not ask for positives
    # q1: d08 .875, d09, d11: two of three; q2: d08, d09, d10: two; q3: d10 above d09: one; q4: d08,
    # d09, d10, d11: two
    assert reasons(run, "quantile") == {
        ("q1", "d11"),
        ("q2", "d10"),
        ("q3", "d09"),
        ("q4", "d10"),
        ("q4", "d11"),
    }
    assert why(run)["q1", "d11"] == ("quantile", None, None)
    for sampler in ("simans", "eci"):
        make(run, "bm25", name=sampler, sampler=sampler)
        assert reasons(run, "no_score", sampler) == {
            ("q1", "d10"),
            ("q2", "d08"),
            ("q2", "d09"),
            ("q2", "d10"),
        }
    # scores below 0: no signal
    assert reasons(run, "eci", "eci") == {("q3", "d09"), ("q3", "d10"), ("q4", "d11")}
    assert run.find("5_sets/eci").drops["eci"] == len(reasons(run, "eci", "eci"))


def test_simans_and_diverse_choose_as_they_say(tmp_path):
    run = sampled_run(tmp_path)
    # So sharp that chance has no say: the order of |s_n - s_p - b|. q1: s_p = .75, b = -.25, so d10
    # (.5), then d09 (.625), …
    near = make(run, "bm25", sampler="simans", simans_a=1e6, simans_b=-0.25)
    assert near["q1"] == ["d10", "d09", "d11", "d08"]
    # q1's d08, d09, d10, d11 point to 84.7, 99.2, 114.3 and 130 degrees: with theta 0 the first,
    # then what is nearest to a right angle
    assert make(run, "bm25", name="wide", sampler="diverse", theta=0)["q1"][:2] == ["d08", "d11"]
    # the highest scores
    assert make(run, "bm25", name="near", sampler="diverse", theta=0.99)["q1"][:2] == ["d08", "d09"]


def test_a_sampler_says_what_it_lacks(tmp_path):
    run = toy_run(tmp_path)
    with pytest.raises(UserError, match="run `quarry judge overlap` first"):
        make(run, "bm25", sampler="propensity")
    with pytest.raises(
        UserError, match="2_index/dense does not exist; run `quarry index dense` first"
    ):
        make(run, "bm25", sampler="diverse")
    bare = toy_run(tmp_path / "bare", similarity=None)
    for sampler in ("simans", "quantile", "eci"):
        with pytest.raises(UserError, match="run `quarry judge similarity` first"):
            make(bare, "bm25", sampler=sampler)


# ---- the funnel


@pytest.mark.parametrize("sampler", ["top", "quantile", "simans"])
def test_the_funnel_accounts_for_every_candidate_of_every_source(judges, sampler):
    broken = COSINES | {"q1": COSINES["q1"] | {"d10": None}, "q2": COSINES["q2"] | {"d03": None}}
    write_similarity(judges, Toy(similarity=broken), How(force=True))
    options = {
        "min_rank": 2,
        "max_score": ["0.7", "ce=3"],
        "promote": ("ce=5.25",),
        "negatives": 2,
        "sampler": sampler,
    }
    funnel = preview(judges, Select(name="s", sources=("bm25:2", "dense"), **options))["funnel"]
    assert [counts["candidates"] for counts in funnel.values()] == [19, 17]
    for counts in funnel.values():
        assert counts["candidates"] == sum(
            count for fate, count in counts.items() if fate != "candidates"
        )
    assert list(funnel["bm25"]) == list(funnel["dense"])  # side by side
    order = [
        "candidates",
        "positive",
        "promote:ce",
        "min_rank",
        "no_score",
        "max_score",
        "no_score:ce",
        "max_score:ce",
        sampler,
        "quota",
        "negatives",
        "kept from another source",
        "kept",
    ]
    assert list(funnel["bm25"]) == [fate for fate in order if fate in funnel["bm25"]]
    assert {"promote:ce", "min_rank", "no_score", "max_score"} <= set(funnel["bm25"])


def test_the_funnel_of_the_toy(run):
    # bm25 loses q1's d08 to min_rank and d09 of q2, q3 and q4 to the quota or to min_rank: dense
    # brings them back
    assert preview(run, Select(name="s", sources=("bm25:1", "dense"), min_rank=2))["funnel"] == {
        "bm25": {
            "candidates": 19,
            "positive": 6,
            "quota": 5,
            "kept from another source": 4,
            "kept": 4,
        },
        "dense": {
            "candidates": 17,
            "positive": 7,
            "quota": 0,
            "kept from another source": 0,
            "kept": 10,
        },
    }


# ---- made again


def test_a_set_is_made_again_when_its_inputs_changed_and_refused_when_its_options_did(run):
    assert make(run, "bm25", max_score=0.5)["q1"] == ["d10", "d11"]
    write_source(run, Toy(candidates={"bm25": {"q1": ["d11", "d09"]}}), "bm25", How(force=True))
    with pytest.raises(UserError, match=r"max_score=0.5, now 0.75"):
        make(run, "bm25", max_score=0.75)
    assert make(run, "bm25", max_score=0.5) == {"q1": ["d11"]}  # no --force
    assert why(run) == {("q1", "d09"): ("max_score", 0.625, 0.5)}
    write_similarity(
        run,
        Toy(similarity=COSINES | {"q1": COSINES["q1"] | {"d09": 0.0}}, candidates={"bm25": {}}),
        How(force=True),
    )
    assert make(run, "bm25", max_score=0.5) == {"q1": ["d11", "d09"]}
    assert select(run, Select(name="set", sources=("bm25",), max_score=0.5), HOW).skipped


DOCUMENTS = [f"d{number:02d}" for number in range(1, 13)]
eighths = st.integers(-8, 8).map(lambda value: value / 8)
recipes = st.fixed_dictionaries(
    {},
    optional={
        "min_rank": st.integers(1, 3),
        "max_rank": st.integers(2, 6),
        "absolute_margin": eighths,
        "percent_margin": st.sampled_from([0.5, 0.75, 1.25]),
        "min_score": eighths,
        "max_score": eighths,
        "negatives": st.integers(1, 6),
        "second_margin": eighths,
        "second_max": eighths,
        "agree": st.sampled_from(["all", "any"]),
    },
)


def second_failures(second, gold, doc_id, options):
    """What the second judge says, of which some scores are None: the rules of it that a
    candidate fails, in order.
    """
    asked = {
        name: options[f"second_{name}"] for name in ("margin", "max") if f"second_{name}" in options
    }
    positives = [second[positive] for positive in gold]
    if asked and (second[doc_id] is None or ("margin" in asked and None in positives)):
        return ["no_score:two"]
    failures = {
        "absolute_margin:two": (
            "margin" in asked and not second[doc_id] < min(positives) - asked["margin"]
        ),
        "max_score:two": "max" in asked and second[doc_id] > asked["max"],
    }
    return [reason for reason, fails in failures.items() if fails]


def reference(toy, second, quotas, query_id, options):
    """The recipe in plain Python: documents of one query in order, and the reason of each that
    is left out.
    """
    scores, gold = toy.similarity[query_id], toy.positives[query_id]
    lowest = min(scores[doc_id] for doc_id in gold)
    firsts = {"absolute_margin", "percent_margin", "min_score", "max_score"} & set(options)
    either = (
        options.get("agree") == "any" and firsts and {"second_margin", "second_max"} & set(options)
    )

    def step(rank, doc_id):
        score, get = scores[doc_id], options.get
        failures = [
            ("positive", doc_id in gold),
            ("min_rank", rank < get("min_rank", 0)),
            ("max_rank", rank > get("max_rank", 99)),
            (
                "absolute_margin",
                "absolute_margin" in options and not score < lowest - get("absolute_margin", 0),
            ),
            (
                "percent_margin",
                "percent_margin" in options
                and not score < lowest - (1 - get("percent_margin", 0)) * abs(lowest),
            ),
            ("min_score", score < get("min_score", -9)),
            ("max_score", score > get("max_score", 9)),
        ]
        later = second_failures(second[query_id], gold, doc_id, options)
        if either and not (later and any(fails for reason, fails in failures if reason in firsts)):
            failures, later = failures[:3], []  # one of the two lets it pass
        failures += [("no_score:two", "no_score:two" in later)] + [
            (reason, reason in later) for reason in ("absolute_margin:two", "max_score:two")
        ]
        return next(
            ((number, reason) for number, (reason, fails) in enumerate(failures) if fails), (99, "")
        )

    turns, furthest = [], {}
    for place, (source, most) in enumerate(quotas):
        survivors = []
        for rank, doc_id in enumerate(toy.candidates[source].get(query_id, []), 1):
            number, reason = step(rank, doc_id)
            if number == 99:
                survivors.append(doc_id)
                number, reason = (
                    (100, "quota") if most and len(survivors) > most else (101, "negatives")
                )
            furthest[doc_id] = max(furthest.get(doc_id, (-1, "")), (number, reason))
        turns += [(position, place, doc_id) for position, doc_id in enumerate(survivors[:most])]
    chosen = list(dict.fromkeys(doc_id for *_, doc_id in sorted(turns)))[: options.get("negatives")]
    return chosen, {
        doc_id: reason for doc_id, (_, reason) in furthest.items() if doc_id not in chosen
    }


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data(), recipes, st.integers(1, 5))
def test_against_the_recipe_in_plain_python(tmp_path_factory, data, options, shard_queries):
    found = {
        source: {
            q: data.draw(st.lists(st.sampled_from(DOCUMENTS), unique=True, max_size=8))
            for q in ("q1", "q2", "q4")
        }
        for source in ("a", "b", "c")
    }
    similarity = {
        q: dict(zip(DOCUMENTS, data.draw(st.lists(eighths, min_size=12, max_size=12)), strict=True))
        for q in GOLD
    }
    toy = Toy(candidates=found, similarity=similarity, shard_queries=shard_queries)
    run = toy_run(
        tmp_path_factory.mktemp("run") / "run",
        candidates=found,
        similarity=similarity,
        shard_queries=shard_queries,
    )
    scores = st.lists(eighths | st.none() | eighths, min_size=12, max_size=12)
    second = {q: dict(zip(DOCUMENTS, data.draw(scores), strict=True)) for q in GOLD}
    write_judge(run, "two", second)
    quotas = [("b", data.draw(st.integers(1, 4))), ("a", None), ("c", data.draw(st.integers(1, 3)))]
    given = {name: value for name, value in options.items() if not name.startswith("second")}
    for rule, name in (("absolute_margin", "second_margin"), ("max_score", "second_max")):
        if name in options:
            given[rule] = [*([str(given[rule])] if rule in given else []), f"two={options[name]}"]
    kept = make(run, *(f"{source}:{most}" if most else source for source, most in quotas), **given)
    expected = {query_id: reference(toy, second, quotas, query_id, options) for query_id in GOLD}
    assert kept == {query_id: chosen for query_id, (chosen, _) in expected.items() if chosen}
    left_out = {
        (query_id, doc_id): reason
        for query_id, (_, why) in expected.items()
        for doc_id, reason in why.items()
    }
    assert {pair: reason for pair, (reason, *_) in why(run).items()} == left_out


def test_killed_after_its_last_shard_it_still_knows_its_facts(tmp_path, monkeypatch):
    def made(path, killed):
        run = toy_run(path)
        options = Select(name="s", sources=("bm25",), percentile_margin=90)
        if killed:
            with monkeypatch.context() as patch:
                patch.setattr("miner.stages.finish", lambda *_, **__: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    select(run, options, HOW)
            assert all((path / f"5_sets/s/{key}.parquet").exists() for key in run.query_shards())
        return select(run, options, HOW)

    whole, again = made(tmp_path / "whole", False), made(tmp_path / "killed", True)
    assert again.resumed_shards == again.shards and again.facts == whole.facts
    assert set(whole.facts["percentile_margins"]) == {"similarity"}
