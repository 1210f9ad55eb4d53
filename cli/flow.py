"""quarry.toml -> a plan of steps in flow order -> all of them carried out, each skipped if it is
done.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cli.calling import Settings, call
from cli.flags import CONFIG, build_options, kinds, read_config, section
from cli.perform import print_json, print_manifest, progress
from cli.steps import INDEXES, SINGLE, STAGES, Step, steps_of
from miner.engine import How
from miner.errors import UserError
from miner.options import Options

DEMO = Path(__file__).parent / "demo.toml"
DEMO_LLM = DEMO.with_name("demo_llm.toml")
PER_SET = ("select", "export")


class Planned(NamedTuple):
    """A step with its options."""

    step: Step
    options: Options


def make_plan(config: Mapping[str, Any], first: str | None, last: str | None) -> list[Planned]:
    """Return the steps that quarry.toml asks for, from stage `first` to stage `last`, in flow
    order.

    What a step cannot do without is added with its defaults: the index of a source, the two judges
    of a set, score and report.

    Raises:
        UserError: there is no quarry.toml, or it has an unknown section, stage or option.
    """
    if not config:
        raise UserError(
            f"no {CONFIG} here; write one (quarry demo's is at {DEMO}), name one with --config, or"
            " give the commands one by one"
        )
    unknown = [name for name in config if name not in STAGES]
    if unknown:
        raise UserError(
            f"{CONFIG}: unknown section [{unknown[0]}]; expected one of {', '.join(STAGES)}"
        )
    for stage in filter(None, (first, last)):
        if stage not in STAGES:
            raise UserError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}")
    start = STAGES.index(first) if first else 0
    stop = STAGES.index(last) + 1 if last else len(STAGES)
    return [planned for stage in STAGES[start:stop] for planned in _plan_stage(config, stage)]


def _plan_stage(config: Mapping[str, Any], stage: str) -> list[Planned]:
    by_kind = {step.name: step for step in steps_of(stage)}
    if stage in PER_SET:
        return [
            _planned(by_kind[None], f"{stage}.{name}", {"name": name, **values})
            for name, (_, values) in kinds(config, stage).items()
        ]
    if stage in SINGLE:
        asked = stage in config or (stage != "tune" and "select" in config)
        return [_planned(by_kind[None], stage, section(config, stage))] if asked else []
    sections = kinds(config, stage)
    for name, kind in _implied(config, stage):
        sections.setdefault(name, (kind, {}))
    for name, (kind, _) in sections.items():
        if kind not in by_kind:
            expected = ", ".join(filter(None, by_kind))
            raise UserError(
                f"{CONFIG}: unknown section [{stage}.{name}]; expected one of {expected}, or"
                " another name and one of these as its kind"
            )
    order = list(by_kind)
    return [
        _planned(by_kind[kind], f"{stage}.{name}", _named(by_kind[kind], name, values))
        for name, (kind, values) in sorted(sections.items(), key=lambda one: order.index(one[1][0]))
    ]


def _planned(step: Step, where: str, values: Mapping[str, Any]) -> Planned:
    return Planned(step, build_options(step.part.options, values, f"{CONFIG} [{where}]"))


def _named(step: Step, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Give a section's part the section's name, unless it has one of its own."""
    if name == step.name:
        return values
    if "name" not in step.part.options.model_fields:
        raise UserError(
            f"{CONFIG}: [{step.stage}.{name}] is a second {step.name}, of which there can be but"
            f" one; write [{step.stage}.{step.name}]"
        )
    return {"name": name} | values


def _implied(config: Mapping[str, Any], stage: str) -> Iterator[tuple[str, str]]:
    """Yield name and kind of what a plan needs though it does not say so."""
    if stage == "index":
        for name, (kind, values) in kinds(config, "mine").items():
            if kind in INDEXES:
                yield values.get("index") or values.get("name") or name, kind
    if stage == "judge" and "select" in config:
        yield from (("similarity", "similarity"), ("duplicates", "duplicates"))


