"""One shard of a set -> the rows that a trainer reads, with their texts.

Rows stand in order of query_id, the positive's doc_id, and the rank in the set. Columns:

    triplet        anchor, positive, negative; a row for every positive and negative of a query
    n-tuple        anchor, positive, negative_1 … negative_n; a row for every positive, the n
                   best-ranked negatives
    labeled-pair   anchor, text, label; every positive (1) and every negative (0) once
    labeled-list   anchor, texts, labels; a row for every query, positives first
    scored-list    anchor, texts, scores; the same with the judge's scores instead of labels
    open-clip      filepath, title, neg_caption, neg_image; one train.tsv with a row for every
                   caption that has an image and negatives, and the same in Parquet, by shard, with
                   ids instead of row numbers

With `promoted`, what the recipe promoted counts as a positive. With `concreteness`, each negative
has its rating and margin: lists beside `labels`, beside `neg_caption`, and in n-tuple in the order
of the negatives; null for a positive, and the rating also for a negative that is no made document.
sentence-transformers reads both as texts: take one as the label, or drop them.
"""

import json
from collections.abc import Iterable
from posixpath import join

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import Documents, made_documents
from miner.errors import UserError
from miner.stages import Shard
from miner.store import Run
from scoring.cement import cement_margins
from scoring.export_options import Export
from scoring.open_clip import RATED

SLICE = 512  # rows whose texts are fetched at once: an Arrow array of strings holds at most 2 GiB
PAIRS = """
    SELECT query_id, doc_id, 1::BIGINT AS label, 0 AS rank, score FROM positives
    UNION ALL SELECT query_id, doc_id, 0::BIGINT AS label, rank, score FROM negatives
"""
LISTED = "ORDER BY label DESC, rank, doc_id"
HAS_BOTH = "GROUP BY query_id HAVING max(label) = 1 AND min(label) = 0 ORDER BY query_id"
ROWS: dict[str, str] = {
    "triplet": """
        SELECT query_id, p.doc_id AS positive_id, n.doc_id AS negative_id
        FROM positives p JOIN negatives n USING (query_id)
            ORDER BY query_id, positive_id, n.rank, negative_id
    """,
    "n-tuple": """
        SELECT query_id, p.doc_id AS positive_id, list(n.doc_id
            ORDER BY n.rank, n.doc_id)[:$negatives] AS negative_ids
        FROM positives p JOIN negatives n USING (query_id)
        GROUP BY query_id, positive_id HAVING count(*) >= $negatives ORDER BY query_id, positive_id
    """,
    "labeled-pair": (
        f"SELECT query_id, doc_id, label FROM ({PAIRS}) ORDER BY query_id, label DESC, rank, doc_id"
    ),
    "labeled-list": f"""
        SELECT query_id, list(doc_id {LISTED}) AS doc_ids, list(label {LISTED}) AS labels
            FROM ({PAIRS}) {HAS_BOTH}
    """,
    "scored-list": f"""
        SELECT query_id, list(doc_id {LISTED}) AS doc_ids, list(score::DOUBLE {LISTED}) AS scores
        FROM ({PAIRS}) WHERE score IS NOT NULL {HAS_BOTH}
    """,
    "open-clip": """
        SELECT query_id, image AS filepath, list(n.doc_id ORDER BY n.rank, n.doc_id) AS negative_ids
        FROM images JOIN negatives n USING (query_id) GROUP BY query_id, image ORDER BY query_id
    """,
}
# What a format leaves out. Units: positives in triplet and n-tuple, queries in the lists and
# open-clip; no_score counts documents.
DROPS: dict[str, str] = {
    "triplet": (
        "SELECT 'no_negatives', count(*) FROM positives WHERE query_id NOT IN (SELECT query_id FROM"
        " negatives)"
    ),
    "n-tuple": """
        SELECT 'too_few_negatives', count(*) FROM positives
        WHERE query_id NOT IN (SELECT query_id FROM negatives GROUP BY query_id
            HAVING count(*) >= $negatives)
    """,
    "labeled-pair": "SELECT 'nothing', 0",
    "labeled-list": (
        "SELECT 'no_negatives', count(DISTINCT query_id) FROM positives WHERE query_id NOT IN"
        " (SELECT query_id FROM negatives)"
    ),
    "scored-list": f"""
        WITH scored AS (SELECT query_id FROM ({PAIRS}) WHERE score IS NOT NULL {HAS_BOTH})
        SELECT 'no_score', count(*) FROM ({PAIRS}) WHERE score IS NULL
        UNION ALL SELECT 'no_negatives', count(DISTINCT query_id) FROM positives
            WHERE query_id NOT IN (FROM scored)
    """,
    "open-clip": """
        SELECT 'no_image', count(*) FROM queries WHERE query_id NOT IN (SELECT query_id FROM images)
        UNION ALL SELECT 'no_negatives', count(*) FROM images WHERE query_id NOT IN (SELECT query_id
            FROM negatives)
    """,
}


