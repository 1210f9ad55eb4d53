"""The sets of negatives that bench/validity.py trains on: six a query each, made of the student's
own vectors, of BM25 and of a teacher's vectors, by the samplers of the product where it has them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from scoring import samplers
from scoring.survivors import Pool

SIZE, DEPTH = 6, 100
Sets = dict[str, np.ndarray]


class Lists(NamedTuple):
    """What negatives are drawn from, for n queries and m documents.

    Attributes:
        student, teacher, bm25: (n, m) scores; -inf for the query's positives.
        positive: (n,) the student's score of the positive.
        near: (n, m) the student's similarity of a document and the query's nearest positive.
        vectors: (m, d) the student's, of documents.
    """

    student: np.ndarray
    teacher: np.ndarray
    bm25: np.ndarray
    positive: np.ndarray
    near: np.ndarray
    vectors: np.ndarray


def ranks(scores: np.ndarray, first: int, count: int = SIZE) -> np.ndarray:
    """Return the documents of some ranks (n, count), from 0."""
    part = np.argpartition(-scores, first + count, axis=1)[:, : first + count]
    order = np.argsort(-np.take_along_axis(scores, part, 1), axis=1, kind="stable")
    return np.take_along_axis(part, order, 1)[:, first:]


def drawn(lists: Lists, seed: int, allowed: np.ndarray, count: int = SIZE) -> np.ndarray:
    """Return documents drawn uniformly of those that are allowed (n, m)."""
    draw = np.random.default_rng(seed).random(allowed.shape)
    return ranks(np.where(allowed & np.isfinite(lists.student), draw, -1.0), 0, count)


def within(lists: Lists, scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the best that are allowed; where too few are, the lowest of the others follow."""
    lowest = np.where(np.isfinite(scores), -10.0 - scores, -np.inf)
    return ranks(np.where(allowed & np.isfinite(scores), scores, lowest), 0)


def sampled(lists: Lists, name: str, seed: int, **options: float) -> np.ndarray:
    """Return what a sampler of the product takes of the student's best DEPTH."""
    found = ranks(lists.student, 0, DEPTH)
    count = len(found)
    score = np.take_along_axis(lists.student, found, 1).ravel().astype(np.float64)
    pool = Pool(
        query=np.repeat(np.arange(count), DEPTH),
        turn=np.tile(np.arange(DEPTH), count),
        draw=np.random.default_rng(seed).random(count * DEPTH),
        score=score,
        positive_query=np.arange(count),
        positive_score=lists.positive.astype(np.float64),
        vectors=lambda places: lists.vectors[found.ravel()[places]],
    )
    function: Callable[..., np.ndarray] = getattr(samplers, name)
    position = function(pool, **options).reshape(count, DEPTH)
    # what a sampler leaves out comes last, by rank
    return np.take_along_axis(
        found,
        np.argsort(np.where(position, position, DEPTH + 1), axis=1, kind="stable")[:, :SIZE],
        1,
    )


def make_sets(lists: Lists, seed: int = 0) -> Sets:
    """Return name -> documents (n, SIZE)."""
    student, positive = lists.student, lists.positive[:, None]
    everything = np.ones(student.shape, bool)
    half = SIZE // 2
    mixed = lambda one, two: np.concatenate((one[:, :half], two[:, :half]), axis=1)  # noqa: E731
    random = drawn(lists, seed, everything)
    dense, bm25 = ranks(student, 0), ranks(lists.bm25, 0)
    same = np.random.default_rng(seed + 5).permutation(student.shape[1])[: 2 * SIZE]
    return {
        "random": random,
        "bm25": bm25,
        "bm25 11-16": ranks(lists.bm25, 10),
        "dense": dense,
        "dense 11-16": ranks(student, 10),
        "dense 51-56": ranks(student, 50),
        "dense 201-206": ranks(student, 200),
        "dense 100, random": drawn(lists, seed + 1, student >= ranks_score(student, DEPTH)),
        "margin 95%": within(lists, student, student < 0.95 * positive),
        "margin 80%": within(lists, student, student < 0.8 * positive),
        "margin 60%": within(lists, student, student < 0.6 * positive),
        "below positive": within(lists, student, student < positive),
        "near < .8": within(lists, student, lists.near < 0.8),
        "near < .6": within(lists, student, lists.near < 0.6),
        "simans": sampled(lists, "simans", seed + 2, a=50.0, b=0.0),
        "simans, easier": sampled(lists, "simans", seed + 3, a=50.0, b=-0.2),
        "quantile .2": sampled(lists, "quantile", seed + 4, alpha=0.2),
        "diverse": sampled(lists, "diverse", seed, theta=0.5, most=SIZE),
        "eci": sampled(lists, "eci", seed),
        "bm25 + dense": mixed(bm25, dense),
        "dense + random": mixed(dense, random),
        "teacher": ranks(lists.teacher, 0),
        "teacher 11-16": ranks(lists.teacher, 10),
        "easiest": ranks(np.where(np.isfinite(student), -student, -np.inf), 0),
        "the same six": np.array(
            [[row for row in same if np.isfinite(line[row])][:SIZE] for line in student]
        ),
        "near-copies": ranks(np.where(np.isfinite(student), lists.near, -np.inf), 0),
    }


def ranks_score(scores: np.ndarray, rank: int) -> np.ndarray:
    """Return the score that a rank has (n, 1)."""
    return -np.partition(-scores, rank - 1, axis=1)[:, rank - 1 : rank]


@numba.njit(cache=True, nogil=True)
def greedy_pull(
    pulls: np.ndarray, weights: np.ndarray, target: np.ndarray, most: int
) -> np.ndarray:
    """Return which documents to take, in order, so that the pull of those taken comes nearest to
    a target: each time the one after which the distance is least, the first on a tie.

    Args:
        pulls: (c, d) float64, vector of each document minus that of the positive.
        weights: (c,) exp((s_n - s_p) / tau).
        target: (d,) v, the pull of the corpus.
        most: how many.
    """
    count = len(pulls)
    toward, size = pulls @ target, (pulls**2).sum(axis=1)
    along = np.zeros(count)  # product of each with the sum of those taken
    taken, free = np.empty(min(most, count), np.int64), np.ones(count, np.bool_)
    mass, product, square = 1.0, 0.0, 0.0
    for step in range(len(taken)):
        best, least = -1, np.inf
        for i in range(count):
            if free[i]:
                w, m = weights[i], mass + weights[i]
                distance = (square + 2 * w * along[i] + w * w * size[i]) / (m * m)
                distance -= 2 * (product + w * toward[i]) / m
                if distance < least:
                    best, least = i, distance
        w = weights[best]
        square += 2 * w * along[best] + w * w * size[best]
        product, mass = product + w * toward[best], mass + w
        along += w * (pulls @ pulls[best])
        taken[step], free[best] = best, False
    return taken
