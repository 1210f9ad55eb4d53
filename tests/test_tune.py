"""The search for a recipe, against sets made and scored one by one."""

import json
import tomllib

import pyarrow.parquet as pq
import pytest
from test_set_coverage import WHOLE, made, values
from toy import HOW, toy_run

from cli.flow import make_plan
from miner.engine import How
from miner.errors import UserError
from scoring.recipe import Select
from scoring.score import score
from scoring.select import select
from scoring.tune import Tune, recipes, tune

pytestmark = pytest.mark.usefixtures("by_hand")
OPTIONS = Tune(reference=0, reference_unsafe=True, most=2, unsafe=1.0, margins=(0.5,))


def trials(run):
    files = sorted((run.path / "6_metrics/_tune").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_every_trial_is_the_set_that_select_would_make(tmp_path):
    run = made(tmp_path / "run")
    before = sorted(file.name for file in (run.path / "5_sets").iterdir())
    found = tune(run, OPTIONS, HOW)
    assert sorted(file.name for file in (run.path / "5_sets").iterdir()) == before
    rows = trials(run)
    assert [json.loads(row["recipe"]) for row in rows] == list(
        recipes(OPTIONS, ["bm25", "dense", "random"])
    )
    whole = [row for row in rows if row["negatives"] == 2]  # no query goes without
    assert len(whole) > 4
    for number, row in enumerate(whole[:5]):
        select(run, Select(name=f"set{number}", **json.loads(row["recipe"])), HOW)
        score(run, WHOLE, HOW)
        scored = values(run, f"set{number}")["coverage"]["value"]
        assert row["coverage"] == pytest.approx(scored, abs=1e-5)
    some = next(row for row in rows if json.loads(row["recipe"])["sources"] == ["bm25"])
    assert some["negatives"] < 2  # q5 has no candidate of that source, and counts
    best = max(rows, key=lambda row: row["coverage"])
    section = tomllib.loads(found.facts["section"])
    written = {key.replace("-", "_"): value for key, value in section["select"]["tuned"].items()}
    assert written == {
        ("from" if key == "sources" else key): value
        for key, value in json.loads(best["recipe"]).items()
    }
    (planned,) = make_plan(section, "select", "select")
    assert planned.options.negatives == 2
    assert f"{len(rows)} recipes tried" in found.facts["verdict"][0]


def test_what_breaks_the_constraint_is_no_winner_and_a_search_goes_on(tmp_path):
    run = made(tmp_path / "run")
    found = tune(run, OPTIONS.model_copy(update={"unsafe": 0.0}), HOW)
    rows = trials(run)
    best = max((row for row in rows if row["unsafe"] == 0), key=lambda row: row["coverage"])
    assert any(row["unsafe"] > 0 for row in rows)
    assert f"coverage {best['coverage']:.3f}" in found.facts["verdict"][0]
    assert tune(run, OPTIONS.model_copy(update={"unsafe": 0.0}), HOW).skipped
    other = tune(run, OPTIONS.model_copy(update={"unsafe": 1.0, "name": "bold"}), HOW)
    assert other.skipped and other.facts["section"].startswith('[select."bold"]')
    most = max(row["coverage"] for row in rows)
    assert f"coverage {most:.3f}" in other.facts["verdict"][0] and trials(run) == rows
    (run.path / "6_metrics/_tune/_manifest.json").unlink()
    (run.path / "6_metrics/_tune/00001.parquet").unlink()
    again = tune(run, OPTIONS.model_copy(update={"unsafe": 0.0}), HOW)
    assert again.resumed_shards == len(rows) - 1 and trials(run) == rows
    assert again.facts == found.facts


def test_mistakes_are_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no dense index with the vectors of the target encoder"):
        tune(toy_run(tmp_path / "bare"), OPTIONS, HOW)
    run = made(tmp_path / "run")
    with pytest.raises(UserError, match=r"no recipe of \d+ has a share of unsafe negatives of at"):
        tune(run, Tune(sources=("bm25",), unsafe=0.0, margins=(), reference=0), How(force=True))


def test_a_control_is_tried_only_if_it_is_named(tmp_path):
    """A placebo is a source whose documents are still true: as a negative it would do harm."""
    run = made(tmp_path / "run")
    file = run.path / "3_candidates/random/_manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"facts": manifest["facts"] | {"control": "still true"}}))
    tune(run, OPTIONS, HOW)
    tried = [json.loads(row["recipe"]) for row in trials(run)]
    assert tried == list(recipes(OPTIONS, ["bm25", "dense"]))
    tune(run, OPTIONS.model_copy(update={"sources": ("dense", "random")}), How(force=True))
    tried = [json.loads(row["recipe"]) for row in trials(run)]
    assert tried == list(recipes(OPTIONS, ["dense", "random"]))
