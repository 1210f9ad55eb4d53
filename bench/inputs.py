"""What the benches measure on: texts of Zipfian words, random unit vectors, a sample of MedQuAD;
all seeded, each a BEIR folder and a run.

The functions named `write_…_run` are sides: run in a process of their own, they leave the memory of
what measures untouched.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, EXPONENT, LENGTH, QUERY_LENGTHS = 50_000, 1.0, 60, (6, 7, 8)
# rows drawn with one seed: a smaller corpus is the beginning of a larger one
TEXT_BLOCK, VECTOR_BLOCK = 50_000, 16_384
MEDQUAD = Path(__file__).parents[2] / "shared" / "data" / "medquad"


def write_texts_run(folder: str, documents: int, queries: int, seed: int = 0) -> dict[str, Any]:
    """Write Zipfian texts as `folder`/beir and, ingested, `folder`/run; query number i has
    document number i as its positive.
    """
    texts, asked = (
        zipf_texts(documents, (LENGTH,), seed),
        zipf_texts(queries, QUERY_LENGTHS, seed + 1),
    )
    return _write(
        folder,
        _numbered(texts),
        ((f"q{number:08d}", text, f"d{number:08d}") for number, text in enumerate(asked)),
    )


def write_vectors_run(
    folder: str, documents: int, queries: int, width: int, seed: int = 0
) -> dict[str, Any]:
    """Write `folder`/run as if a dense index had been made, out of random unit vectors."""
    from miner.engine import How
    from miner.search.dense_index import IndexDense
    from miner.stages import Shard, Stage, run_stage
    from miner.store import Run, shard_keys

    asked = ((f"q{number:08d}", f"q{number}", f"d{number:08d}") for number in range(queries))
    written = _write(folder, _numbered(f"d{number}" for number in range(documents)), asked)
    run = Run(Path(folder) / "run")
    facts = run.tables().facts
    sizes = {
        "documents": (documents, facts["shard_documents"]),
        "queries": (queries, facts["shard_queries"]),
    }

    def shard(key: str) -> Shard:
        table, _, number = key.partition("/")
        count, size = sizes[table]
        start = int(number) * size
        return Shard(
            {key: unit_vectors(start, min(start + size, count), width, seed + (table == "queries"))}
        )

    keys = [
        f"{table}/{key}"
        for table, (count, size) in sizes.items()
        for key in shard_keys(-(-count // size))
    ]
    stage = Stage(
        "2_index/dense",
        "documents",
        IndexDense().record(),
        {"1_tables": run.tables().fingerprint},
        model="random unit vectors",
    )
    run_stage(
        run,
        stage,
        lambda: shard,
        keys,
        How(),
        lambda: {"kind": "dense", "encoder": "none", "device": "cpu", "dtype": "fp32"},
    )
    return written


def write_pairs_run(folder: str, documents: int, queries: int) -> dict[str, Any]:
    """Write a sample of MedQuAD's training pairs, or of Python's standard library where MedQuAD is
    not beside the checkout.

    Queries are evenly spaced; documents are their positives and, evenly spaced, others until there
    are `documents`. 0 stands for all. Texts are distinct, so that a peer without ids has the same
    pairs.
    """
    texts, pairs = (_medquad if MEDQUAD.is_dir() else _stdlib)(folder)
    first = {text: doc_id for doc_id, text in reversed(texts.items())}
    distinct = {
        query: (query_id, query, first[texts[doc_id]])
        for query_id, query, doc_id in reversed(pairs)
    }
    asked = _spaced(sorted(distinct.values()), queries)
    positives = {doc_id for _, _, doc_id in asked}
    others = _spaced(
        [doc_id for doc_id in first.values() if doc_id not in positives],
        max(documents - len(positives), 0),
    )
    kept = sorted({*positives, *others})
    written = _write(folder, ((doc_id, texts[doc_id]) for doc_id in kept), asked)
    return written | {
        "texts": (
            "MedQuAD, train"
            if MEDQUAD.is_dir()
            else "Python's standard library (MedQuAD is not beside this checkout)"
        )
    }


def zipf_texts(count: int, lengths: tuple[int, ...], seed: int) -> Iterator[str]:
    """Give texts of words w0, w1, … drawn independently, word i with a weight of 1 / (i + 1);
    each length is as likely as another.
    """
    words = np.array([f"w{number}" for number in range(VOCABULARY)], dtype=object)
    edges = np.cumsum(1.0 / np.arange(1, VOCABULARY + 1) ** EXPONENT)
    for block in range(0, count, TEXT_BLOCK):
        rng = np.random.default_rng([seed, block])
        ends = np.cumsum(rng.choice(lengths, TEXT_BLOCK))
        drawn = words[np.searchsorted(edges, rng.random(ends[-1]) * edges[-1])].tolist()
        bounds = [0, *ends[: count - block].tolist()]
        yield from (" ".join(drawn[start:end]) for start, end in pairwise(bounds))


def unit_vectors(start: int, stop: int, width: int, seed: int) -> np.ndarray:
    """Return rows start to stop (not included) of an endless seeded table of random unit
    vectors, float32.
    """
    parts = []
    for block in range(start // VECTOR_BLOCK, -(-stop // VECTOR_BLOCK)):
        rows = np.random.default_rng([seed, block]).standard_normal(
            (VECTOR_BLOCK, width), dtype=np.float32
        )
        parts.append(rows[max(start - block * VECTOR_BLOCK, 0) : stop - block * VECTOR_BLOCK])
    vectors = np.concatenate(parts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def read_texts(folder: str, name: str) -> list[str]:
    """Return the texts of "corpus" or "queries" of `folder`/beir, in its order."""
    with open(Path(folder) / "beir" / f"{name}.jsonl") as file:
        return [json.loads(line)["text"] for line in file]


def read_vectors(folder: str, table: str) -> np.ndarray:
    """Return the vectors (n, d) float32 of "documents" or "queries" of `folder`/run, in memory."""
    return np.concatenate(
        [
            np.load(file)
            for file in sorted((Path(folder) / "run" / "2_index" / "dense" / table).glob("*.npy"))
        ]
    )


def _write(
    folder: str, documents: Iterable[tuple[str, str]], queries: Iterable[tuple[str, str, str]]
) -> dict[str, Any]:
    """Write a BEIR folder and ingest it. Documents are (id, text), queries (id, text, doc_id)."""
    from miner.engine import How
    from miner.ingest.formats import IngestBeir
    from miner.ingest.ingest import ingest
    from miner.store import Run

    beir = Path(folder) / "beir"
    (beir / "qrels").mkdir(parents=True)
    with open(beir / "corpus.jsonl", "w") as file:
        file.writelines(
            json.dumps({"_id": doc_id, "text": text}) + "\n" for doc_id, text in documents
        )
    with (
        open(beir / "queries.jsonl", "w") as file,
        open(beir / "qrels" / "train.tsv", "w") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for query_id, text, doc_id in queries:
            file.write(json.dumps({"_id": query_id, "text": text}) + "\n")
            qrels.write(f"{query_id}\t{doc_id}\t1\n")
    manifest = ingest(Run(Path(folder) / "run"), IngestBeir(folder=beir, split="train"), How())[0]
    return {
        "ingest_seconds": manifest.seconds,
        "documents": manifest.rows["documents"],
        "queries": manifest.rows["queries"],
    }


def _numbered(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    return ((f"d{number:08d}", text) for number, text in enumerate(texts))


def _medquad(folder: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Return MedQuAD's documents, doc_id -> text, and its training pairs (query_id, query,
    doc_id).
    """
    with open(MEDQUAD / "corpus.jsonl") as corpus, open(MEDQUAD / "queries.jsonl") as queries:
        texts = {
            row["_id"]: f"{row.get('title') or ''} {row['text']}".strip()
            for row in map(json.loads, corpus)
        }
        asked = {row["_id"]: row["text"] for row in map(json.loads, queries)}
    lines = (MEDQUAD / "qrels" / "train.tsv").read_text().splitlines()[1:]
    return texts, [
        (query_id, asked[query_id], doc_id)
        for query_id, doc_id, _ in (line.split("\t") for line in lines)
    ]


def _stdlib(folder: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Return the same of the functions of Python's standard library."""
    from miner.corpus import Corpus
    from miner.engine import How
    from miner.ingest.ingest import ingest
    from miner.ingest.stdlib import IngestStdlib
    from miner.store import Run

    run = Run(Path(folder) / "stdlib")
    ingest(run, IngestStdlib(), How())
    corpus = Corpus(run)
    rows = np.arange(len(corpus))
    texts = dict(zip(corpus.doc_ids(rows).to_pylist(), corpus.texts(rows), strict=True))
    read = {
        name: [
            row
            for key in run.query_shards()
            for row in run.read(f"1_tables/{name}", key).to_pylist()
        ]
        for name in ("queries", "positives")
    }
    asked = {row["query_id"]: row["text"] for row in read["queries"]}
    return texts, [
        (row["query_id"], asked[row["query_id"]], row["doc_id"]) for row in read["positives"]
    ]


def _spaced(rows: list[Any], count: int) -> list[Any]:
    """Return `count` of the rows, evenly spaced; all for 0 or too many."""
    count = min(count or len(rows), len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]
