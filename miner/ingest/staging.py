"""Staged rows -> documents, queries and positives that fit together: an on-disk DuckDB database
that spills instead of growing.

Rows come in as they are read. `validate` settles what no single row can tell: ids that come twice,
positives that name what is not there, queries without a positive. Whatever is left out becomes a
reject with its reason and place. The texts of documents stand in a file beside the database, which
knows no more than their hashes and first words: to sort them with their ids would take memory for
all.
"""

import errno
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from miner.engine import Advance
from miner.ingest.inputs import one_line
from miner.ingest.rows import LONGEST_RAW, Row
from miner.ingest.sorting import ARRIVED, shards_in_order
from miner.tables import INT, TEXT

# in messages of DuckDB, whatever class they have
DISK_FULL = ("Could not write", "No space left", "max_temp_directory_size")
DATABASE, TEXTS = "staging.duckdb", "texts.arrow"
MEMORY, THREADS = "1GB", 4  # DuckDB's own; it takes them for ids, never for texts
BATCH_ROWS, BATCH_CHARACTERS = 16384, 2**25
EXCERPT = 200  # characters of a document that a reject shows
PLACE = {"seq": pa.int64(), "file": TEXT, "line": pa.int64()}  # seq: order of arrival
STAGED = {
    "documents": {
        "doc_id": TEXT,
        "title": pa.large_string(),
        "origin": TEXT,
        "text": pa.large_string(),
    },
    "queries": {"query_id": TEXT, "origin": TEXT, "text": TEXT},
    "positives": {"query_id": TEXT, "doc_id": TEXT, "relevance": INT},
    "negatives": {"query_id": TEXT, "doc_id": TEXT, "score": pa.float64()},
    "labels": {"doc_id": TEXT, "label": TEXT},
    "captions": {"id": TEXT, "grouping": TEXT, "image": TEXT, "origin": TEXT, "text": TEXT},
    "rejects": {"of": TEXT, "reason": TEXT, "raw": TEXT},
}
SCHEMAS = {name: pa.schema([*PLACE.items(), *columns.items()]) for name, columns in STAGED.items()}
INCOMING = {name: "FROM incoming" for name in STAGED} | {
    "documents": (
        "SELECT seq, file, line, doc_id, origin, md5_number(text) AS hash, "
        f"left(concat_ws(' ', title, text), {EXCERPT}) AS shown FROM incoming"
    )
}
UNIQUE = (
    ("captions", "id", "text", "text"),
    ("documents", "doc_id", "hash", "shown"),
    ("queries", "query_id", "text", "text"),
)

