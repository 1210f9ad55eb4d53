"""Run files, TREC's or tables -> candidates, as they are."""

import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.ingest.rows import Reject, RunFile
from miner.ingest.staging import DATABASE, create, insert, open_database
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.tables import CANDIDATES, DOUBLE, TEXT, conform

BATCH = 65536  # lines of a run file that are checked together
LINES = pa.schema(
    [
        ("seq", pa.int64()),
        ("query_id", TEXT),
        ("row", pa.int64()),
        ("rank", pa.int64()),
        ("score", DOUBLE),
    ]
)
QUERY_NUMBERS = pa.schema([("query_id", TEXT), ("shard", pa.int64())])
DROPS = """
INSERT INTO drops SELECT CASE WHEN shard IS NULL THEN 'unknown_query'
    ELSE 'unknown_document' END AS reason, count(*)
FROM lines WHERE shard IS NULL OR row < 0 GROUP BY reason
"""
# a rank that is not given follows from the score, ties by doc_id, which is the order of rows
KEPT = """
SELECT query_id, row, coalesce(rank + greatest(0, 1 - (SELECT min(rank) FROM lines)),
    row_number() OVER (PARTITION BY query_id ORDER BY score DESC, row)) AS rank, score
FROM (SELECT * FROM lines WHERE shard = {shard} AND row >= 0 QUALIFY row_number() OVER
    (PARTITION BY query_id, row ORDER BY rank, if(rank IS NULL, -score, 0), seq) = 1)
ORDER BY query_id, rank, row
"""


def ingest_run(run: Run, source: RunFile, made_by: str, how: How) -> Manifest:
    """Run file -> candidates, as the file has them; what this run does not know is dropped and
    counted.

    Raises:
        UserError: no line of the file names a query and a document of this run, it lacks a column,
            or the source was made from something else.
    """
    folder = f"{run.SOURCES}/{source.name}"
    inputs = {run.TABLES: run.tables().fingerprint, source.given: source.file.fingerprint()}
    options = {"file": source.given, "format": source.form}
    stage = Stage(folder, CANDIDATES.name, options, inputs, made_by=made_by)
    staging = run.path / folder / "_staging"

    def prepare() -> partial[Shard]:
        try:
            _stage_run(run, source, staging)
        except UserError:
            shutil.rmtree(staging.parent)  # nothing is to stand in the way of the next try
            raise
        return partial(_run_shard, run, staging / DATABASE, source.name)

    def then() -> dict[str, Any]:
        shutil.rmtree(staging, ignore_errors=True)
        return {}

    return run_stage(run, stage, prepare, run.query_shards(), how, then)


def _stage_run(run: Run, source: RunFile, staging: Path) -> None:
    """Put the lines of a run file into a database, each with its query shard and the row of its
    document.
    """
    with open_database(staging) as connection:
        create(connection, "queries", QUERY_NUMBERS)
        create(connection, "lines", LINES, "SELECT *, NULL::BIGINT AS shard FROM incoming")
        connection.execute("CREATE TABLE drops (reason VARCHAR, n BIGINT)")
        known: set[str] = set()
        for key in run.query_shards():
            query_ids = run.read(run.QUERIES, key)["query_id"]
            known.update(query_ids.to_pylist())
            insert(
                connection,
                "queries",
                pa.table({"query_id": query_ids, "shard": pa.repeat(int(key), len(query_ids))}),
            )
        corpus = Corpus(run)
        for held in _batches(source, connection):
            numbers, query_ids, doc_ids, ranks, scores = map(list, zip(*held, strict=True))
            query_ids = [_meant(query_id, known) for query_id in query_ids]
            rows = pa.table(
                [numbers, query_ids, _rows(corpus, doc_ids), ranks, scores], schema=LINES
            )
            insert(
                connection,
                "lines",
                rows,
                "SELECT incoming.*, shard FROM incoming LEFT JOIN queries USING (query_id)",
            )
        connection.execute(DROPS)
        kept = connection.sql(
            "SELECT count(*) FROM lines WHERE shard IS NOT NULL AND row >= 0"
        ).fetchall()[0][0]
        drops = connection.sql("SELECT reason, n FROM drops ORDER BY n DESC, reason").fetchall()
    if not kept:
        reasons = ", ".join(f"{reason} {n}" for reason, n in drops) or "it is empty"
        raise UserError(
            f"{source.file.name}: no line names a query and a document of this run ({reasons})"
        )


def _rows(corpus: Corpus, doc_ids: list[str]) -> np.ndarray:
    """Return the row of each document; of a number that is none, of its other form."""
    found = corpus.rows(doc_ids)
    missing = np.flatnonzero(found < 0)
    found[missing] = corpus.rows([_other_form(doc_ids[place]) for place in missing.tolist()])
    return found


def _meant(query_id: str, known: set[str]) -> str:
    """Return the id of a query that a run file means: 7.0 is 7 where that is known, 7 is 7.0."""
    other = _other_form(query_id)
    return other if query_id not in known and other in known else query_id


def _other_form(name: str) -> str:
    """Return an integer that is written as a float without its point, and one that is not with it;
    any other name as it is.
    """
    found = re.fullmatch(r"(-?\d+)(\.0+)?", name, re.ASCII)
    return name if not found else found[1] if found[2] else f"{name}.0"


def _batches(
    source: RunFile, connection: duckdb.DuckDBPyConnection
) -> Iterator[list[tuple[int, str, str, int | None, float]]]:
    """Yield batches of (number, query_id, doc_id, rank, score); count the lines that are no such
    thing.
    """
    held: list[tuple[int, str, str, int | None, float]] = []
    bad: dict[str, int] = {}
    for number, hit in enumerate(source.hits()):
        if isinstance(hit, Reject):
            bad[str(hit)] = bad.get(str(hit), 0) + 1
        else:
            held.append((number, *hit))
        if len(held) >= BATCH:
            yield held
            held = []
    if held:
        yield held
    for item in bad.items():
        connection.execute("INSERT INTO drops VALUES (?, ?)", item)


def _run_shard(run: Run, database: Path, name: str, key: str) -> Shard:
    """Return a shard's candidates. Lines that belong to no shard are counted with the first one."""
    with duckdb.connect(str(database), read_only=True, config={"threads": 1}) as connection:
        found = connection.sql(KEPT.format(shard=int(key))).to_arrow_table()
        lines = connection.sql(
            f"SELECT count(*) FROM lines WHERE shard = {int(key)} AND row >= 0"
        ).fetchall()[0][0]
        drops = (
            dict(connection.sql("SELECT reason, n FROM drops ORDER BY reason").fetchall())
            if key == "00000"
            else {}
        )
    if lines > len(found):
        drops["duplicate_candidate"] = lines - len(found)
    doc_ids = Corpus(run).doc_ids(found["row"].to_numpy())
    table = found.append_column("doc_id", doc_ids).append_column(
        "source", pa.repeat(name, len(found))
    )
    return Shard(
        {key: conform(table.append_column("parent_id", pa.nulls(len(found), TEXT)), CANDIDATES)},
        drops,
    )
