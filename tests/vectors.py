"""Dense indexes written by hand, on top of the toy run."""

from functools import partial

import numpy as np
from toy import HOW, rows

from miner.corpus import Corpus
from miner.stages import Shard, Stage, run_stage
from miner.store import Run


def write_vectors(run: Run, documents: np.ndarray, queries: np.ndarray, name: str = "dense") -> Run:
    """Write 2_index/<name> with given vectors, in order of doc_id and query_id."""
    stage = Stage(
        f"2_index/{name}",
        "documents",
        {"name": name},
        {"1_tables": run.tables().fingerprint},
        model="by hand",
    )
    keys = [f"documents/{key}" for key in Corpus(run).keys] + [
        f"queries/{key}" for key in run.query_shards()
    ]
    run_stage(
        run,
        stage,
        lambda: partial(_shard, run, documents, queries),
        keys,
        HOW,
        lambda: {"kind": "dense"},
    )
    return run


def _shard(run: Run, documents: np.ndarray, queries: np.ndarray, key: str) -> Shard:
    table, _, shard = key.partition("/")
    if table == "documents":
        return Shard({key: documents[Corpus(run).shard_rows(shard)]})
    sizes = [len(run.read("1_tables/queries", other)) for other in run.query_shards()]
    start = sum(sizes[: int(shard)])
    return Shard({key: queries[start : start + sizes[int(shard)]]})


def plane() -> tuple[np.ndarray, np.ndarray]:
    """Directions in a plane for the toy's documents and queries, so that who is near to whom is
    plain and nothing ties.

    d01 points to 0 degrees, d02 to 10.3, then 21.2, 32.7, 44.8, 57.5, 70.8, 84.7, 99.2, 114.3,
    130.0 and d12 to 146.3; q1 to 200, q2 to 195, ... q5 to 180: every query is nearest to d12, then
    to d11, and so on.
    """
    place = np.arange(12)
    angles = np.radians(np.concatenate((10 * place + 0.3 * place**2, 200.0 - 5 * np.arange(5))))
    both = np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)
    return both[:12], both[12:]


def found_by(run: Run, name: str = "dense") -> dict[str, list[str]]:
    """Return what a source found, query by query, in order of rank."""
    found: dict[str, list[str]] = {}
    for query_id, doc_id, rank in rows(run, f"3_candidates/{name}", "query_id", "doc_id", "rank"):
        found.setdefault(query_id, []).append(doc_id)
        assert rank == len(found[query_id])
    return found
