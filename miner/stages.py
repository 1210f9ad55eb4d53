"""A stage of a run: skipped, resumed, made afresh or refused.

A stage is a folder. Its main table lies in it as `00000.parquet`, `00001.parquet`…, its side tables
in folders that begin with `_` (readers of Parquet folders pass over those). `_plan.json` is written
first and `_manifest.json` last: a folder without a manifest is half done, and goes on at the first
shard that is missing. Nothing under its final name is ever half written.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner.engine import How, map_shards
from miner.errors import UserError
from miner.files import (
    Stopwatch,
    code_version,
    fingerprint,
    write_array,
    write_json,
    write_lines,
    write_table,
)
from miner.store import BEFORE, MANIFEST, PLAN, Manifest, Run

DROPS = b"quarry.drops"
COUNTS = "_counts"  # what JSON lines cannot carry themselves: rows and drops of each such shard
LITTLE = 0.1  # share of queries that may go without before it is said
HINTS = {
    "mine bm25": (
        "none of their words is in the index, or all that match score 0: see --token-pattern and"
        " --bigrams of `quarry index bm25`, and --variant plus"
    ),
    "ingest trec": "the run file has no line for them that names a document of the corpus",
    "ingest beir": "the run file has no line for them that names a document of the corpus",
    "ingest pairs": "no negative of their own is given",
    "mine substitute": "no word of theirs could be replaced: see --route and --rating-band",
    "mine in-document": "their positives have no other span that long: see --words",
    "mine polarity": "no rule fits their text",
    "mine gloss": "no other document explains their word, in its title or before a colon",
    "mine generate": "see what was left out, and the texts that failed in _failed",
}
Content: TypeAlias = "pa.Table | np.ndarray | str"


@dataclass(frozen=True)
class Stage:
    """What a stage is about to do; its fingerprint says whether what lies in `folder` is the same.

    Attributes:
        folder: the stage's folder below the run, such as "3_candidates/bm25".
        table: name of the main table, for the manifest's row counts.
        options: the options as plain JSON values.
        inputs: name of each input -> its fingerprint.
        model: fingerprint of the model, if one is used.
        grows: beginning of the names of inputs that may change without making all afresh: the task
            finds what a shard held before through `Run.read_before`, and adds to it.
        cheap: it takes seconds, so it is made afresh without asking when its inputs, and nothing
            else, have changed.
        made_by: the command that makes it, such as "mine bm25"; no other may make it afresh.
        algorithm: raised when a change to the code changes its result.
    """

    folder: str
    table: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    grows: str | None = None
    cheap: bool = False
    made_by: str = ""
    algorithm: int = 1

    def plan(self) -> dict[str, Any]:
        """Return all that decides the result, as JSON values."""
        return {
            "made_by": self.made_by,
            "algorithm": self.algorithm,
            "options": dict(self.options),
            "inputs": dict(self.inputs),
            "model": self.model,
        }

    @property
    def fingerprint(self) -> str:
        """Return the hash of the plan."""
        return fingerprint(self.plan())

    def grown_from(self, before: Mapping[str, Any]) -> bool:
        """Return whether an earlier plan differs from this one only in inputs that may change."""

        def fixed(plan: Mapping[str, Any]) -> dict[str, Any]:
            beginning = "" if self.cheap else self.grows
            inputs = plan.get("inputs", {}).items()
            stays = {name: one for name, one in inputs if not name.startswith(beginning or "")}
            return {**plan, "inputs": stays}

        return (self.cheap or self.grows is not None) and fixed(before) == fixed(self.plan())


@dataclass(frozen=True)
class Shard:
    """What a task makes of one key.

    Attributes:
        files: path below the stage's folder, without suffix -> a table (.parquet), an array (.npy)
            or JSON lines (.jsonl). The last one is named as the key: it is written last, and its
            being there means that the shard is whole.
        drops: reason -> rows left out.
    """

    files: Mapping[str, Content]
    drops: Mapping[str, int] = field(default_factory=dict)


def run_stage(
    run: Run,
    stage: Stage,
    prepare: Callable[[], Callable[[str], Shard]],
    keys: Sequence[str],
    how: How,
    then: Callable[[], Mapping[str, Any]] = dict,
) -> Manifest:
    """Carry a stage out as a map over `keys`: skip it if it is done, go on where it stopped, refuse
    if it was made otherwise.

    Args:
        run: the run folder, locked by the caller.
        stage: what to do.
        prepare: makes the task (a picklable function of a key); called only if there is something
            to do.
        keys: the shards.
        how: force, workers, progress.
        then: runs when all shards are there, before the manifest is written, and gives what else
            the manifest is to say.

    Raises:
        UserError: the folder holds the same stage made with other options or from other inputs.
    """
    done = begin(run, stage, how.force)
    if done is not None:
        return done
    folder, watch = run.path / stage.folder, Stopwatch()
    todo = [key for key in keys if _main_file(folder, key) is None]
    if todo:
        with how.progress(stage.folder, len(todo)) as advance:
            for _ in map_shards(partial(_write_shard, prepare(), folder), todo, how.workers):
                advance()
    shutil.rmtree(folder / BEFORE, ignore_errors=True)
    rows, drops = _count(folder, stage.table, keys)
    counts = {"rows": rows, "drops": drops, "shards": len(keys)}
    resumed, facts = len(keys) - len(todo), dict(then())
    if said := _warnings_of(run, stage, rows[stage.table], drops):
        facts["warnings"] = [*facts.get("warnings", []), *said]
    return finish(run, stage, watch, facts=facts, resumed_shards=resumed, **counts)


def _warnings_of(run: Run, stage: Stage, rows: int, drops: Mapping[str, int]) -> list[str]:
    """Return what there is to say of a stage that found little.

    Args:
        run, stage: what was done.
        rows: in its main table.
        drops: what it left out.
    """
    if (tables := run.find(run.TABLES)) is None:
        return []
    is_set = stage.folder.startswith(run.SETS)
    if is_set or stage.folder.startswith(run.SOURCES):
        found = _queries_with_rows(run, stage.folder)
        return _queries_without(stage, tables.facts["queries"], found, drops if is_set else {})
    if stage.folder.startswith(run.EXPORTS) and not rows:
        return ["no row is written: the set has no negative, or all are left out"]
    if stage.folder.startswith(run.JUDGES) and stage.made_by != "judge duplicates":
        read = (run.read(stage.folder, key, ["score"])["score"] for key in run.query_shards())
        without = sum(column.null_count for column in read)
        if without > LITTLE * rows or not rows:
            return [f"{without:,} of {rows:,} pairs have no score: see what was left out"]
    return []


def _queries_with_rows(run: Run, folder: str) -> int:
    read = (run.read(folder, key, ["query_id"])["query_id"] for key in run.query_shards())
    return sum(pc.count_distinct(column.cast("string")).as_py() for column in read)


def _queries_without(stage: Stage, queries: int, found: int, drops: Mapping[str, int]) -> list[str]:
    """Say how many queries have no row, if they are many, and why, of a set by its `drops`."""
    if queries - found <= LITTLE * queries and found:
        return []
    rules = {reason: count for reason, count in drops.items() if reason != "positive"}
    hint = HINTS.get(stage.made_by, "take another source beside it, or a larger -k")
    if most := max(rules, key=lambda reason: rules[reason], default=None):
        hint = f"most candidates are left out as {most} ({drops[most]:,}): loosen that rule, or add"
        hint += " a source"
    kind = "negative" if stage.made_by == "select" else "candidate"
    return [f"{queries - found:,} of {queries:,} queries have no {kind}: {hint}"]


def begin(run: Run, stage: Stage, force: bool) -> Manifest | None:
    """Open a stage's folder: return its manifest if the stage is done, else leave `_plan.json` in
    it and return None.

    Raises:
        UserError: what lies there was made with other options, from other inputs or by another
            model, and `force` is not given.
    """
    folder = run.path / stage.folder
    plan = folder / PLAN
    before = json.loads(plan.read_bytes()) if plan.exists() else {}
    if (other := before.get("made_by") or stage.made_by) != stage.made_by and stage.made_by:
        raise UserError(
            f"{folder} was made by `quarry {other}`, so `quarry {stage.made_by}` does not touch it;"
            " take another --name, or another run folder with -r"
        )
    if force and folder.exists():
        shutil.rmtree(folder)
    if plan.exists():
        grown = before != stage.plan() and stage.grown_from(before)
        if grown and stage.cheap:
            shutil.rmtree(folder)
        elif grown:
            _set_aside(folder)
        elif before != stage.plan():
            raise UserError(
                f"{folder} {_difference(before, stage.plan())}; pass --force to make it again, or"
                " take another run folder with -r"
            )
        manifest = run.find(stage.folder)
        if manifest is not None:
            return manifest.model_copy(update={"skipped": True})
    write_json(plan, stage.plan())
    return None


def _set_aside(folder: Path) -> None:
    """Move finished shards to where `Run.read_before` finds them; the old plan stays until all
    are moved, so a kill does no harm.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / BEFORE).mkdir(exist_ok=True)
    for file in sorted(folder.glob("*.parquet")):
        os.replace(file, folder / BEFORE / file.name)


