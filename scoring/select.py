"""candidates + judgments -> sets: the only place that keeps, drops or promotes, by a recipe, and
each with its reason.

A candidate meets the rules in this order, and the first that it fails is its reason:

    positive            it is a positive of the query, by id
    same_text, near_duplicate, contains_positive, equals_query, linked, co_cited, same_label   as
    judge duplicates says, if it was asked
    near_positive       its vector is a near-copy of a positive's, if judge similarity was asked
    promote:JUDGE       judges call it relevant: it is written apart, in `_promoted`
    drop:JUDGE          a judge of the recipe says so itself
    other_positive      it is a positive of another query, and the recipe wants none
    min_rank, max_rank  its rank in the source's own answer, before anything is left out
    no_score            a rule below needs a score, of it or of the query's positives, that is
                        null or not finite
    absolute_margin, percent_margin, percentile_margin, min_score, max_score   its score s_n against
    s_p, the query's lowest positive
    SAMPLER             the sampler of the recipe leaves it out (quantile, eci)
    quota               more than K of the source remain: the sampler's order decides which K
    negatives           the mixture has more than N

Rules of another judge than `--judge` have ":JUDGE" after their name. The sampler `top` takes each
source's candidates in order of rank, and sources by turns: everyone's first, in the order of the
recipe, then everyone's second. Any other sampler puts the survivors of all sources in one order,
each document once; a source's K are its first K in that order. Either way a document of two sources
is one negative, and the slot that it had in the other source is not filled again.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from miner.engine import How
from miner.store import Manifest, Run, Shard, Stage, run_stage
from miner.tables import JUDGMENTS, PROMOTED, REJECTED, SETS, conform
from scoring.options import Select
from scoring.pool import count_cells, positions, survivors
from scoring.recipe import (
    DUPLICATES,
    NEAREST,
    Recipe,
    database,
    judged,
    percentiles,
    read_recipe,
    rules,
)
from scoring.samplers import SAMPLERS, Cells


class Prepared(NamedTuple):
    """What a recipe needs of all shards before any is selected.

    Attributes:
        percentile: judge -> the score that stands for its percentile margin.
        all_positives: doc_ids of all positives of the run; None where no rule asks.
        cells: of the sampler `propensity`.
    """

    percentile: dict[str, float]
    all_positives: pa.Table | None
    cells: Cells | None = None


def select(run: Run, options: Select, how: How) -> Manifest:
    """Make a set: candidates, judgments -> 5_sets/<name>, with what was left out in `_rejected`,
    what was promoted in `_promoted`.

    A set of the same recipe whose sources or judges have changed is made again.

    Raises:
        UserError: a source, a judge or a judgment that the recipe needs is not there, or the set
            was made by another recipe.
    """
    recipe = read_recipe(run, options)
    stage = Stage(f"{run.SETS}/{options.name}", "sets", options.record(), recipe.inputs, cheap=True)
    facts: dict[str, Any] = {
        "protected_by": recipe.protected_by,
        "mixture": "by turns, one negative of each source",
    }
    if options.sampler != "top":
        facts["mixture"] = f"one order of all sources, by sampler {options.sampler}"

    def task() -> Callable[[str], Shard]:
        prepared = prepare(run, recipe)
        facts.update(_facts(recipe, prepared))
        return partial(_select_shard, run, recipe, prepared)

    def then() -> dict[str, Any]:
        return facts | {"other_positives": _count_other_positives(run, stage.folder)}

    return run_stage(run, stage, task, run.query_shards(), how, then)


def preview(run: Run, options: Select) -> dict[str, Any]:
    """Return what `select` would do, and write nothing.

    Returns:
        {set_name, rows: {"sets": …, "rejected": …}, queries: with at least one negative, drops:
        {reason: rows}, protected_by,
        funnel: {source: {"candidates": rows, reason: rows that fell there…, "kept": rows}}};
            reasons in the order in which they are met.

    Raises:
        UserError: as in `select`.
    """
    recipe = read_recipe(run, options)
    prepared, queries = prepare(run, recipe), 0
    rows, drops = Counter({"sets": 0, "rejected": 0}), Counter[str]()
    fates = Counter[tuple[str, int, str]]()
    for key in run.query_shards():
        chosen = choose(run, recipe, prepared, key)
        queries += len(pc.unique(chosen.kept["query_id"]))
        rows.update(sets=len(chosen.kept), rejected=len(chosen.rejected))
        if recipe.promote:
            rows.update(promoted=len(chosen.promoted))
        drops.update(chosen.drops)
        fates.update(chosen.fates)
    return {
        "set_name": options.name,
        "rows": dict(rows),
        "queries": queries,
        "drops": dict(sorted(drops.items())),
        "protected_by": recipe.protected_by,
        "funnel": {quota.source: _funnel(fates, quota.source) for quota in recipe.quotas},
    }


def _funnel(fates: Counter[tuple[str, int, str]], source: str) -> dict[str, int]:
    """Count by fate, which may be met at two steps; the fates are those of any source, so that
    sources can be set side by side.
    """
    found = dict.fromkeys(
        [fate for _, _, fate in sorted(fates, key=lambda fate: fate[1:]) if fate != "kept"]
        + ["kept"],
        0,
    )
    for (name, _, fate), count in fates.items():
        found[fate] += count if name == source else 0
    return {"candidates": sum(found.values()), **found}


def prepare(run: Run, recipe: Recipe) -> Prepared:
    """Compute what needs all shards."""
    everyones = _all_positives(run) if recipe.options.drop_other_positives else None
    prepared = Prepared(percentiles(run, recipe), everyones)
    if "weight" not in SAMPLERS[recipe.options.sampler].needs:
        return prepared

    def survivors_of(key: str) -> pa.Table:
        with graded(run, recipe, prepared, key) as db:
            return survivors(db, recipe, len(rules(recipe, prepared.percentile)) + 1)

    return prepared._replace(cells=count_cells(run, recipe, survivors_of))


def _facts(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    facts: dict[str, Any] = (
        {"percentile_margins": prepared.percentile} if prepared.percentile else {}
    )
    if prepared.cells is not None:
        counts, cap = prepared.cells.counts, recipe.options.weight_cap
        facts |= {
            "survivors": int(counts.sum()),
            "effective_sample_size": round(prepared.cells.effective_sample_size(cap), 1),
        }
    return facts


def _all_positives(run: Run) -> pa.Table:
    return pa.table(
        {
            "doc_id": pc.unique(
                pa.concat_tables(_positives(run, key) for key in run.query_shards())["doc_id"]
            )
        }
    )


def _positives(run: Run, key: str) -> pa.Table:
    return run.read(run.POSITIVES, key).select(["query_id", "doc_id"])


def _count_other_positives(run: Run, folder: str) -> int:
    """Count the negatives of a set that are positives of another query: by id none is one of its
    own.
    """
    positives = (
        _all_positives(run)["doc_id"].combine_chunks()
        if run.query_shards()
        else pa.array([], pa.string())
    )
    return sum(
        pc.sum(pc.is_in(run.read(folder, key)["doc_id"], positives)).as_py() or 0
        for key in run.query_shards()
    )


FACTS = """
CREATE TEMP TABLE graded AS
WITH facts AS (
    SELECT candidates.*, {columns}, positives.doc_id IS NOT NULL AS is_positive, copies.reason AS
        copy, copies.score AS copy_score,
        near.score::DOUBLE AS nearest, everyones.doc_id IS NOT NULL AS is_other_positive
    FROM candidates
    {joins}
    LEFT JOIN positives USING (query_id, doc_id)
    LEFT JOIN copies USING (query_id, doc_id)
    LEFT JOIN near USING (query_id, doc_id)
    LEFT JOIN everyones USING (doc_id)
)
SELECT *, CASE {steps} ELSE {passed} END AS step FROM facts
"""
# Of judge number {i}: the score, verdict and reason of a candidate, and the lowest score of the
# query's positives, null if one has none.
SCORES = """
LEFT JOIN (
    SELECT query_id, doc_id, CASE WHEN isfinite(score)
        THEN score::DOUBLE END AS s_{i}, verdict AS v_{i}, reason AS r_{i} FROM judged_{i}
) AS scores_{i} USING (query_id, doc_id)
LEFT JOIN (
    SELECT query_id, CASE WHEN count(*) = count(s) THEN min(s) END AS p_{i}
    FROM positives LEFT JOIN (
        SELECT query_id, doc_id, CASE WHEN isfinite(score) THEN score::DOUBLE END AS s
            FROM judged_{i}
    ) USING (query_id, doc_id) GROUP BY query_id
) AS lowest_{i} USING (query_id)
"""
PICK = """
CREATE TEMP TABLE picked AS
WITH placed AS (
    SELECT *, CASE WHEN step = {passed} THEN row_number() OVER (PARTITION BY query_id, place, step
        ORDER BY {order}, doc_id) END AS slot
    FROM graded
)
SELECT *, coalesce(slot <= most, step = {passed}) AS picked FROM placed
"""
# By turns, a pair's turn is its slot in a source's own selection, then the source's place in the
# recipe.
MIX = """
CREATE TEMP TABLE mixed AS
SELECT query_id, doc_id, row_number() OVER (PARTITION BY query_id ORDER BY min({mix})) AS turn
FROM picked WHERE picked GROUP BY query_id, doc_id
"""
KEEP = """
SELECT query_id, doc_id, '{name}' AS set_name, list({{'source': source, 'rank': rank, 'score':
    score}} ORDER BY place) AS sources,
    turn AS rank, any_value(s_0) AS score, any_value(p_0) AS positive_score, 1.0 AS weight
