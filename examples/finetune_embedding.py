"""A BEIR folder, or a corpus without queries -> a fine-tuned embedding model.

    python examples/finetune_embedding.py my-beir-folder --out trained
    python examples/finetune_embedding.py my-beir-folder --out trained --rounds 2
    python examples/finetune_embedding.py corpus.jsonl --out trained

Mines with BM25 and with the model itself, lets `tune` search the recipe, and trains on batches in
which no row holds what is relevant to another's query. With more rounds, the model mines again with
what it has learned: only what depends on it is made anew. Where qrels/test.tsv is there, nDCG@10 on
it is printed before and after. A corpus alone is trained on spans of its documents (Contriever).
"""

# ruff: noqa: T201

import argparse
import tomllib
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.utils.data import BatchSampler, SequentialSampler

from quarry import Run


def main(argv: list[str] | None = None) -> None:
    """Mine, select, train and evaluate, round by round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="BEIR folder, or a file of documents")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and models")
    parser.add_argument("--model", help="sentence-transformers model [default: all-MiniLM-L6-v2]")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--negatives", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a text")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many")
    options = parser.parse_args(argv)
    run, model = ingested(options), options.model
    print_quality(options, model, "before")
    for turn in range(1, options.rounds + 1):
        rows = negatives_of(run, options, model, turn)
        model = train(rows, options, model, options.out / f"model-{turn}")
        print_quality(options, model, f"after round {turn}")


def ingested(options: argparse.Namespace) -> Run:
    """Read the data into a run, and find what does not depend on the model."""
    run = Run(options.out / "run")
    if options.data.is_dir():
        run.ingest("beir", folder=options.data, split="train")
    else:
        run.ingest("crops", corpus=str(options.data))
    run.index("bm25")
    run.mine("bm25", k=50)
    run.mine("random")
    return run


def negatives_of(run: Run, options: argparse.Namespace, model: str | None, turn: int) -> Dataset:
    """Mine with the model, take the recipe that covers its loss best, and return the rows."""
    encoder: dict[str, Any] = {"encoder": model, "max_length": options.max_length}
    dense = f"dense-{turn}"
    run.index("dense", name=dense, **encoder)
    run.mine("dense", name=dense, k=50)
    run.judge("similarity", force=turn > 1, **encoder)  # by the model as it is now
    run.judge("duplicates")
    # the batch is part of the loss: what is best differs with it
    tuned = run.tune(
        most=options.negatives,
        batch=options.batch_size,
        sources=["bm25", dense, "random"],
        force=turn > 1,
    )
    recipe = tomllib.loads(tuned.facts["section"])["select"]["tuned"]
    name = f"round-{turn}"
    run.select(name, **{key.replace("-", "_"): value for key, value in recipe.items()})
    if turn > 1:
        now, before = (pairs_in(run, one) for one in (name, f"round-{turn - 1}"))
        print(f"{len(now & before) / len(now):.0%} of the negatives are those of the last round")
    run.score(name)
    shape: dict[str, Any] = {"format": "n-tuple", "negatives": options.negatives, "fill": "repeat"}
    made = run.export(name, batch=options.batch_size, **shape)
    print(f"{made.rows['rows']} rows; {made.facts['notes'][0]}")
    return Dataset.from_parquet(run.exported(name, "n-tuple").files)


def pairs_in(run: Run, name: str) -> set[tuple[str, str]]:
    """Return query and document of each negative of a set."""
    ids = run.set(name).to_table(["query_id", "doc_id"])
    return set(zip(*(column.to_pylist() for column in ids.columns), strict=True))


def as_written(rows: Dataset, batch_size: int, drop_last: bool, **_: Any) -> BatchSampler:
    """Return the batches of the export, in its order."""
    return BatchSampler(SequentialSampler(rows), batch_size, drop_last)


def train(rows: Dataset, options: argparse.Namespace, model: str | None, out: Path) -> str:
    """Train and save; return the path of the model."""
    encoder = SentenceTransformer(model or default_model())
    encoder.max_seq_length = options.max_length
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out),
        num_train_epochs=options.epochs,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        batch_sampler=as_written,
        save_strategy="no",
        report_to="none",
    )
    SentenceTransformerTrainer(
        model=encoder,
        args=arguments,
        train_dataset=rows,
        loss=MultipleNegativesRankingLoss(encoder),
    ).train()
    encoder.save(str(out))
    return str(out)


def print_quality(options: argparse.Namespace, model: str | None, when: str) -> None:
    """Print nDCG@10 on the test queries, if there are any."""
    if not (options.data / "qrels" / "test.tsv").exists():
        return
    test, name = Run(options.out / "test"), when.replace(" ", "-")
    test.ingest("beir", folder=options.data, split="test")
    test.index("dense", name=name, encoder=model, max_length=options.max_length)
    test.mine("dense", name=name, k=100)
    test.score()
    table = test.table("metrics").to_table().to_pylist()
    quality = next(
        row["value"] for row in table if name in row["set_name"] and row["measure"] == "ndcg@10"
    )
    print(f"{when}: nDCG@10 {quality:.4f}")


def default_model() -> str:
    """Return the model that `index dense` takes where none is named."""
    from miner.models.hub import default_encoder

    return default_encoder()


if __name__ == "__main__":
    main()
