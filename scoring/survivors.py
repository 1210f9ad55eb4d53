"""The survivors of a shard as samplers see them, and how samplers put them in order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Vectors = Callable[[np.ndarray], np.ndarray]
Need = Literal["score", "positives", "weight", "vectors"]


@dataclass(frozen=True)
class Pool:
    """The survivors of a shard: distinct documents, one query after the other.

    What a sampler does not need, as `SAMPLERS` says, may be left out.

    Attributes:
        query: (c,) int64, ascending.
        turn: (c,) int64, unique within a query; the lowest comes first in order of retrieval ranks.
        draw: (c,) float64 in (0, 1), uniform, made of (seed, query_id, doc_id) alone.
        score: (c,) float64, s_n, finite.
        positive_query: (p,) int64, ascending: the queries of all positives; every query in `query`
            has one, others may be there too.
        positive_score: (p,) float64, s_p, finite where the query is in `query`.
        weight: (c,) float64 from 0, as `Cells.weigh` gives them.
        vectors: places in this pool (m,) -> (m, d) float32, asked for one query at a time.
    """

    query: np.ndarray
    turn: np.ndarray
    draw: np.ndarray
    score: np.ndarray | None = None
    positive_query: np.ndarray | None = None
    positive_score: np.ndarray | None = None
    weight: np.ndarray | None = None
    vectors: Vectors | None = None

    def bounds(self) -> np.ndarray:
        """Return where each query's survivors begin, and where the last one's end, (queries +
        1,) int64.
        """
        return np.flatnonzero(np.diff(self.query, prepend=np.nan, append=np.nan))

    def positives(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the scores of positives, (p,), and where in them those of each query begin and
        end, each (queries,) int64.

        Raises:
            ValueError: a query has none, or one without a score.
        """
        if self.positive_query is None or self.positive_score is None:
            raise ValueError("this sampler needs positives")
        queries = self.query[self.bounds()[:-1]]
        first, end = (
            np.searchsorted(self.positive_query, queries, side) for side in ("left", "right")
        )
        unscored = np.concatenate(([0], np.cumsum(~np.isfinite(self.positive_score))))
        if ((first == end) | (unscored[first] < unscored[end])).any():
            raise ValueError(
                "this sampler needs positives of every query, and finite scores of them"
            )
        return self.positive_score, first, end


def required(value: np.ndarray | None, name: str) -> np.ndarray:
    """Return what a sampler needs; a ValueError says what is missing."""
    if value is None or not np.isfinite(value).all():
        raise ValueError(f"this sampler needs {name} of every survivor, finite")
    return value


def place_by(pool: Pool, *keys: np.ndarray) -> np.ndarray:
    """Return the positions of survivors in ascending order of keys, the first key first, then of
    turn.
    """
    order = np.lexsort((pool.turn, *reversed(keys), pool.query))
    bounds = pool.bounds()
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(1, len(order) + 1) - np.repeat(bounds[:-1], np.diff(bounds))
    return position


def weighted_race(pool: Pool, log_weight: np.ndarray) -> np.ndarray:
    """Draw without replacement, each time with a chance in proportion to the weights of what is
    left.

    The order of log w - log(-log u), falling, is such a draw: the keys u^(1/w) of Efraimidis and
    Spirakis 2006, "Weighted random sampling with a reservoir", twice in logarithms. Where equal
    weights are so far off that u vanishes beside them, u still decides.
    """
    return place_by(pool, np.log(-np.log(pool.draw)) - log_weight, -pool.draw)
