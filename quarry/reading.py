"""What a run holds, as Arrow data sets: they are read when they are used, as far as they are."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.json

from miner.errors import UserError
from miner.store import Run
from miner.tables import FLOW, SETS
from scoring.sets import need_set

# tables of which every source, judge or set has its own part: the stage, and where in the part
PARTS = {
    "candidates": (Run.SOURCES, ""),
    "made_documents": (Run.SOURCES, "_documents"),
    "judgments": (Run.JUDGES, ""),
    "sets": (Run.SETS, ""),
    "rejected": (Run.SETS, "_rejected"),
    "promoted": (Run.SETS, "_promoted"),
}
LONGEST_LINE = 2**26  # bytes of a row of JSON lines that Arrow can read


def lazy_table(run: Run, name: str) -> ds.Dataset:
    """Return a table of `miner.tables` from all finished sources, judges or sets.

    Raises:
        UserError: there is no table of this name, or no finished stage has it.
    """
    tables = {table.name: table for table in FLOW}
    if name not in tables:
        raise UserError(f"there is no table {name!r}; expected one of {', '.join(tables)}")
    run.tables()
    if name in PARTS:
        stage, below = PARTS[name]
        folders = [run.path / stage / part / below for part in run.names(stage)]
    else:
        stage = run.METRICS if name == "metrics" else run.TABLES
        folders = [run.path / stage if name == "metrics" else run.path / stage / name]
    return _data_set(folders, f"{run.path / stage} has no {name} yet", tables[name].schema)


def lazy_set(run: Run, name: str) -> ds.Dataset:
    """Return the negatives of a set.

    Raises:
        UserError: there is no such set, or it is older than the tables.
    """
    made = need_set(run, name)
    return _data_set([run.path / made.stage], f"{made.stage} is empty", SETS.schema)


def lazy_export(run: Run, name: str, form: str, split: str) -> ds.Dataset:
    """Return what `export` wrote into the run folder; where it has splits, one of them.

    Raises:
        UserError: it did not.
    """
    made = run.need(f"{run.EXPORTS}/{name}.{form}", f"export {name} --format {form}")
    folder = run.path / made.stage
    folder = folder / split if (folder / "train").is_dir() else folder
    return _data_set([folder], f"{made.stage} has no {split}")


def _data_set(folders: Sequence[Path], without: str, schema: pa.Schema | None = None) -> ds.Dataset:
    """Return the shards of folders, in order.

    Raises:
        UserError: there is none, in the words of `without`.
    """
    lines = ds.JsonFileFormat(read_options=pyarrow.json.ReadOptions(block_size=LONGEST_LINE))
    for kind, form in (("parquet", "parquet"), ("arrow", "ipc"), ("jsonl", lines)):
        files = [str(file) for at in folders for file in sorted(at.glob(f"*.{kind}"))]
        if files:
            return ds.dataset(files, schema=schema, format=form)
    raise UserError(without)
