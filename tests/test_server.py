"""What servers can do differs: ways to score labels, structured outputs, redirects, waits."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from llm_server import LEAST, llm_server, logit
from test_generate import generate
from test_llm_judge import judge, said
from toy import rows, toy_run

from miner.corpus import Corpus
from miner.errors import UserError
from miner.llm import connection
from miner.llm.client import _LOADED, _served
from miner.llm.labels import EXACT, TEXT, TOP, UNSAID, text_scores, top_scores
from miner.llm.prompts import fill_in, load_judge_prompt, shorten

pytestmark = pytest.mark.usefixtures("short_waits")
KEY = "sk-never-to-be-written-0123456789"
OPENAI = {"ids": False, "template": False}
BY_TEXT = {"ids": False, "top": 0}


def logits_of(run, query_id, doc_id, count):
    """What the fake server's model makes of each wording."""
    prompt, corpus = load_judge_prompt("judge"), Corpus(run)
    texts = dict(rows(run, "1_tables/queries", "query_id", "text"))
    document = shorten(corpus.texts(corpus.rows([doc_id]))[0], 400)
    fields = {"query": texts[query_id], "document": document}
    return [logit("tiny", fill_in(template, fields)) for template in prompt.templates[:count]]


@pytest.mark.parametrize(
    ("can", "way", "probes"),
    [
        ({}, EXACT, 1),
        ({"ids": False}, TOP, 1),
        (OPENAI, TOP, 2),
        ({"ids": False, "top": 5, "template": False}, TOP, 4),
        (BY_TEXT, TEXT, 5),
        ({"ids": False, "top": 0, "template": False}, TEXT, 6),
    ],
)
def test_a_server_is_asked_once_how_it_scores_and_then_that_way(tmp_path, can, way, probes):
    run = toy_run(tmp_path / "run")
    with llm_server(can=can) as server:
        manifest = judge(run, server, votes=1)
        assert manifest.facts["scores"] == way and len(server.probes) == probes
        last = server.probes[-1]
        for key, _ in server.received:
            sent = json.loads(key)
            assert sent | {"messages": 0} == last | {"messages": 0}
    assert len(server.received) == len(said(run))


def test_p_from_the_top_tokens_is_that_of_the_words_or_a_bound(tmp_path):
    run, exact = toy_run(tmp_path / "run"), toy_run(tmp_path / "exact")
    with llm_server(can=OPENAI) as server:
        judge(run, server, votes=2)
    with llm_server() as server:
        judge(exact, server, votes=2)
    bounded, scores = 0, {pair: row[0] for pair, row in said(exact).items()}
    for pair, (score, *_) in said(run).items():
        values = logits_of(run, *pair, 2)
        # a No below the least that is told has that as a bound
        p = [1 / (1 + np.exp(max(-value, LEAST + 1.0))) for value in values]
        assert score == pytest.approx(np.mean(p), abs=1e-6)
        bounded += any(-1 - value < LEAST for value in values)
        if all(-1 - value >= LEAST for value in values):
            assert score == pytest.approx(scores[pair], abs=1e-6)
    assert 0 < bounded < len(scores)


def test_p_from_texts_is_the_share_of_wordings_that_say_yes(tmp_path):
    run = toy_run(tmp_path / "run")
    with llm_server(can=BY_TEXT) as server:
        manifest = judge(run, server, votes=3)
        asked = len(server.received)
        judge(run, server, votes=3, force=True)
        assert len(server.received) == asked  # an answer that names no label is one, too
    unclear = 0
    for pair, (score, _, reason) in said(run).items():
        values = logits_of(run, *pair, 3)
        if any(abs(value) < 0.5 for value in values):
            assert score is None and reason == "no_label"
            unclear += 1
        else:
            assert score == pytest.approx(np.mean([value > 0 for value in values]), abs=1e-6)
    assert 0 < unclear < len(said(run)) and manifest.drops == {"no_label": unclear}


def test_answers_of_one_way_are_never_taken_for_those_of_another(tmp_path):
    run = toy_run(tmp_path / "run")
    with llm_server(can=BY_TEXT) as server:
        judge(run, server, votes=1)
        asked = len(server.received)
        server.can |= {"top": 20}
        with pytest.raises(UserError, match="was made by another model"):
            judge(run, server, votes=1)
        judge(run, server, votes=1, force=True)
        assert len(server.received) == 2 * asked
        server.can |= {"top": 0}
        assert judge(run, server, votes=1, force=True).facts["scores"] == TEXT
        assert len(server.received) == 2 * asked


def test_what_was_judged_by_text_is_skipped_though_the_server_is_away(tmp_path, caplog):
    run = toy_run(tmp_path / "run")
    with llm_server(can=BY_TEXT) as server:
        judge(run, server, votes=1)
    _served.cache_clear()  # as in another process
    _LOADED.clear()
    assert judge(run, server, votes=1).skipped and "taking it to serve tiny" in caplog.text


def test_a_server_that_fails_when_it_is_asked_how_it_scores(tmp_path):
    run = toy_run(tmp_path / "run")
    with llm_server({"probe": ["500"]}) as server:
        with pytest.raises(UserError, match=r"does not answer for model 'tiny' \(server_error\)"):
            judge(run, server, votes=1, attempts=2)
        assert len(server.probes) == 2 and not server.received
        server.faults = {"probe": ["400"]}
        with pytest.raises(UserError, match=r"\(rejected\) .*as ordered: 400"):
            judge(run, server, votes=1)


