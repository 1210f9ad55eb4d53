"""Two sets, of one run or of two -> by how much one exceeds the other, drawn with the same queries,
so that what makes a query easy for both cancels out; and what forbids to compare them.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from miner.corpus import IDS as DOC_IDS
from miner.errors import UserError
from miner.store import Run
from scoring.findings import value_of
from scoring.metrics import (
    FOLDER,
    SETS,
    WITHOUT,
    Lead,
    Score,
    evaluate,
    jackknife_interval,
    matched_sizes,
    percentile_interval,
    read_sums,
    set_measures,
)
from scoring.set_coverage import measure_on_common
from scoring.show import Row

SIMILARITY = f"{Run.JUDGES}/similarity"


def paired_difference(
    run: Run, set_a: str, set_b: str, measure: str, options: Score, other: Run | None = None
) -> Lead:
    """Return by how much a measure of set_a exceeds that of set_b, with the interval of the
    difference.

    Both sets are resampled with the same queries. Coverage of two sets of one run that have
    negatives for different queries is measured anew, on the queries that both have.

    Args:
        run: a run in which set_a is scored.
        set_a, set_b: names of sets.
        measure: a measure of both, such as "eci_v1" or "eci_v1@10".
        options: resamples, confidence, seed, and how coverage is measured.
        other: the run of set_b, with the same queries; None if it is the same run.

    Raises:
        UserError: a set is not scored, or does not have the measure.
    """
    ends = (run, set_a), (other or run, set_b)
    (one, drawn), (two, drawn_two) = (_resampled(*end, measure, options) for end in ends)
    if not measure.startswith("coverage"):
        return Lead(one - two, *percentile_interval(drawn - drawn_two, options.confidence))
    common = None
    if other is None and (common := _queries_in_common(run, set_a, set_b)):
        (one, drawn), (two, drawn_two) = measure_on_common(run, (set_a, set_b), measure, options)
    if not options.resamples:
        return Lead(one - two, None, None, common)
    reach = jackknife_interval(one - two, drawn - drawn_two, options.confidence)
    return Lead(one - two, *reach, common)


def _queries_in_common(run: Run, set_a: str, set_b: str) -> int | None:
    """Return how many queries both sets have a negative for; None if either has none beyond."""
    one, two = (read_sums(run, f"{SETS}/{name}")["empty"] == 0 for name in (set_a, set_b))
    return None if (one == two).all() else int((one & two).sum())


def _resampled(run: Run, name: str, measure: str, options: Score) -> tuple[float, np.ndarray]:
    """Return a measure of a set, and what it is of each resample of the queries, or of coverage
    without each block of them.
    """
    folder = run.need(f"{SETS}/{name}", f"score {name}").stage
    if measure.startswith("coverage"):
        kept = run.path / folder / WITHOUT
        rows = run.read(FOLDER, f"set-{name}").to_pylist()
        value = {row["measure"]: row["value"] for row in rows}
        spread = pq.read_table(kept, partitioning=None).to_pydict() if kept.exists() else {}
    else:
        sums = read_sums(run, folder)
        found = evaluate(sums, options, partial(set_measures, sizes=matched_sizes(sums)))
        value, spread = ({key[0]: values for key, values in part.items()} for part in found)
        value = {key: values[0] for key, values in value.items()}
    if measure not in spread:
        raise UserError(
            f"set {name} has no measure {measure!r}; take one of {', '.join(sorted(value))}"
        )
    return float(value[measure]), np.asarray(spread[measure], np.float64)


def other_run(path: str) -> Run:
    """Return the run that lies at a path.

    Raises:
        UserError: there is none, or none that says which sets are scored.
    """
    run = Run(Path(path))
    if not (run.path / Run.METRICS).is_dir():
        raise UserError(
            f"--compare {path}: no run with scored sets lies there; name the folder of a run that"
            " `quarry score` has been through"
        )
    return run


def differences(one: Run, two: Run) -> list[str]:
    """Return what is not the same in two runs, of what a measure depends on besides the set and
    the way of scoring.
    """
    told = {
        "queries": _id_columns(one, Run.QUERIES) == _id_columns(two, Run.QUERIES),
        "positives": _id_columns(one, Run.POSITIVES) == _id_columns(two, Run.POSITIVES),
        "corpus": _same_corpus(one, two),
        "target encoder": _target_encoder(one) == _target_encoder(two),
    }
    return [name for name, same in told.items() if not same]


def _id_columns(run: Run, folder: str) -> list[list[Any]]:
    columns = ["query_id"] if folder == Run.QUERIES else ["query_id", "doc_id"]
    tables = [run.read(folder, key, columns) for key in run.query_shards()]
    return [[one for table in tables for one in table[name].to_pylist()] for name in columns]


def _same_corpus(one: Run, two: Run) -> bool:
    mine, yours = (np.load(run.path / DOC_IDS, mmap_mode="r") for run in (one, two))
    return np.array_equal(mine, yours)


def _target_encoder(run: Run) -> Any:
    judged = run.find(SIMILARITY)
    return judged and (judged.model, judged.facts.get("encoder"), judged.options.get("encoder"))


def compared(
    run: Run, own: list[Row], measure: str, others: list[tuple[Run, list[Row]]]
) -> list[Row]:
    """Return {run, name, recipe, measures, differs, ahead} of each set of other runs, best first.

    Args:
        run: this run.
        own: its sets, the best first.
        measure: that sets are ordered by.
        others: other runs with their sets.
    """
    rows: list[Row] = []
    for other, sets in others:
        apart = differences(run, other)
        for row in sets:
            differs = apart + ["way of scoring"] * (own[0]["scoring"] != row["scoring"])
            ahead = None if differs else _lead_over(run, own[0], other, row, measure)
            told = {key: row[key] for key in ("name", "recipe", "measures", "rows")}
            rows.append(told | {"run": str(other.path), "differs": differs, "ahead": ahead})
    return sorted(rows, key=lambda row: -value_of(row, measure))


def _lead_over(run: Run, first: Row, other: Run, row: Row, measure: str) -> Row | None:
    """Return by how much a set of another run exceeds this run's first."""
    if measure not in row["measures"] or measure not in first["measures"]:
        return None
    known = {name: value for name, value in row["scoring"].items() if value is not None}
    value, low, high, _ = paired_difference(
        other, row["name"], first["name"], measure, Score(**known), run
    )
    return {"value": value, "low": low, "high": high}
