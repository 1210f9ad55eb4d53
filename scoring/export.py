"""sets, positives, texts -> 8_export: one set of negatives as a trainer reads it, in Parquet or
JSON lines.

Text columns come first and in the order that a loss expects; labels are named as
sentence-transformers names them (`label`, `labels`, `scores`). It reads every other column as an
input text, so ids are left out unless they are asked for.
"""

import json
from functools import partial
from pathlib import Path

import pyarrow.compute as pc

from miner.engine import How
from miner.errors import UserError
from miner.stages import Content, Shard, Stage, run_stage
from miner.store import PLAN, Manifest, Run
from scoring.arrange import arranged_keys, arranged_table, read_drops, told_batches, write_order
from scoring.card import write_card
from scoring.export_folders import FOLDERS, check_ids, check_options, folder_inputs, shard_beside
from scoring.export_groups import group_rows, group_texts, texts_beside
from scoring.export_options import Export
from scoring.export_rows import Job, Maker, flat_rows, flat_texts, ratings
from scoring.export_tasks import need_labels, with_tasks
from scoring.export_texts import json_lines_of
from scoring.open_clip import write_tsv
from scoring.sets import need_set
from scoring.trainers import TRAINERS

DEFAULT_NEGATIVES = 5


def export(run: Run, options: Export, how: How) -> Manifest:
    """Write a set as a trainer reads it: sets, positives, texts -> 8_export/<set>.<format>. What
    the formats hold is in `scoring.export_rows`.

    Raises:
        UserError: there is no such set, it is half done, empty or older than the tables; it lacks
            what the format or an option needs: scores, promoted documents, ratings, images; an
            option is for another format; or the folder belongs to something else.
    """
    made = need_set(run, options.name)
    _check(run, options, made)
    judge = _judge_of(run, options, made)
    inputs = _inputs_of(run, options, made, judge)
    stage = Stage(_export_folder(run, options), "rows", options.record(), inputs, made_by="export")
    negatives = options.negatives or made.options["negatives"] or DEFAULT_NEGATIVES
    job, folder = Job(run, options, negatives, judge), run.path / stage.folder
    maker = with_tasks(_maker_of(options), options)
    keys = run.query_shards()
    if options.arranged:
        keys = arranged_keys(options, len(keys))

    def prepare() -> partial[Shard]:
        if options.arranged:
            write_order(job, maker, folder)
        return partial(_export_shard, job, maker, folder)

    def then() -> dict[str, object]:
        facts: dict[str, object] = {"negatives": negatives} if options.format == "n-tuple" else {}
        if options.format == "open-clip":
            write_tsv(folder, keys)
        elif options.format in FOLDERS:
            facts |= FOLDERS[options.format].write(job, made, folder, keys)
        if options.card or options.format == "pylate":
            write_card(run, options, made, folder)
        facts |= {"promoted": made.rows["promoted"]} if options.promoted else {}
        return facts | (told_batches(folder, options) if options.batch else {})

    return run_stage(run, stage, prepare, keys, how, then)


def _maker_of(options: Export) -> Maker:
    if options.format in FOLDERS:
        return FOLDERS[options.format].maker
    return Maker(group_rows, group_texts) if options.nests else Maker(flat_rows, flat_texts)


def _export_shard(job: Job, maker: Maker, folder: Path, key: str) -> Shard:
    """Return a shard of the export: of one query shard, or of an order of rows."""
    files: dict[str, Content] = {}
    if job.options.arranged:
        table, drops = arranged_table(job, maker, folder, key), read_drops(folder, key)
    else:
        rows, drops = maker.rows(job, key)
        table = maker.texts(job, key, rows)
    if job.options.format == "pylate":
        files = texts_beside(job.run, key, table)
    if job.options.format in FOLDERS:
        table, files, more = shard_beside(job, folder, key, table)
        drops |= more
    files[key] = table if job.options.kind == "parquet" else json_lines_of(table)
    return Shard(files, drops)


def _inputs_of(run: Run, options: Export, made: Manifest, judge: str | None) -> dict[str, str]:
    folders = [run.judge_folder(judge)] if judge is not None else []
    duplicates = run.find(f"{run.JUDGES}/duplicates")
    folders += [duplicates.stage] if options.arranged and duplicates else []
    judges = {folder: run.need(folder, "judge").fingerprint for folder in folders}
    return run.table_input() | {made.stage: made.fingerprint} | judges | folder_inputs(run, options)


def _judge_of(run: Run, options: Export, made: Manifest) -> str | None:
    """Return the judge whose scores are told, None if none are.

    Raises:
        UserError: scores must be told, and the set has none.
    """
    need = options.format == "scored-list" or options.scores
    need |= options.weights in ("softmax", "score")
    trainer = TRAINERS.get(options.format)
    need |= trainer is not None and trainer.scored == "always"
    if not need and (trainer is None or trainer.scored == "never"):
        return None
    judge = _scored_by(run, made)
    if judge is None and need:
        what: str = f"--weights {options.weights}" if options.weights else options.format
        what = "--scores" if options.scores else what
        raise UserError(
            f"set {options.name!r} has no scores of negatives and positives, which {what} needs;"
            f" run `quarry judge similarity`, then `quarry select {options.name} --force`"
        )
    return judge


