import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import HOW, rows, toy_run

from miner.corpus import Corpus
from miner.engine import How
from miner.tables import full_text
from scoring.duplicates import digest, jaccard, judge_duplicates, normalise, shingles
from scoring.options import JudgeDuplicates

FACT = "The lighthouse was lit by a coal fire until oil lamps replaced it, and the keeper slept in the room below the lantern."
DOCUMENTS = {
    "a1": ("Lighthouses", FACT),
    "a2": ("", f"lighthouses!!  {FACT.upper()}"),  # a1 but for case, spaces and punctuation; a1's title stands in its text
    "a3": ("Lighthouses", FACT.replace("keeper", "keepers")),  # one letter more
    "a4": ("Lighthouses", FACT + " " + FACT + " " + FACT),  # a1 three times: nearly the same set of shingles
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
TOY = {"documents": DOCUMENTS, "queries": QUERIES, "positives": POSITIVES, "candidates": CANDIDATES, "similarity": None}


def judge(path, near=0.9, how=HOW, **changes):
    run = toy_run(path, **(TOY | changes))
    judge_duplicates(run, JudgeDuplicates(near=near), how)
    return run


def verdicts(run):
    return {row[:2]: row[2:] for row in rows(run, "4_judgments/duplicates", "query_id", "doc_id", "verdict", "reason")}


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
    left, right = ({text[place : place + 5] for place in range(len(text) - 4)} for text in (one, other))
    assert scores["q1", "a3"] == np.float32(len(left & right) / len(left | right))
    assert scores["q1", "b2"] is None


@pytest.mark.parametrize(("near", "reason"), [(0.99, None), (0.8, "near_duplicate"), (1.0, None)])
def test_threshold_decides_what_is_near(tmp_path, near, reason):
    found = verdicts(judge(tmp_path / "run", near))
    assert found["q2", "b3"][1] == reason
    assert found["q1", "a2"][1] == "same_text"


def test_near_is_reached_by_the_very_value(tmp_path):
    one, other = (shingles(normalise(full_text(*DOCUMENTS[doc_id])), 5) for doc_id in ("b2", "b3"))
    near = jaccard(np.unique(one), np.unique(other))
    assert 0.8 < near < 0.95
    assert verdicts(judge(tmp_path / "at", near))["q2", "b3"] == ("drop", "near_duplicate")
    assert verdicts(judge(tmp_path / "above", near + 1e-9))["q2", "b3"] == ("keep", None)


def test_neither_shards_nor_workers_change_a_row(tmp_path):
    columns = ("query_id", "doc_id", "score", "verdict", "reason")
    expected = rows(judge(tmp_path / "a", shard_queries=10), "4_judgments/duplicates", *columns)
    assert rows(judge(tmp_path / "b", shard_queries=1, shard_documents=3), "4_judgments/duplicates", *columns) == expected
    assert rows(judge(tmp_path / "c", how=How(workers=2), shard_queries=2), "4_judgments/duplicates", *columns) == expected


def test_random_documents_are_drawn_and_judged_where_they_are_not_yet(tmp_path):
    run = judge(tmp_path / "run", candidates={})
    assert run.names("3_candidates") == ["random"]
    assert {pair: said for pair, said in verdicts(run).items() if pair[0] == "q2" and said[0] == "drop"} == {
        ("q2", "a2"): ("drop", "same_text"),
        ("q2", "a3"): ("drop", "near_duplicate"),
        ("q2", "a4"): ("drop", "near_duplicate"),
    } | {("q2", doc_id): ("drop", "positive") for doc_id in POSITIVES["q2"] if ("q2", doc_id) in verdicts(run)}


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


@given(text, text, st.integers(1, 6))
def test_jaccard_is_that_of_the_sets_of_substrings(one, other, size):
    def substrings(normal):
        return {normal[place : place + size] for place in range(max(1, len(normal) - size + 1))} - {""}

    left, right = substrings(one), substrings(other)
    expected = len(left & right) / len(left | right) if left | right else 1.0
    assert jaccard(np.unique(shingles(one, size)), np.unique(shingles(other, size))) == expected


@pytest.mark.parametrize("near", [0.3, 0.6, 0.9, 1.0])
def test_the_bound_never_passes_over_a_near_copy(tmp_path, near):
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcde "), length)) for length in (3, 20, 40, 200, 700, 1500)]
    texts += [text[: round(len(text) * cut)] for text in texts for cut in (0.35, 0.7, 0.95)] + [3 * text for text in texts]
    run = toy_run(tmp_path / "run", **(TOY | {"documents": {f"d{i:03d}": ("", text) for i, text in enumerate(texts)}}))
    digests = digest(Corpus(run), np.arange(len(texts)), 5)
    sets = [np.unique(shingles(normalise(text), 5)) for text in texts]
    everything, passed_over = np.arange(len(texts)), 0
    for right in everything:
        possible = digests.possible(everything, right, near)
        passed_over += np.count_nonzero(~possible)
        for left in np.flatnonzero(~possible):
            assert jaccard(sets[left], sets[right]) < near
    assert passed_over > len(texts)
