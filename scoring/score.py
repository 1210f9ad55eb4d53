"""sets + similarities -> metrics: ECI and its parts with intervals, shard by shard; and what the
sources retrieve.

A shard keeps sums per query, `6_metrics/_per_query/<set>`; from these alone come the values, the
intervals (bootstrap over queries) and the paired differences of two sets. The same resamples serve
every set.
"""

import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from miner.engine import How
from miner.errors import UserError
from miner.files import write_table
from miner.query_shard import IDS, QueryShard
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.tables import METRICS
from scoring.eci import margins
from scoring.in_common import count_in_common
from scoring.judgments import Judgments, read_judgments
from scoring.metrics import (
    COLUMNS,
    FOLDER,
    REFERENCE,
    SETS,
    SOURCES,
    SUSPECTS,
    WITHOUT,
    WORST,
    Score,
    evaluate,
    matched_sizes,
    metric_rows,
    query_sums,
    read_sums,
    set_measures,
)
from scoring.probe import probe_set, rows_of
from scoring.reference import make_reference
from scoring.requirements import require_judged
from scoring.retrieval import score_source
from scoring.set_coverage import measure_coverage
from scoring.set_vectors import describe_vectors
from scoring.sets import need_set

SIMILARITY = f"{Run.JUDGES}/similarity"
BIN = 0.02
RANGES = {"s_n": 1.0, "s_p": 1.0, "margin": 2.0}  # quantity -> it lies within plus or minus this


def score(run: Run, options: Score, how: How) -> list[Manifest]:
    """Score sets and all sources: sets, similarities, candidates, positives -> 6_metrics.

    Sources that were not searched with the queries alone are left out: that they rank a positive
    high or low says nothing of them.

    A set's scores are those of judge "similarity", whatever judge its recipe used. Signal is the
    mean over the set's pairs (query, negative), margin the mean over its triples (query, positive,
    negative): both pooled, so a query counts by its pairs and a mixture weighs its sources per
    negative.

    Returns:
        the manifests of the sets, then of the sources.

    Raises:
        UserError: a set is not there, there is nothing to score, or pairs of a set have no
            similarity.
    """
    run.tables()  # without them, that is what there is to say
    names, sources = options.sets or run.names(run.SETS), run.names(run.SOURCES)
    if not names and not sources:
        raise UserError(
            f"{run.path} has neither a set nor a source to score; run `quarry mine SOURCE` and"
            " `quarry select SET` first"
        )
    reference = make_reference(run, options, how) if names else None
    scored = [_score_set(run, name, options, how, reference) for name in names]
    for name in sources:
        if _answers_queries(run, name):
            scored.append(score_source(run, name, options, how))
        else:
            _forget(run, name)
    count_in_common(run, how)
    return scored


def _answers_queries(run: Run, source: str) -> bool:
    """Tell whether a source's ranks say how well it finds positives."""
    found = run.need_current(f"{run.SOURCES}/{source}", f"mine {source}")
    return bool(found.facts.get("searched_with", "query") == "query")


def _forget(run: Run, source: str) -> None:
    """Take away the measures of an earlier source of that name, whose ranks said something."""
    shutil.rmtree(run.path / SOURCES / source, ignore_errors=True)
    (run.path / FOLDER / f"source-{source}.parquet").unlink(missing_ok=True)


def metrics(run: Run) -> pa.Table:
    """Return all finished metrics of a run, sets first, each in order of name."""
    files = [f"set-{name}" for name in run.names(SETS)] + [
        f"source-{name}" for name in run.names(SOURCES)
    ]
    return pa.concat_tables(
        [METRICS.schema.empty_table(), *(run.read(FOLDER, file) for file in files)]
    )


def _score_set(
    run: Run, name: str, options: Score, how: How, reference: Manifest | None
) -> Manifest:
    made, similar = need_set(run, name), run.need_current(SIMILARITY, "judge similarity")
    beginning = f"{run.SOURCES}/"
    sources = {item for item in made.inputs.items() if item[0].startswith(beginning)}
    tables = run.table_input()
    if not {*sources, *tables.items()} <= set(similar.inputs.items()):
        require_judged(run, "similarity", [run.TABLES, made.stage])
    stage = Stage(
        f"{SETS}/{name}",
        "per_query",
        options.model_dump(mode="json", exclude={"sets", "recommend"}),
        tables
        | {made.stage: made.fingerprint, SIMILARITY: similar.fingerprint}
        | ({reference.stage: reference.fingerprint} if reference else {}),
        cheap=True,
        made_by="score",
    )
    return run_stage(
        run,
        stage,
        lambda: partial(_sum_shard, run, name, options),
        run.query_shards(),
        how,
        partial(_write_metrics, run, name, options, stage),
    )


