"""candidates + judgments -> sets: the only place that keeps or drops, by a recipe, and each drop with its reason.

A candidate meets the rules in this order, and the first that it fails is its reason:

    positive            it is a positive of the query, by id
    same_text, near_duplicate, equals_query   as the judge of duplicates says, if it was asked
    min_rank, max_rank  its rank in the source's own answer, before anything is left out
    no_score            a rule below needs a score, of it or of the query's positives, that is null or not finite
    absolute_margin, percent_margin, percentile_margin, min_score, max_score   its score s_n against s_p, the query's lowest positive
    quota               more than K of the source remain: the sampler's order decides which K
    negatives           the mixture has more than N

The sources of a mixture are merged by turns: everyone's first, in the order of the recipe, then everyone's second. A document of two
sources is one negative, at its earlier place; the slot it had in the other source is not filled again, so that what one source gives does
not depend on the others.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.engine import How
from miner.errors import UserError
from miner.store import Manifest, Run, Shard, Stage, run_stage
from miner.tables import REJECTED, SETS, conform
from scoring.options import Select

DUPLICATES = "4_judgments/duplicates"
MARGINS = ("absolute_margin", "percent_margin")  # what needs the query's own positives' scores
SCORED = (*MARGINS, "percentile_margin", "min_score", "max_score")  # what needs the candidate's score


class Quota(NamedTuple):
    """A source of a recipe and how many negatives a query may have from it; None is no limit."""

    source: str
    most: int | None


@dataclass(frozen=True)
class Recipe:
    """Options, read against what a run holds.

    Attributes:
        options: as given.
        quotas: the sources, in the order of the recipe.
        judgments: folder of the judge's scores, None if there is none and no rule needs one.
        near: threshold of near-copies of the judge of duplicates, None if it was not asked.
        inputs: every stage that the set is made from -> its fingerprint.
    """

    options: Select
    quotas: tuple[Quota, ...]
    judgments: str | None
    near: float | None
    inputs: Mapping[str, str]

    @property
    def protected_by(self) -> str:
        """Say how positives are kept from being negatives."""
        return "ids" if self.near is None else "ids, text, near-duplicates"


def select(run: Run, options: Select, how: How) -> Manifest:
    """Make a set: candidates, judgments -> 5_sets/<name>, with all that was left out in `_rejected`.

    Raises:
        UserError: a source, a judge or a judgment that the recipe needs is not there, or the set was made by another recipe.
    """
    recipe = read_recipe(run, options)
    stage = Stage(f"5_sets/{options.name}", "sets", options.record(), recipe.inputs)
    facts = {"protected_by": recipe.protected_by, "mixture": "by turns, one negative of each source"}
    return run_stage(run, stage, lambda: prepare(run, recipe), run.query_shards(), how, lambda: facts)


def preview(run: Run, options: Select) -> dict[str, Any]:
    """Return what `select` would do, and write nothing.

    Returns:
        {set_name, rows: {"sets": …, "rejected": …}, queries: with at least one negative, drops: {reason: rows}, protected_by}.

    Raises:
        UserError: as in `select`.
    """
    recipe = read_recipe(run, options)
    task, queries = prepare(run, recipe), 0
    rows, drops = Counter({"sets": 0, "rejected": 0}), Counter[str]()
    for key in run.query_shards():
        shard = task(key)
        kept: Any = shard.files[key]
        queries += len(pc.unique(kept["query_id"]))
        rows.update(sets=len(kept), rejected=sum(shard.drops.values()))
        drops.update(shard.drops)
    return {
        "set_name": options.name,
        "rows": dict(rows),
        "queries": queries,
        "drops": dict(sorted(drops.items())),
        "protected_by": recipe.protected_by,
    }


def parse_source(text: str) -> Quota:
    """Return "bm25:50" as ("bm25", 50), "bm25" as ("bm25", None).

    Raises:
        UserError: there is no name before the colon, or no whole number from 1 after it.
    """
    name, colon, most = text.partition(":")
    if not name or (colon and not (most.isascii() and most.isdigit() and int(most) > 0)):
        raise UserError(f"--from {text!r}: expected SOURCE, or SOURCE:K with K a whole number from 1, such as bm25:50")
    return Quota(name, int(most) if colon else None)


def read_recipe(run: Run, options: Select) -> Recipe:
    """Hold a recipe against what the run has.

    Raises:
        UserError: something that it needs is not there.
    """
    tables, quotas = run.tables(), tuple(parse_source(source) for source in options.sources)
    names = [quota.source for quota in quotas]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--from names {', '.join(twice)} more than once; name each source once, with one K")
    folders = _need_sources(run, names)
    needed = [rule for rule in SCORED if getattr(options, rule) is not None]
    judgments = _find_judge(run, options.judge, bool(needed))
    copies = run.need_current(DUPLICATES, "judge duplicates") if run.find(DUPLICATES) else None
    if needed and judgments:
        require_judged(run, options.judge, folders + ["1_tables"] * any(rule in MARGINS for rule in needed))
    if copies:
        require_judged(run, "duplicates", folders)
    made_from = [*folders, *([judgments] if judgments else []), *([DUPLICATES] if copies else [])]
    inputs = {"1_tables": tables.fingerprint} | {folder: run.need(folder, "run").fingerprint for folder in made_from}
    return Recipe(options, quotas, judgments, copies.options["near"] if copies else None, inputs)


def _need_sources(run: Run, names: Sequence[str]) -> list[str]:
    found = run.names("3_candidates")
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UserError(
            f"no finished source {', '.join(unknown)} in {run.path / '3_candidates'} (found {', '.join(found) or 'none'}); "
            f"take one of these, or run `quarry mine {unknown[0]}` first"
        )
    return [run.need_current(f"3_candidates/{name}", f"mine {name}").stage for name in names]


def _find_judge(run: Run, judge: str, needed: bool) -> str | None:
    """Return the folder with a judge's rows ("similarity.positive" lies with "similarity"), None if there is none and none is needed."""
    name = judge.partition(".")[0]
    folder = f"4_judgments/{name}"
    if run.find(folder) is None and not needed and judge == Select.model_fields["judge"].default:
        return None
    run.need_current(folder, f"judge {name}")
    keys = run.query_shards()
    found = sorted(pc.unique(run.read(folder, keys[0])["judge"]).to_pylist()) if keys else []
    if found and judge not in found:
        raise UserError(f"{run.path / folder} has no scores of judge {judge!r} (found {', '.join(found)}); pass one of these to --judge")
    return folder


