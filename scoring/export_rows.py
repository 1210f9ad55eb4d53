"""One shard of a set -> the rows that a trainer reads, by ids.

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

With `scores`, triplet and n-tuple have a `label`, the judge's scores of the positive and of each
negative, as MarginMSELoss and DistillKLDivLoss take them. With `weights`, each negative has one:
`set`, that of the set's sampler; `softmax`, its share at tau among the query's negatives in the
set; `score`, the judge's own (of an LLM, p(yes)). `fill` makes short rows of n-tuple whole.
"""

from collections.abc import Callable
from posixpath import join
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import made_documents
from miner.seeds import generator
from miner.store import Run
from scoring.cement import cement_margins
from scoring.export_options import Export
from scoring.export_texts import RATED, id_columns, offsets_of, one_array, with_texts

PAIRS = """
    SELECT query_id, doc_id, 1::BIGINT AS label, 0 AS rank, score, 1::DOUBLE AS weight
    FROM positives
    UNION ALL SELECT query_id, doc_id, 0::BIGINT AS label, rank, score, weight FROM negatives
"""
LISTED = "ORDER BY label DESC, rank, doc_id"
BY_RANK = "ORDER BY n.rank, n.doc_id"
HAS_BOTH = "GROUP BY query_id HAVING max(label) = 1 AND min(label) = 0 ORDER BY query_id"
ROWS: dict[str, str] = {
    "triplet": """
        SELECT query_id, p.doc_id AS positive_id, n.doc_id AS negative_id,
            [p.score::DOUBLE, n.score::DOUBLE] AS label, n.weight AS weight
        FROM positives p JOIN negatives n USING (query_id)
            ORDER BY query_id, positive_id, n.rank, negative_id
    """,
    "n-tuple": f"""
        SELECT query_id, p.doc_id AS positive_id,
            list(n.doc_id {BY_RANK})[:$negatives] AS negative_ids,
            list_prepend(any_value(p.score)::DOUBLE, list(n.score::DOUBLE {BY_RANK})[:$negatives])
                AS label,
            list(n.weight {BY_RANK})[:$negatives] AS weights
        FROM positives p JOIN negatives n USING (query_id)
        GROUP BY query_id, positive_id HAVING count(*) >= $least ORDER BY query_id, positive_id
    """,
    "labeled-pair": (
        f"SELECT query_id, doc_id, label, weight FROM ({PAIRS})"
        " ORDER BY query_id, label DESC, rank, doc_id"
    ),
    "labeled-list": f"""
        SELECT query_id, list(doc_id {LISTED}) AS doc_ids, list(label {LISTED}) AS labels,
            list(weight {LISTED}) AS weights
        FROM ({PAIRS}) {HAS_BOTH}
    """,
    "scored-list": f"""
        SELECT query_id, list(doc_id {LISTED}) AS doc_ids, list(score::DOUBLE {LISTED}) AS scores,
            list(weight {LISTED}) AS weights
        FROM ({PAIRS}) {HAS_BOTH}
    """,
    "open-clip": f"""
        SELECT query_id, image AS filepath, list(n.doc_id {BY_RANK}) AS negative_ids
        FROM images JOIN negatives n USING (query_id) GROUP BY query_id, image ORDER BY query_id
    """,
}
_NONE = "WHERE query_id NOT IN (SELECT query_id FROM negatives)"
_NO_QUERY = f"""
    SELECT 'no_negatives', count(DISTINCT query_id) FROM all_positives {_NONE}
        OR query_id NOT IN (SELECT query_id FROM positives)
"""
# What a format leaves out. Units: positives in triplet and n-tuple, queries in the lists and
# open-clip.
DROPS: dict[str, str] = {
    "triplet": f"SELECT 'no_negatives', count(*) FROM positives {_NONE}",
    "n-tuple": """
        SELECT 'too_few_negatives', count(*) FROM positives
        WHERE query_id NOT IN (SELECT query_id FROM negatives GROUP BY query_id
            HAVING count(*) >= $least)
    """,
    "labeled-pair": "SELECT 'nothing', 0",
    "labeled-list": _NO_QUERY,
    "scored-list": _NO_QUERY,
    "open-clip": f"""
        SELECT 'no_image', count(*) FROM queries WHERE query_id NOT IN (SELECT query_id FROM images)
        UNION ALL SELECT 'no_negatives', count(*) FROM images {_NONE}
    """,
}
LISTS = ("label", "weights")  # of n-tuple, beside negative_ids


class Job(NamedTuple):
    """An export under way.

    Attributes:
        run, options: what, and how.
        negatives: a row of n-tuple.
        judge: whose scores are told; then documents without one are left out.
    """

    run: Run
    options: Export
    negatives: int
    judge: str | None


class Maker(NamedTuple):
    """How a format's rows are made.

    Attributes:
        rows: of a shard by ids, in order, and what is left out.
        texts: gives some of them their texts, a row for each.
    """

    rows: Callable[[Job, str], tuple[pa.Table, dict[str, int]]]
    texts: Callable[[Job, str, pa.Table], pa.Table]


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


