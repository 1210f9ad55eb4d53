"""A run folder written by hand: five queries with 1, 2, 1, 3 and 1 positives, twelve documents, two
sources, similarities in sixteenths.

run = toy_run(tmp_path)                          the toy as it stands below
run = toy_run(tmp_path, shard_queries=1, ...)    any field of Toy changed
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from miner.corpus import texts_of
from miner.engine import How
from miner.files import Stopwatch, atomic, write_array, write_table
from miner.normal import text_hashes
from miner.stages import Shard, Stage, begin, finish, run_stage
from miner.store import Run, shard_keys
from miner.tables import CANDIDATES, DOCUMENTS, JUDGMENTS, POSITIVES, QUERIES, Table

HOW = How()
DOCUMENT_TEXTS = {
    "d01": ("Copper", "conducts electric current better than any other base metal"),
    "d02": ("Honey bees", "dance to tell the hive where flowers stand"),
    "d03": ("", "a bee that returns runs in a figure of eight on the comb"),
    "d04": ("Glass", "is an amorphous solid, not a slow liquid"),
    "d05": ("Tides", "follow the moon because its pull is uneven over the globe"),
    "d06": ("", "spring tides come when sun and moon pull along one line"),
    "d07": ("Bay of Fundy", "sees water rise by sixteen metres twice a day"),
    "d08": ("Silver", "has the lowest resistance, yet tarnishes in air with sulphur"),
    "d09": ("", "wax moths ruin weak colonies within weeks of summer heat"),
    "d10": ("Obsidian", "forms where lava cools too fast for crystals to grow"),
    "d11": ("Orbits", "decay when thin air slows a satellite down"),
    "d12": ("Lighthouses", "were lit by coal fires, later by oil lamps"),
}
QUERY_TEXTS = {
    "q1": "which metal carries current",
    "q2": "how do bees talk",
    "q3": "is glass liquid",
    "q4": "why are there tides",
    "q5": "old lamps",
}
GOLD = {
    "q1": ["d01"],
    "q2": ["d02", "d03"],
    "q3": ["d04"],
    "q4": ["d05", "d06", "d07"],
    "q5": ["d12"],
}
FOUND = {  # in order of rank, positives among them; q5 has no candidate
    "bm25": {
        "q1": ["d08", "d01", "d09", "d10", "d11"],
        "q2": ["d02", "d08", "d09", "d03", "d10"],
        "q3": ["d09", "d10", "d04"],
        "q4": ["d05", "d08", "d06", "d09", "d10", "d11"],
    },
    "dense": {
        "q1": ["d01", "d09", "d08", "d12"],
        "q2": ["d02", "d03", "d11", "d09"],
        "q3": ["d04", "d11", "d09", "d02"],
        "q4": ["d05", "d06", "d07", "d12", "d09"],
    },
}
COSINES = {
    "q1": {"d01": 0.75, "d08": 0.875, "d09": 0.625, "d10": 0.5, "d11": 0.25, "d12": -0.25},
    "q2": {"d02": 0.875, "d03": 0.5, "d08": 0.75, "d09": 0.4375, "d10": 0.125, "d11": 0.5},
    "q3": {"d04": -0.25, "d02": -0.125, "d09": -0.5, "d10": -0.25, "d11": -0.3125},
    "q4": {
        "d05": 0.75,
        "d06": 0.625,
        "d07": 0.25,
        "d08": 0.5,
        "d09": 0.1875,
        "d10": 0.0,
        "d11": -0.5,
        "d12": 0.25,
    },
    "q5": {"d12": 0.5},
}
# "similarity.positive" of every pair: no rule of judge "similarity" may ever see it
NEAREST = 0.9375


@dataclass(frozen=True)
class Toy:
    """What a run folder is to hold; similarity None leaves that judge out."""

    documents: Mapping[str, tuple[str, str]] = field(default_factory=lambda: DOCUMENT_TEXTS)
    queries: Mapping[str, str] = field(default_factory=lambda: QUERY_TEXTS)
    positives: Mapping[str, Sequence[str]] = field(default_factory=lambda: GOLD)
    candidates: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=lambda: FOUND)
    similarity: Mapping[str, Mapping[str, float | None]] | None = field(
        default_factory=lambda: COSINES
    )
    k: int = 5
    shard_queries: int = 3
    shard_documents: int = 5

    def shards(self) -> list[list[str]]:
        ids = sorted(self.queries)
        return [
            ids[start : start + self.shard_queries]
            for start in range(0, len(ids), self.shard_queries)
        ]


def toy_run(path: Path, **changes: object) -> Run:
    """Write a run folder up to the similarities, every stage with its manifest."""
    toy, run = replace(Toy(), **changes), Run(path)
    _write_tables(run, toy)
    for source in toy.candidates:
        write_source(run, toy, source)
    if toy.similarity is not None:
        write_similarity(run, toy)
    return run


def write_source(run: Run, toy: Toy, source: str, how: How = HOW) -> None:
    """Write 3_candidates/<source>; scores are 10 - rank."""
    options = {
        "name": source,
        "k": toy.k,
        "found": {query_id: list(found) for query_id, found in toy.candidates[source].items()},
    }
    stage = Stage(
        f"3_candidates/{source}", "candidates", options, {"1_tables": run.tables().fingerprint}
    )
    run_stage(run, stage, lambda: partial(_source_shard, toy, source), run.query_shards(), how)


def write_similarity(run: Run, toy: Toy, how: How = HOW) -> None:
    """Write 4_judgments/similarity from `toy.similarity`, as judge similarity would."""
    folders = ["1_tables", *(f"3_candidates/{source}" for source in toy.candidates)]
    stage = Stage(
        "4_judgments/similarity",
        "judgments",
        {},
        {folder: run.need(folder, "").fingerprint for folder in folders},
    )
    run_stage(run, stage, lambda: partial(_similarity_shard, toy), run.query_shards(), how)


def write_judge(
    run: Run,
    judge: str,
    said: Mapping[str, Mapping[str, object]],
    how: How = HOW,
    sources: Sequence[str] | None = None,
) -> None:
    """Write 4_judgments/<judge> by hand: query -> document -> score, or (score, verdict,
    reason).
    """
    folders = [
        "1_tables",
        *(
            f"3_candidates/{source}"
            for source in (run.names("3_candidates") if sources is None else sources)
        ),
    ]
    options = {"said": {query_id: dict(found) for query_id, found in said.items()}}
    stage = Stage(
        f"4_judgments/{judge}",
        "judgments",
        options,
        {folder: run.need(folder, "").fingerprint for folder in folders},
    )
    run_stage(run, stage, lambda: partial(_judge_shard, run, judge, said), run.query_shards(), how)


def table(of: Table, rows: Sequence[Sequence[object]]) -> pa.Table:
    """Make a table from rows with all the columns of a declared one."""
    return pa.Table.from_pylist(
        [dict(zip(of.schema.names, row, strict=True)) for row in rows], of.schema
    )


def rows(run: Run, folder: str, *columns: str) -> list[tuple]:
    """Read some columns of all query shards of a table, shard after shard."""
    return [
        tuple(row[column] for column in columns)
        for key in run.query_shards()
        for row in run.read(folder, key).select(columns).to_pylist()
    ]


def _write_tables(run: Run, toy: Toy) -> None:
    folder, ids, watch = run.path / "1_tables", sorted(toy.documents), Stopwatch()
    stage = Stage("1_tables", "documents", {"shard_queries": toy.shard_queries})
    begin(run, stage, force=False)
    documents = table(DOCUMENTS, [(doc_id, *toy.documents[doc_id]) for doc_id in ids])
    document_keys = shard_keys(-(-len(ids) // toy.shard_documents))
    for number, key in enumerate(document_keys):
        with (
            atomic(folder / "documents" / f"{key}.arrow") as temporary,
            pa.ipc.new_file(temporary, documents.schema) as writer,
        ):
            writer.write_table(documents.slice(number * toy.shard_documents, toy.shard_documents))
    write_array(folder / "_doc_ids.npy", np.array([doc_id.encode() for doc_id in ids]))
    write_array(folder / "_text_hashes.npy", text_hashes(texts_of(documents)))
    for key, query_ids in zip(shard_keys(len(toy.shards())), toy.shards(), strict=True):
        write_table(
            folder / "queries" / f"{key}.parquet",
            table(QUERIES, [(query_id, toy.queries[query_id]) for query_id in query_ids]),
        )
        gold = [
            (query_id, doc_id, 1)
            for query_id in query_ids
            for doc_id in sorted(toy.positives.get(query_id, []))
        ]
        write_table(folder / "positives" / f"{key}.parquet", table(POSITIVES, gold))
    facts = {
        "documents": len(ids),
        "document_shards": len(document_keys),
        "shard_documents": toy.shard_documents,
        "queries": len(toy.queries),
        "query_shards": len(toy.shards()),
    }
    finish(
        run,
        stage,
        watch,
        rows={"documents": len(ids)},
        drops={},
        facts=facts,
        shards=len(document_keys),
        resumed_shards=0,
    )


def _source_shard(toy: Toy, source: str, key: str) -> Shard:
    found = toy.candidates[source]
    listed = [
        (query_id, doc_id, source, rank, 10.0 - rank, None)
        for query_id in toy.shards()[int(key)]
        for rank, doc_id in enumerate(found.get(query_id, []), 1)
    ]
    return Shard({key: table(CANDIDATES, listed)})


def _similarity_shard(toy: Toy, key: str) -> Shard:
    listed: list[tuple] = []
    for query_id in toy.shards()[int(key)]:
        for doc_id, score in sorted(toy.similarity[query_id].items()):
            listed.append((query_id, doc_id, "similarity", score, None, None))
            if doc_id not in toy.positives.get(query_id, []):
                listed.append((query_id, doc_id, "similarity.positive", NEAREST, None, None))
    return Shard({key: table(JUDGMENTS, listed)})


def _judge_shard(run: Run, judge: str, said: Mapping[str, Mapping[str, object]], key: str) -> Shard:
    listed = [
        (query_id, doc_id, judge, *(row if isinstance(row, tuple) else (row, None, None)))
        for query_id in run.read("1_tables/queries", key)["query_id"].to_pylist()
        for doc_id, row in sorted(said.get(query_id, {}).items())
    ]
    return Shard({key: table(JUDGMENTS, listed)})
