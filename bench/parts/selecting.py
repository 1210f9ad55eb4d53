"""select on 20 million candidates: a margin and a quota, in how many seconds and how much
memory.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from inputs import write_texts_run
from sides import run_side, seconds_of, target

CANDIDATES, DOCUMENTS = 200, 50_000


def measure(ceilings: dict[str, float], queries: int = 100_000) -> dict[str, Any]:
    """Write candidates and scores, then select them by one worker and by two."""
    with TemporaryDirectory() as folder:
        run_side(write_candidates_run, folder=folder, queries=queries)
        sides = {
            f"{workers} worker{'s' * (workers > 1)}": run_side(
                quarry, folder=folder, workers=workers
            )
            for workers in (1, 2)
        }
    return {
        "what": (
            f"{queries * CANDIDATES:,} candidates of {queries:,} queries with a score; percent"
            " margin 0.95, quota 10"
        ),
        "sides": sides,
        "targets": [
            target("seconds, two workers", sides["2 workers"]["seconds"], at_most=120),
            target("peak memory MB, one worker", sides["1 worker"]["peak_memory_mb"], at_most=2000),
        ],
        "floor": {
            "bytes of Parquet read": sides["1 worker"]["bytes_read"],
            "seconds": sides["1 worker"]["bytes_read"] / ceilings["bytes"],
        },
    }


def write_candidates_run(folder: str, queries: int) -> dict[str, Any]:
    """Write `folder`/run with candidates and judgments that are random, as if mine and judge had
    made them.
    """
    from miner.engine import How
    from miner.stages import Stage, run_stage
    from miner.store import Run

    write_texts_run(folder, DOCUMENTS, queries)
    run = Run(Path(folder) / "run")
    tables = {"1_tables": run.tables().fingerprint}
    for name, inputs in (
        ("3_candidates/dense", {}),
        ("4_judgments/similarity", {"3_candidates/dense": ""}),
    ):
        inputs = {source: run.need(source, "mine").fingerprint for source in inputs}
        table = "candidates" if name.startswith("3") else "judgments"
        options = {"name": "dense"} if name.startswith("3") else {}
        run_stage(
            run,
            Stage(name, table, options, tables | inputs),
            lambda table=table: partial(_shard, run, table),
            run.query_shards(),
            How(),
        )
    return {"queries": queries}


def _shard(run: Any, table: str, key: str) -> Any:
    from miner.query_shard import QueryShard
    from miner.stages import Shard
    from miner.tables import CANDIDATES as FOUND
    from miner.tables import JUDGMENTS, conform

    shard = QueryShard(run, key, made=False)
    corpus, query_ids, gold = shard.documents, shard.query_ids, shard.positives[1]
    rng, count = np.random.default_rng(int(key)), len(query_ids)
    # distinct within a query
    rows = (rng.integers(len(corpus), size=(count, 1)) + np.arange(CANDIDATES) * 7) % len(corpus)
    rows[:, 0] = np.where((rows[:, 1:] == gold[:, None]).any(axis=1), rows[:, 0], gold)
    score = -np.sort(-rng.random((count, CANDIDATES), np.float32), axis=1)
    score[:, 0] = np.maximum(score[:, 0], 0.9)
    query = pa.array(np.repeat(query_ids, CANDIDATES))
    columns = {
        "query_id": query,
        "doc_id": corpus.doc_ids(rows.ravel()),
        "score": pa.array(score.ravel()),
    }
    if table == "candidates":
        rank = pa.array(np.tile(np.arange(1, CANDIDATES + 1), count))
        extra = {
            "source": pa.array(["dense"] * len(query)),
            "rank": rank,
            "parent_id": pa.nulls(len(query), pa.string()),
        }
        return Shard({key: conform(pa.table(columns | extra), FOUND)})
    nothing = pa.nulls(len(query), pa.string())
    extra = {"judge": pa.array(["similarity"] * len(query)), "verdict": nothing, "reason": nothing}
    nearest = columns | extra | {"judge": pa.array(["similarity.positive"] * len(query))}
    return Shard(
        {key: conform(pa.concat_tables([pa.table(columns | extra), pa.table(nearest)]), JUDGMENTS)}
    )


def quarry(folder: str, workers: int) -> dict[str, Any]:
    """Select with a margin and a quota."""
    from miner.engine import How
    from miner.store import Run
    from scoring.recipe import Select
    from scoring.select import select

    run = Run(Path(folder) / "run")
    recipe = Select(name="set", sources=("dense:10",), percent_margin=0.95)
    seconds = seconds_of(lambda: select(run, recipe, How(force=True, workers=workers)))
    read = [
        *run.path.glob("3_candidates/dense/*.parquet"),
        *run.path.glob("4_judgments/similarity/*.parquet"),
    ]
    return {
        "seconds": round(seconds, 1),
        **run.need("5_sets/set", "select").rows,
        "bytes_read": sum(file.stat().st_size for file in read),
    }
