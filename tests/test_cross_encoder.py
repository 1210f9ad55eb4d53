import numpy as np
import pytest
from conftest import make_reranker
from test_rerank import asked_pairs, by_predict, mine
from toy import FOUND, GOLD, Toy, rows, toy_run, write_source

from miner.engine import How
from miner.errors import UserError
from miner.search.random_documents import MineRandom, mine_random
from scoring.judge.cross_encoder import JudgeCrossEncoder, judge_cross_encoder
from scoring.recipe import Select
from scoring.select import select

POSITIVES = {(query_id, doc_id) for query_id, gold in GOLD.items() for doc_id in gold}


@pytest.fixture(scope="module")
def models(reranker, other_reranker):
    """The two tiny models of sentence-transformers, strong and cheap."""
    from sentence_transformers import CrossEncoder

    return (
        CrossEncoder(reranker, device="cpu").eval(),
        CrossEncoder(other_reranker, device="cpu").eval(),
    )


def made(path, random=2, **changes):
    run = toy_run(path, similarity=None, **changes)
    mine_random(run, MineRandom(k=random), How())
    return run


def judge(run, reranker, **options):
    return judge_cross_encoder(
        run, JudgeCrossEncoder(reranker=reranker, dtype="fp32", **options), How()
    )


def judged(run, name="cross-encoder"):
    """{judge: {(query_id, doc_id): (score, verdict, reason)}}"""
    out = {}
    for query_id, doc_id, which, *rest in rows(
        run, f"4_judgments/{name}", "query_id", "doc_id", "judge", "score", "verdict", "reason"
    ):
        assert (query_id, doc_id) not in out.setdefault(which, {})
        out[which][query_id, doc_id] = tuple(rest)
    return out


def found_by(run):
    """{(query_id, doc_id): best rank}; documents that no source scored come after all others."""
    ranks = {}
    for source in run.names("3_candidates"):
        for query_id, doc_id, rank, score in rows(
            run, f"3_candidates/{source}", "query_id", "doc_id", "rank", "score"
        ):
            order = (score is None, rank)
            ranks[query_id, doc_id] = min(ranks.get((query_id, doc_id), order), order)
    return ranks


def within(run, budget, key):
    """The pairs that a budget lets through, by a plain loop."""
    pairs = set(found_by(run)) - POSITIVES
    kept = set(POSITIVES)
    for query_id in GOLD:
        kept |= set(
            sorted(
                (pair for pair in pairs if pair[0] == query_id),
                key=lambda pair: (key(pair), pair[1]),
            )[:budget]
        )
    return kept


def test_every_candidate_and_positive_is_scored_with_no_filter_set(tmp_path, reranker, models):
    run = made(tmp_path)
    manifest, scores = judge(run, reranker), by_predict(run, models[0])
    pairs = set(found_by(run)) | POSITIVES
    assert ("q5", "d12") in pairs  # a positive that no source found
    found = judged(run)
    assert list(found) == ["cross-encoder"]
    assert {pair: score for pair, (score, *_) in found["cross-encoder"].items()} == pytest.approx(
        {pair: scores[pair] for pair in pairs}, abs=1e-5
    )
    assert {tuple(rest) for _, *rest in found["cross-encoder"].values()} == {(None, None)}
    listed = rows(run, "4_judgments/cross-encoder", "query_id", "doc_id", "judge")
    assert listed == sorted(listed)
    facts = {
        "reranker": reranker,
        "dtype": "fp32",
        "activation": "Sigmoid",
        "score_scale": "probability",
    }
    assert manifest.facts.items() >= facts.items() and manifest.drops == {}
    assert judge(run, reranker).skipped


def test_select_takes_its_scores_and_null_is_no_score(tmp_path, reranker):
    run = made(tmp_path)
    judge(run, reranker, max_pairs_per_query=1)
    kept = select(
        run, Select(name="s", sources=("bm25",), judge="cross-encoder", max_score=1.0), How()
    )
    over = {pair for pair, (score, *_) in judged(run)["cross-encoder"].items() if score is None}
    bm25 = {
        (query_id, doc_id) for query_id, found in FOUND["bm25"].items() for doc_id in found
    } - POSITIVES
    assert kept.drops["no_score"] == len(over & bm25) > 0
    assert set(rows(run, "5_sets/s", "query_id", "doc_id")) == bm25 - over


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("budget", [1, 3, 50])
def test_a_budget_by_a_plain_reference(tmp_path, reranker, other_reranker, models, budget, cascade):
    run = made(tmp_path)
    manifest = judge(
        run, reranker, max_pairs_per_query=budget, **({"first": other_reranker} if cascade else {})
    )
    strong, cheap, ranks = by_predict(run, models[0]), by_predict(run, models[1]), found_by(run)
    kept = within(run, budget, (lambda pair: -cheap[pair]) if cascade else ranks.get)
    found, pairs = judged(run), set(ranks) | POSITIVES
    scores = {pair: score for pair, (score, *_) in found["cross-encoder"].items()}
    assert {pair for pair, score in scores.items() if score is not None} == kept
    assert {pair: scores[pair] for pair in kept} == pytest.approx(
        {pair: strong[pair] for pair in kept}, abs=1e-5
    )
    assert {pair: rest for pair, (_, *rest) in found["cross-encoder"].items()} == {
        pair: [None, None if pair in kept else "over_budget"] for pair in pairs
    }
    assert manifest.drops.get("over_budget", 0) == len(pairs - kept)
    assert set(found) == {"cross-encoder", "cross-encoder.first"} if cascade else {"cross-encoder"}
    if cascade:
        first = {pair: score for pair, (score, *_) in found["cross-encoder.first"].items()}
        assert first == pytest.approx({pair: cheap[pair] for pair in pairs}, abs=1e-5)
        assert (manifest.facts["first_reranker"], manifest.facts["first_score_scale"]) == (
            other_reranker,
            "logit",
        )


