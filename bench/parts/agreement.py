"""select beside mine_hard_negatives: with the same model and settings, the same negatives, pair by
pair, option by option.

The peer's window counts what is left after positives and filters; quarry's ranks are retrieval
ranks. So `range_max` is mining R candidates deep plus the most positives of any query, as the peer
searches, and a quota of R; and `range_min` of M is a window from rank M + 1, which means the same
for a query none of whose positives is among its first M: the others are counted apart. Queries of
the same text are left out, since the peer, which knows no ids, makes them one query.
"""

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inputs import MEDQUAD
from sides import run_side, target

DATA = {"scifact": "train", "cosqa": "dev"}
DEPTH = 50  # range_max, where an option has none of its own
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the peer's settings -> ours
    "top": ({}, {}),
    "range": ({"range_min": 10}, {"min_rank": 11}),
    "absolute margin": ({"absolute_margin": 0.1}, {"absolute_margin": 0.1}),
    "relative margin": ({"relative_margin": 0.05}, {"percent_margin": 0.95}),
    "max score": ({"max_score": 0.5}, {"max_score": 0.5}),
    "min score": ({"min_score": 0.4}, {"min_score": 0.4}),
    "all of them": (
        {"absolute_margin": 0.05, "relative_margin": 0.1, "max_score": 0.7, "min_score": 0.2},
        {"absolute_margin": 0.05, "percent_margin": 0.9, "max_score": 0.7, "min_score": 0.2},
    ),
}
NEGATIVES = 5


def measure(ceilings: dict[str, float]) -> dict[str, Any]:
    """Compare both on each data set in fp32."""
    found = {}
    for name, split in DATA.items():
        with TemporaryDirectory() as folder:
            theirs = run_side(mine_hard_negatives, folder=folder, name=name, split=split)
            run_side(
                quarry,
                folder=folder,
                name=name,
                split=split,
                most_positives=theirs["most_positives"],
            )
            found[f"{name}, {split}"] = compare(Path(folder))
    shares = [option["same"] for options in found.values() for option in options.values()]
    return {
        "what": (
            f"{NEGATIVES} negatives of the first {DEPTH}, all-MiniLM-L6-v2 in fp32; same: of all"
            " pairs that either side has"
        ),
        "pairs": found,
        "targets": [
            target(
                "least share of negatives that are the same, over all options",
                min(shares),
                at_least=0.999,
            )
        ],
    }


def read(name: str, split: str) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str]]]:
    """Return documents, queries and positives of a data set beside the checkout."""
    folder = MEDQUAD.parent / name
    with open(folder / "corpus.jsonl") as corpus, open(folder / "queries.jsonl") as queries:
        documents = {
            row["_id"]: f"{row.get('title') or ''} {row['text']}".strip()
            for row in map(json.loads, corpus)
        }
        asked = {row["_id"]: row["text"] for row in map(json.loads, queries)}
    lines = [
        line.split("\t")
        for line in (folder / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]
    ]
    positives = [(query_id, doc_id) for query_id, doc_id, grade in lines if int(grade) > 0]
    texts = Counter(asked[query_id] for query_id in {query_id for query_id, _ in positives})
    return (
        documents,
        asked,
        [(query_id, doc_id) for query_id, doc_id in positives if texts[asked[query_id]] == 1],
    )


