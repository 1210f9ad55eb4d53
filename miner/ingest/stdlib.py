"""Python's standard library -> rows to stage: the first sentence of a docstring asks for the source
it describes.

Every machine that can run quarry has it, so it is what the demonstration mines.
"""

import ast
import hashlib
import heapq
import io
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from platform import python_version
from typing import NamedTuple, TypeAlias

from miner.ingest.rows import Ingest, Reading, Row
from miner.options import option
from miner.seeds import uniform
from miner.store import Run

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)\s")
SHORTEST_QUERY, SHORTEST_PROSE = 3, 20  # words
Node: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class IngestStdlib(Ingest):
    """Python's own standard library: first docstring sentence -> source without that docstring."""

    sample: int | None = option(
        None, "functions that are read, chosen by a hash of their names [default: all]", ge=1
    )
    prose: bool = option(
        False, "documents are the rest of the docstrings, where that is long enough, not the source"
    )

    def read(self, run: Run) -> Reading:
        """Python's standard library -> rows."""
        return read_stdlib(sample=self.sample, prose=self.prose)


class Function(NamedTuple):
    """A function or class with a docstring: its name within the module, its line, the
    docstring's first sentence, the rest of it, the source without it.
    """

    name: str
    line: int
    sentence: str
    rest: str
    source: str


def read_stdlib(
    root: Path | None = None, sample: int | None = None, prose: bool = False
) -> Reading:
    """Python's standard library -> rows.

    Args:
        root: another folder of Python files.
        sample: how many functions; the same for everyone who has this version of Python.
        prose: whether the rest of a docstring is the document, not the source.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = sorted(
        (file for file in root.rglob("*.py") if LEFT_OUT.isdisjoint(file.relative_to(root).parts)),
        key=lambda file: file.relative_to(root).as_posix(),
    )
    digest = hashlib.blake2b(python_version().encode(), digest_size=8)
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    rows = _function_rows(root, files, prose)
    if sample is not None:
        rows = _sample_functions(list(rows), sample)
    return Reading({"Python's standard library": digest.hexdigest()}, rows, [])


def _sample_functions(rows: list[Row], sample: int) -> Iterator[Row]:
    """Yield the rows of some functions, in their order: of a function all or none."""
    names = {row.values[0] for row in rows if row.table == "documents"}
    chosen = set(heapq.nsmallest(sample, names, key=partial(uniform, 0)))
    for row in rows:
        name = row.values[0]
        if row.table == "rejects":  # of a function: ("queries", reason, "name<tab>sentence")
            name = row.values[2].partition("\t")[0]
        if name in chosen:
            yield row


def _function_rows(root: Path, files: Sequence[Path], prose: bool) -> Iterator[Row]:
    for path in files:
        file = path.relative_to(root).as_posix()
        module = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        try:
            found = list(functions(_decoded(path)))
        except (SyntaxError, ValueError, RecursionError) as error:
            yield Row("rejects", file, 1, ("documents", "not_python", str(error)))
            continue
        for name, line, sentence, rest, source in found:
            if prose and len(rest.split()) < SHORTEST_PROSE:
                continue
            doc_id = f"{module}:{name}"
            yield Row(
                "documents", file, line, (doc_id, module, "listed", rest if prose else source)
            )
            if len(sentence.split()) < SHORTEST_QUERY:
                yield Row(
                    "rejects", file, line, ("queries", "short_query", f"{doc_id}\t{sentence}")
                )
            else:
                yield Row("queries", file, line, (doc_id, "listed", sentence))
                yield Row("positives", file, line, (doc_id, doc_id, 1))


def _decoded(file: Path) -> str:
    content = file.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return io.IncrementalNewlineDecoder(None, translate=True).decode(
        content.decode(encoding), final=True
    )


def functions(source: str) -> Iterator[Function]:
    """Yield every function and class of a module that has a docstring, in order of lines; a name
    that comes again gets its line behind it.

    Raises:
        SyntaxError, ValueError, RecursionError: the source is no Python that this interpreter can
            parse.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stray backslash in someone else's file
        tree = ast.parse(source)
    lines, names = source.split("\n"), set[str]()
    for qualified, node in _definitions(tree, ""):
        docstring = ast.get_docstring(node)
        if docstring:
            name = qualified if qualified not in names else f"{qualified}@{node.lineno}"
            names.add(name)
            said = docstring.strip()
            sentence = first_sentence(said)
            rest = said[_length_of(said, sentence) :].strip()
            yield Function(name, node.lineno, sentence, rest, _without_docstring(lines, node))


def _definitions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Node]]:
    for node in ast.iter_child_nodes(parent):
        inner = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name, node
            inner = f"{prefix}{node.name}."
        if not isinstance(node, ast.expr):
            yield from _definitions(node, inner)


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring, which a blank line also ends, with white space
    folded.
    """
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    return " ".join(SENTENCE_END.split(paragraph, maxsplit=1)[0].split())


def _length_of(text: str, words: str) -> int:
    """Return where the words that a text begins with end in it, white space as it stands there."""
    found = re.match(r"\s+".join(map(re.escape, words.split())), text)
    return found.end() if found else 0


def _without_docstring(lines: Sequence[str], node: Node) -> str:
    """Return a definition's source, dedented, without decorators and docstring. A body that was
    only the docstring leaves the signature.
    """
    docstring = node.body[0]
    first, last = docstring.lineno, docstring.end_lineno or docstring.lineno
    # ast counts columns in bytes of UTF-8
    before = lines[first - 1].encode()[: docstring.col_offset].decode()
    after = lines[last - 1].encode()[docstring.end_col_offset :].decode().lstrip("; \t")
    middle = f"{before}{after}".rstrip()
    kept = [
        *lines[node.lineno - 1 : first - 1],
        *([middle] if middle else []),
        *lines[last : node.end_lineno],
    ]
    indent = lines[node.lineno - 1][: node.col_offset]
    return "\n".join(line.removeprefix(indent) for line in kept).rstrip()