FROM picked JOIN mixed USING (query_id, doc_id)
WHERE turn <= {negatives} GROUP BY query_id, doc_id, turn ORDER BY query_id, turn
"""
REJECT = """
SELECT query_id, doc_id, '{name}' AS set_name, {fate} AS reason,
    CASE WHEN picked THEN turn WHEN step = {passed} THEN slot
        ELSE CASE step {values} END END::DOUBLE AS value,
    CASE WHEN picked THEN {negatives} WHEN step = {passed} THEN most
        ELSE CASE step {thresholds} END END::DOUBLE AS threshold
FROM picked LEFT JOIN mixed USING (query_id, doc_id)
WHERE coalesce(turn > {negatives}, true)
QUALIFY row_number() OVER (PARTITION BY query_id, doc_id ORDER BY picked DESC, step DESC, place) = 1
ORDER BY query_id, doc_id
"""
FATE = (
    "CASE WHEN picked THEN 'negatives' WHEN step = {passed} THEN 'quota' ELSE CASE step {reasons}"
    " END END"
)
FATES = """
SELECT source, CASE WHEN turn <= {negatives} THEN {passed} + 2 + picked::INT
    ELSE step + picked::INT END AS step,
    CASE WHEN turn <= {negatives} AND picked THEN 'kept' WHEN turn <= {negatives}
        THEN 'kept from another source' ELSE {fate} END AS fate,
    count(*) AS rows