def flat_rows(job: Job, key: str) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows of one shard by ids, in the shape of the format, and what is left out."""
    options, run = job.options, job.run
    counted = {}
    if options.format == "n-tuple":
        least = job.negatives if options.fill == "drop" else 1
        counted = {"negatives": job.negatives, "least": least}
    with duckdb.connect(config={"threads": 1}) as database:
        drops = register_shard(database, job, key)
        if options.format == "open-clip":
            database.register("queries", run.read(run.QUERIES, key))
            database.register("images", _images(run, options, key))
        rows = database.sql(ROWS[options.format], params=counted).to_arrow_table()
        asked = {name: number for name, number in counted.items() if name == "least"}
        drops |= dict(database.sql(DROPS[options.format], params=asked).fetchall())
    if options.format == "n-tuple" and options.fill != "drop":
        rows = _filled_up(rows, options, job.negatives)
    if options.concreteness:
        rows = _with_margins(rows, ratings(run, key), options)
    unasked = [] if options.weights else ["weight", "weights"]
    unasked += ["label"] if options.format in ("triplet", "n-tuple") and not options.scores else []
    rows = rows.drop_columns([name for name in unasked if name in rows.column_names])
    return rows, {reason: count for reason, count in drops.items() if count}


def flat_texts(job: Job, key: str, rows: pa.Table) -> pa.Table:
    """Return rows of a shard with their texts."""
    table = with_texts(job.run, key, rows, job.negatives)
    if job.options.ids or job.options.format == "open-clip":
        return table
    return table.drop_columns(id_columns(rows))


def register_shard(database: duckdb.DuckDBPyConnection, job: Job, key: str) -> dict[str, int]:
    """Let a database see the `negatives` and the `positives` of a shard, and `all_positives`,
    those without a score as well; return how many documents are left out because the judge did not
    score them.
    """
    columns = ["query_id", "doc_id", "rank", "score", "weight"]
    negatives = job.run.read(f"{job.run.SETS}/{job.options.name}", key).select(columns)
    tables = {"negatives": negatives, "positives": _shard_positives(job, key)}
    database.register("all_positives", tables["positives"])
    without = 0
    if job.judge is not None:
        scored = {name: table.filter(table["score"].is_valid()) for name, table in tables.items()}
        without = sum(map(len, tables.values())) - sum(map(len, scored.values()))
        tables = scored
    if job.options.weights in ("softmax", "score"):
        place = columns.index("weight")
        weight = _weights_of(tables["negatives"], job.options)
        tables["negatives"] = tables["negatives"].set_column(place, "weight", weight)
    for name, table in tables.items():
        database.register(name, table)
    return {"no_score": without}


def _weights_of(negatives: pa.Table, options: Export) -> pa.Array:
    """Return the weight of each negative by its score."""
    score = negatives["score"].to_numpy().astype(np.float64)
    if options.weights == "score":
        return pa.array(score)
    ids = one_array(negatives["query_id"]).dictionary_encode()
    query = ids.indices.to_numpy()
    top = np.full(len(ids.dictionary), -np.inf)
    np.maximum.at(top, query, score)
    share = np.exp((score - top[query]) / options.tau)
    return pa.array(share / np.bincount(query, share)[query])


def _filled_up(rows: pa.Table, options: Export, count: int) -> pa.Table:
    """Give each row `count` negatives: its own once more from the first, or drawn of them."""
    own = pc.list_value_length(one_array(rows["negative_ids"])).to_numpy(zero_copy_only=False)
    place = np.arange(count)[None, :] % own[:, None]
    if options.fill == "resample":
        for row in np.flatnonzero(own < count).tolist():
            ids = (rows[name][row].as_py() for name in ("query_id", "positive_id"))
            draw = generator(options.seed, "fill", *ids)
            place[row, own[row] :] = draw.integers(own[row], size=count - own[row])
    for name in ("negative_ids", *LISTS):
        lists = one_array(rows[name])
        start = lists.offsets.to_numpy()[:-1, None]
        at = start + place
        if name == "label":  # the positive's comes first
            at = np.concatenate([start, at + 1], axis=1)
        ends = pa.array(np.arange(len(rows) + 1) * at.shape[1], pa.int32())
        filled = pa.ListArray.from_arrays(ends, lists.values.take(pa.array(at.ravel())))
        rows = rows.set_column(rows.column_names.index(name), name, filled)
    return rows


def _shard_positives(job: Job, key: str) -> pa.Table:
    """Return query_id, doc_id and score of a shard's positives, and promoted documents if they
    count as such.

    The score is null where no judge is asked for, or it did not say.
    """
    run, judge = job.run, job.judge
    folders = [run.POSITIVES]
    folders += [f"{run.SETS}/{job.options.name}/_promoted"] if job.options.promoted else []
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
    ids = one_array(rows[name])
    found = one_array(rated["concreteness"]).take(
        pc.index_in(_flat(ids), one_array(rated["doc_id"]))
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
    label = {"doc_id": "label", "doc_ids": "labels"}.get(name)
    positive = (
        np.zeros(len(values), bool)
        if label is None
        else _flat(one_array(rows[label])).to_numpy() == 1
    )
    for name, numbers in columns.items():
        column = pa.array(np.where(positive, np.nan, numbers), from_pandas=True)  # nan becomes null
        rows = rows.append_column(
            name,
            (
                pa.ListArray.from_arrays(offsets_of(ids), column)
                if pa.types.is_list(ids.type)
                else column
            ),
        )
    return rows


def _flat(column: pa.Array) -> pa.Array:
    return column.flatten() if pa.types.is_list(column.type) else column
