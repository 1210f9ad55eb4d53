import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import HOW, rows, toy_run

from miner.corpus import Corpus
from miner.engine import How
from miner.tables import full_text
from scoring.judge.duplicates import (
    JudgeDuplicates,
    digest,
    judge_duplicates,
    likeness,
    normalise,
    shingles,
)

FACT = (
    "The lighthouse was lit by a coal fire until oil lamps replaced it, and the keeper slept in the"
    " room below the lantern."
)
DOCUMENTS = {
    "a1": ("Lighthouses", FACT),
    # a1 but for case, spaces and punctuation; a1's title stands in its text
    "a2": ("", f"lighthouses!!  {FACT.upper()}"),
    "a3": ("Lighthouses", FACT.replace("keeper", "keepers")),  # one letter more
    # a1 three times: nearly the same set of shingles
    "a4": ("Lighthouses", FACT + " " + FACT + " " + FACT),
    "a5": ("", "Oil lamps give light"),
    "a6": ("", "what gave light"),
    "b1": ("", ""),
    "b2": ("", "Salt marshes grow where tides leave silt behind"),
    "b3": ("", "salt marshes grow where tides leave silt behind them"),
    "b4": ("", "?!"),
}
QUERIES = {"q1": "What gave LIGHT?", "q2": "salt", "q3": "an empty positive", "q4": "nothing found"}
POSITIVES = {"q1": ["a1"], "q2": ["b2", "a1"], "q3": ["b1"], "q4": ["a5"]}
CANDIDATES = {
    "x": {"q1": ["a1", "a2", "a3", "a4", "a5", "a6"], "q2": ["b3", "a2", "b2"], "q3": ["b4", "a1"]},
    "random": {},
    "y": {"q1": ["a6", "b2"], "q2": ["a6", "a3", "a5"], "q3": ["b1"]},
}
TOY = {
    "documents": DOCUMENTS,
    "queries": QUERIES,
    "positives": POSITIVES,
    "candidates": CANDIDATES,
    "similarity": None,
}


def judge(path, near=0.9, how=HOW, **changes):
    run = toy_run(path, **(TOY | changes))
    judge_duplicates(run, JudgeDuplicates(near=near), how)
    return run


def verdicts(run):
    return {
        row[:2]: row[2:]
        for row in rows(run, "4_judgments/duplicates", "query_id", "doc_id", "verdict", "reason")
    }


def test_every_pair_of_every_source_has_its_verdict(tmp_path):
    run = judge(tmp_path / "run")
    keep = ("keep", None)
    assert verdicts(run) == {
        ("q1", "a1"): ("drop", "positive"),
        ("q1", "a2"): ("drop", "same_text"),
        ("q1", "a3"): ("drop", "near_duplicate"),
        ("q1", "a4"): ("drop", "near_duplicate"),
        ("q1", "a5"): keep,
        ("q1", "a6"): ("drop", "equals_query"),
        ("q1", "b2"): keep,
        ("q2", "a2"): ("drop", "same_text"),  # of the second positive
        ("q2", "a3"): ("drop", "near_duplicate"),
        ("q2", "a5"): keep,
        ("q2", "a6"): keep,  # equals another query
        ("q2", "b2"): ("drop", "positive"),
        ("q2", "b3"): keep,
        ("q3", "a1"): keep,
        ("q3", "b1"): ("drop", "positive"),
        ("q3", "b4"): keep,  # nothing but punctuation is not the empty text
    }
    listed = rows(run, "4_judgments/duplicates", "query_id", "doc_id", "judge")
    assert listed == sorted(listed)
    assert {name for *_, name in listed} == {"duplicates"}


def test_scores(tmp_path):
    found = rows(judge(tmp_path / "run"), "4_judgments/duplicates", "query_id", "doc_id", "score")
    scores = {(query_id, doc_id): score for query_id, doc_id, score in found}
    assert scores["q1", "a1"] == scores["q1", "a2"] == scores["q1", "a6"] == 1.0
    one, other = (normalise(full_text(*DOCUMENTS[doc_id])) for doc_id in ("a1", "a3"))
    left, right = (
        {text[place : place + 5] for place in range(len(text) - 4)} for text in (one, other)
    )
    assert scores["q1", "a3"] == np.float32(len(left & right) / len(left | right))
    assert scores["q1", "b2"] is None


