"""The artefact probe."""

import numpy as np
import pytest

from scoring.probe import artefact_probe, closed_groups

NOUNS = [
    "dog",
    "cat",
    "horse",
    "bus",
    "train",
    "boat",
    "tree",
    "chair",
    "table",
    "lamp",
    "door",
    "window",
]


def texts(rng, count):
    return [
        f"a {NOUNS[rng.integers(12)]} stands near the {NOUNS[rng.integers(12)]} today"
        for _ in range(count)
    ]


def test_a_word_that_only_negatives_have_is_found_and_named():
    originals = texts(np.random.default_rng(0), 200)
    found = artefact_probe(
        originals, [text.replace("today", "zeppelin") for text in originals], np.arange(200)
    )
    assert found.accuracy == 1.0 and found.auc == 1.0 and found.pairs == 200
    assert found.telling[0][0] == "zeppelin" and found.telling[1][0] == "today"


def test_texts_of_one_kind_are_not_told_apart():
    rng = np.random.default_rng(1)
    found = artefact_probe(texts(rng, 1500), texts(rng, 1500), np.arange(1500))
    assert (
        0.45 < found.accuracy < 0.55 and found.low < found.accuracy < found.high < found.low + 0.06
    )


def test_identical_copies_are_half_right_and_groups_are_not_split():
    originals = texts(np.random.default_rng(2), 300)
    assert artefact_probe(originals, originals, np.arange(300) // 3).accuracy == pytest.approx(
        0.5, abs=1e-9
    )
    # the label is written in a word that each group has for itself: across groups it tells nothing
    own = [f"{text} only{place // 3}" for place, text in enumerate(originals)]
    assert (
        artefact_probe(originals, own, np.arange(300) // 3).accuracy
        < 0.75
        < artefact_probe(originals, own, np.arange(300)).accuracy
    )


def test_vectors_instead_of_words():
    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(200, 4)), rng.normal([2.0, 0, 0, 0], size=(200, 4))
    found = artefact_probe(["x"] * 200, ["y"] * 200, np.arange(200), (one, two))
    assert 0.75 < found.accuracy < 0.95 and found.telling == ([], [])


def exchanges(count):
    """Texts in pairs that exchange their nouns: what each brings in, its partner takes out."""
    rng, originals, negatives, lemmas = np.random.default_rng(4), [], [], []
    for _ in range(count):
        words = rng.choice(NOUNS, 2, replace=False)
        for old, new in (words, words[::-1]):
            frame = f"a {{}} stands near the {NOUNS[rng.integers(12)]} {rng.integers(40)}"
            originals.append(frame.format(old))
            negatives.append(frame.format(new))
            lemmas.append((str(old), str(new)))
    return originals, negatives, lemmas


def test_of_exchanges_folds_are_closed_and_the_probe_is_honest():
    originals, negatives, lemmas = exchanges(600)
    closed = closed_groups(lemmas)
    assert closed is not None and len(set(closed)) == 66
    honest = artefact_probe(originals, negatives, np.array(closed))
    assert honest.accuracy == pytest.approx(0.5, abs=0.03)
    by_text = artefact_probe(originals, negatives, np.arange(len(originals)))
    assert by_text.high < 0.48
    # what is really there is seen in both kinds of folds
    marked = [f"{text} zeppelin" for text in negatives]
    assert artefact_probe(originals, marked, np.array(closed)).accuracy == 1


def test_what_goes_one_way_only_is_not_closed():
    _, _, lemmas = exchanges(200)
    assert closed_groups([pair for place, pair in enumerate(lemmas) if place % 2]) is None
    assert closed_groups([*lemmas, *[None] * 5]) is None
    assert closed_groups([*lemmas, None]) is not None
    assert closed_groups([None, None]) is None and closed_groups([]) == []


def test_one_group_is_refused():
    with pytest.raises(ValueError, match="two groups"):
        artefact_probe(["a"], ["b"], np.zeros(1))
