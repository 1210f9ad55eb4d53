"""BM25 beside rank_bm25, bm25s and tantivy: Zipfian texts, the same for all; each side indexes
and searches with all cores.
"""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from inputs import EXPONENT, LENGTH, QUERY_LENGTHS, VOCABULARY, read_texts, write_texts_run
from sides import THREADS, best_of, floor, run_rounds, run_side, seconds_of, target

REPEATS = 5
TINY = ["w1 w2", "w2 w3", "w1 w3 w4"]  # what compiles and loads before the clock starts


def measure(
    ceilings: dict[str, float],
    documents: int = 100_000,
    queries: int = 2000,
    k: int = 100,
    asked: int = 30,
) -> dict[str, Any]:
    """Measure all sides and check quarry's answers against rank_bm25's scores."""
    with TemporaryDirectory() as folder:
        run_side(write_texts_run, folder=folder, documents=documents, queries=queries)
        run_side(write_texts_run, folder=f"{folder}/tiny", documents=8, queries=2)
        arguments = {"folder": folder, "k": k}
        compared = {
            side.__name__: (side, arguments)
            for side in (quarry, bm25s, tantivy)
            if side is not tantivy or find_spec("tantivy")
        }
        sides = run_rounds(compared | {"rank_bm25": (rank_bm25, arguments | {"asked": asked})})
        checked = check(folder, k)
        work = least_work(folder)
    rate = {name: side["queries_per_second"] for name, side in sides.items()}
    ours = sides["quarry"]
    return {
        "what": (
            f"{documents} documents of {LENGTH} words, {queries} queries of {QUERY_LENGTHS} words,"
            f" top {k}; every word drawn alike from {VOCABULARY} with weights 1 /"
            f" rank^{EXPONENT:g}, so queries hold frequent words as often as documents do"
        ),
        "sides": sides,
        "checked": checked,
        "targets": [
            target("queries/s, times rank_bm25", rate["quarry"] / rate["rank_bm25"], at_least=1000),
            target("queries/s, times bm25s", rate["quarry"] / rate["bm25s"], at_least=1.2),
            target(
                "index seconds, times rank_bm25",
                ours["index_seconds"] / sides["rank_bm25"]["index_seconds"],
                at_most=1.0,
            ),
            target(
                "peak memory, times bm25s",
                ours["peak_memory_mb"] / sides["bm25s"]["peak_memory_mb"],
                at_most=0.7,
            ),
        ],
        "also": {
            "queries/s, times tantivy": (
                round(rate["quarry"] / rate["tantivy"], 2)
                if "tantivy" in rate
                else "tantivy is not installed"
            ),
            "queries/s without writing, times bm25s": round(
                ours["queries_per_second_in_memory"] / rate["bm25s"], 2
            ),
            "queries/s without writing, times bm25s without tokenizing": round(
                ours["queries_per_second_in_memory"]
                / sides["bm25s"]["queries_per_second_given_tokens"],
                2,
            ),
        },
        "floor of the index": floor(
            ours["index_seconds"], ceilings, flops=0, moved=work["index_bytes"]
        ),
        "floor of the search": floor(
            queries / ours["queries_per_second_in_memory"],
            ceilings,
            flops=work["postings"],
            moved=work["search_bytes"],
        ),
    }


