"""Rescoring candidates with a cross-encoder beside mine_hard_negatives, which calls predict once
for each query, in batches of 32 and fp32.

The peer's side is that loop of its, without the encoding and the search before it. The model is the
one of `train_reranker.py`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from inputs import write_pairs_run
from parts.encode import encoder_work
from sides import floor, run_side, seconds_of, target
from train_reranker import trained_reranker

DEPTH = 50


def measure(
    ceilings: dict[str, float], queries: int = 100, documents: int = 2000
) -> dict[str, Any]:
    """Measure both sides in fp32 and quarry in bf16; scores in fp32 must be the same."""
    model = str(trained_reranker())
    with TemporaryDirectory() as folder:
        texts = run_side(write_pairs_run, folder=folder, documents=documents, queries=queries)
        run_side(mine, folder=folder)
        sides = {
            "mine_hard_negatives fp32": run_side(mine_hard_negatives, folder=folder, model=model),
            "quarry fp32": run_side(quarry, folder=folder, model=model, dtype="fp32"),
            "quarry bf16": run_side(quarry, folder=folder, model=model, dtype="bf16"),
        }
        work = run_side(pair_work, folder=folder, model=model)
        theirs, ours = (np.load(Path(folder) / f"{side}.npy") for side in ("theirs", "fp32"))
    seconds = {name: side["seconds"] for name, side in sides.items()}
    peer = seconds["mine_hard_negatives fp32"]
    return {
        "what": (
            f"{texts['texts']}: {queries} queries x {DEPTH} BM25 candidates of {documents}"
            f" documents, {work['tokens']} tokens of pairs"
        ),
        "sides": sides,
        "targets": [
            target("bf16, times mine_hard_negatives", peer / seconds["quarry bf16"], at_least=2.0),
            target(
                "largest difference of a score in fp32",
                float(np.abs(theirs - ours).max()),
                at_most=1e-4,
            ),
        ],
        "also": {"fp32, times mine_hard_negatives": round(peer / seconds["quarry fp32"], 2)},
        "floor": {
            dtype: floor(
                seconds[f"quarry {dtype}"],
                ceilings,
                flops=work["flops"],
                moved=work["bytes"],
                rate=f"{dtype}_flops",
            )
            for dtype in ("fp32", "bf16")
        },
    }


def mine(folder: str) -> dict[str, Any]:
    """Find the candidates that both sides score."""
    from miner.engine import How
    from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
    from miner.search.tokens import IndexBm25
    from miner.store import Run

    run = Run(Path(folder) / "run")
    index_bm25(run, IndexBm25(), How())
    return {"rows": mine_bm25(run, MineBm25(k=DEPTH), How()).rows}


def read_candidates(folder: str) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Return queries, texts of distinct documents, and the pairs as places in both, in order of
    query, then document.
    """
    from miner.query_shard import QueryShard
    from miner.store import Run

    run = Run(Path(folder) / "run")
    key, *_ = run.query_shards()
    shard = QueryShard(run, key)
    pairs = shard.pairs(["bm25"])
    rows, document = np.unique(pairs.row, return_inverse=True)
    return shard.texts, shard.documents.texts(rows), pairs.query, document


def mine_hard_negatives(folder: str, model: str) -> dict[str, Any]:
    """Score each query's candidates by one call of predict."""
    from sentence_transformers import CrossEncoder

    queries, documents, query, document = read_candidates(folder)
    encoder, scores = CrossEncoder(model, device="cpu"), np.empty(len(query), np.float32)
    encoder.predict([("a query", "a document")])

    def rescore() -> None:
        for number, text in enumerate(queries):
            places = np.flatnonzero(query == number)
            pairs = [(text, documents[place]) for place in document[places]]
            scores[places] = encoder.predict(
                pairs, batch_size=32, convert_to_tensor=True, show_progress_bar=False
            ).numpy()

    seconds = seconds_of(rescore)
    np.save(Path(folder) / "theirs.npy", scores)
    return {
        "clock": "texts in memory to scores in memory; loading the model left out",
        "seconds": round(seconds, 2),
    }


def quarry(folder: str, model: str, dtype: str) -> dict[str, Any]:
    """Score all pairs as the judge and the source do."""
    from miner.models.hub import Reranker
    from miner.models.reranker import bare, load_reranker

    queries, documents, query, document = read_candidates(folder)
    score = load_reranker(bare(Reranker(reranker=model, dtype=dtype)))
    score(["a query"], ["a document"], np.zeros(1, np.int64), np.zeros(1, np.int64))
    scores: list[np.ndarray] = []
    seconds = seconds_of(lambda: scores.append(score(queries, documents, query, document)))
    np.save(Path(folder) / f"{dtype}.npy", scores[0])
    return {
        "clock": "texts in memory to scores in memory; loading the model left out",
        "seconds": round(seconds, 2),
    }


def pair_work(folder: str, model: str) -> dict[str, Any]:
    """Count the tokens of all pairs, without padding, and what must be computed and read for
    them (a side).
    """
    from transformers import AutoTokenizer

    queries, documents, query, document = read_candidates(folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = [(queries[one], documents[other]) for one, other in zip(query, document, strict=True)]
    return encoder_work(
        model, np.array([len(ids) for ids in tokenizer(pairs, truncation=True)["input_ids"]])
    )
