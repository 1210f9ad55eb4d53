"""Staged rows -> documents, queries and positives that fit together: an on-disk DuckDB database that spills instead of growing.

Rows come in as they are read. `validate` settles what no single row can tell: ids that come twice, positives that name what is not there,
queries without a positive. Whatever is left out becomes a reject with its reason and place.
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import duckdb
import pyarrow as pa

from miner.rows import LONGEST_RAW, Row
from miner.tables import INT, TEXT

MEMORY, THREADS = "2GB", 4  # DuckDB's own: more of either is no faster, since reading the rows takes the time
BATCH_ROWS, BATCH_CHARACTERS = 16384, 2**25
PLACE = {"seq": pa.int64(), "file": TEXT, "line": pa.int64()}  # seq: order of arrival, unique over all tables
STAGED = {
    "documents": {"doc_id": TEXT, "title": TEXT, "origin": TEXT, "text": TEXT},
    "queries": {"query_id": TEXT, "origin": TEXT, "text": TEXT},
    "positives": {"query_id": TEXT, "doc_id": TEXT, "relevance": INT},
    "captions": {"id": TEXT, "grouping": TEXT, "origin": TEXT, "text": TEXT},
    "rejects": {"of": TEXT, "reason": TEXT, "raw": TEXT},
}
SCHEMAS = {name: pa.schema([*PLACE.items(), *columns.items()]) for name, columns in STAGED.items()}

REPEATED = """
CREATE OR REPLACE TEMP TABLE repeated AS
SELECT r.seq, r.origin = 'listed' OR r.text <> f.text AS wrong
FROM (SELECT {id}, min(seq) AS first FROM {table} GROUP BY {id} HAVING count(*) > 1) g
JOIN {table} r ON r.{id} = g.{id} AND r.seq > g.first JOIN {table} f ON f.seq = g.first;
INSERT INTO rejects SELECT seq, file, line, '{table}', 'duplicate_id', concat_ws(chr(9), {id}, left(text, {cut}))
FROM {table} WHERE seq IN (SELECT seq FROM repeated WHERE wrong);
DELETE FROM {table} WHERE seq IN (SELECT seq FROM repeated);
"""
ALIASES = """
CREATE TEMP TABLE aliases AS SELECT p.doc_id AS old, c.doc_id AS new
FROM documents p JOIN (SELECT md5(text) AS hash, arg_min(doc_id, seq) AS doc_id FROM documents WHERE origin <> 'paired' GROUP BY hash) c
ON md5(p.text) = c.hash WHERE p.origin = 'paired';
UPDATE positives SET doc_id = aliases.new FROM aliases WHERE positives.doc_id = aliases.old;
DELETE FROM documents WHERE doc_id IN (SELECT old FROM aliases);
"""
CAPTIONS = """
INSERT INTO documents SELECT seq, file, line, id, '', origin, text FROM captions;
INSERT INTO queries SELECT seq, file, line, id, origin, text FROM captions;
INSERT INTO positives SELECT seq, file, line, id, id, 1 FROM captions;
INSERT INTO positives SELECT min(a.seq), arg_min(a.file, a.seq), arg_min(a.line, a.seq), a.id, b.id, 1
FROM members a JOIN members b USING (grouping) WHERE a.id <> b.id GROUP BY a.id, b.id;
"""
JUDGED = """
CREATE TABLE judged AS WITH named AS (
    SELECT p.*, CASE WHEN relevance < {min_relevance} THEN 'low_relevance' WHEN q.query_id IS NULL THEN 'unknown_query'
    WHEN d.doc_id IS NULL THEN 'unknown_document' END AS wrong
    FROM positives p LEFT JOIN queries q ON q.query_id = p.query_id LEFT JOIN documents d ON d.doc_id = p.doc_id)
SELECT * EXCLUDE (wrong), coalesce(wrong, CASE WHEN row_number() OVER
    (PARTITION BY query_id, doc_id, wrong IS NULL ORDER BY seq) > 1 THEN 'duplicate_positive' END) AS reason FROM named;
