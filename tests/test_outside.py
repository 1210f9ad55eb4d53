"""A source and a judge of another package: each is one file and one line, and the whole flow has
them.
"""

import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from toy import DOCUMENT_TEXTS, GOLD, QUERY_TEXTS

SOURCE = '''
"""The longest documents: queries -> candidates."""

from functools import partial

import numpy as np

from miner.options import Options, option
from miner.query_shard import QueryShard
from miner.stages import Shard, Stage, run_stage


class MineLongest(Options):
    """The longest documents."""

    k: int = option(5, "documents per query", short="-k", ge=1)


def mine_longest(run, options: MineLongest, how):
    """Find documents: queries -> 3_candidates/longest."""
    stage = Stage(
        f"{run.SOURCES}/longest",
        "candidates",
        options.record(),
        run.table_input(),
        made_by="mine longest",
    )
    return run_stage(run, stage, lambda: partial(_shard, run, options), run.query_shards(), how)


def _shard(run, options, key):
    shard = QueryShard(run, key, made=False)
    texts = shard.documents.texts(np.arange(len(shard.documents)))
    size = np.array(list(map(len, texts)), float)
    order = np.argsort(-size, kind="stable")[: shard.depth(options.k)]
    lines = len(shard.query_ids)
    found = np.tile(order, (lines, 1)), np.tile(size[order], (lines, 1))
    return Shard({key: shard.candidates(found, options.k, "longest")})
'''
JUDGE = '''
"""The length of a document: candidates, positives -> judgments."""

from functools import partial

import numpy as np

from miner.options import Options, option
from scoring.judge.judging import Judging, judgments


class JudgeLength(Options):
    """The characters of a document."""

    most: int = option(1000, "characters that count", ge=1)


def judge_length(run, options: JudgeLength, how):
    """Judge all pairs: candidates, positives -> 4_judgments/length."""
    run.tables()
    return Judging(run, "length").carry_out(options, how, lambda: partial(_judge, options))


def _judge(options, asked):
    texts = asked.shard.documents.texts(asked.pairs.row)
    size = np.array([min(len(text), options.most) for text in texts], float)
    return [judgments(asked.pairs, "length", size)], {}
'''
LINES = """[quarry.sources]
longest = toy_source:mine_longest
[quarry.judges]
length = toy_judge:judge_length
"""
CONFIG = """
[ingest.pairs]
file = "pairs.jsonl"
[mine.longest]
k = 4
[judge.length]
most = 40
[select.long]
from = ["longest"]
judge = "length"
negatives = 2
[select."long-safe"]
from = ["longest", "random:3"]
judge = "length"
min_score = 20
[export.long]
format = "triplet"
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A package installed beside quarry: two files of a part each, and a line for each."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "toy_source.py").write_text(SOURCE)
    (folder / "toy_judge.py").write_text(JUDGE)
    info = folder / "toy_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(LINES)
    return folder


def quarry(outside, folder, *words):
    environment = os.environ | {"PYTHONPATH": str(outside)}
    command = [sys.executable, "-m", "cli.main", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_whole_flow_has_what_another_package_adds(outside, tmp_path):
    import json

    rows = [
        {"query": text, "positive": [" ".join(DOCUMENT_TEXTS[doc_id]) for doc_id in GOLD[query_id]]}
        for query_id, text in QUERY_TEXTS.items()
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "quarry.toml").write_text(CONFIG)
    listed = quarry(outside, tmp_path, "mine", "--help").stdout
    assert "longest" in listed and "From toy-parts." in listed
    assert "characters that count" in quarry(outside, tmp_path, "judge", "length", "--help").stdout
    ran = quarry(outside, tmp_path, "run")
    assert ran.returncode == 0, ran.stderr
    run = tmp_path / "run"
    judged = pq.read_table(run / "4_judgments/length/00000.parquet").to_pylist()
    assert judged and {row["judge"] for row in judged} == {"length"}
    assert max(row["score"] for row in judged) == 40
    made = pq.read_table(run / "5_sets/long/00000.parquet").to_pylist()
    assert {source["source"] for row in made for source in row["sources"]} == {"longest"}
    assert all(row["score"] is not None for row in made)
    assert list((run / "8_export/long.triplet").glob("*.parquet"))
    again = quarry(outside, tmp_path, "run")
    assert again.returncode == 0 and "already" in again.stdout + again.stderr


def test_a_name_that_is_taken_is_refused_in_one_line(outside, tmp_path):
    other = tmp_path / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[quarry.sources]\nbm25 = toy_source:mine_longest\n")
    refused = quarry(tmp_path, tmp_path, "mine", "bm25")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "other registers 'bm25' in quarry.sources, which is taken" in refused.stderr
