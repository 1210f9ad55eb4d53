"""survivors of a shard -> an order: which of the candidates that passed every rule become the
negatives, the first ones of it.

A sampler gives each query's survivors their position, 1 for the first choice; 0 for what it leaves
out. What it gives to a query depends on that query alone, and whatever is random on `Pool.draw`
alone: so neither shards nor workers can change a set. Ties are broken by turn.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np

from scoring.survivors import Need, Pool, place_by, required, weighted_race

# a unit vector is in the span of others if no more than this of it, squared, is outside; float32 is
# good for 1e-14
DEPENDENT = 1e-10


def top(pool: Pool) -> np.ndarray:
    """Order by turn: the best retrieval ranks first."""
    return place_by(pool)


def random(pool: Pool) -> np.ndarray:
    """Order by draw: uniform without replacement.

    >>> pool = Pool(
    ...     query=np.zeros(3, int), turn=np.array([2, 0, 1]), draw=np.array([0.3, 0.6, 0.2]),
    ...     score=np.array([0.9, 0.5, 0.7]),
    ... )
    >>> random(pool).tolist()
    [2, 3, 1]
    """
    return place_by(pool, pool.draw)


def hardest(pool: Pool) -> np.ndarray:
    """Order by score: the highest first, whatever source found it. Ours; what
    `mine_hard_negatives` does with the scores of a reranker.

    >>> pool = Pool(
    ...     query=np.zeros(3, int), turn=np.array([2, 0, 1]), draw=np.array([0.3, 0.6, 0.2]),
    ...     score=np.array([0.9, 0.5, 0.7]),
    ... )
    >>> hardest(pool).tolist()
    [1, 3, 2]
    """
    return place_by(pool, -required(pool.score, "score"))


def simans(pool: Pool, a: float, b: float) -> np.ndarray:
    """Draw without replacement with p(n) in proportion to exp(-a (s_n - s_p - b)^2): what lies near
    s_p + b, neither easy nor false.

    Published: Zhou et al. 2022, "SimANS: Simple Ambiguous Negatives Sampling for Dense Text
    Retrieval" (arXiv 2210.11773). Ours: s_p is the query's lowest positive, where the paper has
    one.

    Args:
        pool: with score and positives.
        a: from 0, in 1 / score^2: 0 is uniform; 1 / (2 a) is the square of the distance at which a
            chance falls to exp(-1/2).
        b: in units of the score.

    >>> pool = Pool(
    ...     query=np.zeros(3, int), turn=np.array([2, 0, 1]), draw=np.array([0.3, 0.6, 0.2]),
    ...     score=np.array([0.9, 0.5, 0.7]),
    ...     positive_query=np.zeros(1, int), positive_score=np.array([0.8]),
    ... )
    >>> simans(pool, a=500, b=0).tolist()
    [1, 3, 2]
    """
    positive, first, end = pool.positives()
    lowest = np.minimum.reduceat(
        np.append(positive, np.inf), np.stack((first, end), axis=1).ravel()
    )[::2]
    distance = required(pool.score, "score") - np.repeat(lowest, np.diff(pool.bounds())) - b
    return weighted_race(pool, -a * distance**2)


def quantile(pool: Pool, alpha: float) -> np.ndarray:
    """Keep what scores at or above the query's upper alpha-quantile, in random order; 0 for the
    others.

    The quantile is the highest score that at least a share alpha of the query's survivors reach.
    Published: the truncation, Wang & Liu 2021, "Understanding the Behaviour of Contrastive Loss",
    its hard contrastive loss. Ours: the random order.

    Args:
        pool: with score.
        alpha: share kept, in (0, 1]: at least one survivor, and more than the share where scores
            tie at the quantile.

    >>> pool = Pool(
    ...     query=np.zeros(3, int), turn=np.array([2, 0, 1]), draw=np.array([0.3, 0.6, 0.2]),
    ...     score=np.array([0.9, 0.5, 0.7]),
    ... )
    >>> quantile(pool, 0.5).tolist()
    [2, 0, 1]
    """
    score, bounds = required(pool.score, "score"), pool.bounds()
    # 0.07 * 100 is a little over 7
    least = np.ceil(np.diff(bounds) * alpha - 1e-9).astype(np.int64).clip(1)
    falling = score[np.lexsort((-score, pool.query))]
    kept = score >= np.repeat(falling[bounds[:-1] + least - 1], np.diff(bounds))
    return np.where(kept, place_by(pool, ~kept, pool.draw), 0)


def propensity(pool: Pool) -> np.ndarray:
    """Draw without replacement with chances in proportion to `pool.weight`; what weighs nothing
    comes last. Ours: see `Cells`.

    >>> pool = Pool(
    ...     query=np.zeros(3, int), turn=np.array([2, 0, 1]), draw=np.array([0.3, 0.6, 0.2]),
    ...     score=np.array([0.9, 0.5, 0.7]),
    ...     weight=np.array([1.0, 0.0, 2.0]),
    ... )
    >>> propensity(pool).tolist()
    [2, 3, 1]
    """
    with np.errstate(divide="ignore"):
        return weighted_race(pool, np.log(required(pool.weight, "weight")))


def diverse(pool: Pool, theta: float, most: int | None = None) -> np.ndarray:
    """Choose, each time, what raises the log-determinant of the chosen ones' kernel most: near the
    query, and far from each other.

    The kernel is diag(e^(alpha r)) V V' diag(e^(alpha r)): V the vectors, scaled to length 1, r the
    scores, alpha = theta / (2 - 2 theta). So a choice adds 2 alpha r + ln(what is left of its
    vector outside the span of those chosen before, squared). What lies in that span, such as a
    copy, comes last, by turn. Published: Chen, Zhang & Zhou 2018, "Fast Greedy MAP Inference for
    Determinantal Point Process".

    Args:
        pool: with score and vectors.
        theta: in [0, 1): 0 is diversity alone; near 1, score alone.
        most: choices a query, after which the others follow by turn: for a caller who takes no
            more. Each costs c (d + most) operations of a query with c survivors.

    >>> pool = Pool(
    ...     query=np.zeros(3, int), turn=np.array([2, 0, 1]), draw=np.array([0.3, 0.6, 0.2]),
    ...     score=np.array([0.9, 0.5, 0.7]),
    ...     vectors=lambda places: np.array([[0, 1], [1, 0], [0, 1]])[places],
    ... )
    >>> diverse(pool, 0.5).tolist()
    [1, 2, 3]
    """
    bonus = required(pool.score, "score") * (theta / (1 - theta))
    if pool.vectors is None:
        raise ValueError("this sampler needs vectors")
    bounds, steps = pool.bounds(), np.full(len(pool.query), len(pool.query) + 1)
    for start, end in pairwise(bounds.tolist()):
        places = np.arange(start, end)
        places = places[np.argsort(pool.turn[start:end])]
        picked = _greedy_log_det(
            _columns(pool.vectors(places)), bonus[places], len(places) if most is None else most
        )
        steps[places[picked]] = np.arange(len(picked))
    return place_by(pool, steps)


def _columns(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (m, d) as columns of length 1, or 0 where they have none, with rows of
    zeros to a multiple of four: float64.
    """
    columns = np.zeros((-(-vectors.shape[1] // 4) * 4, len(vectors)))
    columns[: vectors.shape[1]] = vectors.T
    length = np.sqrt((columns**2).sum(axis=0))
    usable = np.isfinite(length) & (length > 0)
    columns[:, ~usable] = 0.0
    return columns / np.where(usable, length, 1.0)


@numba.njit(cache=True, nogil=True)
def _greedy_log_det(columns: np.ndarray, bonus: np.ndarray, most: int) -> np.ndarray:
    """Return the greedy choices in order, until `most` or until all others are dependent; of equal
    ones the first.

    A Cholesky decomposition whose pivot is the next choice: `factor` holds its rows, `left` what
    remains of the diagonal. No library does the sums, so equal columns get equal values.
    """
    count, most = columns.shape[1], min(most, columns.shape[1])
    factor, row = np.zeros((most + 3, count)), np.empty(count)
    left, chosen = np.where((columns != 0).sum(axis=0) > 0, 1.0, 0.0), np.empty(most, np.int64)
    for step in range(most):
        best, gain = -1, -np.inf
        for i in range(count):
            if left[i] > DEPENDENT:
                value = bonus[i] + np.log(left[i])
                if value > gain or best < 0:
                    best, gain = i, value
        if best < 0:
            return chosen[:step]
        chosen[step] = best
        row[:] = 0.0
        _add_products(row, columns, len(columns), best, 1.0)
        _add_products(row, factor, step, best, -1.0)
        scale = 1 / np.sqrt(left[best])
        for i in range(count):
            factor[step, i] = row[i] * scale
            left[i] -= factor[step, i] ** 2
        left[best] = 0.0
    return chosen


@numba.njit(cache=True, nogil=True)
def _add_products(row: np.ndarray, columns: np.ndarray, size: int, one: int, sign: float) -> None:
    """Add to row (m,), or subtract, the inner products of all columns (d, m) with one of them, over
    the first `size` rows.

    Rows are taken in fours, so that `row` is touched a fourth as often; those beyond `size` up to
    the next multiple of four are zeros.
    """
    for k in range(np.uintp(0), np.uintp(size), np.uintp(4)):
        k1, k2, k3 = k + np.uintp(1), k + np.uintp(2), k + np.uintp(3)
        a, b, c, d = (
            sign * columns[k, one],
            sign * columns[k1, one],
            sign * columns[k2, one],
            sign * columns[k3, one],
        )
        for i in range(np.uintp(len(row))):
            row[i] += (a * columns[k, i] + b * columns[k1, i]) + (
                c * columns[k2, i] + d * columns[k3, i]
            )


def eci(pool: Pool) -> np.ndarray:
    """Choose, each time, what raises `eci_v1` of the query's chosen set most; stop where nothing
    raises it: 0 for the rest.

    ECI = ln(1 + n) 2 S D / (S + D) with S the mean s_n and D the mean of max(0, s_p - s_n) over all
    the query's positives, as in `scoring.eci` with margins "hinge". A query of which no single
    negative has S > 0 and D > 0 gets none. An unsafe negative, s_n >= s_p, may still raise S by
    more than it costs: margins keep those out, not this. Takes c^2 operations of a query with c
    survivors. Ours: the greedy choice; published and reconstructed, the formula.

    Args:
        pool: with score and positives.

    >>> pool = Pool(
    ...     query=np.zeros(3, int), turn=np.array([2, 0, 1]), draw=np.array([0.3, 0.6, 0.2]),
    ...     score=np.array([0.9, 0.5, 0.7]),
    ...     positive_query=np.zeros(1, int), positive_score=np.array([0.8]),
    ... )
    >>> eci(pool).tolist()
    [0, 1, 2]
    """
    score, (positive, first, end) = required(pool.score, "score"), pool.positives()
    by_turn = np.lexsort((pool.turn, pool.query))
    position = np.zeros(len(by_turn), np.int64)
    position[by_turn] = _greedy_eci(pool.bounds(), score[by_turn], first, end, positive)
    return position


@numba.njit(cache=True, nogil=True)
def _greedy_eci(
    bounds: np.ndarray, score: np.ndarray, first: np.ndarray, end: np.ndarray, positive: np.ndarray
) -> np.ndarray:
    position = np.zeros(len(score), np.int64)
    for query in range(len(first)):
        mine, placed = (
            score[bounds[query] : bounds[query + 1]],
            position[bounds[query] : bounds[query + 1]],
        )
        margin = np.zeros(len(mine))
        for s_p in positive[first[query] : end[query]]:
            margin += np.maximum(s_p - mine, 0.0)
        margin /= end[query] - first[query]
        signals, margins, reached = 0.0, 0.0, 0.0  # sums over the chosen ones, and their ECI / 2
        for step in range(1, len(mine) + 1):
            best, highest = _best_addition(mine, margin, placed, signals, margins)
            value = np.log1p(step) * highest / step
            if not value > reached:
                break
            placed[best], reached = step, value
            signals, margins = signals + mine[best], margins + margin[best]
    return position


@numba.njit(cache=True, nogil=True)
def _best_addition(mine, margin, placed, signals, margins):  # type: ignore[no-untyped-def] # compiled
    """Return which free one raises S D / (S + D) most, S and D being sums, and to what; -1 and 0
    if none makes it positive.
    """
    best, highest = -1, 0.0
    for i in range(len(mine)):
        signal, safety = signals + mine[i], margins + margin[i]
        if placed[i] == 0 and signal > 0 and safety > 0:
            value = signal * safety / (signal + safety)
            if value > highest:
                best, highest = i, value
    return best, highest


class Sampler(NamedTuple):
    """A sampler and what of a pool it needs.

    Attributes:
        order: pool, options, most -> position (c,) int64. Options has, where the sampler uses them,
            the attributes simans_a (for cosines 50, a spread of .1), simans_b (0), quantile (.2)
            and theta (.5); most is how many of a query's first choices the caller can use, None for
            all.
        needs: what must be in the pool besides query, turn and draw.
    """

    order: Callable[[Pool, Any, int | None], np.ndarray]
    needs: tuple[Need, ...] = ()


SAMPLERS: dict[str, Sampler] = {
    "top": Sampler(lambda pool, options, most: top(pool)),
    "random": Sampler(lambda pool, options, most: random(pool)),
    "hardest": Sampler(lambda pool, options, most: hardest(pool), ("score",)),
    "simans": Sampler(
        lambda pool, options, most: simans(pool, options.simans_a, options.simans_b),
        ("score", "positives"),
    ),
    "quantile": Sampler(lambda pool, options, most: quantile(pool, options.quantile), ("score",)),
    "propensity": Sampler(lambda pool, options, most: propensity(pool), ("weight",)),
    "diverse": Sampler(
        lambda pool, options, most: diverse(pool, options.theta, most), ("score", "vectors")
    ),
    "eci": Sampler(lambda pool, options, most: eci(pool), ("score", "positives")),
}