REPEATED = """
CREATE OR REPLACE TEMP TABLE repeated AS
SELECT r.seq, r.origin = 'listed' OR r.{same} <> f.{same} AS wrong
FROM (SELECT {id}, min(seq) AS first FROM {table} GROUP BY {id} HAVING count(*) > 1) g
JOIN {table} r ON r.{id} = g.{id} AND r.seq > g.first JOIN {table} f ON f.seq = g.first;
INSERT INTO rejects SELECT seq, file, line, '{table}', 'duplicate_id',
    concat_ws(chr(9), {id}, left({shown}, {cut}))
FROM {table} WHERE seq IN (SELECT seq FROM repeated WHERE wrong);
DELETE FROM {table} WHERE seq IN (SELECT seq FROM repeated);
"""
ALIASES = """
CREATE TEMP TABLE aliases AS SELECT p.doc_id AS old, c.doc_id AS new FROM documents p
JOIN (SELECT hash, arg_min(doc_id, seq) AS doc_id FROM documents WHERE origin <> 'paired'
    GROUP BY hash) c USING (hash)
WHERE p.origin = 'paired';
UPDATE positives SET doc_id = aliases.new FROM aliases WHERE positives.doc_id = aliases.old;
UPDATE negatives SET doc_id = aliases.new FROM aliases WHERE negatives.doc_id = aliases.old;
UPDATE labels SET doc_id = aliases.new FROM aliases WHERE labels.doc_id = aliases.old;
DELETE FROM documents WHERE doc_id IN (SELECT old FROM aliases);
"""
CAPTIONS = """
DELETE FROM members WHERE seq IN (SELECT seq FROM rejects);
INSERT INTO queries SELECT seq, file, line, id, origin, text FROM captions;
INSERT INTO positives SELECT seq, file, line, id, id, 1 FROM captions;
INSERT INTO positives SELECT min(a.seq), arg_min(a.file, a.seq), arg_min(a.line, a.seq), a.id, b.id,
    1
FROM members a JOIN members b USING (grouping) WHERE a.id <> b.id GROUP BY a.id, b.id;
"""
# An id that is in neither file as it stands: 7.0 in one is 7 in the other, if it is that alone.
FLOATS = """
CREATE OR REPLACE TEMP TABLE floats AS SELECT {id}, regexp_replace({id}, '\\.0+$', '') AS whole
FROM (SELECT DISTINCT {id} FROM {table} ANTI JOIN {of} USING ({id}))
WHERE regexp_matches({id}, '^-?[0-9]+(\\.0+)?$');
CREATE OR REPLACE TEMP TABLE meant AS SELECT f.{id} AS old, min(o.{id}) AS new, count(*) AS found
FROM floats f JOIN (SELECT {id}, regexp_replace({id}, '\\.0+$', '') AS whole FROM {of}
    WHERE regexp_matches({id}, '^-?[0-9]+(\\.0+)?$')) o USING (whole) GROUP BY f.{id};
UPDATE {table} SET {id} = new FROM meant WHERE {id} = old AND found = 1;
INSERT INTO rejects SELECT seq, file, line, '{table}', 'ambiguous_id', {id} FROM {table}
    JOIN meant ON {id} = old WHERE found > 1;
DELETE FROM {table} WHERE {id} IN (SELECT old FROM meant WHERE found > 1);
"""
JUDGED = """
CREATE TABLE judged AS
SELECT p.*, CASE WHEN relevance < {min_relevance} THEN 'low_relevance' WHEN q.query_id IS NULL
    THEN 'unknown_query'
WHEN d.doc_id IS NULL THEN 'unknown_document' END AS reason
FROM positives p LEFT JOIN queries q ON q.query_id = p.query_id LEFT
    JOIN documents d ON d.doc_id = p.doc_id;
CREATE TEMP TABLE again AS SELECT seq FROM judged JOIN
(SELECT query_id, doc_id, min(seq) AS first FROM judged WHERE reason IS NULL
    GROUP BY query_id, doc_id HAVING count(*) > 1) g
USING (query_id, doc_id) WHERE reason IS NULL AND seq > first;
UPDATE judged SET reason = 'duplicate_positive' WHERE seq IN (FROM again);
INSERT INTO rejects SELECT seq, file, line, 'positives', reason,
    concat_ws(chr(9), query_id, doc_id, relevance)
FROM judged WHERE reason IS NOT NULL;
"""
KEPT = """
CREATE TEMP TABLE answered AS SELECT DISTINCT query_id FROM judged WHERE reason IS NULL;
INSERT INTO rejects SELECT seq, file, line, 'queries', 'query_without_positive',
    concat_ws(chr(9), query_id, left(text, {cut}))
FROM queries WHERE query_id NOT IN (FROM answered);
CREATE TEMP TABLE numbered AS SELECT query_id, row_number() OVER (ORDER BY query_id) - 1 AS number
    FROM answered;
DELETE FROM numbered WHERE number >= {limit};
CREATE TABLE kept_queries AS SELECT number, query_id, text FROM queries
    JOIN numbered USING (query_id);
CREATE TABLE kept_positives AS SELECT number, query_id, doc_id, relevance
FROM judged JOIN numbered USING (query_id) WHERE reason IS NULL;
CREATE TABLE kept_negatives AS SELECT number, query_id, doc_id, score,
    row_number() OVER (PARTITION BY query_id ORDER BY min_seq) AS rank
FROM (SELECT query_id, doc_id, min(seq) AS min_seq, arg_min(score, seq) AS score FROM negatives
    GROUP BY query_id, doc_id) JOIN numbered USING (query_id) SEMI JOIN documents USING (doc_id);
CREATE TABLE kept_labels AS SELECT DISTINCT doc_id, label FROM labels SEMI
    JOIN documents USING (doc_id);
CREATE TABLE kept_images AS SELECT number, id AS query_id, image FROM captions
    JOIN numbered ON id = query_id WHERE image IS NOT NULL;
CREATE TABLE places AS SELECT seq, row_number() OVER (ORDER BY doc_id) - 1 AS row FROM documents
    ORDER BY seq;
"""


