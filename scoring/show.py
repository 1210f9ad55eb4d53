"""tables, candidates, judgments, sets -> one query to read: every candidate, its sources, its
judges, what became of it and why.

The same reading serves `quarry show` and the examples of the report.
"""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import Documents
from miner.errors import UserError
from miner.store import Run
from scoring.sets import current_sets, need_set

Row = dict[str, Any]
# (query_id, doc_id) -> judge -> score, verdict, reason
Judged = dict[tuple[str, str], dict[str, Row]]


class SetTable(NamedTuple):
    """A table of a set: its folder below the set's, what it means to stand there, and the column
    that orders it.
    """

    folder: str
    verdict: str
    order: str


PARTS = {
    "negatives": SetTable("", "keep", "rank"),
    "promoted": SetTable("/_promoted", "promote", "reason"),
    "rejected": SetTable("/_rejected", "drop", "reason"),
}


def describe(run: Run, query_id: str, set_name: str | None = None) -> Row:
    """Return all that a run knows of one query.

    Args:
        run: the run folder.
        query_id: which query.
        set_name: one set; None is every finished set.

    Returns:
        What `describe_shard` does, and {candidates: [{doc_id, …}]}: every candidate of every
        source, the best ranks first. Each set has unseen: [{doc_id, verdict: None, reason, …}],
        candidates that it does not mention, for "not_asked" (no source of the recipe has it) or
        "found_since" (the set was made). Each row has sources: [{source, rank, score}], all in
        which it is a candidate; a negative has those of the recipe.

    Raises:
        UserError: there is no such query or set.
    """
    sets = current_sets(run) if set_name is None else [need_set(run, set_name).options["name"]]
    key = _shard_of(run, query_id)
    described = describe_shard(run, key, [query_id], sets)[0]
    found = _found(run, key, query_id)
    candidates: list[Row] = [{"query_id": query_id, "doc_id": doc_id} for doc_id in found]
    _add_texts(run, key, candidates)
    _add_judgments(run, key, [query_id], candidates)
    candidates = [
        {name: value for name, value in row.items() if name != "query_id"} for row in candidates
    ]
    for row in candidates:
        row["sources"] = found[row["doc_id"]]
    for name, parts in described["sets"].items():
        parts["unseen"] = _unseen(run, name, parts, candidates)
    for rows in [
        described["positives"],
        *(rows for parts in described["sets"].values() for rows in parts.values()),
    ]:
        for row in rows:
            row.setdefault("sources", found.get(row["doc_id"], []))
    return {**described, "candidates": candidates}


def _unseen(run: Run, name: str, parts: dict[str, list[Row]], candidates: list[Row]) -> list[Row]:
    """Return the candidates that a set does not mention, each with the reason."""
    asked = {
        source.partition(":")[0]
        for source in run.need(f"{run.SETS}/{name}", f"select {name}").options["sources"]
    }
    mentioned = {row["doc_id"] for rows in parts.values() for row in rows}
    reasons = [
        (
            row,
            (
                "not_asked"
                if asked.isdisjoint(found["source"] for found in row["sources"])
                else "found_since"
            ),
        )
        for row in candidates
    ]
    return [
        {**row, "verdict": None, "reason": reason}
        for row, reason in reasons
        if row["doc_id"] not in mentioned
    ]


def describe_shard(run: Run, key: str, query_ids: Sequence[str], sets: Sequence[str]) -> list[Row]:
    """Describe some queries of one shard, in their order.

    Returns:
        [{query_id, text, positives: [{doc_id, relevance, …}],
        sets: {name: {negatives: [{doc_id, verdict: "keep", rank, score, positive_score, weight,
            sources, …}],
        promoted: [{doc_id, verdict: "promote", reason, value, threshold, …}],
        rejected: [{doc_id, verdict: "drop", reason, value, threshold, …}], in order of reason}}}];
        … is title and text of the document (None if it is not in the corpus), and judgments of the
        pair by every finished judge:
        {judge: {score, verdict, reason}}.
    """
    texts = {row["query_id"]: row["text"] for row in _query_rows(run, run.QUERIES, key, query_ids)}
    positives = _query_rows(run, run.POSITIVES, key, query_ids)
    parts = {
        (name, part): _part(run, name, part, key, query_ids) for name in sets for part in PARTS
    }
    everything = [row for rows in (positives, *parts.values()) for row in rows]
    _add_texts(run, key, everything)
    _add_judgments(run, key, query_ids, everything)
    found = _grouped_by_query(positives)
    grouped = {
        (name, part): _grouped_by_query(rows, PARTS[part].order)
        for (name, part), rows in parts.items()
    }
    return [
        {
            "query_id": query_id,
            "text": texts[query_id],
            "positives": found[query_id],
            "sets": {
                name: {part: grouped[name, part][query_id] for part in PARTS} for name in sets
            },
        }
        for query_id in query_ids
    ]


