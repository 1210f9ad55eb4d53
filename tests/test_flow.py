"""The whole flow through the command line, on a small BEIR folder with a tiny encoder; and the
same flow killed at every turn.
"""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy import DOCUMENT_TEXTS, GOLD, QUERY_TEXTS

FOLDERS = {
    "ingest": "1_tables",
    "index": "2_index",
    "mine": "3_candidates",
    "judge": "4_judgments",
    "select": "5_sets",
    "score": "6_metrics",
    "export": "8_export",
}
KILLER = Path(__file__).parent / "killer.py"
# a copy of q1's positive, and q3's own text
COPIES = {"d13": DOCUMENT_TEXTS["d01"], "d14": ("", "is glass liquid")}


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beir")
    (folder / "qrels").mkdir()
    documents = [
        {"_id": doc_id, "title": title, "text": text}
        for doc_id, (title, text) in (DOCUMENT_TEXTS | COPIES).items()
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "queries.jsonl").write_text(
        "".join(
            json.dumps({"_id": name, "text": text}) + "\n" for name, text in QUERY_TEXTS.items()
        )
    )
    rows = [f"{query_id}\t{doc_id}\t1\n" for query_id, gold in GOLD.items() for doc_id in gold]
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def config(beir, encoder):
    file = beir / "quarry.toml"
    file.write_text(f"""
[ingest.beir]
folder = "{beir}"
shard-queries = 2
shard-documents = 5
[mine.bm25]
k = 4
[mine.dense]
k = 4
[mine.random]
k = 4
[index.dense]
encoder = "{encoder}"
dtype = "fp32"
[select.dense]
from = "dense:4"
[select."bm25+dense"]
from = ["bm25:4", "dense:4"]
[select.random]
from = ["random"]
[score]
resamples = 50
[report]
examples = 3
[export.dense]
format = "labeled-list"
""")
    return file


def quarry(*words, killed=()):
    command = (
        [sys.executable, str(KILLER), *map(str, killed)]
        if killed
        else [sys.executable, "-m", "cli.main"]
    )
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, check=False)


def contents(folder):
    """Every byte that a run wrote, but for what a manifest says of time and memory, and pages
    that show it.
    """
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.name == "_manifest.json":
            facts = json.loads(file.read_text())
            found[name] = {
                key: value
                for key, value in facts.items()
                if key not in ("seconds", "peak_memory_mb", "resumed_shards")
            }
        elif file.is_file() and file.name not in (".lock", "report.html", "report.json"):
            found[name] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = quarry("-r", folder, "--config", config, "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {folder}/7_report/report.html"
    return folder


def test_every_stage_leaves_its_tables(whole):
    found = {file.parent.relative_to(whole).as_posix() for file in whole.rglob("_manifest.json")}
    assert {
        "1_tables",
        "2_index/bm25",
        "2_index/dense",
        "3_candidates/bm25",
        "3_candidates/dense",
        "3_candidates/random",
        "4_judgments/similarity",
        "4_judgments/duplicates",
        "5_sets/dense",
        "5_sets/bm25+dense",
        "5_sets/random",
        "7_report",
        "8_export/dense.labeled-list",
    } <= found
    metrics = pq.read_table(whole / "6_metrics").to_pylist()
    assert {"dense", "bm25+dense", "random", "bm25"} == {row["set_name"] for row in metrics}
    sets = {row["set_name"] for row in metrics if row["measure"] == "eci_v1"}
    assert sets == {"dense", "bm25+dense", "random"}
    assert "<html" in (whole / "7_report/report.html").read_text()[:500]


def test_no_positive_no_copy_and_no_query_becomes_a_negative(whole):
    for name in ("dense", "bm25+dense", "random"):
        pairs = {
            (row["query_id"], row["doc_id"])
            for row in pq.read_table(whole / "5_sets" / name).to_pylist()
        }
        assert pairs and not pairs & {
            (query_id, doc_id) for query_id, gold in GOLD.items() for doc_id in gold
        }
        assert ("q1", "d13") not in pairs and ("q3", "d14") not in pairs
    rejected = pq.read_table(whole / "5_sets/bm25+dense/_rejected").to_pylist()
    assert {(row["query_id"], row["doc_id"], row["reason"]) for row in rejected} >= {
        ("q1", "d13", "same_text"),
        ("q3", "d14", "equals_query"),
    }


def test_a_second_run_does_nothing(whole, config):
    before = contents(whole)
    done = quarry("-r", whole, "--config", config, "run", "--to", "score", "--json")
    assert all(stage["skipped"] for stage in json.loads(done.stdout)["stages"])
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("killed", "stage"),
    [
        (("before", 2), "ingest"),
        (("after", 5), "ingest"),
        (("before", 3), "index"),
        (("after", 5), "index"),
        (("before", 2), "mine"),
        (("after", 3), "mine"),
        (("before", 3), "judge"),
        (("after", 5), "judge"),
        (("before", 4), "select"),
        (("after", 6), "select"),
        (("before", 3), "score"),
        (("after", 6), "score"),
        (("before", 2), "export"),
    ],
)
def test_killed_and_repeated_it_is_byte_identical(whole, config, tmp_path, killed, stage):
    folder = tmp_path / "run"
    later = [
        path for path in whole.iterdir() if path.name[0].isdigit() and path.name >= FOLDERS[stage]
    ]
    shutil.copytree(
        whole,
        folder,
        ignore=lambda parent, names: [path.name for path in later if path.parent == Path(parent)],
    )
    only = ("-r", folder, "--config", config, "run", "--from", stage, "--to", stage)
    assert quarry(*only, killed=killed).returncode == -signal.SIGKILL
    made = {
        name: content for name, content in contents(whole).items() if name < FOLDERS[stage] + "~"
    }
    assert contents(folder) != made  # the kill came before the stage was done
    again = quarry(*only, "--workers", "2" if killed == ("after", 3) else "1")
    assert again.returncode == 0, again.stderr
    assert contents(folder) == made
