"""From a BEIR folder to a fine-tuned all-MiniLM-L6-v2: nDCG@10 on the test queries before and
after, with random negatives, with those of mine_hard_negatives at its defaults, and with the recipe
that `quarry tune` recommends; three negatives a query each, three seeds.

`python bench/finetune.py` runs all of it (about an hour and a half on two cores); each training is
kept in the cache, so that a run that was stopped goes on. Reads the data folder beside the
checkout. The result goes to bench/results/finetune.json.
"""

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inputs import MEDQUAD
from train_reranker import CACHE

RESULT = Path(__file__).parent / "results" / "finetune.json"
DATA = MEDQUAD.parent
NEGATIVES, LENGTH, BATCH, RATE, EPOCHS = 3, 96, 32, 2e-5, 1
TEST_QUERIES, DOCUMENTS = 1000, 5000  # at most, of what is tested on: MedQuAD's is a sample
# options of quarry tune; its defaults are for explicit negatives, the loss here has in-batch ones
TUNED: dict[str, dict[str, Any]] = {"recommended": {}, "recommended in-batch": {"batch": BATCH}}
ARMS = ("random", "mine_hard_negatives", *TUNED)


def main() -> None:
    """Train what is asked for and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="append", choices=("scifact", "medquad"))
    parser.add_argument("--queries", type=int, default=500, help="training queries")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found = json.loads(options.out.read_bytes()) if options.out.exists() else {}
    for data in options.data or ("scifact", "medquad"):
        found[data] = measure(data, options.queries, range(options.seeds))
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(data: str, queries: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Return nDCG@10 on the test queries before, and after each arm and seed."""
    home = CACHE / "finetune" / f"{data}-{queries}"
    beir = sampled_folder(data, queries, home / "beir")
    mined = {arm: home / f"{arm}.json" for arm in ARMS}
    recipe = write_sets(beir, home, mined)
    scores: dict[str, Any] = {"before": trained_score(data, None, home / "before.json", 0)}
    for arm, file in mined.items():
        scores[arm] = [
            trained_score(data, file, home / f"{arm}-{seed}.json", seed) for seed in seeds
        ]
    rows = {arm: len(json.loads(file.read_bytes())["anchor"]) for arm, file in mined.items()}
    settings = {"negatives": NEGATIVES, "length": LENGTH, "batch": BATCH, "rate": RATE}
    return {
        "ndcg@10": scores,
        "mean": {arm: round(float(np.mean(scores[arm])), 4) for arm in ARMS},
        "rows": rows,
        "recommended": recipe,
        "settings": settings | {"epochs": EPOCHS, "train queries": queries},
    }


def sampled_folder(data: str, queries: int, folder: Path) -> Path:
    """Write a BEIR folder of some training queries, drawn with a fixed seed, and all documents."""
    lines = (DATA / data / "qrels" / "train.tsv").read_text("utf-8").splitlines()
    ids = sorted({line.split("\t")[0] for line in lines[1:]})
    keep = set(np.random.default_rng(0).permutation(ids)[:queries].tolist())
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    kept = [lines[0], *(line for line in lines[1:] if line.split("\t")[0] in keep)]
    (folder / "qrels" / "train.tsv").write_text("\n".join(kept) + "\n", "utf-8")
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((DATA / data / name).resolve())
    return folder


def write_sets(beir: Path, home: Path, files: dict[str, Path]) -> dict[str, str]:
    """Mine with quarry and with mine_hard_negatives; write the rows of each arm, and return the
    recipes that tune recommends.
    """
    from miner.engine import How
    from miner.ingest.formats import IngestBeir
    from miner.ingest.ingest import ingest
    from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
    from miner.search.dense import MineDense, mine_dense
    from miner.search.dense_index import IndexDense, index_dense
    from miner.search.random_documents import MineRandom, mine_random
    from miner.search.tokens import IndexBm25
    from miner.store import Run
    from scoring.judge.duplicates import JudgeDuplicates, judge_duplicates
    from scoring.judge.similarity import JudgeSimilarity, judge_similarity
    from scoring.recipe import Select
    from scoring.tune import Tune, tune

    how, run = How(), Run(home / "run")
    ingest(run, IngestBeir(folder=beir, split="train"), how)
    index_bm25(run, IndexBm25(), how)
    index_dense(run, IndexDense(max_length=LENGTH), how)
    mine_bm25(run, MineBm25(k=50), how)
    mine_dense(run, MineDense(k=50), how)
    mine_random(run, MineRandom(k=50), how)
    judge_similarity(run, JudgeSimilarity(max_length=LENGTH), how)
    judge_duplicates(run, JudgeDuplicates(), how)
    sections = {}
    for arm, loss in TUNED.items():
        asked = Tune(most=NEGATIVES, **loss)
        sections[arm] = str(tune(run, asked, How(force=True)).facts["section"])
        made = tomllib.loads(sections[arm])["select"]["tuned"]
        made = {("sources" if key == "from" else key.replace("-", "_")): made[key] for key in made}
        write_export(run, Select(name=arm.replace(" ", "-"), **made), files[arm])
    plain = Select(name="random", sources=("random",), negatives=NEGATIVES)
    write_export(run, plain, files["random"])
    if not files["mine_hard_negatives"].exists():
        write_peer(run, files["mine_hard_negatives"])
    return sections


