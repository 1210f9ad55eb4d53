"""candidates of sources, sets -> what any two of them have in common: 6_metrics/_in_common.

Two sources that find the same documents are one source; two sets that keep the same negatives need
not both be trained on.
"""

from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner.engine import How
from miner.query_shard import IDS, QueryShard
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from scoring.sets import current_sets

FOLDER = f"{Run.METRICS}/_in_common"
DEPTH = 10  # of sources: what they have further down is seldom taken


def count_in_common(run: Run, how: How) -> Manifest:
    """Count for any two sources, and any two sets, the pairs of query and document that both
    have: of sources the first DEPTH ranks, positives aside.

    Raises:
        UserError: a source is older than the tables; a set that is counts as none.
    """
    folders = [f"{run.SOURCES}/{name}" for name in run.names(run.SOURCES)]
    folders += [f"{run.SETS}/{name}" for name in current_sets(run)]
    found = [run.need_current(folder, folder) for folder in folders]
    inputs = run.table_input() | {one.stage: one.fingerprint for one in found}
    stage = Stage(FOLDER, "pairs", {"depth": DEPTH}, inputs, cheap=True, made_by="score")
    task = partial(_count_shard, run, folders)
    return run_stage(run, stage, lambda: task, run.query_shards(), how)


def _count_shard(run: Run, folders: list[str], key: str) -> Shard:
    shard, codes = QueryShard(run, key), dict[str, np.ndarray]()
    for folder in folders:
        table = run.read(folder, key, [*IDS, "rank"])
        if folder.startswith(run.SOURCES):
            table = table.filter(pc.less_equal(table["rank"], DEPTH))
        query, row = shard.places(table)
        known = (row >= 0) & ~shard.is_positive(query, row)
        codes[folder] = np.unique(shard.codes(query, row)[known])
    rows: list[dict[str, Any]] = [
        {"one": one, "two": two, "both": len(np.intersect1d(codes[one], codes[two], True))}
        for one, two in combinations_with_replacement(folders, 2)
        if one.partition("/")[0] == two.partition("/")[0]
    ]
    schema = pa.schema({"one": pa.string(), "two": pa.string(), "both": pa.int64()})
    return Shard({key: pa.Table.from_pylist(rows, schema)})


def shares_in_common(run: Run, kind: str) -> dict[str, Any]:
    """Return names, and as shares what share of the pairs of the one in the row the one in the
    column has as well; None where it has no pair.

    Args:
        run: a scored run.
        kind: Run.SOURCES or Run.SETS.
    """
    files = sorted((run.path / FOLDER).glob("*.parquet"))
    if not files:
        return {"names": [], "shares": []}
    table = pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)
    both: dict[tuple[str, str], int] = {}
    for row in table.group_by(["one", "two"]).aggregate([("both", "sum")]).to_pylist():
        if row["one"].startswith(f"{kind}/"):
            one, two = (row[end].removeprefix(f"{kind}/") for end in ("one", "two"))
            both[one, two] = both[two, one] = row["both_sum"]
    names = sorted({one for one, _ in both})
    own = {name: both[name, name] for name in names}
    shares = [[both[one, two] / own[one] if own[one] else None for two in names] for one in names]
    return {"names": names, "shares": shares}
