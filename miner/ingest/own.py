"""Negatives that queries came with -> a source like any other: judged, selected and weighed beside
what is mined.
"""

from functools import partial

import pyarrow as pa

from miner.engine import How
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.tables import CANDIDATES, NEGATIVES, TEXT, conform

OWN = "own"  # name of the source


def own_negatives(run: Run, how: How) -> Manifest:
    """Make the source of the queries' own negatives: 1_tables/negatives -> 3_candidates/own, in the
    order in which they were given.
    """
    folder = f"{run.SOURCES}/{OWN}"
    stage = Stage(folder, "candidates", {}, run.table_input(), cheap=True, made_by="ingest pairs")
    return run_stage(run, stage, lambda: partial(_own_shard, run), run.query_shards(), how)


def _own_shard(run: Run, key: str) -> Shard:
    table = run.read(f"{run.TABLES}/{NEGATIVES.name}", key)
    table = table.append_column("source", pa.array([OWN] * len(table), TEXT))
    table = table.append_column("parent_id", pa.nulls(len(table), TEXT))
    return Shard({key: conform(table, CANDIDATES)})
