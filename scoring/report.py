"""metrics, sets, judgments, manifests -> 7_report: one self-contained page, and its numbers as
JSON.

Nothing is computed here that another stage could have stored: the page shows metrics, binned
counts, manifests and a few queries to read.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from miner.engine import How
from miner.errors import UserError
from miner.files import Stopwatch, atomic, code_version, write_json
from miner.options import Options, option
from miner.stages import Stage, finish
from miner.store import MANIFEST, PLAN, Manifest, Run
from scoring.caveats import COMPARED, caveats
from scoring.compare import compared, other_run, paired_difference
from scoring.examples import finite, read_examples, read_suspects
from scoring.figures import figures
from scoring.findings import findings, leading, matched_size, value_of
from scoring.in_common import shares_in_common
from scoring.metrics import FOLDER as METRICS
from scoring.metrics import SETS as SCORED
from scoring.metrics import SOURCES, WORST, Lead, Score
from scoring.page import render_page, spaced
from scoring.plots import write_figures
from scoring.recipe import Select
from scoring.sets import changed_inputs, current_sets
from scoring.show import Row

FOLDER = Run.REPORT
FIGURES = "figures"  # beside the page
INPUT = ("format", "folder", "file", "corpus", "split")  # options of ingest that say what was read


class Report(Options):
    """One self-contained page."""

    examples: int = option(10, "queries shown with their negatives", ge=0)
    suspects: int = option(
        WORST, "negatives shown that exceed their positive by most", ge=0, le=WORST
    )
    seed: int = option(0, "seed of the choice of examples")
    compare: tuple[str, ...] = option(
        (), "folder of another run, whose scored sets are shown beside these; more than once"
    )
    figures: bool = option(False, "write the charts as SVG and PNG beside the page (matplotlib)")


def report(run: Run, options: Report, how: How) -> Manifest:
    """Make the page anew: metrics, sets, judgments, manifests -> 7_report/report.html and
    report.json.

    Raises:
        UserError: no set is scored.
    """
    watch = Stopwatch()
    with how.progress(FOLDER, 2) as advance:
        data = collect(run, options)
        advance()
        page = render_page(data)
        advance()
    stage = Stage(
        FOLDER,
        "sets",
        options.record(),
        {stage["stage"]: stage["fingerprint"] for stage in data["stages"]},
        made_by="report",
    )
    (run.path / FOLDER / MANIFEST).unlink(missing_ok=True)
    write_json(run.path / FOLDER / PLAN, stage.plan())
    write_json(run.path / FOLDER / "report.json", data)
    with atomic(run.path / FOLDER / "report.html") as temporary:
        temporary.write_text(page, "utf-8")
    shutil.rmtree(run.path / FOLDER / FIGURES, ignore_errors=True)
    if options.figures:
        write_figures(figures(data), run.path / FOLDER / FIGURES)
    rows = {
        "sets": len(data["sets"]),
        "sources": len(data["sources"]),
        "examples": len(data["examples"]),
    }
    facts = {
        "page": f"{FOLDER}/report.html",
        "data": f"{FOLDER}/report.json",
        "verdict": data["findings"],
    }
    return finish(run, stage, watch, rows=rows, drops={}, facts=facts, shards=1, resumed_shards=0)


def collect(run: Run, options: Report) -> Row:
    """Return all that the page shows, as plain JSON values.

    Raises:
        UserError: no set is scored.
    """
    sets, measure, matched = _ordered_sets(run)
    others = [(other := other_run(path), _described(other)) for path in options.compare]
    current = current_sets(run)
    shown = [row["name"] for row in sets if row["name"] in current]
    stages = [_stage(run, manifest) for manifest in _manifests(run)]
    return {
        "run": _run_facts(run),
        "options": options.record(),
        "matched": matched,
        "by": measure.partition("@")[0],
        "findings": _findings_of(run, sets, measure, matched),
        "warnings": caveats(run, sets, stages),
        "sets": sets,
        "sources": _sources(run),
        "compared": compared(run, sets, measure, others),
        "in_common": {
            "sources": shares_in_common(run, run.SOURCES),
            "sets": shares_in_common(run, run.SETS),
        },
        "histograms": {row["name"]: _add_histograms(run, row["name"]) for row in sets},
        "examples": read_examples(run, options.examples, options.seed, shown),
        "suspects": read_suspects(run, options.suspects, shown),
        "stages": stages,
    }


def verdict(run: Run) -> list[str]:
    """Say which of the scored sets to train on, and why, in plain sentences.

    Raises:
        UserError: no set is scored.
    """
    return _findings_of(run, *_ordered_sets(run))


def _findings_of(run: Run, sets: list[Row], measure: str, matched: int | None) -> list[str]:
    lead = _lead(run, sets, measure, matched)
    return findings(sets, matched, lead, measure.partition("@")[0])


def _ordered_sets(run: Run) -> tuple[list[Row], str, int | None]:
    """Return the scored sets, the best first; by which measure; and at which |N|."""
    sets = _described(run)
    matched, by = matched_size(sets), leading(sets)
    measure = f"{by}@{matched}" if matched else by
    return sorted(sets, key=lambda row: (-value_of(row, measure), row["name"])), measure, matched


def _described(run: Run) -> list[Row]:
    if not (names := run.names(SCORED)):
        raise UserError(f"{run.path} has no scored set; run `quarry score` first")
    return [_describe_set(run, name) for name in names]


# ---- what the run says of itself


def _run_facts(run: Run) -> Row:
    tables, judged = run.tables(), run.find(f"{run.JUDGES}/similarity")
    scored = max(
        (run.path / SCORED / name / MANIFEST).stat().st_mtime for name in run.names(SCORED)
    )
    return {
        "name": run.path.resolve().name,
        "counts": {
            name: tables.rows.get(name, tables.facts.get(name))
            for name in ("documents", "queries", "positives")
        },
        "input": {
            name: Path(tables.options[name]).name for name in INPUT if tables.options.get(name)
        },
        "encoder": (
            (judged.facts.get("encoder") or judged.options.get("encoder")) if judged else None
        ),
        "version": code_version(),
        # The time of the numbers, not of the page: the page is the same however often it is made.
        "scored": datetime.fromtimestamp(scored, UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _manifests(run: Run) -> list[Manifest]:
    """Return the manifests of all finished stages before this one, in flow order."""
    folders = sorted(
        file.parent.relative_to(run.path).as_posix() for file in run.path.rglob(MANIFEST)
    )
    found = [run.find(folder) for folder in folders if folder < FOLDER]
    return [manifest for manifest in found if manifest is not None]


def _stage(run: Run, manifest: Manifest) -> Row:
    """Return what the page and report.json tell of a stage."""
    told = manifest.model_dump(exclude={"seed", "inputs", "skipped"})
    return told | {"changed": changed_inputs(run, manifest)}


# ---- numbers


def _describe_set(run: Run, name: str) -> Row:
    scored, made = run.need(f"{SCORED}/{name}", f"score {name}"), run.find(f"{run.SETS}/{name}")
    options = made.options if made else {}
    changed = changed_inputs(run, scored) + (
        changed_inputs(run, made) if made else [f"{run.SETS}/{name}"]
    )
    return {
        "name": name,
        "recipe": recipe(options),
        "options": options,
        "protected_by": made.facts.get("protected_by") if made else None,
        "scoring": {option: scored.options.get(option) for option in COMPARED},
        "rows": made.rows.get("sets", 0) if made else None,
        "drops": made.drops if made else {},
        "changed": sorted(set(changed)),
        "measures": _measures(run.path / METRICS / f"set-{name}.parquet"),
        "bands": scored.facts.get("coverage_bands"),
    }


def _sources(run: Run) -> list[Row]:
    return [
        {"name": name, "measures": _measures(run.path / METRICS / f"source-{name}.parquet")}
        for name in run.names(SOURCES)
    ]


def _measures(file: Path) -> dict[str, Row]:
    """Return measure -> value, low, high, k, n; what is not finite is None."""
    rows = pq.read_table(
        file, columns=["measure", "value", "low", "high", "k", "n"], partitioning=None
    ).to_pylist()
    return {
        row.pop("measure"): {name: finite(value) for name, value in row.items()} for row in rows
    }


def recipe(options: Mapping[str, Any]) -> str:
    """Say a set's recipe in one line: sources, then every rule that is not at its default."""
    defaults = Select(name="s", sources=("s",)).record()  # as a manifest has them: lists for tuples
    rules = [
        _rule(name, options[name])
        for name in defaults
        if name not in ("name", "sources") and name in options and options[name] != defaults[name]
    ]
    return "; ".join([" + ".join(options.get("sources", ())), *rules])


