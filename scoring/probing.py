"""sets, positives, texts -> the artefact probe of a set: which original each negative is held against, and what becomes of the result."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from miner.made import Shelf
from miner.store import Run
from miner.tables import METRICS, conform
from scoring.probe import Probe, artefact_probe


class Pairs(NamedTuple):
    """Negatives with the texts they are held against, and which pairs belong together."""

    originals: list[str]
    negatives: list[str]
    groups: list[str]


def probe_set(run: Run, name: str, most: int, seed: int) -> Probe | None:
    """Probe a set; None if its negatives belong to fewer than two groups.

    A made negative is held against its parent, another against its query's first positive. Queries with a first positive in common, such as
    captions of one image, are one group. Of more than `most` pairs a part is drawn, by a hash of seed and ids.
    """
    total = sum(len(run.read(f"5_sets/{name}", key)) for key in run.query_shards())
    share, found = most / max(total, 1), Pairs([], [], [])
    for key in run.query_shards():
        _gather(run, name, key, share, seed, found)
    if len(set(found.groups)) < 2:
        return None
    return artefact_probe(found.originals, found.negatives, np.array(found.groups), seed=seed)


def _gather(run: Run, name: str, key: str, share: float, seed: int, found: Pairs) -> None:
    shelf, first = Shelf(run, key), dict[str, str]()
    for row in run.read("1_tables/positives", key).to_pylist():
        first[row["query_id"]] = min(first.get(row["query_id"], row["doc_id"]), row["doc_id"])
    parents = dict(zip(shelf.made["doc_id"].to_pylist(), shelf.made["parent_id"].to_pylist(), strict=True))
    rows = run.read(f"5_sets/{name}", key)
    pairs = [
        (first[query_id], parents.get(doc_id) or first[query_id], doc_id)
        for query_id, doc_id in zip(rows["query_id"].to_pylist(), rows["doc_id"].to_pylist(), strict=True)
        if query_id in first and (share >= 1 or _draw(seed, query_id, doc_id) < share)
    ]
    found.originals.extend(shelf.texts(shelf.rows([parent for _, parent, _ in pairs])))
    found.negatives.extend(shelf.texts(shelf.rows([doc_id for _, _, doc_id in pairs])))
    found.groups.extend(pair[0] for pair in pairs)


def _draw(seed: int, query_id: str, doc_id: str) -> float:
    digest = hashlib.blake2b(f"{seed} {query_id}\x1f{doc_id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest) / 2**56


def rows_of(name: str, probe: Probe) -> pa.Table:
    """Return a probe as rows of the metrics table."""
    common: dict[str, Any] = {"set_name": name, "k": None, "n": probe.pairs}
    rows = [
        {"measure": "probe_accuracy", "value": probe.accuracy, "low": probe.low, "high": probe.high, **common},
        {"measure": "probe_auc", "value": probe.auc, "low": None, "high": None, **common},
    ]
    return conform(pa.Table.from_pylist(rows, METRICS.schema), METRICS)
