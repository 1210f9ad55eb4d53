import math
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.cells import Cells
from scoring.eci import eci_v1, margins
from scoring.samplers import (
    SAMPLERS,
    diverse,
    eci,
    hardest,
    propensity,
    quantile,
    random,
    simans,
    top,
)
from scoring.survivors import Pool

OPTIONS = SimpleNamespace(simans_a=8.0, simans_b=-0.125, quantile=0.4, theta=0.5)
CLOSE = 1e-9


@dataclass(frozen=True)
class Query:
    """A query's survivors, one a place of every tuple, and its positives' scores."""

    turn: tuple[int, ...]
    draw: tuple[float, ...]
    score: tuple[float, ...]
    positive: tuple[float, ...]
    weight: tuple[float, ...]
    vectors: tuple[tuple[float, ...], ...]


def make_pool(queries, numbers=None):
    """Put queries together; numbers are their places in `Pool.query`."""
    numbers = range(len(queries)) if numbers is None else numbers
    vectors = np.array(
        [vector for query in queries for vector in query.vectors], np.float32
    ).reshape(-1, 3)
    return Pool(
        np.array(
            [number for number, query in zip(numbers, queries, strict=True) for _ in query.turn],
            np.int64,
        ),
        np.array([turn for query in queries for turn in query.turn], np.int64),
        np.array([draw for query in queries for draw in query.draw], float),
        np.array([score for query in queries for score in query.score], float),
        np.array(
            [
                number
                for number, query in zip(numbers, queries, strict=True)
                for _ in query.positive
            ],
            np.int64,
        ),
        np.array([score for query in queries for score in query.positive], float),
        np.array([weight for query in queries for weight in query.weight], float),
        lambda places: vectors[places],
    )


def split(pool, position):
    return [position[pool.query == number].tolist() for number in np.unique(pool.query)]


def chosen(position):
    """Return places in order of position, without those left out."""
    return sorted(
        (place for place, at in enumerate(position) if at), key=lambda place: position[place]
    )


eighths = st.integers(-8, 8).map(lambda number: number / 8)  # exact, with ties and negative scores
draws = st.integers(1, 2**20 - 1).map(lambda number: number / 2**20)
directions = st.sampled_from(
    [
        (1, 0, 0),
        (2, 0, 0),
        (0, 1, 0),
        (0, -1, 0),
        (1, 1, 0),
        (1, 2, 3),
        (3, -1, 2),
        (0, 0, 0),
        (1, 1, 1),
    ]
)


@st.composite
def a_query(draw, most=7):
    count = draw(st.sampled_from([1, 2, 1, 3, most]))
    many = {"min_size": count, "max_size": count}
    return Query(
        tuple(draw(st.permutations([1, 2, 3, 5, 8, 13, 21][:count]))),
        tuple(draw(st.lists(draws, unique=True, **many))),
        tuple(draw(st.lists(eighths, **many))),
        tuple(draw(st.lists(eighths, min_size=1, max_size=3))),
        tuple(draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), **many))),
        tuple(draw(st.lists(directions, **many))),
    )


queries = st.lists(a_query(), min_size=1, max_size=4)
ONE_TWO_ONE = [
    Query((4,), (0.5,), (0.25,), (0.5,), (1.0,), ((1, 0, 0),)),
    Query((9, 2), (0.25, 0.75), (-0.5, 0.125), (0.25, -0.25), (1.0, 0.5), ((1, 1, 0), (0, 0, 1))),
    Query((1,), (0.125,), (-0.75,), (-0.5,), (0.0,), ((0, 0, 0),)),
]