@pytest.mark.parametrize(("near", "reason"), [(0.99, None), (0.8, "near_duplicate"), (1.0, None)])
def test_threshold_decides_what_is_near(tmp_path, near, reason):
    found = verdicts(judge(tmp_path / "run", near))
    assert found["q2", "b3"][1] == reason
    assert found["q1", "a2"][1] == "same_text"


def test_near_is_reached_by_the_very_value(tmp_path):
    one, other = (shingles(normalise(full_text(*DOCUMENTS[doc_id])), 5) for doc_id in ("b2", "b3"))
    near, _ = likeness(np.unique(one), np.unique(other))
    assert 0.8 < near < 0.95
    assert verdicts(judge(tmp_path / "at", near))["q2", "b3"] == ("drop", "near_duplicate")
    assert verdicts(judge(tmp_path / "above", near + 1e-9))["q2", "b3"] == ("keep", None)


def test_neither_shards_nor_workers_change_a_row(tmp_path):
    columns = ("query_id", "doc_id", "score", "verdict", "reason")
    expected = rows(judge(tmp_path / "a", shard_queries=10), "4_judgments/duplicates", *columns)
    assert (
        rows(
            judge(tmp_path / "b", shard_queries=1, shard_documents=3),
            "4_judgments/duplicates",
            *columns,
        )
        == expected
    )
    assert (
        rows(
            judge(tmp_path / "c", how=How(workers=2), shard_queries=2),
            "4_judgments/duplicates",
            *columns,
        )
        == expected
    )


def test_random_documents_are_drawn_and_judged_where_they_are_not_yet(tmp_path):
    run = judge(tmp_path / "run", candidates={})
    assert run.names("3_candidates") == ["random"]
    assert {
        pair: said for pair, said in verdicts(run).items() if pair[0] == "q2" and said[0] == "drop"
    } == {
        ("q2", "a2"): ("drop", "same_text"),
        ("q2", "a3"): ("drop", "near_duplicate"),
        ("q2", "a4"): ("drop", "near_duplicate"),
    } | {
        ("q2", doc_id): ("drop", "positive")
        for doc_id in POSITIVES["q2"]
        if ("q2", doc_id) in verdicts(run)
    }


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Straße,  ﬁne", "STRASSE fine", True),
        ("a—b “c”", "a b c", True),
        ("e\u0301t\u00e9", "\u00e9te\u0301", True),
        ("कि", "की", False),  # vowel signs are marks: parts of the word
        ("snake_case", "snake case", False),
        ("???", "!", False),
        ("", " \n", True),
    ],
)
def test_normal_form(one, other, equal):
    assert (normalise(one) == normalise(other)) is equal


def test_shingles_count_characters_not_bytes():
    assert len(shingles("äöüß€x", 5)) == 2
    assert len(shingles("abc", 5)) == 1
    assert len(shingles("", 5)) == 0
    assert shingles("xabcde", 5)[1] == shingles("abcde", 5)[0]
    assert shingles("abc", 5)[0] != shingles("abcd", 5)[0]


text = st.text("ab cdé", max_size=60)


def substrings(normal, size):
    return {normal[place : place + size] for place in range(max(1, len(normal) - size + 1))} - {""}


@given(text, text, st.integers(1, 6))
def test_likeness_is_that_of_the_sets_of_substrings(one, other, size):
    left, right = substrings(one, size), substrings(other, size)
    jaccard = len(left & right) / len(left | right) if left | right else 1.0
    share = len(left & right) / len(right) if right else 1.0
    assert likeness(np.unique(shingles(one, size)), np.unique(shingles(other, size))) == (
        jaccard,
        share,
    )


