"""A recipe, read against what a run holds: its sources, its judges, and the rules that a
candidate meets one by one, as SQL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.errors import UserError
from miner.store import Run
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
    tables, quotas = run.tables(), tuple(parse_source(source) for source in options.sources)
    names = [quota.source for quota in quotas]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"--from names {', '.join(twice)} more than once; name each source once, with one K"
        )
    folders, bounds, promote = (
        _need_sources(run, names),
        _bounds(options),
        parse_promote(options.promote),
    )
    sampler = SAMPLERS[options.sampler].needs
    margins = {bound.judge for bound in bounds if bound.rule in MARGINS} | (
        {options.judge} if "positives" in sampler else set()
    )
    needed = (
        {bound.judge for bound in bounds}
        | set(promote)
        | margins
        | ({options.judge} if sampler else set())
    )
    judges = [
        options.judge,
        *sorted(needed - {options.judge}),
        *(["overlap"] if "weight" in sampler else []),
    ]
    found = {
        judge: _find_judge(run, judge, judge in needed or judge != options.judge)
        for judge in judges
    }
    for judge, folder in found.items():
        if folder and (judge in needed or judge != options.judge):
            require_judged(run, judge, folders + [run.TABLES] * (judge in margins))
    copies = run.need_current(DUPLICATES, "judge duplicates") if run.find(DUPLICATES) else None
    if copies:
        require_judged(run, "duplicates", folders)
    near = (
        options.near_positive <= 1
        and run.find(SIMILARITY) is not None
        and not unjudged(run, NEAREST, folders)[0]
    )
    read = [
        *folders,
        *filter(None, found.values()),
        *([DUPLICATES] if copies else []),
        *([SIMILARITY] if near else []),
    ]
    return Recipe(
        options,
        quotas,
        tuple(judge for judge in judges if found[judge]),
        bounds,
        promote,
        (
            {
                "near_duplicate": copies.options["near"],
                "contains_positive": copies.options.get("contain"),
            }
            if copies
            else None
        ),
        near,
        {run.TABLES: tables.fingerprint}
        | {folder: run.need(folder, "run").fingerprint for folder in dict.fromkeys(read)},
    )


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


def _need_sources(run: Run, names: Sequence[str]) -> list[str]:
    found = run.names(run.SOURCES)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UserError(
            f"no finished source {', '.join(unknown)} in {run.path / run.SOURCES} (found"
            f" {', '.join(found) or 'none'}); take one of these, or run `quarry mine {unknown[0]}`"
            " first"
        )
    return [run.need_current(f"{run.SOURCES}/{name}", f"mine {name}").stage for name in names]


def _find_judge(run: Run, judge: str, needed: bool) -> str | None:
    """Return the folder with a judge's rows ("similarity.positive" lies with "similarity"), None
    if there is none and none is needed.
    """
    name = judge.partition(".")[0]
    folder = f"{run.JUDGES}/{name}"
    if run.find(folder) is None and not needed and judge == Select.model_fields["judge"].default:
        return None
    finished = run.names(run.JUDGES)
    if not (run.path / folder).exists() and finished:
        raise UserError(
            f"{run.path / folder} does not exist (found {', '.join(finished)}); run `quarry judge"
            f" {name}` first"
        )
    run.need_current(folder, f"judge {name}")
    keys = run.query_shards()
    found = sorted(pc.unique(run.read(folder, keys[0])["judge"]).to_pylist()) if keys else []
    if found and judge not in found:
        raise UserError(
            f"{run.path / folder} has no scores of judge {judge!r} (found {', '.join(found)}); pass"
            " one of these to --judge"
        )
    return folder


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
    name = judge.partition(".")[0]
    seen = run.need(f"{run.JUDGES}/{name}", f"judge {name}").inputs
    changed = [
        folder for folder in folders if seen.get(folder) != run.need(folder, "run").fingerprint
    ]
    return (
        sum(_count_unjudged(run, judge, changed, key) for key in run.query_shards())
        if changed
        else 0
    ), changed


def _count_unjudged(run: Run, judge: str, folders: Sequence[str], key: str) -> int:
    positives = run.read(run.POSITIVES, key)
    parts = [positives if folder == run.TABLES else run.read(folder, key) for folder in folders]
    pairs = pa.concat_tables(part.select(["query_id", "doc_id"]) for part in parts)
    # their id is enough to drop them
    passed_over = "" if run.TABLES in folders else "ANTI JOIN positives USING (query_id, doc_id)"
    with database(pairs=pairs, positives=positives, judged=judged(run, judge, key)) as db:
        rows = db.execute(
            f"SELECT DISTINCT query_id, doc_id FROM pairs {passed_over} ANTI JOIN judged USING"
            " (query_id, doc_id)"
        )
        return len(rows.fetchall())


def judged(run: Run, judge: str, key: str) -> pa.Table:
    """Return one judge's rows of a query shard."""
    table = run.read(f"{run.JUDGES}/{judge.partition('.')[0]}", key)
    return table.filter(pc.equal(table["judge"], judge))


def database(**tables: pa.Table) -> duckdb.DuckDBPyConnection:
    """Open a database in memory that reads Arrow tables by name; one thread, so that sums have
    one order.
    """
    db = duckdb.connect(config={"threads": 1})
    for name, table in tables.items():
        db.register(name, table)
    return db


def percentiles(run: Run, recipe: Recipe) -> dict[str, float]:
    """Return for each judge with a percentile margin what score that is: of its finite scores of
    all positives, linear between ranks.

    Raises:
        UserError: a judge has no such score.
    """
    return {
        bound.judge: _percentile(run, bound)
        for bound in recipe.bounds
        if bound.rule == "percentile_margin"
    }


