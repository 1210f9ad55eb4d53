"""The whole dense job beside sentence-transformers' mine_hard_negatives with FAISS: the same
pairs, model, depth, margin and count.
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inputs import read_texts, write_pairs_run
from parts.encode import transformer_work
from sides import floor, run_side, seconds_of, target

# the peer looks at 50 ranks and one for each query's positive
NEGATIVES, DEPTH, MARGIN = 5, 51, 0.05


def measure(
    ceilings: dict[str, float],
    documents: int = 3000,
    queries: int = 1500,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Measure all sides; in fp32 both must find the same negatives."""
    with TemporaryDirectory() as folder:
        texts = run_side(write_pairs_run, folder=folder, documents=documents, queries=queries)
        run_side(write_pairs_run, folder=f"{folder}/tiny", documents=60, queries=4)
        # leaves on disk what is compiled once for an installation
        run_side(quarry, folder=f"{folder}/tiny", dtype="fp32", max_length=8)
        sides = {
            f"{side.__name__} {dtype}": run_side(
                side, folder=folder, dtype=dtype, max_length=max_length
            )
            for dtype in ("bf16", "fp32")
            for side in (mine_hard_negatives, quarry)
        }
        compared = compare(folder)
        work = run_side(
            transformer_work, folder=folder, max_length=max_length, tables=("corpus", "queries")
        )
    seconds, memory = (
        {name: side[figure] for name, side in sides.items()}
        for figure in ("seconds", "peak_memory_mb")
    )
    peer = seconds["mine_hard_negatives fp32"]
    return {
        "what": (
            f"{texts['texts']}: {texts['queries']} queries, {texts['documents']} documents, evenly"
            f" spaced; {NEGATIVES} negatives of the first {DEPTH} ranks, absolute margin {MARGIN};"
            " no judge of duplicates, since the peer has no such rule"
        ),
        "sides": sides,
        "negatives, fp32": compared,
        "targets": [
            target("fp32, share of negatives that are the same", compared["same"], at_least=0.999),
            target(
                "bf16, times mine_hard_negatives fp32", peer / seconds["quarry bf16"], at_least=2.0
            ),
            target(
                "peak memory fp32, times mine_hard_negatives",
                memory["quarry fp32"] / memory["mine_hard_negatives fp32"],
                at_most=0.5,
            ),
            target(
                "another margin, times mine_hard_negatives fp32",
                peer / sides["quarry fp32"]["another_margin_seconds"],
                at_least=50,
            ),
        ],
        "floor, the encoder's": {
            dtype: floor(
                seconds[f"quarry {dtype}"],
                ceilings,
                flops=work["flops"],
                moved=work["bytes"],
                rate=f"{dtype}_flops",
            )
            for dtype in ("fp32", "bf16")
        },
        "also": {
            "fp32, times mine_hard_negatives fp32": round(peer / seconds["quarry fp32"], 2),
            "bf16, times mine_hard_negatives bf16": round(
                seconds["mine_hard_negatives bf16"] / seconds["quarry bf16"], 2
            ),
            "peak memory bf16, times mine_hard_negatives bf16": round(
                memory["quarry bf16"] / memory["mine_hard_negatives bf16"], 2
            ),
        },
    }


def quarry(folder: str, dtype: str, max_length: int | None) -> dict[str, Any]:
    """Index, mine, judge, select; then select once more under another margin."""
    start = time.perf_counter()
    from miner.engine import How
    from miner.search.dense import MineDense, mine_dense
    from miner.search.dense_index import IndexDense, index_dense
    from miner.store import Run
    from scoring.judge.similarity import JudgeSimilarity, judge_similarity
    from scoring.recipe import Select
    from scoring.select import select

    run, how, stages = (
        Run(Path(folder) / "run"),
        How(force=True),
        {"imports": round(time.perf_counter() - start, 3)},
    )

    def choose(name: str, margin: float) -> None:
        recipe = Select(
            name=name,
            sources=("dense",),
            absolute_margin=margin,
            max_rank=DEPTH,
            negatives=NEGATIVES,
        )
        select(run, recipe, how)

    works = {
        "index": lambda: index_dense(run, IndexDense(dtype=dtype, max_length=max_length), how),
        "mine": lambda: mine_dense(run, MineDense(k=DEPTH), how),
        "judge": lambda: judge_similarity(run, JudgeSimilarity(), how),
        "select": lambda: choose(dtype, MARGIN),
    }
    for name, work in works.items():
        stages[name] = round(seconds_of(work), 3)
    return {
        "clock": (
            "imports, loading the model and what is compiled, stages index dense, mine dense, judge"
            " similarity, select; all written"
        ),
        "seconds": round(time.perf_counter() - start, 3),
        "stages": stages,
        "another_margin_seconds": round(seconds_of(lambda: choose("another", 2 * MARGIN)), 3),
    }