def test_catalogue():
    assert list(SAMPLERS) == [
        "top",
        "random",
        "hardest",
        "simans",
        "quantile",
        "propensity",
        "diverse",
        "eci",
    ]


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("top", [[1], [2, 1], [1]]),
        ("random", [[1], [1, 2], [1]]),
        ("hardest", [[1], [2, 1], [1]]),
        ("simans", [[1], [1, 2], [1]]),
        ("quantile", [[1], [0, 1], [1]]),
        ("propensity", [[1], [2, 1], [1]]),
        ("diverse", [[1], [2, 1], [1]]),
        ("eci", [[1], [0, 1], [0]]),
    ],
)
def test_one_two_one(name, positions):
    pool = make_pool(ONE_TWO_ONE, [3, 7, 8])
    position = SAMPLERS[name].order(pool, OPTIONS, None)
    assert position.dtype == np.int64
    assert split(pool, position) == positions


@pytest.mark.parametrize("name", SAMPLERS)
def test_needs_no_more_than_it_says(name):
    whole, needs = make_pool(ONE_TWO_ONE), set(SAMPLERS[name].needs)
    fields = {"score", "weight", "vectors"} & needs | (
        {"positive_query", "positive_score"} if "positives" in needs else set()
    )
    pool = Pool(
        whole.query, whole.turn, whole.draw, **{field: getattr(whole, field) for field in fields}
    )
    assert (
        SAMPLERS[name].order(pool, OPTIONS, None).tolist()
        == SAMPLERS[name].order(whole, OPTIONS, None).tolist()
    )
    for field in fields:
        with pytest.raises(ValueError, match="this sampler needs"):
            SAMPLERS[name].order(replace(pool, **{field: None}), OPTIONS, None)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_survivors(name):
    assert SAMPLERS[name].order(make_pool([]), OPTIONS, None).tolist() == []


@pytest.mark.parametrize("name", ["hardest", "simans", "quantile", "diverse", "eci"])
def test_a_score_that_is_no_number_is_refused(name):
    pool = make_pool([replace(ONE_TWO_ONE[1], score=(0.5, math.nan))])
    with pytest.raises(ValueError, match="needs score of every survivor, finite"):
        SAMPLERS[name].order(pool, OPTIONS, None)


@pytest.mark.parametrize("name", ["simans", "eci"])
@pytest.mark.parametrize("positive", [(), (0.5, math.nan)])
def test_a_query_without_scored_positives_is_refused(name, positive):
    pool = make_pool([ONE_TWO_ONE[0], replace(ONE_TWO_ONE[1], positive=positive), ONE_TWO_ONE[2]])
    with pytest.raises(ValueError, match="needs positives of every query"):
        SAMPLERS[name].order(pool, OPTIONS, None)


@pytest.mark.parametrize("name", ["simans", "eci"])
def test_positives_of_queries_without_survivors_are_passed_over(name):
    pool = make_pool(ONE_TWO_ONE, [3, 7, 8])
    more = [
        (0, -9.0),
        (2, math.nan),
        (3, 0.5),
        (5, -9.0),
        (7, 0.25),
        (7, -0.25),
        (8, -0.5),
        (9, 9.0),
    ]
    other = replace(
        pool,
        positive_query=np.array([number for number, _ in more]),
        positive_score=np.array([score for _, score in more]),
    )
    assert (
        SAMPLERS[name].order(other, OPTIONS, None).tolist()
        == SAMPLERS[name].order(pool, OPTIONS, None).tolist()
    )


