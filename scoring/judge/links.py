"""links, labels -> what links a candidate to a positive: a link, a document that links to both, a
class label of both.

The files may be large, so they are read once: what they say of the corpus becomes one list of
numbers for each document, memory-mapped in the judge's folder. Whether two documents are linked is
then looked up in their two lists, each number of the shorter in the longer; no pair of documents is
ever written down, however many a hub links to.

    linked       the documents that link to a document
    co_cited     the same, and sources that are not in the corpus, without those that link to no
                 other document: what two lists share
    same_label   the labels of a document
"""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numba
import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.errors import UserError
from miner.files import write_array, write_json
from miner.ingest.inputs import one_line
from miner.store import Run

FOLDER, FACTS = "_links", "facts.json"  # below the judge's folder; the facts are written last
LABELS = Run.LABELS  # what ingest kept of a label column: doc_id, label
CHUNK = 1 << 20  # doc_ids of the corpus that are in memory at a time
# a line of text is data, the first one too: a header is a pair of ids that the corpus does not have
READERS = {
    ".csv": (
        "read_csv(?, delim = ',', quote = '\"', escape = '\"', header = false, all_varchar = true,"
        " skip = 0, comment = '')"
    ),
    ".tsv": (
        "read_csv(?, delim = '\t', quote = '', escape = '', header = false, all_varchar = true,"
        " skip = 0, comment = '')"
    ),
    ".jsonl": "read_json(?, maximum_depth = 1, format = 'newline_delimited')",
    ".parquet": "read_parquet(?, hive_partitioning = false)",
}


class Links(NamedTuple):
    """What links documents, for one reason: document number i has entries[starts[i] : starts[i +
    1]], sorted.

    Attributes:
        reason: why a linked candidate is dropped.
        starts: (documents + 1,) int64.
        entries: int64: rows of documents if the reason is "linked", else any numbers.
    """

    reason: str
    starts: np.ndarray
    entries: np.ndarray