def mine_hard_negatives(folder: str, dtype: str, max_length: int | None) -> dict[str, Any]:
    """Do the same job with sentence-transformers, and leave its triplets in `folder`."""
    texts, queries = read_texts(folder, "corpus"), read_texts(folder, "queries")
    ids = dict(zip(read_ids(folder, "corpus"), texts, strict=True))
    gold = [
        ids[line.split("\t")[1]]
        for line in (Path(folder) / "beir" / "qrels" / "train.tsv").read_text().splitlines()[1:]
    ]
    start = time.perf_counter()
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from miner.models.hub import default_encoder

    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = SentenceTransformer(
        default_encoder(),
        device="cpu",
        model_kwargs={"dtype": torch_dtype, "attn_implementation": "sdpa"},
    )
    if max_length is not None:
        model.max_seq_length = max_length
    mined = mine_hard_negatives(
        Dataset.from_dict({"query": queries, "positive": gold}),
        model,
        corpus=texts,
        num_negatives=NEGATIVES,
        range_max=DEPTH - 1,
        absolute_margin=MARGIN,
        use_faiss=True,
        batch_size=32,
        output_format="triplet",
        output_scores=True,
        verbose=False,
    )
    seconds = time.perf_counter() - start
    columns = [
        column for column in mined.column_names if column not in ("query", "positive", "scores")
    ]
    rows = [[row["query"], row[columns[0]], *row["scores"]] for row in mined]
    (Path(folder) / f"peer {dtype}.json").write_text(json.dumps(rows))
    return {
        "clock": "imports, loading the model, mine_hard_negatives; nothing written",
        "seconds": round(seconds, 3),
    }


def read_ids(folder: str, name: str) -> list[str]:
    """Return the ids of "corpus" or "queries" of `folder`/beir, in its order."""
    with open(Path(folder) / "beir" / f"{name}.jsonl") as file:
        return [json.loads(line)["_id"] for line in file]


def compare(folder: str) -> dict[str, Any]:
    """Hold quarry's fp32 negatives against the peer's, pair by pair.

    Returns:
        How many each has, the share of all that both have, and for those that one alone has how
        near the call was: the greatest distance of such a score to the margin's bound, or to a
        score that the other side alone has for the query, whichever is nearer.
    """
    from miner.store import Run

    run = Run(Path(folder) / "run")
    ids = {
        name: dict(zip(read_texts(folder, name), read_ids(folder, name), strict=True))
        for name in ("corpus", "queries")
    }
    rows = [row for key in run.query_shards() for row in run.read("5_sets/fp32", key).to_pylist()]
    ours = {(row["query_id"], row["doc_id"]): row["score"] for row in rows}
    peer = json.loads((Path(folder) / "peer fp32.json").read_text())
    theirs = {(ids["queries"][query], ids["corpus"][text]): score for query, text, _, score in peer}
    bounds = {ids["queries"][query]: positive - MARGIN for query, _, positive, _ in peer}
    bounds |= {row["query_id"]: row["positive_score"] - MARGIN for row in rows}
    gaps = []
    for pair in ours.keys() ^ theirs.keys():
        own, other = (ours, theirs) if pair in ours else (theirs, ours)
        rivals = [
            score for rival, score in other.items() if rival[0] == pair[0] and rival not in own
        ]
        gaps.append(min(abs(own[pair] - near) for near in [bounds[pair[0]], *rivals]))
    both = ours.keys() & theirs.keys()
    return {
        "ours": len(ours),
        "theirs": len(theirs),
        "same": len(both) / max(len(ours.keys() | theirs.keys()), 1),
        "largest score difference of the same pair": max(
            (abs(ours[pair] - theirs[pair]) for pair in both), default=0.0
        ),
        "largest distance of a differing pair to a tie": max(gaps, default=0.0),
    }
