"""What holds for every part of the house."""

import ast
import doctest
import importlib.util
import inspect
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow as pa
import pytest

from cli.steps import steps
from miner.engine import How
from miner.errors import UserError
from miner.sources import SOURCES
from miner.store import Run
from miner.tables import CANDIDATES, FLOW, JUDGMENTS, conform, full_text
from scoring.judges import JUDGES
from scoring.reasons import REASONS

ROOT = Path(__file__).parents[1]
ROOMS = ("miner", "scoring", "cli", "quarry")
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
HEAVY = {"torch", "faiss", "spacy", "vllm", "sentence_transformers", "transformers", "datasets"}


def imported(tree, anywhere):
    nodes = ast.walk(tree) if anywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def room_of(file):
    return file.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_rooms_look_only_upstream_and_models_are_imported_where_they_are_built(file):
    tree = ast.parse(file.read_text())
    above = set(ROOMS[ROOMS.index(room_of(file)) + 1 :])
    assert not above & set(imported(tree, anywhere=True))
    if file.name != "cement_torch.py":  # modules of torch, which nothing else imports
        assert not HEAVY & set(imported(tree, anywhere=False))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_functions_take_few_parameters(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            count = len(node.args.args) + len(node.args.kwonlyargs)
            assert count <= 8 or room_of(file) == "cli", f"{node.name} has {count} parameters"


@pytest.mark.parametrize("step", steps(), ids=lambda step: step.title)
def test_every_step_is_a_plain_function_of_run_options_and_how(step):
    function = step.part.function
    assert list(inspect.signature(function).parameters)[:3] == ["run", "options", "how"]
    assert "->" in inspect.getdoc(function) or "->" in inspect.getdoc(
        sys.modules[function.__module__]
    )
    assert step.part.options.__doc__
    for name, field in step.part.options.model_fields.items():
        assert field.description, f"{step.title}: --{name} is not explained"
    with pytest.raises(Exception, match="frozen"):
        kwargs = {
            name: "a"
            for name, field in step.part.options.model_fields.items()
            if field.is_required()
        }
        many = {"sources": ("a",)} if "sources" in kwargs else {}
        step.part.options(**kwargs | many).shard_queries = 3


@pytest.mark.parametrize("part", [*SOURCES.items(), *JUDGES.items()], ids=lambda part: part[0])
def test_a_source_or_judge_without_tables_says_what_to_do_first(tmp_path, part):
    run, kind = Run(tmp_path), part[1].options
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    given = {name: ("a",) if name == "sources" else "a" for name in (*required, "sources")}
    given = {name: value for name, value in given.items() if name in kind.model_fields}
    with pytest.raises(UserError, match="run `quarry ingest` first"):
        part[1].function(run, kind(**given), How())


def test_tables_stand_in_flow_order_with_keys_that_they_have():
    assert [table.name for table in FLOW] == [
        "documents",
        "queries",
        "positives",
        "labels",
        "images",
        "negatives",
        "candidates",
        "made_documents",
        "judgments",
        "sets",
        "rejected",
        "promoted",
        "metrics",
    ]
    assert all(set(table.key) <= set(table.schema.names) for table in FLOW)


def test_conform_names_the_missing_column_and_the_found_ones():
    with pytest.raises(
        UserError,
        match=(
            r"table judgments: missing judge, score, verdict, reason \(found query_id, doc_id,"
            r" extra\)"
        ),
    ):
        conform(pa.table({"query_id": ["q"], "doc_id": ["d"], "extra": [1]}), JUDGMENTS)
    table = pa.table(
        {
            "parent_id": [None],
            "score": [1.5],
            "rank": [1],
            "source": ["s"],
            "doc_id": ["d"],
            "query_id": ["q"],
            "x": [0],
        }
    )
    assert conform(table, CANDIDATES).schema == CANDIDATES.schema
    with pytest.raises(UserError, match="table candidates"):
        conform(table.set_column(2, "rank", pa.array(["first"])), CANDIDATES)


def test_title_and_text_are_joined_as_beir_joins_them():
    assert [
        full_text("A", "b"),
        full_text("", "b"),
        full_text(None, "b"),
        full_text("A", None),
    ] == ["A b", "b", "b", "A"]


def test_help_is_quick_and_imports_no_model():
    code = (
        "import sys; sys.argv = ['quarry', '--help']\nfrom cli.main import main\ntry:"
        " main()\nexcept SystemExit: print(*sys.modules)"
    )
    loaded = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        .stdout.splitlines()[-1]
        .split()
    )
    assert not (HEAVY | {"pyarrow", "numpy", "numba"}) & set(loaded)
    # Processor time, and held against what typer and pydantic alone take to import: other tests run
    # beside this one. On a free machine that is 0.12 s, so that 2.5 times it is 0.3 s.
    floor, help_ = (
        min(_processor_seconds(command) for _ in range(5))
        for command in (["-c", "import typer, pydantic.fields"], ["-m", "cli.main", "--help"])
    )
    assert help_ < 2.5 * floor


