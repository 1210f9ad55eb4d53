"""Ingest of Python's standard library."""

import pytest
from ingested import documents, rejects, rows, write_text

from miner.engine import How
from miner.errors import UserError
from miner.ingest import stdlib
from miner.ingest.ingest import ingest
from miner.ingest.stdlib import IngestStdlib
from miner.store import Run
from miner.tables import POSITIVES, QUERIES


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run")


MODULE = '''# -*- coding: utf-8 -*-
import os

class Roof(Base):
    """Keep the rain, e.g. all of it, out.

    More.
    """

    @property
    def tiles(self):
        """Count the tiles of é the roof"""; n = "é"
        return n

    def tiles(self): "Count the tiles again. Then stop."

def plain(x):
    return x

async def fetch(
    url,
):
    """Fetch it
    over the wire! Now"""  # comment
    def inner():
        ('Do the '
         'inner work.')
        text = """
not indented"""
    return url

if os:
    def fetch(url): "Fetch again for é: others."; return url

def short():
    """Too short."""
    return 1
'''


def test_functions_of_a_module():
    found = {function.name: function for function in stdlib.functions(MODULE)}
    assert list(found) == [
        "Roof",
        "Roof.tiles",
        "Roof.tiles@15",
        "fetch",
        "fetch.inner",
        "fetch@33",
        "short",
    ]
    assert {name: function.sentence for name, function in found.items()} == {
        "Roof": "Keep the rain, e.g. all of it, out.",
        "Roof.tiles": "Count the tiles of é the roof",
        "Roof.tiles@15": "Count the tiles again.",
        "fetch": "Fetch it over the wire!",
        "fetch.inner": "Do the inner work.",
        "fetch@33": "Fetch again for é: others.",
        "short": "Too short.",
    }
    assert found["Roof.tiles"].source == 'def tiles(self):\n    n = "é"\n    return n'
    assert found["Roof.tiles@15"].source == "def tiles(self):"
    assert found["fetch.inner"].source == 'def inner():\n    text = """\nnot indented"""'
    assert found["fetch@33"].source == "def fetch(url): return url"
    assert found["short"].source == "def short():\n    return 1"
    assert found["fetch"].source.startswith(
        "async def fetch(\n    url,\n):\n    # comment\n    def inner():\n"
    )
    assert found["Roof"].source.startswith(
        "class Roof(Base):\n\n    @property\n    def tiles(self):\n"
    )
    assert (
        "Count the tiles again" in found["Roof"].source
        and "Keep the rain" not in found["Roof"].source
    )
    assert (found["fetch"].line, found["fetch@33"].line) == (20, 33)


def test_stdlib_leaves_out_what_is_no_library(tmp_path, run, monkeypatch):
    root = tmp_path / "lib"
    for name in (
        "pkg/__init__.py",
        "roof.py",
        "test/roof.py",
        "pkg/tests/roof.py",
        "site-packages/roof.py",
        "lib2to3/roof.py",
    ):
        write_text(root / name, MODULE)
    write_text(root / "broken.py", "def f(:\n")
    (root / "latin.py").write_bytes(
        "# coding: latin-1\r\ndef f(é):\r\n    'Accept é and more.'\r\n    return é\r\n".encode(
            "latin-1"
        )
    )
    whole = stdlib.read_stdlib
    monkeypatch.setattr(stdlib, "read_stdlib", lambda **asked: whole(root, **asked))
    manifest, *_ = ingest(run, IngestStdlib(), How())
    docs = {doc_id: (title, text) for doc_id, title, text in documents(run)}
    assert sorted(docs) == sorted(
        ["latin:f"] + [f"{m}:{n}" for m in ("pkg", "roof") for n in stdlib_names()]
    )
    assert docs["latin:f"] == ("latin", "def f(é):\n    return é")
    assert ("latin:f", "Accept é and more.") in rows(run, QUERIES)
    assert "roof:short" not in {query_id for query_id, _ in rows(run, QUERIES)}
    assert all(query_id == doc_id for query_id, doc_id, _ in rows(run, POSITIVES))
    assert manifest.drops == {"not_python": 1, "short_query": 2}
    assert rejects(run)[0] == ("broken.py:1", "documents", "not_python")
    write_text(root / "new.py", "")
    with pytest.raises(UserError, match="Python's standard library is changed"):
        ingest(run, IngestStdlib(), How())


def stdlib_names() -> list[str]:
    return [function.name for function in stdlib.functions(MODULE)]


def test_the_real_standard_library(run):
    manifest, *_ = ingest(run, IngestStdlib(limit=500), How())
    assert (
        manifest.rows["documents"] > 6000
        and manifest.rows["queries"] == manifest.rows["positives"] == 500
    )
    docs = {doc_id: text for doc_id, _, text in documents(run)}
    assert (
        docs["json:loads"].startswith("def loads(s, *,") and "Deserialize" not in docs["json:loads"]
    )
    assert not [
        doc_id for doc_id in docs if doc_id.startswith(("test.", "idlelib.", "site-packages"))
    ]


def test_a_sample_holds_whole_functions_and_grows_with_its_size():
    everything = list(stdlib.read_stdlib().rows)
    few, more = (list(stdlib.read_stdlib(sample=count).rows) for count in (40, 80))

    def names(rows):
        return {row.values[0] for row in rows if row.table == "documents"}

    assert len(names(few)) == 40 and len(names(more)) == 80
    assert names(few) < names(more) < names(everything)

    def of(row):
        return row.values[2].partition("\t")[0] if row.table == "rejects" else row.values[0]

    assert few == [row for row in everything if of(row) in names(few)]


def test_prose_is_the_rest_of_a_docstring_word_for_word():
    """A sentence with line ends in it is found as it stands; short rests are left out."""
    rows = list(stdlib.read_stdlib(prose=True).rows)
    sources = {row.values[0]: row for row in stdlib.read_stdlib().rows if row.table == "queries"}
    texts = {row.values[0]: row.values[-1] for row in rows if row.table == "documents"}
    asked = {row.values[0]: row.values[-1] for row in rows if row.table == "queries"}
    assert len(asked) > 1000 and asked.keys() <= texts.keys() & sources.keys()
    assert all(len(text.split()) >= stdlib.SHORTEST_PROSE for text in texts.values())
    again = sum(" ".join(texts[name].split()).startswith(asked[name]) for name in asked)
    assert again <= 2  # a docstring or two begins with the same sentence twice
