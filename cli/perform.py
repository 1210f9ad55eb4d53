"""Carry out one step with progress on stderr, and print its summary on stdout."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cli.calling import Settings, call_alone
from cli.steps import Step
from miner.options import Options

if TYPE_CHECKING:
    from miner.store import Manifest


def perform(
    at: Settings,
    step: Step,
    options: Options,
    force: bool = False,
    workers: int = 1,
    as_json: bool = False,
    dry_run: bool = False,
) -> None:
    """Carry out one step and print its summary; with `dry_run`, only the summary of what it
    would do.
    """
    if dry_run:
        told = step.part.preview(at.made_run, options)
        (print_json if as_json else print_preview)(told)
        return
    from miner.engine import How

    manifests = call_alone(at, step, options, How(force, workers, progress))
    if as_json:
        print_json(
            manifests[0].model_dump()
            if len(manifests) == 1
            else {"stages": [manifest.model_dump() for manifest in manifests]}
        )
    else:
        for manifest in manifests:
            print_manifest(manifest)
    if getattr(options, "recommend", False):
        from scoring.report import verdict

        print("\n".join(verdict(at.run)), file=sys.stderr if as_json else sys.stdout)


@contextmanager
def progress(label: str, total: int) -> Iterator[Any]:
    """Show a bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from time import monotonic

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    name = TextColumn("{task.description}")
    columns: tuple[ProgressColumn, ...] = (
        name,
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    if not total:
        read = TextColumn("{task.completed:,} rows, {task.fields[rate]:.1f} MB/s")
        columns = (name, SpinnerColumn(), read, TimeElapsedColumn())
    began, size = monotonic(), 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total or None, rate=0.0)

        def advance(rows: int = 1, characters: int = 0) -> None:
            nonlocal size
            size += characters
            bar.update(task, advance=rows, rate=size / 1e6 / (monotonic() - began + 1e-9))

        yield advance


def print_json(value: Any) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def print_manifest(manifest: "Manifest") -> None:
    """Print what a stage did, in a line, and its drops in another."""
    how = (
        "already done"
        if manifest.skipped
        else f"{manifest.seconds:.1f} s, peak {manifest.peak_memory_mb:,.0f} MB"
    )
    if manifest.resumed_shards and not manifest.skipped:
        how += f", {manifest.resumed_shards} of {manifest.shards} shards were there"
    print(f"{manifest.stage}: {count_words(manifest.stage, manifest.rows)} ({how})")
    print_drops(manifest.drops)
    for line in manifest.facts.get("warnings", ()):
        print(f"  WARNING: {line}")
    for line in (*manifest.facts.get("notes", ()), *manifest.facts.get("verdict", ())):
        print(f"  {line}")
    if "section" in manifest.facts:
        print(f"\n{manifest.facts['section']}")
    others, effective = (
        manifest.facts.get("other_positives"),
        manifest.facts.get("effective_sample_size"),
    )
    if others:
        print(
            f"  {others:,} of the negatives are positives of other queries; --drop-other-positives"
            " leaves them out"
        )
    if effective is not None:
        print(
            f"  {manifest.facts['survivors']:,} survivors, by their weights worth {effective:,.1f}"
        )
    if "duplicates" not in manifest.facts.get("protected_by", "duplicates"):
        print(
            "  positives are kept out by id and text; `quarry judge duplicates` also finds their"
            " near-copies, then select again"
        )


def count_words(stage: str, rows: dict[str, int]) -> str:
    """Say how many rows of each table a stage has; a row of a set is a negative."""
    from miner.store import Run

    words = {
        "sets": "negatives" if stage.startswith(Run.SETS) else "sets",
        "per_query": "queries",
        "histograms": "bins",
    }
    return ", ".join(
        f"{count:,} {words.get(name, name.replace('_', ' '))}" for name, count in rows.items()
    )


def print_drops(drops: dict[str, int]) -> None:
    """Print counts by reason, most frequent first."""
    if drops:
        print(
            "  left out: "
            + ", ".join(
                f"{count:,} {reason}"
                for reason, count in sorted(drops.items(), key=lambda item: -item[1])
            )
        )


def print_preview(preview: dict[str, Any]) -> None:
    """Print what select would do: a column for each source, how many candidates it has, how many
    fall at each rule, how many are kept. Of others, what they say.
    """
    if "funnel" not in preview:
        for name, value in preview.items():
            print(f"{name.replace('_', ' ')}: {value if isinstance(value, str) else f'{value:,}'}")
        return
    from miner.store import Run

    funnel = preview["funnel"]
    cells = [["", *funnel]] + [
        [name, *(f"{counts[name]:,}" for counts in funnel.values())]
        for name in next(iter(funnel.values()))
    ]
    print(
        f"dry run of set {preview['set_name']}; positives are kept out by {preview['protected_by']}"
    )
    for line in align(cells, right=True):
        print(line)
    print(
        f"set {preview['set_name']}: {count_words(Run.SETS, preview['rows'])};"
        f" {preview['queries']:,} queries have negatives"
    )


def align(cells: list[list[str]], right: bool = False) -> list[str]:
    """Return rows of cells as lines of equal width, empty columns left out; with `right`, all
    but the first column stand on the right.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    empty = [not any(column) for column in zip(*cells[1:], strict=True)]
    sides = ["<", *([">" if right else "<"] * (len(widths) - 1))]
    columns = [
        (place, side, width)
        for place, (side, width) in enumerate(zip(sides, widths, strict=True))
        if not empty[place]
    ]
    return [
        "  " + "  ".join(f"{row[place]:{side}{width}}" for place, side, width in columns)
        for row in cells
    ]


def fit(text: str, width: int) -> str:
    """Return a text in one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"
