"""What a run folder holds, to read: the state of each stage, and one query with its negatives."""

import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

from cli.perform import align, count_words, fit, print_drops, print_json
from miner.errors import UserError

if TYPE_CHECKING:
    from miner.store import Run


UNSEEN = {"not_asked": "of no source of the recipe", "found_since": "found since the set was made"}


def states(run: "Run") -> list[dict[str, Any]]:
    """Return every stage of a run in flow order: rows, drops, seconds, and whether it is up to
    date, stale (and why) or half done.
    """
    from miner.store import MANIFEST, PLAN

    folders = {
        file.parent.relative_to(run.path).as_posix()
        for name in (PLAN, MANIFEST)
        for file in run.path.rglob(name)
    }
    stale: dict[str, str] = {}
    rows = []
    for folder in sorted(folders):
        row: dict[str, Any] = {"stage": folder}
        try:
            manifest = run.find(folder)
        except UserError:
            rows.append(row | {"state": "written by another version of quarry"})
            continue
        if manifest is None:
            inputs = json.loads((run.path / folder / PLAN).read_bytes())["inputs"]
            state = "half done; repeat the command to go on"
        else:
            inputs, state = manifest.inputs, "up to date"
            row = manifest.model_dump(
                include={"stage", "rows", "drops", "seconds", "peak_memory_mb"}
            )
            if said := manifest.facts.get("warnings"):
                row["warnings"] = said
        reason = next(
            (why for name in sorted(inputs) if (why := _staleness(run, name, inputs[name], stale))),
            None,
        )
        if reason:
            stale[folder] = reason
            state = f"stale: {reason}"
        rows.append(row | {"state": state})
    return rows


def _staleness(run: "Run", name: str, fingerprint: str, stale: dict[str, str]) -> str | None:
    if not name[:1].isdigit() or name[1:2] != "_":
        return None  # a file of the user's, not a stage
    try:
        now = run.find(name)
    except UserError:
        return f"{name} is of another version of quarry"
    if now is None:
        return f"{name} is gone"
    if now.fingerprint != fingerprint:
        return f"{name} has changed"
    return f"{name} is stale" if name in stale else None


def print_status(run: "Run", as_json: bool) -> None:
    """Print the state of every stage."""
    rows = states(run)
    if as_json:
        print_json({"run": str(run.path), "stages": rows})
        return
    if not rows:
        print(f"{run.path} holds nothing yet; begin with `quarry ingest`")
    width = max((len(row["stage"]) for row in rows), default=0)
    for row in rows:
        counts = count_words(row["stage"], row.get("rows", {}))
        cost = (
            f" ({row['seconds']:,.1f} s, peak {row['peak_memory_mb']:,.0f} MB)"
            if "seconds" in row
            else ""
        )
        print(f"{row['stage']:{width}}  {row['state']}{': ' if counts else ''}{counts}{cost}")
        print_drops(row.get("drops", {}))
        for line in row.get("warnings", ()):
            print(f"  WARNING: {line}")


def print_query(run: "Run", query_id: str, set_name: str | None, as_json: bool) -> None:
    """Print a query as a case file: its positives, then per set every candidate, its sources,
    its judges, and what became of it and why.
    """
    from scoring.show import describe

    shown, width = describe(run, query_id, set_name), shutil.get_terminal_size((120, 24)).columns
    if as_json:
        print_json(shown)
        return
    print(fit(f"query {shown['query_id']}: {shown['text']}", width))
    chapters = [("", [("positives", shown["positives"])])]
    chapters += [(f"set {name}: ", _groups(parts)) for name, parts in shown["sets"].items()]
    if not shown["sets"]:
        chapters.append(("no set yet: ", [("candidates", shown["candidates"])]))
    for title, groups in chapters:
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in groups)
        print(
            "\n"
            + textwrap.fill(
                f"{title}{counts or 'no candidate'}",
                width,
                subsequent_indent="  ",
                break_on_hyphens=False,
            )
        )
        for line in _laid_out(groups, width):
            print(line)


def _groups(parts: dict[str, list[dict[str, Any]]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of a set in reading order: kept by rank, promoted, left out by reason, the
    best ranks of each first.
    """
    groups: dict[str, list[dict[str, Any]]] = (
        {"kept": parts["negatives"]} if parts["negatives"] else {}
    )
    for before, name in (("", "promoted"), ("dropped: ", "rejected"), ("", "unseen")):
        for row in sorted(
            parts[name], key=lambda row: (row["reason"], _best_rank(row), row["doc_id"])
        ):
            groups.setdefault(before + UNSEEN.get(row["reason"], row["reason"]), []).append(row)
    return list(groups.items())


def _best_rank(row: dict[str, Any]) -> int:
    return min((found["rank"] for found in row["sources"]), default=0)


def _laid_out(groups: list[tuple[str, list[dict[str, Any]]]], width: int) -> list[str]:
    """Lay groups of rows out as one table with a caption over each group; a text fills its line,
    or gets one of its own.
    """
    every = [row for _, rows in groups for row in rows]
    if not every:
        return []
    sources = sorted({found["source"] for row in every for found in row["sources"]})
    judges = sorted({judge for row in every for judge in row["judgments"]})
    cells = [
        ["", "doc_id", *sources, *judges, "compared"],
        *(_cells(row, sources, judges) for row in every),
    ]
    aligned = align(cells)
    room = width - len(aligned[0]) - 2
    if len(aligned[0]) > width:
        heads = cells[0][2:]
        aligned = ["", *(_wrapped(heads, row, width) for row in cells[1:])]
    lines, number = [aligned[0].rstrip()] if aligned[0] else [], 0
    for name, rows in groups:
        lines.append(f" {fit(name, width - 1)}")
        for row in rows:
            number += 1
            text = " ".join(filter(None, (row["title"], row["text"])))
            beside = room >= 24
            lines.append(
                aligned[number]
                + ("  " + fit(text, room) if beside else f"\n      {fit(text, width - 6)}")
            )
    return lines


def _wrapped(heads: list[str], cells: list[str], width: int) -> str:
    """Return a row that is too wide for a table as a list in words."""
    said = [f"{head} {cell}" for head, cell in zip(heads, cells[2:], strict=True) if cell]
    words = f"{cells[0]:>3}  {cells[1]}  {', '.join(said)}"
    return textwrap.fill(
        words, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
    )


def _cells(row: dict[str, Any], sources: list[str], judges: list[str]) -> list[str]:
    """Return a row's rank in the set, document, rank (score) of each source, what each judge
    says, and value against threshold.
    """
    found = {source["source"]: source for source in row["sources"]}
    ranks = [
        f"{found[name]['rank']} ({_short_number(found[name]['score'])})" if name in found else ""
        for name in sources
    ]
    said = [_said(row["judgments"].get(judge, {})) for judge in judges]
    value, threshold = row.get("value"), row.get("threshold")
    compared = " against ".join(
        _short_number(number) for number in (value, threshold) if number is not None
    )
    return [str(row.get("rank", "")), row["doc_id"], *ranks, *said, compared]


def _said(judgment: dict[str, Any]) -> str:
    """Say a judgment: its score, a verdict other than keep, its reason."""
    score, verdict = judgment.get("score"), judgment.get("verdict")
    words = [
        "" if score is None else _short_number(score),
        verdict if verdict != "keep" or score is None else "",
        judgment.get("reason"),
    ]
    return " ".join(filter(None, words))


def _short_number(value: float | None) -> str:
    return (
        "no score"
        if value is None
        else f"{value:g}"
        if float(value).is_integer() and value
        else f"{value:.3f}"
    )
