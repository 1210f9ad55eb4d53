"""Pairs of three data sets judged by a language model, and what was said held against what is
known.
"""

import gzip
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from inputs import MEDQUAD
from sides import run_side

DATA = MEDQUAD.parent
RELEVANT, PER_GRADE, FOUND, KEPT = 2, 5, 5, 5


def measure(ceilings: dict[str, float], data: str, llm: str | None, queries: int) -> dict[str, Any]:
    """Judge one data set's pairs, and hold what was said against what is known."""
    with TemporaryDirectory() as folder:
        grades = graded if data == "msmarco-dl" else listed
        known = grades(DATA / data, Path(folder), queries)
        return run_side(judged, folder=folder, llm=llm, known=known)


def write_beir(folder: Path, texts: dict[str, Any], asked: dict[str, str], rows: list[str]) -> None:
    """Write a BEIR folder: documents as they stand in their files, queries, qrels."""
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts.values()))
    lines = (json.dumps({"_id": name, "text": text}) + "\n" for name, text in asked.items())
    (folder / "queries.jsonl").write_text("".join(lines))
    head = "query-id\tcorpus-id\tscore"
    (folder / "qrels/test.tsv").write_text("\n".join([head, *rows]) + "\n")


def graded(source: Path, folder: Path, queries: int) -> dict[str, dict[str, int]]:
    """Write MS MARCO's pool as a run file, without the hidden half; return query -> document ->
    grade of the pool.
    """
    grades: dict[str, dict[str, int]] = {}
    for year in ("dl19", "dl20"):
        for line in (source / f"qrels/{year}.tsv").read_text().splitlines()[1:]:
            query_id, doc_id, grade = line.split("\t")
            grades.setdefault(query_id, {})[doc_id] = int(grade)
    pool: dict[str, dict[str, int]] = {}
    rows, lines = [], []
    for query_id, found in sorted(grades.items())[:queries]:
        draw = random.Random(f"0 {query_id}")
        chosen: dict[str, int] = {}
        for grade in range(4):
            names = sorted(doc_id for doc_id, value in found.items() if value == grade)
            chosen |= dict.fromkeys(draw.sample(names, min(PER_GRADE, len(names))), grade)
        relevant = sorted(doc_id for doc_id, grade in chosen.items() if grade >= RELEVANT)
        shown = set(draw.sample(relevant, len(relevant) - len(relevant) // 2))
        rows += [f"{query_id}\t{doc_id}\t{chosen[doc_id]}" for doc_id in sorted(shown)]
        lines += [
            f"{query_id} Q0 {doc_id} {rank} {1 / rank} pool"
            for rank, doc_id in enumerate(sorted(chosen), 1)
        ]
        pool[query_id] = chosen
    wanted = {doc_id for found in pool.values() for doc_id in found}
    with gzip.open(source / "corpus.jsonl.gz", "rt") as file:
        texts = {one["_id"]: one for one in map(json.loads, file) if one["_id"] in wanted}
    asked = {one["_id"]: one["text"] for one in _lines(source / "queries.jsonl")}
    write_beir(folder, texts, {name: asked[name] for name in pool}, rows)
    (folder / "pool.trec").write_text("\n".join(lines) + "\n")
    return pool


def listed(source: Path, folder: Path, queries: int) -> dict[str, dict[str, int]]:
    """Write the first queries with their positives and 2,000 documents; return query -> document
    -> 1 for its positives.
    """
    known: dict[str, dict[str, int]] = {}
    for line in (source / "qrels/test.tsv").read_text().splitlines()[1:]:
        query_id, doc_id, _ = line.split("\t")
        if query_id in known or len(known) < queries:
            known.setdefault(query_id, {})[doc_id] = 1
    rows = [f"{query}\t{doc}\t1" for query, found in known.items() for doc in found]
    wanted = {doc_id for found in known.values() for doc_id in found}
    texts = {
        one["_id"]: one
        for number, one in enumerate(_lines(source / "corpus.jsonl"))
        if number < 2000 or one["_id"] in wanted
    }
    asked = {one["_id"]: one["text"] for one in _lines(source / "queries.jsonl")}
    write_beir(folder, texts, {name: asked[name] for name in known}, rows)
    return known


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def judged(folder: str, llm: str | None, known: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Judge the pairs; return how well p(yes) and the encoder tell them apart."""
    from miner.engine import How
    from miner.ingest.formats import IngestBeir
    from miner.ingest.ingest import ingest
    from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
    from miner.search.dense_index import IndexDense, index_dense
    from miner.search.random_documents import MineRandom, mine_random
    from miner.search.tokens import IndexBm25
    from miner.store import Run
    from scoring.judge.calibration import Scale
    from scoring.judge.llm import JudgeLlm, judge_llm
    from scoring.judge.similarity import JudgeSimilarity, judge_similarity

    run, how, pool = Run(Path(folder) / "run"), How(), Path(folder) / "pool.trec"
    files = (f"pool={pool}",) if pool.exists() else ()
    ingest(run, IngestBeir(folder=folder, run_file=files, min_relevance=1), how)
    mine_random(run, MineRandom(k=2), how)
    if not files:
        index_bm25(run, IndexBm25(), how)
        mine_bm25(run, MineBm25(k=FOUND), how)
    index_dense(run, IndexDense(max_length=256), how)
    judge_similarity(run, JudgeSimilarity(max_length=256), how)
    options = JudgeLlm(llm=(llm,) if llm else (), calibrate=True)
    made = judge_llm(run, options, how)
    rows = _scores(run, known)
    scale = Scale(**made.facts["calibration"])
    return {
        "what": f"{len(known)} queries, {len(rows['p'])} pairs, {options.votes} wordings each",
        "llm": made.facts["llm"],
        "pairs/s": round(len(rows["p"]) / made.seconds, 2),
        "flip rate": made.facts["flip_rate"],
        "calibration": {name: round(value, 4) for name, value in scale._asdict().items()},
        **held_against(rows),
    }


def _scores(run: Any, known: dict[str, dict[str, int]]) -> dict[str, np.ndarray]:
    """Return of every pair that the model judged: p(yes), nearness to a positive, grade, whether
    it is a visible positive, whether it was drawn at random, its query.
    """
    table: dict[tuple[str, str], dict[str, float]] = {}
    drawn, positive = set(), set()
    for key in run.query_shards():
        for name in ("llm", "similarity"):
            for row in run.read(f"4_judgments/{name}", key).to_pylist():
                pair = row["query_id"], row["doc_id"]
                table.setdefault(pair, {})[row["judge"]] = row["score"]
        for row in run.read("3_candidates/random", key).to_pylist():
            drawn.add((row["query_id"], row["doc_id"]))
        for row in run.read(run.POSITIVES, key).to_pylist():
            positive.add((row["query_id"], row["doc_id"]))
    pairs = sorted(pair for pair, said in table.items() if said.get("llm") is not None)
    nan = float("nan")
    return {
        "p": np.array([table[pair]["llm"] for pair in pairs]),
        "cosine": np.array([table[pair]["similarity"] for pair in pairs]),
        "near": np.array([table[pair].get("similarity.positive") or nan for pair in pairs]),
        "grade": np.array([known[query].get(doc, 0) for query, doc in pairs]),
        "positive": np.array([pair in positive for pair in pairs]),
        "drawn": np.array([pair in drawn for pair in pairs]),
        "query": np.array([query for query, _ in pairs]),
    }


def held_against(rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return areas under curves, calibration, and hidden positives among what is kept."""
    from scoring.judge.calibration import calibration_error, reliability

    best = max(rows["grade"].max(), 1)
    right = rows["grade"] >= min(RELEVANT, best)
    found = ~rows["drawn"] | rows["positive"]
    told = {
        "AUC, relevant against what was found": _area(rows["p"][found], right[found]),
        "the same by cosine": _area(rows["cosine"][found], right[found]),
        "AUC, relevant against random": _area(
            rows["p"][right | rows["drawn"]], right[right | rows["drawn"]]
        ),
        "p of each grade": {
            str(grade): round(float(rows["p"][found & (rows["grade"] == grade)].mean()), 4)
            for grade in np.unique(rows["grade"])
        },
        "calibration error": {
            "against random": round(
                calibration_error(rows["p"][right | rows["drawn"]], right[right | rows["drawn"]]), 4
            ),
            "against what was found": round(calibration_error(rows["p"][found], right[found]), 4),
        },
        "reliability": reliability(rows["p"][found], right[found]),
    }
    hidden = right & ~rows["positive"]
    return told | ({"hidden positives": kept_hidden(rows, hidden)} if hidden.any() else {})


def kept_hidden(rows: dict[str, np.ndarray], hidden: np.ndarray) -> dict[str, Any]:
    """Return how many hidden positives are among the KEPT candidates of each query that a judge
    suspects least, and that chance would leave.
    """

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.argsort(np.argsort(np.nan_to_num(values, nan=-9.0))) / len(values)

    pool = ~rows["positive"] & ~rows["drawn"]
    suspicion = {
        "llm": rows["p"],
        "near-positive": rows["near"],
        "cosine to the query": rows["cosine"],
        "llm and near-positive, ranks added": ranks(rows["p"]) + ranks(rows["near"]),
    }
    out: dict[str, Any] = {name: 0 for name in suspicion}
    kept, chance = 0, 0.0
    for query in np.unique(rows["query"]):
        places = np.flatnonzero(pool & (rows["query"] == query))
        most = min(KEPT, len(places))
        kept += most
        chance += most * float(hidden[places].mean()) if most else 0.0
        for name, values in suspicion.items():
            least = places[np.argsort(values[places], kind="stable")[:most]]
            out[name] += int(hidden[least].sum())
    return {
        "kept": kept,
        "hidden in all": int(hidden[pool].sum()),
        "by chance": round(chance, 1),
    } | out


def _area(score: np.ndarray, right: np.ndarray) -> float | None:
    from scoring.judge.calibration import area_under_curve

    area = area_under_curve(score, right)
    return None if area is None else round(area, 4)
