"""Does a score of a set of negatives, computed before training, say what training on it will do?

    python bench/validity.py                 train what is not trained yet, write the result
    python bench/validity.py --only head     one student; --data scifact, --loss explicit likewise
    python bench/validity.py --analyse       no training: the analysis of what is in the cache

Reads SciFact, MedQuAD and CosQA beside the checkout; writes results/validity.json. Hours on two
cores (--seeds 1 does less); every run is kept in the user's cache folder, so a killed bench goes on
where it was.

What was fixed before the first run (pre-registration):

Question. A condition is a data set, a student (bench/parts/students.py), a loss and an optimiser.
In each, every set of bench/parts/validity_sets.py, six negatives a query, is trained on from the
same start; the gain is nDCG@10 on held-out queries after, minus before, mean over seeds. A
predictor is good if it puts the sets in the order of their gains.

Conditions. {SciFact, MedQuAD, CosQA} x {static, head, layer} x {explicit, in-batch} with Adam; with
SGD static and head. At most 400 training queries, 100 dev queries, 500 test queries, and a corpus
of 3,000 documents: the positives, and others drawn at random. tau .05, batches of 32, two epochs
(layer, minilm: one), three seeds (minilm: two). The learning rate is the one of a grid that does
best on dev queries with the set `random` and seed 0; then it is fixed for all sets.
Held out. minilm, the whole model, on CosQA, explicit: trained and looked at once, when all else is
written down.

Predictors. coverage and coverage_cosine (scoring/coverage.py), coverage against a sample of 1,000
documents, both with the batch among the negatives; eci_v1 with margins hinge, its signal and
margin, the share of safe triples, the mean length of the pull u, N_eff at tau. All of them with the
student's own vectors at the start.

Hypotheses. H1: over the explicit conditions with Adam, the mean Spearman correlation of coverage
and gain is .8 or more, and above that of ECI v1 by an interval that excludes 0. H2: coverage has .8
or more in at least 5 of the 6 of static and head. H3: with in-batch negatives, coverage computed
with the batch has .6 or more. H4: under SGD the cosine form predicts better than the sign form. H5:
in the mean over the explicit conditions, training on the set of the greedy sampler `coverage` gains
more than on each of dense, random, margin 95%, simans, eci.

Added when the runs of head and static had been seen, and none of layer and minilm: in CosQA and
SciFact training on any set with documents above the positive does harm, as if they answered the
query, while the reference asks for exactly these. Of some twenty other references tried on the
conditions of head and static, the one without documents that score as high as the positive (`safe
coverage`; both forms, and with the batch) is the simplest of the best: what it reaches there is
fitted. H6, its test: over the explicit conditions of layer, and held out on minilm, its mean
Spearman correlation is .7 or more, and above that of ECI v1 by an interval that excludes 0.

Intervals. 1,000 resamples of sets and of test queries together. Noise: the standard deviation of a
gain over seeds. Two sets really differ if their gains are further apart than twice the standard
error of a difference of means; of these pairs the share is told that a predictor orders right.
Regret: the gain of the best set minus that of the set that the predictor would choose.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from inputs import MEDQUAD
from parts.students import BATCH, STUDENTS, TAU, Recipe, Student, train
from parts.validity_sets import DEPTH, SIZE, Lists, Sets, drawn, greedy_pull, make_sets, ranks

from scoring.coverage import Pull, coverage, coverage_cosine, head_gradient
from scoring.eci import eci_sem, eci_v1

CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quarry-bench" / "validity"
)
RESULT = Path(__file__).parent / "results" / "validity.json"
SPLITS = {"scifact": ("train", "test"), "medquad": ("train", "test"), "cosqa": ("dev", "test")}
TRAIN, DEV, TEST, CORPUS, SAMPLE = 400, 100, 500, 3000, 1000
EPOCHS = {"static": 2, "head": 2, "layer": 1, "minilm": 1}
RATES = {
    ("static", "adam"): (0.0003, 0.001, 0.003, 0.01),
    ("static", "sgd"): (1.0, 10.0, 100.0, 1000.0),
    ("head", "adam"): (0.0001, 0.0003, 0.001, 0.003),
    ("head", "sgd"): (0.003, 0.01, 0.03, 0.1, 0.3),
    ("layer", "adam"): (0.0001, 0.0003, 0.001),
    ("minilm", "adam"): (2e-5, 5e-5, 1e-4),
}
LOSSES = {"explicit": False, "in-batch": True}
SEEDS = {"static": 3, "head": 3, "layer": 3, "minilm": 2}
HELD_OUT = ("cosqa", "minilm", "explicit", "adam")


class Data(NamedTuple):
    """A data set, cut to size: texts are queries, then documents.

    Attributes:
        texts: all of them. queries: how many are queries.
        positives: of each query, rows of documents.
        train, dev, test: places of queries.
    """

    name: str
    texts: list[str]
    queries: int
    positives: list[np.ndarray]
    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray


def read(name: str, seed: int = 0) -> Data:
    """Read a BEIR folder and cut it to size."""
    folder, random = MEDQUAD.parent / name, np.random.default_rng(seed)
    documents, queries = (
        {row["_id"]: row for row in map(json.loads, (folder / f"{kind}.jsonl").open())}
        for kind in ("corpus", "queries")
    )
    judged = [_qrels(folder / f"qrels/{split}.tsv", documents) for split in SPLITS[name]]
    asked = [[ids[i] for i in random.permutation(len(ids))] for ids in (sorted(j) for j in judged)]
    chosen = [asked[0][:TRAIN], asked[0][TRAIN : TRAIN + DEV], asked[1][:TEST]]
    ids = [query_id for part in chosen for query_id in part]
    gold = judged[0] | judged[1]
    needed = {doc_id for query_id in ids for doc_id in gold[query_id]}
    others = sorted(documents.keys() - needed)
    drawn = random.permutation(len(others))[: max(0, CORPUS - len(needed))]
    kept = sorted(needed | {others[place] for place in drawn})
    row = {doc_id: place for place, doc_id in enumerate(kept)}
    ends = np.cumsum([len(part) for part in chosen])
    return Data(
        name,
        [queries[query_id]["text"] for query_id in ids]
        + [f"{documents[i].get('title') or ''} {documents[i]['text']}".strip() for i in kept],
        len(ids),
        [np.array(sorted(row[doc_id] for doc_id in gold[query_id])) for query_id in ids],
        *np.split(np.arange(len(ids)), ends[:-1]),
    )


def _qrels(file: Path, known: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in file.read_text().splitlines()[1:]:
        query_id, doc_id, grade = line.split("\t")
        if float(grade) > 0 and doc_id in known:
            found.setdefault(query_id, []).append(doc_id)
    return found


def ndcg(vectors: np.ndarray, data: Data, asked: np.ndarray) -> np.ndarray:
    """Return nDCG@10 of each query asked (q,)."""
    scores = vectors[asked] @ vectors[data.queries :].T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    discount = 1 / np.log2(np.arange(2, 12))
    found = []
    for place, rows in zip(asked, best, strict=True):
        gold = data.positives[place]
        found.append((np.isin(rows, gold) * discount).sum() / discount[: len(gold)].sum())
    return np.array(found)


def bm25_scores(data: Data) -> np.ndarray:
    """Return rank_bm25's scores of all documents for the training queries."""
    from rank_bm25 import BM25Okapi

    cut = [re.findall(r"\w+", text.lower()) for text in data.texts]
    engine = BM25Okapi(cut[data.queries :])
    return np.stack([engine.get_scores(cut[query]) for query in data.train])


