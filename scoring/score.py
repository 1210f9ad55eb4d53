"""sets + similarities -> metrics: ECI and its parts with intervals, shard by shard; and what the
sources retrieve.

A shard keeps sums per query, `6_metrics/_per_query/<set>`; from these alone come the values, the
intervals (bootstrap over queries) and the paired differences of two sets. The same resamples serve
every set.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.engine import How
from miner.errors import UserError
from miner.files import write_table
from miner.options import Options, option
from miner.query_shard import IDS, QueryShard
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.tables import METRICS, conform
from scoring.eci import capacity, eci_v1, efficiency, margins
from scoring.judgments import Judgments, read_judgments
from scoring.probe import probe_set, rows_of
from scoring.recipe import require_judged
from scoring.sets import need_set

FOLDER, SETS, SOURCES = Run.METRICS, f"{Run.METRICS}/_per_query", f"{Run.METRICS}/_sources"
SIMILARITY = f"{Run.JUDGES}/similarity"
# sizes at which sets are compared, the first m negatives of each query
MATCHED = (1, 3, 5, 10, 25, 50, 100)
SUMS = ("negatives", "triples", "signal", "margin")
COLUMNS = (*SUMS, "unsafe", "empty", *(f"{name}@{size}" for size in MATCHED for name in SUMS))
OF_SOURCES = ("resamples", "confidence", "seed")  # options that a source's measures depend on
BIN = 0.02
RANGES = {"s_n": 1.0, "s_p": 1.0, "margin": 2.0}  # quantity -> it lies within plus or minus this
CHUNK = 1 << 22  # draws that are in memory at a time

Sums = Mapping[str, np.ndarray]
Values = dict[tuple[str, int | None], np.ndarray]  # (measure, k) -> one value a resample


Unsafe = Literal["hinge", "none"]


class Score(Options):
    """ECI and its parts, for sets; retrieval quality, for sources."""

    sets: tuple[str, ...] = option((), "sets to score [default: all]", argument=True)
    unsafe: Unsafe = option(
        "hinge", "margins below zero count as zero (hinge) or as they are (none)"
    )
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
    seed: int = option(0, "seed of the bootstrap")


def score(run: Run, options: Score, how: How) -> list[Manifest]:
    """Score sets and all sources: sets, similarities, candidates, positives -> 6_metrics.

    Sources that were not searched with the queries alone are left out: that they rank a positive
    high or low says nothing of them.

    A set's scores are those of judge "similarity", whatever judge its recipe used. Signal is the
    mean over the set's pairs (query, negative), margin the mean over its triples (query, positive,
    negative): both pooled, so a query counts by its pairs and a mixture weighs its sources per
    negative.

    Returns:
        the manifests of the sets, then of the sources.

    Raises:
        UserError: a set is not there, there is nothing to score, or pairs of a set have no
            similarity.
    """
    run.tables()  # without them, that is what there is to say
    names, sources = options.sets or run.names(run.SETS), run.names(run.SOURCES)
    if not names and not sources:
        raise UserError(
            f"{run.path} has neither a set nor a source to score; run `quarry mine SOURCE` and"
            " `quarry select SET` first"
        )
    scored = [_score_set(run, name, options, how) for name in names]
    return scored + [
        _score_source(run, name, options, how) for name in sources if _answers_queries(run, name)
    ]


def _answers_queries(run: Run, source: str) -> bool:
    """Tell whether a source's ranks say how well it finds positives. If not, take measures away
    that an earlier one of its name left.
    """
    found = run.need_current(f"{run.SOURCES}/{source}", f"mine {source}")
    if found.facts.get("searched_with", "query") == "query":
        return True
    shutil.rmtree(run.path / SOURCES / source, ignore_errors=True)
    (run.path / FOLDER / f"source-{source}.parquet").unlink(missing_ok=True)
    return False


def metrics(run: Run) -> pa.Table:
    """Return all finished metrics of a run, sets first, each in order of name."""
    files = [f"set-{name}" for name in run.names(SETS)] + [
        f"source-{name}" for name in run.names(SOURCES)
    ]
    return pa.concat_tables(
        [METRICS.schema.empty_table(), *(run.read(FOLDER, file) for file in files)]
    )


def paired_difference(
    run: Run, set_a: str, set_b: str, measure: str, options: Score
) -> tuple[float, float | None, float | None]:
    """Return by how much a measure of set_a exceeds that of set_b, with the interval of the
    difference.

    Both sets are resampled with the same queries, so what makes a query easy for both cancels out.

    Args:
        run: a run in which both sets are scored.
        set_a, set_b: names of sets.
        measure: a measure of both, such as "eci_v1" or "eci_v1@10".
        options: resamples, confidence and seed.

    Returns:
        value, low, high; low and high are None without resamples.

    Raises:
        UserError: a set is not scored, or does not have the measure.
    """
    values, resamples = [], []
    for name in (set_a, set_b):
        manifest = run.need(f"{SETS}/{name}", f"score {name}")
        sums = _read_sums(run, manifest.stage)
        value, spread = _evaluate(sums, options, partial(_set_measures, sizes=_sizes(sums)))
        key = next((key for key in value if key[0] == measure), None)
        if key is None:
            raise UserError(
                f"set {name} has no measure {measure!r}; take one of"
                f" {', '.join(sorted(name for name, _ in value))}"
            )
        values.append(value[key][0])
        resamples.append(spread[key])
    return float(values[0] - values[1]), *_interval(resamples[0] - resamples[1], options.confidence)


def _score_set(run: Run, name: str, options: Score, how: How) -> Manifest:
    made, similar = need_set(run, name), run.need_current(SIMILARITY, "judge similarity")
    sources = {
        (folder, before)
        for folder, before in made.inputs.items()
        if folder.startswith(f"{run.SOURCES}/")
    }
    tables = run.tables().fingerprint
    if not {*sources, (run.TABLES, tables)} <= set(similar.inputs.items()):
        require_judged(run, "similarity", [run.TABLES, f"{run.SETS}/{name}"])
    inputs = {
        run.TABLES: tables,
        f"{run.SETS}/{name}": made.fingerprint,
        SIMILARITY: similar.fingerprint,
    }
    stage = Stage(
        f"{SETS}/{name}",
        "per_query",
        options.model_dump(mode="json", exclude={"sets"}),
        inputs,
        cheap=True,
        made_by="score",
    )

    def reduce() -> dict[str, Any]:
        sums = _read_sums(run, stage.folder)
        value, spread = _evaluate(sums, options, partial(_set_measures, sizes=_sizes(sums)))
        with_negatives = int((sums["empty"] == 0).sum())
        rows, facts = (
            _rows(name, value, spread, options.confidence, with_negatives),
            dict[str, Any](),
        )
        if options.probe and (probe := probe_set(run, name, options.probe_most, options.seed)):
            rows = pa.concat_tables([rows, rows_of(name, probe)])
            facts = {
                "probe_telling": dict(zip(("negatives", "originals"), probe.telling, strict=True))
            }
        write_table(run.path / FOLDER / f"set-{name}.parquet", rows)
        return facts | {
            "queries": len(sums["empty"]),
            "pooling": "signal over pairs, margin over triples",
        }

    return run_stage(
        run,
        stage,
        lambda: partial(_sum_shard, run, name, options.unsafe == "hinge"),
        run.query_shards(),
        how,
        reduce,
    )


def _sum_shard(run: Run, name: str, hinge: bool, key: str) -> Shard:
    """Sum one shard of a set query by query, and count its scores and margins in bins; pairs
    without a finite score are dropped.
    """
    shard = QueryShard(run, key)
    judged = read_judgments(shard, "similarity")
    chosen = run.read(f"{run.SETS}/{name}", key, [*IDS, "rank"])
    query, row = shard.places(chosen)
    order = np.lexsort((chosen["rank"].to_numpy(), query))
    positives, positive_drops = _by_query(shard, shard.positives, judged)
    negatives, negative_drops = _by_query(shard, (query[order], row[order]), judged)
    pairs = list(zip(positives, negatives, strict=True))
    sums = np.array([query_sums(positive, negative, hinge) for positive, negative in pairs])
    sums = sums.reshape(-1, len(COLUMNS))
    columns = {column: sums[:, place] for place, column in enumerate(COLUMNS)}
    per_query = pa.table({"query_id": pa.array(shard.query_ids, pa.string()), **columns})
    raw = (margins(positive, negative, hinge=False).ravel() for positive, negative in pairs)
    histograms = {"s_n": negatives, "s_p": positives, "margin": raw}
    unscored = positive_drops + negative_drops
    return Shard(
        {f"_histograms/{key}": _histograms(histograms), key: per_query},
        {"no_score": unscored} if unscored else {},
    )


def _by_query(
    shard: QueryShard, pairs: tuple[np.ndarray, np.ndarray], judged: Judgments
) -> tuple[list[np.ndarray], int]:
    """Return the scores of each query's pairs, in their order, and how many pairs have none."""
    score = judged.scores(shard.codes(*pairs))
    known = ~np.isnan(score)
    ends = np.searchsorted(pairs[0][known], np.arange(1, len(shard.query_ids)))
    return np.split(score[known], ends) if shard.query_ids else [], int((~known).sum())