def quarry(folder: str, k: int) -> dict[str, Any]:
    """Measure quarry's two stages, and its search alone."""
    from miner.engine import How
    from miner.search.bm25 import Bm25, MineBm25, index_bm25, mine_bm25
    from miner.search.tokens import IndexBm25
    from miner.store import Run

    run, how, options = Run(Path(folder) / "run"), How(force=True), MineBm25(k=k)
    for work in (
        lambda run: index_bm25(run, IndexBm25(), how),
        lambda run: mine_bm25(run, options, how),
    ):
        work(Run(Path(folder) / "tiny" / "run"))  # loads what is compiled
    index = seconds_of(lambda: index_bm25(run, IndexBm25(), how))
    mine = best_of(REPEATS, lambda: mine_bm25(run, options, how))
    queries, opened = read_texts(folder, "queries"), Bm25(run, options)
    search = best_of(REPEATS, lambda: opened.search(queries, k))
    return {
        "clock": (
            "index: stage index bm25, texts read, tokenized, index written. queries/s: stage mine"
            " bm25, queries read, tokenized, searched, ids and positives looked up, Parquet"
            " written; in memory: tokenizing and searching. Imports and compiling left out."
        ),
        "index_seconds": round(index, 3),
        "queries_per_second": round(len(queries) / mine, 1),
        "queries_per_second_in_memory": round(len(queries) / search, 1),
    }


def rank_bm25(folder: str, k: int, asked: int) -> dict[str, Any]:
    """Measure rank_bm25 on some queries (it is asked fewer, since it takes long), and leave
    their scores in `folder`/scores.npy.
    """
    from rank_bm25 import BM25Okapi

    texts, queries = read_texts(folder, "corpus"), read_texts(folder, "queries")[:asked]
    made: list[BM25Okapi] = []
    index = seconds_of(lambda: made.append(BM25Okapi([text.split() for text in texts])))
    scores = np.empty((len(queries), len(texts)))

    def search() -> None:
        for number, query in enumerate(queries):
            scores[number] = made[0].get_scores(query.split())
            best = np.argpartition(-scores[number], min(k, len(texts)) - 1)[:k]
            best[np.argsort(-scores[number, best])]

    seconds = seconds_of(search)
    np.save(Path(folder) / "scores.npy", scores)
    return {
        "clock": (
            f"index: tokenizing and BM25Okapi. queries/s: tokenizing, get_scores and the best {k}"
            f" by argpartition, {asked} queries"
        ),
        "index_seconds": round(index, 3),
        "queries_per_second": round(len(queries) / seconds, 2),
    }


def bm25s(folder: str, k: int) -> dict[str, Any]:
    """Measure bm25s, numba backend, its own Tokenizer, which gives ids; all threads."""
    import bm25s
    from bm25s.tokenization import Tokenizer

    quiet: dict[str, Any] = {"show_progress": False}

    def build(texts: list[str]) -> tuple[bm25s.BM25, Tokenizer]:
        tokenizer, retriever = (
            Tokenizer(stopwords=[]),
            bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numba"),
        )
        retriever.index(tokenizer.tokenize(texts, return_as="tuple", **quiet), **quiet)
        return retriever, tokenizer

    retriever, tokenizer = build(TINY)
    retriever.retrieve(
        tokenizer.tokenize(TINY, update_vocab=False, **quiet), k=2, n_threads=THREADS, **quiet
    )
    texts, queries = read_texts(folder, "corpus"), read_texts(folder, "queries")
    made: list[Any] = []
    index = seconds_of(lambda: made.append(build(texts)))
    retriever, tokenizer = made[0]
    depth = min(k, len(texts))

    def search(tokens: list[list[int]] | None = None) -> None:
        tokens = tokens or tokenizer.tokenize(queries, update_vocab=False, **quiet)
        retriever.retrieve(tokens, k=depth, n_threads=THREADS, **quiet)

    tokens = tokenizer.tokenize(queries, update_vocab=False, **quiet)
    return {
        "clock": (
            "index: tokenizing and index. queries/s: tokenizing and retrieve; given tokens:"
            " retrieve alone. Numbers of documents, no ids; nothing written. Imports and compiling"
            " left out. Lucene's idf, so other scores than Okapi's."
        ),
        "index_seconds": round(index, 3),
        "queries_per_second": round(len(queries) / best_of(REPEATS, search), 1),
        "queries_per_second_given_tokens": round(
            len(queries) / best_of(REPEATS, lambda: search(tokens)), 1
        ),
    }


