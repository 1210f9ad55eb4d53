"""What the tests of ingest share: input files, and how to read what came of them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.ingest.auto import ingest_any
from miner.store import Run
from miner.tables import DOCUMENTS

# ids whose order differs by number, by letter case and by bytes; q2 has two positives, the others
# have one
DOCS = [
    ("é", "", "straw roof"),
    ("d10", "Roofs", "slate"),
    ("d9", "", "tile"),
    ("Z", "", "turf"),
    ("a", "", "no one asks for this"),
]
QUERIES_ = [("q10", "what covers a house"), ("q2", "what is a roof made of"), ("q1", "green roof")]
QRELS = [("q2", "d9", 1), ("q2", "d10", 2), ("q10", "é", 1), ("q1", "Z", 1)]
IN_ORDER = ["Z", "a", "d10", "d9", "é"]


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8"
    )
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def make_beir(folder: Path, docs=(), queries=(), qrels="") -> Path:
    """A BEIR folder: the toy data, and further lines after it."""
    write_jsonl(
        folder / "corpus.jsonl",
        [{"_id": i, "title": t, "text": x} for i, t, x in DOCS] + list(docs),
    )
    write_jsonl(
        folder / "queries.jsonl", [{"_id": i, "text": x} for i, x in QUERIES_] + list(queries)
    )
    lines = "".join(f"{q}\t{d}\t{r}\n" for q, d, r in QRELS)
    write_text(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n" + lines + qrels)
    return folder


def documents(run: Run) -> list[tuple]:
    corpus = Corpus(run)
    tables = [corpus.shard(key) for key in corpus.keys]
    assert all(table.schema == DOCUMENTS.schema for table in tables)
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def rows(run: Run, table) -> list[tuple]:
    shards = [run.read(f"1_tables/{table.name}", key) for key in run.query_shards()]
    assert all(shard.schema.equals(table.schema) for shard in shards)
    return [tuple(row.values()) for shard in shards for row in shard.to_pylist()]


def rejects(run: Run) -> list[tuple]:
    lines = (run.path / "1_tables" / "_rejects.jsonl").read_text("utf-8").splitlines()
    return [(row["place"], row["table"], row["reason"]) for row in map(json.loads, lines)]


def tree(run: Run) -> dict[str, bytes]:
    """All files of the tables but the manifest, which tells the time."""
    files = (file for file in (run.path / "1_tables").rglob("*") if file.is_file())
    return {
        file.relative_to(run.path).as_posix(): file.read_bytes()
        for file in files
        if file.name not in ("_manifest.json", "_plan.json")
    }


def refuse(run: Run, options, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        ingest_any(run, options, How())
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert not (run.path / "1_tables").exists()  # nothing stands in the way of the next try


def write_records(path: Path, records: list[dict]) -> Path:
    kind = path.suffix
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif kind == ".json":
        path.write_text(json.dumps(records))
    elif kind == ".jsonl":
        write_jsonl(path, records)
    elif kind == ".csv":
        quoted = [
            ",".join('"' + str(value).replace('"', '""') + '"' for value in record.values())
            for record in records
        ]
        path.write_text("\n".join([",".join(records[0]), *quoted]) + "\n", "utf-8")
    else:
        path.write_text(
            "\n".join(
                "\t".join(map(str, row)) for row in [records[0], *(r.values() for r in records)]
            )
            + "\n",
            "utf-8",
        )
    return path
