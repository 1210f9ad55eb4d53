"""metrics, sets, judgments, manifests -> 7_report: one self-contained page, and its numbers as
JSON.

Nothing is computed here that another stage could have stored: the page shows metrics, binned
counts, manifests and a few queries to read.
"""

import hashlib
import heapq
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
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
from scoring.figures import COLOURS, figures
from scoring.options import Select
from scoring.score import FOLDER as METRICS
from scoring.score import SETS as SCORED
from scoring.score import SOURCES, Score, paired_difference
from scoring.sets import changed_inputs, current_sets
from scoring.show import Row, describe_shard

FOLDER = Run.REPORT
Interval = tuple[float, float | None, float | None]  # value, low, high
SHOWN = 3  # negatives of a set under an example
INPUT = ("format", "folder", "file", "corpus", "split")  # options of ingest that say what was read
CUT, LIMIT = 300, 5000  # characters of a text that are shown, and that the page holds
TERMS = {
    "|N|": "Mean number of negatives of a query.",
    "ECI": (
        "Effective contrastive information, ln(1 + |N|) · 2SD / (S + D), of the set as it is. Set"
        " size dominates it."
    ),
    "ECI@": (
        "ECI of the best-ranked negatives only, as many for every set: the fair comparison. The"
        " rows are sorted by it."
    ),
    "S": (
        "Signal: mean similarity s_n of query and negative under the target encoder. Higher is"
        " harder."
    ),
    "D": "Margin: mean of s_p − s_n, how far negatives stay below the positive. Higher is safer.",
    "E": "Efficiency: harmonic mean of S and D.",
    "I": "Capacity: ln(1 + |N|).",
    "probe": (
        "How often a classifier of words alone tells a negative from its original: about .5 is"
        " never, above is an artefact."
    ),
    "unsafe": (
        "Share of (query, positive, negative) triples with s_n ≥ s_p: the model already holds the"
        " negative to be the better answer."
    ),
    "without": "Share of queries that the recipe left without any negative.",
    "rows": "Negatives in the set, over all queries.",
    "left out": "Candidates that the recipe left out; the section below says why.",
}
REASONS = {
    "positive": "a positive of the query, by id",
    "same_text": "the text of a positive under another id",
    "near_duplicate": "a near-copy of a positive",
    "contains_positive": "a text that contains a positive",
    "equals_query": "the query's own text",
    "linked": "linked to a positive, or from one",
    "co_cited": "cited by a document that also cites a positive",
    "same_label": "of a positive's class",
    "near_positive": "a vector that is nearly a positive's",
    "promote": "relevant, as judges say: written apart as a likely positive",
    "drop": "dropped by a judge's own verdict",
    "other_positive": "a positive of another query",
    "min_rank": "ranked better than the recipe's window",
    "max_rank": "ranked worse than the recipe's window",
    "no_score": "no score, where a rule needs one",
    "absolute_margin": "too near the lowest positive",
    "percent_margin": "too near the lowest positive",
    "percentile_margin": "above that percentile of all positives' scores",
    "min_score": "below the lowest score asked for",
    "max_score": "above the highest score asked for",
    "quantile": "not hard enough for the sampler",
    "eci": "would lower the set's ECI",
    "quota": "beyond the K of its source",
    "negatives": "beyond the number of negatives of a query",
}


class Report(Options):
    """One self-contained page."""

    examples: int = option(10, "queries shown with their negatives", ge=0)
    seed: int = option(0, "seed of the choice of examples")


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
        page = render(data)
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
    rows = {
        "sets": len(data["sets"]),
        "sources": len(data["sources"]),
        "examples": len(data["examples"]),
    }
    facts = {"page": f"{FOLDER}/report.html", "data": f"{FOLDER}/report.json"}
    return finish(run, stage, watch, rows=rows, drops={}, facts=facts, shards=1, resumed_shards=0)


def collect(run: Run, options: Report) -> Row:
    """Return all that the page shows, as plain JSON values.

    Raises:
        UserError: no set is scored.
    """
    names = run.names(SCORED)
    if not names:
        raise UserError(f"{run.path} has no scored set; run `quarry score` first")
    sets = [_set(run, name) for name in names]
    matched = matched_size(sets)
    sets.sort(
        key=lambda row: (-_value(row, f"eci_v1@{matched}" if matched else "eci_v1"), row["name"])
    )
    stages = [_stage(run, manifest) for manifest in _manifests(run)]
    return {
        "run": _facts(run),
        "options": options.record(),
        "matched": matched,
        "findings": findings(sets, matched, _lead(run, sets, matched)),
        "warnings": _warnings(run, sets, stages),
        "sets": sets,
        "sources": _sources(run),
        "histograms": {row["name"]: _histograms(run, row["name"]) for row in sets},
        "examples": _examples(
            run, options, [row["name"] for row in sets if row["name"] in current_sets(run)]
        ),
        "stages": stages,
    }


# ---- what the run says of itself