def ratings(run: Run, key: str) -> pa.Table:
    """Return doc_id and concreteness of a shard's made documents: the rating of the word that
    was changed; those without are left out.
    """
    documents = made_documents(run, key)
    table = pa.table(
        {
            "doc_id": documents["doc_id"],
            "concreteness": pc.struct_field(documents["detail"], "old_rating"),
        }
    )
    return table.filter(table["concreteness"].is_valid())


def export_shard(run: Run, options: Export, negatives: int, judge: str | None, key: str) -> Shard:
    """Return the rows of one shard, in the shape of the format."""
    with duckdb.connect(config={"threads": 1}) as database:
        register_shard(database, run, options, judge, key)
        if options.format == "open-clip":
            database.register("queries", run.read(run.QUERIES, key))
            database.register("images", _images(run, options, key))
        counted = {"negatives": negatives} if options.format == "n-tuple" else {}
        rows = database.sql(ROWS[options.format], params=counted).to_arrow_table()
        drops = {
            reason: count
            for reason, count in database.sql(DROPS[options.format], params=counted).fetchall()
            if count
        }
    if options.concreteness:
        rows = _with_margins(rows, ratings(run, key), options)
    table = _with_texts(run, key, rows, negatives)
    if not options.ids and options.format != "open-clip":
        table = table.drop_columns(_ids(rows))
    return Shard({key: table if options.kind == "parquet" else json_lines_of(table)}, drops)


def register_shard(
    database: duckdb.DuckDBPyConnection, run: Run, options: Export, judge: str | None, key: str
) -> None:
    """Let a database see the `negatives` and the `positives` of a shard."""
    columns = ["query_id", "doc_id", "rank", "score"]
    database.register("negatives", run.read(f"{run.SETS}/{options.name}", key).select(columns))
    database.register("positives", _shard_positives(run, options, judge, key))


def _shard_positives(run: Run, options: Export, judge: str | None, key: str) -> pa.Table:
    """Return query_id, doc_id and score of a shard's positives, and promoted documents if they
    count as such.

    The score is null where no judge is asked for, or it did not say.
    """
    folders = [
        run.POSITIVES,
        *([f"{run.SETS}/{options.name}/_promoted"] if options.promoted else []),
    ]
    positives = pa.concat_tables(
        run.read(folder, key).select(["query_id", "doc_id"]) for folder in folders
    )
    if judge is None:
        return positives.append_column("score", pa.nulls(len(positives), pa.float32()))
    judged = run.read(run.judge_folder(judge), key)
    judged = judged.filter(pc.equal(judged["judge"], judge)).select(["query_id", "doc_id", "score"])
    return positives.join(judged, ["query_id", "doc_id"])


def _images(run: Run, options: Export, key: str) -> pa.Table:
    images = run.read(run.IMAGES, key)
    if options.image_folder is None:
        return images
    paths = [join(str(options.image_folder), path) for path in images["image"].to_pylist()]
    return images.set_column(1, "image", pa.array(paths, pa.string()))


def _with_margins(rows: pa.Table, rated: pa.Table, options: Export) -> pa.Table:
    """Add concreteness and margin of each negative, in the shape of its ids; positives have
    neither.
    """
    name = next(
        name
        for name in ("negative_id", "negative_ids", "doc_id", "doc_ids")
        if name in rows.column_names
    )
    ids = _one_array(rows[name])
    found = _one_array(rated["concreteness"]).take(
        pc.index_in(_flat(ids), _one_array(rated["doc_id"]))
    )
    # Ratings are kept in 32 bits: without rounding 4.87 would become 4.869999885559082.
    values = np.round(found.cast(pa.float64()).to_numpy(zero_copy_only=False), 4)
    columns = dict(
        zip(
            RATED,
            (values, cement_margins(values, options.margin_base, options.margin_slope)),
            strict=True,
        )
    )
    label = next((label for label in ("label", "labels") if label in rows.column_names), None)
    positive = (
        np.zeros(len(values), bool)
        if label is None
        else _flat(_one_array(rows[label])).to_numpy() == 1
    )
    for name, numbers in columns.items():
        column = pa.array(np.where(positive, np.nan, numbers), from_pandas=True)  # nan becomes null
        rows = rows.append_column(
            name,
            (
                pa.ListArray.from_arrays(_offsets(ids), column)
                if pa.types.is_list(ids.type)
                else column
            ),
        )
    return rows


