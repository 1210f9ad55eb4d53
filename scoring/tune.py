"""candidates + judgments + vectors -> the recipe of the highest coverage that keeps to some
constraints: many recipes are tried, none is written.

A trial is one recipe, carried out on the first query shards; each is a shard of the stage, so a
killed search goes on where it was, and `--workers` share it. Coverage counts all queries: one that
a recipe leaves without a negative has no gradient.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner.engine import How
from miner.errors import UserError
from miner.options import NAME, option
from miner.query_shard import QueryShard
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run, shard_keys
from scoring.coverage import coverage
from scoring.metrics import Covering, jackknife_interval
from scoring.recipe import Select
from scoring.reference import make_reference
from scoring.set_coverage import BLOCKS, add_blocks, pulls_of, read_held, read_vectors

FOLDER = f"{Run.METRICS}/_tune"
SAMPLERS = ("top", "random", "simans", "quantile")
CONFIDENCE = 0.95
READ = ("name", "unsafe")  # options that decide what is said of the trials, not the trials


class Tune(Covering):
    """Search recipes for the highest coverage; the best is printed as a section for quarry.toml."""

    name: str = option("tuned", "name of the set in the section", pattern=NAME)
    sources: tuple[str, ...] = option(
        (), "source to draw from; repeat for more [default: all]", flag="--from"
    )
    most: int = option(10, "negatives a query", ge=1)
    unsafe: float = option(0.02, "highest share of negatives with s_n >= s_p", ge=0, le=1)
    margins: tuple[float, ...] = option(
        (0.95, 0.9, 0.8), "percent margin to try besides none; repeat for more", flag="--margin"
    )
    queries: int = option(5000, "queries that a recipe is tried on, at least", ge=1)


def tune(run: Run, options: Tune, how: How) -> Manifest:
    """Try recipes: candidates, judgments, vectors -> 6_metrics/_tune, a row a recipe.

    Raises:
        UserError: no index has the vectors that judge similarity compared, there is no source, or
            no recipe keeps to the constraints.
    """
    run.tables()
    reference = make_reference(run, options, how)
    if reference is None:
        raise UserError(
            f"{run.path} has no dense index with the vectors of the target encoder, which coverage"
            " needs; run `quarry index dense --encoder MODEL`, then `quarry judge similarity` with"
            " the same"
        )
    names = list(options.sources) or _all_but_controls(run)
    inputs = run.table_input() | run.need_sources(names)
    inputs[reference.stage] = reference.fingerprint  # and all that it is made from
    record = {name: value for name, value in options.record().items() if name not in READ}
    stage = Stage(FOLDER, "trials", record, inputs, cheap=True, made_by="tune")
    trials = list(recipes(options, names))
    keys = shard_keys(len(trials))
    made = run_stage(run, stage, lambda: partial(_try, run, options, trials), keys, how)
    return made.model_copy(update={"facts": made.facts | _conclude(run, options, keys)})


def recipes(options: Tune, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what is tried, as options of select that are not at their defaults: each source alone,
    each pair of them and all together, with each margin and sampler.
    """
    sizes = sorted({1, 2, len(names)} & set(range(1, len(names) + 1)))
    for sources in (some for size in sizes for some in combinations(names, size)):
        for margin in (None, *options.margins):
            for sampler in SAMPLERS:
                made: dict[str, Any] = {"sources": list(sources), "negatives": options.most}
                made |= {} if margin is None else {"percent_margin": margin}
                made |= {"seed": options.seed} if options.seed else {}
                yield made | ({} if sampler == "top" else {"sampler": sampler})


def _all_but_controls(run: Run) -> list[str]:
    """Sources whose documents are no negatives, such as placebos, say so in their facts."""
    facts = {
        name: run.need(f"{run.SOURCES}/{name}", "mine").facts for name in run.names(run.SOURCES)
    }
    return [name for name, told in facts.items() if "control" not in told]


