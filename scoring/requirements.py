"""What a run must hold before a recipe can be carried out: its sources, its judges, and a judgment
of every pair.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow.compute as pc

from miner.errors import UserError
from miner.query_shard import IDS, QueryShard
from miner.store import Run
from scoring.judgments import read_judgments
from scoring.recipe import (
    DUPLICATES,
    MARGINS,
    NEAREST,
    SIMILARITY,
    Bound,
    Recipe,
    Select,
    parse_bounds,
    parse_promote,
    parse_source,
)
from scoring.samplers import SAMPLERS


def read_recipe(run: Run, options: Select) -> Recipe:
    """Hold a recipe against what the run has.

    Raises:
        UserError: something that it needs is not there.
    """
    inputs, quotas = run.table_input(), tuple(parse_source(source) for source in options.sources)
    inputs |= run.need_sources([quota.source for quota in quotas])
    folders = list(inputs)[1:]
    bounds, promote = parse_bounds(options), parse_promote(options.promote)
    judges = _need_judges(run, options, bounds, promote, folders)
    copies = run.need_current(DUPLICATES, "judge duplicates") if run.find(DUPLICATES) else None
    if copies:
        require_judged(run, "duplicates", folders)
    near = options.near_positive <= 1 and run.find(SIMILARITY) is not None
    near = near and not unjudged(run, NEAREST, folders)[0]
    read = [run.judge_folder(judge) for judge in judges]
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
    return tuple(judge for judge in (main, *others) if run.find(run.judge_folder(judge)))


def _find_judge(run: Run, judge: str, needed: bool) -> bool:
    """Return whether a judge's rows are there; if not, and one is needed or asked for, raise."""
    name, folder = judge.partition(".")[0], run.judge_folder(judge)
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
    seen = run.need(run.judge_folder(judge), f"judge {judge.partition('.')[0]}").inputs
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
