"""The run folder: atomic shards, manifests, fingerprints; a stage is skipped, resumed, made afresh
or refused.

A stage is a folder. Its main table lies in it as `00000.parquet`, `00001.parquet`…, its side tables
in folders that begin with `_` (readers of Parquet folders pass over those). `_plan.json` is written
first and `_manifest.json` last: a folder without a manifest is half done, and goes on at the first
shard that is missing. Nothing under its final name is ever half written.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

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

PLAN, MANIFEST = "_plan.json", "_manifest.json"
DROPS = b"quarry.drops"
# shards of a stage that grows, set aside until all of them are made from the new inputs
# columns whose few distinct texts come again and again
ENCODED = {"query_id", "doc_id", "source", "judge", "verdict", "reason"}
BEFORE = "_before"
COUNTS = "_counts"  # what JSON lines cannot carry themselves: rows and drops of each such shard
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
    """

    folder: str
    table: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    grows: str | None = None
    cheap: bool = False

    def plan(self) -> dict[str, Any]:
        """Return all that decides the result, as JSON values."""
        return {"options": dict(self.options), "inputs": dict(self.inputs), "model": self.model}

    @property
    def fingerprint(self) -> str:
        """Return the hash of the plan."""
        return fingerprint(self.plan())

    def grown_from(self, before: Mapping[str, Any]) -> bool:
        """Return whether an earlier plan differs from this one only in inputs that may change."""

        def fixed(plan: Mapping[str, Any]) -> dict[str, Any]:
            stays = (
                {}
                if self.cheap
                else {
                    name: value
                    for name, value in plan["inputs"].items()
                    if not name.startswith(self.grows or name)
                }
            )
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


class Manifest(BaseModel):
    """What a finished stage did, as `_manifest.json` keeps it."""

    stage: str
    fingerprint: str
    version: str
    options: dict[str, Any]
    inputs: dict[str, str]
    model: str | None
    seed: int | None
    rows: dict[str, int]
    drops: dict[str, int]
    facts: dict[str, Any]
    shards: int
    resumed_shards: int
    seconds: float
    peak_memory_mb: float
    skipped: bool = False  # in memory only: this call found it done