def query_sums(positive: np.ndarray, negative: np.ndarray, hinge: bool) -> np.ndarray:
    """Return all that a set's measures need to know of one query, in the order of COLUMNS.

    Args:
        positive: (p,) similarities to the positives.
        negative: (n,) similarities to the negatives, in the order of the set.
        hinge: margins below zero count as zero.

    Returns:
        (len(COLUMNS),) float64: negatives, triples, sum of s_n, sum of margins over triples,
        triples with s_n >= s_p, 1 if there is no negative; then the first four again for the first
        m negatives only.
    """
    sizes = np.minimum((len(negative), *MATCHED), len(negative))
    signal = np.concatenate(([0.0], np.cumsum(negative)))[sizes]
    margin = np.concatenate(([0.0], np.cumsum(margins(positive, negative, hinge).sum(axis=0))))[
        sizes
    ]
    sums = np.stack((sizes, sizes * len(positive), signal, margin), axis=1)
    unsafe = np.count_nonzero(margins(positive, negative, hinge=False) <= 0)
    flags = np.array([unsafe, len(negative) == 0], np.float64)
    return np.concatenate((sums[0], flags, sums[1:].ravel()))


def _histograms(quantities: Mapping[str, Iterable[np.ndarray]]) -> pa.Table:
    """Count values in bins of one width; what lies outside counts in the end bins."""
    parts = []
    for quantity, arrays in quantities.items():
        end = RANGES[quantity]
        values = np.clip(np.concatenate([np.empty(0), *arrays]), -end, end)
        count, edges = np.histogram(
            values, np.linspace(-end, end, round(2 * end / BIN) + 1).round(2)
        )
        parts.append(
            pa.table(
                {
                    "quantity": [quantity] * len(count),
                    "low": edges[:-1],
                    "high": edges[1:],
                    "count": count.astype(np.int64),
                }
            )
        )
    return pa.concat_tables(parts)


