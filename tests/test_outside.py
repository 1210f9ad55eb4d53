"""The source and the judge of docs/python-api.md in a package of their own: each is one file and
one line, and the whole flow has them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy import DOCUMENT_TEXTS, GOLD, QUERY_TEXTS

PAGE = (Path(__file__).parents[1] / "docs/python-api.md").read_text()
LINES = """[quarry.sources]
longest = my_source:mine_longest
[quarry.judges]
length = my_judge:judge_length
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
    parts = re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in parts] == ["my_source.py", "my_judge.py"]
    for name, text in parts:
        (folder / name).write_text(text)
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
    (other / "entry_points.txt").write_text("[quarry.sources]\nbm25 = my_source:mine_longest\n")
    refused = quarry(tmp_path, tmp_path, "mine", "bm25")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "other registers 'bm25' in quarry.sources, which is taken" in refused.stderr
