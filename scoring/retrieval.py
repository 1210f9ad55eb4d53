"""candidates, positives -> retrieval quality of a source: ndcg@10 and recall@100."""

from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from miner.engine import How
from miner.files import write_table
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from scoring.metrics import (
    FOLDER,
    SOURCES,
    Score,
    Sums,
    Values,
    evaluate,
    metric_rows,
    ratio,
    read_sums,
)

OF_SOURCES = ("resamples", "confidence", "seed")  # options that a source's measures depend on


def score_source(run: Run, name: str, options: Score, how: How) -> Manifest:
    """Measure a source's retrieval: candidates, positives -> ndcg@10 and recall@100, or less
    deep if the source is.
    """
    found = run.need_current(f"{run.SOURCES}/{name}", f"mine {name}")
    inputs = {run.TABLES: run.tables().fingerprint, f"{run.SOURCES}/{name}": found.fingerprint}
    stage = Stage(
        f"{SOURCES}/{name}",
        "per_query",
        options.model_dump(mode="json", include=set(OF_SOURCES)),
        inputs,
        cheap=True,
        made_by="score",
    )

    def reduce() -> dict[str, Any]:
        sums = read_sums(run, stage.folder)
        value, spread = evaluate(sums, options, _source_measures)
        rows = metric_rows(name, value, spread, options.confidence, int(sums["queries"].sum()))
        write_table(run.path / FOLDER / f"source-{name}.parquet", rows)
        return {"queries": len(sums["queries"])}

    return run_stage(
        run,
        stage,
        lambda: partial(_retrieval_shard, run, name, _depth(run, found)),
        run.query_shards(),
        how,
        reduce,
    )


def _depth(run: Run, source: Manifest) -> int:
    """Return to which rank a source answers every query in full: the k it was mined with, else
    the deepest rank that it has.
    """
    mined = source.options.get("k")
    if mined is not None:
        return int(mined)
    deepest = [
        pc.max(run.read(source.stage, key)["rank"]).as_py() or 0 for key in run.query_shards()
    ]
    return max([1, *deepest])


def _retrieval_shard(run: Run, name: str, depth: int, key: str) -> Shard:
    import ir_measures

    ndcg, recall = ir_measures.nDCG @ min(10, depth), ir_measures.R @ min(100, depth)
    relevant: dict[str, dict[str, int]] = {}
    for row in run.read(run.POSITIVES, key).to_pylist():
        relevant.setdefault(row["query_id"], {})[row["doc_id"]] = max(1, row["relevance"] or 1)
    found: dict[str, dict[str, float]] = {query_id: {} for query_id in relevant}
    for row in (
        run.read(f"{run.SOURCES}/{name}", key).select(["query_id", "doc_id", "rank"]).to_pylist()
    ):
        own = row["doc_id"] == row["query_id"]  # the query itself is no answer, unless it is one
        if not own or row["doc_id"] in relevant.get(row["query_id"], ()):
            found.setdefault(row["query_id"], {})[row["doc_id"]] = -float(row["rank"])
    measured = ir_measures.iter_calc([ndcg, recall], relevant, found) if relevant else ()
    values = {(metric.query_id, metric.measure): metric.value for metric in measured}
    query_ids = run.read(run.QUERIES, key)["query_id"].to_pylist()
    columns: dict[str, Any] = {"query_id": pa.array(query_ids, pa.string())}
    for label, measure in ((f"ndcg@{min(10, depth)}", ndcg), (f"recall@{min(100, depth)}", recall)):
        columns[label] = pa.array(
            [values.get((query_id, measure), 0.0) for query_id in query_ids], pa.float64()
        )
    columns["queries"] = pa.array(
        [float(query_id in relevant) for query_id in query_ids], pa.float64()
    )
    return Shard({key: pa.table(columns)})


def _source_measures(sums: Sums, queries: int) -> Values:
    """Return means over the queries that have a positive."""
    return {
        (name, int(name.partition("@")[2])): ratio(total, sums["queries"])
        for name, total in sums.items()
        if name != "queries"
    }