@pytest.mark.parametrize(
    ("top", "scores"),
    [
        ([("Yes", -0.5), ("No", -1.5)], (-0.5, -1.5)),
        ([("\u0120YES", -1.0), ("\u2581yes", -1.0), ("NO", -3.0)], (-1 + np.log(2), -3.0)),
        ([("no", -0.1), ("Not", -3.0), ("Yesterday", -4.0)], (-4.0, -0.1)),
        ([("<think>", -0.1), ("The", -3.0)], None),
    ],
)
def test_tokens_are_matched_as_words(top, scores):
    assert top_scores(top, ["Yes", "No"]) == (scores and pytest.approx(scores))


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("Yes", (0.0, UNSAID)),
        (" **no**.", (UNSAID, 0.0)),
        ("_YES!_ It is", (0.0, UNSAID)),
        ("<think>\n\n</think>\n\nNo", (UNSAID, 0.0)),
        ("Nothing in it", None),
        ("The answer is yes", None),
        ("<think> No", None),
        ("", None),
    ],
)
def test_texts_are_read_by_their_first_word(text, scores):
    assert text_scores(text, ["Yes", "No"]) == scores


@pytest.mark.parametrize("formats", [("json_schema",), ("json_object",), ()])
def test_structured_outputs_as_far_as_the_server_has_them(tmp_path, formats, caplog):
    run = toy_run(tmp_path / "run")
    with llm_server(can={"formats": formats}) as server:
        manifest = generate(run, server, k=2, timeout=30)  # none is to come twice
    kinds = {json.loads(key).get("response_format", {}).get("type") for key, _ in server.received}
    assert kinds == {formats[0] if formats else None} and len(server.received) == 10
    assert manifest.rows["candidates"] == 10
    assert ("refuses response_format json_schema" in caplog.text) == (formats != ("json_schema",))


def test_a_busy_server_settles_no_format(tmp_path):
    run = toy_run(tmp_path / "run", shard_queries=5)
    with llm_server({"probe": ["500"]}) as server:
        generate(run, server, attempts=1)
        assert len(server.probes) == 1 and len(server.received) == 5
        server.faults = {}
        generate(run, server, k=2, force=True, attempts=1)
    assert len(server.probes) == 2 and len(server.received) == 10


def test_the_key_goes_to_the_server_alone_and_stands_nowhere(tmp_path, monkeypatch):
    """The command line as a process: run folder, stdout and stderr."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    run, printed = toy_run(tmp_path / "run"), []

    def quarry(server, *words):
        command = [sys.executable, "-m", "cli.main", "-r", str(run.path), *words]
        done = subprocess.run(
            [*command, "--server", server.url, "--attempts", "2", "--timeout", "5"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
        )
        printed.append(done.stdout + done.stderr)
        return done.returncode

    with llm_server(can=OPENAI) as server, llm_server() as other:
        assert quarry(server, "mine", "generate") == 0
        assert quarry(server, "judge", "llm", "--votes", "1") == 0
        server.elsewhere = other.url.removesuffix("/v1")
        assert quarry(server, "mine", "generate", "--name", "more", "--seed", "1") == 2
        assert f"redirects to {server.elsewhere}" in printed[-1]
        server.elsewhere, server.faults = None, {"": [f"says {KEY}"] * 999}
        assert quarry(server, "mine", "generate", "--name", "told", "--seed", "2") == 0
        server.faults = {"": [f"401 {KEY}"] * 999}
        assert quarry(server, "mine", "generate", "--name", "wrong", "--seed", "3") == 2
        assert "answers 401" in printed[-1] and "[key]" in printed[-1]
    assert set(server.keys) == {f"Bearer {KEY}"} and other.keys == []
    written = b"".join(file.read_bytes() for file in run.path.rglob("*") if file.is_file())
    assert KEY not in "".join(printed) and KEY.encode() not in written and b"[key]" in written


def test_a_redirect_within_the_server_is_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with llm_server() as server:
        server.url = server.url.replace("/v1", "/moved/v1")
        manifest = generate(toy_run(tmp_path / "run"), server)
        assert manifest.rows["candidates"] == 5 and server.hops > 5


@pytest.mark.parametrize("key", ["sk-0123456789\nX-More: 1", "sk-0123456789\u20ac"])
def test_a_key_that_no_header_can_hold_is_not_shown(tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with llm_server() as server, pytest.raises(UserError, match="no key has") as caught:
        generate(toy_run(tmp_path / "run"), server)
    assert "0123" not in str(caught.value) and server.keys == []


def test_waits_are_asked_for_in_seconds_or_by_date():
    soon = datetime.now(UTC) + timedelta(seconds=9)
    assert 7 < connection.seconds(format_datetime(soon, usegmt=True)) <= 9
    assert 7 < connection.seconds(format_datetime(soon.replace(tzinfo=None))) <= 9  # "-0000"
    assert connection.seconds(format_datetime(soon - timedelta(hours=1), usegmt=True)) == 0
    assert connection.seconds(format_datetime(soon + timedelta(hours=1))) == 30
    assert [connection.seconds(text) for text in ("2.5", "99", "-1", "soon", "", None)] == [
        2.5,
        30,
        0,
        0,
        0,
        0,
    ]
    assert connection.seconds("nan") == 30


def test_a_server_without_a_list_of_models_has_the_one_that_is_named(tmp_path):
    run = toy_run(tmp_path / "run")
    with llm_server() as server:
        server.models = None
        with pytest.raises(UserError, match="answers 404 when asked for its models"):
            generate(run, server)
        assert generate(run, server, llm="tiny").rows["candidates"] == 5
