"""The real vLLM, in process and as a server, with a tiny random Llama made on the spot: `make
test-vllm`. Nothing here is a mock.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from serving import serving, vllm_command
from tiny_llama import save_llama
from toy import GOLD, rows, toy_run

pytestmark = pytest.mark.vllm
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
OPTIONS = ("dtype=float32", "enforce_eager=true", "max_model_len=2048", "max_num_seqs=32")
# A random model writes no sentence, but structured outputs let it choose between some.
PATTERN = (
    "the (old|new|red|cold) (boat|barn|road|lamp) stood (near|behind|above) the"
    " (hill|lake|wall|town) all (day|night|year)"
)
OWN = f"""
name = "sentence"
version = 1
system = "Write a sentence."
template = "<query>{{{{ query }}}}</query><passage>{{{{ positive }}}}</passage>"
[schema]
type = "object"
required = ["text"]
additionalProperties = false
[schema.properties.text]
type = "string"
pattern = "^{PATTERN}$"
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"), longest=2048)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompt") / "own.toml"
    file.write_text(OWN)
    return file


@pytest.fixture(scope="module")
def server(llama, tmp_path_factory):
    """vLLM's own server on loopback."""
    with serving(vllm_command(llama), tmp_path_factory.mktemp("server") / "log") as url:
        yield url


def quarry(run, *words):
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "-r", str(run.path), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        timeout=900,  # an engine that is not ended keeps Python waiting for ever
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def in_process(llama):
    return ["--llm", llama, *(word for option in OPTIONS for word in ("--llm-option", option))]


@pytest.fixture(scope="module")
def made(llama, own, server, tmp_path_factory):
    """The same run made twice: with vLLM in the process, and with its server."""
    runs = {}
    for name, door in (
        ("process", in_process(llama)),
        ("server", ["--server", server, "--timeout", 300]),
    ):
        runs[name] = toy_run(tmp_path_factory.mktemp(name) / "run")
        quarry(runs[name], "mine", "generate", "-k", 2, "--prompt", own, *door)
        runs[f"{name} said"] = json.loads(
            quarry(runs[name], "judge", "llm", "--votes", 2, "--json", *door)
        )
    return runs


@pytest.mark.parametrize("name", ["process", "server"])
def test_generated_texts_meet_the_schema(made, name):
    import re

    texts = [text for (text,) in rows(made[name], "3_candidates/generate/_documents", "text")]
    assert len(texts) >= 8 and all(re.fullmatch(PATTERN, text) for text in texts)
    assert (
        Counter(query for (query,) in rows(made[name], "3_candidates/generate", "query_id")).keys()
        == GOLD.keys()
    )
    detail = rows(made[name], "3_candidates/generate/_documents", "detail")[0][0]
    assert detail["prompt"] == "sentence@1" and detail["model"]


def test_the_judge_says_the_same_in_process_and_by_the_server(made):
    said = [
        {
            row[:3]: row[3]
            for row in rows(made[name], "4_judgments/llm", "query_id", "doc_id", "judge", "score")
            if row[2] == "llm"
        }
        for name in ("process", "server")
    ]
    shared = sorted(set(said[0]) & set(said[1]))
    assert len(shared) >= 30  # pairs of the toy's own documents at least
    first, second = (np.array([scores[pair] for pair in shared]) for scores in said)
    assert np.isfinite(first).all() and ((first > 0) & (first < 1)).all() and first.std() > 0
    np.testing.assert_allclose(first, second, atol=1e-3)
    assert {made["process said"]["facts"]["votes"], made["server said"]["facts"]["votes"]} == {2}
    assert 0 <= made["process said"]["facts"]["flip_rate"] <= 1


def test_the_judge_is_what_transformers_computes(made, llama):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from miner.corpus import Corpus
    from miner.llm.prompts import fill_in, load_judge_prompt

    run, prompt = made["process"], load_judge_prompt("judge")
    tokenizer, model = (
        AutoTokenizer.from_pretrained(llama),
        AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval(),
    )
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    corpus, texts = Corpus(run), dict(rows(run, "1_tables/queries", "query_id", "text"))
    scores = [
        row
        for row in rows(run, "4_judgments/llm", "query_id", "doc_id", "judge", "score")
        if row[2] == "llm" and row[1][0] == "d"
    ]
    for query_id, doc_id, _, score in scores[::7]:
        document, votes = corpus.texts(corpus.rows([doc_id]))[0], []
        for template in prompt.templates[:2]:
            user = fill_in(template, {"query": texts[query_id], "document": document})
            chat = [{"role": "system", "content": prompt.system}, {"role": "user", "content": user}]
            ids = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
            with torch.no_grad():
                logits = model(ids).logits[0, -1].double()
            votes.append(torch.sigmoid(logits[yes] - logits[no]).item())
        assert score == pytest.approx(np.mean(votes), abs=1e-3)