def require_judged(run: Run, judge: str, folders: Sequence[str]) -> None:
    """Make sure that a judge has a row for every pair of some stages: "3_candidates/<source>", or "1_tables" for the positives.

    Pairs are compared only if the judge worked from another state of a stage than the present one.

    Raises:
        UserError: pairs lack a judgment; says how many.
    """
    name = judge.partition(".")[0]
    seen = run.need(f"4_judgments/{name}", f"judge {name}").inputs
    changed = [folder for folder in folders if seen.get(folder) != run.need(folder, "run").fingerprint]
    missing = sum(_count_unjudged(run, judge, changed, key) for key in run.query_shards()) if changed else 0
    if missing:
        raise UserError(
            f"{missing:,} pairs of {', '.join(changed)} have no row by judge {judge}, which saw other inputs; "
            f"run `quarry judge {name} --force` to make it again"
        )


def _count_unjudged(run: Run, judge: str, folders: Sequence[str], key: str) -> int:
    positives = run.read("1_tables/positives", key)
    parts = [positives if folder == "1_tables" else run.read(folder, key) for folder in folders]
    pairs = pa.concat_tables(part.select(["query_id", "doc_id"]) for part in parts)
    passed_over = "" if "1_tables" in folders else "ANTI JOIN positives USING (query_id, doc_id)"  # their id is enough to drop them
    with database(pairs=pairs, positives=positives, judged=judged(run, judge, key)) as db:
        rows = db.execute(f"SELECT DISTINCT query_id, doc_id FROM pairs {passed_over} ANTI JOIN judged USING (query_id, doc_id)")
        return len(rows.fetchall())


def judged(run: Run, judge: str, key: str) -> pa.Table:
    """Return one judge's rows of a query shard."""
    table = run.read(f"4_judgments/{judge.partition('.')[0]}", key)
    return table.filter(pc.equal(table["judge"], judge))


def database(**tables: pa.Table) -> duckdb.DuckDBPyConnection:
    """Open a database in memory that reads Arrow tables by name; one thread, so that sums have one order."""
    db = duckdb.connect(config={"threads": 1})
    for name, table in tables.items():
        db.register(name, table)
    return db


