"""README, docs and help are held against the real commands, formulas and files."""

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from cli.flags import flag_name, read_config
from cli.flow import DEMO, make_plan
from cli.main import COMMON, ORDER, app
from cli.steps import steps
from miner.options import extra_of
from miner.sources import SOURCES
from miner.stages import HINTS
from scoring.export_options import Export
from scoring.judges import JUDGES
from scoring.reasons import COPIES, REASONS
from scoring.samplers import SAMPLERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {
    f"docs/{file.name}": file.read_text() for file in sorted((ROOT / "docs").glob("*.md"))
}


def blocks(text, *languages):
    """The fenced blocks of a page."""
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", text, re.DOTALL)


def commands(text):
    """The commands of a page, one a line."""
    return [
        line
        for block in blocks(text, "bash", "sh", "console")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("quarry ")
    ]


COMMANDS = [(page, command) for page, text in PAGES.items() for command in commands(text)]
BY_TITLE = {step.title: step for step in steps()}
OTHER = {
    "demo": {"--full", "--llm", "--workers", "--json"},
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
        | ({"--dry-run"} if step.part.dry else set())
    )


def test_the_readme_has_commands_of_every_stage():
    stages = {
        shlex.split(command)[1]
        for command in commands(README)
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


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_of_readme_and_docs_exist_with_their_flags(page, command):
    words = shlex.split(command, comments=True)[1:]
    while words[0] in ("-r", "--run", "--config"):
        words = words[2:]
    assert words[0] in ORDER
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= flags_of(words)


def test_flags_that_warnings_name_exist():
    known = {flag for step in steps() for flag in flags_of(step.title.split())}
    named = {flag for hint in HINTS.values() for flag in re.findall(r"--[a-z-]+", hint)}
    assert len(named) > 3 and named <= known
    assert {*HINTS} <= {step.title for step in steps()}


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


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        file, _, anchor = target.partition("#")
        if not target.startswith("http"):
            found = ((ROOT / page).parent / file).resolve()
            assert found.exists(), target
            assert not anchor or f"\n## {anchor}\n" in found.read_text().lower(), target


def test_the_readme_leads_to_every_page_and_fits_its_main_flow_on_a_screen():
    linked = set(re.findall(r"\]\((docs/[a-z-]+\.md)\)", README))
    assert linked == set(PAGES) - {"README.md"}
    flow = next(block for block in blocks(README, "bash") if "ingest beir" in block)
    assert flow.count("\n") <= 11 and README.index("## More") < 6500


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "toml")])
def test_toml_of_readme_and_docs_is_a_plan(page, tmp_path):
    for block in blocks(PAGES[page], "toml"):
        (tmp_path / "quarry.toml").write_text(block)
        assert make_plan(read_config(tmp_path / "quarry.toml"), None, None)


def test_the_demo_is_a_plan():
    assert make_plan(read_config(DEMO), None, None)


def rows_of(page, heading):
    """First and last cell of each row of the table below a heading."""
    table = PAGES[page].partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| `([^`]+)` \|(?:.*\|)? (.*) \|$", table, re.MULTILINE)
    return dict(cells)


def test_tables_of_the_docs_are_those_of_the_code():
    assert rows_of("docs/recipes.md", "Reasons") == REASONS
    assert rows_of("docs/judges.md", "Duplicates") == COPIES
    assert list(rows_of("docs/recipes.md", "Samplers")) == list(SAMPLERS)
    formats = re.findall(r"^\| `([a-z-]+)` \|", PAGES["docs/exports.md"], re.MULTILINE)
    assert tuple(formats) == get_args(Export.model_fields["format"].annotation)
    for page, catalogue in (("docs/sources.md", SOURCES), ("docs/judges.md", JUDGES)):
        told = set(re.findall(r"`quarry (?:mine|judge) ([a-z0-9-]+)`", PAGES[page]))
        assert told == set(catalogue)


def test_files_that_the_docs_name_exist():
    """`recipe.py` counts as named where the page has said in which folder."""
    for page, text in PAGES.items():
        for name in re.findall(r"`([a-z_/0-9]+\.py)`", text):
            assert list(ROOT.glob(name)) or list(ROOT.glob(f"*/**/{name}")), f"{page}: {name}"


def test_every_room_is_on_the_way_of_a_row():
    text = PAGES["docs/architecture.md"]
    for room in {file.parent for file in ROOT.glob("miner/*/*.py")}:
        assert f"miner/{room.name}" in text


def test_the_python_of_the_docs_runs(tmp_path, monkeypatch):
    """All but the parts of another package, which tests/test_outside.py runs."""
    folder = tmp_path / "my-data"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "".join(f'{{"_id": "d{n}", "text": "stone {n} of granite"}}\n' for n in range(30))
    )
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "which stone is granite"}\n')
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td3\t1\n")
    monkeypatch.chdir(tmp_path)
    known = {}
    for block in blocks(PAGES["docs/python-api.md"], "python")[:3]:
        exec(block, known)
    assert known["made"].rows["sets"] == len(known["frame"]) == 10
    assert known["rejected"]["doc_id"].to_pylist() == ["d3"] and len(known["files"]) == 1


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
            if isinstance(default, tuple):
                default = ", ".join(map(str, default))
            assert "".join(f"{field.description}[default:{default}]".split()) in said
