"""The judge through two real servers, vLLM's and `transformers serve`, of one tiny model that says
Yes and No: `make test-vllm`. Nothing here is a mock.
"""

import os
import shutil

import numpy as np
import pytest
from serving import serving, transformers_command, vllm_command
from test_generate import generate
from test_llm_judge import judge, said
from tiny_llama import make_judge, save_llama
from toy import DOCUMENT_TEXTS, QUERY_TEXTS, rows, toy_run

from miner.llm import server as server_module
from miner.llm.labels import EXACT, TEXT, TOP, WAYS
from miner.llm.prompts import fill_in, load_judge_prompt
from miner.llm.requests import Request

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("short_waits")]
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
PATIENT = {"timeout": 300.0, "concurrency": 4}
VOTES = 2


class Url:
    def __init__(self, url):
        self.url = url


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    prompt = load_judge_prompt("judge")
    chats = [
        Request(prompt.system, fill_in(template, {"query": query, "document": document}), "p")
        for query in QUERY_TEXTS.values()
        for document in map(" ".join, DOCUMENT_TEXTS.values())
        for template in prompt.templates[:VOTES]
    ]
    folder = save_llama(tmp_path_factory.mktemp("judge"), longest=2048)
    return make_judge(folder, [chat.messages() for chat in chats])


@pytest.fixture(scope="module")
def vllm(model, tmp_path_factory):
    with serving(vllm_command(model), tmp_path_factory.mktemp("vllm") / "log") as url:
        yield Url(url)


@pytest.fixture(scope="module")
def transformers(model, tmp_path_factory):
    """It lists what lies in its hub cache."""
    home, commit = tmp_path_factory.mktemp("home"), "a" * 40
    held = home / "hub/models--tests--judge"
    shutil.copytree(model, held / "snapshots" / commit)
    (held / "refs").mkdir()
    (held / "refs/main").write_text(commit)
    settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command, log = transformers_command("tests/judge"), home / "log"
    with serving(command, log, **settings) as url:
        yield Url(url)


@pytest.fixture(scope="module")
def exact(vllm, tmp_path_factory):
    """By the two words themselves: scores of each wording, and the run's manifest."""
    return judged(tmp_path_factory.mktemp("exact"), vllm, votes=1), judged(
        tmp_path_factory.mktemp("mean"), vllm, votes=VOTES
    )


def judged(folder, server, **options):
    run = toy_run(folder / "run")
    manifest = judge(run, server, **PATIENT, **options)
    return {pair: row[0] for pair, row in said(run).items()}, manifest


def test_top_log_probabilities_of_vllm_are_those_of_the_words(vllm, exact, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "WAYS", WAYS[1:])  # as if it had no /tokenize
    scores, manifest = judged(tmp_path, vllm, votes=VOTES)
    wanted, exactly = exact[1]
    assert (manifest.facts["scores"], exactly.facts["scores"]) == (TOP, EXACT)
    assert scores.keys() == wanted.keys() and manifest.drops == {}
    first, second = (
        np.array([found[pair] for pair in sorted(wanted)]) for found in (scores, wanted)
    )
    assert second.std() > 0.1
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_the_text_of_transformers_serve_is_the_likelier_word(transformers, exact, tmp_path):
    scores, manifest = judged(tmp_path, transformers, votes=1)
    wanted = exact[0][0]
    assert manifest.facts["scores"] == TEXT and manifest.drops == {}
    clear = {pair for pair, score in wanted.items() if abs(score - 0.5) > 1e-3}
    assert len(clear) >= 25
    assert all(scores[pair] == pytest.approx(float(wanted[pair] > 0.5), abs=1e-6) for pair in clear)
    assert {round(score) for score in scores.values()} == {0, 1}


def test_what_transformers_serve_writes_is_checked_here(transformers, tmp_path):
    """It takes no notice of response_format."""
    run = toy_run(tmp_path / "run")
    manifest = generate(run, transformers, retries=0, temperature=0.0, max_tokens=48, **PATIENT)
    assert manifest.rows["candidates"] == 0 and sum(manifest.drops.values()) == 5
    assert "not_schema" in manifest.drops.keys() <= {"not_schema", "empty", "truncated"}
    failed = rows(run, "3_candidates/generate/_failed", "reason", "text")
    assert all(text for reason, text in failed if reason != "empty")
