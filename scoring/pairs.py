"""Shards of pairs, from which some exports are written: query_id, doc_id, a positive's relevance,
a negative's rank and score.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner.corpus import Documents
from miner.errors import UserError
from miner.files import atomic


def read_pairs(folder: Path, key: str, columns: list[str] | None = None) -> pa.Table:
    """Read a shard of pairs: in order of query_id, positives first, then by rank."""
    return pq.read_table(folder / f"{key}.parquet", columns=columns, partitioning=None)


def positives_of(folder: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the positives of all shards: query_id, doc_id, relevance."""
    for key in keys:
        pairs = read_pairs(folder, key, ["query_id", "doc_id", "relevance"])
        yield from pairs.filter(pairs["relevance"].is_valid()).to_pylist()


def negatives_of(folder: Path, keys: Sequence[str], judged: bool) -> Iterator[dict[str, Any]]:
    """Yield the negatives of all shards: query_id, doc_id, rank, and as score the judge's or
    1 / rank.
    """
    for key in keys:
        pairs = read_pairs(folder, key, ["query_id", "doc_id", "rank", "score"])
        for row in pairs.filter(pairs["rank"].is_valid()).to_pylist():
            yield row if judged else {**row, "score": 1 / row["rank"]}


def ranked_by_judge(folder: Path, keys: Sequence[str]) -> bool:
    """Say whether the judge's scores fall from rank to rank for every query. What reads a run
    orders it by score, whatever its ranks.
    """
    return all(_falls(read_pairs(folder, key, ["query_id", "rank", "score"])) for key in keys)


def scores_told(judged: bool) -> dict[str, object]:
    """Return what the manifest says of the scores."""
    return {"scores": "the judge's" if judged else "1 / rank"}


def _falls(pairs: pa.Table) -> bool:
    """Say whether each negative of a shard has a score lower than that before it."""
    negatives = pairs.filter(pairs["rank"].is_valid())
    score = negatives["score"].to_numpy()  # null becomes nan
    same = pc.equal(negatives["query_id"][1:], negatives["query_id"][:-1]).to_numpy()
    return bool(np.isfinite(score).all() and (~same | (score[1:] < score[:-1])).all())


def found_rows(documents: Documents, doc_ids: Sequence[str]) -> np.ndarray:
    """Return the rows of documents.

    Raises:
        UserError: one is not in the corpus.
    """
    rows = documents.rows(doc_ids)
    if (rows < 0).any():
        raise UserError(
            f"document {doc_ids[int((rows < 0).argmax())]!r} is not in the corpus; make the set"
            " anew from these tables"
        )
    return rows


def write_parts(path: Path, parts: Iterable[str], first: str = "") -> None:
    """Write a text part by part, whole or not at all."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(first)
        file.writelines(parts)
