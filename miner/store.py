"""The run folder: where everything lies, what is finished there, and what is read of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from miner.errors import UserError

PLAN, MANIFEST = "_plan.json", "_manifest.json"
# shards of a stage that grows, set aside until all of them are made from the new inputs
BEFORE = "_before"
# columns whose few distinct texts come again and again
ENCODED = {"query_id", "doc_id", "source", "judge", "verdict", "reason"}


class Manifest(BaseModel):
    """What a finished stage did, as `_manifest.json` keeps it."""

    stage: str
    fingerprint: str
    version: str
    made_by: str
    algorithm: int
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
        """Return the manifest of a finished stage, or None.

        Raises:
            UserError: another version of quarry wrote it, with other fields.
        """
        file = self.path / folder / MANIFEST
        if not file.exists():
            return None
        try:
            return Manifest.model_validate_json(file.read_bytes())
        except ValidationError:
            raise UserError(
                f"{file} was written by another version of quarry; make it again with --force, or"
                " take another run folder with -r"
            ) from None

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

    def judge_folder(self, judge: str) -> str:
        """Return the folder with a judge's rows: "similarity.positive" lies with "similarity"."""
        return f"{self.JUDGES}/{judge.partition('.')[0]}"

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