@contextmanager
def open_database(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a new database in a folder, made afresh; what does not fit into its memory goes to disk
    beside it.

    Raises:
        OSError: the disk is full.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    connection = duckdb.connect(str(folder / DATABASE))
    try:
        connection.execute(
            f"SET memory_limit = '{MEMORY}'; SET threads = {THREADS}; SET preserve_insertion_order"
            " = false"
        )
        # what is here is read once or twice
        connection.execute("SET force_compression = 'uncompressed'")
        yield connection
    except duckdb.Error as error:
        if not any(sign in str(error) for sign in DISK_FULL):
            raise
        raise OSError(errno.ENOSPC, one_line(error)) from error
    finally:
        connection.close()


def create(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    schema: pa.Schema,
    query: str = "FROM incoming",
) -> None:
    """Create an empty table for what `query` makes of rows of a schema."""
    connection.register("incoming", schema.empty_table())
    connection.execute(f"CREATE TABLE {table} AS {query}")
    connection.unregister("incoming")


def insert(
    connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, query: str = "FROM incoming"
) -> None:
    """Append what `query` makes of rows. Each call is a transaction of its own: within a longer
    one DuckDB would hold on to the rows.
    """
    connection.register("incoming", rows)
    connection.execute(f"INSERT INTO {table} {query}")
    connection.unregister("incoming")


@contextmanager
def open_staging(folder: Path) -> Iterator["Staging"]:
    """Open an empty staging in a folder that lives as long as the `with` block."""
    try:
        with (
            open_database(folder) as connection,
            pa.ipc.new_stream(str(folder / TEXTS), ARRIVED) as writer,
        ):
            for name, schema in SCHEMAS.items():
                create(connection, name, schema, INCOMING[name])
            yield Staging(folder, connection, writer)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Staging:
    """The staged rows of one ingest."""

    def __init__(
        self,
        folder: Path,
        connection: duckdb.DuckDBPyConnection,
        writer: pa.ipc.RecordBatchStreamWriter,
    ):
        self.folder, self.connection, self.writer, self.seq = folder, connection, writer, 0

    def add(self, rows: Iterable[Row], advance: Advance = lambda *_: None) -> None:
        """Stage rows; the memory they take is bounded by rows and by characters. `advance` is told
        how many of both were read.
        """
        held: dict[str, list[tuple]] = {name: [] for name in STAGED}
        count = characters = 0
        for row in rows:
            held[row.table].append((self.seq, row.file, row.line, *row.values))
            self.seq += 1
            count += 1
            characters += len(row.values[-1]) if isinstance(row.values[-1], str) else 0
            if count >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                self._flush(held)
                advance(count, characters)
                count = characters = 0
        self._flush(held)
        advance(count, characters)

    def _flush(self, held: dict[str, list[tuple]]) -> None:
        for name, rows in held.items():
            if not rows:
                continue
            schema = SCHEMAS[name]
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            table = pa.Table.from_arrays(columns, schema=schema)
            insert(self.connection, name, table, INCOMING[name])
            if name == "documents":
                self.writer.write_table(table.select(ARRIVED.names))
            rows.clear()

    def validate(self, min_relevance: int, limit: int | None) -> dict[str, int]:
        """Make kept_queries (numbered in order of query_id), kept_positives, kept_images,
        kept_labels, and places (seq ->
        row of a document).

        Returns:
            reason -> rows left out. Queries over the limit are counted as over_limit; they are no
            rejects.
        """
        run = self.connection.execute
        run("CREATE TABLE members AS SELECT * FROM captions WHERE grouping IS NOT NULL")
        for table, column, same, shown in UNIQUE:
            run(REPEATED.format(table=table, id=column, same=same, shown=shown, cut=LONGEST_RAW))
        if self.count("captions"):
            run(CAPTIONS)
            self.add(self._captions())
        if self.count("documents WHERE origin = 'paired'"):
            run(ALIASES)
        for of, column in (("queries", "query_id"), ("documents", "doc_id")):
            run(FLOATS.format(table="positives", of=of, id=column))
        run(JUDGED.format(min_relevance=int(min_relevance)))
        run(KEPT.format(limit=limit or "(SELECT count(*) FROM queries)", cut=LONGEST_RAW))
        self.writer.close()
        reasons = run("SELECT reason, count(*) FROM rejects GROUP BY reason").fetchall()
        over = self.count("answered") - self.count("kept_queries")
        return dict(sorted([*reasons, *([("over_limit", over)] if over else [])]))

    def _captions(self) -> Iterator[Row]:
        """Yield each caption as a document."""
        other = self.connection.cursor()
        for batch in other.sql(
            "SELECT file, line, id, '', origin, text FROM captions ORDER BY seq"
        ).to_arrow_reader(4096):
            for file, line, *values in zip(
                *(column.to_pylist() for column in batch.columns), strict=True
            ):
                yield Row("documents", file, line, tuple(values))

    def documents(self, size: int, shards: int) -> Iterator[pa.Table]:
        """Yield the documents in order of doc_id, cut into shards."""

        def places(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
            found = self.connection.sql(
                f"SELECT seq, row FROM places WHERE seq BETWEEN {first} AND {last} ORDER BY seq"
            ).fetchnumpy()
            return found["seq"], found["row"]

        return shards_in_order(self.folder / TEXTS, places, size, shards)

    def count(self, rows: str) -> int:
        """Count the rows of a table, or of a table and a condition."""
        return self.connection.sql(f"SELECT count(*) FROM {rows}").fetchall()[0][0]

    def stream(self, query: str) -> Iterator[pa.RecordBatch]:
        """Yield the result of a query in batches, in its order, without holding it whole. No
        other query may run meanwhile.
        """
        return self.connection.sql(query).to_arrow_reader(4096)
