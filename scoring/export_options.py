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
        " set's own -n, else 5]; of the trainers that nest, at most so many [default: all]",
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
    image_folder: Path | None = option(None, "open-clip: folder to put before each image's path")
    card: bool = option(
        False,
        "write README.md, by which load_dataset(FOLDER) loads it as it is; pylate always has it",
    )
    prompt: str | None = option(
        None, "flag-embedding: its prompt; swift: the system's; else put before each query"
    )

    @property
    def kind(self) -> str:
        """Return the kind of file."""
        trainer = TRAINERS.get(self.format)
        return self.file_type or (trainer.file_type if trainer else "parquet")
