"""Seconds and memory of the whole flow, and of the two searches beside their peers, on Python's standard library: `make bench`.

Each side runs in a process of its own, one after the other, on the same texts; what is compared is their ratio in this one run. The peers
are sentence-transformers' `mine_hard_negatives` (the whole dense job), rank_bm25 and bm25s (search alone). The result goes to
bench/results/flow.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULT = Path(__file__).parent / "results" / "flow.json"
MARGIN, NEGATIVES, DEPTH, LENGTH = 0.05, 5, 50, 128


def read_pairs(run_path):
    """Return the corpus as BEIR reads it, the queries, and each query's positive, as (ids, texts) lists."""
    from miner.corpus import Corpus
    from miner.store import Run

    run = Run(run_path)
    corpus = Corpus(run)
    texts = corpus.texts(np.arange(len(corpus)))
    queries = [row["text"] for key in run.query_shards() for row in run.read("1_tables/queries", key).to_pylist()]
    gold = [row["doc_id"] for key in run.query_shards() for row in run.read("1_tables/positives", key).to_pylist()]
    return texts, queries, corpus.rows(gold)


def quarry_dense(run_path, dtype):
    """Index, mine, judge, select: five negatives a query under a margin; then the same with another margin."""
    from miner.dense import index_dense, mine_dense
    from miner.engine import How
    from miner.options import IndexDense, MineDense
    from miner.store import Run
    from scoring.duplicates import judge_duplicates
    from scoring.options import JudgeDuplicates, JudgeSimilarity, Select
    from scoring.select import select
    from scoring.similarity import judge_similarity

    run, how, seconds = Run(run_path), How(force=True), {}

    def timed(name, work):
        start = time.perf_counter()
        work()
        seconds[name] = round(time.perf_counter() - start, 2)

    timed("index", lambda: index_dense(run, IndexDense(dtype=dtype, max_length=LENGTH), how))
    timed("mine", lambda: mine_dense(run, MineDense(k=DEPTH), how))
    timed("judge", lambda: (judge_similarity(run, JudgeSimilarity(), how), judge_duplicates(run, JudgeDuplicates(), how)))
    for name, margin in (("select", MARGIN), ("another margin", 2 * MARGIN)):
        timed(name, lambda: select(run, Select(name="five", sources=("dense",), absolute_margin=margin, negatives=NEGATIVES), how))  # noqa: B023
    return {"seconds": round(sum(seconds.values()) - seconds["another margin"], 2), "stages": seconds}


def peer_dense(run_path, dtype):
    """The same job with sentence-transformers' mine_hard_negatives, FAISS on. The clock runs over imports and loading, on both sides."""
    texts, queries, gold = read_pairs(run_path)
    start = time.perf_counter()
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from miner.models import default_encoder

    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = SentenceTransformer(default_encoder(), device="cpu", model_kwargs={"dtype": torch_dtype})
    model.max_seq_length = LENGTH
    pairs = Dataset.from_dict({"query": queries, "positive": [texts[row] for row in gold]})
    mine_hard_negatives(
        pairs, model, corpus=texts, num_negatives=NEGATIVES, range_max=DEPTH, absolute_margin=MARGIN, use_faiss=True,
        batch_size=32, output_format="n-tuple", verbose=False,
    )  # fmt: skip
    return {"seconds": round(time.perf_counter() - start, 2)}


def bm25(run_path, side):
    """Queries a second, top-50: rank_bm25 is asked 50 queries, the others all."""
    from miner.bm25 import Bm25, index_bm25, tokenizer
    from miner.engine import How
    from miner.options import IndexBm25
    from miner.store import Run

    texts, queries, _ = read_pairs(run_path)
    tokenize = tokenizer(IndexBm25())
    tokens, asked = [tokenize(text) for text in texts], [tokenize(text) for text in queries]
    start = time.perf_counter()
    if side == "quarry":
        index_bm25(Run(run_path), IndexBm25(), How(force=True))
        index = Bm25(Run(run_path), IndexBm25())
        index.search(queries[:2], DEPTH)
        search = lambda: index.search(queries, DEPTH)  # noqa: E731
    elif side == "bm25s":
        import bm25s

        index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numba")
        index.index(tokens, show_progress=False)
        index.retrieve(asked[:2], k=DEPTH, show_progress=False, n_threads=os.cpu_count())
        search = lambda: index.retrieve(asked, k=DEPTH, show_progress=False, n_threads=os.cpu_count())  # noqa: E731
    else:
        from rank_bm25 import BM25Okapi

        index, asked = BM25Okapi(tokens), asked[:50]
        search = lambda: [np.argsort(-index.get_scores(query), kind="stable")[:DEPTH] for query in asked]  # noqa: E731
    ready = time.perf_counter()
    search()
    count = len(asked) if side == "rank_bm25" else len(queries)
    return {"index_seconds": round(ready - start, 2), "queries_per_second": round(count / (time.perf_counter() - ready), 1)}


SIDES = {
    "quarry fp32": lambda run: quarry_dense(run, "fp32"),
    "quarry bf16": lambda run: quarry_dense(run, "bf16"),
    "mine_hard_negatives fp32": lambda run: peer_dense(run, "fp32"),
    "mine_hard_negatives bf16": lambda run: peer_dense(run, "bf16"),
    "bm25 quarry": lambda run: bm25(run, "quarry"),
    "bm25 bm25s": lambda run: bm25(run, "bm25s"),
    "bm25 rank_bm25": lambda run: bm25(run, "rank_bm25"),
}


def machine():
    """Say what this was measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    return {"cores": os.cpu_count(), "processor": model, "python": platform.python_version(), "system": platform.system()}


def main():
    """Measure every side in its own process and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=2000, help="queries")
    parser.add_argument("--side", help="measure this side here (what main calls)")
    parser.add_argument("--run", help="run folder")
    options = parser.parse_args()
    if options.side:
        measured = SIDES[options.side](options.run)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(measured | {"peak_memory_mb": round(peak)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        quarry = [sys.executable, "-m", "cli.main", "-r", folder]
        subprocess.run([*quarry, "ingest", "stdlib", "--limit", str(options.limit)], check=True, stdout=subprocess.DEVNULL)
        sides = {}
        for name in SIDES:
            output = subprocess.run(
                [sys.executable, __file__, "--side", name, "--run", folder], check=True, capture_output=True, text=True
            ).stdout
            sides[name] = json.loads(output.splitlines()[-1])
            print(name, sides[name], flush=True)
    seconds = {name: side["seconds"] for name, side in sides.items() if "seconds" in side}
    rate = {name: side["queries_per_second"] for name, side in sides.items() if "queries_per_second" in side}
    ratios = {
        "dense job, times as fast as mine_hard_negatives, fp32": seconds["mine_hard_negatives fp32"] / seconds["quarry fp32"],
        "dense job, times as fast as mine_hard_negatives, bf16": seconds["mine_hard_negatives bf16"] / seconds["quarry bf16"],
        "another margin, times as fast as mining again, fp32": seconds["mine_hard_negatives fp32"]
        / sides["quarry fp32"]["stages"]["another margin"],
        "bm25 queries/s, times bm25s": rate["bm25 quarry"] / rate["bm25 bm25s"],
        "bm25 queries/s, times rank_bm25": rate["bm25 quarry"] / rate["bm25 rank_bm25"],
    }
    result = {"command": "make bench", "machine": machine(), "queries": options.limit, "sides": sides,
              "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()}}  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratios"], indent=1))


if __name__ == "__main__":
    main()
