"""Ingest of TREC files, and run files that become sources."""

import gzip
from pathlib import Path

import pytest
from ingested import documents, refuse, rejects, rows, write_text

from miner.engine import How
from miner.errors import UserError
from miner.ingest.ingest import ingest
from miner.ingest.trec import IngestTrec
from miner.store import Run
from miner.tables import CANDIDATES, POSITIVES, QUERIES


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run")


SGML = """<DOC>
<DOCNO> d10 </DOCNO>
<TITLE>Roofs</TITLE>
<TEXT>
slate
</TEXT>
</DOC>
<DOC>
<DOCNO>d9</DOCNO>
<TEXT>tile &amp; <P>brick</P></TEXT>
<TEXT>more</TEXT>
</DOC>
<DOC>
<DOCNO>d7</DOCNO>
</DOC>
<DOC>
<DOCNO>torn</DOCNO>
<TEXT>never closed
"""
TOPICS = """<top>
<num> Number: 301
<title> what is a
roof made of

<desc> Description:
Anything.
</top>
<top><num>302</num><title>Topic: green roof</title></top>
"""


def trec(tmp_path: Path, **options) -> IngestTrec:
    corpus = write_text(tmp_path / "docs.xml", SGML)
    topics = write_text(tmp_path / "topics.txt", TOPICS)
    qrels = write_text(
        tmp_path / "qrels.txt", "301 0 d9 1\n301 0  d10 2\n302 0 d9 0\n302 0 d10 1\n"
    )
    return IngestTrec(**{"corpus": corpus, "topics": topics, "qrels": qrels, **options})


def test_trec_markup(tmp_path, run):
    ingest(run, trec(tmp_path), How())
    assert documents(run) == [("d10", "Roofs", "slate"), ("d9", "", "tile & brick more")]
    assert rows(run, QUERIES) == [("301", "what is a roof made of"), ("302", "green roof")]
    assert rows(run, POSITIVES) == [("301", "d10", 2), ("301", "d9", 1), ("302", "d10", 1)]
    assert rejects(run) == [
        ("docs.xml:13", "documents", "missing_text"),
        ("docs.xml:16", "documents", "bad_markup"),
        ("qrels.txt:3", "positives", "low_relevance"),
    ]


@pytest.mark.parametrize(
    "corpus",
    [
        (
            '{"docid": "d9", "contents": "tile"}\n{"docid": "d10", "title": "Roofs", "contents":'
            ' "slate"}\n'
        ),
        '{"id": "d9", "body": "tile"}\n{"id": "d10", "title": "Roofs", "body": "slate"}\n',
        "d9\t\ttile\nd10\tRoofs\tslate\n",
        "id\ttext\ttitle\nd9\ttile\t\nd10\tslate\tRoofs\n",
    ],
)
def test_trec_corpus_as_jsonl_or_tsv(tmp_path, run, corpus):
    ingest(run, trec(tmp_path, corpus=write_text(tmp_path / "corpus", corpus)), How())
    assert documents(run) == [("d10", "Roofs", "slate"), ("d9", "", "tile")]


def test_tsv_knows_no_quotes(tmp_path, run):
    corpus = write_text(tmp_path / "c.tsv", 'd9\t"Tile" is\nd10\t"slate\nbad\n')
    topics = write_text(tmp_path / "t.tsv", "301\twhat is a roof\n302\tgreen roof\n")
    ingest(run, trec(tmp_path, corpus=corpus, topics=topics), How())
    assert documents(run) == [("d10", "", '"slate'), ("d9", "", '"Tile" is')]
    assert rejects(run)[0] == ("c.tsv:3", "documents", "bad_columns")


def candidates(run: Run, name: str) -> list[tuple]:
    tables = [run.read(f"3_candidates/{name}", key) for key in run.query_shards()]
    assert all(table.schema.equals(CANDIDATES.schema) for table in tables)
    return [
        (row["query_id"], row["doc_id"], row["rank"], row["score"])
        for table in tables
        for row in table.to_pylist()
    ]


RUN_FILE = (
    "302 Q0 d9 1 1.5 tag\n301 Q0 d10 1 0.5 tag\n301 Q0 d9 0 2.5 tag\n301 Q0 d9 2 0.25 tag\n9 Q0 d9"
    " 0 1 t\n301 Q0 x 5 1 t\n301 Q0 d9\n"
)


