"""Some queries to read, with their positives and the best negatives of each set."""

import difflib
import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow.parquet as pq

from miner.seeds import hash_of
from miner.store import Run
from scoring.metrics import SETS, SUSPECTS
from scoring.show import Row, describe_shard

LIMIT = 5000  # characters of a text that the page holds
SHOWN = 3  # negatives of a set under an example
NEAR = 0.6  # from this share of words in common on, in their order, what differs is marked
WORDS = re.compile(r"\w+|[^\w\s]")


def finite(value: Any) -> Any:
    """Return None for what JSON has no number for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_examples(run: Run, count: int, seed: int, sets: list[str]) -> list[Row]:
    """Return some queries with their positives and the best-ranked negatives of each set."""
    chosen = heapq.nsmallest(count, _hashed_queries(run, seed))
    described = _describe(run, [(query_id, key) for _, query_id, key in chosen], sets)
    return [_example(described[query_id]) for _, query_id, _ in chosen]


def _describe(run: Run, queries: Iterable[tuple[str, str]], sets: list[str]) -> dict[str, Row]:
    """Return query_id -> what there is to say of it, of some (query_id, shard)."""
    shards: dict[str, set[str]] = defaultdict(set)
    for query_id, key in queries:
        shards[key].add(query_id)
    return {
        row["query_id"]: row
        for key, query_ids in sorted(shards.items())
        for row in describe_shard(run, key, sorted(query_ids), sets)
    }


def read_suspects(run: Run, count: int, sets: list[str]) -> list[Row]:
    """Return the negatives that exceed their query's lowest positive by most, each once: the first
    to read if false negatives are feared. `score` keeps those of each shard.
    """
    found: dict[tuple[str, str, str], tuple[float, list[str]]] = {}
    for name in sets:
        for file in sorted((run.path / SETS / name / SUSPECTS).glob("*.parquet")):
            for row in pq.read_table(file, partitioning=None).to_pylist():
                pair = row["query_id"], row["doc_id"], file.stem
                found.setdefault(pair, (row["excess"], []))[1].append(name)
    worst = heapq.nsmallest(count, found.items(), key=lambda one: (-one[1][0], one[0]))
    described = _describe(run, [(query_id, key) for (query_id, _, key), _ in worst], sets)
    return [
        _suspect(described[query_id], doc_id, names) for (query_id, doc_id, _), (_, names) in worst
    ]


def _suspect(row: Row, doc_id: str, names: list[str]) -> Row:
    example = _example(row, None)
    negatives = example["sets"][names[0]]["negatives"]
    return {
        "query_id": row["query_id"],
        "text": row["text"],
        "positive": min(
            example["positives"], key=lambda one: math.inf if one["s_p"] is None else one["s_p"]
        ),
        "negative": next(one for one in negatives if one["doc_id"] == doc_id),
        "sets": names,
    }


def _hashed_queries(run: Run, seed: int) -> Iterator[tuple[int, str, str]]:
    """Yield (hash, query_id, shard) of every query that has a positive; the hash knows nothing
    of shards.
    """
    for key in run.query_shards():
        for query_id in sorted(set(run.read(run.POSITIVES, key)["query_id"].to_pylist())):
            yield hash_of(seed, query_id), query_id, key


def _example(row: Row, most: int | None = SHOWN) -> Row:
    positives = [
        _cut(positive) | {"relevance": positive["relevance"], "s_p": _similarity(positive)}
        for positive in row["positives"]
    ]
    lowest = min(
        (positive["s_p"] for positive in positives if positive["s_p"] is not None), default=None
    )
    sets = {
        name: {
            "count": len(found["negatives"]),
            "rejected": dict(
                sorted(Counter(rejected["reason"] for rejected in found["rejected"]).items())
            ),
            "negatives": [
                _negative(negative, lowest) | {"edits": _edits(negative, row["positives"])}
                for negative in found["negatives"][:most]
            ],
        }
        for name, found in row["sets"].items()
    }
    return {
        "query_id": row["query_id"],
        "text": row["text"],
        "s_p": lowest,
        "positives": positives,
        "sets": sets,
    }


def _negative(row: Row, lowest: float | None) -> Row:
    """Describe a negative; its margin is taken from the lowest positive of its own query."""
    similarity = _similarity(row)
    margin = None if similarity is None or lowest is None else lowest - similarity
    unsafe = margin is not None and margin <= 0
    sources = [
        {name: finite(value) for name, value in found.items()} for found in row["sources"] or []
    ]
    return _cut(row) | {
        "rank": row["rank"],
        "sources": sources,
        "s_n": similarity,
        "margin": margin,
        "unsafe": unsafe,
    }


def _edits(negative: Row, positives: list[Row]) -> list[tuple[int, int]]:
    """Return which parts of a negative's text, as (first, end), are not in the positive that it is
    nearest to; none if it is near to none.
    """
    text = (negative["text"] or "")[:LIMIT]
    places = list(WORDS.finditer(text))
    words = [word[0].lower() for word in places]
    best, edits = NEAR, list[tuple[int, int]]()
    for positive in positives:
        other = [word.lower() for word in WORDS.findall((positive["text"] or "")[:LIMIT])]
        matcher = difflib.SequenceMatcher(None, other, words, autojunk=False)
        if matcher.quick_ratio() >= best and (ratio := matcher.ratio()) >= best:
            best, parts = ratio, matcher.get_opcodes()
            edits = [
                (places[first].start(), places[end - 1].end())
                for kind, _, _, first, end in parts
                if kind != "equal" and end > first
            ]
    return edits


def _similarity(row: Row) -> float | None:
    score: float | None = finite(row["judgments"].get("similarity", {}).get("score"))
    return score


def _cut(row: Row) -> Row:
    text = row["text"]
    return {
        "doc_id": row["doc_id"],
        "title": row["title"],
        "text": None if text is None else text[:LIMIT],
        "characters": len(text or ""),
    }
