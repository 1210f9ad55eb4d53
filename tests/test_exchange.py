"""Exchange of words between texts."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miner.words.exchange import Slots, exchange


def slots(*rows):
    return Slots(*(np.array(column, np.int64) for column in zip(*rows, strict=True)))


def test_words_are_exchanged_first_where_both_sides_are_the_same():
    # texts 0 and 2 have the same words around theirs, text 1 has others: 0 and 2 exchange, 1 has no
    # partner left
    made = slots((0, 0, 10, 0, 5, 6, 0), (1, 1, 11, 0, 7, 8, 0), (2, 1, 11, 0, 5, 6, 0))
    for seed in range(6):
        assert exchange(made, [[1], [0]], [frozenset()] * 3, seed).tolist() == [2, -1, 0]


def test_a_forbidden_word_an_unlike_kind_and_a_stranger_are_no_partners():
    pair = [(0, 0, 10, 0, 5, 6, 0), (1, 1, 11, 0, 5, 6, 0)]
    assert exchange(slots(*pair), [[1], [0]], [frozenset(), frozenset()], 0).tolist() == [1, 0]
    assert exchange(slots(*pair), [[1], [0]], [frozenset({1}), frozenset()], 0).tolist() == [-1, -1]
    assert exchange(slots(*pair), [[1], [0]], [frozenset(), frozenset({0})], 0).tolist() == [-1, -1]
    assert exchange(slots(*pair), [[], []], [frozenset(), frozenset()], 0).tolist() == [-1, -1]
    other_kind = [pair[0], (1, 1, 11, 1, 5, 6, 0)]
    assert exchange(slots(*other_kind), [[1], [0]], [frozenset(), frozenset()], 0).tolist() == [
        -1,
        -1,
    ]


def test_a_text_takes_its_second_word_where_the_first_finds_no_partner():
    made = slots((0, 2, 12, 0, 5, 6, 0), (0, 0, 10, 0, 5, 6, 0), (1, 1, 11, 0, 9, 6, 0))
    assert exchange(made, [[1], [0], []], [frozenset()] * 2, 3).tolist() == [-1, 2, 1]


def test_of_looser_partners_the_one_that_disturbs_least_is_taken():
    # text 2 could exchange with 0 (its right side differs) or, with nothing disturbed, with 1
    made = slots((0, 0, 10, 0, 5, 6, 0), (1, 0, 10, 0, 5, 7, 0), (2, 1, 11, 0, 5, 7, 0))
    for seed in range(6):
        assert exchange(made, [[1], [0]], [frozenset()] * 3, seed).tolist() == [-1, 2, 1]


TEXTS = st.lists(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(20, 22), st.integers(20, 22)),
        min_size=1,
        max_size=3,
    ),
    max_size=25,
)


@given(texts=TEXTS, seed=st.integers(0, 3))
def test_every_word_comes_in_as_often_as_it_goes_out(texts, seed):
    rows = [
        (text, word, word, kind, left, right, 0)
        for text, words in enumerate(texts)
        for word, kind, left, right in words
    ]
    if not rows:
        return
    made = slots(*rows)
    near = [
        [other for other in range(6) if other != word and (other + word) % 2] for word in range(6)
    ]
    forbids = [frozenset({words[0][0] ^ 1}) if len(words) > 1 else frozenset() for words in texts]
    partner = exchange(made, near, forbids, seed)
    taken = np.flatnonzero(partner >= 0)
    assert (partner[partner[taken]] == taken).all()
    assert max(Counter(made.text[taken].tolist()).values(), default=0) <= 1
    assert Counter(made.token[taken].tolist()) == Counter(made.token[partner[taken]].tolist())
    for slot in taken.tolist():
        assert int(made.word[partner[slot]]) in near[made.word[slot]]
        assert int(made.word[partner[slot]]) not in forbids[made.text[slot]]
        assert made.kind[slot] == made.kind[partner[slot]]
    assert (exchange(made, near, forbids, seed) == partner).all()
