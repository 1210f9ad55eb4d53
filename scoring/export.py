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
from miner.stages import Stage, run_stage
from miner.store import PLAN, Manifest, Run
from scoring.card import write_card
from scoring.export_groups import export_groups
from scoring.export_options import Export
from scoring.export_rows import export_shard, ratings
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
    negatives = options.negatives or made.options["negatives"] or DEFAULT_NEGATIVES
    inputs = run.table_input() | {made.stage: made.fingerprint}
    judge = None
    trainer = TRAINERS.get(options.format)
    scored = trainer.scored if trainer else "always" if options.format == "scored-list" else "never"
    if scored != "never":
        judge = _scored_by(run, made)
        if judge is None and scored == "always":
            raise UserError(
                f"set {options.name!r} has no scores of negatives and positives, which"
                f" {options.format} needs; run `quarry judge similarity`, then `quarry select"
                f" {options.name} --force`"
            )
    if judge is not None:
        inputs[run.judge_folder(judge)] = run.need(run.judge_folder(judge), "judge").fingerprint
    stage = Stage(_export_folder(run, options), "rows", options.record(), inputs, made_by="export")
    task, keys = partial(export_shard, run, options, negatives, judge), run.query_shards()
    if trainer:
        task = partial(export_groups, run, options, judge)

    def then() -> dict[str, int]:
        if options.format == "open-clip":
            write_tsv(run.path / stage.folder, keys)
        if options.card or options.format == "pylate":
            write_card(run, options, made, run.path / stage.folder)
        facts = {"negatives": negatives} if options.format == "n-tuple" else {}
        return facts | ({"promoted": made.rows["promoted"]} if options.promoted else {})

    return run_stage(run, stage, lambda: task, keys, how, then)


def _check(run: Run, options: Export, made: Manifest) -> None:
    """Refuse options that do not go together, or that the set has nothing for."""
    name, form = options.name, options.format
    if options.negatives is not None and form != "n-tuple" and form not in TRAINERS:
        raise UserError(
            f"-n {options.negatives} is for n-tuple, but the format is {form}; leave it out, or"
            " select a smaller set"
        )
    for flag, given in (("--prompt", options.prompt), ("--concreteness", options.concreteness)):
        if given and (form in TRAINERS) != (flag == "--prompt"):
            raise UserError(f"{flag} is not for {form}; leave it out, or take another format")
    if options.ids and form in TRAINERS:
        raise UserError(f"--ids is not for {form}, which has the ids that its trainer reads")
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


def _check_open_clip(run: Run, options: Export) -> None:
    """Refuse what open-clip cannot have, and what only it can."""
    if options.format != "open-clip":
        if options.image_folder:
            raise UserError(
                f"--image-folder is for open-clip, but the format is {options.format}; leave it out"
            )
        return
    if not run.tables().rows.get("images"):
        raise UserError(
            f"{run.path} has no images, which open-clip needs; ingest captions with --image COLUMN,"
            " in a new run folder"
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
