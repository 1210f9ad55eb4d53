"""What a reader of the report must know before trusting its numbers."""

import json

from miner.store import MANIFEST, PLAN, Run
from scoring.findings import listed
from scoring.metrics import SETS as SCORED
from scoring.show import Row

# options of score that two sets must have in common
COMPARED = (
    "unsafe",
    "confidence",
    "resamples",
    "seed",
    "tau",
    "reference",
    "reference_unsafe",
    "batch",
)


def caveats(run: Run, sets: list[Row], stages: list[Row]) -> list[str]:
    """Return the warnings of a report.

    Args:
        run: the run.
        sets, stages: as the report describes them.
    """
    return [*_of_sets(run, sets, stages), *_of_stages(run, stages)]


def _of_sets(run: Run, sets: list[Row], stages: list[Row]) -> list[str]:
    warnings = [
        f"{row['name']} rests on {listed(row['changed'])}, changed since it was scored."
        for row in sets
        if row["changed"]
    ]
    unscored = sorted({*run.names(run.SETS)} - {row["name"] for row in sets})
    if unscored:
        warnings.append(f"Not scored, so not on this page: {listed(unscored)}.")
    ways = {
        json.dumps([row["scoring"][name] for name in COMPARED if name != "seed"]) for row in sets
    }
    if len(ways) > 1:
        warnings.append(
            "The sets were scored with different options (see the stages below): they cannot be"
            " compared."
        )
    if any(f"{run.INDEXES}/" in stage["stage"] for stage in stages) and any(
        "coverage" not in row["measures"] for row in sets
    ):
        warnings.append(
            "Coverage is not measured: no dense index has the vectors that judge similarity"
            " compared; run `quarry index dense` with that encoder, then judge and score again."
        )
    return warnings


def _of_stages(run: Run, stages: list[Row]) -> list[str]:
    warnings = [
        f"{stage['stage']}: {said}."
        for stage in stages
        for said in stage["facts"].get("warnings", ())
    ]
    half = sorted(
        file.parent for file in run.path.rglob(PLAN) if not (file.parent / MANIFEST).exists()
    )
    folders = [folder.relative_to(run.path).as_posix() for folder in half]
    if folders := [folder for folder in folders if folder < Run.REPORT]:
        warnings.append(f"Half done: {listed(folders)}.")
    old = [
        stage["stage"]
        for stage in stages
        if stage["changed"] and not stage["stage"].startswith(SCORED)
    ]
    return [*warnings, f"Older than what they were made from: {listed(old)}."] if old else warnings
