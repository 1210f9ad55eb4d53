"""Judges that grow: only new pairs are judged, and what they leave is, byte for byte, what
judging all pairs afresh leaves.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy import DOCUMENT_TEXTS, FOUND, HOW, Toy, rows, toy_run, write_source
from vectors import plane, write_vectors

import scoring.judge.duplicates
import scoring.judge.overlap
import scoring.judge.similarity
from miner.engine import How
from miner.errors import UserError
from miner.query_shard import QueryShard
from miner.search.bm25 import index_bm25
from miner.search.tokens import IndexBm25
from miner.store import BEFORE, shard_keys
from scoring.judge.duplicates import JudgeDuplicates
from scoring.judge.overlap import JudgeOverlap
from scoring.judge.similarity import JudgeSimilarity

KILLER = Path(__file__).parent / "killer.py"
TEXTS = DOCUMENT_TEXTS | {"d09": DOCUMENT_TEXTS["d01"], "d12": ("", "how do BEES talk?")}
FIRST = {"bm25": FOUND["bm25"], "random": {"q1": ["d12", "d02"], "q5": ["d01"]}}
SECOND = {"dense": FOUND["dense"]}
THIRD = {"new": {"q1": ["d03", "d08"], "q3": ["d12"], "q5": ["d12", "d06", "d01"]}}
JUDGES = {
    "duplicates": (scoring.judge.duplicates, "_find_copies", JudgeDuplicates()),
    "overlap": (scoring.judge.overlap, "_measure_overlap", JudgeOverlap()),
    "similarity": (scoring.judge.similarity, "_compare_vectors", JudgeSimilarity()),
}


def made(path, *found, **changes):
    """A run with some sources, a BM25 index and vectors, and no judge."""
    run = toy_run(
        path,
        documents=TEXTS,
        similarity=None,
        candidates={name: d for one in found for name, d in one.items()},
        shard_queries=2,
        **changes,
    )
    index_bm25(run, IndexBm25(), HOW)
    return write_vectors(run, *plane())


def add(run, found, how=HOW):
    toy = Toy(candidates=found, shard_queries=2)
    for source in found:
        write_source(run, toy, source, how)


def judge(run, name, how=HOW):
    module, _, options = JUDGES[name]
    return getattr(module, f"judge_{name}")(run, options, how)


def content(run, name):
    """Every byte of a judge's folder, but for time, memory and shards that were there."""
    folder = run.path / "4_judgments" / name
    found = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    facts = json.loads(found.pop("_manifest.json"))
    return found, {
        key: value
        for key, value in facts.items()
        if key not in ("seconds", "peak_memory_mb", "resumed_shards")
    }


@pytest.fixture
def spied(monkeypatch):
    """The pairs that judges were left to judge."""
    seen = []

    def spied_on(module, inner):
        judge = getattr(module, inner)

        def spy(*words):
            seen.extend(zip(*(ids.to_pylist() for ids in words[-1].pairs.ids()), strict=True))
            return judge(*words)

        monkeypatch.setattr(module, inner, spy)

    for module, inner, _ in JUDGES.values():
        spied_on(module, inner)
    return seen


@pytest.mark.parametrize("name", JUDGES)
def test_another_source_and_only_new_pairs_are_judged(tmp_path, name, by_hand, spied):
    run = made(tmp_path / "run", FIRST)
    judge(run, name)
    before = {row[:2] for row in rows(run, f"4_judgments/{name}", "query_id", "doc_id")}
    assert set(spied) == before and ("q2", "d11") not in before
    spied.clear()
    add(run, SECOND)
    manifest = judge(run, name)
    after = {row[:2] for row in rows(run, f"4_judgments/{name}", "query_id", "doc_id")}
    assert sorted(spied) == sorted(after - before) and {("q2", "d11"), ("q3", "d02")} <= set(spied)
    assert not manifest.skipped and not (run.path / "4_judgments" / name / BEFORE).exists()
    afresh = made(tmp_path / "afresh", FIRST, SECOND)
    judge(afresh, name)
    assert content(run, name) == content(afresh, name)
    spied.clear()
    assert judge(run, name).skipped and not spied