def write_export(run: Any, recipe: Any, file: Path) -> None:
    """Select a set, export it, and write its columns."""
    import pyarrow.dataset as pads

    from miner.engine import How
    from scoring.export import export
    from scoring.export_options import Export
    from scoring.select import select

    select(run, recipe, How(force=True))
    asked = Export(name=recipe.name, format="n-tuple", negatives=NEGATIVES)
    export(run, asked, How(force=True))
    rows = pads.dataset(run.path / f"8_export/{recipe.name}.n-tuple", format="parquet").to_table()
    file.write_text(json.dumps(rows.to_pydict()), "utf-8")


def write_peer(run: Any, file: Path) -> None:
    """Mine with mine_hard_negatives at its defaults, over all documents."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    from miner.corpus import Corpus

    corpus, asked, pairs = Corpus(run), {}, []
    for key in run.query_shards():
        queries, positives = run.read(run.QUERIES, key), run.read(run.POSITIVES, key)
        asked |= dict(
            zip(*(queries[name].to_pylist() for name in ("query_id", "text")), strict=True)
        )
        pairs += [(row["query_id"], row["doc_id"]) for row in positives.to_pylist()]
    found = corpus.rows([doc_id for _, doc_id in pairs])
    told = {"anchor": [asked[query_id] for query_id, _ in pairs], "positive": corpus.texts(found)}
    texts = corpus.texts(np.arange(len(corpus)))
    rows = mine_hard_negatives(
        Dataset.from_dict(told),
        encoder(),
        corpus=texts,
        num_negatives=NEGATIVES,
        output_format="n-tuple",
        use_faiss=True,
        verbose=False,
    )
    file.write_text(json.dumps(rows.to_dict()), "utf-8")


def encoder() -> Any:
    """Return all-MiniLM-L6-v2 as it comes, texts cut at LENGTH tokens."""
    from sentence_transformers import SentenceTransformer

    from miner.models.hub import default_encoder, locate

    model = SentenceTransformer(str(locate(default_encoder())), device="cpu")
    model.max_seq_length = LENGTH
    return model


def trained_score(data: str, rows: Path | None, file: Path, seed: int) -> float:
    """Return nDCG@10 of the model on the test queries, trained on some rows or as it is; from
    the cache if it is there.
    """
    if not file.exists():
        model = encoder()
        if rows is not None:
            train(model, json.loads(rows.read_bytes()), seed)
        file.write_text(json.dumps(round(ndcg(model, data), 4)))
        print(file.stem, file.read_text(), flush=True)
    return float(json.loads(file.read_bytes()))


def train(model: Any, columns: dict[str, list[str]], seed: int) -> None:
    """Train with MultipleNegativesRankingLoss, which takes the rest of the batch as well."""
    import tempfile

    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )

    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            warmup_steps=0.1,
            batch_sampler="no_duplicates",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=True,
            use_cpu=True,
            seed=seed,
        )
        SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            loss=losses.MultipleNegativesRankingLoss(model),
        ).train()


def ndcg(model: Any, data: str) -> float:
    """Return nDCG@10 over the test queries: exact search by cosine."""
    import ir_measures

    qrels, queries, documents = test_data(data)
    sides = (list(documents.values()), list(queries.values()))
    vectors = [
        model.encode(side, normalize_embeddings=True, batch_size=64, show_progress_bar=False)
        for side in sides
    ]
    doc_ids, run = list(documents), []
    for query_id, row in zip(queries, vectors[1] @ vectors[0].T, strict=True):
        for place in np.argsort(-row, kind="stable")[:20].tolist():
            run.append(ir_measures.ScoredDoc(query_id, doc_ids[place], float(row[place])))
    return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run).popitem()[1])


def test_data(data: str) -> tuple[list[Any], dict[str, str], dict[str, str]]:
    """Return qrels, queries and documents to test on: all, or a sample drawn with a fixed seed;
    documents that are relevant to a query of it are in.
    """
    import ir_measures

    folder, draw = DATA / data, np.random.default_rng(1)
    rows = (folder / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]
    told = [line.split("\t") for line in rows]
    drawn = draw.permutation(sorted({query_id for query_id, _, _ in told}))[:TEST_QUERIES]
    kept = set(drawn.tolist())
    qrels = [ir_measures.Qrel(q, d, int(grade)) for q, d, grade in told if q in kept]
    texts = {}
    for name in ("queries", "corpus"):
        lines = (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
        parsed = map(json.loads, lines)
        texts[name] = {
            row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in parsed
        }
    needed = {qrel.doc_id for qrel in qrels}
    others = [
        doc_id for doc_id in draw.permutation(sorted(texts["corpus"])) if doc_id not in needed
    ]
    keep = needed | set(others[: max(0, DOCUMENTS - len(needed))])
    if len(texts["corpus"]) <= 1.1 * DOCUMENTS:
        keep = set(texts["corpus"])
    return (
        qrels,
        {query_id: text for query_id, text in texts["queries"].items() if query_id in kept},
        {doc_id: text for doc_id, text in texts["corpus"].items() if doc_id in keep},
    )


if __name__ == "__main__":
    main()