def lists_of(data: Data, vectors: np.ndarray, teacher: np.ndarray, bm25: np.ndarray) -> Lists:
    """Gather what sets are drawn from: no positive of a query has a score."""
    documents, first = vectors[data.queries :], _first(data)
    positives = [data.positives[query] for query in data.train]
    scores = [vectors[data.train] @ documents.T, teacher[data.train] @ teacher[data.queries :].T]
    scores = [one.copy() for one in (*scores, bm25)]
    own = np.take_along_axis(scores[0], first[:, None], 1)[:, 0]
    near = np.stack([(documents @ documents[rows].T).max(axis=1) for rows in positives])
    for line, rows in enumerate(positives):
        for one in scores:
            one[line, rows] = -np.inf
    return Lists(*scores, own, near, documents)


def _first(data: Data) -> np.ndarray:
    return np.array([data.positives[query][0] for query in data.train])


def reference(
    lists: Lists, queries: np.ndarray, positives: np.ndarray, rows: np.ndarray, safe: bool = False
) -> np.ndarray:
    """Return v of each training query against some of the documents; safe: those that score below
    the positive.
    """
    pull = Pull(queries, positives, TAU)
    scores = lists.student[:, rows]
    below = lists.positive[:, None] if safe else np.inf
    allowed = (np.isfinite(scores) & (scores < below)).astype(np.float32)
    pull.add(lists.vectors[rows], allowed * (lists.student.shape[1] / len(rows)))
    return pull.gradient()


