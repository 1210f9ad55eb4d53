"""Sums over queries -> measures of a set with their intervals."""

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from miner.options import Options, option
from miner.seeds import generator
from miner.store import Run
from miner.tables import METRICS, conform
from scoring.diagnostics import TAUS, gradient_shares, hardness
from scoring.eci import capacity, eci_v1, efficiency, margins

# sizes at which sets are compared, the first m negatives of each query
MATCHED = (1, 3, 5, 10, 25, 50, 100)
SUMS = ("negatives", "triples", "signal", "margin")
SHARES = ("gradient_unsafe", "gradient_hard", "gradient_easy")
PROFILE = tuple(f"{name}_{tau:g}" for tau in TAUS for name in ("n_eff", "top_share"))
COLUMNS = (
    *SUMS,
    "unsafe",
    "empty",
    *(f"{name}@{size}" for size in MATCHED for name in SUMS),
    *SHARES,
    *PROFILE,
)
CHUNK = 1 << 22  # draws that are in memory at a time
Sums = Mapping[str, np.ndarray]
Values = dict[tuple[str, int | None], np.ndarray]  # (measure, k) -> one value a resample


# measure -> its value without each block of queries, in the folder of a set
WITHOUT = "_coverage.parquet"
REFERENCE = f"{Run.METRICS}/_reference"  # of coverage
# the negatives of a shard that exceed their positive by most, in the folder of a set
SUSPECTS, WORST = "_suspects", 8
FOLDER, SETS, SOURCES = Run.METRICS, f"{Run.METRICS}/_per_query", f"{Run.METRICS}/_sources"

Unsafe = Literal["hinge", "none"]


class Lead(NamedTuple):
    """By how much one set exceeds another.

    Attributes:
        value, low, high: the difference and its interval; None without resamples.
        queries: how many it was measured on, if these are fewer than one of the sets has.
    """

    value: float
    low: float | None
    high: float | None
    queries: int | None = None


class Covering(Options):
    """How coverage is measured."""

    tau: float = option(0.05, "temperature of the loss that you will train with", gt=0)
    reference: int = option(
        4096,
        "documents that stand for the corpus, beside each query's candidates; 0 for all of it",
        ge=0,
    )
    reference_unsafe: bool = option(
        False, "count documents there that score as high as the positive: likely false negatives"
    )
    batch: int | None = option(
        None, "coverage with the other texts of a batch of N as negatives too", ge=2
    )
    seed: int = option(0, "seed of every draw")


class Score(Covering):
    """ECI and its parts, for sets; retrieval quality, for sources."""

    sets: tuple[str, ...] = option((), "sets to score [default: all]", argument=True)
    unsafe: Unsafe = option(
        "hinge", "margins below zero count as zero (hinge) or as they are (none)"
    )
    recommend: bool = option(False, "say which set to train on, and why")
    probe: bool = option(
        False,
        "artefact probe: can a classifier of words alone tell negatives from originals? (.5: it"
        " cannot)",
    )
    probe_most: int = option(
        50000, "pairs of negative and original that the probe reads; of more a part is drawn", ge=10
    )
    resamples: int = option(1000, "bootstrap resamples of queries; 0 for no intervals", ge=0)
    confidence: float = option(0.95, "of the intervals", gt=0, lt=1)


def query_sums(
    positive: np.ndarray, negative: np.ndarray, hinge: bool, tau: float = 0.05
) -> np.ndarray:
    """Return all that a set's measures need to know of one query, in the order of COLUMNS.

    Args:
        positive: (p,) similarities to the positives.
        negative: (n,) similarities to the negatives, in the order of the set.
        hinge: margins below zero count as zero.
        tau: temperature of the gradient shares.

    Returns:
        (len(COLUMNS),) float64: negatives, triples, sum of s_n, sum of margins over triples,
        triples with s_n >= s_p, 1 if there is no negative; then the first four again for the first
        m negatives only; gradient shares, and N_eff and top share by temperature.
    """
    sizes = np.minimum((len(negative), *MATCHED), len(negative))
    signal = np.concatenate(([0.0], np.cumsum(negative)))[sizes]
    margin = np.concatenate(([0.0], np.cumsum(margins(positive, negative, hinge).sum(axis=0))))[
        sizes
    ]
    sums = np.stack((sizes, sizes * len(positive), signal, margin), axis=1)
    unsafe = np.count_nonzero(margins(positive, negative, hinge=False) <= 0)
    flags = np.array([unsafe, len(negative) == 0], np.float64)
    told = np.zeros(len(SHARES) + len(PROFILE))
    if len(negative):
        profile = [number for one in TAUS for number in hardness(negative, one)]
        told = np.concatenate((gradient_shares(positive, negative, tau), profile))
    return np.concatenate((sums[0], flags, sums[1:].ravel(), told))


def read_sums(run: Run, folder: str) -> dict[str, np.ndarray]:
    """Return the numbers of all queries of a run, column by column, in order of query."""
    tables = [run.read(folder, key).drop_columns("query_id") for key in run.query_shards()]
    table = pa.concat_tables(tables)
    return {column: table[column].to_numpy() for column in table.column_names}


