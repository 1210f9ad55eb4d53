"""How large the house is, and how it hangs together: a table of figures against their goals, and
what stands beyond them.

Run: python bench/house.py [--json FILE] [--root DIR]. Reads `miner`, `scoring`, `cli` and `quarry`;
nothing is imported, so any checkout can be measured.
"""

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOMS = ("miner", "scoring", "cli", "quarry")
GOALS = {
    "lines of code": None,
    "lines of code, laid out at 140 columns": 6800,
    "top-level functions and classes": 650,
    "longest file": 350,
    "files in circles": 0,
    "floors of imports": 7,
    "longest function": 40,
    "names defined twice": None,
    "longest line": 100,
}
PRAGMA = re.compile(r"\s+# (noqa|type:|pragma:).*")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path) -> dict[str, Path]:
    """Return module name -> file of all that is measured."""
    files = sorted(file for room in ROOMS for file in (root / room).rglob("*.py"))
    return {
        ".".join(file.relative_to(root).with_suffix("").parts): file
        for file in files
        if file.stat().st_size
    }


def laid_out(text: str, columns: int) -> str:
    """Return the text as ruff lays it out at so many columns: what was written at one width can
    only be compared with what was written at another once both are laid out alike.
    """
    command = ["format", "--isolated", "--config", f"line-length = {columns}"]
    ignored = ["--config", "format.skip-magic-trailing-comma = true", "--stdin-filename", "a.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *ignored, "-"],
        input=text,
        text=True,
        capture_output=True,
        check=True,
    )
    return ran.stdout


def code_lines(text: str) -> int:
    """Count lines that hold code: no import, docstring, comment or blank."""
    tree = ast.parse(text)
    lines: set[int] = set()
    skip = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) or _is_docstring(node):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def imports(tree: ast.Module, known: dict[str, Path], everywhere: bool = False) -> set[str]:
    """Return the measured modules that a module imports: when it is imported itself, or with
    `everywhere` also in its functions.
    """
    found = set()
    for node in ast.walk(tree) if everywhere else _at_import(tree.body):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name for name in names if name in known}
    return found


def _at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements that run on import: those in functions, and under TYPE_CHECKING, do not."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _at_import(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for part in ("body", "orelse", "finalbody"):
                yield from _at_import(getattr(node, part, []))


def floors(graph: dict[str, set[str]]) -> tuple[int, list[list[str]]]:
    """Return the length of the longest chain of imports, circles counted as one floor, and the
    circles.
    """
    order, low, stack, circles, home = {}, {}, [], [], {}

    def visit(node: str) -> None:  # Tarjan
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
            if other not in home:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            home.update(dict.fromkeys(members, node))
            if len(members) > 1:
                circles.append(sorted(members))

    for node in graph:
        if node not in order:
            visit(node)

    @cache
    def height(root: str) -> int:
        below = {home[other] for node in graph if home[node] == root for other in graph[node]} - {
            root
        }
        return 1 + max(map(height, below), default=0)

    return max((height(home[node]) for node in graph), default=0), circles


def measure(root: Path) -> dict[str, Any]:
    """Return the figures, and under "beyond" what is longer or more than its goal."""
    known = modules(root)
    texts = {name: file.read_text("utf-8") for name, file in known.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    defined: dict[str, list[str]] = defaultdict(list)
    functions: dict[str, int] = {}
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, (*Function.__args__, ast.ClassDef)):
                defined[node.name].append(name)
        for node in ast.walk(tree):
            if isinstance(node, Function):
                functions[f"{name}.{node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    now = {name: imports(tree, known) for name, tree in trees.items()}
    later = {name: imports(tree, known, True) for name, tree in trees.items()}
    height, circles = floors(now)
    lengths = {name: text.count("\n") for name, text in texts.items()}
    twice = {name: places for name, places in sorted(defined.items()) if len(places) > 1}
    widest = {
        name: max(len(PRAGMA.sub("", line)) for line in text.splitlines())
        for name, text in texts.items()
    }
    return {
        "files": len(known),
        "lines of code": sum(map(code_lines, texts.values())),
        "lines of code, laid out at 140 columns": sum(
            code_lines(laid_out(text, 140)) for text in texts.values()
        ),
        "top-level functions and classes": sum(map(len, defined.values())),
        "longest file": max(lengths.values()),
        "files in circles": sum(map(len, circles)),
        "files in circles, imports inside functions counted": sum(map(len, floors(later)[1])),
        "floors of imports": height,
        "longest function": max(functions.values()),
        "median function": sorted(functions.values())[len(functions) // 2],
        "names defined twice": len(twice),
        "public names defined twice": sum(not name.startswith("_") for name in twice),
        "longest line": max(widest.values()),
        "beyond": {
            "files over 350 lines": {
                name: count for name, count in lengths.items() if count > GOALS["longest file"]
            },
            "functions over 40 lines": {
                name: count
                for name, count in functions.items()
                if count > GOALS["longest function"]
            },
            "lines over 100 columns": {
                name: width for name, width in widest.items() if width > GOALS["longest line"]
            },
            "circles": circles,
            "circles, imports inside functions counted": floors(later)[1],
            "defined twice": twice,
        },
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.root)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found.items():
        if name != "beyond":
            goal = GOALS.get(name)
            print(f"{name:52} {value:>7,}" + ("" if goal is None else f"   goal {goal:,}"))
    for name, what in found["beyond"].items():
        print(f"\n{name}: {what}")


if __name__ == "__main__":
    main()