def test_the_flow_ends_in_a_scored_set(made, encoder):
    run = made["server"]
    quarry(run, "judge", "duplicates")
    quarry(run, "select", "made", "--from", "generate", "--judge", "llm", "--max-score", "1")
    kept = rows(run, "5_sets/made", "query_id", "doc_id", "sources")
    verdicts = {
        row[:2]: row[2]
        for row in rows(run, "4_judgments/llm", "query_id", "doc_id", "verdict", "judge")
        if row[3] == "llm"
    }
    assert all(verdicts[row[:2]] == "keep" for row in kept)
    assert len(kept) + len(rows(run, "5_sets/made/_rejected", "query_id")) >= 8
    quarry(run, "judge", "similarity", "--encoder", encoder, "--force")
    quarry(run, "select", "all", "--from", "generate")
    quarry(run, "score", "--resamples", "20")
    measures = {row[1]: row[2] for row in rows_of_metrics(run) if row[0] == "all"}
    assert np.isfinite(measures["eci_v1"])
    quarry(run, "report")
    assert "stood" in (run.path / "7_report/report.html").read_text()


def rows_of_metrics(run):
    return [
        (row["set_name"], row["measure"], row["value"])
        for row in pq.read_table(run.path / "6_metrics").to_pylist()
    ]


def test_substitute_with_the_llm_rewriter(server, tmp_path):
    captions = {
        "c1": "A brown dog sleeps on a wooden bench.",
        "c2": "Two children eat pizza at a table.",
        "c3": "A bird sits on a branch.",
    }
    run = toy_run(
        tmp_path / "run",
        documents={f"d{name}": ("", text) for name, text in captions.items()},
        queries=captions,
        positives={name: [f"d{name}"] for name in captions},
        candidates={},
        similarity=None,
    )
    file = tmp_path / "own.toml"
    places = (
        " | ".join(captions.values())
        .replace("dog", "(horse|cow)")
        .replace("pizza", "(soup|bread)")
        .replace("bird", "(bat|wasp)")
    )
    pattern = "|".join(f"({text[:-1]}\\\\.)" for text in places.split(" | "))
    file.write_text(
        OWN.replace(PATTERN, pattern).replace(
            "<query>{{ query }}</query><passage>{{ positive }}</passage>", "{{ text }} {{ word }}"
        )
    )
    options = [
        "--rewriter",
        "llm",
        "--prompt",
        file,
        "--server",
        server,
        "--timeout",
        300,
        "--retries",
        4,
        "--top",
        1,
    ]
    said = json.loads(quarry(run, "mine", "substitute", "--json", *options))["stages"][1]
    details = [detail for (detail,) in rows(run, "3_candidates/substitute/_documents", "detail")]
    assert said["rows"]["candidates"] == len(details)
    asked = len(details) + sum(said["drops"].values())
    assert asked == len(captions)  # each text is there, or counted by its reason
    assert set(said["facts"]["failed_answers"]) <= {
        "other_change",
        "other_word",
        "word_kept",
        "word_missing",
        "copy_of_positive",
        "length",
        "truncated",  # this tokenizer's tokens are letters
    }
    assert all(
        detail["new"] and detail["new"] != detail["old"] and detail["route"] == "O"
        for detail in details
    )


def test_the_engine_takes_many_long_seeded_requests_at_once(llama):
    """More tokens than one step takes: on a CPU vLLM ends when a seeded prompt is split over
    steps, so none may be.
    """
    from miner.llm.requests import Budget, Request
    from miner.llm.vllm_engine import VllmEngine

    engine, answers = (
        VllmEngine(llama, ["dtype=float32", "enforce_eager=true", "max_model_len=2048"], False),
        {},
    )
    long = [
        Request(
            "s " * 300, f"{'u' * 400} {place}", "p@1", temperature=0.8, max_tokens=8, seed=place % 2
        )
        for place in range(40)
    ]
    asked = [
        *long,
        long[0],
        Request("s", "x" * 3000, "p@1", max_tokens=8),
        Request("s", "u", "p@1", labels=("Yes", "No")),
    ]
    try:
        engine.generate(asked, answers.__setitem__, Budget(None, None))
        assert sorted(answers) == list(range(43))
        assert (
            answers[41].error == "too_long"
            and len(answers[42].scores) == 2
            and answers[42].text == ""
        )
        # by seed: the tiny model hardly reads the prompt
        assert answers[0].text == answers[40].text and answers[0].text != answers[1].text
        answers.clear()
        engine.generate(asked[:10], answers.__setitem__, Budget(3, None))
        assert sorted(answers) == [0, 1, 2]
    finally:
        engine.close()


def test_a_cheap_model_first_and_a_budget(llama, server, tmp_path):
    run = toy_run(tmp_path / "run")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cli.main",
            "-r",
            str(run.path),
            "judge",
            "llm",
            "--server",
            server,
            "--max-requests",
            "3",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (
        done.returncode == 2
        and "the budget is spent (3 requests" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    quarry(
        run,
        "judge",
        "llm",
        "--name",
        "cascade",
        "--server",
        server,
        "--llm",
        "tiny",
        "--llm",
        "tiny",
        "--votes",
        "1",
        "--sure",
        "0.4",
    )
    judges = Counter(judge for (judge,) in rows(run, "4_judgments/cascade", "judge"))
    assert judges["cascade"] == judges["cascade.first"] == judges["cascade.flips"] > 0
