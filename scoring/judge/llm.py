"""candidates, positives + language model -> judgments: p(yes) that a document answers its query.

p = e^yes / (e^yes + e^no), from the log-probabilities that the model gives to the two words
themselves as the first token of an answer, averaged over several wordings of the question. Rows of
judge "llm" (or the name that is given) hold it for every candidate and positive; those of
"llm.flips" the share of wordings that say the contrary of the mean; with several models "llm.first"
is what the first one said.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import Shelf
from miner.engine import How
from miner.errors import UserError
from miner.files import file_fingerprint, fingerprint
from miner.llm.client import Door, llm_name
from miner.llm.generate import one_process
from miner.llm.prompts import JudgePrompt, load_judge_prompt, prompt_path, render, shorten
from miner.llm.requests import Asking, Budget, Llm, Request
from miner.options import NAME, option
from miner.query_shard import SOURCES, Pairs, candidate_pairs, positive_rows
from miner.store import Manifest, Run, Shard, Stage, run_stage
from scoring.judge.judging import (
    OVER_BUDGET,
    best_of_each,
    best_ranks,
    check_name,
    in_order,
    judged_sources,
    judgments,
)

MEANT = 0.5  # p(yes) from which a vote is a yes


class JudgeLlm(Asking):
    """What a language model says: p(yes) that a document answers its query, from the
    log-probabilities of yes and no.
    """

    name: str = option("llm", "name of the judge, for more than one; no dot", pattern=NAME)
    llm: tuple[str, ...] = option(
        (),
        "hub id or local path for vLLM, or with --server a name there; repeat, cheap first: each"
        " further one is asked about what the one before is not sure of [default with --server: the"
        " first it serves]",
    )
    prompt: str = option(
        "judge", "the question in several wordings: judge, or a file of your own (.toml)"
    )
    votes: int = option(3, "wordings that are asked; p(yes) is their mean", ge=1)
    drop_at: float = option(0.5, "p(yes) from which the verdict is drop", ge=0, le=1)
    promote_at: float = option(0.9, "p(yes) from which the verdict is promote", ge=0, le=1)
    sure: float = option(
        0.1,
        "of several models: one is sure where p(yes) is at most this, or at least 1 - this",
        ge=0,
        lt=0.5,
    )
    max_pairs_per_query: int | None = option(
        None,
        "candidates of a query that are judged, by best rank, positives on top [default: all]",
        ge=1,
    )


def judge_llm(run: Run, options: JudgeLlm, how: How) -> Manifest:
    """Ask about all pairs of all sources: candidates, positives + language model ->
    4_judgments/<name>.

    Answers are kept, so when a source is added or mined again, only its new pairs are asked about.

    Raises:
        UserError: no such model, server or prompt, options contradict each other, or a budget is
            spent.
    """
    run.tables()
    check_name(options.name, JudgeLlm)
    prompt = load_judge_prompt(options.prompt)
    if options.votes > len(prompt.templates):
        raise UserError(
            f"--votes is {options.votes}, but prompt {prompt.title} has {len(prompt.templates)}"
            " wordings; take fewer votes"
        )
    if options.promote_at < options.drop_at:
        raise UserError(
            f"--promote-at {options.promote_at} is below --drop-at {options.drop_at}; give one at"
            " least as high"
        )
    sources, inputs = judged_sources(run, how)
    budget = Budget(options.max_requests, options.max_tokens_total)
    doors = [Door(run, model, budget) for model in models(options)]
    model = fingerprint(
        [*(door.model for door in doors), file_fingerprint(prompt_path(options.prompt))]
    )
    stage = Stage(
        f"{run.JUDGES}/{options.name}",
        "judgments",
        options.record(),
        inputs,
        model=model,
        grows=SOURCES,
    )
    keys = run.query_shards()

    def prepare() -> Any:
        # a model is loaded once: the cheap one answers for all shards before the next one comes
        for number in range(len(doors) - 1):
            for key in keys:
                _asked(run, options, doors[: number + 1], prompt, sources, key)
        return partial(_judge_shard, run, options, doors, prompt, sources)

    return run_stage(
        run, stage, prepare, keys, one_process(how), partial(_facts, run, options, prompt)
    )


def models(options: JudgeLlm) -> list[Llm]:
    """Return the language models that are asked, cheap first."""
    shared = {name: getattr(options, name) for name in Asking.model_fields}
    return [Llm(**shared, llm=name) for name in options.llm or (None,)]


def _facts(run: Run, options: JudgeLlm, prompt: JudgePrompt) -> dict[str, Any]:
    rows = [
        table.filter(pc.equal(table["judge"], f"{options.name}.flips"))["score"]
        for table in _tables(run, options)
    ]
    flips = np.concatenate([np.empty(0), *(column.drop_null().to_numpy() for column in rows)])
    rate = {"flip_rate": round(float(flips.mean()), 4)} if len(flips) else {}
    names = ", ".join(llm_name(model) for model in models(options))
    return {"llm": names, "prompt": prompt.title, "votes": options.votes, **rate}


def _tables(run: Run, options: JudgeLlm) -> list[pa.Table]:
    return [run.read(f"{run.JUDGES}/{options.name}", key) for key in run.query_shards()]


def _asked(
    run: Run,
    options: JudgeLlm,
    doors: Sequence[Door],
    prompt: JudgePrompt,
    sources: list[str],
    key: str,
) -> tuple[Pairs, np.ndarray, np.ndarray, list[np.ndarray], list[str]]:
    """Return all pairs of a shard, which are positives, which are asked about (positives and what
    is within the budget), votes, and errors.

    Votes are for each model (p, votes) float64 of p(yes), nan where a model was not asked or gave
    no answer.
    """
    corpus, queries = Shelf(run, key), run.read(run.QUERIES, key)
    query_ids, texts = queries["query_id"].to_pylist(), queries["text"].to_pylist()
    positives = positive_rows(corpus, query_ids, run.read(run.POSITIVES, key))
    pairs = candidate_pairs(run, corpus, query_ids, sources, key).join(*positives)
    positive, within = (
        np.isin(pairs.codes, positives[0] * len(corpus) + positives[1]),
        np.ones(len(pairs.row), bool),
    )
    if options.max_pairs_per_query is not None:
        ranks = np.where(positive, np.inf, best_ranks(run, pairs, sources, key))
        within = positive | best_of_each(pairs, ranks, options.max_pairs_per_query)
    errors, said, open_ = [""] * len(within), list[np.ndarray](), within.copy()
    for door in doors:
        said.append(_votes(door, prompt, options, pairs, texts, open_, errors))
        mean = said[-1].mean(axis=1)
        open_ = open_ & ~np.isnan(mean) & (mean > options.sure) & (mean < 1 - options.sure)
    return pairs, positive, within, said, errors


def _votes(
    door: Door,
    prompt: JudgePrompt,
    options: JudgeLlm,
    pairs: Pairs,
    texts: list[str],
    which: np.ndarray,
    errors: list[str],
) -> np.ndarray:
    places = np.flatnonzero(which)
    documents = pairs.corpus.texts(pairs.row[places])
    requests = [
        Request(
            prompt.system,
            render(template, {"query": texts[query], "document": document}),
            prompt.title,
            labels=(prompt.yes, prompt.no),
        )
        for query, document in zip(
            pairs.query[places].tolist(),
            (shorten(text, options.max_words) for text in documents),
            strict=True,
        )
        for template in prompt.templates[: options.votes]
    ]
    votes = np.full((len(which), options.votes), np.nan)
    for number, answer in enumerate(door.ask(requests) if requests else []):
        place, vote = places[number // options.votes], number % options.votes
        if answer.error:
            errors[place] = answer.error
        else:
            yes, no = answer.scores
            votes[place, vote] = 1 / (1 + np.exp(np.clip(no - yes, -700, 700)))
    return votes


def _judge_shard(
    run: Run,
    options: JudgeLlm,
    doors: Sequence[Door],
    prompt: JudgePrompt,
    sources: list[str],
    key: str,
) -> Shard:
    pairs, positive, within, said, errors = _asked(run, options, doors, prompt, sources, key)
    votes = said[0]
    for later in said[1:]:
        votes = np.where(np.isnan(later), votes, later)
    score = votes.mean(axis=1)
    flips = np.where(
        np.isnan(score), np.nan, ((votes >= MEANT) != (score >= MEANT)[:, None]).mean(axis=1)
    )
    verdict = np.select(
        [np.isnan(score) | positive, score >= options.promote_at, score >= options.drop_at],
        ["", "promote", "drop"],
        "keep",
    )
    reason = [
        OVER_BUDGET if not asked else error if lost else ""
        for asked, error, lost in zip(within, errors, np.isnan(score), strict=True)
    ]
    reason = [
        "answers" if said in ("drop", "promote") else why
        for said, why in zip(verdict.tolist(), reason, strict=True)
    ]
    parts = [
        judgments(pairs, options.name, score, _texts(verdict.tolist()), _texts(reason)),
        judgments(pairs, f"{options.name}.flips", flips),
    ]
    if len(said) > 1:
        parts.append(judgments(pairs, f"{options.name}.first", said[0].mean(axis=1)))
    drops = Counter(why for why, lost in zip(reason, np.isnan(score), strict=True) if lost)
    return Shard({key: in_order(*parts)}, drops)


def _texts(values: list[str]) -> pa.Array:
    return pa.array([value or None for value in values], pa.string())