@pytest.mark.parametrize("near", [0.3, 0.6, 0.9, 1.0])
def test_the_bound_never_passes_over_a_near_copy(tmp_path, near):
    random = np.random.default_rng(0)
    texts = [
        "".join(random.choice(list("abcde "), length)) for length in (3, 20, 40, 200, 700, 1500)
    ]
    texts += [text[: round(len(text) * cut)] for text in texts for cut in (0.35, 0.7, 0.95)] + [
        3 * text for text in texts
    ]
    run = toy_run(
        tmp_path / "run",
        **(TOY | {"documents": {f"d{i:03d}": ("", text) for i, text in enumerate(texts)}}),
    )
    digests = digest(Corpus(run).texts, np.arange(len(texts)), 5, np.arange(0))
    sets = [np.unique(shingles(normalise(text), 5)) for text in texts]
    everything, passed_over = np.arange(len(texts)), 0
    for right in everything:
        possible = digests.possible(everything, right, near)
        passed_over += np.count_nonzero(~possible)
        for left in np.flatnonzero(~possible):
            assert likeness(sets[left], sets[right])[0] < near
    assert passed_over > len(texts)


# --- texts that contain a positive

NOTE = "Keepers trimmed the wick at dusk and at midnight; "
TINY = "coal fire"
HOLDS = (
    TOY
    | {
        "documents": {
            "p1": ("", FACT),
            "p2": ("", TINY),
            "c1": ("", f"{NOTE} {FACT} {NOTE * 8}"),  # all of p1, and p2
            # nearly all of p1
            "c2": ("", f"{NOTE * 3} {FACT.replace('keeper', 'warden').upper()}"),
            "c3": ("", FACT[: len(FACT) // 2]),  # a part of p1 is no such page
            "c4": ("", NOTE * 40),
            "c5": ("", f"{FACT} {FACT}"),  # a near-copy, though it also contains p1
        },
        "queries": {"q1": "who lit the lighthouse", "q2": NOTE * 40, "q3": "what burned"},
        "positives": {"q1": ["p1"], "q2": ["p1", "p2"], "q3": ["p2"]},
        "candidates": {
            "x": {query: ["c1", "c2", "c3", "c4", "c5"] for query in ("q1", "q2", "q3")},
            "random": {},
        },
    }
)


def contained(one, other, size=5):
    """How much of `other` is in `one`."""
    left, right = (substrings(normalise(text), size) for text in (one, other))
    return len(left & right) / len(right)


def test_a_text_that_contains_a_positive(tmp_path):
    run = toy_run(tmp_path / "run", **HOLDS)
    judge_duplicates(run, JudgeDuplicates(), HOW)
    found = {
        row[:2]: row[2:]
        for row in rows(run, "4_judgments/duplicates", "query_id", "doc_id", "reason", "score")
    }
    share = contained(HOLDS["documents"]["c2"][1], FACT)
    assert 0.85 < share < 0.95
    assert {pair: said for pair, (said, _) in found.items() if said} == {
        ("q1", "c1"): "contains_positive",
        ("q1", "c5"): "near_duplicate",
        ("q2", "c1"): "contains_positive",
        ("q2", "c4"): "equals_query",
        ("q2", "c5"): "near_duplicate",
    }  # q3: its positive is too short to be looked for in other texts
    assert found["q1", "c1"][1] == found["q2", "c1"][1] == 1.0
    judge_duplicates(run, JudgeDuplicates(contain=share), How(force=True))
    found = {
        row[:2]: row[2:]
        for row in rows(run, "4_judgments/duplicates", "query_id", "doc_id", "reason", "score")
    }
    # reached by the very value
    assert found["q1", "c2"] == ("contains_positive", np.float32(share))
    judge_duplicates(run, JudgeDuplicates(contain=share + 1e-9), How(force=True))
    assert verdicts(run)["q1", "c2"] == ("keep", None)


def test_how_short_a_positive_may_be_to_be_looked_for(tmp_path):
    run, distinct = toy_run(tmp_path / "run", **HOLDS), len(substrings(TINY, 5))
    judge_duplicates(run, JudgeDuplicates(contain_shingles=distinct), HOW)
    assert {pair for pair, said in verdicts(run).items() if said[1] == "contains_positive"} == {
        ("q1", "c1"),
        ("q2", "c1"),
        ("q2", "c2"),
        ("q2", "c3"),
        ("q3", "c1"),
        ("q3", "c2"),
        ("q3", "c3"),
        ("q3", "c5"),
    }
    judge_duplicates(run, JudgeDuplicates(contain_shingles=distinct + 1), How(force=True))
    assert {pair for pair, said in verdicts(run).items() if said[1] == "contains_positive"} == {
        ("q1", "c1"),
        ("q2", "c1"),
    }


def test_repeats_count_once_in_the_minimum(tmp_path):
    documents = HOLDS["documents"] | {"p2": ("", "tick " * 40)}  # 199 shingles, 5 distinct
    candidates = {"x": {"q3": ["c6"]}, "random": {}}
    run = toy_run(
        tmp_path / "run",
        **(
            HOLDS
            | {
                "documents": documents | {"c6": ("", f"{NOTE} tick tick tick")},
                "candidates": candidates,
            }
        ),
    )
    judge_duplicates(run, JudgeDuplicates(contain_shingles=6), HOW)
    assert verdicts(run)["q3", "c6"] == ("keep", None)
    judge_duplicates(run, JudgeDuplicates(contain_shingles=5), How(force=True))
    assert verdicts(run)["q3", "c6"] == ("drop", "contains_positive")


piece = st.text("abcdé ", min_size=1, max_size=25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bound")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 7), max_size=40), min_size=2, max_size=6),
    st.lists(piece, min_size=8, max_size=8),
    st.data(),
)
def test_every_reason_that_texts_give_is_that_of_a_plain_reference(folder, plans, pieces, data):
    # long, repetitive, one in the other
    texts = ["".join(pieces[number] for number in plan) for plan in plans]
    near, contain = (
        data.draw(st.sampled_from([0.3, 0.9, 1.0])),
        data.draw(st.sampled_from([0.2, 0.5, 0.95, 1.0])),
    )
    least, size = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    ids = [f"d{number}" for number in range(len(texts))]
    toy = TOY | {
        "documents": {i: ("", text) for i, text in zip(ids, texts, strict=True)},
        "queries": {"q1": "no such text"},
    }
    positives = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=3, unique=True))
    shutil.rmtree(folder)
    run = toy_run(
        folder, **(toy | {"positives": {"q1": positives}, "candidates": {"x": {"q1": ids}}})
    )
    judge_duplicates(
        run, JudgeDuplicates(shingle=size, near=near, contain=contain, contain_shingles=least), HOW
    )
    sets = {i: substrings(normalise(text), size) for i, text in zip(ids, texts, strict=True)}
    same = {normalise(texts[ids.index(i)]) for i in positives}

    def expected(doc_id, mine):
        pairs = [(len(mine & sets[i]), len(mine | sets[i]), len(sets[i])) for i in positives]
        share = max((common / whole for common, _, whole in pairs if whole >= least), default=0)
        if doc_id in positives:
            return "positive", 1.0
        if normalise(texts[ids.index(doc_id)]) in same:
            return "same_text", 1.0
        jaccard = max((common / either if either else 1.0) for common, either, _ in pairs)
        if jaccard >= near:
            return "near_duplicate", jaccard
        return ("contains_positive", share) if share >= contain else (None, None)

    for doc_id, reason, score in rows(run, "4_judgments/duplicates", "doc_id", "reason", "score"):
        said, value = expected(doc_id, sets[doc_id])
        assert (doc_id, reason) == (doc_id, said)
        assert said is None or score == np.float32(value)


def test_the_bound_finds_what_is_contained_and_passes_over_nearly_all_else(tmp_path):
    random = np.random.default_rng(1)
    words = [
        "".join(random.choice(list("abcdefghijklmnop"), random.integers(2, 9))) for _ in range(3000)
    ]
    passages = [" ".join(random.choice(words, 60)) for _ in range(40)]
    pages = [" ".join(random.choice(words, 900)) for _ in range(40)]
    pages = [
        f"{page[:1000]} {passage} {page[1000:]}"
        for page, passage in zip(pages, passages, strict=True)
    ]
    run = toy_run(
        tmp_path / "run",
        **(
            TOY
            | {"documents": {f"d{i:03d}": ("", text) for i, text in enumerate(passages + pages)}}
        ),
    )
    digests = digest(Corpus(run).texts, np.arange(80), 5, np.arange(40))
    possible = np.array(
        [digests.may_contain(np.arange(40, 80), positive, 0.95) for positive in range(40)]
    )
    assert (possible == np.eye(40, dtype=bool)).all()