@pytest.mark.parametrize(
    "options", [{}, {"max_pairs_per_query": 2}, {"max_pairs_per_query": 2, "first": True}]
)
def test_another_source_costs_its_new_pairs_and_the_result_is_as_afresh(
    tmp_path, reranker, other_reranker, monkeypatch, options
):
    if "first" in options:
        options = options | {"first": other_reranker}
    toy = Toy(
        candidates={**FOUND, "third": {"q1": ["d02", "d08"], "q4": ["d02", "d01"], "q5": ["d01"]}}
    )
    run, fresh = made(tmp_path / "run"), made(tmp_path / "fresh", candidates=toy.candidates)
    with asked_pairs(monkeypatch) as first:
        judge(run, reranker, **options)
    before = judged(run)
    write_source(run, toy, "third")
    with asked_pairs(monkeypatch) as asked:
        judge(run, reranker, **options)
    with asked_pairs(monkeypatch) as all_asked:
        judge(fresh, reranker, **options)
    one, other = judged(run), judged(fresh)
    assert one.keys() == other.keys()
    new = 0
    for name, pairs in other.items():
        assert {pair: rest for pair, (_, *rest) in one[name].items()} == {
            pair: rest for pair, (_, *rest) in pairs.items()
        }
        scored = {pair: score for pair, (score, *_) in pairs.items() if score is not None}
        assert {
            pair: score for pair, (score, *_) in one[name].items() if score is not None
        } == pytest.approx(scored, abs=1e-5)
        new += len([pair for pair in scored if before[name].get(pair, (None,))[0] is None])
    assert len(asked) == new > 0
    assert len(asked) < len(first) <= len(all_asked)
    if "max_pairs_per_query" in options and "first" not in options:
        fell = [
            pair
            for pair, (score, *_) in before["cross-encoder"].items()
            if score is not None and one["cross-encoder"][pair][0] is None
        ]
        assert fell  # d02 at rank 1 of the third source takes the place of another


def test_what_the_source_scored_is_not_scored_again_by_the_same_model_alone(
    tmp_path, reranker, other_reranker, models, monkeypatch
):
    run = made(tmp_path)
    with asked_pairs(monkeypatch) as mined:
        mine(run, reranker)
    with asked_pairs(monkeypatch) as asked:
        judge(run, reranker)
    pairs = set(found_by(run)) | POSITIVES
    assert not set(mined) & set(asked) and len(mined) + len(asked) == len(pairs)
    with asked_pairs(monkeypatch) as asked:
        judge(run, other_reranker, name="second")
    assert len(asked) == len(pairs)  # another checkpoint, the same texts
    cheap = by_predict(run, models[1])
    assert {
        pair: score for pair, (score, *_) in judged(run, "second")["second"].items()
    } == pytest.approx({pair: cheap[pair] for pair in pairs}, abs=1e-5)
    assert run.names("4_judgments") == ["cross-encoder", "second"]


def test_one_folder_with_other_weights_is_another_model(tmp_path):
    run, folder = made(tmp_path / "run"), tmp_path / "model"
    judge(run, str(make_reranker(folder, 8)))
    from miner.models.hub import weights_fingerprint
    from miner.models.reranker import load_reranker

    weights_fingerprint.cache_clear()
    load_reranker.cache_clear()
    make_reranker(folder, 9)
    with pytest.raises(UserError, match="was made by another model"):
        judge(run, str(folder))


def test_shards_do_not_change_what_is_judged(tmp_path, reranker, other_reranker):
    found = []
    for size in (1, 5):
        run = made(tmp_path / str(size), shard_queries=size)
        judge(run, reranker, max_pairs_per_query=2, first=other_reranker)
        found.append(judged(run))
    for name in found[0]:
        one, other = ({pair: rest for pair, (_, *rest) in each[name].items()} for each in found)
        assert one == other
        one, other = (
            np.array([score for score, *_ in each[name].values()], float) for each in found
        )
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_mistakes_are_named_before_a_model_is_looked_for(tmp_path):
    run = toy_run(tmp_path, similarity=None)
    for options, words in (
        ({"name": "a.b", "first": "x"}, "--name 'a.b' holds a dot"),
        ({"name": "similarity"}, "--name similarity is the name of another judge"),
        ({"first": "cheap"}, "--first cheap .* give one with --max-pairs-per-query"),
        ({"first": "./cheap", "max_pairs_per_query": 3}, "reranker './no/model' is no folder"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            judge(run, "./no/model", **options)
        assert "\n" not in str(caught.value)
    assert run.names("3_candidates") == ["bm25", "dense"]  # nothing was drawn on the way


def test_another_threshold_runs_no_model(tmp_path, reranker, monkeypatch):
    run = made(tmp_path)
    judge(run, reranker)

    def refuse(options):
        raise AssertionError("a model was loaded")

    for module in ("miner.models.hub", "miner.search.cross_encoder", "scoring.judge.similarity"):
        for name in ("load_reranker", "load_encoder"):
            monkeypatch.setattr(f"{module}.{name}", refuse, raising=False)
    sizes = []
    for number, bound in enumerate((0.0, 1.0)):
        recipe = Select(
            name=f"set{number}",
            sources=("bm25",),
            max_score={"cross-encoder": bound},
            percentile_margin={"cross-encoder": 100},
        )
        select(run, recipe, How())
        sizes.append(len(rows(run, f"5_sets/set{number}", "doc_id")))
    assert sizes[0] == 0 < sizes[1]