def _read_sums(run: Run, folder: str) -> dict[str, np.ndarray]:
    """Return the numbers of all queries of a run, column by column, in order of query."""
    tables = [run.read(folder, key).drop_columns("query_id") for key in run.query_shards()]
    table = pa.concat_tables(tables)
    return {column: table[column].to_numpy() for column in table.column_names}


def _sizes(sums: Sums) -> list[int]:
    """Return the matched sizes that a set reaches on average."""
    mean = sums["negatives"].sum() / max(1, len(sums["negatives"]))
    return [size for size in MATCHED if size <= np.floor(mean + 0.5)]


def _set_measures(sums: Sums, queries: int, sizes: Sequence[int]) -> Values:
    """Turn sums over queries into measures; each sum is (r,), one value a resample."""
    values: Values = {}
    for suffix, k in [("", None), *((f"@{size}", size) for size in sizes)]:
        mean = sums[f"negatives{suffix}"] / queries
        signal = _ratio(sums[f"signal{suffix}"], sums[f"negatives{suffix}"])
        margin = _ratio(sums[f"margin{suffix}"], sums[f"triples{suffix}"])
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
    values["unsafe_share", None] = _ratio(sums["unsafe"], sums["triples"])
    values["queries_without_negatives", None] = sums["empty"] / queries
    return values


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _evaluate(
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
    queries, random = len(matrix), np.random.default_rng(seed)
    out = np.zeros((resamples, matrix.shape[1]))
    step = max(1, CHUNK // max(1, queries))
    for start in range(0, resamples if queries else 0, step):
        count = min(step, resamples - start)
        drawn = random.integers(0, queries, (count, queries)) + np.arange(count)[:, None] * queries
        times = np.bincount(drawn.ravel(), minlength=count * queries).reshape(count, queries)
        # Not a BLAS product: einsum adds in one order, whatever the number of threads.
        out[start : start + count] = np.einsum("rq,qs->rs", times.astype(np.float64), matrix)
    return out


def _interval(resamples: np.ndarray, confidence: float) -> tuple[float | None, float | None]:
    """Return the percentile interval of the resamples in which a measure exists."""
    known = resamples[~np.isnan(resamples)]
    if not len(known):
        return None, None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _rows(name: str, value: Values, spread: Values, confidence: float, n: int) -> pa.Table:
    rows = []
    for (measure, k), point in value.items():
        low, high = _interval(spread[measure, k], confidence)
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


def _score_source(run: Run, name: str, options: Score, how: How) -> Manifest:
    """Measure a source's retrieval: candidates, positives -> ndcg@10 and recall@100, or less
    deep if the source is.
    """
    found = run.need_current(f"{run.SOURCES}/{name}", f"mine {name}")
    inputs = {run.TABLES: run.tables().fingerprint, f"{run.SOURCES}/{name}": found.fingerprint}
    stage = Stage(
        f"{SOURCES}/{name}",
        "per_query",
        options.model_dump(mode="json", include=set(OF_SOURCES)),
        inputs,
        cheap=True,
        made_by="score",
    )

    def reduce() -> dict[str, Any]:
        sums = _read_sums(run, stage.folder)
        value, spread = _evaluate(sums, options, _source_measures)
        rows = _rows(name, value, spread, options.confidence, int(sums["queries"].sum()))
        write_table(run.path / FOLDER / f"source-{name}.parquet", rows)
        return {"queries": len(sums["queries"])}

    return run_stage(
        run,
        stage,
        lambda: partial(_retrieval_shard, run, name, _depth(run, found)),
        run.query_shards(),
        how,
        reduce,
    )


def _depth(run: Run, source: Manifest) -> int:
    """Return to which rank a source answers every query in full: the k it was mined with, else
    the deepest rank that it has.
    """
    mined = source.options.get("k")
    if mined is not None:
        return int(mined)
    deepest = [
        pc.max(run.read(source.stage, key)["rank"]).as_py() or 0 for key in run.query_shards()
    ]
    return max([1, *deepest])


def _retrieval_shard(run: Run, name: str, depth: int, key: str) -> Shard:
    import ir_measures

    ndcg, recall = ir_measures.nDCG @ min(10, depth), ir_measures.R @ min(100, depth)
    relevant: dict[str, dict[str, int]] = {}
    for row in run.read(run.POSITIVES, key).to_pylist():
        relevant.setdefault(row["query_id"], {})[row["doc_id"]] = max(1, row["relevance"] or 1)
    found: dict[str, dict[str, float]] = {query_id: {} for query_id in relevant}
    for row in (
        run.read(f"{run.SOURCES}/{name}", key).select(["query_id", "doc_id", "rank"]).to_pylist()
    ):
        found.setdefault(row["query_id"], {})[row["doc_id"]] = -float(row["rank"])
    measured = ir_measures.iter_calc([ndcg, recall], relevant, found) if relevant else ()
    values = {(metric.query_id, metric.measure): metric.value for metric in measured}
    query_ids = run.read(run.QUERIES, key)["query_id"].to_pylist()
    columns: dict[str, Any] = {"query_id": pa.array(query_ids, pa.string())}
    for label, measure in ((f"ndcg@{min(10, depth)}", ndcg), (f"recall@{min(100, depth)}", recall)):
        columns[label] = pa.array(
            [values.get((query_id, measure), 0.0) for query_id in query_ids], pa.float64()
        )
    columns["queries"] = pa.array(
        [float(query_id in relevant) for query_id in query_ids], pa.float64()
    )
    return Shard({key: pa.table(columns)})


def _source_measures(sums: Sums, queries: int) -> Values:
    """Return means over the queries that have a positive."""
    return {
        (name, int(name.partition("@")[2])): _ratio(total, sums["queries"])
        for name, total in sums.items()
        if name != "queries"
    }
