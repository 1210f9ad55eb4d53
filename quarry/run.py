"""The commands as methods of a run: each looks its step up in the catalogue, builds the options as
the command line does, and calls the step under the run's lock.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cli.calling import Settings, call_alone
from cli.flags import build_options
from cli.steps import step_of
from miner.errors import log

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from miner.store import Manifest

Tell = Callable[[str, int, int], None]


class QuarryRun:
    """A run folder, and what can be done with it.

    A method takes the options of its command by name, "-" written as "_": `quarry mine bm25 -k 5
    --name b` is `run.mine("bm25", k=5, name="b")`. What is done is skipped, what was made otherwise
    is refused unless force=True. A mistake of yours is a `miner.errors.UserError`.

    Args:
        folder: of the run; `ingest` makes it.
        workers: processes that share the shards.
        progress: is told stage, shards done and shards in all; while ingest reads, rows and 0.

    >>> from quarry import Run
    >>> documents = [
    ...     {"doc_id": "d1", "text": "slate roofs last a century"},
    ...     {"doc_id": "d2", "text": "thatch roofs burn"},
    ...     {"doc_id": "d3", "text": "cellars are cool"},
    ... ]
    >>> queries = [{"query_id": "q1", "text": "how long do slate roofs last"}]
    >>> positives = [{"query_id": "q1", "doc_id": "d1"}]
    >>> with TemporaryDirectory() as folder:
    ...     run = Run(folder)
    ...     made = run.ingest(documents=documents, queries=queries, positives=positives)
    ...     made = run.index("bm25")
    ...     made = run.mine("bm25", k=2)
    ...     made = run.select("roofs", sources=["bm25:2"])
    ...     print(made.rows["sets"], made.drops)
    ...     run.set("roofs").to_table()["doc_id"].to_pylist()
    1 {'positive': 1}
    ['d2']
    """

    def __init__(
        self, folder: str | os.PathLike[str], workers: int = 1, progress: Tell | None = None
    ):
        self.path, self.workers, self.progress = Path(folder), workers, progress

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def ingest(
        self, format: str | None = None, /, *, force: bool = False, **options: Any
    ) -> "Manifest":
        """Carry out `quarry ingest FORMAT`; return the manifest of the tables.

        Without a format, `documents`, `queries` and `positives` are tables in memory (of pyarrow,
        pandas, polars or datasets, or a list of dicts) or files, with the columns doc_id, title (if
        any), text; query_id, text; and query_id, doc_id, relevance (if any).
        """
        from quarry.in_memory import refuse_tables, written

        name = format or "tables"
        with TemporaryDirectory() as folder:
            if name == "tables":
                options = written(options, Path(folder))
            refuse_tables(f"ingest {name}", options)
            return self._call("ingest", name, options, force)[0]

    def index(self, kind: str, /, *, force: bool = False, **options: Any) -> "Manifest":
        """Carry out `quarry index KIND`."""
        return self._call("index", kind, options, force)[0]

    def mine(self, source: str, /, *, force: bool = False, **options: Any) -> "Manifest":
        """Carry out `quarry mine SOURCE`."""
        return self._call("mine", source, options, force)[0]

    def judge(self, judge: str, /, *, force: bool = False, **options: Any) -> "Manifest":
        """Carry out `quarry judge JUDGE`."""
        return self._call("judge", judge, options, force)[0]

    def tune(self, *, force: bool = False, **options: Any) -> "Manifest":
        """Carry out `quarry tune`: the recipe found is `facts["section"]` of the manifest."""
        return self._call("tune", None, options, force)[0]

    def select(self, name: str, *, force: bool = False, **options: Any) -> "Manifest":
        """Carry out `quarry select NAME`."""
        return self._call("select", None, {"name": name, **options}, force)[0]

    def score(self, *sets: str, force: bool = False, **options: Any) -> "list[Manifest]":
        """Carry out `quarry score SETS…`; return the manifests of the sets, then of the sources."""
        return self._call("score", None, {"sets": sets or None, **options}, force)

    def report(self, *, force: bool = False, **options: Any) -> "Manifest":
        """Carry out `quarry report`: what it finds is `facts["verdict"]` of the manifest."""
        return self._call("report", None, options, force)[0]

    def export(self, name: str, *, force: bool = False, **options: Any) -> "Manifest":
        """Carry out `quarry export NAME`."""
        return self._call("export", None, {"name": name, **options}, force)[0]

    def table(self, name: str) -> "Dataset":
        """Return a table of miner/tables.py from all finished sources, judges or sets, read when
        it is used: `run.table("candidates").to_table(filter=field("source") == "bm25")`.
        """
        from quarry.reading import lazy_table

        return lazy_table(self._at.made_run, name)

    def set(self, name: str) -> "Dataset":
        """Return the negatives of a set, read when they are used."""
        from quarry.reading import lazy_set

        return lazy_set(self._at.made_run, name)

    def exported(self, name: str, format: str = "triplet", split: str = "train") -> "Dataset":
        """Return an export of a set, read when it is used; its `files` are the paths. The split is
        for those that were made with `dev`.
        """
        from quarry.reading import lazy_export

        return lazy_export(self._at.made_run, name, format, split)

    def show(self, query_id: str, set: str | None = None) -> dict[str, Any]:
        """Return what `quarry show` shows of a query, as plain values."""
        from scoring.show import describe

        return describe(self._at.made_run, query_id, set)

    def status(self) -> list[dict[str, Any]]:
        """Return what `quarry status` says of each stage, as plain values."""
        from cli.status import states

        return states(self._at.made_run)

    @property
    def _at(self) -> Settings:
        return Settings(self.path, {})

    def _call(
        self, stage: str, name: str | None, given: Mapping[str, Any], force: bool
    ) -> "list[Manifest]":
        """Carry out a step; what there is to warn of goes to the log "quarry"."""
        from miner.engine import How, silent

        step = step_of(stage, name)
        values = {
            option: os.fspath(value) if isinstance(value, os.PathLike) else value
            for option, value in given.items()
        }
        options = build_options(step.part.options, values, step.title, lambda name, _: name)
        how = How(force, self.workers, _display_of(self.progress) if self.progress else silent)
        made = call_alone(self._at, step, options, how)
        for manifest in made:
            for line in manifest.facts.get("warnings", ()):
                log.warning("%s: %s", manifest.stage, line)
        return made


def _display_of(tell: Tell) -> Callable[..., Any]:
    """Return a progress display, as `miner.engine.How` has it, of a function that is told."""

    @contextmanager
    def display(stage: str, total: int) -> Iterator[Callable[..., None]]:
        done = 0

        def advance(count: int = 1, characters: int = 0) -> None:
            nonlocal done
            done += count
            tell(stage, done, total)

        tell(stage, 0, total)
        yield advance

    return display