def set_pull(
    lists: Lists, queries: np.ndarray, positive: np.ndarray, chosen: np.ndarray, batch: int | None
) -> np.ndarray:
    """Return u of each training query; with a batch, the mean over three draws of batches."""
    count, size = chosen.shape
    owner, found = np.repeat(np.arange(count), size), []
    for seed in range(3 if batch else 1):
        pull = Pull(queries, lists.vectors[positive], TAU)
        if batch is None:
            pull.add_own(owner, chosen.ravel(), lists.vectors)
        else:
            random = np.random.default_rng(seed)
            for part in np.array_split(random.permutation(count), -(-count // batch)):
                rows = np.unique(np.concatenate((chosen[part].ravel(), positive[part])))
                pairs = np.array([(o, r) for o in part for r in rows if r != positive[o]])
                pull.add_own(pairs[:, 0], pairs[:, 1], lists.vectors)
        found.append(pull.gradient())
    return np.mean(found, axis=0)


def predictors(
    data: Data, vectors: np.ndarray, lists: Lists, sets: Sets
) -> dict[str, dict[str, float]]:
    """Return set -> predictor -> value."""
    positive, queries = _first(data), vectors[data.train]
    own = lists.vectors[positive]
    everything = np.arange(len(lists.vectors))
    sample = np.random.default_rng(7).permutation(everything)[:SAMPLE]
    full, part = (
        head_gradient(queries, reference(lists, queries, own, rows))
        for rows in (everything, sample)
    )
    safe = head_gradient(queries, reference(lists, queries, own, everything, safe=True))
    found = {}
    for name, chosen in sets.items():
        pull = set_pull(lists, queries, positive, chosen, None)
        own_g = head_gradient(queries, pull)
        batch_g = head_gradient(queries, set_pull(lists, queries, positive, chosen, BATCH))
        negative = np.take_along_axis(lists.student, chosen, 1)
        margin = lists.positive[:, None] - negative
        share = np.exp((negative - negative.max(1, keepdims=True)) / TAU)
        share /= share.sum(1, keepdims=True)
        signal, hinge = float(negative.mean()), float(np.maximum(margin, 0).mean())
        found[name] = {
            "coverage": float(coverage(own_g, full)),
            "coverage_cosine": float(coverage_cosine(own_g, full)),
            "coverage, sample": float(coverage(own_g, part)),
            "coverage, batch": float(coverage(batch_g, full)),
            "coverage_cosine, batch": float(coverage_cosine(batch_g, full)),
            "safe coverage": float(coverage(own_g, safe)),
            "safe coverage_cosine": float(coverage_cosine(own_g, safe)),
            "safe coverage, batch": float(coverage(batch_g, safe)),
            "eci_sem": _eci_sem(vectors, data, lists, positive, chosen),
            "eci_v1": float(eci_v1(float(chosen.shape[1]), signal, hinge)),
            "signal": signal,
            "margin": hinge,
            "safe share": float((margin > 0).mean()),
            "pull": float(np.linalg.norm(pull, axis=1).mean()),
            "n_eff": float((1 / (share**2).sum(1)).mean()),
        }
    return found


def _eci_sem(
    vectors: np.ndarray, data: Data, lists: Lists, positive: np.ndarray, chosen: np.ndarray
) -> float:
    """Return eci_sem of all triples; lexical overlap is BM25's score over the query's highest."""
    size = chosen.shape[1]
    query, own = np.repeat(data.train, size), np.repeat(positive, size)
    overlap = np.take_along_axis(lists.bm25, chosen, 1) / lists.bm25.max(axis=1, keepdims=True)
    return eci_sem(
        vectors[query],
        lists.vectors[own],
        lists.vectors[chosen.ravel()],
        np.clip(overlap, 0, 1).ravel(),
    )


def matched_set(lists: Lists, queries: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the set of the sampler `coverage` (n, SIZE): of the student's best and as many others
    drawn, those whose pull comes nearest to that of the corpus.
    """
    target = reference(lists, queries, lists.vectors[positive], np.arange(len(lists.vectors)))
    best = ranks(lists.student, 0, DEPTH)
    allowed = np.ones(lists.student.shape, bool)
    np.put_along_axis(allowed, best, False, axis=1)
    pool = np.concatenate((best, drawn(lists, 11, allowed, DEPTH)), axis=1)
    chosen = np.empty((len(pool), SIZE), np.int64)
    for query, rows in enumerate(pool):
        pulls = lists.vectors[rows].astype(np.float64) - lists.vectors[positive[query]]
        logits = (lists.student[query, rows] - lists.positive[query]) / TAU
        chosen[query] = rows[
            greedy_pull(pulls, np.exp(logits.astype(np.float64)), target[query], SIZE)
        ]
    return chosen


class Condition(NamedTuple):
    """Data set, student, loss, optimiser."""

    data: str
    student: str
    loss: str
    optimiser: str

    @property
    def file(self) -> Path:
        """Return where its runs are kept."""
        return CACHE / ("-".join(self) + ".npz")


def run_condition(
    condition: Condition, data: Data, student: Student, sets: Sets, seeds: int
) -> None:
    """Train on every set that is not in the cache, and keep nDCG@10 of each test query."""
    kept = dict(np.load(condition.file)) if condition.file.exists() else {}
    texts = len(data.texts)

    def gains(chosen: np.ndarray, rate: float, seed: int, asked: np.ndarray) -> np.ndarray:
        documents = np.concatenate((_first(data)[:, None], chosen), axis=1) + data.queries
        recipe = Recipe(
            LOSSES[condition.loss], condition.optimiser, rate, EPOCHS[condition.student]
        )
        train(student, data.train, documents, recipe, seed)
        return ndcg(student.vectors(texts), data, asked)

    if "rate" not in kept:
        student.start()
        kept["before"] = ndcg(student.vectors(texts), data, data.test)
        rates = RATES[condition.student, condition.optimiser]
        dev = [float(gains(sets["random"], rate, 0, data.dev).mean()) for rate in rates]
        kept |= {"rate": np.array(rates[int(np.argmax(dev))]), "dev": np.array(dev)}
        _keep(condition.file, kept)
    for seed in range(min(seeds, SEEDS[condition.student])):
        for name, chosen in sets.items():
            if f"{name}|{seed}" not in kept:
                began = time.perf_counter()
                kept[f"{name}|{seed}"] = gains(chosen, float(kept["rate"]), seed, data.test)
                _keep(condition.file, kept)
                gain = (kept[f"{name}|{seed}"] - kept["before"]).mean()
                took = time.perf_counter() - began
                print(*condition, seed, f"{name:18} {gain:+.4f} {took:.1f} s", flush=True)
    student.start()


def _keep(file: Path, kept: dict[str, np.ndarray]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part.npz")
    np.savez(temporary, **kept)
    temporary.replace(file)


def conditions() -> Iterator[Condition]:
    """Yield what is trained, the cheap ones first."""
    for student, optimisers in (
        ("head", ("adam", "sgd")),
        ("static", ("adam", "sgd")),
        ("layer", ("adam",)),
    ):
        for data in SPLITS:
            for optimiser in optimisers:
                yield from (Condition(data, student, loss, optimiser) for loss in LOSSES)
    yield Condition(*HELD_OUT)


def main() -> None:
    """Train, then analyse."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=STUDENTS, action="append")
    parser.add_argument("--data", choices=SPLITS, action="append")
    parser.add_argument("--loss", choices=LOSSES, action="append")
    parser.add_argument("--analyse", action="store_true")
    parser.add_argument("--seeds", type=int, default=9, help="at most so many")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    for name in [] if given.analyse else given.only or STUDENTS:
        for data_name in given.data or SPLITS:
            wanted = [
                one
                for one in conditions()
                if (one.student, one.data) == (name, data_name)
                and (given.loss is None or one.loss in given.loss)
            ]
            if wanted:
                train_all(wanted, given.seeds)
    from parts.validity_analysis import analyse

    result = analyse(CACHE)
    given.out.write_text(_compact(result) + "\n")
    print(json.dumps(result["summary"], indent=1))


def _compact(result: dict[str, Any]) -> str:
    """Return JSON with lists on one line."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)


def train_all(wanted: list[Condition], seeds: int) -> None:
    """Run the conditions of one data set and student; what predicts is written beside the runs."""
    data = read(wanted[0].data)
    student = STUDENTS[wanted[0].student](data.texts)
    student.start()
    vectors = student.vectors(len(data.texts))
    lists = lists_of(data, vectors, teacher_of(data), bm25_scores(data))
    sets = make_sets(lists)
    sets["coverage"] = matched_set(lists, vectors[data.train], _first(data))
    file = CACHE / f"{data.name}-{wanted[0].student}-predictors.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(predictors(data, vectors, lists, sets), indent=1))
    for condition in wanted:
        run_condition(condition, data, student, sets, seeds)


def teacher_of(data: Data) -> np.ndarray:
    """Return the vectors of all texts by the whole of all-MiniLM-L6-v2, kept in the cache."""
    file = CACHE / f"{data.name}-teacher.npy"
    if not file.exists():
        from miner.models.encoder import load_encoder
        from miner.models.hub import Encoder

        encode = load_encoder(Encoder(dtype="fp32", max_length=128))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, encode(data.texts, "document"))
    return np.load(file)


if __name__ == "__main__":
    main()