def finish(run: Run, stage: Stage, watch: "Stopwatch", **counts: Any) -> Manifest:
    """Sweep temporary files of a killed process away and write the manifest, last of all."""
    folder = run.path / stage.folder
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink()
    manifest = Manifest(
        stage=stage.folder,
        fingerprint=stage.fingerprint,
        version=code_version(),
        **stage.plan(),
        seed=stage.options.get("seed"),
        seconds=watch.seconds(),
        peak_memory_mb=watch.peak_memory_mb(),
        **counts,
    )
    write_json(folder / MANIFEST, manifest.model_dump(exclude={"skipped"}))
    return manifest


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in one phrase how two plans differ, options first."""
    other = "was made by another version of quarry, whose results may differ"
    if before.get("algorithm") != now["algorithm"] or set(before) != set(now):
        return other
    old, new = before["options"], now["options"]
    changed = [
        f"{name}={old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if changed:
        return f"was made with {'; '.join(changed)}"
    if set(old) != set(new):
        return other
    if before["model"] != now["model"]:
        return "was made by another model (its weights, prompts, lengths or dtype differ)"
    old, new = before["inputs"], now["inputs"]
    words = [
        f"{name} is {'new' if name not in old else 'gone' if name not in new else 'changed'}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    return f"was made from other inputs ({', '.join(words)})"


def _write_shard(task: Callable[[str], Shard], folder: Path, key: str) -> None:
    shard = task(key)
    if list(shard.files)[-1] != key:
        raise ValueError(f"the last file of shard {key} is {list(shard.files)[-1]}")
    for name, content in shard.files.items():
        if isinstance(content, pa.Table):
            extra = {DROPS: json.dumps(shard.drops, sort_keys=True).encode()} if name == key else {}
            write_table(folder / f"{name}.parquet", content.replace_schema_metadata(extra))
        elif isinstance(content, str):
            write_json(
                folder / COUNTS / f"{name}.json",
                {"rows": content.count("\n"), "drops": dict(shard.drops)},
            )
            write_lines(folder / f"{name}.jsonl", content)
        else:
            write_array(folder / f"{name}.npy", content)


def _main_file(folder: Path, key: str) -> Path | None:
    files = (folder / f"{key}{suffix}" for suffix in (".parquet", ".npy", ".jsonl"))
    return next((file for file in files if file.exists()), None)


def _count(folder: Path, table: str, keys: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Count rows and drops from the shards themselves, so that a resumed stage counts what an
    earlier process did.
    """
    rows, drops = Counter({table: 0}), Counter[str]()
    for file in sorted(folder.rglob("*.parquet")):
        metadata, name = pq.read_metadata(file), file.relative_to(folder)
        side = name.parent.as_posix().strip("_.")
        rows[side or table] += metadata.num_rows
        rows[table] += metadata.num_rows if side and name.with_suffix("").as_posix() in keys else 0
        drops.update(json.loads((metadata.metadata or {}).get(DROPS, b"{}")))
    for key in keys:
        file = folder / f"{key}.npy"
        if file.exists():
            rows[file.parent.name if "/" in key else table] += len(np.load(file, mmap_mode="r"))
    for file in (folder / COUNTS).rglob("*.json"):
        counts = json.loads(file.read_bytes())
        rows[table] += counts["rows"]
        if side := file.parent.relative_to(folder / COUNTS).name:
            rows[side] += counts["rows"]
        drops.update(counts["drops"])
    return {name: count for name, count in rows.items() if count or name == table}, dict(
        sorted(drops.items())
    )
