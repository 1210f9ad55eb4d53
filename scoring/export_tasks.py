"""A column `task` for the rows of an export: a text, or the class label of a query's positives."""

from functools import partial

import duckdb
import pyarrow as pa

from miner.errors import UserError
from miner.store import Run
from scoring.export_options import Export
from scoring.export_rows import Job, Maker

TASKS = """
    SELECT query_id, min(label) AS task FROM positives JOIN labels USING (doc_id) GROUP BY query_id
"""


def with_tasks(maker: Maker, options: Export) -> Maker:
    """Return a maker whose rows have a task, if they are to."""
    if options.task is None and not options.task_labels:
        return maker
    return Maker(partial(_tasked_rows, maker), partial(_tasked_texts, maker))


def need_labels(run: Run) -> None:
    """Check that documents have class labels.

    Raises:
        UserError: they have none.
    """
    if not run.tables().rows.get("labels"):
        raise UserError(
            f"{run.path} has no class labels of documents, which --task-labels needs; ingest them"
            " with `quarry ingest pairs --label COLUMN`, or name the task with --task"
        )


def _tasked_rows(maker: Maker, job: Job, key: str) -> tuple[pa.Table, dict[str, int]]:
    rows, drops = maker.rows(job, key)
    if job.options.task is not None:
        return rows.append_column("task", pa.array([job.options.task] * len(rows))), drops
    with duckdb.connect(config={"threads": 1}) as database:
        database.register("positives", job.run.read(job.run.POSITIVES, key))
        database.register("labels", job.run.read(job.run.LABELS, "00000"))
        found = database.sql(TASKS).to_arrow_table().to_pylist()
    task = {row["query_id"]: row["task"] for row in found}
    named = [task.get(query_id, "") for query_id in rows["query_id"].to_pylist()]
    return rows.append_column("task", pa.array(named, pa.string())), drops


def _tasked_texts(maker: Maker, job: Job, key: str, rows: pa.Table) -> pa.Table:
    table = maker.texts(job, key, rows.drop_columns(["task"]))
    return table.append_column("task", rows["task"].cast(pa.string()))