def write_links(
    run: Run, links: Path | None, labels: Path | None, hub: int | None, folder: Path
) -> None:
    """Read the files of links and labels, and the labels that ingest kept, into `folder`, with
    counts for the manifest (`read_facts`).

    Args:
        run: has the tables.
        links: file whose first two columns are a document and one that it links to.
        labels: file whose first two columns are a document and its class.
        hub: a document that links to more does not link those to each other.
        folder: of the judge.

    Raises:
        UserError: a file cannot be read, or says nothing of any document of the corpus.
    """
    corpus, facts = Corpus(run), dict[str, Any]()
    ingested = (run.path / LABELS).is_dir()
    if links or labels or ingested:
        with duckdb.connect(
            config={"memory_limit": "1GB", "temp_directory": str(folder / FOLDER / "_spill")}
        ) as db:
            if links:
                facts |= _store_links(db, corpus, links, hub, folder)
            if labels or ingested:
                facts |= _store_labels(db, corpus, labels, folder, ingested)
    write_json(folder / FOLDER / FACTS, facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the counts that `write_links` returned."""
    return json.loads((folder / FOLDER / FACTS).read_bytes())


def open_links(folder: Path) -> Iterator[Links]:
    """Yield the links that there are, in order of precedence."""
    for reason in ("linked", "co_cited", "same_label"):
        starts, entries = (
            folder / FOLDER / f"{reason}_{part}.npy" for part in ("starts", "entries")
        )
        if entries.exists():
            yield Links(reason, np.load(starts, mmap_mode="r"), np.load(entries, mmap_mode="r"))


def linked(
    links: Links, pairs: tuple[np.ndarray, np.ndarray], positives: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return for each (query, row) whether its document is linked to a positive of its query, (p,)
    bool.

    Args:
        links: by what.
        pairs: numbers of queries and rows of documents, (p,) each.
        positives: the same of all positives, in order of query.
    """
    first, last = (np.searchsorted(positives[0], pairs[0], side=side) for side in ("left", "right"))
    return _linked(
        links.starts, links.entries, links.reason == "linked", pairs[1], first, last, positives[1]
    )


@numba.njit(cache=True, nogil=True)
def _linked(starts, entries, linked, rows, first, last, positive_rows):  # type: ignore[no-untyped-def] # compiled
    found = np.zeros(len(rows), np.bool_)
    for pair in range(len(rows)):
        row = rows[pair]
        mine = entries[starts[row] : starts[row + 1]]
        for positive in positive_rows[first[pair] : last[pair]]:
            theirs = entries[starts[positive] : starts[positive + 1]]
            if linked:
                found[pair] = _has(mine, positive) or _has(theirs, row)
            else:
                found[pair] = (
                    _meet(mine, theirs) if len(mine) < len(theirs) else _meet(theirs, mine)
                )
            if found[pair]:
                break
    return found


@numba.njit(cache=True, nogil=True)
def _has(entries, entry):  # type: ignore[no-untyped-def] # compiled
    place = np.searchsorted(entries, entry)
    return place < len(entries) and entries[place] == entry


@numba.njit(cache=True, nogil=True)
def _meet(few, many):  # type: ignore[no-untyped-def] # compiled
    if len(many):
        for entry in few:
            if _has(many, entry):
                return True
    return False


def _store_links(
    db: duckdb.DuckDBPyConnection, corpus: Corpus, file: Path, hub: int | None, folder: Path
) -> dict[str, Any]:
    pairs = _load_pairs(db, "links", file)
    _number_ids(db, corpus, "SELECT one AS id FROM links UNION SELECT two FROM links")
    db.execute(
        "CREATE TABLE arcs AS SELECT s.number AS source, s.row AS source_row, t.row AS target "
        "FROM links JOIN ids s ON one = s.id JOIN ids t ON two = t.id WHERE t.row IS NOT NULL"
    )
    arcs = _count_rows(db, "arcs")
    if not arcs:
        raise _nothing_known(db, corpus, file, "links", "second", pairs)
    _write_lists(
        db,
        "SELECT target AS row, source_row AS entry FROM arcs WHERE source_row IS NOT NULL",
        corpus,
        folder,
        "linked",
    )
    most = f"AND count(*) <= {hub}" if hub else ""
    citing = f"(SELECT source FROM arcs GROUP BY source HAVING count(*) > 1 {most})"
    _write_lists(
        db,
        f"SELECT target AS row, source AS entry FROM arcs SEMI JOIN {citing} USING (source)",
        corpus,
        folder,
        "co_cited",
    )
    return {"links": arcs, "links_to_unknown_ids": pairs - arcs}


def _store_labels(
    db: duckdb.DuckDBPyConnection, corpus: Corpus, file: Path | None, folder: Path, ingested: bool
) -> dict[str, Any]:
    pairs = _load_pairs(db, "labels", file) if file else 0
    if file is None:
        db.execute("CREATE TABLE labels (one VARCHAR, two VARCHAR)")
    _number_ids(db, corpus, "SELECT DISTINCT one AS id FROM labels")
    known = _count_rows(db, "labels SEMI JOIN (FROM ids WHERE row IS NOT NULL) ON one = id")
    if file and not known:
        raise _nothing_known(db, corpus, file, "labels", "first", pairs)
    if ingested:
        kept = str(corpus.run.path / LABELS / "*.parquet")
        db.execute(
            "INSERT INTO labels SELECT doc_id, label FROM read_parquet(?, hive_partitioning ="
            " false)",
            [kept],
        )
        _number_ids(db, corpus, "SELECT DISTINCT one AS id FROM labels")
    query = (
        "SELECT row, dense_rank() OVER (ORDER BY two) AS entry FROM labels JOIN ids ON one = id"
        " WHERE row IS NOT NULL"
    )
    _write_lists(db, query, corpus, folder, "same_label")
    return {
        "labels": _count_rows(db, f"(SELECT DISTINCT row, entry FROM ({query}))"),
        "labels_of_unknown_ids": pairs - known,
    }


def _load_pairs(db: duckdb.DuckDBPyConnection, table: str, file: Path) -> int:
    """Load the distinct pairs of a file's first two columns as text, `one` and `two`; return how
    many there are.

    Raises:
        UserError: it is of no known kind, cannot be read, or has fewer than two columns.
    """
    kind = Path(file.name.lower().removesuffix(".gz")).suffix.replace(".ndjson", ".jsonl")
    if kind not in READERS:
        raise UserError(
            f"{file}: unknown kind of file; --{table} expects .csv, .tsv, .jsonl (.gz may follow)"
            " or .parquet"
        )
    path = [glob.escape(str(file))]
    try:
        described = db.execute(f"DESCRIBE FROM {READERS[kind]}", path).fetchall()[:2]
        if len(described) < 2:
            raise UserError(f"{file}: has one column; --{table} expects two")
        one, two = (_as_text(name, of, kind) for name, of, *_ in described)
        db.execute(
            f"CREATE TABLE {table} AS SELECT DISTINCT {one} AS one, {two} AS two FROM"
            f" {READERS[kind]} WHERE one IS NOT NULL AND two IS NOT NULL AND one <> '' AND two"
            " <> ''",
            path,
        )
    except (
        duckdb.InvalidInputException,
        duckdb.IOException,
        duckdb.ConversionException,
        duckdb.InternalException,
    ) as error:
        raise UserError(
            f"{file}: cannot be read as {kind.removeprefix('.')}: {one_line(error)[:200]}"
        ) from error
    return _count_rows(db, table)


def _as_text(name: str, of: str, kind: str) -> str:
    column = '"' + name.replace('"', '""') + '"'
    if kind == ".jsonl":
        return f"({column} ->> '$')"
    return (
        f"CASE WHEN NOT isnan({column}) THEN {column}::VARCHAR END"
        if of in ("FLOAT", "DOUBLE")
        else f"{column}::VARCHAR"
    )


def _number_ids(db: duckdb.DuckDBPyConnection, corpus: Corpus, query: str) -> None:
    """Make `ids`: id, a number, and its row in the corpus or null, of the ids that a query
    gives. The corpus is read some ids at a time.
    """
    db.execute(
        "CREATE OR REPLACE TEMP TABLE named AS SELECT id, row_number() OVER (ORDER BY id) AS"
        f" number FROM ({query})"
    )
    db.execute("CREATE OR REPLACE TEMP TABLE known (id VARCHAR, row BIGINT)")
    for start in range(0, len(corpus), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(corpus)))
        db.register("chunk", pa.table({"id": corpus.doc_ids(rows), "row": rows}))
        db.execute("INSERT INTO known SELECT id, row FROM chunk SEMI JOIN named USING (id)")
        db.unregister("chunk")
    db.execute(
        "CREATE OR REPLACE TABLE ids AS SELECT id, number, row FROM named LEFT JOIN known USING"
        " (id)"
    )