def tantivy(folder: str, k: int) -> dict[str, Any]:
    """Measure tantivy, index in memory; queries go through a pool of threads, since its search
    lets go of the interpreter.
    """
    from concurrent.futures import ThreadPoolExecutor

    import tantivy

    schema = (
        tantivy.SchemaBuilder()
        .add_text_field("body", tokenizer_name="whitespace", index_option="freq")
        .add_integer_field("row", fast=True)
        .build()
    )
    texts, queries = read_texts(folder, "corpus"), read_texts(folder, "queries")
    made = tantivy.Index(schema)

    def build() -> None:
        writer = made.writer(heap_size=512_000_000, num_threads=THREADS)
        for row, text in enumerate(texts):
            writer.add_document(tantivy.Document(body=text, row=row))
        writer.commit()
        writer.wait_merging_threads()
        made.reload()

    index = seconds_of(build)
    searcher = made.searcher()

    def one(query: str) -> list[Any]:
        hits = searcher.search(made.parse_query(query, ["body"]), limit=k, count=False).hits
        return searcher.fast_field_values("row", [address for _, address in hits])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, queries[:10]))
        seconds = best_of(REPEATS, lambda: list(pool.map(one, queries)))
    return {
        "clock": (
            "index: add_document of each text, commit, merges. queries/s: parse_query, search and"
            " the rows of the hits. k1 1.2 and b 0.75 are fixed there; Lucene's idf. Imports left"
            " out."
        ),
        "index_seconds": round(index, 3),
        "queries_per_second": round(len(queries) / seconds, 1),
    }


def check(folder: str, k: int) -> str:
    """Hold quarry's answer against rank_bm25's scores of every document for the asked queries.

    Raises:
        RuntimeError: a score is off by more than a millionth, the order is not by score, then
            doc_id, or a better document is missing.
    """
    from miner.store import Run

    run = Run(Path(folder) / "run")
    scores = np.load(Path(folder) / "scores.npy")
    found: dict[str, list[tuple[float, str]]] = {
        f"q{number:08d}": [] for number in range(len(scores))
    }
    for key in run.query_shards():
        for row in run.read("3_candidates/bm25", key).to_pylist():
            if row["query_id"] in found:
                found[row["query_id"]].append((-row["score"], row["doc_id"]))
    for expected, (query_id, answer) in zip(scores, found.items(), strict=True):
        rows = np.array([int(doc_id[1:]) for _, doc_id in answer], np.int64)
        given = -np.array([score for score, _ in answer])
        missed = np.delete(expected, rows).max(initial=0.0)
        wrong = {
            "too few documents": len(answer) < min(k, int((expected > 0).sum())),
            "not in order of score, then doc_id": answer != sorted(answer),
            "other scores": not np.allclose(given, expected[rows], rtol=1e-6, atol=0),
            "a better document is missing": missed > given.min(initial=np.inf) * (1 + 1e-6),
        }
        if any(wrong.values()):
            raise RuntimeError(
                f"{query_id}: quarry and rank_bm25 differ:"
                f" {', '.join(name for name in wrong if wrong[name])}"
            )
    return (
        f"{len(found)} queries: quarry's scores are rank_bm25's to 1e-6, in order of score, then"
        " doc_id; no better document is missing"
    )


def least_work(folder: str) -> dict[str, int]:
    """Return what indexing and searching must move at least.

    An index reads the texts and writes a row in 4 bytes for each word of each document; a search
    reads, for each word of each query, a row and a weight in 4 bytes each of every document that
    holds it, and adds once.
    """
    texts = read_texts(folder, "corpus")
    frequency = Counter(word for text in texts for word in set(text.split()))
    touched = sum(
        frequency[word] for text in read_texts(folder, "queries") for word in text.split()
    )
    return {
        "index_bytes": sum(map(len, texts)) + 4 * frequency.total(),
        "postings": touched,
        "search_bytes": 8 * touched,
    }
