"""candidates + judgments -> sets: the only place that keeps, drops or promotes, by a recipe, and
each with its reason.

A candidate meets the rules of `scoring.rules` in order, and the first that it fails is its reason.
The sampler `top` takes each source's candidates in order of rank, and sources by turns: everyone's
first, in the order of the recipe, then everyone's second. Any other sampler puts the survivors of
all sources in one order, each document once; a source's K are its first K in that order. Either way
a document of two sources is one negative, and the slot that it had in the other source is not
filled again.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.engine import How
from miner.query_shard import QueryShard
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from scoring.cells import Cells
from scoring.fate import Fate
from scoring.judgments import Candidates
from scoring.pool import Survivors, count_cells, positions
from scoring.reasons import Rule
from scoring.recipe import Recipe, Select
from scoring.requirements import percentiles, read_recipe
from scoring.rules import repeats, rules
from scoring.samplers import SAMPLERS


class Prepared(NamedTuple):
    """What a recipe needs of all shards before any is selected.

    Attributes:
        percentile: judge -> the score that stands for its percentile margin.
        others: rows of all positives of the run; None where no rule asks.
        cells: of the sampler `propensity`.
    """

    percentile: dict[str, float]
    others: np.ndarray | None
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
    stage = Stage(
        f"{run.SETS}/{options.name}",
        "sets",
        options.record(),
        recipe.inputs,
        cheap=True,
        made_by="select",
    )
    prepared = cache(partial(prepare, run, recipe))

    def facts() -> dict[str, Any]:
        mixture = "by turns, one negative of each source"
        if options.sampler != "top":
            mixture = f"one order of all sources, by sampler {options.sampler}"
        told = {"protected_by": recipe.protected_by, "mixture": mixture}
        others = _count_other_positives(run, stage.folder)
        return told | _recipe_facts(recipe, prepared()) | {"other_positives": others}

    task = lambda: partial(_select_shard, run, recipe, prepared())  # noqa: E731
    return run_stage(run, stage, task, run.query_shards(), how, facts)


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
    fates = Counter[tuple[int, int, str]]()
    for key in run.query_shards():
        fate = choose(run, recipe, prepared, key)
        kept, rejected, promoted = fate.tables()
        queries += len(pc.unique(kept["query_id"]))
        rows.update(sets=len(kept), rejected=len(rejected))
        if recipe.promote:
            rows.update(promoted=len(promoted))
        drops.update(_drops(rejected, promoted))
        fates.update(fate.fates())
    names = [quota.source for quota in recipe.quotas]
    return {
        "set_name": options.name,
        "rows": dict(rows),
        "queries": queries,
        "drops": dict(sorted(drops.items())),
        "protected_by": recipe.protected_by,
        "funnel": {name: _funnel(fates, place) for place, name in enumerate(names)},
    }


def kept_rows(run: Run, options: Select) -> Iterator[tuple[str, pa.Table]]:
    """Yield for each query shard the negatives that a recipe would choose, and write nothing.

    Raises:
        UserError: as in `select`.
    """
    recipe = read_recipe(run, options)
    prepared = prepare(run, recipe)
    for key in run.query_shards():
        yield key, choose(run, recipe, prepared, key).negative_rows()


def _funnel(fates: Counter[tuple[int, int, str]], source: int) -> dict[str, int]:
    """Count by fate, which may be met at two steps; the fates are those of any source, so that
    sources can be set side by side.
    """
    ordered = [fate for _, _, fate in sorted(fates, key=lambda fate: fate[1:]) if fate != "kept"]
    found = dict.fromkeys([*ordered, "kept"], 0)
    for (place, _, fate), count in fates.items():
        found[fate] += count if place == source else 0
    return {"candidates": sum(found.values()), **found}


def prepare(run: Run, recipe: Recipe) -> Prepared:
    """Compute what needs all shards."""
    others = None
    if recipe.options.drop_other_positives:
        shards = (QueryShard(run, key, made=False) for key in run.query_shards())
        others = np.unique(np.concatenate([shard.positives[1] for shard in shards]))
    prepared = Prepared(percentiles(run, recipe), others)
    if "weight" not in SAMPLERS[recipe.options.sampler].needs:
        return prepared

    def survivors() -> Iterator[Survivors]:
        for key in run.query_shards():
            found = Candidates.read(QueryShard(run, key), recipe)
            passed = _ruled(found, prepared)[2]
            yield Survivors.of(found, passed)

    return prepared._replace(cells=count_cells(recipe, survivors))


def _recipe_facts(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    facts: dict[str, Any] = (
        {"percentile_margins": prepared.percentile} if prepared.percentile else {}
    )
    if prepared.cells is not None:
        counts, cap = prepared.cells.counts, recipe.options.weight_cap
        size = prepared.cells.effective_sample_size(cap)
        facts |= {"survivors": int(counts.sum()), "effective_sample_size": round(size, 1)}
    return facts


def _count_other_positives(run: Run, folder: str) -> int:
    """Count the negatives of a set that are positives of another query: by id none is one of its
    own.
    """
    keys = run.query_shards()
    tables = [run.read(run.POSITIVES, key).select(["doc_id"]) for key in keys]
    positives = pc.unique(pa.concat_tables(tables)["doc_id"].combine_chunks())
    found = (pc.is_in(run.read(folder, key)["doc_id"], positives) for key in keys)
    return sum(pc.sum(one).as_py() or 0 for one in found)


def _select_shard(run: Run, recipe: Recipe, prepared: Prepared, key: str) -> Shard:
    kept, rejected, promoted = choose(run, recipe, prepared, key).tables()
    beside = {f"_promoted/{key}": promoted} if recipe.promote else {}
    files = {**beside, f"_rejected/{key}": rejected, key: kept}
    return Shard(files, _drops(rejected, promoted))


def _drops(*tables: pa.Table) -> dict[str, int]:
    counted = [pc.value_counts(table["reason"]).to_pylist() for table in tables]
    return {row["values"]: row["counts"] for rows in counted for row in rows}


def _ruled(found: Candidates, prepared: Prepared) -> tuple[list[Rule], np.ndarray, np.ndarray]:
    """Return the rules, which of them each candidate fails first (n,), and which pass all."""
    asked = rules(found, prepared.percentile, prepared.others)
    asked += repeats(found, _first_failed(asked, found)[1])
    return asked, *_first_failed(asked, found)


def _first_failed(asked: list[Rule], found: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """Return which rule each candidate fails first (n,), len(asked) + 1 for none, and which pass
    all.
    """
    step = np.full(len(found.codes), len(asked) + 1)
    for place in reversed(range(len(asked))):
        step[asked[place].fails] = place
    return step, step > len(asked)


def choose(run: Run, recipe: Recipe, prepared: Prepared, key: str) -> "Fate":
    """Carry a recipe out on one shard."""
    found = Candidates.read(QueryShard(run, key), recipe)
    asked, step, passed = _ruled(found, prepared)
    order = found.rank
    if recipe.options.sampler != "top":
        survivors = Survivors.of(found, passed)
        position = positions(recipe, prepared.cells, survivors)
        order = np.zeros(len(step), np.int64)
        order[passed] = position[np.searchsorted(survivors.codes, found.codes[passed])]
        # the sampler leaves these out
        step[passed & (order == 0)] = len(asked)
        passed = step > len(asked)
    return Fate.of(found, asked, step, order)