def _shard_of(run: Run, query_id: str) -> str:
    near: list[str] = []
    for key in run.query_shards():
        query_ids = run.read(run.QUERIES, key)["query_id"].to_pylist()
        if query_id in query_ids:
            return key
        near += difflib.get_close_matches(query_id, query_ids) or query_ids[:1]
    nearest = difflib.get_close_matches(query_id, near) or near[:3]
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "the run has no queries"
    raise UserError(f"{run.path} has no query {query_id!r}; {hint}")


def _query_rows(
    run: Run, folder: str, key: str, query_ids: Sequence[str], optional: bool = False
) -> list[Row]:
    """Return the rows of some queries in one shard of a table."""
    if optional and not (run.path / folder / f"{key}.parquet").exists():
        return []
    table = run.read(folder, key)
    rows: list[Row] = table.filter(
        pc.is_in(table["query_id"], pa.array(query_ids, pa.string()))
    ).to_pylist()
    return rows


def _part(run: Run, name: str, part: str, key: str, query_ids: Sequence[str]) -> list[Row]:
    """Return the rows of some queries in one table of a set, with their verdict."""
    folder, verdict, _ = PARTS[part]
    return [
        row | {"verdict": verdict}
        for row in _query_rows(
            run, f"{run.SETS}/{name}{folder}", key, query_ids, optional=bool(folder)
        )
    ]


def _found(run: Run, key: str, query_id: str) -> dict[str, list[Row]]:
    """Return the candidates of a query, doc_id -> [{source, rank, score}], in order of their
    best rank, then doc_id.
    """
    found: dict[str, list[Row]] = defaultdict(list)
    for source in run.names(run.SOURCES):
        for row in _query_rows(run, f"{run.SOURCES}/{source}", key, [query_id], optional=True):
            found[row["doc_id"]].append({name: row[name] for name in ("source", "rank", "score")})
    return dict(
        sorted(found.items(), key=lambda item: (min(row["rank"] for row in item[1]), item[0]))
    )


def _grouped_by_query(rows: Iterable[Row], *first: str) -> dict[str, list[Row]]:
    """Group rows by query, in order of `first`, then doc_id; the rows lose the columns that all
    of a group share.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: [row[name] for name in (*first, "doc_id")]):
        groups[row["query_id"]].append(
            {name: value for name, value in row.items() if name not in ("query_id", "set_name")}
        )
    return groups


def _add_texts(run: Run, key: str, rows: list[Row]) -> None:
    """Give each row the title and text of its document; None if there is none of this doc_id."""
    corpus, doc_ids = Documents(run, key), sorted({row["doc_id"] for row in rows})
    places = corpus.rows(doc_ids)
    documents = {row["doc_id"]: row for row in corpus.documents(places[places >= 0]).to_pylist()}
    for row in rows:
        row |= {name: documents.get(row["doc_id"], {}).get(name) for name in ("title", "text")}


def _add_judgments(run: Run, key: str, query_ids: Sequence[str], rows: list[Row]) -> None:
    judged: Judged = defaultdict(dict)
    for judge in run.names(run.JUDGES):
        for row in _query_rows(run, f"{run.JUDGES}/{judge}", key, query_ids, optional=True):
            said = {name: row[name] for name in ("score", "verdict", "reason")}
            judged[row["query_id"], row["doc_id"]][row["judge"]] = said
    for row in rows:
        row["judgments"] = dict(sorted(judged.get((row["query_id"], row["doc_id"]), {}).items()))