def prepare(run: Run, recipe: Recipe) -> Callable[[str], Shard]:
    """Return the task that makes one shard of a set; what needs all shards, the percentile, is computed here."""
    percentile = recipe.options.percentile_margin
    threshold = None if percentile is None else positive_percentile(run, recipe.options.judge, percentile)
    return partial(_select_shard, run, recipe, threshold)


def positive_percentile(run: Run, judge: str, percentile: float) -> float:
    """Return a percentile (0 to 100, linear between ranks) of a judge's finite scores of all positives of the run.

    Raises:
        UserError: there is no such score.
    """
    scores: list[float] = []
    for key in run.query_shards():
        with database(positives=run.read("1_tables/positives", key), judged=judged(run, judge, key)) as db:
            found = db.execute("SELECT score FROM judged SEMI JOIN positives USING (query_id, doc_id) WHERE isfinite(score)")
            scores += [score for (score,) in found.fetchall()]
    if not scores:
        raise UserError(f"judge {judge} has no score of any positive; a percentile margin needs them: take another judge, or other rules")
    return float(np.percentile(scores, percentile))


class Rule(NamedTuple):
    """A rule as SQL over one candidate: `fails` is true of what is left out, for `reason`; value and threshold are what it compared."""

    reason: str
    fails: str
    value: str = "NULL"
    threshold: str = "NULL"


def rules(recipe: Recipe, percentile: float | None) -> list[Rule]:
    """Return the rules that a candidate meets one by one, in order.

    Args:
        recipe: options and what protects positives.
        percentile: score that stands for `percentile_margin`.
    """
    options = recipe.options
    needed = [rule for rule in SCORED if getattr(options, rule) is not None]
    lowest = "OR s_p IS NULL" if any(rule in MARGINS for rule in needed) else ""
    absolute, percent = options.absolute_margin or 0.0, options.percent_margin or 1.0
    bounds = {
        "min_rank": ("rank", "<", _number(options.min_rank)),
        "max_rank": ("rank", ">", _number(options.max_rank)),
        "absolute_margin": ("s_n", ">=", f"s_p - {_number(absolute)}"),
        "percent_margin": ("s_n", ">=", f"s_p - {_number(1 - percent)} * abs(s_p)"),
        "percentile_margin": ("s_n", ">=", _number(percentile)),
        "min_score": ("s_n", "<", _number(options.min_score)),
        "max_score": ("s_n", ">", _number(options.max_score)),
    }
    asked = {
        name: Rule(f"'{name}'", f"{value} {sign} {bound}", value, bound)
        for name, (value, sign, bound) in bounds.items()
        if getattr(options, name) is not None
    }
    near = f"CASE copy WHEN 'near_duplicate' THEN {_number(recipe.near)} END"
    return [
        Rule("'positive'", "is_positive"),
        Rule("copy", "copy IS NOT NULL", "copy_score", near),
        *(asked[name] for name in ("min_rank", "max_rank") if name in asked),
        *([Rule("'no_score'", f"(s_n IS NULL {lowest})", "s_n")] if needed else []),
        *(asked[name] for name in SCORED if name in asked),
    ]


def _number(value: float | None) -> str:
    return "NULL" if value is None else f"'{float(value)!r}'::DOUBLE"


