"""quarry.toml -> a plan of steps in flow order -> all of them carried out, each skipped if it is
done.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cli.flags import CONFIG, build, section
from cli.perform import Settings, call, print_json, print_manifest
from cli.steps import STAGES, STEPS, Step
from miner.errors import UserError
from miner.options import Options

DEMO = Path(__file__).parent / "demo.toml"
BY_TITLE = {step.title: step for step in STEPS}
PER_SET = ("select", "export")
FOLDERS = {
    "ingest": "tables",
    "index": "index",
    "mine": "candidates",
    "judge": "judgments",
    "select": "sets",
    "export": "export",
}


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
    if stage in PER_SET:
        step = BY_TITLE[stage]
        return [
            Planned(
                step,
                build(
                    step.part.options,
                    {"name": name} | section(config, stage, name),
                    f"{CONFIG} [{stage}.{name}]",
                ),
            )
            for name in section(config, stage)
        ]
    if stage in BY_TITLE:
        asked = stage in config or "select" in config
        return (
            [
                Planned(
                    BY_TITLE[stage],
                    build(
                        BY_TITLE[stage].part.options, section(config, stage), f"{CONFIG} [{stage}]"
                    ),
                )
            ]
            if asked
            else []
        )
    names = list(config.get(stage, {}))
    implied = {
        "index": [name for name in config.get("mine", {}) if f"index {name}" in BY_TITLE],
        "judge": ["similarity", "duplicates"],
    }
    if stage == "index" or (stage == "judge" and "select" in config):
        names += [name for name in implied[stage] if name not in names]
    for name in names:
        if f"{stage} {name}" not in BY_TITLE:
            expected = ", ".join(step.name or "" for step in STEPS if step.stage == stage)
            raise UserError(
                f"{CONFIG}: unknown section [{stage}.{name}]; expected one of {expected}"
            )
    steps = [step for step in STEPS if step.stage == stage and step.name in names]
    return [
        Planned(
            step,
            build(
                step.part.options,
                section(config, stage, step.name or ""),
                f"{CONFIG} [{stage}.{step.name}]",
            ),
        )
        for step in steps
    ]


def carry_out(at: Settings, plan: list[Planned], force: bool, workers: int, as_json: bool) -> None:
    """Carry out a plan under one lock and print each summary as it comes; with `as_json`, all of
    them in the end.
    """
    done = []
    with at.run.lock():
        for step, options in plan:
            for manifest in call(at.run, step, options, force, workers):
                done.append(manifest)
                if not as_json:
                    print_manifest(manifest)
    if as_json:
        print_json({"stages": [manifest.model_dump() for manifest in done]})
    report = at.path / at.run.REPORT / "report.html"
    if not as_json and any(manifest.stage == at.run.REPORT for manifest in done):
        print(f"\nreport: {report.resolve()}")


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
    below = {"ingest": "", "export": f"/{name}.{getattr(options, 'format', '')}"}.get(
        step.stage, f"/{name}"
    )
    folder = f"{STAGES.index(step.stage) + 1}_{FOLDERS[step.stage]}{below}"
    manifest = at.run.find(folder)
    if manifest is None:
        return "half done" if (at.path / folder / PLAN).exists() else "to do"
    changed = [name for name, value in given.items() if manifest.options.get(name, value) != value]
    return f"was made with another {', '.join(changed)}" if changed else "done"
