"""False negatives on MS MARCO (TREC DL 2019 and 2020): how many hidden relevant passages does a
recipe emit as negatives?

Of each query's passages judged relevant (grade 2 and 3) a random half is hidden. Candidates are the
first 100 of five real retrievers' runs; every recipe keeps at most 10 a query of the same
candidates. Two recipes are compared at equal numbers: of each query as many as both have, the first
ones. Hardness is the mean cosine of query and negative, under all-MiniLM-L6-v2, which judges as
well.
"""

import gzip
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inputs import MEDQUAD
from sides import run_side, target
from train_reranker import trained_reranker

FOLDER = MEDQUAD.parent / "msmarco-dl"
YEARS, RELEVANT, NEGATIVES = ("dl19", "dl20"), 2, 10
RUNS = ("BM25", "D_BERT_KD_TASB", "OPEN_AI_ADA2", "REP_LLAMA", "SPLADE_P_P_ENSEMBLE_DISTIL")
HARDEST = {"sampler": "hardest", "near_positive": 2.0}
RIVALS: dict[str, dict[str, Any]] = {
    "plain top-k of the runs": {"near_positive": 2.0},
    "sentence-transformers' defaults: top-k by the encoder": HARDEST,
    "NV-Retriever's TopK-PercPos, 95 %, by the encoder": HARDEST | {"percent_margin": 0.95},
}
OURS: dict[str, dict[str, Any]] = {
    **{
        f"near-positive {bound}": HARDEST | {"near_positive": bound}
        for bound in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
    },
    **{
        f"cross-encoder at most {bound}": HARDEST | {"max_score": {"cross-encoder": bound}}
        for bound in (0.7, 0.5, 0.3)
    },
    "cross-encoder, percent margin 0.95": HARDEST | {"percent_margin": {"cross-encoder": 0.95}},
    "near-positive 0.8, cross-encoder at most 0.7": (
        HARDEST | {"near_positive": 0.8, "max_score": {"cross-encoder": 0.7}}
    ),
    "near-positive 0.75, SimANS": {"sampler": "simans", "near_positive": 0.75},
}
DUELS = {  # rival -> the recipe of ours that is held against it
    "plain top-k of the runs": "near-positive 0.75",
    "sentence-transformers' defaults: top-k by the encoder": "near-positive 0.95",
    "NV-Retriever's TopK-PercPos, 95 %, by the encoder": "near-positive 0.5",
}


def measure(ceilings: dict[str, float]) -> dict[str, Any]:
    """Make all sets, count, and hold ours against each rival."""
    with TemporaryDirectory() as folder:
        hidden = write_inputs(Path(folder))
        run_side(index, folder=folder)
        # before judge duplicates: rivals have no such rule
        sets = run_side(choose, folder=folder, recipes=RIVALS)["sets"]
        run_side(judge, folder=folder, model=str(trained_reranker()))
        sets |= run_side(choose, folder=folder, recipes=OURS)["sets"]
    targets, duels = [], {}
    for rival, ours in DUELS.items():
        one, other = equal(sets[ours], sets[rival])
        duels[f"{ours} / {rival}"] = {"ours": count(one, hidden), "rival": count(other, hidden)}
        counted = duels[f"{ours} / {rival}"]
        targets += [
            target(f"hidden positives, times {rival}", share(counted, "hidden"), at_most=0.999),
            target(f"hardness, times {rival}", share(counted, "hardness"), at_least=1.0),
        ]
    return {
        "what": (
            f"TREC DL 2019 and 2020, passages: {len(hidden)} queries,"
            f" {sum(map(len, hidden.values()))} relevant passages hidden"
        ),
        "sets": {name: count(found, hidden) for name, found in sets.items()},
        "at equal numbers": duels,
        "targets": targets,
    }


def share(counted: dict[str, dict[str, float]], figure: str) -> float:
    """Return ours over the rival's."""
    return counted["ours"][figure] / max(counted["rival"][figure], 1e-9)