def matched_sizes(sums: Sums) -> list[int]:
    """Return the matched sizes that a set reaches on average."""
    mean = sums["negatives"].sum() / max(1, len(sums["negatives"]))
    return [size for size in MATCHED if size <= np.floor(mean + 0.5)]


def set_measures(sums: Sums, queries: int, sizes: Sequence[int]) -> Values:
    """Turn sums over queries into measures; each sum is (r,), one value a resample."""
    values: Values = {}
    for suffix, k in [("", None), *((f"@{size}", size) for size in sizes)]:
        mean = sums[f"negatives{suffix}"] / queries
        signal = ratio(sums[f"signal{suffix}"], sums[f"negatives{suffix}"])
        margin = ratio(sums[f"margin{suffix}"], sums[f"triples{suffix}"])
        values |= {
            (f"eci_v1{suffix}", k): eci_v1(mean, signal, margin),
            (f"signal{suffix}", k): signal,
            (f"margin{suffix}", k): margin,
        }
        if not suffix:
            values |= {
                ("efficiency", k): efficiency(signal, margin),
                ("capacity", k): capacity(mean),
                ("negatives", k): mean,
            }
    values["unsafe_share", None] = ratio(sums["unsafe"], sums["triples"])
    values["queries_without_negatives", None] = sums["empty"] / queries
    pulled = np.sum([sums[name] for name in SHARES], axis=0)
    values |= {(name, None): ratio(sums[name], pulled) for name in SHARES}
    values |= {(name, None): ratio(sums[name], queries - sums["empty"]) for name in PROFILE}
    return values


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, nan where the whole is 0.

    >>> ratio(np.array([1.0, 0.0]), np.array([4.0, 0.0])).tolist()
    [0.25, nan]
    """
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def evaluate(
    sums: Sums, options: Score, measures: Callable[[Sums, int], Values]
) -> tuple[Values, Values]:
    """Return every measure of all queries, (1,), and of each resample of them, (resamples,)."""
    matrix = np.stack(list(sums.values()), axis=1)
    totals, resampled = (
        matrix.sum(axis=0, keepdims=True),
        bootstrap(matrix, options.resamples, options.seed),
    )
    point, spread = (
        measures(dict(zip(sums, sheet.T, strict=True)), max(1, len(matrix)))
        for sheet in (totals, resampled)
    )
    return point, spread


def bootstrap(matrix: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return column sums of `resamples` draws of rows with replacement; the draws depend on seed
    and number of rows alone.

    Args:
        matrix: (q, s), a row per query.

    Returns:
        (resamples, s).
    """
    queries, random = len(matrix), generator(seed)
    out = np.zeros((resamples, matrix.shape[1]))
    step = max(1, CHUNK // max(1, queries))
    for start in range(0, resamples if queries else 0, step):
        count = min(step, resamples - start)
        drawn = random.integers(0, queries, (count, queries)) + np.arange(count)[:, None] * queries
        times = np.bincount(drawn.ravel(), minlength=count * queries).reshape(count, queries)
        # Not a BLAS product: einsum adds in one order, whatever the number of threads.
        out[start : start + count] = np.einsum("rq,qs->rs", times.astype(np.float64), matrix)
    return out


def percentile_interval(
    resamples: np.ndarray, confidence: float
) -> tuple[float | None, float | None]:
    """Return the percentile interval of the resamples in which a measure exists."""
    known = resamples[~np.isnan(resamples)]
    if not len(known):
        return None, None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def jackknife_interval(
    value: float, without: np.ndarray, confidence: float
) -> tuple[float | None, float | None]:
    """Return the normal interval around a value by what it is without each of b groups (b,), by
    Tukey's jackknife: the standard error is sqrt((b - 1) / b sum (x - mean)^2).

    >>> [round(end, 3) for end in jackknife_interval(0.5, np.array([0.4, 0.5, 0.6]), 0.95)]
    [0.274, 0.726]
    """
    known = without[~np.isnan(without)]
    if len(known) < 2 or np.isnan(value):
        return None, None
    error = float(np.sqrt((len(known) - 1) * known.var()))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return value - reach, value + reach


def metric_rows(
    name: str, value: Values, spread: Values, confidence: float, n: int, left_out: bool = False
) -> pa.Table:
    """Return rows of `metrics`, each with its interval: of resamples, or with `left_out` of what a
    measure is without each group of queries.
    """
    rows = []
    for (measure, k), point in value.items():
        drawn = spread[measure, k]
        low, high = (
            jackknife_interval(float(point[0]), drawn, confidence)
            if left_out
            else percentile_interval(drawn, confidence)
        )
        known = None if np.isnan(point[0]) else float(point[0])
        rows.append(
            {
                "set_name": name,
                "measure": measure,
                "k": k,
                "value": known,
                "low": low,
                "high": high,
                "n": n,
            }
        )
    return conform(pa.Table.from_pylist(rows, METRICS.schema), METRICS)
