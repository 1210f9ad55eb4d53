"""Texts that a source made for its queries -> made documents and candidates.

A source that makes documents writes them beside its candidates, in
`3_candidates/<source>/_documents`. Their doc_ids start with "~", which sorts after letters and
digits, so that rows compare as doc_ids do here too. What reads documents by row reads made ones
alike.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from miner.corpus import MADE_DOCUMENTS
from miner.stages import Shard
from miner.store import Run
from miner.tables import CANDIDATES, MADE, from_rows


def made_id(text: str, parent_id: str) -> str:
    """Return the doc_id of a made document: a hash of its text and its parent."""
    return (
        "~"
        + hashlib.blake2b(
            f"{parent_id}\x1f{text}".encode("utf-8", "surrogatepass"), digest_size=10
        ).hexdigest()
    )


class Negative(NamedTuple):
    """A made text of a query, with what `made_documents` says of it; `turn` is its number among
    those of the query.
    """

    query_id: str
    parent_id: str
    text: str
    detail: dict[str, Any]
    score: float | None
    turn: int = 0


def made_shard(run: Run, source: str, made: Sequence[Negative], key: str) -> Shard:
    """Return the candidates of a source that makes documents, and these documents; the same text
    for the same query stands once.
    """
    kept, seen, rank = list[tuple[Negative, int]](), set[tuple[str, str]](), dict[str, int]()
    for negative in made:
        if (negative.query_id, negative.text) not in seen:
            seen.add((negative.query_id, negative.text))
            rank[negative.query_id] = rank.get(negative.query_id, 0) + 1
            kept.append((negative, rank[negative.query_id]))
    documents = {made_id(one.text, one.parent_id): one for one, _ in kept}
    rows = [
        (one.query_id, made_id(one.text, one.parent_id), source, place, one.score, one.parent_id)
        for one, place in kept
    ]
    listed = [
        (doc_id, documents[doc_id].text, documents[doc_id].parent_id, documents[doc_id].detail)
        for doc_id in sorted(documents)
    ]
    queries = run.read(run.QUERIES, key)["query_id"].to_pylist()
    missing = {"nothing_made": len(queries) - len(rank)} if len(rank) < len(queries) else {}
    return Shard(
        {
            f"{MADE_DOCUMENTS}/{key}": from_rows(listed, MADE.schema),
            key: from_rows(rows, CANDIDATES.schema),
        },
        missing,
    )