def write_inputs(folder: Path) -> dict[str, list[str]]:
    """Write qrels without the hidden half and the runs of both years as one; return query ->
    hidden documents.
    """
    grades: dict[str, dict[str, int]] = {}
    for year in YEARS:
        for line in (FOLDER / "qrels" / f"{year}.tsv").read_text().splitlines()[1:]:
            query_id, doc_id, grade = line.split("\t")
            grades.setdefault(query_id, {})[doc_id] = int(grade)
    hidden, visible = {}, ["query-id\tcorpus-id\tscore"]
    for query_id, found in sorted(grades.items()):
        relevant = sorted(doc_id for doc_id, grade in found.items() if grade >= RELEVANT)
        random.Random(f"0 {query_id}").shuffle(relevant)
        hidden[query_id] = relevant[: len(relevant) // 2]
        visible += [
            f"{query_id}\t{doc_id}\t{found[doc_id]}" for doc_id in relevant[len(relevant) // 2 :]
        ]
    (folder / "qrels.tsv").write_text("\n".join(visible) + "\n")
    for name in RUNS:
        parts = [
            gzip.decompress((FOLDER / "runs" / f"{name}.{year}.trec.gz").read_bytes()).decode()
            for year in YEARS
        ]
        (folder / f"{name}.trec").write_text("".join(parts))
    return hidden


def index(folder: str) -> dict[str, Any]:
    """Ingest the runs, index for the encoder's vectors, and judge similarity."""
    from miner.engine import How
    from miner.ingest.ingest import ingest
    from miner.ingest.trec import IngestTrec
    from miner.search.dense_index import IndexDense, index_dense
    from miner.store import Run
    from scoring.judge.similarity import JudgeSimilarity, judge_similarity

    run, how = Run(Path(folder) / "run"), How()
    runs = tuple(f"{name}={folder}/{name}.trec" for name in RUNS)
    files = {
        "corpus": FOLDER / "corpus.jsonl.gz",
        "topics": FOLDER / "queries.jsonl",
        "qrels": Path(folder) / "qrels.tsv",
    }
    ingest(run, IngestTrec(**files, run_file=runs, min_relevance=RELEVANT), how)
    index_dense(run, IndexDense(), how)
    judge_similarity(run, JudgeSimilarity(), how)
    return {}


def judge(folder: str, model: str) -> dict[str, Any]:
    """Judge by the other judges."""
    from miner.engine import How
    from miner.store import Run
    from scoring.judge.cross_encoder import JudgeCrossEncoder, judge_cross_encoder
    from scoring.judge.duplicates import JudgeDuplicates, judge_duplicates

    run = Run(Path(folder) / "run")
    judge_duplicates(run, JudgeDuplicates(), How())
    judge_cross_encoder(run, JudgeCrossEncoder(reranker=model), How())
    return {}


def choose(folder: str, recipes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Select each recipe; return the sets: name -> query -> (document, cosine) in order."""
    from miner.engine import How
    from miner.store import Run
    from scoring.recipe import Select
    from scoring.select import select

    run, made = Run(Path(folder) / "run"), {}
    for name, settings in recipes.items():
        recipe = Select(name="set", sources=RUNS, max_rank=100, negatives=NEGATIVES, **settings)
        select(run, recipe, How(force=True))
        found: dict[str, list[tuple[str, float]]] = {}
        for key in run.query_shards():
            for row in run.read("5_sets/set", key).to_pylist():
                found.setdefault(row["query_id"], []).append((row["doc_id"], row["score"]))
        made[name] = found
    return {"sets": made}


def equal(
    one: dict[str, list[Any]], other: dict[str, list[Any]]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return of each query as many of both, the first ones."""
    counts = {
        query_id: min(len(found), len(other.get(query_id, []))) for query_id, found in one.items()
    }
    return tuple(
        {query_id: side.get(query_id, [])[:most] for query_id, most in counts.items()}
        for side in (one, other)
    )  # type: ignore[return-value]


def count(found: dict[str, list[Any]], hidden: dict[str, list[str]]) -> dict[str, float]:
    """Return how many negatives a set has, how many are hidden positives, and its hardness, with
    and without those.
    """
    rows = [
        (doc_id in hidden[query_id], score)
        for query_id, negatives in found.items()
        for doc_id, score in negatives
    ]
    true = [score for is_hidden, score in rows if not is_hidden]
    return {
        "negatives": len(rows),
        "hidden": len(rows) - len(true),
        "hardness": round(sum(score for _, score in rows) / max(len(rows), 1), 4),
        "hardness of the others": round(sum(true) / max(len(true), 1), 4),
    }