@pytest.mark.parametrize("name", JUDGES)
def test_a_source_that_was_mined_again_with_less_takes_its_rows_along(
    tmp_path, name, by_hand, spied
):
    run = made(tmp_path / "run", FIRST, SECOND)
    judge(run, name)
    spied.clear()
    fewer = {"dense": {query_id: found[:2] for query_id, found in FOUND["dense"].items()}}
    add(run, fewer, How(force=True))
    judge(run, name)
    assert spied == []
    afresh = made(tmp_path / "afresh", FIRST, fewer)
    judge(afresh, name)
    assert content(run, name) == content(afresh, name)
    assert ("q2", "d11") not in {
        row[:2] for row in rows(run, f"4_judgments/{name}", "query_id", "doc_id")
    }


@pytest.mark.parametrize("name", JUDGES)
def test_a_second_source_while_the_first_growth_is_half_done(
    tmp_path, name, by_hand, spied, monkeypatch
):
    run = made(tmp_path / "run", FIRST)
    judge(run, name)
    add(run, SECOND)
    module, inner, _ = JUDGES[name]
    whole = getattr(module, inner)

    def fails_at_the_second(*words):
        if words[-1].shard.key == "00001":
            raise ZeroDivisionError("cut off")
        return whole(*words)

    monkeypatch.setattr(module, inner, fails_at_the_second)
    with pytest.raises(ZeroDivisionError):
        judge(run, name)
    folder = run.path / "4_judgments" / name
    assert (
        (folder / "00000.parquet").exists()
        and (folder / BEFORE / "00001.parquet").exists()
        and run.find(f"4_judgments/{name}") is None
    )
    with pytest.raises(UserError, match="is only half done"):
        run.need(f"4_judgments/{name}", "judge")
    monkeypatch.setattr(module, inner, whole)
    add(run, THIRD)
    spied.clear()
    judge(run, name)
    assert len(spied) == len(set(spied)) and ("q1", "d03") in spied and ("q1", "d08") not in spied
    # the first shard had grown by dense already
    assert not {pair for pair in spied if pair[0] in ("q1", "q2")} - {("q1", "d03")}
    afresh = made(tmp_path / "afresh", FIRST, SECOND, THIRD)
    judge(afresh, name)
    assert content(run, name) == content(afresh, name)


def test_other_tables_or_options_are_no_growth(tmp_path):
    run = made(tmp_path / "run", FIRST)
    judge(run, "duplicates")
    add(run, SECOND)
    with pytest.raises(UserError, match=r"was made with near=0\.9, now 0\.8"):
        scoring.judge.duplicates.judge_duplicates(run, JudgeDuplicates(near=0.8), HOW)
    assert run.find("4_judgments/duplicates") is not None  # a refusal touches nothing


@pytest.mark.parametrize(
    "killed",
    [
        ("before", 1),
        ("after", 1),
        ("after", 2),
        ("before", 4),
        ("after", 4),
        ("after", 5),
        ("before", 7),
        ("after", 7),
    ],
)
def test_killed_while_it_grows_and_repeated_it_is_byte_identical(tmp_path, killed):
    run = made(tmp_path / "run", FIRST)
    judge(run, "duplicates")
    add(run, SECOND)
    words = [
        sys.executable,
        str(KILLER),
        killed[0],
        str(killed[1]),
        "-r",
        str(run.path),
        "judge",
        "duplicates",
    ]
    assert subprocess.run(words, capture_output=True, check=False).returncode == -signal.SIGKILL
    judge(run, "duplicates")
    afresh = made(tmp_path / "afresh", FIRST, SECOND)
    judge(afresh, "duplicates")
    assert content(run, "duplicates") == content(afresh, "duplicates")


def test_pairs_are_distinct_and_in_order(tmp_path):
    run = toy_run(tmp_path, shard_queries=2)
    shard = QueryShard(run, "00001")
    pairs = shard.pairs(["dense", "bm25"])
    named = [
        (shard.query_ids[query], f"d{row + 1:02d}")
        for query, row in zip(pairs.query, pairs.row, strict=True)
    ]
    asked = {(q, doc_id) for source in FOUND.values() for q in ("q3", "q4") for doc_id in source[q]}
    assert named == sorted(asked) and (np.diff(pairs.codes) > 0).all()
    positives = shard.pairs([], positives=True)
    assert positives.positive.all() and len(positives) == len(shard.positives[0]) > 0
    assert len(QueryShard(run, shard_keys(3)[2]).pairs([])) == 0
