import json
from collections import Counter

import numpy as np
import pytest
from llm_server import llm_server, logit
from toy import FOUND, GOLD, Toy, rows, toy_run, write_source

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.llm.prompts import fill_in, load_judge_prompt, shorten
from scoring.judge.llm import JudgeLlm, judge_llm, preview_llm
from scoring.recipe import Select
from scoring.select import select

pytestmark = pytest.mark.usefixtures("short_waits")


def judge(run, server, force=False, **options):
    return judge_llm(run, JudgeLlm(server=server.url, **options), How(force=force))


def said(run, judge="llm", name="llm"):
    found = rows(
        run, f"4_judgments/{name}", "query_id", "doc_id", "judge", "score", "verdict", "reason"
    )
    return {row[:2]: row[3:] for row in found if row[2] == judge}


def votes(run, query_id, doc_id, count, model="tiny", words=400):
    """p(yes) by the formula, of each wording."""
    prompt, corpus, texts = (
        load_judge_prompt("judge"),
        Corpus(run),
        dict(rows(run, "1_tables/queries", "query_id", "text")),
    )
    fields = {
        "query": texts[query_id],
        "document": shorten(corpus.texts(corpus.rows([doc_id]))[0], words),
    }
    difference = [logit(model, fill_in(template, fields)) for template in prompt.templates[:count]]
    return [np.exp(-1.0) / (np.exp(-1.0) + np.exp(-1.0 - value)) for value in difference]


def test_p_yes_is_the_mean_over_wordings_and_flips_are_those_against_it(tmp_path):
    run = toy_run(tmp_path / "run")
    with llm_server() as server:
        manifest = judge(run, server, max_words=4)
    found, flips = said(run), said(run, "llm.flips")
    random = {(query, doc) for query, doc in rows(run, "3_candidates/random", "query_id", "doc_id")}
    wanted = {(q, d) for source in FOUND.values() for q, docs in source.items() for d in docs} | {
        (q, d) for q in GOLD for d in GOLD[q]
    }
    assert set(found) == set(flips) == wanted | random
    for (query_id, doc_id), (score, verdict, reason) in found.items():
        each = votes(run, query_id, doc_id, 3, words=4)
        assert score == pytest.approx(np.mean(each), abs=1e-6)
        assert flips[query_id, doc_id][0] == pytest.approx(
            np.mean([(vote >= 0.5) != (np.mean(each) >= 0.5) for vote in each])
        )
        relevant = "promote" if score >= 0.9 else "drop" if score >= 0.5 else "keep"
        assert verdict == (None if doc_id in GOLD[query_id] else relevant)
        assert reason == ("answers" if verdict in ("drop", "promote") else None)
    assert manifest.facts["flip_rate"] == pytest.approx(
        np.mean([value for value, *_ in flips.values()]), abs=1e-4
    )
    assert len(server.received) == 3 * len(found)
    assert all(
        json.loads(key)["max_tokens"] == 1 and json.loads(key)["logprob_token_ids"] == [7, 8]
        for key, _ in server.received
    )


def test_the_large_model_is_asked_only_where_the_small_one_is_not_sure(tmp_path):
    run = toy_run(tmp_path / "run")
    with llm_server() as server:
        judge(run, server, llm=("tiny", "large"), votes=1, sure=0.2)
    found, first = said(run), said(run, "llm.first")
    unsure = {pair for pair, (score, *_) in first.items() if 0.2 < score < 0.8}
    assert 0 < len(unsure) < len(first)
    for pair, (score, *_) in found.items():
        assert score == pytest.approx(
            votes(run, *pair, 1, "large" if pair in unsure else "tiny")[0], abs=1e-6
        )
    models = [json.loads(key)["model"] for key, _ in server.received]
    assert Counter(models) == {"tiny": len(found), "large": len(unsure)}
    # all shards with the small one first: each model is loaded once
    assert models == sorted(models, reverse=True)


def test_another_source_asks_for_its_new_pairs_alone(tmp_path):
    run = toy_run(tmp_path / "run", candidates={"bm25": FOUND["bm25"]}, similarity=None)
    afresh = toy_run(tmp_path / "afresh", similarity=None)
    with llm_server() as server:
        judge(run, server, votes=1)
        before, known = len(server.received), set(said(run))
        write_source(run, Toy(), "dense")
        judge(run, server, votes=1)
        assert len(server.received) - before == len(set(said(run)) - known)
        judge(afresh, server, votes=1)
    assert said(run) == said(afresh)


