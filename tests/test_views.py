"""Indexes of another text of each document, and judges that compare by it."""

import json

import numpy as np
import pytest
from toy import HOW, toy_run

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestPairs
from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
from miner.search.dense_index import IndexDense, index_dense
from miner.search.tokens import IndexBm25
from miner.search.vectors import Vectors, find_index
from miner.store import Run
from miner.views import masked, write_view
from scoring.judge.duplicates import JudgeDuplicates, judge_duplicates
from scoring.judge.view import JudgeView, judge_view
from scoring.recipe import Select
from scoring.select import select

DESCRIBED = {"d01": "birds that swim", "d05": "birds that fly", "d09": "birds", "nobody": "lost"}


def described(tmp_path, rows=DESCRIBED):
    file = tmp_path / "descriptions.jsonl"
    lines = [json.dumps({"doc_id": doc_id, "text": text}) for doc_id, text in rows.items()]
    file.write_text("\n".join(lines))
    return str(file)


def found(run, source):
    rows = [row for key in run.query_shards() for row in run.read(source, key).to_pylist()]
    return {(row["query_id"], row["doc_id"]) for row in rows}


@pytest.mark.parametrize("engine", ["quarry", "rank-bm25"])
def test_bm25_finds_documents_by_their_description(tmp_path, engine):
    run = toy_run(tmp_path / "run", queries={"q1": "birds that swim"}, positives={"q1": ["d12"]})
    options = IndexBm25(name="about", view=described(tmp_path))
    made = index_bm25(run, options, HOW)
    assert made.rows["view"] == 4 and "view" in made.inputs
    mine_bm25(run, MineBm25(name="about", k=3, variant="plus", engine=engine), HOW)
    ranked = run.read("3_candidates/about", "00000").to_pylist()
    assert ranked[0]["doc_id"] == "d01"
    assert {row["doc_id"] for row in ranked if row["score"] > 0} >= {"d01", "d05", "d09"}


def test_shards_and_workers_change_nothing(tmp_path):
    view, bytes_of = described(tmp_path), []
    for size, workers in ((2, 1), (2, 2)):
        run = toy_run(tmp_path / f"run{size}{workers}", shard_documents=size)
        index_bm25(run, IndexBm25(name="about", view=view), How(workers=workers))
        folder = run.path / "2_index/about"
        bytes_of.append({file.name: file.read_bytes() for file in folder.rglob("*.npy")})
    assert bytes_of[0] == bytes_of[1]


def test_a_view_is_read_anew_when_its_file_changes(tmp_path):
    run = toy_run(tmp_path / "run")
    options = IndexBm25(name="about", view=described(tmp_path))
    index_bm25(run, options, HOW)
    assert index_bm25(run, options, HOW).skipped
    described(tmp_path, {"d02": "another"})
    with pytest.raises(UserError, match="other inputs"):
        index_bm25(run, options, HOW)
    assert index_bm25(run, options, How(force=True)).rows["view"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"doc_id": "d01", "about": "x"}', "missing"),
        ('{"doc_id": "d01", "text": null}', "no row has an id and a text"),
        ("", "no row has an id and a text"),
    ],
)
def test_a_file_that_says_nothing_is_refused_and_leaves_nothing(tmp_path, text, said):
    run, file = toy_run(tmp_path / "run"), tmp_path / "view.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        index_bm25(run, IndexBm25(name="about", view=str(file)), HOW)
    assert not (run.path / "2_index/about").exists()
    index_bm25(run, IndexBm25(name="about", view=described(tmp_path)), HOW)


def test_the_last_of_two_texts_wins_whatever_the_order_of_the_file(tmp_path):
    file = tmp_path / "view.csv"
    file.write_text("doc_id,text\nd05,first\nd01,birds\nd05,second\n")
    write_view(str(file), tmp_path)
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "_view/texts.parquet").to_pylist()
    assert [row["doc_id"] for row in rows] == ["d01", "d05", "d05"]


CODE = {
    "area": "def area(r):\n    # of a circle\n    return math.pi * r ** 2",
    "size": "def size(x):\n    return util.tau * x ** 2",
    "swap": "class Queue:\n    while items and not done:\n        yield from [pop(), None]",
}


def test_names_are_masked_by_their_kind():
    assert masked(CODE["area"], "python").split() == masked(CODE["size"], "python").split()
    assert masked(CODE["area"], "python") != masked(CODE["swap"], "python")
    assert "self" in masked("self.x = 1", "python") and "x" not in masked("self.x = 1", "python")
    with pytest.raises(UserError, match="no such language"):
        masked("x", "klingon")


def code_run(tmp_path):
    file, corpus = tmp_path / "pairs.jsonl", tmp_path / "corpus.jsonl"
    file.write_text(json.dumps({"query": "area of a circle", "positive": CODE["area"]}) + "\n")
    rows = [json.dumps({"id": name, "text": text}) for name, text in CODE.items()]
    corpus.write_text("\n".join(rows))
    run = Run(tmp_path / "run")
    ingest(run, IngestPairs(file=str(file), corpus=str(corpus)), HOW)
    return run


@pytest.mark.parametrize(("code", "dropped"), [(None, set()), ("python", {"size"})])
def test_renamed_copies_of_code_are_duplicates(tmp_path, code, dropped):
    run = code_run(tmp_path)
    judge_duplicates(run, JudgeDuplicates(code=code), HOW)
    rows = run.read("4_judgments/duplicates", "00000").to_pylist()
    gone = {row["text"]: row["doc_id"] for row in rows_of(run)}
    found = {row["doc_id"] for row in rows if row["reason"] in ("same_text", "near_duplicate")}
    assert found == {gone[CODE[name]] for name in dropped}


def rows_of(run):
    return Corpus(run).documents(np.arange(3)).to_pylist()


def test_a_dense_index_of_a_view_is_not_taken_for_the_documents_own(tmp_path, monkeypatch):
    run = toy_run(tmp_path / "run", similarity=None)
    options = IndexDense(name="about", view=described(tmp_path), max_length=16)
    index_dense(run, options, HOW)
    assert find_index(run, options) is None
    index_dense(run, options.model_copy(update={"name": "own", "view": None}), HOW)
    assert find_index(run, options) == "own"
    own, about = (Vectors(run, name).documents(np.arange(12)) for name in ("own", "about"))
    assert not np.allclose(own[0], about[0])
    assert np.allclose(about[1], about[2])  # neither has a description

    judge_view(run, JudgeView(name="facet", index="about"), HOW)
    rows = [
        row for key in run.query_shards() for row in run.read("4_judgments/facet", key).to_pylist()
    ]
    queries = np.concatenate([Vectors(run, "about").queries(key) for key in run.query_shards()])
    asked = sorted({row["query_id"] for row in rows})
    for row in rows:
        at = int(row["doc_id"][1:]) - 1
        expected = float(queries[asked.index(row["query_id"])] @ about[at])
        assert row["score"] == pytest.approx(expected, abs=1e-5)
    far = select(run, Select(name="far", sources=("bm25",), max_score={"facet": -1.0}), HOW)
    assert far.rows["sets"] == 0 and far.drops["max_score"] > 0
    with pytest.raises(UserError, match="name of another judge"):
        judge_view(run, JudgeView(name="similarity", index="about"), HOW)
