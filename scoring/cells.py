"""How often each pair of surface and semantic similarity occurs: what the sampler `propensity`
evens out.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cells:
    """How often each pair (bin of surface similarity, bin of semantic similarity) occurs among the
    survivors of a run.

    Ours: inverse propensity after an idea of DebCSE (Miao et al. 2023), whose own formula is
    another. Bins are equally wide; surface similarities from 0 to 1, scores from low to high; what
    lies beyond is in the outermost bin. Counts of shards are added by `+`.

    Attributes:
        counts: (bins, bins) int64, survivors by surface bin, score bin.
        low: lower edge of the lowest score bin.
        high: upper edge of the highest one.

    >>> cells = Cells.count(np.array([0.1, 0.2, 0.1, 0.9]), np.array([0.1, 0.2, 0.3, 0.9]), 2, 0, 1)
    >>> cells.counts.tolist(), cells.effective_sample_size(cap=np.inf)
    ([[3, 0], [0, 1]], 3.0)
    """

    counts: np.ndarray
    low: float
    high: float

    @classmethod
    def count(
        cls, surface: np.ndarray, score: np.ndarray, bins: int, low: float, high: float
    ) -> "Cells":
        """Count the survivors of a shard: surface and score, both (c,)."""
        places = _bin(surface, bins, 0.0, 1.0) * bins + _bin(score, bins, low, high)
        return cls(np.bincount(places, minlength=bins * bins).reshape(bins, bins), low, high)

    def __add__(self, other: "Cells") -> "Cells":
        return Cells(self.counts + other.counts, self.low, self.high)

    def weights(self, cap: float) -> np.ndarray:
        """Return the weight of each cell, min(target share / observed share, cap), over its mean
        over all survivors; 0 of an empty one.

        The target is uniform over the cells that are not empty.

        Args:
            cap: above 0; inf for none.

        Returns:
            (bins, bins) float64.
        """
        occupied = self.counts > 0
        target, observed = 1 / max(occupied.sum(), 1), self.counts / max(self.counts.sum(), 1)
        raw = np.where(occupied, np.minimum(target / np.where(occupied, observed, 1), cap), 0.0)
        return raw / ((raw * observed).sum() or 1.0)

    def weigh(self, surface: np.ndarray, score: np.ndarray, cap: float) -> np.ndarray:
        """Return the weights of the survivors of a shard, (c,) float64: what `Pool.weight`
        takes.
        """
        bins = len(self.counts)
        return self.weights(cap)[
            _bin(surface, bins, 0.0, 1.0), _bin(score, bins, self.low, self.high)
        ]

    def effective_sample_size(self, cap: float) -> float:
        """Return (sum w)^2 / sum w^2 over all survivors of the run: how many equally weighted
        ones would tell as much; 0 of none.
        """
        weights = self.weights(cap)
        squares = (self.counts * weights**2).sum()
        return float((self.counts * weights).sum() ** 2 / squares) if squares else 0.0


def _bin(value: np.ndarray, bins: int, low: float, high: float) -> np.ndarray:
    if not (np.isfinite(value).all() and low <= high):
        raise ValueError(
            f"cells need finite values, and edges that do not fall (found {low} and {high})"
        )
    return ((value - low) / ((high - low) or 1.0) * bins).clip(0, bins - 1).astype(np.int64)
