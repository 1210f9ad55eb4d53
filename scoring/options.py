"""Every option of judge, select, score, report and export, written once, as in miner.options."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from miner.options import NAME, Asking, Encoder, Options, Reranker, argument, flag

Unsafe = Literal["hinge", "none"]
Format = Literal["triplet", "n-tuple", "labeled-pair", "labeled-list", "scored-list", "open-clip"]
# of the Cement loss: at tau .05 the most concrete word weighs e times the most abstract one
MARGIN_BASE, MARGIN_SLOPE = 0.0, 0.05


class JudgeSimilarity(Encoder):
    """Cosine under the target encoder: query to document, and document to the nearest positive."""


class JudgeCrossEncoder(Reranker):
    """The score of a cross-encoder that reads query and document together, for all pairs or
    within a budget.
    """

    name: str = Field(
        "cross-encoder", description="name of the judge, for more than one; no dot", pattern=NAME
    )
    max_pairs_per_query: int | None = Field(
        None,
        ge=1,
        description=(
            "candidates of a query that are scored, positives on top; the others are over_budget"
            " [default: all]"
        ),
    )
    first: str | None = Field(
        None,
        description=(
            "a cheap reranker, whose best candidates are within the budget [default: those of the"
            " best retrieval ranks]"
        ),
    )


class JudgeLlm(Asking):
    """What a language model says: p(yes) that a document answers its query, from the
    log-probabilities of yes and no.
    """

    name: str = Field(
        "llm", description="name of the judge, for more than one; no dot", pattern=NAME
    )
    llm: tuple[str, ...] = Field(
        (),
        description=(
            "hub id or local path for vLLM, or with --server a name there; repeat, cheap first:"
            " each further one is asked about what the one before is not sure of [default with"
            " --server: the first it serves]"
        ),
    )
    prompt: str = Field(
        "judge",
        description="the question in several wordings: judge, or a file of your own (.toml)",
    )
    votes: int = Field(3, ge=1, description="wordings that are asked; p(yes) is their mean")
    drop_at: float = Field(0.5, ge=0, le=1, description="p(yes) from which the verdict is drop")
    promote_at: float = Field(
        0.9, ge=0, le=1, description="p(yes) from which the verdict is promote"
    )
    sure: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description=(
            "of several models: one is sure where p(yes) is at most this, or at least 1 - this"
        ),
    )
    max_pairs_per_query: int | None = Field(
        None,
        ge=1,
        description=(
            "candidates of a query that are judged, by best rank, positives on top [default: all]"
        ),
    )


class JudgeDuplicates(Options):
    """What can never be a negative, seen without a model: copies of a positive or the query, and
    what links or labels tie to a positive.
    """

    shingle: int = Field(5, ge=1, description="characters in a shingle of the normalised text")
    near: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Jaccard similarity of shingles from which a text is a near-copy",
    )
    contain: float = Field(
        0.95, gt=0, le=1, description="share of a positive's shingles from which a text contains it"
    )
    contain_shingles: int = Field(
        50,
        ge=1,
        description="positives with fewer distinct shingles are not looked for in other texts",
    )
    links: Path | None = Field(
        None,
        description=(
            "csv, tsv, jsonl or parquet whose first two columns are the ids of a document and of"
            " one that it links to; a header does no harm, what the corpus does not have is passed"
            " over"
        ),
    )
    hub: int | None = Field(
        None,
        ge=2,
        description=(
            "a document that links to more than N does not tie them to each other [default: none]"
        ),
    )
    labels: Path | None = Field(
        None,
        description=(
            "a file like that of --links: a document's id and its class label; a document may have"
            " several"
        ),
    )


class JudgeOverlap(Options):
    """Lexical overlap: the share of a query's words, weighed by idf, that a document has."""

    index: str = Field(
        "bm25", description="which BM25 index: its tokens and its postings serve", pattern=NAME
    )


def read_bound(text: str) -> tuple[str | None, float]:
    """Return "JUDGE=VALUE" as (judge, value), "VALUE" as (None, value).

    Raises:
        ValueError: it is neither.
    """
    judge, equals, value = text.rpartition("=")
    try:
        return (judge if equals else None), float(value)
    except ValueError:
        raise ValueError(
            f"expected VALUE, or JUDGE=VALUE such as cross-encoder=0.9 (found {text!r})"
        ) from None


def _read_bounds(option: Any, info: ValidationInfo) -> Any:
    """Bring what flags, TOML and Python give into one form: a number, or texts "JUDGE=VALUE" (in
    TOML also a table of them).
    """
    if option is None:
        return None
    given = (
        [f"{judge}={value}" for judge, value in option.items()]
        if isinstance(option, dict)
        else option
    )
    texts = [str(given)] if isinstance(given, (int, float, str)) else [str(one) for one in given]
    bounds, (low, high) = (
        [read_bound(text) for text in texts],
        RANGES.get(info.field_name or "", (-math.inf, math.inf)),
    )
    for judge, value in bounds:
        if not low <= value <= high:
            raise ValueError(f"expected {low:g} to {high:g} (found {value:g})")
        if [other for other, _ in bounds].count(judge) > 1:
            raise ValueError(
                f"more than one value for {f'judge {judge}' if judge else 'the judge of --judge'}"
            )
    return bounds[0][1] if [judge for judge, _ in bounds] == [None] else tuple(texts)


