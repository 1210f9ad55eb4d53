"""A recipe, read against what a run holds: its sources, its judges, and what its rules compare."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from miner.errors import UserError
from miner.query_shard import IDS, QueryShard
from miner.store import Run
from scoring.judgments import read_judgments
from scoring.options import Select, read_bound
from scoring.samplers import SAMPLERS

DUPLICATES, SIMILARITY = f"{Run.JUDGES}/duplicates", f"{Run.JUDGES}/similarity"
NEAREST = "similarity.positive"
MARGINS = ("absolute_margin", "percent_margin")  # what needs the query's own positives' scores
# what needs the candidate's score
SCORED = (*MARGINS, "percentile_margin", "min_score", "max_score")


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
            "ids"
            + (", text, near-duplicates" if self.protects is not None else "")
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


def read_recipe(run: Run, options: Select) -> Recipe:
    """Hold a recipe against what the run has.

    Raises:
        UserError: something that it needs is not there.
    """
    inputs, quotas = run.table_input(), tuple(parse_source(source) for source in options.sources)
    inputs |= run.need_sources([quota.source for quota in quotas])
    folders = list(inputs)[1:]
    bounds, promote = _bounds(options), parse_promote(options.promote)
    judges = _need_judges(run, options, bounds, promote, folders)
    copies = run.need_current(DUPLICATES, "judge duplicates") if run.find(DUPLICATES) else None
    if copies:
        require_judged(run, "duplicates", folders)
    near = options.near_positive <= 1 and run.find(SIMILARITY) is not None
    near = near and not unjudged(run, NEAREST, folders)[0]
    read = [_folder_of(judge) for judge in judges]
    read += [DUPLICATES] * (copies is not None) + [SIMILARITY] * near
    inputs |= {folder: run.need(folder, "run").fingerprint for folder in read}
    protects = None
    if copies:
        least = copies.options
        protects = {"near_duplicate": least["near"], "contains_positive": least.get("contain")}
    return Recipe(options, quotas, judges, bounds, promote, protects, near, inputs)


def _need_judges(
    run: Run, options: Select, bounds: Sequence[Bound], promote: Iterable[str], folders: list[str]
) -> tuple[str, ...]:
    """Return the judges that are there of those that a recipe asks, that of `--judge` first; all
    but this one must be.
    """
    sampler, main = SAMPLERS[options.sampler].needs, options.judge
    margins = {bound.judge for bound in bounds if bound.rule in MARGINS}
    margins |= {main} if "positives" in sampler else set()
    needed = {bound.judge for bound in bounds} | set(promote) | margins
    needed |= {main} if sampler else set()
    others = sorted(needed - {main}) + (["overlap"] if "weight" in sampler else [])
    for judge in [main, *others]:
        must = judge in needed or judge != main
        if _find_judge(run, judge, must) and must:
            require_judged(run, judge, folders + [run.TABLES] * (judge in margins))
    return tuple(judge for judge in (main, *others) if run.find(_folder_of(judge)))


def _folder_of(judge: str) -> str:
    """Return the folder with a judge's rows: "similarity.positive" lies with "similarity"."""
    return f"{Run.JUDGES}/{judge.partition('.')[0]}"


def _bounds(options: Select) -> tuple[Bound, ...]:
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


def _find_judge(run: Run, judge: str, needed: bool) -> bool:
    """Return whether a judge's rows are there; if not, and one is needed or asked for, raise."""
    name, folder = judge.partition(".")[0], _folder_of(judge)
    if run.find(folder) is None and not needed and judge == Select.model_fields["judge"].default:
        return False
    finished = run.names(run.JUDGES)
    if not (run.path / folder).exists() and finished:
        raise UserError(
            f"{run.path / folder} does not exist (found {', '.join(finished)}); run `quarry judge"
            f" {name}` first"
        )
    run.need_current(folder, f"judge {name}")
    names = run.read(folder, run.query_shards()[0], ["judge"])["judge"]
    found = sorted(pc.unique(names).to_pylist())
    if found and judge not in found:
        raise UserError(
            f"{run.path / folder} has no scores of judge {judge!r} (found {', '.join(found)}); pass"
            " one of these to --judge"
        )
    return True


def require_judged(run: Run, judge: str, folders: Sequence[str]) -> None:
    """Make sure that a judge has a row for every pair of some stages: "3_candidates/<source>", or
    "1_tables" for the positives.

    Raises:
        UserError: pairs lack a judgment; says how many.
    """
    missing, changed = unjudged(run, judge, folders)
    if missing:
        raise UserError(
            f"{missing:,} pairs of {', '.join(changed)} have no row by judge {judge}, which saw"
            f" other inputs; run `quarry judge {judge.partition('.')[0]}` first: it judges only"
            " these"
        )


def unjudged(run: Run, judge: str, folders: Sequence[str]) -> tuple[int, list[str]]:
    """Return how many pairs of some stages a judge has no row for, and which of the stages have
    changed since it saw them.

    Pairs are compared only if the judge worked from another state of a stage than the present one.
    """
    seen = run.need(_folder_of(judge), f"judge {judge.partition('.')[0]}").inputs
    changed = [
        folder for folder in folders if seen.get(folder) != run.need(folder, "run").fingerprint
    ]
    keys = run.query_shards() if changed else []
    return sum(_count_unjudged(QueryShard(run, key), judge, changed) for key in keys), changed


def _count_unjudged(shard: QueryShard, judge: str, folders: Sequence[str]) -> int:
    positives = shard.codes(*shard.positives)
    known = [read_judgments(shard, judge).codes]
    if Run.TABLES not in folders:
        known.append(positives)  # their id is enough to drop them
    codes = [
        positives
        if folder == Run.TABLES
        else shard.codes(*shard.places(shard.run.read(folder, shard.key, IDS)))
        for folder in folders
    ]
    return len(np.setdiff1d(np.concatenate(codes), np.concatenate(known)))


def percentiles(run: Run, recipe: Recipe) -> dict[str, float]:
    """Return for each judge with a percentile margin what score that is: of its finite scores of
    all positives, linear between ranks.

    Raises:
        UserError: a judge has no such score.
    """
    asked = [bound for bound in recipe.bounds if bound.rule == "percentile_margin"]
    return {bound.judge: _percentile(run, bound) for bound in asked}


def _percentile(run: Run, bound: Bound) -> float:
    scores = [np.empty(0)]
    for key in run.query_shards():
        shard = QueryShard(run, key, made=False)
        scores.append(read_judgments(shard, bound.judge).scores(shard.codes(*shard.positives)))
    found = np.concatenate(scores)
    if np.isnan(found).all():
        raise UserError(
            f"judge {bound.judge} has no score of any positive; a percentile margin needs them:"
            " take another judge, or other rules"
        )
    return float(np.nanpercentile(found, bound.value))
