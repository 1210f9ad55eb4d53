"""Exchange of words between texts."""

import time
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miner.words.exchange import Targets, exchange
from miner.words.targets import by_shard


def targets(*rows):
    return Targets(*(np.array(column, np.int64) for column in zip(*rows, strict=True)))


def test_words_are_exchanged_first_where_both_sides_are_the_same():
    # texts 0 and 2 have the same words around theirs, text 1 has others: 0 and 2 exchange, 1 has no
    # partner left
    made = targets((0, 0, 10, 0, 5, 6, 0), (1, 1, 11, 0, 7, 8, 0), (2, 1, 11, 0, 5, 6, 0))
    for seed in range(6):
        assert exchange(made, [[1], [0]], [frozenset()] * 3, seed).tolist() == [2, -1, 0]


def test_a_forbidden_word_an_unlike_kind_and_a_stranger_are_no_partners():
    pair = [(0, 0, 10, 0, 5, 6, 0), (1, 1, 11, 0, 5, 6, 0)]
    assert exchange(targets(*pair), [[1], [0]], [frozenset(), frozenset()], 0).tolist() == [1, 0]
    assert exchange(targets(*pair), [[1], [0]], [frozenset({1}), frozenset()], 0).tolist() == [
        -1,
        -1,
    ]
    assert exchange(targets(*pair), [[1], [0]], [frozenset(), frozenset({0})], 0).tolist() == [
        -1,
        -1,
    ]
    assert exchange(targets(*pair), [[], []], [frozenset(), frozenset()], 0).tolist() == [-1, -1]
    other_kind = [pair[0], (1, 1, 11, 1, 5, 6, 0)]
    assert exchange(targets(*other_kind), [[1], [0]], [frozenset(), frozenset()], 0).tolist() == [
        -1,
        -1,
    ]


def test_a_text_takes_its_second_word_where_the_first_finds_no_partner():
    made = targets((0, 2, 12, 0, 5, 6, 0), (0, 0, 10, 0, 5, 6, 0), (1, 1, 11, 0, 9, 6, 0))
    assert exchange(made, [[1], [0], []], [frozenset()] * 2, 3).tolist() == [-1, 2, 1]


def test_of_looser_partners_the_one_that_disturbs_least_is_taken():
    # text 2 could exchange with 0 (its right side differs) or, with nothing disturbed, with 1
    made = targets((0, 0, 10, 0, 5, 6, 0), (1, 0, 10, 0, 5, 7, 0), (2, 1, 11, 0, 5, 7, 0))
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
    made = targets(*rows)
    near = [
        [other for other in range(6) if other != word and (other + word) % 2] for word in range(6)
    ]
    forbids = [frozenset({words[0][0] ^ 1}) if len(words) > 1 else frozenset() for words in texts]
    partner = exchange(made, near, forbids, seed)
    taken = np.flatnonzero(partner >= 0)
    assert (partner[partner[taken]] == taken).all()
    assert max(Counter(made.text[taken].tolist()).values(), default=0) <= 1
    assert Counter(made.token[taken].tolist()) == Counter(made.token[partner[taken]].tolist())
    for target in taken.tolist():
        assert int(made.word[partner[target]]) in near[made.word[target]]
        assert int(made.word[partner[target]]) not in forbids[made.text[target]]
        assert made.kind[target] == made.kind[partner[target]]
    assert (exchange(made, near, forbids, seed) == partner).all()


def test_giving_out_takes_time_in_proportion_to_the_texts():
    def seconds(count):
        given = dict.fromkeys(range(0, count, 3), "word")
        start = time.perf_counter()
        shards = list(by_shard(given, list(range(0, count + 1, 10))))
        took = time.perf_counter() - start
        assert len(shards) == count // 10 and sum(map(len, shards)) == len(given)
        return took

    few, many = (min(seconds(count) for _ in range(3)) for count in (20_000, 320_000))
    assert many < 16 * 4 * few  # in proportion it is 16 times, squared 256
