"""Any format -> documents, queries, positives.

The rows of every format go through one staging database and come out sorted: documents by doc_id in
shards of equal size, queries by query_id, positives beside their queries. What was left out lies in
`_rejects.jsonl` with its place and reason. A killed ingest starts again from scratch.
"""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miner.corpus import texts_of
from miner.engine import Advance, How
from miner.errors import UserError
from miner.files import Stopwatch, atomic, write_array, write_table
from miner.ingest.own import own_negatives
from miner.ingest.rows import LONGEST_RAW, Ingest, Reading
from miner.ingest.run_files import find_runs
from miner.ingest.staging import Staging, open_staging
from miner.ingest.trec_runs import ingest_run
from miner.normal import text_hashes
from miner.stages import Stage, begin, finish
from miner.store import PLAN, Manifest, Run, shard_keys
from miner.tables import DOCUMENTS, IMAGES, LABELS, NEGATIVES, POSITIVES, QUERIES, Table, conform

FOLDER, STAGING = Run.TABLES, "_staging"


def ingest(run: Run, options: Ingest, how: How, said: str | None = None) -> list[Manifest]:
    """Corpus, queries, positives in any format -> the three tables of the run; the negatives that
    queries came with, and run files, become sources beside them.

    Args:
        run: the run folder, locked by the caller.
        options: the format's options; their class says which format.
        how: force, progress; workers share the shards of run files.
        said: the command that was found for the input, to be noted.

    Returns:
        The manifest of 1_tables, then one of each source.

    Raises:
        UserError: an input is missing or unreadable or lacks a column, no query with a positive is
            left, or the tables are there already and were made from something else.
    """
    runs, reading = find_runs(getattr(options, "run_file", ())), options.read(run)
    if said:
        reading.notes.append(f"taken for: {said}")
    name = type(options).__name__.removeprefix("Ingest").lower()
    # runs may be added later
    record = {key: value for key, value in options.record().items() if key != "run_file"}
    stage = Stage(FOLDER, "documents", {"format": name, **record}, reading.inputs, made_by="ingest")
    manifest = begin(run, stage, how.force) or _make(run, stage, reading, options, how)
    own = [own_negatives(run, how)] if getattr(options, "negative", None) else []
    return [manifest, *own, *(ingest_run(run, source, f"ingest {name}", how) for source in runs)]


def _make(run: Run, stage: Stage, reading: Reading, options: Ingest, how: How) -> Manifest:
    """Make the tables from scratch; the user's mistake leaves nothing behind that would stand in
    the way of the next try.
    """
    folder, watch = run.path / FOLDER, Stopwatch()
    _sweep(folder)
    try:
        with open_staging(folder / STAGING) as staging:
            with how.progress(f"{FOLDER}, reading", 0) as advance:
                staging.add(reading.rows, advance)
            drops = staging.validate(options.min_relevance, options.limit)
            _check_not_empty(staging, reading, drops)
            facts = _table_facts(staging, stage, options)
            facts |= {"notes": notes} if (notes := _notes(reading, drops)) else {}
            with how.progress(FOLDER, facts["document_shards"] + facts["query_shards"]) as advance:
                _write_documents(staging, folder, facts, advance)
                asked = {"image": IMAGES, "negative": NEGATIVES}
                beside = [asked[name] for name in asked if getattr(options, name, None)]
                _write_queries(staging, folder, facts, (*beside, POSITIVES, QUERIES), advance)
            counts = {
                table.name: staging.count(f"kept_{table.name}") for table in (POSITIVES, *beside)
            }
            labels = (
                _write_labels(staging, folder / "labels") if getattr(options, "label", None) else {}
            )
            _write_rejects(staging, folder / "_rejects.jsonl")
    except UserError:
        shutil.rmtree(folder)
        raise
    rows = {"documents": facts["documents"], "queries": facts["queries"], **counts, **labels}
    shards = facts["document_shards"] + facts["query_shards"]
    return finish(
        run, stage, watch, rows=rows, drops=drops, facts=facts, shards=shards, resumed_shards=0
    )


def _sweep(folder: Path) -> None:
    """Remove what a killed ingest left."""
    for leftover in folder.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != PLAN:
            leftover.unlink()