def _facts(run: Run) -> Row:
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


def _warnings(run: Run, sets: list[Row], stages: list[Row]) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    warnings = [
        f"{row['name']} rests on {_and(row['changed'])}, changed since it was scored."
        for row in sets
        if row["changed"]
    ]
    unscored = sorted({*run.names(run.SETS)} - {row["name"] for row in sets})
    if unscored:
        warnings.append(f"Not scored, so not on this page: {_and(unscored)}.")
    ways = {
        json.dumps([row["scoring"][name] for name in ("unsafe", "confidence", "resamples")])
        for row in sets
    }
    if len(ways) > 1:
        warnings.append(
            "The sets were scored with different options (see the stages below): their ECI cannot"
            " be compared."
        )
    half = sorted(
        file.parent for file in run.path.rglob(PLAN) if not (file.parent / MANIFEST).exists()
    )
    folders = [folder.relative_to(run.path).as_posix() for folder in half]
    if folders := [folder for folder in folders if folder < FOLDER]:
        warnings.append(f"Half done: {_and(folders)}.")
    old = [
        stage["stage"]
        for stage in stages
        if stage["changed"] and not stage["stage"].startswith(SCORED)
    ]
    return [*warnings, f"Older than what they were made from: {_and(old)}."] if old else warnings


# ---- numbers


def _set(run: Run, name: str) -> Row:
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
        "scoring": {
            option: scored.options.get(option)
            for option in ("unsafe", "confidence", "resamples", "seed")
        },
        "rows": made.rows.get("sets", 0) if made else None,
        "drops": made.drops if made else {},
        "changed": sorted(set(changed)),
        "measures": _measures(run.path / METRICS / f"set-{name}.parquet"),
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
        row.pop("measure"): {name: _finite(value) for name, value in row.items()} for row in rows
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _value(row: Row, measure: str) -> float:
    """Return a measure of a set, below all others if it has none."""
    value = row["measures"].get(measure, {}).get("value")
    return -math.inf if value is None else float(value)


def matched_size(sets: list[Row]) -> int | None:
    """Return the largest m for which every set has ECI@m, sets that have it for no m aside; None
    if there is none.
    """
    sizes = [
        {
            entry["k"]
            for name, entry in row["measures"].items()
            if name.startswith("eci_v1@") and entry["value"] is not None
        }
        for row in sets
    ]
    return max(set.intersection(*filter(None, sizes)), default=None) if any(sizes) else None


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
        return _words(name)
    given = [text.rpartition("=") for text in value] if isinstance(value, (list, tuple)) else []
    said = [f"{bound} by {judge}" if judge else bound for judge, _, bound in given] or [
        f"{value:g}" if isinstance(value, float) else f"{value}"
    ]
    return f"{_words(name)} {' and '.join(said)}"


def _lead(run: Run, sets: list[Row], matched: int | None) -> Interval | None:
    """Return by how much the first set's matched ECI exceeds the second's, both drawn with the
    same queries.
    """
    if (
        matched is None
        or len(sets) < 2
        or any(row["changed"] or row["scoring"] != sets[0]["scoring"] for row in sets[:2])
    ):
        return None
    if f"eci_v1@{matched}" not in sets[1]["measures"]:
        return None
    options = Score(**sets[0]["scoring"])
    return (
        paired_difference(run, sets[0]["name"], sets[1]["name"], f"eci_v1@{matched}", options)
        if options.resamples
        else None
    )


def findings(sets: list[Row], matched: int | None, lead: Interval | None) -> list[str]:
    """Say in plain sentences which set is ahead at a matched |N|, and whether that is more than
    chance.

    Args:
        sets: sorted by that ECI, best first.
        matched: the |N|; None if the sets have none in common.
        lead: paired difference of the first two and its interval, if known.
    """
    if len(sets) == 1:
        return ["One set is scored, so there is nothing to compare it with."]
    if matched is None:
        return [
            "The sets have no |N| in common; ECI as is mostly compares their sizes, so no set is"
            " marked as best."
        ]
    small = [row["name"] for row in sets if _value(row, f"eci_v1@{matched}") == -math.inf]
    if small:
        rest = findings(sets[: -len(small)], matched, lead)
        return [*rest, f"Not compared, with less than one negative a query: {_and(small)}."]
    entries = [row["measures"][f"eci_v1@{matched}"] for row in sets]
    said = (
        f"At the matched |N| of {matched}, {sets[0]['name']} has the highest ECI,"
        f" {_with_interval(entries[0])}"
    )
    risk = _unsafe(sets)
    if any(entry["low"] is None for entry in entries):
        return [
            f"{said}; there are no intervals, so whether that is more than chance is open.",
            risk,
        ]
    near = [
        row["name"]
        for row, entry in zip(sets[1:], entries[1:], strict=True)
        if entry["high"] >= entries[0]["low"]
    ]
    if not near:
        return [f"{said}; its interval lies above that of every other set.", risk]
    said += f", but its interval overlaps that of {_and(near)}"
    if lead is None or lead[1] is None or lead[2] is None:
        return [f"{said}: this run does not tell them apart.", risk]
    paired = (
        f"Query by query it is {lead[0]:.3f} ({lead[1]:.3f} to {lead[2]:.3f}) ahead of the next,"
        f" {sets[1]['name']}"
    )
    verdict = (
        "a difference that this run supports"
        if lead[1] > 0
        else "zero is possible, so this run does not tell the two apart"
    )
    return [f"{said}.", f"{paired}: {verdict}.", risk]