class Run:
    """A run folder. Cheap to make and to pickle; nothing is read until asked for.

    The names of its folders stand here and nowhere else.
    """

    TABLES, INDEXES, SOURCES = "1_tables", "2_index", "3_candidates"
    JUDGES, SETS, METRICS = "4_judgments", "5_sets", "6_metrics"
    REPORT, EXPORTS = "7_report", "8_export"
    DOCUMENTS, QUERIES = f"{TABLES}/documents", f"{TABLES}/queries"
    POSITIVES, LABELS, IMAGES = f"{TABLES}/positives", f"{TABLES}/labels", f"{TABLES}/images"

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from writing into this run folder; the system frees the lock
        when this process ends, however it ends.

        Raises:
            UserError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{self.path} is in use by another quarry process; wait for it, or take another run"
                " folder with -r"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def find(self, folder: str) -> Manifest | None:
        """Return the manifest of a finished stage, or None."""
        file = self.path / folder / MANIFEST
        return Manifest.model_validate_json(file.read_bytes()) if file.exists() else None

    def need(self, folder: str, command: str) -> Manifest:
        """Return the manifest of a finished stage.

        Raises:
            UserError: it is not there, or half done; `command` is named as what makes it.
        """
        manifest = self.find(folder)
        if manifest is None:
            state = (
                "is only half done" if (self.path / folder / PLAN).exists() else "does not exist"
            )
            raise UserError(f"{self.path / folder} {state}; run `quarry {command}` first")
        return manifest

    def need_current(self, folder: str, command: str) -> Manifest:
        """Return the manifest of a finished stage that was made from the tables as they are now:
        else its shards hold other queries.

        Raises:
            UserError: it is not there, or older than the tables.
        """
        manifest, now = self.need(folder, command), self.tables().fingerprint
        if manifest.inputs.get(Run.TABLES, now) != now:
            raise UserError(
                f"{self.path / folder} was made from tables that have changed since; run `quarry"
                f" {command} --force` first"
            )
        return manifest

    def need_index(self, name: str, kind: str) -> Manifest:
        """Return the manifest of a finished index of the tables as they are now.

        Raises:
            UserError: it is not there, is older than the tables, or of another kind.
        """
        index = self.need_current(f"{self.INDEXES}/{name}", f"index {kind}")
        if index.facts["kind"] != kind:
            raise UserError(
                f"{index.stage} is a {index.facts['kind']} index; expected one that `quarry index"
                f" {kind}` made: name it with --index"
            )
        return index

    def need_sources(self, names: Sequence[str]) -> dict[str, str]:
        """Return the stages of finished sources of the tables as they are now -> their
        fingerprints.

        Raises:
            UserError: a source is not there (those found are listed), named twice, or older than
                the tables.
        """
        found = self.names(self.SOURCES)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"--from names {', '.join(twice)} more than once; name each once")
        unknown = [name for name in names if name not in found]
        if unknown:
            raise UserError(
                f"no finished source {', '.join(unknown)} in {self.path / self.SOURCES} (found"
                f" {', '.join(found) or 'none'}); take one of these, or run `quarry mine"
                f" {unknown[0]}` first"
            )
        made = [self.need_current(f"{self.SOURCES}/{name}", f"mine {name}") for name in names]
        return {manifest.stage: manifest.fingerprint for manifest in made}

    def names(self, stage: str) -> list[str]:
        """Return the finished parts of a stage in order of name, such as the sources in
        "3_candidates".
        """
        return sorted(file.parent.name for file in (self.path / stage).glob(f"*/{MANIFEST}"))

    def tables(self) -> Manifest:
        """Return the manifest of 1_tables; its facts say how many documents, shards and queries
        there are.
        """
        return self.need(Run.TABLES, "ingest")

    def table_input(self) -> dict[str, str]:
        """Return the input that every later stage has: 1_tables -> its fingerprint."""
        return {self.TABLES: self.tables().fingerprint}

    def query_shards(self) -> list[str]:
        """Return the keys of the query shards, in order."""
        return shard_keys(self.tables().facts["query_shards"])

    def read(self, folder: str, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one shard of a table, such as read("3_candidates/bm25", "00000"), or some of its
        columns; texts of these then come as dictionaries, each distinct one once.
        """
        file = self.path / folder / f"{key}.parquet"
        if columns is None:
            return pq.read_table(file, partitioning=None)
        names, texts = list(columns), [name for name in columns if name in ENCODED]
        return pq.read_table(file, columns=names, read_dictionary=texts, partitioning=None)

    def read_before(self, folder: str, key: str) -> pa.Table | None:
        """Read what a shard of a stage that grows held before its inputs changed; None if it
        held nothing.
        """
        file = self.path / folder / BEFORE / f"{key}.parquet"
        return pq.read_table(file, partitioning=None) if file.exists() else None


def shard_keys(count: int) -> list[str]:
    """Return "00000", "00001", … for `count` shards."""
    return [f"{number:05d}" for number in range(count)]


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
    return finish(
        run,
        stage,
        watch,
        rows=rows,
        drops=drops,
        facts=dict(then()),
        shards=len(keys),
        resumed_shards=len(keys) - len(todo),
    )


def begin(run: Run, stage: Stage, force: bool) -> Manifest | None:
    """Open a stage's folder: return its manifest if the stage is done, else leave `_plan.json` in
    it and return None.

    Raises:
        UserError: what lies there was made with other options, from other inputs or by another
            model, and `force` is not given.
    """
    folder = run.path / stage.folder
    if force and folder.exists():
        shutil.rmtree(folder)
    plan = folder / PLAN
    if plan.exists():
        before = json.loads(plan.read_bytes())
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
    old, new = before["options"], now["options"]
    changed = [
        f"{name}={old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted({*old, *new})
        if name not in old or name not in new or old[name] != new[name]
    ]
    if changed:
        return f"was made with {'; '.join(changed)}"
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
    return next(
        (
            file
            for suffix in (".parquet", ".npy", ".jsonl")
            if (file := folder / f"{key}{suffix}").exists()
        ),
        None,
    )


def _count(folder: Path, table: str, keys: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Count rows and drops from the shards themselves, so that a resumed stage counts what an
    earlier process did.
    """
    rows, drops = Counter({table: 0}), Counter[str]()
    for file in sorted(folder.rglob("*.parquet")):
        metadata = pq.read_metadata(file)
        side = file.parent.relative_to(folder).as_posix().strip("_.")
        rows[side or table] += metadata.num_rows
        drops.update(json.loads((metadata.metadata or {}).get(DROPS, b"{}")))
    for key in keys:
        file = folder / f"{key}.npy"
        if file.exists():
            rows[file.parent.name if "/" in key else table] += len(np.load(file, mmap_mode="r"))
    for file in (folder / COUNTS).rglob("*.json"):
        counts = json.loads(file.read_bytes())
        rows[table] += counts["rows"]
        drops.update(counts["drops"])
    return {name: count for name, count in rows.items() if count or name == table}, dict(
        sorted(drops.items())
    )
