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
from miner.tables import PROMOTED, REJECTED, SETS, conform
from scoring.cells import Cells
from scoring.options import Select
from scoring.pool import Survivors, count_cells, positions
from scoring.recipe import Recipe, percentiles, read_recipe
from scoring.rules import Candidates, Numbers, Rule, rules
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
            passed = _first_failed(rules(found, prepared.percentile, prepared.others), found)[1]
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
    asked = rules(found, prepared.percentile, prepared.others)
    step, passed = _first_failed(asked, found)
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


class Fate(NamedTuple):
    """What becomes of the n candidates of a shard.

    Attributes:
        found: the candidates.
        asked: the rules that they met.
        step: the rule that each fails first (n,); after the rules, the sampler, then none.
        slot: of those that pass, the place in their source's own selection (n,), else 0.
        picked: which are within the K of their source (n,).
        turn: the place of the pair in the mixture (n,); 0 if no source picked it.
    """

    found: Candidates
    asked: list[Rule]
    step: np.ndarray
    slot: np.ndarray
    picked: np.ndarray
    turn: np.ndarray

    @classmethod
    def of(
        cls, found: Candidates, asked: list[Rule], step: np.ndarray, order: np.ndarray
    ) -> "Fate":
        """Let quotas and mixture decide about what passed the rules.

        Args:
            found, asked, step: as above.
            order: of a source's candidates for its slots (n,), ties by doc_id; ranks for the
                sampler `top`, else positions that all sources share.
        """
        passed = np.flatnonzero(step > len(asked))
        source, code = found.source[passed], found.codes[passed]
        sort = np.lexsort((code, order[passed], source, found.query[passed]))
        slot = np.zeros(len(step), np.int64)
        slot[passed[sort]] = _count_up(found.query[passed][sort], source[sort])
        most = np.array([quota.most or np.iinfo(np.int64).max for quota in found.recipe.quotas])
        picked = (slot > 0) & (slot <= most[found.source])
        mix = slot * len(most) + found.source
        if found.recipe.options.sampler != "top":
            mix = order
        distinct, place = np.unique(found.codes[picked], return_inverse=True)
        first = np.full(len(distinct), np.iinfo(np.int64).max)
        np.minimum.at(first, place, mix[picked])
        query = distinct // max(len(found.shard.documents), 1)
        sort = np.lexsort((first, query))
        turn = np.empty(len(distinct), np.int64)
        turn[sort] = _count_up(query[sort])
        at = np.searchsorted(distinct, found.codes)
        there = np.append(distinct, -1)[at] == found.codes
        return cls(found, asked, step, slot, picked, np.where(there, np.append(turn, 0)[at], 0))

    @property
    def negatives(self) -> int:
        """Return how many negatives a query may have."""
        return self.found.recipe.options.negatives or 2**31

    @property
    def kept(self) -> np.ndarray:
        """Return which candidates' pairs are negatives (n,)."""
        return (self.turn > 0) & (self.turn <= self.negatives)

    def tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Return the rows of `sets`, `rejected` and `promoted`."""
        rejected = self._rejected()
        up = pc.starts_with(rejected["reason"], "promote:")
        return self._kept(), rejected.filter(pc.invert(up)), conform(rejected.filter(up), PROMOTED)

    def _kept(self) -> pa.Table:
        found, recipe = self.found, self.found.recipe
        rows = np.flatnonzero(self.kept)
        rows = rows[np.lexsort((found.source[rows], self.turn[rows], found.query[rows]))]
        starts = np.flatnonzero(np.diff(found.codes[rows], prepend=-1))
        first = rows[starts]  # of each pair, its first source
        names = pa.array([quota.source for quota in recipe.quotas], pa.string())
        columns = [
            names.take(pa.array(found.source[rows])),
            pa.array(found.rank[rows], pa.int32()),
            pa.array(found.found_score[rows], pa.float32(), from_pandas=True),
        ]
        where = pa.StructArray.from_arrays(columns, ["source", "rank", "score"])
        offsets = pa.array(np.append(starts, len(rows)).astype(np.int32))
        return conform(
            pa.table(
                {
                    **self._ids(first),
                    "sources": pa.ListArray.from_arrays(offsets, where),
                    "rank": pa.array(self.turn[first], pa.int32()),
                    "score": _nullable(found.scores(0)[first]),
                    "positive_score": _nullable(found.lowest(0)[first]),
                    "weight": pa.array(np.ones(len(first)), pa.float32()),
                }
            ),
            SETS,
        )

    def _rejected(self) -> pa.Table:
        """Return one row for each pair that is no negative: that of the source in which it came
        furthest.
        """
        rows = np.flatnonzero(~self.kept)
        codes, source = self.found.codes[rows], self.found.source[rows]
        rows = rows[np.lexsort((source, -self.step[rows], ~self.picked[rows], codes))]
        rows = rows[np.flatnonzero(np.diff(self.found.codes[rows], prepend=-1))]
        value, threshold = (self._compared(part, rows) for part in ("value", "threshold"))
        return conform(
            pa.table(
                {
                    **self._ids(rows),
                    "reason": pa.array(self.reasons(rows), pa.string()),
                    "value": _nullable(value),
                    "threshold": _nullable(threshold),
                }
            ),
            REJECTED,
        )

    def _ids(self, rows: np.ndarray) -> dict[str, Any]:
        shard = self.found.shard
        query_ids = pa.array(shard.query_ids, pa.string())
        return {
            "query_id": query_ids.take(pa.array(self.found.query[rows])),
            "doc_id": shard.documents.doc_ids(self.found.row[rows]),
            "set_name": pa.array(np.full(len(rows), self.found.recipe.options.name), pa.string()),
        }

    def reasons(self, rows: np.ndarray) -> np.ndarray:
        """Return why candidates that are no negatives are none."""
        sampler = self.found.recipe.options.sampler
        out = np.where(self.picked[rows], "negatives", "quota").astype(object)
        for place, reason in enumerate([*(rule.reason for rule in self.asked), sampler]):
            mine = self.step[rows] == place
            out[mine] = reason[rows[mine]] if isinstance(reason, np.ndarray) else reason
        return out

    def _compared(self, part: str, rows: np.ndarray) -> np.ndarray:
        """Return value or threshold of what decided; nan for none."""
        quotas = self.found.recipe.quotas
        most = np.array([quota.most or np.nan for quota in quotas], float)[self.found.source[rows]]
        if part == "value":
            out = np.where(self.picked[rows], self.turn[rows], self.slot[rows]).astype(float)
        else:
            out = np.where(self.picked[rows], self.negatives, most)
        out[self.step[rows] == len(self.asked)] = np.nan
        for place, rule in enumerate(self.asked):
            mine, given = self.step[rows] == place, getattr(rule, part)
            out[mine] = _of(given, rows[mine])
        return out

    def fates(self) -> Counter[tuple[int, int, str]]:
        """Count (source, step, what became of a candidate there)."""
        said = self.reasons(np.arange(len(self.step)))
        said[self.kept] = "kept from another source"
        said[self.kept & self.picked] = "kept"
        passed = len(self.asked) + 1
        step = np.where(self.kept, passed + 2, self.step) + self.picked
        return Counter(zip(self.found.source.tolist(), step.tolist(), said.tolist(), strict=True))


def _count_up(*groups: np.ndarray) -> np.ndarray:
    """Return 1, 2, 3… within each run of equal values of all groups (n,)."""
    new = np.any([np.diff(group, prepend=-1) != 0 for group in groups], axis=0)
    starts = np.flatnonzero(new)
    return np.arange(1, len(new) + 1) - np.repeat(starts, np.diff(np.append(starts, len(new))))


def _of(given: Numbers, rows: np.ndarray) -> Any:
    if given is None:
        return np.nan
    return given[rows] if isinstance(given, np.ndarray) else given


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))