def _write_metrics(run: Run, name: str, options: Score, stage: Stage) -> dict[str, Any]:
    """Turn the sums over all queries into the metrics of a set; return the facts beside them."""
    sums = read_sums(run, stage.folder)
    sizes = matched_sizes(sums)
    value, spread = evaluate(sums, options, partial(set_measures, sizes=sizes))
    facts = {"queries": len(sums["empty"]), "pooling": "signal over pairs, margin over triples"}
    with_negatives, confidence = int((sums["empty"] == 0).sum()), options.confidence
    rows = metric_rows(name, value, spread, confidence, with_negatives)
    if REFERENCE in stage.inputs:
        covered, without, told = measure_coverage(run, name, options, sizes)
        kept = pa.table({measure: values for (measure, _), values in without.items()})
        write_table(run.path / stage.folder / WITHOUT, kept)
        if not options.resamples:
            without = {key: values[:0] for key, values in without.items()}
        own = metric_rows(name, covered, without, confidence, with_negatives, left_out=True)
        others = describe_vectors(run, name, options)
        nothing = {key: np.empty(0) for key in others}  # of a sample: no interval
        beside = metric_rows(name, others, nothing, confidence, with_negatives)
        rows, facts = pa.concat_tables([own, rows, beside]), facts | told
    if options.probe and (probe := probe_set(run, name, options.probe_most, options.seed)):
        rows = pa.concat_tables([rows, rows_of(name, probe)])
        telling = dict(zip(("negatives", "originals"), probe.telling, strict=True))
        facts |= {"probe_telling": telling, "probe_folds": probe.folds}
    write_table(run.path / FOLDER / f"set-{name}.parquet", rows)
    return facts


def _sum_shard(run: Run, name: str, options: Score, key: str) -> Shard:
    """Sum one shard of a set query by query, and count its scores and margins in bins; pairs
    without a finite score are dropped.
    """
    shard = QueryShard(run, key)
    judged = read_judgments(shard, "similarity")
    chosen = run.read(f"{run.SETS}/{name}", key, [*IDS, "rank"])
    query, row = shard.places(chosen)
    order = np.lexsort((chosen["rank"].to_numpy(), query))
    positives, positive_drops = _by_query(shard, shard.positives, judged)
    negatives, negative_drops = _by_query(shard, (query[order], row[order]), judged)
    pairs = list(zip(positives, negatives, strict=True))
    how = options.unsafe == "hinge", options.tau
    sums = np.array([query_sums(positive, negative, *how) for positive, negative in pairs])
    sums = sums.reshape(-1, len(COLUMNS))
    columns = {column: sums[:, place] for place, column in enumerate(COLUMNS)}
    per_query = pa.table({"query_id": pa.array(shard.query_ids, pa.string()), **columns})
    raw = (margins(positive, negative, hinge=False).ravel() for positive, negative in pairs)
    histograms = {"s_n": negatives, "s_p": positives, "margin": raw}
    unscored = positive_drops + negative_drops
    suspects = _suspects(shard, (query, row), judged)
    return Shard(
        {
            f"_histograms/{key}": _count_in_bins(histograms),
            f"{SUSPECTS}/{key}": suspects,
            key: per_query,
        },
        {"no_score": unscored} if unscored else {},
    )


def _suspects(
    shard: QueryShard, chosen: tuple[np.ndarray, np.ndarray], judged: Judgments
) -> pa.Table:
    """Return the negatives with the highest s_n - s_p, s_p the lowest positive's, from 0 on."""
    lowest = np.full(len(shard.query_ids), np.inf)
    known = judged.scores(shard.codes(*shard.positives))
    np.fmin.at(lowest, shard.positives[0], known)
    excess = judged.scores(shard.codes(*chosen)) - lowest[chosen[0]]
    excess = np.where(np.isfinite(excess), excess, -np.inf)
    order = np.lexsort((chosen[1], chosen[0], -excess))[:WORST]
    query, row = (places[order[excess[order] >= 0]] for places in chosen)
    return pa.table(
        {
            "query_id": pa.array([shard.query_ids[place] for place in query.tolist()], pa.string()),
            "doc_id": shard.documents.doc_ids(row),
            "excess": excess[order[: len(query)]],
        }
    )


def _by_query(
    shard: QueryShard, pairs: tuple[np.ndarray, np.ndarray], judged: Judgments
) -> tuple[list[np.ndarray], int]:
    """Return the scores of each query's pairs, in their order, and how many pairs have none."""
    score = judged.scores(shard.codes(*pairs))
    known = ~np.isnan(score)
    ends = np.searchsorted(pairs[0][known], np.arange(1, len(shard.query_ids)))
    return np.split(score[known], ends) if shard.query_ids else [], int((~known).sum())


def _count_in_bins(quantities: Mapping[str, Iterable[np.ndarray]]) -> pa.Table:
    """Count values in bins of one width; what lies outside counts in the end bins."""
    parts = []
    for quantity, arrays in quantities.items():
        end = RANGES[quantity]
        values = np.clip(np.concatenate([np.empty(0), *arrays]), -end, end)
        count, edges = np.histogram(
            values, np.linspace(-end, end, round(2 * end / BIN) + 1).round(2)
        )
        parts.append(
            pa.table(
                {
                    "quantity": [quantity] * len(count),
                    "low": edges[:-1],
                    "high": edges[1:],
                    "count": count.astype(np.int64),
                }
            )
        )
    return pa.concat_tables(parts)