def _check(run: Run, options: Export, made: Manifest) -> None:
    """Refuse options that do not go together, or that the set has nothing for."""
    name, form = options.name, options.format
    if form in FOLDERS:
        check_options(options)
    else:
        _check_format(options)
    if options.task_labels:
        need_labels(run)
    if not made.rows["sets"]:
        raise UserError(
            f"set {name!r} is empty: nothing to export; loosen its recipe and run `quarry select"
            f" {name} --force`"
        )
    if options.promoted and not made.rows.get("promoted"):
        raise UserError(
            f"set {name!r} has no promoted documents; leave --promoted out, or select it with"
            " --promote JUDGE=SCORE"
        )
    _check_open_clip(run, options)
    if form in FOLDERS:
        check_ids(run, options, made)
    if options.concreteness and form == "scored-list":
        raise UserError(
            "--concreteness is not for scored-list, which does not tell positives from negatives;"
            " take labeled-list"
        )
    if options.concreteness and not any(_is_rated(run, made, key) for key in run.query_shards()):
        raise UserError(
            f"set {name!r} has no made negative with a rating; leave --concreteness out, or mine"
            " with `quarry mine substitute`"
        )


def _check_format(options: Export) -> None:
    """Refuse options that another format is for."""
    form, listed = options.format, ("triplet", "n-tuple", "labeled-pair", "labeled-list")
    if options.negatives is not None and form != "n-tuple" and not options.nests:
        raise UserError(
            f"-n {options.negatives} is for n-tuple, but the format is {form}; leave it out, or"
            " select a smaller set"
        )
    for_pairs = form in ("triplet", "n-tuple")
    batched = for_pairs or form in ("open-clip", "flag-embedding", "tevatron", "swift-embedding")
    checked = (
        ("--prompt", options.prompt, options.nests),
        ("--concreteness", options.concreteness, not options.nests),
        ("--scores", options.scores, for_pairs),
        ("--weights", options.weights, form in (*listed, "scored-list")),
        ("--fill", options.fill != "drop", form == "n-tuple"),
        ("--batch", options.batch, batched),
        ("--dev", options.dev, form not in ("open-clip", "pylate")),
        ("--task", options.task, form not in ("pylate", "preference")),
        ("--task-labels", options.task_labels, form not in ("pylate", "preference")),
    )
    for flag, given, fits in checked:
        if given and not fits:
            raise UserError(f"{flag} is not for {form}; leave it out, or take another format")
    if options.ids and options.nests:
        raise UserError(f"--ids is not for {form}, which has the ids that its trainer reads")
    if options.task is not None and options.task_labels:
        raise UserError("--task and --task-labels are both given; leave one out")


def _check_open_clip(run: Run, options: Export) -> None:
    """Refuse what open-clip cannot have, and what only it can."""
    if options.format not in ("open-clip", "webdataset"):
        if options.image_folder:
            raise UserError(
                "--image-folder is for open-clip and webdataset, but the format is"
                f" {options.format}; leave it out"
            )
        return
    if not run.tables().rows.get("images"):
        raise UserError(
            f"{run.path} has no images, which {options.format} needs; ingest captions with --image"
            " COLUMN, in a new run folder"
        )
    if options.promoted or options.kind != "parquet":
        extra = "--promoted" if options.promoted else f"--file-type {options.file_type}"
        raise UserError(
            f"{extra} is not for open-clip, which is one train.tsv of captions and their negatives;"
            " leave it out"
        )


def _is_rated(run: Run, made: Manifest, key: str) -> bool:
    return (
        pc.any(pc.is_in(run.read(made.stage, key)["doc_id"], ratings(run, key)["doc_id"])).as_py()
        or False
    )


def _scored_by(run: Run, made: Manifest) -> str | None:
    """Return the judge that scored a set's negatives and their positives; None if none did."""
    for key in run.query_shards():
        table = run.read(made.stage, key)
        if pc.any(pc.and_(table["score"].is_valid(), table["positive_score"].is_valid())).as_py():
            return str(made.options["judge"])
    return None


def _export_folder(run: Run, options: Export) -> str:
    """Return the stage's folder: below the run, or an absolute one, in which nothing but an export
    may lie.

    Raises:
        UserError: the folder holds other things, which --force would remove, or lies among the
            run's other stages.
    """
    if options.out is None:
        return f"{run.EXPORTS}/{options.name}.{options.format}"
    out, home = options.out.expanduser().resolve(), run.path.resolve()
    if out.is_relative_to(home) and not out.is_relative_to(home / run.EXPORTS):
        raise UserError(
            f"{out} lies inside the run folder, beside its stages; take a folder outside it, or"
            f" below {home / run.EXPORTS}"
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_export(out))):
        raise UserError(f"{out} exists and is no export; take a new or empty folder")
    return str(out)


def _is_export(folder: Path) -> bool:
    plan = folder / PLAN
    return plan.exists() and {"name", "format", "out"} <= set(
        json.loads(plan.read_bytes())["options"]
    ) <= set(Export.model_fields)