def test_a_budget_of_pairs_takes_the_best_ranks(tmp_path):
    run = toy_run(tmp_path / "run")
    with llm_server() as server:
        manifest = judge(run, server, max_pairs_per_query=1, votes=1)
    found = said(run)
    scored = {pair for pair, (score, *_) in found.items() if score is not None}
    assert {(q, d) for q in GOLD for d in GOLD[q]} <= scored and len(scored) <= sum(
        map(len, GOLD.values())
    ) + len(GOLD)
    assert {reason for score, _, reason in found.values() if score is None} == {"over_budget"}
    assert manifest.drops == {"over_budget": len(found) - len(scored)}


def test_what_fails_has_no_score_and_is_counted(tmp_path):
    run = toy_run(tmp_path / "run")
    with llm_server({"which metal": ["400"] * 99}) as server:
        manifest = judge(run, server, votes=1)
    found = said(run)
    assert {reason for (query, _), (score, _, reason) in found.items() if score is None} == {
        "rejected"
    }
    assert {query for (query, _), (score, *_) in found.items() if score is None} == {"q1"}
    assert manifest.drops == {"rejected": sum(query == "q1" for query, _ in found)}


def test_select_leaves_out_what_the_judge_calls_relevant(tmp_path):
    run = toy_run(tmp_path / "run")
    with llm_server() as server:
        judge(run, server)
    select(run, Select(name="s", sources=("bm25", "dense"), judge="llm", max_score=1.0), How())
    verdicts = {pair: verdict for pair, (_, verdict, _) in said(run).items()}
    kept = rows(run, "5_sets/s", "query_id", "doc_id")
    assert kept and {verdicts[pair] for pair in kept} == {"keep"}
    reasons = Counter(reason for (reason,) in rows(run, "5_sets/s/_rejected", "reason"))
    relevant = {pair for pair, verdict in verdicts.items() if verdict in ("drop", "promote")}
    mined = {(q, d) for source in FOUND.values() for q, docs in source.items() for d in docs}
    assert reasons["answers:llm"] == len(relevant & mined) > 0
    select(run, Select(name="p", sources=("bm25", "dense"), judge="llm", promote=("llm",)), How())
    promoted = set(rows(run, "5_sets/p/_promoted", "query_id", "doc_id"))
    assert promoted == {pair for pair in mined if verdicts[pair] == "promote"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"votes": 9}, "--votes is 9, but prompt judge@2 has 5 wordings"),
        ({"drop_at": 0.8, "promote_at": 0.7}, "--promote-at 0.7 is below"),
        ({"name": "similarity"}, "is the name of another judge"),
        ({"name": "a.b"}, "holds a dot"),
        ({"prompt": "rewrite"}, "rewrite.toml"),
    ],
)
def test_mistakes_are_one_line(tmp_path, options, message):
    with llm_server() as server, pytest.raises(UserError, match=message):
        judge(toy_run(tmp_path / "run"), server, **options)


def test_a_label_of_two_tokens_is_refused(tmp_path):
    with llm_server() as server, pytest.raises(UserError, match="'No' is 2 tokens for tiny"):
        server.tokens = {"Yes": [7], "No": [8, 9]}
        judge(toy_run(tmp_path / "run"), server)


def test_a_dry_run_of_the_judge_counts_every_wording_of_every_pair(tmp_path, monkeypatch):
    monkeypatch.setattr("miner.llm.estimate.SAMPLE", 4)
    run = toy_run(tmp_path / "run")
    with llm_server() as server:
        told = preview_llm(run, JudgeLlm(server=server.url, votes=2, max_pairs_per_query=2))
        assert told["answered"] == 0 and len(server.received) == 4
        made = judge(run, server, votes=2, max_pairs_per_query=2)
        assert len(server.received) <= told["requests"]
    scored = sum(score is not None for score, *_ in said(run).values())
    assert told["requests"] == 2 * scored and made.stage == "4_judgments/llm"
