"""queries -> candidates drawn at random: the source that always exists, and the floor that every
other source is held against.
"""

from functools import partial

import numpy as np

from miner.engine import How
from miner.options import Options, option
from miner.query_shard import QueryShard
from miner.seeds import generator
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run


class MineRandom(Options):
    """Random documents: the source that always exists."""

    k: int = option(50, "documents per query, positives never among them", short="-k", ge=1)
    seed: int = option(0, "seed; a query's documents depend on it and on query_id alone")


def mine_random(run: Run, options: MineRandom, how: How) -> Manifest:
    """Draw documents for every query: queries -> 3_candidates/random."""
    stage = Stage(
        f"{run.SOURCES}/random",
        "candidates",
        options.record(),
        run.table_input(),
        made_by="mine random",
    )
    return run_stage(
        run, stage, lambda: partial(_draw_shard, run, options), run.query_shards(), how
    )


def draw(seed: int, query_id: str, documents: int, count: int) -> np.ndarray:
    """Return `count` different rows below `documents` (all of them if there are fewer), int64;
    they depend on seed and query_id alone.
    """
    return generator(seed, query_id).choice(
        documents, min(count, documents), replace=False, shuffle=True
    )


def _draw_shard(run: Run, options: MineRandom, key: str) -> Shard:
    shard = QueryShard(run, key, made=False)
    # never the shard's depth: a draw is the query's own
    counts = options.k + np.bincount(shard.positives[0], minlength=len(shard.query_ids))
    rows = np.full((len(counts), counts.max(initial=0)), -1, np.int64)
    for place, (query_id, count) in enumerate(zip(shard.query_ids, counts.tolist(), strict=True)):
        drawn = draw(options.seed, query_id, len(shard.documents), count)
        rows[place, : len(drawn)] = drawn
    return Shard({key: shard.candidates((rows, np.full(rows.shape, np.nan)), options.k, "random")})
