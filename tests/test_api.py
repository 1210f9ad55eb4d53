"""The commands from Python: the methods of `quarry.Run`, tables in memory, and the notebook."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import documents, rejects, rows, tree
from pyarrow.dataset import field
from test_contracts import HEAVY
from toy import toy_run

from cli.steps import steps
from miner import store
from miner.errors import UserError
from miner.search.random_documents import MineRandom
from miner.tables import CANDIDATES, DOCUMENTS, POSITIVES, QUERIES, REJECTED, SETS
from quarry import Run

ROOT = Path(__file__).parents[1]
GIVEN = {
    "documents": [
        {"doc_id": "d2", "title": "Roofs", "text": "slate 😀", "pages": b"\0"},
        {"doc_id": "d1", "title": None, "text": "tile", "pages": b""},
        {"doc_id": "d3", "title": "", "text": "turf", "pages": b""},
    ],
    "queries": [{"query_id": 7, "text": "what covers a house"}, {"query_id": 8, "text": "roof?"}],
    "positives": [
        {"query_id": 7, "doc_id": "d1", "relevance": 2},
        {"query_id": 7, "doc_id": "d3", "relevance": 0},
        {"query_id": 8, "doc_id": "d2", "relevance": 1},
    ],
}
NO_TABLE = "expected a pyarrow table, a DataFrame of pandas or polars, a data set of datasets, a"


def as_arrow(given):
    return pa.Table.from_pylist(given)


def as_chunks(given):
    return pa.concat_tables([pa.Table.from_pylist([row], as_arrow(given).schema) for row in given])


def as_views(given):
    table = as_arrow(given)
    views = [
        pa.field(column.name, pa.string_view() if column.type == pa.string() else column.type)
        for column in table.schema
    ]
    return table.cast(pa.schema(views)).to_reader()


def as_pandas(given):
    return pytest.importorskip("pandas").DataFrame(given)


def as_categories(given):
    return as_pandas(given).astype({name: "category" for name in given[0] if name.endswith("_id")})


def as_polars(given):
    return pytest.importorskip("polars").DataFrame(given)


def as_data_set(given):
    """One whose order stands in an index beside the rows."""
    backwards = pytest.importorskip("datasets").Dataset.from_list(given[::-1])
    return backwards.select(range(len(given) - 1, -1, -1))


def as_stream(given):
    return as_data_set(given).to_iterable_dataset()


class OnlyToArrow:
    """A table of a library that is older than Arrow's C stream."""

    def __init__(self, given):
        self.given = given

    def to_arrow(self):
        return as_arrow(self.given)