def carry_out(at: Settings, plan: list[Planned], force: bool, workers: int, as_json: bool) -> None:
    """Carry out a plan under one lock; say what is done before it is done, and what came of it.
    With `as_json`, print all summaries in the end.
    """
    done, how = [], How(force, workers, progress)
    with at.run.lock():
        for step, options in plan:
            if not as_json:
                name = getattr(options, "name", None)
                titled = step.title if name in (None, step.name) else f"{step.title} {name}"
                print(f"… {titled}: {step.part.about}", file=sys.stderr, flush=True)
            for manifest in call(at.run, step, options, how):
                done.append(manifest)
                if not as_json:
                    print_manifest(manifest)
    if as_json:
        print_json({"stages": [manifest.model_dump() for manifest in done]})
    report = at.path / at.run.REPORT / "report.html"
    if not as_json and any(manifest.stage == at.run.REPORT for manifest in done):
        print(f"\nreport: {report.resolve()}")


TOY = """
A model of 135 million parameters wrote and judged this. What it writes is often no hard negative,
and its p(yes) is a toy's: see how all fits together here, then name a real one with --llm or
--server (docs/language-models.md)."""


def carry_out_demo(folder: Path | None, full: bool, llm: bool, workers: int, as_json: bool) -> None:
    """Carry out the demo's plan, and say what to do next.

    Args:
        folder: the run folder.
        full: all functions in place of the sample.
        llm: the plan with a language model.
        workers, as_json: as for every plan.
    """
    config = read_config(DEMO_LLM if llm else DEMO)
    if full:
        del config["ingest"]["stdlib"]["sample"]
    name = "demo-run" + ("-llm" if llm else "") + ("-full" if full else "")
    at = Settings(folder or Path(name), config)
    carry_out(at, make_plan(config, None, None), False, workers, as_json)
    if as_json:
        return
    if llm:
        print(TOY)
    query_id = at.run.read(at.run.QUERIES, at.run.query_shards()[0])["query_id"][0].as_py()
    print(
        f"""
What now:
  open the report in a browser: which of the sets would you train on, and why?
  quarry -r {at.path} show {query_id}   one query, its candidates, and why each was kept or dropped
  quarry -r {at.path} select strict --from dense --percent-margin 0.9 -n 5   another recipe,
      in a second: no model runs again; then `quarry -r {at.path} score` and `report`
  quarry ingest --help   your own data: BEIR, TREC, pairs, captions; then index, mine, judge…"""
        + ("" if full or llm else "\n  quarry demo --full   the same on the whole standard library")
    )


def print_plan(at: Settings, plan: list[Planned], as_json: bool) -> None:
    """Print the steps of a plan, what is done of them, and their options that are not the
    defaults.
    """
    rows: list[dict[str, Any]] = [
        {
            "step": step.title,
            "state": _state(at, step, options),
            "options": options.model_dump(mode="json", exclude_defaults=True),
        }
        for step, options in plan
    ]
    if as_json:
        print_json({"run": str(at.path), "plan": rows})
        return
    for row in rows:
        words = " ".join(f"{name}={value}" for name, value in row["options"].items())
        print(f"{row['step']:18} {row['state']:10} {words}")


def _state(at: Settings, step: Step, options: Options) -> str:
    """Say what lies in a step's folder: score and report have one for each set, or are made anew
    each time.
    """
    from miner.store import PLAN

    if step.stage in ("score", "report"):
        return "as needed"
    given = options.model_dump(mode="json", exclude_defaults=True)
    name = getattr(options, "name", step.name)
    run = at.run
    folder = {
        "ingest": run.TABLES,
        "index": f"{run.INDEXES}/{name}",
        "mine": f"{run.SOURCES}/{name}",
        "judge": f"{run.JUDGES}/{name}",
        "select": f"{run.SETS}/{name}",
        "export": f"{run.EXPORTS}/{name}.{getattr(options, 'format', '')}",
    }[step.stage]
    manifest = run.find(folder)
    if manifest is None:
        return "half done" if (at.path / folder / PLAN).exists() else "to do"
    changed = [name for name, value in given.items() if manifest.options.get(name, value) != value]
    return f"was made with another {', '.join(changed)}" if changed else "done"