def mine_hard_negatives(folder: str, name: str, split: str) -> dict[str, Any]:
    """Mine with sentence-transformers under each option; the model encodes once, since it is
    asked for the same texts each time.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from miner.models.hub import default_encoder

    documents, asked, positives = read(name, split)
    ids = {text: doc_id for doc_id, text in reversed(documents.items())}
    names = {asked[query_id]: query_id for query_id, _ in positives}
    model = SentenceTransformer(default_encoder(), device="cpu")
    model.encode_query, model.encode_document = (
        remembered(model.encode_query),
        remembered(model.encode_document),
    )
    pairs = Dataset.from_dict(
        {
            "query": [asked[q] for q, _ in positives],
            "positive": [documents[d] for _, d in positives],
        }
    )
    found = {}
    for option, (settings, _) in OPTIONS.items():
        mined = mine_hard_negatives(
            pairs,
            model,
            corpus=list(ids),
            num_negatives=NEGATIVES,
            range_max=DEPTH,
            output_format="triplet",
            output_scores=True,
            verbose=False,
            **settings,
        )
        found[option] = sorted(
            {(names[row["query"]], ids[row["negative"]], row["scores"][1]) for row in mined}
        )
    (Path(folder) / "theirs.json").write_text(json.dumps(found))
    counts = [
        sum(query_id == other for other, _ in positives)
        for query_id in {query_id for query_id, _ in positives}
    ]
    return {"most_positives": max(counts)}


def remembered(encode: Any) -> Any:
    """Return an encoder that encodes the same texts once."""
    found: dict[int, Any] = {}

    def encode_once(texts: list[str], **keywords: Any) -> Any:
        key = hash(tuple(texts))
        if key not in found:
            found[key] = encode(texts, **keywords)
        return found[key]

    return encode_once


def quarry(folder: str, name: str, split: str, most_positives: int) -> dict[str, Any]:
    """Mine and judge once, select under each option."""
    from miner.engine import How
    from miner.ingest.formats import IngestBeir
    from miner.ingest.ingest import ingest
    from miner.search.dense import MineDense, mine_dense
    from miner.search.dense_index import IndexDense, index_dense
    from miner.store import Run
    from scoring.judge.similarity import JudgeSimilarity, judge_similarity
    from scoring.recipe import Select
    from scoring.select import select

    run, how, kept = (
        Run(Path(folder) / "run"),
        How(),
        {query_id for query_id, _ in read(name, split)[2]},
    )
    ingest(run, IngestBeir(folder=MEDQUAD.parent / name, split=split), how)
    index_dense(run, IndexDense(dtype="fp32"), how)
    mine_dense(run, MineDense(k=DEPTH + most_positives), how)
    judge_similarity(run, JudgeSimilarity(), how)
    found, early = {}, early_positives(run, 10)
    for number, (option, (_, settings)) in enumerate(OPTIONS.items()):
        recipe = Select(
            name=f"set{number}",
            sources=(f"dense:{DEPTH}",),
            max_rank=DEPTH + most_positives,
            negatives=NEGATIVES,
            near_positive=2,
            **settings,
        )
        select(run, recipe, how)
        rows = [
            row
            for key in run.query_shards()
            for row in run.read(f"5_sets/set{number}", key).to_pylist()
        ]
        found[option] = sorted(
            (row["query_id"], row["doc_id"], row["score"])
            for row in rows
            if row["query_id"] in kept
        )
    (Path(folder) / "ours.json").write_text(json.dumps({"found": found, "early": sorted(early)}))
    return {}


def early_positives(run: Any, depth: int) -> set[str]:
    """Return the queries that have a positive among the first `depth` of source dense."""
    found = set()
    for key in run.query_shards():
        gold = {
            (row["query_id"], row["doc_id"])
            for row in run.read("1_tables/positives", key).to_pylist()
        }
        rows = run.read("3_candidates/dense", key).to_pylist()
        found |= {
            row["query_id"]
            for row in rows
            if row["rank"] <= depth and (row["query_id"], row["doc_id"]) in gold
        }
    return found


def compare(folder: Path) -> dict[str, dict[str, Any]]:
    """Hold the negatives of each option against each other; of the range, queries with a
    positive before it stand apart.
    """
    theirs, ours = (
        json.loads((folder / f"{side}.json").read_text()) for side in ("theirs", "ours")
    )
    early, found = set(ours["early"]), {}
    for option, rows in ours["found"].items():
        apart = early if option == "range" else set()
        one, other = (
            {(query, doc): score for query, doc, score in side if query not in apart}
            for side in (rows, theirs[option])
        )
        both = one.keys() & other.keys()
        found[option] = {
            "ours": len(one),
            "theirs": len(other),
            "same": len(both) / max(len(one.keys() | other.keys()), 1),
            "largest difference of a score": max(
                (abs(one[pair] - other[pair]) for pair in both), default=0.0
            ),
        }
        if apart:
            found[option]["queries apart, a positive among the first 10"] = len(apart)
    return found
