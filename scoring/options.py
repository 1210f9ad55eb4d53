"""Every option of judge, select, score, report and export, written once, as in miner.options."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from miner.options import NAME, Encoder, Options, argument, flag

Unsafe = Literal["hinge", "none"]
Format = Literal["triplet", "n-tuple", "labeled-pair", "labeled-list", "scored-list"]


class JudgeSimilarity(Encoder):
    """Cosine under the target encoder: query to document, and document to the nearest positive."""


class JudgeDuplicates(Options):
    """Copies: a positive itself, the same normalised text, a near-copy of a positive, or the query's own text."""

    shingle: int = Field(5, ge=1, description="characters in a shingle of the normalised text")
    near: float = Field(0.9, gt=0, le=1, description="Jaccard similarity of shingles from which a text is a near-copy")


class Select(Options):
    """A recipe: which candidates become the negatives of a set."""

    name: str = argument(description="name of the set", pattern=NAME)
    sources: tuple[str, ...] = Field(
        min_length=1, description="SOURCE or SOURCE:K, at most K negatives a query from it; repeat for a mixture",
        json_schema_extra={"flag": "--from"},
    )  # fmt: skip
    judge: str = Field("similarity", description="judge whose scores the margins and bounds use")
    min_rank: int | None = Field(None, ge=1, description="leave out better retrieval ranks")
    max_rank: int | None = Field(None, ge=1, description="leave out worse retrieval ranks")
    absolute_margin: float | None = Field(None, description="keep s_n < s_p - MARGIN, s_p the query's lowest positive")
    percent_margin: float | None = Field(None, gt=0, description="keep s_n < s_p - (1 - P) |s_p|; 0.95 is NV-Retriever's")
    percentile_margin: float | None = Field(None, ge=0, le=100, description="keep s_n below the P-th percentile of all positive scores")
    min_score: float | None = Field(None, description="keep s_n >= SCORE")
    max_score: float | None = Field(None, description="keep s_n <= SCORE")
    sampler: Literal["top", "random"] = Field("top", description="which survivors fill a quota: best ranks, or seeded random")
    negatives: int | None = flag("-n", None, ge=1, description="negatives a query, over all sources [default: all]")
    seed: int = Field(0, description="seed of random choices; they depend on it and on the ids alone")


class Score(Options):
    """ECI and its parts, for sets; retrieval quality, for sources."""

    sets: tuple[str, ...] = Field((), description="sets to score [default: all]", json_schema_extra={"argument": True})
    unsafe: Unsafe = Field("hinge", description="margins below zero count as zero (hinge) or as they are (none)")
    resamples: int = Field(1000, ge=0, description="bootstrap resamples of queries; 0 for no intervals")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals")
    seed: int = Field(0, description="seed of the bootstrap")


class Report(Options):
    """One self-contained page."""

    examples: int = Field(10, ge=0, description="queries shown with their negatives")
    seed: int = Field(0, description="seed of the choice of examples")


class Export(Options):
    """A set as a trainer reads it."""

    name: str = argument(description="the set")
    format: Format = Field("triplet", description="shape of a row")
    out: Path | None = Field(None, description="folder [default: 8_export/SET.FORMAT in the run folder]")
    file_type: Literal["parquet", "jsonl"] = Field("parquet", description="kind of file")
    negatives: int | None = flag(
        "-n",
        None,
        ge=1,
        description="negatives a row of n-tuple (positives with fewer are dropped and counted) [default: the set's own -n, else 5]",
    )
    ids: bool = Field(False, description="add query_id and doc_id columns")
