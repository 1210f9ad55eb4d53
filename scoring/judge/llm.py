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
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.engine import How
from miner.errors import UserError
from miner.files import file_fingerprint, fingerprint
from miner.llm.client import Client
from miner.llm.estimate import estimate
from miner.llm.generate import one_process
from miner.llm.prompts import JudgePrompt, fill_in, load_judge_prompt, prompt_path, shorten
from miner.llm.requests import Asking, Budget, Llm, Request
from miner.options import NAME, option
from miner.store import Manifest, Run
from scoring.judge.calibration import Scale, area_under_curve, fit_scale
from scoring.judge.judging import (
    OVER_BUDGET,
    Asked,
    Judge,
    Judged,
    Judging,
    check_name,
    judgments,
    within_budget,
)

MEANT = 0.5  # p(yes) from which a vote is a yes
CALIBRATED_ON = 400  # pairs, at least, if there are so many
TRUSTED = 0.75  # area under the curve, positives against random documents


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
    calibrate: bool = option(
        False,
        "fit a temperature and an offset of p(yes) on known positives against random documents"
        " before the verdicts",
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
    budget = Budget(options.max_requests, options.max_tokens_total)
    labels = (prompt.yes, prompt.no)
    clients = [Client(run, model, budget, labels) for model in models(options)]
    judging = Judging(run, options.name, "llm", afresh=True)
    return judging.carry_out(
        options,
        one_process(how),
        partial(_ask_cheap_models, judging, LlmJudge(options, prompt, clients)),
        model=fingerprint(
            [*(client.model for client in clients), file_fingerprint(prompt_path(options.prompt))]
        ),
        facts=partial(_vote_facts, judging, options, prompt, clients),
    )


def preview_llm(run: Run, options: JudgeLlm) -> dict[str, Any]:
    """Return what judging would cost; a sample is asked about, and kept. Of several models it is
    the first, which is asked about all pairs.

    Raises:
        UserError: there are no tables, no such model, server or prompt.
    """
    run.tables()
    prompt, judging = load_judge_prompt(options.prompt), Judging(run, options.name, "llm")
    client = Client(run, models(options)[0], labels=(prompt.yes, prompt.no))
    judge = LlmJudge(options, prompt, [client])
    judging.sources(How())  # draws random documents, which are judged too
    return estimate(
        client,
        (
            judge.requests(asked, within_budget(asked, options.max_pairs_per_query))
            for asked in map(judging.asked, run.query_shards())
        ),
    )


def models(options: JudgeLlm) -> list[Llm]:
    """Return the language models that are asked, cheap first."""
    shared = {name: getattr(options, name) for name in Asking.model_fields}
    return [Llm(**shared, llm=name) for name in options.llm or (None,)]


def _vote_facts(
    judging: Judging, options: JudgeLlm, prompt: JudgePrompt, clients: Sequence[Client]
) -> dict[str, Any]:
    tables = [judging.run.read(judging.folder, key) for key in judging.run.query_shards()]
    rows = [table.filter(pc.equal(table["judge"], f"{options.name}.flips")) for table in tables]
    flips = [table["score"].drop_null().to_numpy() for table in rows]
    mean = np.concatenate([np.empty(0), *flips]).mean() if sum(map(len, flips)) else None
    rate = {} if mean is None else {"flip_rate": round(float(mean), 4)}
    names = ", ".join(client.name for client in clients)
    ways = ", ".join(dict.fromkeys(client.way.scores for client in clients))
    told = {"llm": names, "scores": ways, "prompt": prompt.title, "votes": options.votes, **rate}
    scale = LlmJudge(options, prompt, clients).calibrated(judging).scale
    told |= {"calibration": scale._asdict()} if scale else {}
    return told | _known_facts(judging)


def _known_facts(judging: Judging) -> dict[str, Any]:
    """Return how often a positive gets more than a random document, and a warning if that is
    seldom.
    """
    scores, answers = list[np.ndarray](), list[np.ndarray]()
    for key in judging.run.query_shards():
        asked, table = known_pairs(judging.asked(key)), judging.run.read(judging.folder, key)
        table = table.filter(pc.equal(table["judge"], judging.name)).drop_columns(["judge"])
        scores.append(asked.pairs.look_up(table.filter(table["score"].is_valid())))
        answers.append(asked.pairs.positive)
    area = area_under_curve(np.concatenate(scores), np.concatenate(answers))
    if area is None:
        return {}
    warning = (
        f"of a positive and a random document of the same queries, this judge gives the positive"
        f" more in only {area:.0%} of cases: do not trust it here".replace("%", " %")
    )
    return {"auc_random": round(area, 4)} | ({"warnings": [warning]} if area < TRUSTED else {})


def _ask_cheap_models(judging: Judging, judge: "LlmJudge") -> Judge:
    # a model is loaded once: the cheap one answers for all shards before the next one comes
    for number in range(len(judge.clients) - 1):
        for key in judging.run.query_shards():
            judge.ask(judging.asked(key), judge.clients[: number + 1])
    return judge.calibrated(judging).judge


class Votes(NamedTuple):
    """What models said of the pairs of a shard.

    Attributes:
        within: which pairs were asked about: positives and what is within the budget (p,).
        said: p(yes) by each model, (p, votes) float64; nan where it was not asked, or gave no
            answer.
        errors: why there is no answer (p,).
    """

    within: np.ndarray
    said: list[np.ndarray]
    errors: list[str]


class LlmJudge(NamedTuple):
    """Models with a prompt, cheap first, that judge a shard."""

    options: JudgeLlm
    prompt: JudgePrompt
    clients: Sequence[Client]
    scale: Scale | None = None

    def calibrated(self, judging: Judging) -> "LlmJudge":
        """Return this judge with its scale, if one is asked for: of the first queries' positives
        and one random document each.

        Raises:
            UserError: none can be fitted.
        """
        if not self.options.calibrate:
            return self
        scores, answers = list[np.ndarray](), list[np.ndarray]()
        for key in judging.run.query_shards():
            if sum(map(len, scores)) < CALIBRATED_ON:
                asked = known_pairs(judging.asked(key))
                scores.append(self.votes_of(asked)[0].mean(axis=1))
                answers.append(asked.pairs.positive)
        scale = fit_scale(np.concatenate(scores), np.concatenate(answers))
        if scale is None:
            raise UserError(
                "--calibrate: positives get no higher p(yes) than random documents, so there is"
                " nothing to fit; leave it out, and do not trust this judge here"
            )
        return self._replace(scale=scale)

    def votes_of(self, asked: Asked) -> tuple[np.ndarray, Votes]:
        """Return the last word of all models on each pair (p, votes), and what each said."""
        said = self.ask(asked, self.clients)
        votes = said.said[0]
        for later in said.said[1:]:
            votes = np.where(np.isnan(later), votes, later)
        return votes, said

    def ask(self, asked: Asked, clients: Sequence[Client]) -> Votes:
        """Ask each model about what the one before is not sure of."""
        within = within_budget(asked, self.options.max_pairs_per_query)
        errors, said, unsure = [""] * len(within), list[np.ndarray](), within.copy()
        for client in clients:
            said.append(self._votes(client, asked, unsure, errors))
            mean, sure = said[-1].mean(axis=1), self.options.sure
            unsure = unsure & ~np.isnan(mean) & (mean > sure) & (mean < 1 - sure)
        return Votes(within, said, errors)

    def _votes(
        self, client: Client, asked: Asked, which: np.ndarray, errors: list[str]
    ) -> np.ndarray:
        requests, count = self.requests(asked, which), self.options.votes
        votes, places = np.full((len(which), count), np.nan), np.flatnonzero(which)
        for number, answer in enumerate(client.ask(requests) if requests else []):
            place = places[number // count]
            if answer.error:
                errors[place] = answer.error
            else:
                yes, no = answer.scores
                votes[place, number % count] = 1 / (1 + np.exp(np.clip(no - yes, -700, 700)))
        return votes

    def requests(self, asked: Asked, which: np.ndarray) -> list[Request]:
        """Return what is asked about some pairs: each wording, pair by pair, so that documents of a
        query come side by side.
        """
        prompt, pairs = self.prompt, asked.pairs.take(which)
        documents = asked.shard.documents.texts(pairs.row)
        return [
            Request(
                prompt.system,
                fill_in(template, {"query": asked.shard.texts[query], "document": document}),
                prompt.title,
                labels=(prompt.yes, prompt.no),
            )
            for query, text in zip(pairs.query.tolist(), documents, strict=True)
            for document in [shorten(text, self.options.max_words)]
            for template in prompt.templates[: self.options.votes]
        ]

    def judge(self, asked: Asked) -> Judged:
        """Judge the pairs of a shard."""
        name, pairs = self.options.name, asked.pairs
        votes, (within, said, errors) = self.votes_of(asked)
        score = votes.mean(axis=1)
        lost = np.isnan(score)
        promote_at, drop_at = self.options.promote_at, self.options.drop_at
        contrary = ((votes >= MEANT) != (score >= MEANT)[:, None]).mean(axis=1)
        if self.scale:
            score = self.scale(score)
        verdict = np.select(
            [lost | pairs.positive, score >= promote_at, score >= drop_at],
            ["", "promote", "drop"],
            "keep",
        ).tolist()
        why = np.where(within, np.where(lost, errors, ""), OVER_BUDGET).tolist()
        reason = [
            "answers" if one in ("drop", "promote") else other
            for one, other in zip(verdict, why, strict=True)
        ]
        parts = [
            judgments(pairs, name, score, _texts(verdict), _texts(reason)),
            judgments(pairs, f"{name}.flips", np.where(lost, np.nan, contrary)),
        ]
        if len(said) > 1:
            parts.append(judgments(pairs, f"{name}.first", said[0].mean(axis=1)))
        return parts, Counter(why for why, none in zip(reason, lost, strict=True) if none)


def known_pairs(asked: Asked) -> Asked:
    """Return of each query its first positive and its first random document."""
    shard, pairs = asked.shard, asked.pairs
    table = shard.run.read(f"{Run.SOURCES}/random", shard.key)
    drawn = np.isin(pairs.codes, shard.codes(*shard.places(table))) & ~pairs.positive
    chosen = np.zeros(len(pairs), bool)
    for kind in (pairs.positive, drawn):
        places = np.flatnonzero(kind)
        chosen[places[np.unique(pairs.query[places], return_index=True)[1]]] = True
    return asked._replace(pairs=pairs.take(chosen))


def _texts(values: list[str]) -> pa.Array:
    return pa.array([value or None for value in values], pa.string())
