"""A recipe, read against what a run holds: its sources, its judges, and what its rules compare."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ValidationInfo

from miner.errors import UserError
from miner.options import NAME, Options, option
from miner.store import Run

DUPLICATES, SIMILARITY = f"{Run.JUDGES}/duplicates", f"{Run.JUDGES}/similarity"
NEAREST = "similarity.positive"
MARGINS = ("absolute_margin", "percent_margin")  # what needs the query's own positives' scores
# what needs the candidate's score
SCORED = (*MARGINS, "percentile_margin", "min_score", "max_score")


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
    keep_self: bool = option(
        False, "keep what is the query itself, by id or by text", flag="--self"
    )
    distinct: float | None = option(
        None,
        "drop near-copies of a better-ranked negative, from this Jaccard similarity of shingles",
        gt=0,
        le=1,
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


class Quota(NamedTuple):
    """A source of a recipe and how many negatives a query may have from it; None is no limit."""

    source: str
    most: int | None


class Bound(NamedTuple):
    """One value of a rule, by one judge."""

    rule: str
    judge: str
    value: float


@dataclass(frozen=True)
class Recipe:
    """Options, read against what a run holds.

    Attributes:
        options: as given.
        quotas: the sources, in the order of the recipe.
        judges: those whose scores the recipe reads; the first is that of `--judge`, and the only
            one that need not be there.
        bounds: the values of all rules on scores, judge after judge.
        promote: judge -> the score from which a candidate is promoted, None for its verdict.
        protects: what the judge of duplicates compared its scores with, by reason; None if it was
            not asked.
        near: whether judge similarity has seen all sources, so that what is near to a positive by
            vectors is left out.
        inputs: every stage that the set is made from -> its fingerprint.
    """

    options: Select
    quotas: tuple[Quota, ...]
    judges: tuple[str, ...]
    bounds: tuple[Bound, ...]
    promote: dict[str, float | None]
    protects: dict[str, float | None] | None
    near: bool
    inputs: dict[str, str]

    @property
    def protected_by(self) -> str:
        """Say how positives are kept from being negatives."""
        return (
            "ids, text"
            + (", near-duplicates" if self.protects is not None else "")
            + (", vectors" if self.near else "")
        )


def parse_source(text: str) -> Quota:
    """Return "bm25:50" as ("bm25", 50), "bm25" as ("bm25", None).

    Raises:
        UserError: there is no name before the colon, or no whole number from 1 after it.
    """
    name, colon, most = text.partition(":")
    if not name or (colon and not (most.isascii() and most.isdigit() and int(most) > 0)):
        raise UserError(
            f"--from {text!r}: expected SOURCE, or SOURCE:K with K a whole number from 1, such as"
            " bm25:50"
        )
    return Quota(name, int(most) if colon else None)


def parse_promote(texts: Sequence[str]) -> dict[str, float | None]:
    """Return ["cross-encoder=0.9", "llm"] as {"cross-encoder": 0.9, "llm": None}.

    Raises:
        UserError: what follows "=" is no number, or a judge is named twice.
    """
    found: dict[str, float | None] = {}
    for text in texts:
        try:
            judge, value = read_bound(text) if "=" in text else (text, None)
        except ValueError as error:
            raise UserError(f"--promote: {error}") from None
        if not judge or judge in found:
            raise UserError(
                f"--promote {text!r}: expected JUDGE=SCORE or JUDGE, each judge once, such as"
                " cross-encoder=0.9"
            )
        found[judge] = value
    return found


def parse_bounds(options: Select) -> tuple[Bound, ...]:
    """Return the values of all rules on scores.

    Raises:
        UserError: one judge has two values for a rule.
    """
    found: list[Bound] = []
    for rule in SCORED:
        given = getattr(options, rule)
        for judge, value in (
            []
            if given is None
            else [(None, given)]
            if isinstance(given, float)
            else map(read_bound, given)
        ):
            if any((bound.rule, bound.judge) == (rule, judge or options.judge) for bound in found):
                raise UserError(
                    f"--{rule.replace('_', '-')} has more than one value for judge"
                    f" {judge or options.judge}; give it one"
                )
            found.append(Bound(rule, judge or options.judge, value))
    # stable: rules keep their order
    return tuple(sorted(found, key=lambda bound: (bound.judge != options.judge, bound.judge)))
