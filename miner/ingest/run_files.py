"""What another retriever found -> hits: lines of six fields, as TREC has them, or a table whose
columns have names, of any kind that `miner.ingest.readers` reads.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from miner.errors import UserError
from miner.ingest.inputs import ALL, Bad, Input, find_input, lines
from miner.ingest.readers import records
from miner.ingest.rows import LONGEST_ID, Hit, Reject, RunFile, identifier, is_null
from miner.options import NAME

TABULAR = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv")
RUN_QUERY_IDS = ("query_id", "query-id", "qid")
RUN_DOCUMENT_IDS = ("doc_id", "docid", "docno", "corpus-id", "corpus_id", "pid")
SCORE, RANK, HITS = "score", "rank", "hits"
READ = (*RUN_QUERY_IDS, *RUN_DOCUMENT_IDS, SCORE, RANK, HITS)
SHOWN = 10  # columns that a refusal names
PACKED_OR_KIND = r"(\.(gz|zst|bz2|zip|trec|txt|run|parquet|arrow|jsonl|ndjson|json|csv|tsv))+$"


def find_runs(given: Sequence[str]) -> list[RunFile]:
    """Return the run files that FILE or NAME=FILE name.

    Raises:
        UserError: a file is missing, a name is no folder's name, or two sources would have the same
            one.
    """
    runs: list[RunFile] = []
    for entry in given:
        name, equals, path = entry.partition("=")
        if not equals or Path(entry).exists() or not re.match(NAME, name):
            name, path = re.sub(PACKED_OR_KIND, "", Path(entry).name), entry
        if not re.match(NAME, name):
            raise UserError(
                f'{entry}: "{name}" cannot name a source; give it another name with NAME={path}'
            )
        if name in (run.name for run in runs):
            raise UserError(
                f'{entry}: there are two run files with the name "{name}"; give one another name'
                f" with NAME={path}"
            )
        file = find_input(path)
        form = "table" if is_tabular(file.parts()[0]) else "trec"
        runs.append(RunFile(name, path, file, form, partial(read_hits, file)))
    return runs


def read_hits(file: Input) -> Iterator[Hit | Reject]:
    """Yield the hits of a run, and what is wrong with each line that is none.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    for part in file.parts():
        yield from _tabular_hits(part) if is_tabular(part) else _six_fields(part)


def is_tabular(file: Input) -> bool:
    """Say whether a run has named columns. A .tsv has them unless it begins as TREC's runs do."""
    if not isinstance(file.where, Path) or file.kind in TABULAR:
        return True
    if file.kind != ".tsv":
        return False
    first = next((line for _, line in lines(file) if line), "")
    return isinstance(_tried(first), Reject)


def _six_fields(file: Input) -> Iterator[Hit | Reject]:
    return (_tried(line) for _, line in lines(file) if line)


def _tried(line: str | Bad) -> Hit | Reject:
    try:
        return _parse_line(line)
    except Reject as reject:
        return reject


def _parse_line(line: str | Bad) -> Hit:
    if isinstance(line, Bad):
        raise Reject(line.reason)
    # fields that are parted by tabs may hold spaces
    cells = line.split("\t") if line.count("\t") == 5 else line.split()
    if len(cells) != 6:
        raise Reject("bad_columns")
    if len(cells[2]) > LONGEST_ID:
        raise Reject("bad_id")
    return _numbered(cells[0], cells[2], cells[3], cells[4])


def _numbered(query_id: str, doc_id: str, rank: Any, score: Any) -> Hit:
    """Return a hit; a rank may be written 1.0, as tables do where one is missing."""
    try:
        place, value = None if rank is None else float(rank), float(score)
    except (TypeError, ValueError):
        raise Reject("bad_number") from None
    if not math.isfinite(value):
        raise Reject("bad_number")
    if place is not None and not (place.is_integer() and abs(place) < 2**31):
        raise Reject("bad_number")
    return Hit(query_id, doc_id, None if place is None else int(place), value)


def _tabular_hits(file: Input) -> Iterator[Hit | Reject]:
    # an id with quotation marks in a .tsv is one, as in qrels
    file = file._replace(quoting="raw")
    first = next((row for row in _unnested(file, ALL) if isinstance(row, dict)), None)
    query, document, ranked = "", "", False
    if first is not None:
        query = _column(file, first, RUN_QUERY_IDS, "the query's id")
        document = _column(file, first, RUN_DOCUMENT_IDS, "the document's id")
        _column(file, first, (SCORE,), "the score")
        ranked = RANK in first
    for row in _unnested(file, READ):
        try:
            if isinstance(row, Bad):
                raise Reject(row.reason)
            for name in (SCORE, RANK)[: 1 + ranked]:
                if is_null(row.get(name)):
                    raise Reject(f"missing_{name}")
            ids = identifier(row, query), identifier(row, document)
            yield _numbered(*ids, row[RANK] if ranked else None, row[SCORE])
        except Reject as reject:
            yield reject


def _column(file: Input, found: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    """Return the first of the names that a table has.

    Raises:
        UserError: it has none of them.
    """
    for name in names:
        if name in found:
            return name
    shown = [*found][:SHOWN] + ["…"] * (len(found) > SHOWN)
    raise UserError(
        f"{file.name}: missing {what} (found {', '.join(shown) or 'nothing'}; expected a column"
        f" {' or '.join(names)})"
    )


def _unnested(file: Input, columns: Any) -> Iterator[dict[str, Any] | Bad]:
    """Yield the rows of a table; a row with a list of hits is as many rows."""
    for _, row in records(file, {}, columns):
        if isinstance(row, Bad) or not isinstance(row.get(HITS), list):
            yield row
            continue
        shared = {name: value for name, value in row.items() if name != HITS}
        for hit in row[HITS]:
            yield {**shared, **hit} if isinstance(hit, dict) else Bad("bad_columns", str(hit))
