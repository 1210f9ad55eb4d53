"""Every option of judge, select, score, report and export, written once, as in miner.options."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo

from miner.options import NAME, Options, option


def read_bound(text: str) -> tuple[str | None, float]:
    """Return "JUDGE=VALUE" as (judge, value), "VALUE" as (None, value).

    Raises:
        ValueError: it is neither.
    """
    judge, equals, value = text.rpartition("=")
    try:
        return (judge if equals else None), float(value)
    except ValueError:
        raise ValueError(
            f"expected VALUE, or JUDGE=VALUE such as cross-encoder=0.9 (found {text!r})"
        ) from None


def _read_bounds(option: Any, info: ValidationInfo) -> Any:
    """Bring what flags, TOML and Python give into one form: a number, or texts "JUDGE=VALUE" (in
    TOML also a table of them).
    """
    if option is None:
        return None
    given = (
        [f"{judge}={value}" for judge, value in option.items()]
        if isinstance(option, dict)
        else option
    )
    texts = [str(given)] if isinstance(given, (int, float, str)) else [str(one) for one in given]
    bounds, (low, high) = (
        [read_bound(text) for text in texts],
        RANGES.get(info.field_name or "", (-math.inf, math.inf)),
    )
    for judge, value in bounds:
        if not low <= value <= high:
            raise ValueError(f"expected {low:g} to {high:g} (found {value:g})")
        if [other for other, _ in bounds].count(judge) > 1:
            raise ValueError(
                f"more than one value for {f'judge {judge}' if judge else 'the judge of --judge'}"
            )
    return bounds[0][1] if [judge for judge, _ in bounds] == [None] else tuple(texts)


RANGES = {"percent_margin": (1e-6, math.inf), "percentile_margin": (0.0, 100.0)}
Bounds = Annotated[tuple[str, ...] | float | None, BeforeValidator(_read_bounds)]
OF_JUDGE = "; JUDGE=VALUE for another judge than --judge; repeat for more"


class Select(Options):
    """A recipe: which candidates become the negatives of a set."""

    name: str = option(..., "name of the set", argument=True, pattern=NAME)
    sources: tuple[str, ...] = option(
        ...,
        "SOURCE or SOURCE:K, at most K negatives a query from it; repeat for a mixture",
        flag="--from",
        min_length=1,
    )
    judge: str = option(
        "similarity", "judge whose scores the margins, the bounds and the sampler use"
    )
    agree: Literal["all", "any"] = option(
        "all", "with rules of several judges: which must let a candidate pass"
    )
    min_rank: int | None = option(None, "leave out better retrieval ranks", ge=1)
    max_rank: int | None = option(None, "leave out worse retrieval ranks", ge=1)
    absolute_margin: Bounds = option(
        None, "keep s_n < s_p - MARGIN, s_p the query's lowest positive" + OF_JUDGE
    )
    percent_margin: Bounds = option(
        None, "keep s_n < s_p - (1 - P) |s_p|; 0.95 is NV-Retriever's" + OF_JUDGE
    )
    percentile_margin: Bounds = option(
        None, "keep s_n below the P-th percentile of all positive scores" + OF_JUDGE
    )
    min_score: Bounds = option(None, "keep s_n >= SCORE" + OF_JUDGE)
    max_score: Bounds = option(None, "keep s_n <= SCORE" + OF_JUDGE)
    near_positive: float = option(
        0.98,
        "drop what is as similar as this to a positive of the query, if judge similarity has run;"
        " above 1: off",
        gt=0,
    )
    drop_other_positives: bool = option(
        False, "drop other queries' positives, which are kept and counted else"
    )
    promote: tuple[str, ...] = option(
        (),
        "JUDGE=SCORE, or JUDGE for its verdict: what reaches it is written apart as a likely"
        " positive; several must all agree",
    )
    sampler: Literal[
        "top", "random", "hardest", "simans", "quantile", "propensity", "diverse", "eci"
    ] = option("top", "which survivors fill quotas and -n")
    simans_a: float = option(
        50.0, "simans: p ~ exp(-a (s_n - s_p - b)^2); 50 suits cosines, logits want less", ge=0
    )
    simans_b: float = option(0.0, "simans: b")
    quantile: float = option(
        0.2, "quantile: share of a query's survivors that is hard enough to draw from", gt=0, le=1
    )
    bins: int = option(5, "propensity: bins of lexical overlap (judge overlap), and of score", ge=1)
    weight_cap: float = option(
        10.0, "propensity: highest ratio of target share to observed share", gt=0
    )
    theta: float = option(0.5, "diverse: 0 is diversity alone, near 1 score alone", ge=0, lt=1)
    negatives: int | None = option(
        None, "negatives a query, over all sources [default: all]", short="-n", ge=1
    )
    seed: int = option(0, "seed of random choices; they depend on it and on the ids alone")
