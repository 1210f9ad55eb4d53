"""Why a candidate is no negative: every reason is told here, once, for report and docs."""

from typing import NamedTuple

import numpy as np

# What judge duplicates drops, in order of precedence.
COPIES = {
    "positive": "a positive of the query, by id",
    "same_text": "the text of a positive under another id",
    "near_duplicate": "a near-copy of a positive",
    "contains_positive": "a text that contains a positive",
    "equals_query": "the query's own text",
    "linked": "linked to a positive, or from one",
    "co_cited": "cited by a document that also cites a positive",
    "same_label": "of a positive's class",
}

# Every reason for which a candidate is no negative, in the order in which it meets them. Rules of
# another judge than `--judge` have ":JUDGE" after their name.
REASONS = {
    **COPIES,
    "self": "the query itself, by id",
    "near_positive": "a vector that is nearly a positive's",
    "promote": "relevant, as judges say: written apart as a likely positive",
    "drop": "dropped by a judge's own verdict",
    "other_positive": "a positive of another query",
    "min_rank": "ranked better than the recipe's window",
    "max_rank": "ranked worse than the recipe's window",
    "no_score": "no score, where a rule needs one",
    "absolute_margin": "too near the lowest positive",
    "percent_margin": "too near the lowest positive",
    "percentile_margin": "above that percentile of all positives' scores",
    "min_score": "below the lowest score asked for",
    "max_score": "above the highest score asked for",
    "repeated_text": "the text of a better-ranked negative under another id",
    "near_repeat": "a near-copy of a better-ranked negative",
    "quantile": "not hard enough for the sampler",
    "eci": "would lower the set's ECI",
    "quota": "beyond the K of its source",
    "negatives": "beyond the number of negatives of a query",
}

Numbers = np.ndarray | float | None


class Rule(NamedTuple):
    """A rule over the n candidates of a shard.

    Attributes:
        reason: of what fails, one for all or one each (n,).
        fails: which fail (n,).
        value: what was compared (n,). threshold: with what.
    """

    reason: "str | np.ndarray"
    fails: np.ndarray
    value: Numbers = None
    threshold: Numbers = None