RANGES = {"percent_margin": (1e-6, math.inf), "percentile_margin": (0.0, 100.0)}
Bounds = Annotated[tuple[str, ...] | float | None, BeforeValidator(_read_bounds)]
OF_JUDGE = "; JUDGE=VALUE for another judge than --judge; repeat for more"


class Select(Options):
    """A recipe: which candidates become the negatives of a set."""

    name: str = argument(description="name of the set", pattern=NAME)
    sources: tuple[str, ...] = Field(
        min_length=1,
        description="SOURCE or SOURCE:K, at most K negatives a query from it; repeat for a mixture",
        json_schema_extra={"flag": "--from"},
    )
    judge: str = Field(
        "similarity", description="judge whose scores the margins, the bounds and the sampler use"
    )
    agree: Literal["all", "any"] = Field(
        "all", description="with rules of several judges: which must let a candidate pass"
    )
    min_rank: int | None = Field(None, ge=1, description="leave out better retrieval ranks")
    max_rank: int | None = Field(None, ge=1, description="leave out worse retrieval ranks")
    absolute_margin: Bounds = Field(
        None, description="keep s_n < s_p - MARGIN, s_p the query's lowest positive" + OF_JUDGE
    )
    percent_margin: Bounds = Field(
        None, description="keep s_n < s_p - (1 - P) |s_p|; 0.95 is NV-Retriever's" + OF_JUDGE
    )
    percentile_margin: Bounds = Field(
        None, description="keep s_n below the P-th percentile of all positive scores" + OF_JUDGE
    )
    min_score: Bounds = Field(None, description="keep s_n >= SCORE" + OF_JUDGE)
    max_score: Bounds = Field(None, description="keep s_n <= SCORE" + OF_JUDGE)
    near_positive: float = Field(
        0.98,
        gt=0,
        description=(
            "drop what is as similar as this to a positive of the query, if judge similarity has"
            " run; above 1: off"
        ),
    )
    drop_other_positives: bool = Field(
        False, description="drop other queries' positives, which are kept and counted else"
    )
    promote: tuple[str, ...] = Field(
        (),
        description=(
            "JUDGE=SCORE, or JUDGE for its verdict: what reaches it is written apart as a likely"
            " positive; several must all agree"
        ),
    )
    sampler: Literal[
        "top", "random", "hardest", "simans", "quantile", "propensity", "diverse", "eci"
    ] = Field("top", description="which survivors fill quotas and -n")
    simans_a: float = Field(
        50.0,
        ge=0,
        description="simans: p ~ exp(-a (s_n - s_p - b)^2); 50 suits cosines, logits want less",
    )
    simans_b: float = Field(0.0, description="simans: b")
    quantile: float = Field(
        0.2,
        gt=0,
        le=1,
        description="quantile: share of a query's survivors that is hard enough to draw from",
    )
    bins: int = Field(
        5, ge=1, description="propensity: bins of lexical overlap (judge overlap), and of score"
    )
    weight_cap: float = Field(
        10.0, gt=0, description="propensity: highest ratio of target share to observed share"
    )
    theta: float = Field(
        0.5, ge=0, lt=1, description="diverse: 0 is diversity alone, near 1 score alone"
    )
    negatives: int | None = flag(
        "-n", None, ge=1, description="negatives a query, over all sources [default: all]"
    )
    seed: int = Field(
        0, description="seed of random choices; they depend on it and on the ids alone"
    )


class Score(Options):
    """ECI and its parts, for sets; retrieval quality, for sources."""

    sets: tuple[str, ...] = Field(
        (), description="sets to score [default: all]", json_schema_extra={"argument": True}
    )
    unsafe: Unsafe = Field(
        "hinge", description="margins below zero count as zero (hinge) or as they are (none)"
    )
    probe: bool = Field(
        False,
        description=(
            "artefact probe: can a classifier of words alone tell negatives from originals? (.5: it"
            " cannot)"
        ),
    )
    probe_most: int = Field(
        50_000,
        ge=10,
        description="pairs of negative and original that the probe reads; of more a part is drawn",
    )
    resamples: int = Field(
        1000, ge=0, description="bootstrap resamples of queries; 0 for no intervals"
    )
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
    out: Path | None = Field(
        None, description="folder [default: 8_export/SET.FORMAT in the run folder]"
    )
    file_type: Literal["parquet", "jsonl"] = Field("parquet", description="kind of file")
    negatives: int | None = flag(
        "-n",
        None,
        ge=1,
        description=(
            "negatives a row of n-tuple (positives with fewer are dropped and counted) [default:"
            " the set's own -n, else 5]"
        ),
    )
    promoted: bool = Field(
        False, description="the set's promoted documents count as further positives"
    )
    ids: bool = Field(False, description="add query_id and doc_id columns")
    concreteness: bool = Field(
        False,
        description=(
            "add columns concreteness, the rating c of the word that was changed in a made"
            " negative, and margin (Cement loss)"
        ),
    )
    margin_base: float = Field(
        MARGIN_BASE,
        description=(
            "m0 of margin = m0 + a (c - 1) / 4, and the margin of a negative without rating"
        ),
    )
    margin_slope: float = Field(
        MARGIN_SLOPE,
        description="a of margin = m0 + a (c - 1) / 4, in cosine: the most concrete word's surplus",
    )
    image_folder: Path | None = Field(
        None, description="open-clip: folder to put before each image's path"
    )