def _flat(column: pa.Array) -> pa.Array:
    return column.flatten() if pa.types.is_list(column.type) else column


def _with_texts(run: Run, key: str, rows: pa.Table, negatives: int) -> pa.Table:
    """Put the texts that ids stand for before the ids; each document is read once.

    Raises:
        UserError: a document is not in the corpus.
    """
    names = [
        name
        for name in ("positive_id", "negative_id", "negative_ids", "doc_id", "doc_ids")
        if name in rows.column_names
    ]
    columns = [
        rows[name] if name.endswith("_id") else pc.list_flatten(rows[name]) for name in names
    ]
    ids = pc.unique(
        pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    )
    corpus, queries = Documents(run, key), run.read(run.QUERIES, key)
    places = corpus.rows(ids.to_pylist())
    if (places < 0).any():
        raise UserError(
            f"document {ids[int((places < 0).argmax())].as_py()!r} is not in the corpus; make the"
            " set anew from these tables"
        )
    documents = Texts(ids, pa.array(corpus.texts(places), pa.large_string()))
    anchors = Texts(queries["query_id"], queries["text"])
    slices = [
        rows.slice(start, SLICE).combine_chunks() for start in range(0, max(len(rows), 1), SLICE)
    ]
    return pa.concat_tables(_fill(part, anchors, documents, negatives) for part in slices)


class Texts:
    """Texts by id."""

    def __init__(self, ids: pa.Array | pa.ChunkedArray, texts: pa.Array | pa.ChunkedArray):
        self.ids, self.texts = ids, texts

    def of(self, ids: pa.Array) -> pa.Array:
        """Return the text of each id, or a list of texts for each list of ids."""
        if pa.types.is_list(ids.type):
            return pa.ListArray.from_arrays(_offsets(ids), self.of(ids.flatten()))
        return self.texts.take(pc.index_in(ids, self.ids)).cast(pa.string())


def _offsets(lists: pa.ListArray) -> pa.Array:
    return pa.array([0, *pc.cumulative_sum(pc.list_value_length(lists)).to_pylist()], pa.int32())


def _fill(rows: pa.Table, anchors: Texts, documents: Texts, negatives: int) -> pa.Table:
    queries, rest = (
        anchors.of(_one_array(rows["query_id"])),
        ("label", "labels", "scores", *RATED, *_ids(rows)),
    )
    images = "filepath" in rows.column_names
    columns = {"filepath": rows["filepath"], "title": queries} if images else {"anchor": queries}
    for name, text in {
        "positive_id": "positive",
        "negative_id": "negative",
        "doc_id": "text",
        "doc_ids": "texts",
    }.items():
        if name in rows.column_names:
            columns[text] = documents.of(_one_array(rows[name]))
    if images:
        columns["neg_caption"] = documents.of(_one_array(rows["negative_ids"]))
    elif "negative_ids" in rows.column_names:
        for place in range(negatives):
            columns[f"negative_{place + 1}"] = documents.of(
                pc.list_element(_one_array(rows["negative_ids"]), place)
            )
    return pa.table(columns | {name: rows[name] for name in rest if name in rows.column_names})


def _ids(rows: pa.Table) -> list[str]:
    return [name for name in rows.column_names if name.endswith(("_id", "_ids"))]


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    chunks: Iterable[pa.Array] = column.chunks
    return pa.concat_arrays([*chunks, pa.array([], column.type)])


def json_lines_of(table: pa.Table) -> str:
    """Return a table as JSON lines."""
    # Three characters end a line for some readers and stand unescaped in JSON.
    escapes = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
    return "".join(
        json.dumps(row, ensure_ascii=False).translate(escapes) + "\n"
        for batch in table.to_batches()
        for row in batch.to_pylist()
    )
