"""What sets and sources have in common, other runs beside this one, marked edits, figures."""

import json
import re

import pytest
from test_report import made, page
from toy import FOUND, GOLD, HOW, QUERY_TEXTS, rows

from miner.errors import UserError
from miner.store import Run
from scoring.compare import paired_difference
from scoring.examples import _edits
from scoring.in_common import DEPTH, shares_in_common
from scoring.metrics import Score
from scoring.recipe import Select
from scoring.report import Report, report
from scoring.score import score
from scoring.select import select


def data_of(run: Run) -> dict:
    return json.loads((run.path / "7_report/report.json").read_text("utf-8"))


def plain_share(one: set, two: set) -> float:
    return len(one & two) / len(one)


@pytest.mark.parametrize("shard_queries", [1, 5])
def test_what_is_in_common_is_that_of_plain_sets(tmp_path, shard_queries):
    run = made(tmp_path / "run", shard_queries=shard_queries)
    found = shares_in_common(run, Run.SETS)
    assert found["names"] == ["bm25", "bm25+dense"]
    pairs = [set(rows(run, f"5_sets/{name}", "query_id", "doc_id")) for name in found["names"]]
    assert found["shares"] == [[plain_share(one, two) for two in pairs] for one in pairs]
    assert 0 < found["shares"][0][1] < 1
    found = shares_in_common(run, Run.SOURCES)
    pairs = [
        {(q, d) for q, ids in FOUND[name].items() for d in ids[:DEPTH] if d not in GOLD[q]}
        for name in found["names"]
    ]
    assert found["shares"] == [[plain_share(one, two) for two in pairs] for one in pairs]


def test_an_empty_set_has_nothing_in_common(tmp_path):
    run = made(tmp_path / "run")
    select(run, Select(name="none", sources=("bm25",), min_score=("0.99",)), HOW)
    score(run, Score(resamples=50), HOW)
    found = shares_in_common(run, Run.SETS)
    assert found["names"] == ["bm25", "bm25+dense", "none"] and found["shares"][2] == [None] * 3
    assert shares_in_common(Run(tmp_path), Run.SETS) == {"names": [], "shares": []}


def test_sets_of_another_run_with_the_same_queries_are_compared_query_by_query(tmp_path):
    run, other = (made(tmp_path / name, Score(resamples=50)) for name in ("one", "two"))
    select(other, Select(name="hard", sources=("bm25",), negatives=1), HOW)
    score(other, Score(resamples=50), HOW)
    report(run, Report(compare=(str(other.path),)), HOW)
    data = data_of(run)
    first = data["sets"][0]["name"]
    row = next(row for row in data["compared"] if row["name"] == "hard")
    assert row["differs"] == [] and row["run"] == str(other.path)
    expected = paired_difference(other, "hard", first, "eci_v1@1", Score(resamples=50))
    assert list(row["ahead"].values()) == pytest.approx(list(expected[:3]))
    same = next(row for row in data["compared"] if row["name"] == first)
    assert list(same["ahead"].values()) == [0, 0, 0]
    values = [row["measures"]["eci_v1@1"]["value"] for row in data["compared"]]
    assert values == sorted(values, reverse=True)
    assert "Beside other runs" in page(run).text


def test_runs_that_differ_are_shown_with_what_differs(tmp_path):
    run = made(tmp_path / "one")
    fewer = {name: text for name, text in QUERY_TEXTS.items() if name != "q5"}
    other = made(tmp_path / "two", Score(resamples=20), queries=fewer)
    report(run, Report(compare=(str(other.path),)), HOW)
    for row in data_of(run)["compared"]:
        assert "queries" in row["differs"] and "way of scoring" in row["differs"]
        assert row["ahead"] is None
    assert "not comparable: another queries" in page(run).text
    with pytest.raises(UserError, match="no run with scored sets lies there"):
        report(run, Report(compare=(str(tmp_path / "nothing"),)), HOW)


def test_what_differs_from_the_nearest_positive_is_marked(tmp_path):
    positives = [{"text": "Something else"}, {"text": "A black dog runs on the beach."}]
    text = "a black horse runs on the wide beach."
    marked = [text[first:end] for first, end in _edits({"text": text}, positives)]
    assert marked == ["horse", "wide"]
    assert _edits({"text": positives[1]["text"]}, positives) == []
    assert _edits({"text": "nothing of it in common"}, positives) == []
    assert _edits({"text": None}, [{"text": None}]) == []


def test_marks_stand_on_the_page_and_texts_stay_texts():
    from scoring.page import _marked

    row = {"text": "<b> dog & cat", "edits": [[4, 7], [10, 13]]}
    assert _marked(row, 0) == "&lt;b&gt; <mark>dog</mark> &amp; <mark>cat</mark>"
    assert _marked(row, 0, 6) + _marked(row, 6) == (
        "&lt;b&gt; <mark>do</mark><mark>g</mark> &amp; <mark>cat</mark>"
    )
    assert _marked({"text": "plain"}, 2) == "ain"


def test_figures_are_written_beside_the_page_and_are_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    run = made(tmp_path / "run")
    report(run, Report(figures=True), HOW)
    folder = run.path / "7_report/figures"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    names = ["curve", "histogram-bm25", "histogram-bm25+dense", "parts", "plane", "worth"]
    assert sorted(before) == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    drawing = before["worth.svg"].decode()
    assert re.search(r">bm25\+dense<", drawing) and re.search(r">ECI as is<", drawing)
    assert before["curve.png"].startswith(b"\x89PNG")
    report(run, Report(figures=True), HOW)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    report(run, Report(), HOW)
    assert not folder.exists()
