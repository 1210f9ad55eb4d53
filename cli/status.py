"""What a run folder holds, to read: the state of each stage, and one query with its negatives."""

import json
from typing import TYPE_CHECKING, Any

from cli.perform import count_words, print_drops, print_json

if TYPE_CHECKING:
    from miner.store import Run


def states(run: "Run") -> list[dict[str, Any]]:
    """Return every stage of a run in flow order: rows, drops, seconds, and whether it is up to date, stale (and why) or half done."""
    from miner.store import MANIFEST, PLAN

    folders = {file.parent.relative_to(run.path).as_posix() for name in (PLAN, MANIFEST) for file in run.path.rglob(name)}
    stale: dict[str, str] = {}
    rows = []
    for folder in sorted(folders):
        manifest = run.find(folder)
        if manifest is None:
            inputs, row = json.loads((run.path / folder / PLAN).read_bytes())["inputs"], {"stage": folder}
            state = "half done; repeat the command to go on"
        else:
            inputs = manifest.inputs
            row = manifest.model_dump(include={"stage", "rows", "drops", "seconds", "peak_memory_mb"})
            state = "up to date"
        reason = next((why for name in sorted(inputs) if (why := _staleness(run, name, inputs[name], stale))), None)
        if reason:
            stale[folder] = reason
            state = f"stale: {reason}"
        rows.append(row | {"state": state})
    return rows


def _staleness(run: "Run", name: str, fingerprint: str, stale: dict[str, str]) -> str | None:
    if not name[:1].isdigit() or name[1:2] != "_":
        return None  # a file of the user's, not a stage
    now = run.find(name)
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
        cost = f" ({row['seconds']:,.1f} s, peak {row['peak_memory_mb']:,.0f} MB)" if "seconds" in row else ""
        print(f"{row['stage']:{width}}  {row['state']}{': ' if counts else ''}{counts}{cost}")
        print_drops(row.get("drops", {}))


def print_query(run: "Run", query_id: str, set_name: str | None, as_json: bool) -> None:
    """Print a query with its positives, and per set its negatives and what was left out and why."""
    from scoring.show import describe

    shown = describe(run, query_id, set_name)
    if as_json:
        print_json(shown)
        return
    print(f"query {shown['query_id']}: {_short(shown['text'])}")
    for row in shown["positives"]:
        print(f"  positive {_document(row)}")
    for name, parts in shown["sets"].items():
        print(f"\nset {name}: {len(parts['negatives'])} negatives, {len(parts['rejected'])} left out")
        for row in parts["negatives"]:
            found = ", ".join(f"{source['source']} {source['rank']}" for source in row["sources"])
            print(f"  {row['rank']:3}  {found}  {_document(row)}")
        for row in parts["rejected"]:
            bound = f" ({row['value']:.3f} against {row['threshold']:.3f})" if None not in (row["value"], row["threshold"]) else ""
            print(f"    -  {row['reason']}{bound}  {_document(row)}")


def _document(row: dict[str, Any]) -> str:
    scores = {judge: said for judge, said in row["judgments"].items() if said["score"] is not None}
    words = [f"{judge} {said['score']:.3f}" for judge, said in scores.items()]
    words += [f"{judge}: {said['reason']}" for judge, said in row["judgments"].items() if said["verdict"] not in (None, "keep")]
    return f"{row['doc_id']} [{'; '.join(words)}] {_short(' '.join(filter(None, (row['title'], row['text']))))}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:159] + "…"
