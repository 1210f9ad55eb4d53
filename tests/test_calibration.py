"""p(yes) fitted to known answers: the formula alone, and in the judge."""

import llm_server as served
import numpy as np
import pytest
from llm_server import llm_server
from toy import DOCUMENT_TEXTS, GOLD, HOW, QUERY_TEXTS, rows, toy_run

from miner.engine import How
from miner.errors import UserError
from scoring.judge.calibration import Scale, calibration_error, fit_scale, logit
from scoring.judge.llm import JudgeLlm, judge_llm

pytestmark = pytest.mark.usefixtures("short_waits")


def test_a_known_scale_is_found_again_and_mends_the_error():
    draw = np.random.default_rng(5)
    truth = Scale(0.5, 1.0, 0)
    said = draw.uniform(0.02, 0.98, 40_000)
    answers = draw.random(40_000) < truth(said)
    # both kinds weigh the same, which moves the offset by the log of their odds
    odds = np.log(answers.mean() / (1 - answers.mean()))
    found = fit_scale(said, answers)
    assert found.temperature == pytest.approx(0.5, rel=0.05)
    assert found.offset == pytest.approx(1.0 - odds, abs=0.1)
    level = Scale(found.temperature, found.offset + odds, 0)
    assert calibration_error(level(said), answers) < 0.02 < calibration_error(said, answers)
    assert logit(np.array([0.0, 1.0])) == pytest.approx([-13.8, 13.8], abs=0.1)


def test_nothing_is_fitted_to_one_kind_or_to_a_judge_that_says_the_contrary():
    said = np.array([0.9, 0.8, 0.1, np.nan])
    assert fit_scale(said, np.array([True, True, True, False])) is None
    assert fit_scale(said, np.array([False, False, True, True])) is None


def speak(monkeypatch, favour):
    """The server's model is in favour of positives by so much, and else says anything."""
    anything = served.logit
    pairs = [(QUERY_TEXTS[query], DOCUMENT_TEXTS[doc][1]) for query in GOLD for doc in GOLD[query]]

    def favouring(model, user):
        known = any(query in user and text in user for query, text in pairs)
        return anything(model, user) / 4 + favour * known

    monkeypatch.setattr(served, "logit", favouring)


def scores(run):
    found = rows(run, "4_judgments/llm", "query_id", "doc_id", "judge", "score", "verdict")
    return {row[:2]: row[3:] for row in found if row[2] == "llm"}


def test_the_judge_fits_a_scale_before_its_verdicts(tmp_path, monkeypatch):
    speak(monkeypatch, 3.5)
    plain, fitted = (toy_run(tmp_path / name) for name in ("plain", "fitted"))
    with llm_server() as server:
        options = JudgeLlm(server=server.url, votes=1)
        judge_llm(plain, options, HOW)
        calibrated = options.model_copy(update={"calibrate": True})
        manifest = judge_llm(fitted, calibrated, HOW)
        asked = len(server.received)
        assert judge_llm(fitted, calibrated, How(force=True)).facts == manifest.facts
        assert len(server.received) == asked  # nothing is asked for twice
    scale = Scale(**manifest.facts["calibration"])
    assert manifest.facts["auc_random"] >= 0.75 and "warnings" not in manifest.facts
    assert scale.temperature > 0 and scale.pairs >= 2 * len(GOLD) - 2
    raw = scores(plain)
    for pair, (score, verdict) in scores(fitted).items():
        assert score == pytest.approx(float(scale(np.array([raw[pair][0]]))[0]), abs=1e-5)
        if verdict:
            known = "promote" if score >= 0.9 else "drop" if score >= 0.5 else "keep"
            assert verdict == known
    assert plain.need("4_judgments/llm", "judge llm").facts.get("calibration") is None


def test_a_judge_that_prefers_random_documents_is_refused(tmp_path, monkeypatch):
    speak(monkeypatch, -8.0)
    run = toy_run(tmp_path / "run")
    with llm_server() as server, pytest.raises(UserError, match="do not trust this judge here"):
        judge_llm(run, JudgeLlm(server=server.url, votes=1, calibrate=True), HOW)
    assert run.find("4_judgments/llm") is None


def test_a_judge_that_cannot_tell_positives_from_random_documents_is_warned_of(
    tmp_path, monkeypatch
):
    speak(monkeypatch, 0.0)
    with llm_server() as server:
        facts = judge_llm(toy_run(tmp_path / "run"), JudgeLlm(server=server.url), HOW).facts
    assert facts["auc_random"] < 0.75 and "do not trust it here" in facts["warnings"][0]
    assert f"only {facts['auc_random']:.0%}".replace("%", " %") in facts["warnings"][0]
