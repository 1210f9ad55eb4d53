"""A BEIR folder and hits of your own retriever, if you have them -> a fine-tuned reranker.

    python examples/finetune_reranker.py my-beir-folder --out reranker --model my-cross-encoder
    python examples/finetune_reranker.py my-beir-folder --out reranker --run-file splade=run.trec

Negatives are what the retriever that feeds the reranker finds: your run files, else BM25. What is
nearly a known positive is left out. Trains on pairs with binary cross-entropy.
"""

# ruff: noqa: T201

import argparse
from pathlib import Path

from datasets import Dataset
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

from quarry import Run


def main(argv: list[str] | None = None) -> None:
    """Mine, select, train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="BEIR folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and the model")
    parser.add_argument("--model", default="cross-encoder/ms-marco-MiniLM-L6-v2")
    parser.add_argument("--run-file", action="append", default=[], help="NAME=FILE of hits")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a pair")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many")
    options = parser.parse_args(argv)
    train(pairs_of(options), options)
    print(f"saved as {options.out / 'model'}")


def pairs_of(options: argparse.Namespace) -> Dataset:
    """Return anchor, text and label: positives, and six negatives for each query."""
    run = Run(options.out / "run")
    run.ingest("beir", folder=options.data, split="train", run_file=options.run_file)
    sources = [given.partition("=")[0] for given in options.run_file]
    if not sources:
        run.index("bm25")
        run.mine("bm25", k=50)
        sources = ["bm25"]
    run.mine("random")
    run.judge("similarity", max_length=options.max_length)
    run.judge("duplicates")
    asked = [*(f"{source}:5" for source in sources), "random:1"]
    made = run.select("pairs", sources=asked, near_positive=0.8, negatives=6)
    print(f"{made.rows['sets']} negatives; left out: {made.drops}")
    run.export("pairs", format="labeled-pair")
    return Dataset.from_parquet(run.exported("pairs", "labeled-pair").files)


def train(rows: Dataset, options: argparse.Namespace) -> None:
    """Train and save the model."""
    model = CrossEncoder(options.model, num_labels=1, max_length=options.max_length)
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(options.out / "model"),
        num_train_epochs=options.epochs,
        max_steps=options.steps,
        per_device_train_batch_size=32,
        learning_rate=2e-5,
        warmup_steps=0.1,
        save_strategy="no",
        report_to="none",
    )
    CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=rows, loss=BinaryCrossEntropyLoss(model)
    ).train()
    model.save(str(options.out / "model"))


if __name__ == "__main__":
    main()