INSERT INTO rejects SELECT seq, file, line, 'positives', reason, concat_ws(chr(9), query_id, doc_id, relevance)
FROM judged WHERE reason IS NOT NULL;
"""
KEPT = """
CREATE TEMP TABLE answered AS SELECT DISTINCT query_id FROM judged WHERE reason IS NULL;
INSERT INTO rejects SELECT seq, file, line, 'queries', 'query_without_positive', concat_ws(chr(9), query_id, left(text, {cut}))
FROM queries WHERE query_id NOT IN (FROM answered);
CREATE TABLE kept_queries AS SELECT row_number() OVER (ORDER BY query_id) - 1 AS number, query_id, text
FROM queries WHERE query_id IN (FROM answered);
DELETE FROM kept_queries WHERE number >= {limit};
CREATE TABLE kept_positives AS SELECT number, query_id, doc_id, relevance
FROM judged JOIN kept_queries USING (query_id) WHERE reason IS NULL ORDER BY number, doc_id;
"""


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """Open a new database in a folder, made afresh; what does not fit into its memory goes to disk beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY,
        "threads": THREADS,
        "temp_directory": str(folder / "spill"),
        "preserve_insertion_order": False,
    }
    connection = duckdb.connect(str(folder / "staging.duckdb"), config=settings)
    connection.execute("SET force_compression = 'uncompressed'")  # the rows are read twice at most
    return connection


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Append rows to a table that has the same columns."""
    connection.register("incoming", rows)
    connection.execute(f"INSERT INTO {table} SELECT * FROM incoming")
    connection.unregister("incoming")


class Staging:
    """The staged rows of one ingest, in a folder that lives as long as the `with` block."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> "Staging":
        self.connection = open_database(self.folder)
        for name, schema in SCHEMAS.items():
            self.connection.register("incoming", schema.empty_table())
            self.connection.execute(f"CREATE TABLE {name} AS FROM incoming")
        self.seq = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, rows: Iterable[Row]) -> None:
        """Stage rows; the memory they take is bounded by rows and by characters."""
        held: dict[str, list[tuple]] = {name: [] for name in STAGED}
        count = characters = 0
        self.connection.begin()  # one transaction: rows go to the database file once, not to its log first
        for row in rows:
            held[row.table].append((self.seq, row.file, row.line, *row.values))
            self.seq += 1
            count += 1
            characters += len(row.values[-1]) if isinstance(row.values[-1], str) else 0
            if count >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                self._flush(held)
                count = characters = 0
        self._flush(held)
        self.connection.commit()

    def _flush(self, held: dict[str, list[tuple]]) -> None:
        for name, rows in held.items():
            if rows:
                schema = SCHEMAS[name]
                columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)]
                insert(self.connection, name, pa.Table.from_arrays(columns, schema=schema))
                rows.clear()

    def validate(self, min_relevance: int, limit: int | None) -> dict[str, int]:
        """Make kept_queries (numbered in order of query_id), kept_positives and documents out of the staged rows.

        Returns:
            reason -> rows left out. Queries over the limit are counted as over_limit; they are no rejects.
        """
        run = self.connection.execute
        run("CREATE TABLE members AS SELECT * FROM captions WHERE grouping IS NOT NULL")
        for table, column in (("captions", "id"), ("documents", "doc_id"), ("queries", "query_id")):
            run(REPEATED.format(table=table, id=column, cut=LONGEST_RAW))
        run("DELETE FROM members WHERE seq IN (SELECT seq FROM rejects)")
        run(CAPTIONS)
        if self.count("documents WHERE origin = 'paired'"):
            run(ALIASES)
        run(JUDGED.format(min_relevance=int(min_relevance)))
        run(KEPT.format(limit=limit or "(SELECT count(*) FROM queries)", cut=LONGEST_RAW))
        reasons = run("SELECT reason, count(*) FROM rejects GROUP BY reason").fetchall()
        over = self.count("answered") - self.count("kept_queries")
        return dict(sorted([*reasons, *([("over_limit", over)] if over else [])]))

    def count(self, rows: str) -> int:
        """Count the rows of a table, or of a table and a condition."""
        return self.connection.sql(f"SELECT count(*) FROM {rows}").fetchall()[0][0]

    def stream(self, query: str, size: int = 4096) -> Iterator[pa.RecordBatch]:
        """Yield the result of a query in batches, in its order, without holding it whole. No other query may run meanwhile."""
        return self.connection.sql(query).to_arrow_reader(size)