def _nothing_known(
    db: duckdb.DuckDBPyConnection, corpus: Corpus, file: Path, table: str, which: str, pairs: int
) -> UserError:
    example = db.sql(f"FROM {table} ORDER BY one, two LIMIT 1").fetchall()
    found = f"; found such as {' and '.join(map(repr, example[0]))}" if example else ""
    known = corpus.doc_ids(np.array([0]))[0]
    return UserError(
        f"{file}: the {which} column of none of its {pairs:,} pairs is a document of the"
        f" corpus{found}, expected ids such as {str(known)!r}"
    )


def _count_rows(db: duckdb.DuckDBPyConnection, rows: str) -> int:
    return int(db.sql(f"SELECT count(*) FROM {rows}").fetchall()[0][0])


def _write_lists(
    db: duckdb.DuckDBPyConnection, query: str, corpus: Corpus, folder: Path, reason: str
) -> None:
    """Write what a query gives (row, entry) as one sorted list for each row."""
    found = db.sql(
        f"SELECT DISTINCT row::BIGINT AS row, entry::BIGINT AS entry FROM ({query}) ORDER BY row,"
        " entry"
    ).fetchnumpy()
    counts = np.bincount(found["row"].astype(np.int64), minlength=len(corpus))
    write_array(folder / FOLDER / f"{reason}_starts.npy", np.concatenate(([0], np.cumsum(counts))))
    write_array(folder / FOLDER / f"{reason}_entries.npy", found["entry"].astype(np.int64))