def _unsafe(sets: list[Row]) -> str:
    shares = [row["measures"].get("unsafe_share", {}).get("value") for row in sets]
    others = [share for share in shares[1:] if share is not None]
    said = f"{_share(shares[0])} of its triples are unsafe"
    return (
        f"{said}, against {_share(min(others))} to {_share(max(others))} in the other sets."
        if others
        else f"{said}."
    )


def _with_interval(entry: Row) -> str:
    return f"{entry['value']:.3f}" + (
        "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
    )


def _and(names: list[str]) -> str:
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _histograms(run: Run, name: str) -> dict[str, Row]:
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


# ---- examples


def _examples(run: Run, options: Report, sets: list[str]) -> list[Row]:
    """Return some queries with their positives and the best-ranked negatives of each set."""
    chosen = heapq.nsmallest(options.examples, _hashed_queries(run, options.seed))
    shards: dict[str, list[str]] = defaultdict(list)
    for _, query_id, key in chosen:
        shards[key].append(query_id)
    described = {
        row["query_id"]: row
        for key, query_ids in sorted(shards.items())
        for row in describe_shard(run, key, query_ids, sets)
    }
    return [_example(described[query_id]) for _, query_id, _ in chosen]


def _hashed_queries(run: Run, seed: int) -> Iterator[tuple[bytes, str, str]]:
    """Yield (hash, query_id, shard) of every query that has a positive; the hash knows nothing
    of shards.
    """
    for key in run.query_shards():
        for query_id in sorted(set(run.read(run.POSITIVES, key)["query_id"].to_pylist())):
            yield (
                hashlib.blake2b(f"{seed} {query_id}".encode(), digest_size=8).digest(),
                query_id,
                key,
            )


def _example(row: Row) -> Row:
    positives = [
        _cut(positive) | {"relevance": positive["relevance"], "s_p": _similarity(positive)}
        for positive in row["positives"]
    ]
    lowest = min(
        (positive["s_p"] for positive in positives if positive["s_p"] is not None), default=None
    )
    sets = {
        name: {
            "count": len(found["negatives"]),
            "rejected": dict(
                sorted(Counter(rejected["reason"] for rejected in found["rejected"]).items())
            ),
            "negatives": [_negative(negative, lowest) for negative in found["negatives"][:SHOWN]],
        }
        for name, found in row["sets"].items()
    }
    return {
        "query_id": row["query_id"],
        "text": row["text"],
        "s_p": lowest,
        "positives": positives,
        "sets": sets,
    }


def _negative(row: Row, lowest: float | None) -> Row:
    """Describe a negative; its margin is taken from the lowest positive of its own query."""
    similarity = _similarity(row)
    margin = None if similarity is None or lowest is None else lowest - similarity
    unsafe = margin is not None and margin <= 0
    sources = [
        {name: _finite(value) for name, value in found.items()} for found in row["sources"] or []
    ]
    return _cut(row) | {
        "rank": row["rank"],
        "sources": sources,
        "s_n": similarity,
        "margin": margin,
        "unsafe": unsafe,
    }


def _similarity(row: Row) -> float | None:
    score: float | None = _finite(row["judgments"].get("similarity", {}).get("score"))
    return score


def _cut(row: Row) -> Row:
    text = row["text"]
    return {
        "doc_id": row["doc_id"],
        "title": row["title"],
        "text": None if text is None else text[:LIMIT],
        "characters": len(text or ""),
    }


# ---- the page


def render(data: Row) -> str:
    """Return the page: one HTML file that fetches nothing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "share": _share,
        "head": _head,
        "words": _words,
        "pretty": _pretty,
    }
    environment.tests["code"] = _is_code
    return environment.get_template("report.html.jinja").render(
        **data,
        figures=figures(data),
        plotlyjs=get_plotlyjs(),
        terms=TERMS,
        reasons=REASONS,
        colours=COLOURS,
        limit=LIMIT,
    )


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}".replace("-", "−")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _head(text: str) -> str:
    """Return the beginning of a text, up to the last white space before the cut if one is near."""
    if len(text) <= CUT:
        return text
    place = max(text.rfind(" ", CUT - 40, CUT), text.rfind("\n", CUT - 40, CUT))
    return text[: place if place > 0 else CUT]


def _is_code(text: str) -> bool:
    return any(line.startswith(("    ", "\t")) for line in text.split("\n"))
