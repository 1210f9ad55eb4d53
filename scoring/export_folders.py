"""Exports that are more than a table: pairs or captions, shard by shard, and what is written beside
them for the reader. A format is one entry of FOLDERS.
"""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from miner.errors import UserError
from miner.files import fingerprint
from miner.stages import Content
from miner.store import Manifest, Run
from miner.tables import PROMOTED
from scoring.beir import write_beir
from scoring.export_options import Export
from scoring.export_rows import Job, Maker, flat_rows, flat_texts
from scoring.nemo import CORPUS, named_documents, write_nemo
from scoring.trec import write_trec
from scoring.webdataset import image_sizes, write_tar

# of a pair, the relevance is a positive's, rank and score are a negative's
PAIRED = """
    SELECT query_id, doc_id, relevance, NULL::INTEGER AS rank, NULL::FLOAT AS score FROM positives
    UNION ALL SELECT query_id, doc_id, 1, NULL, NULL FROM promoted
    UNION ALL SELECT query_id, doc_id, NULL, rank, score FROM negatives
        QUALIFY $most IS NULL OR row_number() OVER (PARTITION BY query_id ORDER BY rank) <= $most
    ORDER BY query_id, rank NULLS FIRST, doc_id
"""


class Form(NamedTuple):
    """An export that is more than a table.

    Attributes:
        takes: options, beside name, format and out.
        broken_by: what no id may hold, as a regular expression; and that in words.
        maker: of the rows of a shard.
        write: what lies beside them, when all shards are there; returns facts.
    """

    takes: tuple[str, ...]
    broken_by: tuple[str, str] | None
    maker: Maker
    write: Callable[[Job, Manifest, Path, Sequence[str]], dict[str, object]]


def check_options(options: Export) -> None:
    """Refuse options that are not for the format.

    Raises:
        UserError: names the option.
    """
    form = FOLDERS[options.format]
    given = options.model_dump(exclude_defaults=True)
    for name in given:
        if name not in ("name", "format", "out", *form.takes):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} is not for {options.format}; leave it out, or take another format"
            )
    if options.format == "webdataset" and not (options.image_folder or Path("?")).is_dir():
        raise UserError(
            "webdataset holds the images: name the folder that they are in with --image-folder"
            f" (found {options.image_folder or 'none'})"
        )


def check_ids(run: Run, options: Export, made: Manifest) -> None:
    """Refuse ids that the format cannot hold.

    Raises:
        UserError: names the first.
    """
    if (broken_by := FOLDERS[options.format].broken_by) is None:
        return
    pattern, what = broken_by
    folders = [run.POSITIVES, made.stage, *[f"{made.stage}/_promoted"] * options.promoted]
    for key, folder in product(run.query_shards(), folders):
        for column in run.read(folder, key, ["query_id", "doc_id"]).columns:
            ids = pc.unique(column.cast(pa.string()))
            broken = ids.filter(pc.match_substring_regex(ids, pattern))
            if len(broken):
                other = "beir" if options.format == "trec" else "labeled-pair --ids"
                raise UserError(
                    f"id {broken[0].as_py()!r} holds {what}, which {options.format} cannot; take"
                    f" --format {other}"
                )


def folder_inputs(run: Run, options: Export) -> dict[str, str]:
    """Return the inputs of an export that lie outside the run."""
    if options.format != "webdataset" or options.image_folder is None:
        return {}
    return {"images": image_sizes(run, options.image_folder)}


def shard_beside(
    job: Job, folder: Path, key: str, table: pa.Table
) -> tuple[pa.Table, dict[str, Content], dict[str, int]]:
    """Write what a shard has beside its table; return the table, further tables and drops."""
    if job.options.format == "nemo":
        return table, {f"{CORPUS}/{key}": named_documents(job.run, key, table)}, {}
    if job.options.format == "webdataset" and job.options.image_folder is not None:
        table, drops = write_tar(folder / f"{key}.tar", job.options.image_folder, table)
        return table, {}, drops
    return table, {}, {}


def _pair_rows(job: Job, key: str) -> tuple[pa.Table, dict[str, int]]:
    """Return positives and negatives of a shard; for nemo, of queries that have both."""
    run, folder = job.run, f"{job.run.SETS}/{job.options.name}"
    promoted = PROMOTED.schema.empty_table()
    if job.options.promoted:
        promoted = run.read(f"{folder}/_promoted", key)
    with duckdb.connect(config={"threads": 1}) as database:
        database.register("positives", run.read(run.POSITIVES, key))
        database.register("promoted", promoted)
        database.register("negatives", run.read(folder, key))
        found = database.sql(PAIRED, params={"most": job.options.negatives}).to_arrow_table()
    if job.options.format != "nemo":
        return found, {}
    asked = found.filter(found["rank"].is_valid())["query_id"]
    kept = found.filter(pc.is_in(found["query_id"], pc.unique(asked)))
    without = pc.count_distinct(found["query_id"]).as_py() - pc.count_distinct(asked).as_py()
    return kept, {"no_negatives": without} if without else {}


def _as_they_are(job: Job, key: str, rows: pa.Table) -> pa.Table:
    return rows


def _caption_rows(job: Job, key: str) -> tuple[pa.Table, dict[str, int]]:
    return flat_rows(_as_open_clip(job), key)


def _caption_texts(job: Job, key: str, rows: pa.Table) -> pa.Table:
    return flat_texts(_as_open_clip(job), key, rows)


def _as_open_clip(job: Job) -> Job:
    other = {"format": "open-clip", "image_folder": None}
    return job._replace(options=job.options.model_copy(update=other))


def _beir(job: Job, made: Manifest, folder: Path, keys: Sequence[str]) -> dict[str, object]:
    return write_beir(job.run, folder, keys)


def _trec(job: Job, made: Manifest, folder: Path, keys: Sequence[str]) -> dict[str, object]:
    return write_trec(folder, keys, job.options.name)


def _nemo(job: Job, made: Manifest, folder: Path, keys: Sequence[str]) -> dict[str, object]:
    of = fingerprint([made.fingerprint, job.options.model_dump(mode="json", exclude={"out"})])
    write_nemo(job.run, folder, keys, f"{job.options.name}-{of}", job.options.prompt)
    return {}


def _nothing(job: Job, made: Manifest, folder: Path, keys: Sequence[str]) -> dict[str, object]:
    return {}


_PAIRS = Maker(_pair_rows, _as_they_are)
FOLDERS: dict[str, Form] = {
    "beir": Form(("promoted", "negatives"), (r"[\t\n\r]", "a tab or a line end"), _PAIRS, _beir),
    "trec": Form(
        ("promoted", "negatives"),
        (r"[\s\v\x1c-\x1f\x{85}\p{Z}]", "white space"),  # where Python and C cut a line
        _PAIRS,
        _trec,
    ),
    "nemo": Form(("promoted", "negatives", "prompt"), None, _PAIRS, _nemo),
    "webdataset": Form(
        ("image_folder", "concreteness", "margin_base", "margin_slope"),
        None,
        Maker(_caption_rows, _caption_texts),
        _nothing,
    ),
}