def _rule(name: str, value: Any) -> str:
    """Say an option with its value: ["0.9", "cross-encoder=0.8"] as "0.9 and 0.8 by
    cross-encoder".
    """
    if value is True:
        return spaced(name)
    given = [text.rpartition("=") for text in value] if isinstance(value, (list, tuple)) else []
    said = [f"{bound} by {judge}" if judge else bound for judge, _, bound in given] or [
        f"{value:g}" if isinstance(value, float) else f"{value}"
    ]
    return f"{spaced(name)} {' and '.join(said)}"


def _lead(run: Run, sets: list[Row], measure: str, matched: int | None) -> Lead | None:
    """Return by how much the first set exceeds the second by a measure, both drawn with the same
    queries.
    """
    if (
        matched is None
        or len(sets) < 2
        or any(row["changed"] or row["scoring"] != sets[0]["scoring"] for row in sets[:2])
        or measure not in sets[1]["measures"]
    ):
        return None
    known = {name: value for name, value in sets[0]["scoring"].items() if value is not None}
    options = Score(**known)
    names = sets[0]["name"], sets[1]["name"]
    return paired_difference(run, *names, measure, options) if options.resamples else None


def _add_histograms(run: Run, name: str) -> dict[str, Row]:
    """Add up the binned counts of all shards: quantity -> low, high, count, each a list in order
    of the bins.
    """
    bins: dict[str, Counter[tuple[float, float]]] = defaultdict(Counter)
    for file in sorted((run.path / SCORED / name / "_histograms").glob("*.parquet")):
        for row in pq.read_table(file, partitioning=None).to_pylist():
            bins[row["quantity"]][row["low"], row["high"]] += row["count"]
    found = {}
    for quantity, counts in sorted(bins.items()):
        edges = sorted(counts)
        found[quantity] = {
            "low": [low for low, _ in edges],
            "high": [high for _, high in edges],
            "count": [counts[edge] for edge in edges],
        }
    return found