GRADE = """
CREATE TEMP TABLE graded AS
WITH scores AS (SELECT query_id, doc_id, CASE WHEN isfinite(score) THEN score::DOUBLE END AS s FROM judged),
lowest AS (
    SELECT query_id, CASE WHEN count(*) = count(s) THEN min(s) END AS s_p
    FROM positives LEFT JOIN scores USING (query_id, doc_id) GROUP BY query_id
),
facts AS (
    SELECT candidates.*, s AS s_n, s_p, positives.doc_id IS NOT NULL AS is_positive, copies.reason AS copy, copies.score AS copy_score
    FROM candidates
    LEFT JOIN scores USING (query_id, doc_id)
    LEFT JOIN lowest USING (query_id)
    LEFT JOIN positives USING (query_id, doc_id)
    LEFT JOIN copies USING (query_id, doc_id)
),
ruled AS (SELECT *, CASE {steps} ELSE {passed} END AS step FROM facts),
placed AS (
    SELECT *, CASE WHEN step = {passed} THEN row_number() OVER (PARTITION BY query_id, place, step ORDER BY {order}, doc_id) END AS position
    FROM ruled
)
SELECT *, coalesce(position <= most, step = {passed}) AS picked FROM placed
"""
# A pair's turn is its position in a source's own selection, then the source's place in the recipe.
MIX = """
CREATE TEMP TABLE mixed AS
SELECT query_id, doc_id, row_number() OVER (PARTITION BY query_id ORDER BY min(position * {sources} + place)) AS turn
FROM graded WHERE picked GROUP BY query_id, doc_id
"""
KEEP = """
SELECT query_id, doc_id, '{name}' AS set_name, list({{'source': source, 'rank': rank, 'score': score}} ORDER BY place) AS sources,
    turn AS rank, any_value(s_n) AS score, any_value(s_p) AS positive_score, 1.0 AS weight
FROM graded JOIN mixed USING (query_id, doc_id)
WHERE turn <= {negatives} GROUP BY query_id, doc_id, turn ORDER BY query_id, turn
"""
REJECT = """
SELECT query_id, doc_id, '{name}' AS set_name,
    CASE WHEN picked THEN 'negatives' WHEN step = {passed} THEN 'quota' ELSE CASE step {reasons} END END AS reason,
    CASE WHEN picked THEN turn WHEN step = {passed} THEN position ELSE CASE step {values} END END::DOUBLE AS value,
    CASE WHEN picked THEN {negatives} WHEN step = {passed} THEN most ELSE CASE step {thresholds} END END::DOUBLE AS threshold
FROM graded LEFT JOIN mixed USING (query_id, doc_id)
WHERE coalesce(turn > {negatives}, true)
QUALIFY row_number() OVER (PARTITION BY query_id, doc_id ORDER BY picked DESC, step DESC, place) = 1
ORDER BY query_id, doc_id
"""


def _select_shard(run: Run, recipe: Recipe, percentile: float | None, key: str) -> Shard:
    options, asked = recipe.options, rules(recipe, percentile)
    chosen_at_random = f"md5('{options.seed}' || chr(31) || query_id || chr(31) || doc_id)"
    parts = {
        "name": options.name,
        "sources": len(recipe.quotas),
        "passed": len(asked),
        "negatives": options.negatives or 2**31,
        "order": "rank" if options.sampler == "top" else chosen_at_random,
        "steps": " ".join(f"WHEN {rule.fails} THEN {step}" for step, rule in enumerate(asked)),
        "reasons": " ".join(f"WHEN {step} THEN {rule.reason}" for step, rule in enumerate(asked)),
        "values": " ".join(f"WHEN {step} THEN {rule.value}" for step, rule in enumerate(asked)),
        "thresholds": " ".join(f"WHEN {step} THEN {rule.threshold}" for step, rule in enumerate(asked)),
    }
    with database(**_shard_tables(run, recipe, key)) as db:
        db.execute(GRADE.format(**parts))
        db.execute(MIX.format(**parts))
        kept = conform(db.sql(KEEP.format(**parts)).to_arrow_table(), SETS)
        rejected = conform(db.sql(REJECT.format(**parts)).to_arrow_table(), REJECTED)
    drops = {row["values"]: row["counts"] for row in pc.value_counts(rejected["reason"]).to_pylist()}
    return Shard({f"_rejected/{key}": rejected, key: kept}, drops)


def _shard_tables(run: Run, recipe: Recipe, key: str) -> dict[str, pa.Table]:
    parts = []
    for place, (source, most) in enumerate(recipe.quotas):
        found = run.read(f"3_candidates/{source}", key).select(["query_id", "doc_id", "rank", "score"])
        columns = {"source": pa.scalar(source), "place": pa.scalar(place), "most": pa.scalar(most, pa.int32())}
        for name, value in columns.items():
            found = found.append_column(name, pa.repeat(value, len(found)))
        parts.append(found)
    none = pa.table({"query_id": pa.array([], pa.string()), "doc_id": pa.array([], pa.string()), "score": [], "reason": []})
    copies = none if recipe.near is None else run.read(DUPLICATES, key)
    return {
        "candidates": pa.concat_tables(parts),
        "positives": run.read("1_tables/positives", key).select(["query_id", "doc_id"]),
        "judged": judged(run, recipe.options.judge, key) if recipe.judgments else none,
        "copies": copies if recipe.near is None else copies.filter(pc.equal(copies["verdict"], "drop")),
    }