def _try(run: Run, options: Tune, trials: list[dict[str, Any]], key: str) -> Shard:
    """Carry one recipe out and measure what it keeps."""
    from scoring.select import kept_rows

    made, vectors = trials[int(key)], read_vectors(run)
    select = Select(name=options.name, **made)
    width = vectors.queries(run.query_shards()[0]).shape[1]
    own, reference = (np.zeros((BLOCKS, width, width), np.float32) for _ in range(2))
    count = unsafe = seen = 0
    for shard_key, rows in kept_rows(run, select):
        shard = QueryShard(run, shard_key)
        held = read_held(shard, vectors, rows, everyone=True)
        add_blocks(reference, held, held.reference)
        for _, pull in pulls_of(held, options, [None]):
            add_blocks(own, held, pull)
        count += len(rows)
        above = pc.greater_equal(rows["score"], rows["positive_score"])
        unsafe += pc.sum(above).as_py() or 0
        seen += len(shard.query_ids)
        if seen >= options.queries:
            break
    one, two = own.sum(axis=0, dtype=np.float64), reference.sum(axis=0, dtype=np.float64)
    row = {
        "recipe": json.dumps(made),
        "coverage": float(coverage(one, two)),
        "unsafe": unsafe / max(count, 1),
        "negatives": count / max(seen, 1),
        "without": [float(coverage(one - own[b], two - reference[b])) for b in range(BLOCKS)],
    }
    return Shard({key: pa.Table.from_pylist([row])})


def _conclude(run: Run, options: Tune, keys: Sequence[str]) -> dict[str, Any]:
    """Return the best recipe as a section for quarry.toml, and how sure that is."""
    files = [run.path / FOLDER / f"{key}.parquet" for key in keys]
    rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    fair = sorted(
        (row for row in rows if row["unsafe"] <= options.unsafe and row["negatives"] > 0),
        key=lambda row: -row["coverage"],
    )
    if not fair:
        least = min(row["unsafe"] for row in rows)
        raise UserError(
            f"no recipe of {len(rows)} has a share of unsafe negatives of at most"
            f" {options.unsafe:g}: the least is {least:.3f}; raise --unsafe, or add a --margin"
        )
    best = fair[0]
    low, high = jackknife_interval(best["coverage"], np.array(best["without"]), CONFIDENCE)
    said = f"coverage {best['coverage']:.3f}"
    said += "" if low is None else f" ({low:.3f} to {high:.3f})"
    near = [row for row in fair[1:] if not _ahead(best, row)]
    verdict = f"{len(rows)} recipes tried, {len(fair)} within the constraints; the best has {said}"
    verdict += f", {best['unsafe']:.1%} unsafe, {best['negatives']:.1f} negatives a query."
    if near:
        verdict += (
            f" {len(near)} others are within its interval, such as {_sentence(near[0])}: take the"
            " one that suits you."
        )
    elif len(fair) > 1:
        verdict += f" It is ahead of the next, {_sentence(fair[1])}, by more than chance."
    return {"section": _section(options.name, json.loads(best["recipe"])), "verdict": [verdict]}


def _ahead(best: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether the difference of two recipes is more than chance."""
    left = np.array(best["without"]) - np.array(other["without"])
    low, _ = jackknife_interval(best["coverage"] - other["coverage"], left, CONFIDENCE)
    return low is not None and low > 0


def _sentence(row: dict[str, Any]) -> str:
    made = json.loads(row["recipe"])
    words = " + ".join(made["sources"])
    words += f", percent margin {made['percent_margin']:g}" if "percent_margin" in made else ""
    words += f", sampler {made['sampler']}" if "sampler" in made else ""
    return f"{words} ({row['coverage']:.3f})"


def _section(name: str, made: dict[str, Any]) -> str:
    """Write a recipe as a section of quarry.toml; JSON values of these kinds are TOML."""
    lines = [
        f"{'from' if key == 'sources' else key.replace('_', '-')} = {json.dumps(value)}"
        for key, value in made.items()
    ]
    return "\n".join([f"[select.{json.dumps(name)}]", *lines])
