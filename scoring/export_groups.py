"""One shard of a set -> the rows of a trainer that nests, query by query."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import duckdb
import pyarrow as pa

from miner.corpus import Documents
from miner.store import Run
from scoring.export_rows import HAS_BOTH, LISTED, PAIRS, Job, register_shard
from scoring.trainers import PROMPTS, SCORES, TRAINERS, Group, Passage

AT_ONCE = 512  # queries whose texts are in memory
GROUPS = f"""
    SELECT query_id, list(doc_id {LISTED}) AS doc_ids, list(label {LISTED}) AS labels,
        list(score::DOUBLE {LISTED}) AS scores
    FROM (SELECT * FROM ({PAIRS}) QUALIFY label = 1 OR $most IS NULL OR
        row_number() OVER (PARTITION BY query_id, label ORDER BY rank, doc_id) <= $most)
    {HAS_BOTH}
"""
DROPPED = """
    SELECT 'no_negatives', count(DISTINCT query_id) FROM all_positives
        WHERE query_id NOT IN (SELECT query_id FROM groups)
"""


def group_rows(job: Job, key: str) -> tuple[pa.Table, dict[str, int]]:
    """Return the groups of one shard by ids, and what is left out; with a judge, passages without
    a score are.
    """
    with duckdb.connect(config={"threads": 1}) as database:
        drops = register_shard(database, job, key)
        found = database.sql(GROUPS, params={"most": job.options.negatives}).to_arrow_table()
        database.register("groups", found)
        drops |= dict(database.sql(DROPPED).fetchall())
    return found, {reason: count for reason, count in drops.items() if count}


def group_texts(job: Job, key: str, found: pa.Table) -> pa.Table:
    """Return groups as the trainer's rows; those of preference are several a group."""
    options, trainer = job.options, TRAINERS[job.options.format]
    rows: Iterator[dict[str, Any]] = chain.from_iterable(
        trainer.rows(group, options.prompt) for group in _passages_of(job.run, key, found)
    )
    parts = [trainer.schema.empty_table()]
    while part := list(islice(rows, AT_ONCE)):
        parts.append(pa.Table.from_pylist(part, trainer.schema))
    table = pa.concat_tables(parts)
    empty = SCORES * (job.judge is None)
    if options.format == "flag-embedding" and options.prompt is None:
        empty += PROMPTS
    return table.drop_columns([name for name in empty if name in table.column_names])


def _passages_of(run: Run, key: str, found: pa.Table) -> Iterator[Group]:
    """Yield the queries of a shard, each with its passages; the texts are read some at a time."""
    queries = run.read(run.QUERIES, key)
    asked = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    corpus = Documents(run, key)
    for batch in found.to_batches(AT_ONCE):
        rows = batch.to_pylist()
        doc_ids = sorted({doc_id for row in rows for doc_id in row["doc_ids"]})
        documents = corpus.documents(corpus.rows(doc_ids)).to_pylist()
        texts = {row["doc_id"]: (row["title"] or "", row["text"] or "") for row in documents}
        for row in rows:
            passages = [
                (label, Passage(doc_id, *texts[doc_id], score))
                for doc_id, label, score in zip(
                    row["doc_ids"], row["labels"], row["scores"], strict=True
                )
            ]
            positives, negatives = (
                [passage for label, passage in passages if label == kind] for kind in (1, 0)
            )
            query_id = row["query_id"]
            yield Group(query_id, asked[query_id], positives, negatives)


def texts_beside(run: Run, key: str, table: pa.Table) -> dict[str, Any]:
    """Return the queries and the documents that a table of ids names."""
    corpus, queries = Documents(run, key), run.read(run.QUERIES, key)
    doc_ids = sorted({one for row in table["document_ids"].to_pylist() for one in row})
    ids = {"document_id": pa.array(doc_ids, pa.string())}
    texts = pa.array(corpus.texts(corpus.rows(doc_ids)), pa.large_string())
    return {f"_queries/{key}": queries, f"_documents/{key}": pa.table(ids | {"text": texts})}