def test_run_files_become_sources_as_they_are(tmp_path, run):
    plain = write_text(tmp_path / "BM25.dl19.trec", RUN_FILE)
    packed = tmp_path / "k=1.run.gz"
    packed.write_bytes(
        gzip.compress(b"301 Q0 d9 1 nan t\n301 Q0 d9 3 2.0 t\n301\tQ0\td10\t2\t2.0\tt\n")
    )
    options = trec(tmp_path, run_file=(str(plain), f"dense={packed}"), shard_queries=1)
    ingest(run, options, How())
    assert run.names("3_candidates") == ["BM25.dl19", "dense"]
    assert candidates(run, "BM25.dl19") == [
        ("301", "d9", 1, 2.5),
        ("301", "d10", 2, 0.5),
        ("302", "d9", 2, 1.5),
    ]
    assert candidates(run, "dense") == [("301", "d10", 2, 2.0), ("301", "d9", 3, 2.0)]
    manifest = run.find("3_candidates/BM25.dl19")
    assert manifest.drops == {
        "bad_columns": 1,
        "duplicate_candidate": 1,
        "unknown_document": 1,
        "unknown_query": 1,
    }
    assert manifest.rows == {"candidates": 3}
    assert manifest.options == {"file": str(plain), "format": "trec"}
    assert run.find("3_candidates/dense").drops == {"bad_number": 1}
    assert run.read("3_candidates/dense", "00000").column("source").to_pylist() == [
        "dense",
        "dense",
    ]
    assert not list(run.path.rglob("_staging"))


def test_a_run_file_can_be_added_later(tmp_path, run):
    ingest(run, trec(tmp_path), How())
    file = write_text(tmp_path / "first.txt", RUN_FILE)
    assert ingest(run, trec(tmp_path, run_file=(str(file),)), How())[0].skipped
    assert run.names("3_candidates") == ["first"]
    write_text(file, "301 Q0 d9 1 1 t\n")
    with pytest.raises(UserError, match=r"first.txt is changed\); pass --force"):
        ingest(run, trec(tmp_path, run_file=(str(file),)), How())


def test_run_files_that_cannot_be_sources(tmp_path, run):
    file = write_text(tmp_path / "first.txt", "1 Q0 a 1 1 t\n")
    with pytest.raises(
        UserError,
        match=r"first.txt: no line names a query and a document of this run \(unknown_query 1\)",
    ):
        ingest(run, trec(tmp_path, run_file=(str(file),)), How())
    assert not (run.path / "3_candidates" / "first").exists()
    packed = tmp_path / "first.txt.gz"
    packed.write_bytes(gzip.compress(RUN_FILE.encode())[:-9])
    with pytest.raises(UserError, match="truncated or corrupt packed"):
        ingest(run, trec(tmp_path, run_file=(str(packed),)), How())
    write_text(file, f"{RUN_FILE}301 Q0 {'x' * 1000} 1 1 t\n")
    ingest(run, trec(tmp_path, run_file=(str(file),)), How())  # the failures do not ask for --force
    assert run.find("3_candidates/first").drops["bad_id"] == 1
    fresh = Run(tmp_path / "fresh")
    refuse(fresh, trec(tmp_path, run_file=("no.trec",)), "no.trec: no such file")
    refuse(
        fresh,
        trec(tmp_path, run_file=(str(file), f"first={file}")),
        'two run files with the name "first"',
    )
    odd = write_text(tmp_path / "a run.txt", RUN_FILE)
    refuse(fresh, trec(tmp_path, run_file=(str(odd),)), '"a run" cannot name a source', "NAME=")


def test_msmarco_with_its_runs(run, shared):
    folder = shared / "msmarco-dl"
    files = {
        "corpus": folder / "corpus.jsonl.gz",
        "topics": folder / "queries.jsonl",
        "qrels": folder / "qrels" / "dl19.tsv",
    }
    manifest, *_ = ingest(
        run,
        IngestTrec(
            **files, min_relevance=2, run_file=(str(folder / "runs" / "BM25.dl19.trec.gz"),)
        ),
        How(),
    )
    assert manifest.facts["queries"] == 43
    assert manifest.drops == {"low_relevance": 2553, "query_without_positive": 54}
    assert run.find("3_candidates/BM25.dl19").rows == {"candidates": 4300}