WAYS = [
    list,
    as_arrow,
    as_chunks,
    as_views,
    as_pandas,
    as_categories,
    as_polars,
    as_data_set,
    as_stream,
    OnlyToArrow,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_tables_in_memory_are_the_same_input_however_they_are_held(tmp_path, way):
    run, held = Run(tmp_path / "run"), {name: way(given) for name, given in GIVEN.items()}
    made = run.ingest(**held, shard_documents=2)
    folder = store.Run(run.path)
    assert documents(folder) == [
        ("d1", "", "tile"),
        ("d2", "Roofs", "slate 😀"),
        ("d3", "", "turf"),
    ]
    assert rows(folder, QUERIES) == [("7", "what covers a house"), ("8", "roof?")]
    assert rows(folder, POSITIVES) == [("7", "d1", 2), ("8", "d2", 1)]
    assert rejects(folder) == [("positives:2", "positives", "low_relevance")]
    assert made.rows == {"documents": 3, "queries": 2, "positives": 2} and not made.skipped
    again = run.ingest(**GIVEN, shard_documents=2)
    assert again.skipped and again.fingerprint == made.fingerprint


def test_changed_tables_are_refused_by_name_until_forced(tmp_path):
    run = Run(tmp_path / "run")
    run.ingest(**GIVEN)
    before = tree(store.Run(run.path))
    changed = GIVEN | {"queries": [*GIVEN["queries"], {"query_id": 9, "text": "new"}]}
    with pytest.raises(UserError, match=r"made from other inputs \(queries is changed\); pass"):
        run.ingest(**changed)
    with pytest.raises(UserError, match="was made with limit=None, now 1"):
        run.ingest(**GIVEN, limit=1)
    assert tree(store.Run(run.path)) == before
    made = run.ingest(**changed, force=True)
    assert made.drops == {"low_relevance": 1, "query_without_positive": 1}


def test_files_and_tables_in_memory_go_together(tmp_path):
    run = Run(tmp_path / "run")
    pq.write_table(as_arrow(GIVEN["documents"]), tmp_path / "d.parquet")
    (tmp_path / "q.csv").write_text("query_id,text\n7,what covers a house\n8,roof?\n")
    given = {"documents": tmp_path / "d.parquet", "queries": str(tmp_path / "q.csv")}
    run.ingest(**given, positives=GIVEN["positives"])
    assert rows(store.Run(run.path), POSITIVES) == [("7", "d1", 2), ("8", "d2", 1)]
    os.rename(tmp_path / "d.parquet", tmp_path / "other.parquet")
    given["documents"] = tmp_path / "other.parquet"  # what it holds decides
    assert run.ingest(**given, positives=GIVEN["positives"]).skipped


def test_a_positive_without_a_column_of_grades_has_grade_1_and_a_bad_one_is_left_out(tmp_path):
    run = Run(tmp_path / "run")
    bare = [{"query_id": 7, "doc_id": "d1"}, {"query_id": 8.0, "doc_id": "d2"}]
    run.ingest(**GIVEN | {"positives": bare})
    assert rows(store.Run(run.path), POSITIVES) == [("7", "d1", 1), ("8", "d2", 1)]
    grades = [np.int64(2), float("nan"), None, "high", 1.0]
    graded = [{"query_id": 7, "doc_id": "d1", "relevance": grade} for grade in grades]
    made = run.ingest(**GIVEN | {"positives": graded}, force=True)
    assert made.drops == {"bad_relevance": 3, "duplicate_positive": 1, "query_without_positive": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": {"d1": "text"}}, f"documents: is a dict; {NO_TABLE}"),
        ({"queries": ["a", "b"]}, f"queries: is a list; {NO_TABLE}"),
        ({"queries": 7}, f"queries: is a int; {NO_TABLE}"),
        ({"queries": []}, 'queries: missing "query_id" (found nothing)'),
        (
            {"documents": pa.table({"id": ["d1"], "text": ["x"]})},
            'documents: missing "doc_id" (found id, text)',
        ),
        ({"queries": [{"id": 7, "text": "x"}]}, 'queries: missing "query_id" (found id, text)'),
        (
            {"queries": [{"query_id": b"7", "text": "x"}]},
            "queries: cannot be read (holds a bytes; expected text or a number)",
        ),
        ({"documents": None}, "ingest tables: documents is missing: jsonl"),
        ({"document": []}, "ingest tables: unknown option 'document'; expected one of"),
        ({"limit": as_arrow([{"a": 1}])}, "ingest tables: limit is a Table; expected the name of"),
        ({"documents": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        Run(tmp_path / "run").ingest(**GIVEN | changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run/1_tables").exists()


def test_a_column_of_mixed_types_is_one_line(tmp_path):
    mixed = as_pandas([{"query_id": "a", "text": "x"}, {"query_id": 1, "text": "y"}])
    with pytest.raises(UserError, match=r"queries: cannot be read .*query_id"):
        Run(tmp_path).ingest(**GIVEN | {"queries": mixed})


@pytest.mark.parametrize("held", [as_arrow, as_pandas, as_data_set, list])
def test_other_formats_take_files_alone(tmp_path, held):
    with pytest.raises(UserError, match=r"ingest pairs: file is a \w+; expected the name of a"):
        Run(tmp_path).ingest("pairs", file=held(GIVEN["queries"]))


def test_any_format_of_the_command_line_goes_in(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"q": "roof", "a": ["slate", "tile"], "n": ["turf"]}\n')
    run = Run(tmp_path / "run")
    made = run.ingest("pairs", file=tmp_path / "pairs.jsonl", query="q", positive="a", negative="n")
    assert made.stage == "1_tables" and made.rows["positives"] == 2
    assert run.table("candidates").to_table()["source"].to_pylist() == ["own"]
    assert run.table("negatives").count_rows() == 1


@pytest.mark.parametrize("step", steps(), ids=lambda step: step.title)
def test_every_command_is_a_call_that_checks_its_options(tmp_path, step):
    kind = [step.name] if step.name else ["a"] if step.stage in ("select", "export") else []
    with pytest.raises(UserError, match=f"{step.title}: unknown option 'enigne'; expected one of"):
        getattr(Run(tmp_path), step.stage)(*kind, enigne=1)


def test_what_there_is_not_is_one_line(tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match="mine: there is no 'bm52'; expected one of bm25, dense"):
        run.mine("bm52")
    with pytest.raises(UserError, match="select: sources is missing: SOURCE or SOURCE:K"):
        run.select("safe")
    with pytest.raises(UserError, match="mine bm25: k is 0; input should be greater than or"):
        run.mine("bm25", k=0)
    for ask in (run.status, lambda: run.table("sets"), lambda: run.mine("random")):
        with pytest.raises(UserError, match="there is no run folder"):
            ask()
    toy_run(run.path)
    with pytest.raises(UserError, match="there is no table 'candidate'; expected one of documents"):
        run.table("candidate")
    with pytest.raises(UserError, match="5_sets has no rejected yet"):
        run.table("rejected")
    with pytest.raises(UserError, match=r"has no set 'safe' \(found none\)"):
        run.set("safe")
    with pytest.raises(UserError, match="run `quarry export safe --format triplet` first"):
        run.exported("safe")


def test_the_rest_of_the_flow_and_what_it_made_is_read_lazily(tmp_path):
    toy_run(tmp_path)
    run = Run(tmp_path)
    assert run.mine("random", k=2).rows == {"candidates": 11}
    made = run.select("safe", sources=["bm25:5", "dense:5"], percent_margin=0.95, negatives=2)
    assert run.select(
        "safe", sources=("bm25:5", "dense:5"), percent_margin=0.95, negatives=2
    ).skipped
    with pytest.raises(UserError, match="was made with negatives=2, now 3"):
        run.select("safe", sources=["bm25:5", "dense:5"], percent_margin=0.95, negatives=3)
    negatives = run.set("safe")
    assert negatives.schema == SETS.schema and negatives.count_rows() == made.rows["sets"]
    of_one = negatives.to_table(filter=field("query_id") == "q1")["doc_id"].to_pylist()
    assert of_one == [row["doc_id"] for row in run.show("q1", "safe")["sets"]["safe"]["negatives"]]
    assert run.table("sets").to_table() == negatives.to_table()
    reasons = run.table("rejected").to_table(columns=["reason"])["reason"].to_pylist()
    assert run.table("rejected").schema == REJECTED.schema
    assert {reason: reasons.count(reason) for reason in set(reasons)} == made.drops
    assert run.table("documents").to_table()["doc_id"].to_pylist()[::11] == ["d01", "d12"]
    assert run.table("documents").schema == DOCUMENTS.schema
    candidates = run.table("candidates")
    assert candidates.schema == CANDIDATES.schema
    assert candidates.count_rows(filter=field("source") == "random") == 11
    scored = run.score("safe", resamples=20)
    assert [one.stage for one in scored[:1]] == ["6_metrics/_per_query/safe"]
    assert "eci_v1" in run.table("metrics").to_table()["measure"].to_pylist()
    assert run.report(examples=1).facts["verdict"] == [
        "One set is scored, so there is nothing to compare it with."
    ]
    assert {row["state"] for row in run.status()} == {"up to date"}


def test_an_export_is_read_whatever_its_kind_of_file(tmp_path):
    toy_run(tmp_path)
    run = Run(tmp_path)
    run.select("safe", sources=["bm25:5"])
    assert run.export("safe", ids=True).rows["rows"] == run.exported("safe").count_rows()
    assert run.exported("safe").to_table().column_names[:3] == ["anchor", "positive", "negative"]
    run.export("safe", format="tevatron")
    halves = run.export("safe", ids=True, dev=0.5, force=True).rows
    for split in ("train", "dev"):
        assert run.exported("safe", split=split).count_rows() == halves.get(split, 0) > 0
    nested = run.exported("safe", "tevatron")
    assert nested.count_rows() == len(nested.to_table()) == 4
    assert [file[-12:] for file in nested.files] == ["/00000.jsonl", "/00001.jsonl"]


def test_polars_scans_what_was_made(tmp_path):
    polars = pytest.importorskip("polars")
    toy_run(tmp_path)
    found = polars.scan_pyarrow_dataset(Run(tmp_path).table("candidates"))
    assert found.filter(polars.col("query_id") == "q3").select("doc_id").collect().height == 7


def test_workers_force_and_progress_reach_the_step(tmp_path, monkeypatch):
    toy_run(tmp_path)
    seen, told = [], []

    def mine(run, options: MineRandom, how):
        seen.append((how.force, how.workers, options.k))
        with how.progress("3_candidates/random", 2) as advance:
            advance()
            advance()
        return run.tables()

    monkeypatch.setattr("miner.search.random_documents.mine_random", mine)
    run = Run(tmp_path, workers=3, progress=lambda *words: told.append(words))
    run.mine("random", k=4, force=True)
    Run(tmp_path).mine("random")
    assert seen == [(True, 3, 4), (False, 1, MineRandom().k)]
    assert told == [("3_candidates/random", done, 2) for done in (0, 1, 2)]


def test_progress_counts_rows_while_ingest_reads(tmp_path):
    told = []
    Run(tmp_path, progress=lambda *words: told.append(words)).ingest(**GIVEN)
    assert told == [
        *(("1_tables, reading", done, 0) for done in (0, 8)),
        *(("1_tables", done, 2) for done in (0, 1, 2)),
    ]


def test_a_run_in_use_is_left_alone(tmp_path):
    toy_run(tmp_path)
    with store.Run(tmp_path).lock(), pytest.raises(UserError, match="is in use by another quarry"):
        Run(tmp_path).mine("random")
    assert Run(tmp_path).mine("random").rows["candidates"]


def test_what_there_is_to_warn_of_is_logged(tmp_path, caplog):
    toy_run(tmp_path)
    Run(tmp_path).select("none", sources=["bm25:5"], max_score=["similarity=-1"])
    said = [record.getMessage() for record in caplog.records if record.name == "quarry"]
    assert said == [
        "5_sets/none: 5 of 5 queries have no negative: most candidates are left out as"
        " max_score (13): loosen that rule, or add a source"
    ]


def python(*words, cwd=ROOT):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_import_is_quick_and_imports_no_model():
    loaded = python("-c", "import quarry, sys; quarry.Run('run'); print(*sys.modules)").split()
    assert "quarry" in loaded
    assert not (HEAVY | {"pyarrow", "numpy", "numba", "pandas"}) & set(loaded)


def test_the_package_is_the_command_too():
    assert python("-m", "quarry", "--help").startswith("Usage: python -m quarry [OPTIONS] COMMAND")


def test_the_notebook_runs_from_tables_to_training_data(tmp_path):
    notebook = json.loads((ROOT / "examples/quarry.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and not any(cell["outputs"] for cell in cells)
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    (tmp_path / "cells.py").write_text(
        f"{code}\n\nimport json\nprint(json.dumps([len(documents), findings, train.column_names,"
        " len(train), measures.num_rows]))\n"
    )
    said = python("cells.py", cwd=tmp_path).splitlines()[-1]
    count, findings, columns, trained, measured = json.loads(said)
    assert count >= 30 and trained >= 10 and measured == 6
    assert findings[0].startswith("At the matched |N| of ") and "coverage" in findings[0]
    assert columns == ["anchor", "positive", "negative_1", "negative_2"]