@pytest.mark.parametrize("name", SAMPLERS)
@given(found=queries, kept=st.lists(st.booleans(), min_size=4, max_size=4))
def test_positions_run_from_one_and_do_not_depend_on_the_shard(name, found, kept):
    whole = make_pool(found)
    positions = split(whole, SAMPLERS[name].order(whole, OPTIONS, None))
    for position in positions:
        assert sorted(at for at in position if at) == list(range(1, len(chosen(position)) + 1))
    numbers = [number for number in range(len(found)) if kept[number]]
    part = make_pool([found[number] for number in numbers], numbers)
    assert split(part, SAMPLERS[name].order(part, OPTIONS, None)) == [
        positions[number] for number in numbers
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_long_shards_cut_anywhere(name):
    # Compiled loops treat the ends of arrays apart; the numbers must come out the same there.
    generator = np.random.default_rng(4)
    sizes = generator.integers(1, 40, 60)
    count, bounds = sizes.sum(), np.concatenate(([0], np.cumsum(sizes)))
    vectors = generator.standard_normal((count, 3)).astype(np.float32)
    vectors[1::3] = vectors[::3][: len(vectors[1::3])]
    pool = Pool(
        np.repeat(np.arange(60), sizes),
        generator.permutation(count),
        generator.random(count),
        generator.normal(0.3, 0.4, count).round(1),
        np.repeat(np.arange(60), 2),
        generator.normal(0.5, 0.3, 120),
        generator.random(count).round(1),
        vectors.__getitem__,
    )
    whole = SAMPLERS[name].order(pool, OPTIONS, None)
    for number in range(60):
        places = slice(bounds[number], bounds[number + 1])
        one = Pool(
            pool.query[places],
            pool.turn[places],
            pool.draw[places],
            pool.score[places],
            pool.positive_query,
            pool.positive_score,
            pool.weight[places],
            vectors[places].__getitem__,
        )
        assert SAMPLERS[name].order(one, OPTIONS, None).tolist() == whole[places].tolist()


@pytest.mark.parametrize("name", SAMPLERS)
@given(found=queries, seed=st.integers(0, 2**32 - 1))
def test_nothing_is_random_but_the_draws(name, found, seed):
    pool = make_pool(found)
    position = SAMPLERS[name].order(pool, OPTIONS, None).tolist()
    np.random.seed(seed)
    assert SAMPLERS[name].order(pool, OPTIONS, None).tolist() == position
    if name in ("top", "hardest", "diverse", "eci"):
        other = replace(pool, draw=np.random.default_rng(seed).random(len(pool.draw)))
        assert SAMPLERS[name].order(other, OPTIONS, None).tolist() == position


@given(found=queries)
def test_top_random_and_hardest(found):
    pool = make_pool(found)
    by_turn = [
        [1 + sum(other < turn for other in query.turn) for turn in query.turn] for query in found
    ]
    assert split(pool, top(pool)) == by_turn
    assert split(pool, random(pool)) == [
        [1 + sum(other < draw for other in query.draw) for draw in query.draw] for query in found
    ]
    same = replace(pool, draw=np.full(len(pool.draw), 0.5))
    assert split(same, random(same)) == by_turn
    for query, position in zip(found, split(pool, hardest(pool)), strict=True):
        order = sorted(
            range(len(position)), key=lambda place: (-query.score[place], query.turn[place])
        )
        assert [position.index(number) for number in range(1, len(position) + 1)] == order


def race(draw, weight_log):
    """Order by u^(1/w), the highest first: -ln(u) / w, the lowest first, in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        keys = [(-Decimal(u).ln()).ln() - log for u, log in zip(draw, weight_log, strict=True)]
        return sorted(range(len(keys)), key=lambda place: keys[place])


@settings(deadline=None)
@given(found=queries, a=st.sampled_from([0.0, 0.5, 64.0, 2.0**40, 2.0**100]), b=eighths)
def test_simans_against_many_digits(found, a, b):
    pool = make_pool(found)
    for query, position in zip(found, split(pool, simans(pool, a, b)), strict=True):
        weight_log = [
            -Decimal(a) * Decimal(score - min(query.positive) - b) ** 2 for score in query.score
        ]
        assert chosen(position) == race(query.draw, weight_log)


def test_simans_without_overflow_or_false_ties():
    query = Query(
        (1, 2, 3, 4),
        (0.2, 0.9, 0.3, 0.6),
        (1e30, 2.0, -1e30, 2.0),
        (1.0,),
        (1.0,) * 4,
        ((1, 0, 0),) * 4,
    )
    pool = make_pool([query])
    with np.errstate(all="raise"):
        # of equal ones the greater draw, though it vanishes beside 1e200
        assert simans(pool, 1e200, 0.0).tolist() == [4, 1, 3, 2]


REPEATS = 100_000


def many(score, positive=(0.0,), weight=None, seed=1):
    """Make a pool of many equal queries with draws of their own."""
    count, weight = len(score), np.ones(len(score)) if weight is None else np.asarray(weight)
    return Pool(
        np.repeat(np.arange(REPEATS), count),
        np.tile(np.arange(count), REPEATS),
        np.random.default_rng(seed).random(REPEATS * count),
        np.tile(np.asarray(score, float), REPEATS),
        np.repeat(np.arange(REPEATS), len(positive)),
        np.tile(positive, REPEATS),
        np.tile(weight, REPEATS),
    )


def assert_drawn_by(position, chances):
    """Check how often each pair is first and second against p_i p_j / (1 - p_i), within 4.5
    standard deviations.
    """
    order = np.argsort(position.reshape(REPEATS, -1), axis=1)
    for first, second in permutations(range(len(chances)), 2):
        expected = chances[first] * chances[second] / (1 - chances[first])
        found = ((order[:, 0] == first) & (order[:, 1] == second)).mean()
        assert abs(found - expected) < 4.5 * math.sqrt(expected / REPEATS)


def test_simans_frequencies():
    score, positive, a, b = (-0.5, 0.1, 0.4, 0.45), (0.9, 0.5), 6.0, -0.1
    chances = np.exp([-a * (s_n - 0.5 - b) ** 2 for s_n in score])
    assert_drawn_by(simans(many(score, positive), a, b), chances / chances.sum())


def test_propensity_frequencies():
    weight = np.array([0.5, 4.0, 1.0, 2.5])
    assert_drawn_by(propensity(many((0.0,) * 4, weight=weight)), weight / weight.sum())


@settings(deadline=None)
@given(found=queries)
def test_propensity_against_many_digits(found):
    pool = make_pool(found)
    for query, position in zip(found, split(pool, propensity(pool)), strict=True):
        some = [place for place, weight in enumerate(query.weight) if weight]
        order = race(
            [query.draw[place] for place in some],
            [Decimal(query.weight[place]).ln() for place in some],
        )
        # what weighs nothing comes last
        assert chosen(position)[: len(some)] == [some[place] for place in order]


@given(found=queries, tenths=st.integers(1, 10))
def test_quantile_against_counting(found, tenths):
    pool = make_pool(found)
    for query, position in zip(found, split(pool, quantile(pool, tenths / 10)), strict=True):
        reach = {value: sum(score >= value for score in query.score) for value in query.score}
        threshold = max(
            value for value, count in reach.items() if count * 10 >= tenths * len(query.score)
        )
        kept = [place for place, score in enumerate(query.score) if score >= threshold]
        assert kept and chosen(position) == sorted(kept, key=lambda place: query.draw[place])


@pytest.mark.parametrize(
    ("alpha", "kept"), [(0.07, 7), (0.29, 29), (0.295, 30), (1e-9, 1), (1.0, 100)]
)
def test_quantile_keeps_the_share(alpha, kept):
    score = np.random.default_rng(5).permutation(100) / 100
    pool = Pool(
        np.zeros(100, np.int64), np.arange(100), np.random.default_rng(6).random(100), score
    )
    position = quantile(pool, alpha)
    assert sorted(score[position > 0]) == sorted(score)[100 - kept :]


def test_quantile_keeps_ties():
    pool = Pool(
        np.zeros(4, np.int64),
        np.arange(4),
        np.array([0.4, 0.3, 0.2, 0.1]),
        np.array([0.5, -1.0, 0.5, 0.5]),
    )
    assert quantile(pool, 0.25).tolist() == [3, 0, 2, 1]


SURFACE = np.array([0.0, 0.1, 0.49, 0.5, 1.0, 0.9, 0.9])
SEMANTIC = np.array([-0.2, 0.1, 0.1, 0.3, 0.7, 0.2, 5.0])


def test_cells_are_counted_and_added():
    cells = Cells.count(SURFACE[:2], SEMANTIC[:2], 2, 0.0, 0.5) + Cells.count(
        SURFACE[2:], SEMANTIC[2:], 2, 0.0, 0.5
    )
    assert cells.counts.tolist() == [[3, 0], [1, 3]]
    assert cells.counts.tolist() == Cells.count(SURFACE, SEMANTIC, 2, 0.0, 0.5).counts.tolist()


def test_cells_weigh_every_cell_alike():
    cells = Cells.count(SURFACE, SEMANTIC, 2, 0.0, 0.5)
    np.testing.assert_allclose(cells.weights(math.inf), [[7 / 9, 0], [7 / 3, 7 / 9]])
    weights = cells.weigh(SURFACE, SEMANTIC, math.inf)
    np.testing.assert_allclose(weights, [7 / 9, 7 / 9, 7 / 9, 7 / 9, 7 / 9, 7 / 3, 7 / 9])
    assert cells.effective_sample_size(math.inf) == pytest.approx(
        weights.sum() ** 2 / (weights**2).sum()
    )


def test_cells_cap_before_they_normalise():
    weights = Cells.count(SURFACE, SEMANTIC, 2, 0.0, 0.5).weights(1.5)
    mean = (6 * 7 / 9 + 1.5) / 7
    np.testing.assert_allclose(weights, [[7 / 9 / mean, 0], [1.5 / mean, 7 / 9 / mean]])


def test_cells_of_nothing_and_wrong_edges():
    none = Cells.count(np.empty(0), np.empty(0), 3, -1.0, 1.0)
    assert none.weights(2.0).tolist() == [[0.0] * 3] * 3
    assert none.effective_sample_size(2.0) == 0.0
    assert Cells.count(SURFACE, np.full(7, 0.5), 2, 0.5, 0.5).counts.tolist() == [[3, 0], [4, 0]]
    with pytest.raises(ValueError, match="edges that do not fall"):
        Cells.count(SURFACE, SEMANTIC, 2, 0.5, 0.25)
    with pytest.raises(ValueError, match="finite values"):
        Cells.count(SURFACE, np.full(7, np.nan), 2, 0.0, 1.0)


@given(
    values=st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1)), min_size=1, max_size=40),
    cap=st.sampled_from([0.5, 2.0, 1e6]),
)
def test_cells_against_single_survivors(values, cap):
    surface, score = np.array(values).T
    weights = Cells.count(surface, score, 3, -1.0, 1.0).weigh(surface, score, cap)
    mine = [(min(int(x * 3), 2), min(int((y + 1) * 1.5), 2)) for x, y in values]
    raw = np.array([min(1 / len(set(mine)) / (mine.count(cell) / len(mine)), cap) for cell in mine])
    np.testing.assert_allclose(weights, raw / raw.mean())
    cells = Cells.count(surface, score, 3, -1.0, 1.0)
    assert cells.effective_sample_size(cap) == pytest.approx(raw.sum() ** 2 / (raw**2).sum())


def log_det(kernel, places):
    sign, value = np.linalg.slogdet(kernel[np.ix_(places, places)])
    return value if sign > 0 else -math.inf


def assert_greedy_log_det(query, position, theta):
    vectors = np.array(query.vectors, float)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, length, where=length > 0, out=np.zeros_like(vectors))
    scale = np.exp(theta / (2 * (1 - theta)) * np.array(query.score))
    kernel = scale[:, None] * (vectors @ vectors.T) * scale
    order, reached = chosen(position), 0.0
    assert len(order) == len(query.turn)
    for step, place in enumerate(order):
        gains = {other: log_det(kernel, [*order[:step], other]) - reached for other in order[step:]}
        gains = {
            other: gain
            for other, gain in gains.items()
            if gain - 2 * math.log(scale[other]) > math.log(1e-9)
        }
        if not gains:
            return [query.turn[other] for other in order[step:]]
        assert gains[place] >= max(gains.values()) - CLOSE
        alike = [
            other
            for other in gains
            if (query.vectors[other], query.score[other])
            == (query.vectors[place], query.score[place])
        ]
        assert query.turn[place] == min(query.turn[other] for other in alike)
        reached += gains[place]
    return []


@settings(deadline=None)
@given(found=queries, theta=st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_diverse_against_determinants(found, theta):
    pool = make_pool(found)
    for query, position in zip(found, split(pool, diverse(pool, theta)), strict=True):
        dependent = assert_greedy_log_det(query, position, theta)
        assert dependent == sorted(dependent)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 2, 5, 9, 30]))
def test_diverse_of_real_looking_vectors(seed, size):
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((25, size)).astype(np.float32) + 1
    vectors[20:] = vectors[:5]
    score, turn = generator.random(25), generator.permutation(25)
    score[20:] = score[:5]
    pool = Pool(
        np.zeros(25, np.int64), turn, generator.random(25), score, vectors=vectors.__getitem__
    )
    query = Query(tuple(turn), (), tuple(score), (), (), tuple(map(tuple, vectors.tolist())))
    dependent = assert_greedy_log_det(query, diverse(pool, 0.4).tolist(), 0.4)
    assert len(dependent) == 25 - min(size, 20)
    assert dependent == sorted(dependent)


def diverse_pool(vectors, turn=None, score=None):
    count = len(vectors)
    vectors, turn = (
        np.array(vectors, np.float32),
        (np.arange(count) if turn is None else np.array(turn)),
    )
    score = np.zeros(count) if score is None else np.array(score)
    return Pool(
        np.zeros(count, np.int64), turn, np.full(count, 0.5), score, vectors=vectors.__getitem__
    )


def test_diverse_starts_with_the_first_turn_and_then_the_farthest():
    third = 1 / 3  # its float32 is not of length 1: no reason to come first
    pool = diverse_pool([(1, 0.1), (0, 1), (1, 0), (third, 0.2)], turn=[4, 3, 1, 2])
    assert diverse(pool, 0.0).tolist()[2] == 1
    assert diverse(pool, 0.0).tolist() == [4, 2, 1, 3]


def test_diverse_weighs_scores_by_theta():
    pool = diverse_pool([(1, 0, 0), (0.8, 0.6, 0), (0, 0, 1)], score=[1.0, 0.9, 0.0])
    # second choice: ln .36 + 2 alpha .9 against 0; 2 alpha = theta / (1 - theta), so they meet at
    # theta = .5317
    assert diverse(pool, 0.53).tolist() == [1, 3, 2]
    assert diverse(pool, 0.54).tolist() == [1, 2, 3]


def test_diverse_puts_copies_and_nothing_last_by_turn():
    vectors = [(0.6, 0.8), (0, 0), (0.6, 0.8), (1, 0), (math.nan, 1), (0.5, 0.5)]
    assert diverse(diverse_pool(vectors, turn=[5, 1, 3, 6, 4, 2]), 0.0).tolist() == [
        6,
        3,
        4,
        2,
        5,
        1,
    ]


def test_diverse_tells_near_copies_apart():
    pool = diverse_pool([(1, 0, 0), (1, 1e-3, 0), (1, 0, 2e-3), (1, 0, 0)], turn=[1, 3, 4, 2])
    assert diverse(pool, 0.0).tolist() == [1, 3, 2, 4]


def test_diverse_survives_scores_beyond_the_exponential():
    pool = diverse_pool([(1, 0), (0, 1), (1, 1)], score=[-5000.0, 5000.0, 4000.0])
    with np.errstate(all="raise"):
        assert diverse(pool, 0.9).tolist() == [3, 1, 2]


@settings(deadline=None)
@given(found=queries, most=st.integers(1, 8))
def test_diverse_stops_early_with_the_same_first_choices(found, most):
    pool = make_pool(found)
    for query, whole, early in zip(
        found, split(pool, diverse(pool, 0.5)), split(pool, diverse(pool, 0.5, most)), strict=True
    ):
        assert chosen(early)[:most] == chosen(whole)[:most]
        rest = [query.turn[place] for place in chosen(early)[most:]]
        assert rest == sorted(rest)
    assert (
        SAMPLERS["diverse"].order(pool, OPTIONS, most).tolist() == diverse(pool, 0.5, most).tolist()
    )


def eci_of(query, places):
    scores, positive = np.array([query.score[place] for place in places]), np.array(query.positive)
    return (
        float(eci_v1(len(places), scores.mean(), margins(positive, scores, hinge=True).mean()))
        if places
        else 0.0
    )


def assert_greedy_eci(query, position):
    order, reached = chosen(position), 0.0
    for step in range(len(order) + 1):
        left = [place for place in range(len(query.score)) if place not in order[:step]]
        values = {place: eci_of(query, [*order[:step], place]) for place in left}
        if step == len(order):
            assert max(values.values(), default=0.0) <= reached + CLOSE
            return
        place = order[step]
        assert values[place] >= max(values.values()) - CLOSE
        assert values[place] > reached - CLOSE and values[place] > 0
        assert query.turn[place] == min(
            query.turn[other] for other in left if query.score[other] == query.score[place]
        )
        reached = values[place]


@settings(deadline=None)
@given(found=queries)
def test_eci_against_trial_sets(found):
    pool = make_pool(found)
    for query, position in zip(found, split(pool, eci(pool)), strict=True):
        assert_greedy_eci(query, position)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), positives=st.integers(1, 4))
def test_eci_of_real_looking_scores(seed, positives):
    generator = np.random.default_rng(seed)
    score, turn = generator.normal(0.3, 0.3, 25).round(2), generator.permutation(25)
    positive = generator.normal(0.6, 0.2, positives)
    pool = Pool(
        np.zeros(25, np.int64),
        turn,
        generator.random(25),
        score,
        np.zeros(positives, np.int64),
        positive,
    )
    assert_greedy_eci(
        Query(tuple(turn), (), tuple(score), tuple(positive), (), ()), eci(pool).tolist()
    )


def eci_positions(score, positive, turn=None):
    count = len(score)
    turn = np.arange(count) if turn is None else np.array(turn)
    places = np.zeros(count, np.int64), turn, np.full(count, 0.5), np.array(score, float)
    return eci(Pool(*places, np.zeros(len(positive), np.int64), np.array(positive, float))).tolist()


def test_eci_takes_the_middle_first_and_stops():
    # s_p = 1: one negative is worth most at .5; three of them ln(4) / 2 = .69, with -.9 besides
    # only ln(5) * .255 = .41
    assert eci_positions([0.5, 0.5, -0.9, 0.5], [1.0], [4, 2, 1, 3]) == [3, 1, 0, 2]


def test_eci_takes_what_is_unsafe_last():
    # ln(3) * 2 * .75 * .25 / 1 = .412 is still more than ln(2) / 2 = .347: it is for margins to
    # keep such negatives out
    assert eci_positions([1.0, 0.5], [1.0]) == [2, 1]


def test_eci_balances_hard_by_easy():
    assert eci_positions([0.875, 0.875, 0.25], [1.0]) == [2, 3, 1]
    assert eci_positions([0.75, 0.25], [1.0], [2, 1]) == [2, 1]  # worth the same, by turn


def test_eci_takes_margins_from_every_positive():
    assert eci_positions([0.5, 0.25], [1.0]) == [1, 2]
    assert eci_positions([0.5, 0.25], [1.0, 0.25]) == [1, 2]
    assert eci_positions([0.5, 0.25], [0.5, 0.75]) == [2, 1]
    assert eci_positions([0.125, 0.375], [0.5]) == [1, 2]  # worth the same, by turn
    assert eci_positions([0.125, 0.375], [0.5, 1.0]) == [2, 1]


@pytest.mark.parametrize(
    ("score", "positive"),
    [([-0.5, -0.25], [0.5]), ([0.5, 0.75], [0.5]), ([-0.75, 0.5], [-0.5]), ([0.0], [1.0])],
)
def test_eci_of_nothing_worth_anything(score, positive):
    assert eci_positions(score, positive) == [0] * len(score)
