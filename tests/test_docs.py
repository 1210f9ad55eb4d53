"""README and help are held against the real commands."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.flags import flag_name, read_config
from cli.flow import DEMO, make_plan
from cli.main import COMMON, ORDER, app
from cli.steps import steps
from miner.options import extra_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|sh|console)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("quarry ")
]
BY_TITLE = {step.title: step for step in steps()}
OTHER = {
    "demo": {"--full", "--workers", "--json"},
    "run": {"--from", "--to", "--dry-run", "--force", "--workers", "--json"},
    "status": {"--json"},
    "show": {"--set", "--json"},
    "doctor": {"--json"},
}


def flags_of(words):
    """The flags that a command takes, by its words."""
    step = BY_TITLE.get(" ".join(words[:2])) or BY_TITLE.get(words[0])
    if step is None:
        return OTHER[words[0]]
    fields = step.part.options.model_fields
    named = {flag_name(name, field) for name, field in fields.items()}
    short = {
        field.json_schema_extra["short"] for field in fields.values() if "short" in extra_of(field)
    }
    return (
        named
        | short
        | {flag for flag, *_ in COMMON.values()}
        | ({"--dry-run"} if step.stage == "select" else set())
    )


def test_the_readme_has_commands_of_every_stage():
    stages = {
        shlex.split(command)[1]
        for command in COMMANDS
        if not shlex.split(command)[1].startswith("-")
    }
    assert stages >= {
        "ingest",
        "index",
        "mine",
        "judge",
        "select",
        "score",
        "report",
        "export",
        "run",
        "status",
        "show",
        "doctor",
        "demo",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_exist_with_their_flags(command):
    words = shlex.split(command, comments=True)[1:]
    while words[0] in ("-r", "--run", "--config"):
        words = words[2:]
    assert words[0] in ORDER
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= flags_of(words)


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert (
        {"demo", "test"}
        <= {
            one or two
            for one, two in re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", README, re.MULTILINE)
        }
        <= targets
    )


def test_files_that_the_readme_links_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_toml_blocks_of_the_readme_and_the_demo_are_plans(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in [*blocks, DEMO.read_text()]:
        (tmp_path / "quarry.toml").write_text(block)
        assert make_plan(read_config(tmp_path / "quarry.toml"), None, None)


def test_the_demo_has_the_sets_that_it_promises():
    names = [planned.options.name for planned in make_plan(read_config(DEMO), "select", "select")]
    assert names[:4] == ["random", "bm25", "dense", "bm25+dense"]


@pytest.mark.parametrize("step", steps(), ids=lambda step: step.title)
def test_help_names_every_option_with_its_default(step):
    # lines may break anywhere
    said = "".join(CliRunner().invoke(app, [*step.title.split(), "--help"]).output.split())
    for name, field in step.part.options.model_fields.items():
        assert flag_name(name, field) in said
        if field.default not in (None, False, ()) and not field.is_required():
            # a switch shows which of its two names holds
            default = name if field.default is True else field.default
            assert "".join(f"{field.description}[default:{default}]".split()) in said