def _check_not_empty(staging: Staging, reading: Reading, drops: dict[str, int]) -> None:
    if staging.count("kept_queries"):
        return
    inputs = ", ".join(reading.inputs)
    causes = {
        reason: count for reason, count in drops.items() if reason != "query_without_positive"
    } or drops
    if not causes:
        raise UserError(f"{inputs}: no rows; expected queries with positives")
    reason = max(causes, key=lambda name: causes[name])
    example = staging.connection.execute(
        "SELECT file, line, raw FROM rejects WHERE reason = ? ORDER BY seq, raw LIMIT 1", [reason]
    ).fetchall()[0]
    place = f"{example[0]}:{example[1]}: {' '.join(example[2].split())[:100]}"
    raise UserError(
        f"{inputs}: no query with a positive is left; most rows were left out as {reason}"
        f" ({causes[reason]}), such as {place}"
    )


def _notes(reading: Reading, drops: dict[str, int]) -> list[str]:
    """Return what the user should know of how the input was read."""
    encodings = (
        f"{drops['not_utf8']:,} rows are not UTF-8; name the encoding of the files, such as"
        " --encoding latin-1, and ingest again with --force"
        if "not_utf8" in drops
        else ""
    )
    return [*reading.notes, *filter(None, [encodings])]


def _table_facts(staging: Staging, stage: Stage, options: Ingest) -> dict[str, Any]:
    documents, queries = staging.count("documents"), staging.count("kept_queries")
    return {
        "format": stage.options["format"],
        "documents": documents,
        "document_shards": -(-documents // options.shard_documents),
        "shard_documents": options.shard_documents,
        "queries": queries,
        "query_shards": -(-queries // options.shard_queries),
        "shard_queries": options.shard_queries,
    }


def _write_documents(
    staging: Staging, folder: Path, facts: dict[str, Any], advance: Advance
) -> None:
    """Write the documents in order of doc_id as Arrow files to be memory-mapped, all their ids as
    one array of bytes, and a hash of each text in normal form.
    """
    longest = staging.connection.sql("SELECT max(strlen(doc_id)) FROM documents").fetchall()[0][0]
    shards = staging.documents(facts["shard_documents"], facts["document_shards"])
    with atomic(folder / "_doc_ids.npy") as temporary:
        ids = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=f"S{longest}", shape=(facts["documents"],)
        )
        row, hashes = 0, [np.empty(0, np.uint64)]
        for key, shard in zip(shard_keys(facts["document_shards"]), shards, strict=True):
            ids[row : row + len(shard)] = [
                doc_id.encode() for doc_id in shard["doc_id"].to_pylist()
            ]
            row += len(shard)
            hashes.append(text_hashes(texts_of(shard)))
            _write_arrow(folder / "documents" / f"{key}.arrow", conform(shard, DOCUMENTS))
            advance()
        ids.flush()
    write_array(folder / "_text_hashes.npy", np.concatenate(hashes))


def _write_arrow(path: Path, table: pa.Table) -> None:
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as file:
        file.write_table(table.combine_chunks())


def _write_queries(
    staging: Staging, folder: Path, facts: dict[str, Any], tables: Sequence[Table], advance: Advance
) -> None:
    """Write each shard of queries, and what stands beside them under the same key."""
    size = facts["shard_queries"]
    for number, key in enumerate(shard_keys(facts["query_shards"])):
        window = f"number >= {number * size} AND number < {(number + 1) * size}"
        for table in tables:
            query = (
                f"SELECT * EXCLUDE (number) FROM kept_{table.name} WHERE {window} ORDER BY"
                f" {', '.join(table.key)}"
            )
            write_table(
                folder / table.name / f"{key}.parquet",
                conform(staging.connection.sql(query).to_arrow_table(), table),
            )
        advance()


def _write_labels(staging: Staging, folder: Path) -> dict[str, int]:
    """Write the class labels of documents, some rows at a time, as a side table; return how many
    there are.
    """
    query = "SELECT doc_id, label FROM kept_labels ORDER BY doc_id, label"
    with (
        atomic(folder / "00000.parquet") as temporary,
        pq.ParquetWriter(temporary, LABELS.schema, compression="zstd") as writer,
    ):
        for batch in staging.connection.sql(query).to_arrow_reader(1 << 17):
            writer.write_batch(batch)
    return {"labels": staging.count("kept_labels")}


def _write_rejects(staging: Staging, path: Path) -> None:
    """Write every reject in the order its row was read."""
    dump = partial(json.dumps, ensure_ascii=False)
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for batch in staging.stream(
            "SELECT file, line, of, reason, raw FROM rejects ORDER BY seq, reason, raw"
        ):
            for row in batch.to_pylist():
                place = f"{row['file']}:{row['line']}"
                file.write(
                    dump(
                        {
                            "place": place,
                            "table": row["of"],
                            "reason": row["reason"],
                            "row": row["raw"][:LONGEST_RAW],
                        }
                    )
                    + "\n"
                )
