"""Pairs of a set -> a BEIR folder: corpus.jsonl, queries.jsonl, qrels/train.tsv, negatives.tsv.

`quarry ingest beir FOLDER --split train` gives back the tables. The negatives are tab-separated, as
qrels are: an id may hold spaces, at which readers of TREC runs cut.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import LARGE, Corpus, Documents
from miner.store import Run
from scoring.export_texts import json_lines_of
from scoring.pairs import (
    found_rows,
    negatives_of,
    positives_of,
    ranked_by_judge,
    read_pairs,
    scores_told,
    write_parts,
)

DOCUMENTS_AT_ONCE = 1024
HEADER = "query-id\tcorpus-id\tscore\n"


def write_beir(run: Run, folder: Path, keys: Sequence[str]) -> dict[str, object]:
    """Write the folder; return what the manifest is to say."""
    queries = (run.read(run.QUERIES, key).rename_columns(["_id", "text"]) for key in keys)
    write_parts(folder / "queries.jsonl", map(json_lines_of, queries))
    write_parts(folder / "corpus.jsonl", map(json_lines_of, _documents(run, folder, keys)))
    line, judged = "{query_id}\t{doc_id}\t{relevance}\n", ranked_by_judge(folder, keys)
    positives = (line.format(**row) for row in positives_of(folder, keys))
    write_parts(folder / "qrels/train.tsv", positives, HEADER)
    line = line.replace("relevance", "score")
    negatives = (line.format(**row) for row in negatives_of(folder, keys, judged))
    write_parts(folder / "negatives.tsv", negatives, HEADER)
    return scores_told(judged)


def _documents(run: Run, folder: Path, keys: Sequence[str]) -> Iterator[pa.Table]:
    """Yield all documents, then those that were made and are in the set, each once."""
    corpus = Corpus(run)
    for key in corpus.keys:
        shard = corpus.shard(key).cast(LARGE)
        for start in range(0, len(shard), DOCUMENTS_AT_ONCE):
            yield _as_beir(shard.slice(start, DOCUMENTS_AT_ONCE))
    seen = set[str]()
    for key in keys:
        documents = Documents(run, key)
        ids = pc.unique(read_pairs(folder, key, ["doc_id"])["doc_id"]).to_pylist()
        rows = found_rows(documents, ids)
        made = [ids[place] for place in np.flatnonzero(documents.is_made(rows))]
        new = sorted({*made} - seen)
        seen.update(new)
        if new:
            yield _as_beir(documents.documents(documents.rows(new)))


def _as_beir(documents: pa.Table) -> pa.Table:
    columns = [documents["doc_id"], pc.fill_null(documents["title"], ""), documents["text"]]
    return pa.table(columns, ["_id", "title", "text"])
