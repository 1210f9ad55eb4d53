"""Another text for each document, to be indexed in place of its own: from a file of the user's,
such as descriptions that a language model wrote (SRA-CL) or one facet of each document, or the
document as code whose names are masked by what they are (CoCoSoDa).
"""

import shutil
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from miner.corpus import Corpus, texts_of
from miner.errors import UserError
from miner.files import atomic
from miner.ingest.inputs import Bad, find_input
from miner.ingest.readers import records
from miner.ingest.rows import Reject, first_of, identifier, text_of
from miner.store import Run
from miner.tables import TEXT

FILE, CODE = "_view/texts.parquet", "code:"
ID_NAMES = ("doc_id", "_id", "id")
AT_A_TIME = 4096
SCHEMA = pa.schema([("doc_id", TEXT), ("text", pa.large_string())])
# by range of ids, so that row groups of other shards are passed over; the last of two texts wins
SHARD = """
    SELECT doc_id, last(text) AS text FROM read_parquet($file)
    WHERE doc_id >= $first AND doc_id <= $last GROUP BY doc_id
"""


def view_input(view: str | None) -> dict[str, str]:
    """Return the fingerprint of the file of a view, if it has one.

    Raises:
        UserError: there is no such file, or no lexer of this language.
    """
    if view is None:
        return {}
    if view.startswith(CODE):
        masked("", view.removeprefix(CODE))
        return {}
    return {"view": find_input(view).fingerprint()}


def write_view(view: str | None, folder: Path) -> None:
    """Write the file of a view into an index's folder, in order of doc_id.

    Raises:
        UserError: it cannot be read, lacks a column, or has no row with an id and a text.
    """
    if view is None or view.startswith(CODE) or (folder / FILE).exists():
        return
    try:
        _write(view, folder)
    except UserError:  # what is left would stand in the way of another file
        shutil.rmtree(folder)
        raise


def _write(view: str, folder: Path) -> None:
    with atomic(folder / FILE) as target, duckdb.connect() as database:
        database.execute("SET memory_limit = '1GB'")
        database.register("none", SCHEMA.empty_table())
        database.execute("CREATE TABLE texts AS FROM none")
        told = _told(view)
        while rows := list(islice(told, AT_A_TIME)):
            database.register("rows", pa.Table.from_pylist(rows, SCHEMA))
            database.execute("INSERT INTO texts FROM rows")
        count = database.sql("SELECT count(*) FROM texts").fetchall()[0][0]
        if not count:
            raise UserError(
                f"{view}: no row has an id and a text; expected columns {ID_NAMES[0]} and text"
            )
        ordered = database.sql("FROM texts ORDER BY doc_id").to_arrow_reader(AT_A_TIME)
        with pq.ParquetWriter(target, SCHEMA, compression="zstd") as writer:
            for batch in ordered:
                writer.write_batch(batch.cast(SCHEMA))


def shard_texts(run: Run, view: str | None, folder: Path, key: str) -> list[str]:
    """Return what the documents of a shard are indexed by; a document that a view's file lacks has
    no text.
    """
    documents = Corpus(run).shard(key)
    if view is None:
        return texts_of(documents)
    if view.startswith(CODE):
        return [masked(text, view.removeprefix(CODE)) for text in texts_of(documents)]
    ids = documents["doc_id"].to_pylist()
    asked = {"file": str(folder / FILE), "first": ids[0], "last": ids[-1]}
    with duckdb.connect(config={"threads": 1}) as database:
        found = dict(database.sql(SHARD, params=asked).fetchall())
    return [found.get(doc_id, "") for doc_id in ids]


def masked(text: str, language: str) -> str:
    """Return code with each name masked by what the lexer of the language takes it for, and
    without comments (after CoCoSoDa, Shi et al. 2023, which masks identifiers by their type;
    **reconstructed**).

    Raises:
        UserError: there is no lexer of this language.

    >>> masked("def area(r): return PI * r", "python")
    'def name_function(name): return name * name'
    """
    from pygments.token import Comment, Literal, Name

    kept = []
    for kind, part in _lexer(language).get_tokens(text):
        if kind in Name and kind not in Name.Builtin.Pseudo:
            kept.append("_".join(str(one).lower() for one in kind[:]))
        elif kind not in Comment and kind not in Literal.String.Doc:
            kept.append(part)
    return "".join(kept).strip()


@cache
def _lexer(language: str) -> Any:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language)
    except ClassNotFound:
        raise UserError(
            f"{CODE}{language}: no such language; expected one that Pygments knows, such as"
            " code:python, code:java, code:go"
        ) from None


def _told(view: str) -> Iterator[dict[str, str]]:
    """Yield id and text of the rows of a view's file that have both."""
    for part in find_input(view).parts():
        for _, record in records(part, {"text": ""}, ID_NAMES):
            if isinstance(record, Bad):
                continue
            try:
                doc_id = identifier(record, first_of(record, ID_NAMES))
                yield {"doc_id": doc_id, "text": text_of(record, "text")}
            except Reject:
                continue