FROM picked LEFT JOIN mixed USING (query_id, doc_id) GROUP BY ALL
"""


class Chosen(NamedTuple):
    """What a recipe makes of one shard.

    Attributes:
        kept: rows of `sets`.
        rejected: rows of `rejected`.
        promoted: rows of `promoted`.
        drops: reason -> rows of both.
        fates: (source, step, what became of a candidate there) -> rows.
    """

    kept: pa.Table
    rejected: pa.Table
    promoted: pa.Table
    drops: dict[str, int]
    fates: dict[tuple[str, int, str], int]


def _select_shard(run: Run, recipe: Recipe, prepared: Prepared, key: str) -> Shard:
    chosen = choose(run, recipe, prepared, key)
    promoted = {f"_promoted/{key}": chosen.promoted} if recipe.promote else {}
    return Shard({**promoted, f"_rejected/{key}": chosen.rejected, key: chosen.kept}, chosen.drops)


def choose(run: Run, recipe: Recipe, prepared: Prepared, key: str) -> Chosen:
    """Carry a recipe out on one shard."""
    options, asked = recipe.options, rules(recipe, prepared.percentile)
    # the step of what the sampler leaves out; the next one is that of what passes
    left_out = len(asked)
    named = [*(rule.reason for rule in asked), f"'{options.sampler}'"]
    parts = {
        "name": options.name,
        "passed": left_out + 1,
        "negatives": options.negatives or 2**31,
        "order": "rank" if options.sampler == "top" else "position",
        "mix": f"slot * {len(recipe.quotas)} + place" if options.sampler == "top" else "position",
        "values": (
            " ".join(f"WHEN {step} THEN {rule.value}" for step, rule in enumerate(asked))
            + f" WHEN {left_out} THEN NULL"
        ),
        "thresholds": (
            " ".join(f"WHEN {step} THEN {rule.threshold}" for step, rule in enumerate(asked))
            + f" WHEN {left_out} THEN NULL"
        ),
        "reasons": " ".join(f"WHEN {step} THEN {reason}" for step, reason in enumerate(named)),
    }
    parts["fate"] = FATE.format(**parts)
    with graded(run, recipe, prepared, key) as db:
        if options.sampler != "top":
            db.register(
                "positions",
                positions(run, recipe, prepared.cells, key, survivors(db, recipe, left_out + 1)),
            )
            db.execute("ALTER TABLE graded ADD COLUMN position BIGINT")
            db.execute(
                "UPDATE graded SET position = positions.position, step = CASE positions.position"
                f" WHEN 0 THEN {left_out} ELSE step END FROM positions WHERE graded.query_id ="
                " positions.query_id AND graded.doc_id = positions.doc_id"
            )
        db.execute(PICK.format(**parts))
        db.execute(MIX.format(**parts))
        kept = conform(db.sql(KEEP.format(**parts)).to_arrow_table(), SETS)
        rejected = conform(db.sql(REJECT.format(**parts)).to_arrow_table(), REJECTED)
        fates = {
            (source, step, fate): count
            for source, step, fate, count in db.execute(FATES.format(**parts)).fetchall()
        }
    drops = {
        row["values"]: row["counts"] for row in pc.value_counts(rejected["reason"]).to_pylist()
    }
    up = pc.starts_with(rejected["reason"], "promote:")
    return Chosen(
        kept, rejected.filter(pc.invert(up)), conform(rejected.filter(up), PROMOTED), drops, fates
    )


def graded(run: Run, recipe: Recipe, prepared: Prepared, key: str) -> duckdb.DuckDBPyConnection:
    """Return a database with the table `graded`: a row for each candidate of each source, with
    the step at which it fails.
    """
    asked = rules(recipe, prepared.percentile)
    judges = range(len(recipe.judges))
    columns = (
        ", ".join(f"s_{i}, v_{i}, r_{i}, p_{i}" for i in judges)
        if judges
        else "NULL::DOUBLE AS s_0, NULL::DOUBLE AS p_0"
    )
    db = database(**_shard_tables(run, recipe, prepared, key))
    db.execute(
        FACTS.format(
            columns=columns,
            joins="".join(SCORES.format(i=i) for i in judges),
            steps=" ".join(f"WHEN {rule.fails} THEN {step}" for step, rule in enumerate(asked)),
            passed=len(asked) + 1,
        )
    )
    return db


def _shard_tables(run: Run, recipe: Recipe, prepared: Prepared, key: str) -> dict[str, pa.Table]:
    parts = []
    for place, (source, most) in enumerate(recipe.quotas):
        found = run.read(f"{run.SOURCES}/{source}", key).select(
            ["query_id", "doc_id", "rank", "score"]
        )
        columns = {
            "source": pa.scalar(source),
            "place": pa.scalar(place),
            "most": pa.scalar(most, pa.int32()),
        }
        for name, value in columns.items():
            found = found.append_column(name, pa.repeat(value, len(found)))
        parts.append(found)
    none = JUDGMENTS.schema.empty_table()
    copies = none if recipe.protects is None else run.read(DUPLICATES, key)
    everyones = (
        none.select(["doc_id"]) if prepared.all_positives is None else prepared.all_positives
    )
    return {
        "candidates": pa.concat_tables(parts),
        "positives": _positives(run, key),
        "copies": copies.filter(pc.equal(copies["verdict"], "drop")),
        "near": judged(run, NEAREST, key) if recipe.near else none,
        "everyones": everyones,
        **{f"judged_{place}": judged(run, judge, key) for place, judge in enumerate(recipe.judges)},
    }
