"""p(yes) made a probability: a temperature and an offset, fitted on pairs whose answer is known
(Platt 1999; Guo et al. 2017, On Calibration of Modern Neural Networks).

Known are the positives, which answer, and one random document for each query, which does not. So it
is the odds of a positive against a random document that are right; a candidate that a retriever
found is another case, and lies between.
"""

from typing import NamedTuple

import numpy as np

EDGE = 1e-6  # of probabilities, which logits need


class Scale(NamedTuple):
    """p = sigmoid(logit(p) / temperature + offset), and of how many pairs it comes."""

    temperature: float
    offset: float
    pairs: int

    def __call__(self, score: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (n,); nan stays."""
        return 1 / (1 + np.exp(-(logit(score) / self.temperature + self.offset)))


def logit(score: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)) (n,) of probabilities, kept off 0 and 1."""
    inside = np.clip(np.asarray(score, np.float64), EDGE, 1 - EDGE)
    return np.log(inside / (1 - inside))


def fit_scale(score: np.ndarray, answers: np.ndarray) -> Scale | None:
    """Return the scale under which pairs (n,) are likeliest, both kinds weighing the same; None if
    one kind is not there, or if a higher score speaks against an answer.

    Args:
        score: p(yes), nan for no answer.
        answers: whether the document answers.
    """
    from sklearn.linear_model import LogisticRegression

    known = ~np.isnan(score)
    score, answers = score[known], answers[known]
    if len(np.unique(answers)) < 2:
        return None
    model = LogisticRegression(C=1e6, class_weight="balanced")
    model.fit(logit(score)[:, None], answers)
    slope = float(model.coef_[0, 0])
    if slope <= 0:
        return None
    return Scale(1 / slope, float(model.intercept_[0]), len(score))


def area_under_curve(score: np.ndarray, answers: np.ndarray) -> float | None:
    """Return how often what answers has a higher score than what does not (n,), ties half; None
    if one kind is not there. Pairs without a score are left out.

    >>> area_under_curve(np.array([0.9, 0.4, 0.4, np.nan]), np.array([True, True, False, False]))
    0.75
    """
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(score)
    if len(np.unique(answers[known])) < 2:
        return None
    return float(roc_auc_score(answers[known], score[known]))


def reliability(score: np.ndarray, answers: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Return the reliability curve: of each bin of p (equal widths; empty ones left out) its mean
    p, the share that answers, and its pairs.

    Args:
        score: (n,) probabilities.
        answers: (n,) whether the document answers.
        bins: how many.

    Example:
        >>> reliability(np.array([0.1, 0.2, 0.9]), np.array([False, True, True]), 2)
        [{'p': 0.15, 'answers': 0.5, 'pairs': 2}, {'p': 0.9, 'answers': 1.0, 'pairs': 1}]
    """
    place = np.minimum((np.asarray(score) * bins).astype(int), bins - 1)
    return [
        {
            "p": round(float(score[place == one].mean()), 4),
            "answers": round(float(np.mean(answers[place == one])), 4),
            "pairs": int((place == one).sum()),
        }
        for one in np.unique(place)
    ]


def calibration_error(score: np.ndarray, answers: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error: the mean of |p - share that answers| over bins, by
    their pairs.

    >>> calibration_error(np.array([0.1, 0.2, 0.9]), np.array([False, True, True]), 2)
    0.26666666666666666
    """
    curve = reliability(score, answers, bins)
    off = sum(abs(one["p"] - one["answers"]) * one["pairs"] for one in curve)
    return off / max(len(score), 1)