def _percentile(run: Run, bound: Bound) -> float:
    scores: list[float] = []
    for key in run.query_shards():
        with database(
            positives=run.read(run.POSITIVES, key), judged=judged(run, bound.judge, key)
        ) as db:
            found = db.execute(
                "SELECT score FROM judged SEMI JOIN positives USING (query_id, doc_id) WHERE"
                " isfinite(score)"
            )
            scores += [score for (score,) in found.fetchall()]
    if not scores:
        raise UserError(
            f"judge {bound.judge} has no score of any positive; a percentile margin needs them:"
            " take another judge, or other rules"
        )
    return float(np.percentile(scores, bound.value))


class Rule(NamedTuple):
    """A rule as SQL over one candidate: `fails` is true of what is left out, for `reason`; value
    and threshold are what it compared.
    """

    reason: str
    fails: str
    value: str = "NULL"
    threshold: str = "NULL"


def rules(recipe: Recipe, percentile: dict[str, float]) -> list[Rule]:
    """Return the rules that a candidate meets one by one, in order.

    Judge number i's score of the candidate is s_i, the lowest of the query's positives p_i, its
    verdict v_i.

    Args:
        recipe: options and what protects positives.
        percentile: judge -> the score that stands for its `percentile_margin`.
    """
    options = recipe.options
    ranks = {"min_rank": ("<", options.min_rank), "max_rank": (">", options.max_rank)}
    near = " ".join(
        f"WHEN '{reason}' THEN {_number(value)}"
        for reason, value in (recipe.protects or {"": 0.0}).items()
    )
    verdicts = [
        Rule(
            f"coalesce(r_{place}, 'drop') || ':{judge}'",
            f"v_{place} IN ('drop', 'promote')",
            f"s_{place}",
        )
        for place, judge in enumerate(recipe.judges)
    ]
    return [
        Rule("'positive'", "is_positive"),
        Rule("copy", "copy IS NOT NULL", "copy_score", f"CASE copy {near} END"),
        *(
            [
                Rule(
                    "'near_positive'",
                    f"nearest >= {_number(options.near_positive)}",
                    "nearest",
                    _number(options.near_positive),
                )
            ]
            * recipe.near
        ),
        *_promotion(recipe),
        *verdicts,
        *([Rule("'other_positive'", "is_other_positive")] * options.drop_other_positives),
        *(
            Rule(f"'{name}'", f"rank {sign} {_number(value)}", "rank", _number(value))
            for name, (sign, value) in ranks.items()
            if value is not None
        ),
        *_scored(recipe, percentile),
    ]


def _promotion(recipe: Recipe) -> list[Rule]:
    said = []
    for judge, value in recipe.promote.items():
        place = recipe.judges.index(judge)
        said.append(f"v_{place} = 'promote'" if value is None else f"s_{place} >= {_number(value)}")
    if not said:
        return []
    first, least = next(iter(recipe.promote.items()))
    return [
        Rule(
            f"'promote:{first}'",
            f"({' AND '.join(said)})",
            f"s_{recipe.judges.index(first)}",
            _number(least),
        )
    ]


def _scored(recipe: Recipe, percentile: dict[str, float]) -> list[Rule]:
    """Return the rules on scores. With `any` of several judges, a rule of one counts only where
    all the others leave the candidate out.
    """
    by_judge = {place: _of_judge(recipe, place, percentile) for place in range(len(recipe.judges))}
    asked = {place: found for place, found in by_judge.items() if found}
    if recipe.options.agree == "any" and len(asked) > 1:
        failed = {
            place: f"({' OR '.join(f'coalesce({rule.fails}, false)' for rule in found)})"
            for place, found in asked.items()
        }
        others = {
            place: " AND ".join(fails for other, fails in failed.items() if other != place)
            for place in failed
        }
        asked = {
            place: [rule._replace(fails=f"({rule.fails}) AND {others[place]}") for rule in found]
            for place, found in asked.items()
        }
    return [rule for found in asked.values() for rule in found] + _sampled(recipe)


def _of_judge(recipe: Recipe, place: int, percentile: dict[str, float]) -> list[Rule]:
    judge, score, lowest = recipe.judges[place], f"s_{place}", f"p_{place}"
    bounds = {bound.rule: bound.value for bound in recipe.bounds if bound.judge == judge}
    by = f":{judge}" if place else ""
    texts = {
        "absolute_margin": (">=", f"{lowest} - {_number(bounds.get('absolute_margin', 0.0))}"),
        "percent_margin": (
            ">=",
            f"{lowest} - {_number(1 - bounds.get('percent_margin', 1.0))} * abs({lowest})",
        ),
        "percentile_margin": (">=", _number(percentile.get(judge))),
        "min_score": ("<", _number(bounds.get("min_score"))),
        "max_score": (">", _number(bounds.get("max_score"))),
    }
    unknown = f" OR {lowest} IS NULL" if any(rule in MARGINS for rule in bounds) else ""
    first = [Rule(f"'no_score{by}'", f"({score} IS NULL{unknown})", score)] if bounds else []
    return first + [
        Rule(f"'{rule}{by}'", f"{score} {sign} {bound}", score, bound)
        for rule, (sign, bound) in texts.items()
        if rule in bounds
    ]


def _sampled(recipe: Recipe) -> list[Rule]:
    """Return the rule that keeps from a sampler what it cannot weigh."""
    needs = SAMPLERS[recipe.options.sampler].needs
    missing = ["s_0 IS NULL"] * bool(needs) + ["p_0 IS NULL"] * ("positives" in needs)
    return [Rule("'no_score'", f"({' OR '.join(missing)})", "s_0")] if missing else []


def _number(value: float | None) -> str:
    return "NULL" if value is None else f"'{float(value)!r}'::DOUBLE"
