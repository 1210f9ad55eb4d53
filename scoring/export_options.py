"""What `quarry export` can be told."""

from pathlib import Path
from typing import Literal

from miner.options import Options, option
from scoring.cement import MARGIN_BASE, MARGIN_SLOPE
from scoring.trainers import TRAINERS

Format = Literal[
    "triplet",
    "n-tuple",
    "labeled-pair",
    "labeled-list",
    "scored-list",
    "open-clip",
    "flag-embedding",
    "tevatron",
    "pylate",
    "swift-embedding",
    "swift-reranker",
    "preference",
    "beir",
    "trec",
    "nemo",
    "webdataset",
]


class Export(Options):
    """A set as a trainer reads it."""

    name: str = option(..., "the set", argument=True)
    format: Format = option("triplet", "shape of a row")
    out: Path | None = option(None, "folder [default: 8_export/SET.FORMAT in the run folder]")
    file_type: Literal["parquet", "jsonl"] | None = option(
        None, "kind of file [default: what the trainer reads]"
    )
    negatives: int | None = option(
        None,
        "negatives a row of n-tuple (positives with fewer are dropped and counted) [default: the"
        " set's own -n, else 5]; of the trainers that nest, beir, trec and nemo, at most so many"
        " [default: all]",
        short="-n",
        ge=1,
    )
    promoted: bool = option(False, "the set's promoted documents count as further positives")
    ids: bool = option(False, "add query_id and doc_id columns")
    concreteness: bool = option(
        False,
        "add columns concreteness, the rating c of the word that was changed in a made negative,"
        " and margin (Cement loss)",
    )
    margin_base: float = option(
        MARGIN_BASE,
        "m0 of margin = m0 + a (c - 1) / 4, and the margin of a negative without rating",
    )
    margin_slope: float = option(
        MARGIN_SLOPE,
        "a of margin = m0 + a (c - 1) / 4, in cosine: the most concrete word's surplus",
    )
    image_folder: Path | None = option(
        None, "open-clip: folder to put before each image's path; webdataset: where they lie"
    )
    scores: bool = option(
        False, "triplet, n-tuple: add a label, the judge's scores of positive and negatives"
    )
    weights: Literal["set", "softmax", "score"] | None = option(
        None, "add a weight of each negative: the set's own, its softmax share, or its score"
    )
    tau: float = option(0.05, "temperature of --weights softmax", gt=0)
    fill: Literal["drop", "repeat", "resample"] = option(
        "drop", "n-tuple: what becomes of positives with fewer negatives than -n"
    )
    batch: int | None = option(
        None,
        "mix the rows, so that no batch of so many, in this order, holds a text that is relevant"
        " to another row's query",
        ge=2,
    )
    dev: float | None = option(
        None,
        "share of queries that go into dev/, the rest into train/; no positive is in both",
        gt=0,
        lt=1,
    )
    task: str | None = option(None, "add a column task with this text")
    task_labels: bool = option(
        False, "add a column task, the class label of the positive; each batch holds one task"
    )
    seed: int = option(0, "seed of what is drawn: fill, batch, dev")
    card: bool = option(
        False,
        "write README.md, by which load_dataset(FOLDER) loads it as it is; pylate always has it",
    )
    prompt: str | None = option(
        None,
        "flag-embedding: its prompt; swift: the system's; nemo: query_instruction; else put before"
        " each query",
    )

    @property
    def nests(self) -> bool:
        """Return whether a row is a query with all its documents."""
        return self.format in TRAINERS

    @property
    def arranged(self) -> bool:
        """Return whether rows are put in an order of their own."""
        return self.batch is not None or self.dev is not None

    @property
    def kind(self) -> str:
        """Return the kind of file."""
        trainer = TRAINERS.get(self.format)
        return self.file_type or (trainer.file_type if trainer else "parquet")