def _processor_seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def house():
    """What bench/house.py measures."""
    spec = importlib.util.spec_from_file_location("house", ROOT / "bench/house.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.measure(ROOT)


def test_the_house_stays_small(house):
    beyond = house["beyond"]
    assert beyond["circles"] == beyond["circles, imports inside functions counted"] == []
    assert beyond["defined twice"] == {}, "one name, two things: rename the younger"
    assert beyond["files over 350 lines"] == beyond["functions over 40 lines"] == {}
    assert beyond["lines over 100 columns"] == {}
    assert house["floors of imports"] <= 7


def compiled(tree):
    """The functions of a module that numba compiles."""
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("njit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }


def test_kernels_that_call_each_other_stand_in_one_file():
    """Numba's cache does not see a change in another file: stale kernels would run, silently."""
    trees = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): ast.parse(file.read_text())
        for file in FILES
    }
    kernels = {module: compiled(tree) for module, tree in trees.items()}
    assert sum(map(len, kernels.values())) > 15
    for module, tree in trees.items():
        foreign = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if alias.name in kernels.get(node.module, ())
        }
        for name, node in kernels[module].items():
            used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            assert not used & foreign, f"{module}.{name} calls {used & foreign} of another file"


EXAMPLES = [
    "miner.search.bm25_variants",
    "miner.search.gloss",
    "miner.search.tokens",
    "miner.search.topk",
    "miner.llm.pace",
    "miner.llm.server",
    "scoring.judge.calibration",
    "miner.llm.labels",
    "miner.llm.verify",
    "miner.seeds",
    "miner.views",
    "miner.words.edits",
    "miner.words.in_document",
    "miner.words.kinds",
    "miner.words.polarity",
    "miner.words.targets",
    "quarry.run",
    "scoring.cells",
    "scoring.cement",
    "scoring.coverage",
    "scoring.diagnostics",
    "scoring.eci",
    "scoring.judge.shingles",
    "scoring.metrics",
    "scoring.probe",
    "scoring.samplers",
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def test_every_file_with_an_example_is_tested_and_every_formula_of_eci_has_one():
    having = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in FILES
        if ">>> " in file.read_text()
    }
    assert having == set(EXAMPLES)
    for name in ("scoring.eci", "scoring.samplers"):
        for node in ast.parse((ROOT / (name.replace(".", "/") + ".py")).read_text()).body:
            formula = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if formula and node.name != "top":  # the order that the pool has
                assert ">>> " in ast.get_docstring(node), node.name


def test_all_packages_and_their_data_go_into_the_wheel():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(file.relative_to(ROOT).parent.parts) for file in FILES}
    assert found | {"quarry_data"} == set(told["packages"])
    others = {
        file
        for room in ROOMS
        for file in (ROOT / room).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc", ".nbi", ".nbc")
    }
    packed = {
        file
        for package, patterns in told["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert others and others <= packed


def test_every_reason_is_told_once_and_every_rule_has_one(tmp_path):
    """What a set may say of a candidate is what report and docs explain."""
    texts = {file: file.read_text() for file in (ROOT / "scoring").rglob("*.py")}
    named = set(re.findall(r'Rule\(\s*f?"(\w+)', "".join(texts.values())))
    assert named and {name.split(":")[0] for name in named} <= set(REASONS)
    assert {"near_duplicate", "co_cited", "quantile", "eci", "quota"} <= set(REASONS)
    for reason in REASONS.values():
        assert [file.name for file, text in texts.items() if f'"{reason}"' in text] == [
            "reasons.py"
        ]
