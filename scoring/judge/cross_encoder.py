"""candidates, positives + cross-encoder -> judgments: the score of each pair, read by the model as
one text.

Rows of judge "cross-encoder" (or the name that is given) hold the score of every distinct candidate
of every source, and of every positive. Under a budget, candidates beyond it have a null score and
the reason "over_budget": a query's best N are scored, by a cheap reranker, whose scores are the
rows of judge "cross-encoder.first", or by their best rank in any source. Positives are always
scored, on top of the N.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.engine import How
from miner.errors import UserError
from miner.files import fingerprint
from miner.models.hub import Reranker, gpu_count
from miner.models.reranker import bare, reranker_facts, reranker_fingerprint
from miner.options import NAME, option
from miner.query_shard import Pairs
from miner.search.cross_encoder import known_scores, scores_of
from miner.store import Manifest, Run
from scoring.judge.judging import (
    OVER_BUDGET,
    Asked,
    Judged,
    Judging,
    check_name,
    judgments,
    within_budget,
)


class JudgeCrossEncoder(Reranker):
    """The score of a cross-encoder that reads query and document together, for all pairs or
    within a budget.
    """

    name: str = option(
        "cross-encoder", "name of the judge, for more than one; no dot", pattern=NAME
    )
    max_pairs_per_query: int | None = option(
        None,
        "candidates of a query that are scored, positives on top; the others are over_budget"
        " [default: all]",
        ge=1,
    )
    first: str | None = option(
        None,
        "a cheap reranker, whose best candidates are within the budget [default: those of the best"
        " retrieval ranks]",
    )


def judge_cross_encoder(run: Run, options: JudgeCrossEncoder, how: How) -> Manifest:
    """Score all pairs of all sources that have no score yet: candidates, positives + cross-encoder
    -> 4_judgments/<name>.

    Raises:
        UserError: the name is not to be had, options contradict each other, or a model or the
            tables are not there.
    """
    run.tables()
    check_name(options.name, JudgeCrossEncoder)
    if options.first and options.max_pairs_per_query is None:
        raise UserError(
            f"--first {options.first} chooses what is within a budget; give one with"
            " --max-pairs-per-query, or leave it out"
        )
    models = [reranker_fingerprint(reranker) for reranker in rerankers(options)]
    return Judging(run, options.name, "cross-encoder", afresh=True).carry_out(
        options,
        replace(how, workers=max(how.workers, gpu_count(options))),
        lambda: partial(_score_pairs, options),
        model=models[0] if len(models) == 1 else fingerprint(models),
        facts=partial(_model_facts, options),
    )


def rerankers(options: JudgeCrossEncoder) -> list[Reranker]:
    """Return the reranker and, if one is named, the cheap one that comes first."""
    strong = bare(options)
    return [strong] + (
        [strong.model_copy(update={"reranker": options.first})] if options.first else []
    )


def _model_facts(options: JudgeCrossEncoder) -> dict[str, Any]:
    strong, *cheap = [reranker_facts(reranker) for reranker in rerankers(options)]
    names = ("reranker", "activation", "score_scale") if cheap else ()
    return strong | {f"first_{name}": cheap[0][name] for name in names}


def _score_pairs(options: JudgeCrossEncoder, asked: Asked) -> Judged:
    pairs, parts, order = asked.pairs, list[pa.Table](), None
    strong, *cheap = rerankers(options)
    for first in cheap:
        name = f"{options.name}.first"
        score = scores_of(pairs, first, _known(asked, first, name, pairs))
        parts.append(judgments(pairs, name, score))
        order = -score.astype(np.float64)
    within = within_budget(asked, options.max_pairs_per_query, order)
    score, chosen = np.full(len(pairs), np.nan, np.float32), pairs.take(within)
    score[within] = scores_of(chosen, strong, _known(asked, strong, options.name, chosen))
    reason = pa.array(np.full(len(pairs), OVER_BUDGET), mask=within)
    over = int((~within).sum())
    parts.append(judgments(pairs, options.name, score, reason=reason))
    return parts, {OVER_BUDGET: over} if over else {}


def _known(asked: Asked, reranker: Reranker, judge: str, pairs: Pairs) -> np.ndarray:
    """Return the scores (p,) of pairs that are known from before, by the judge's own rows or by
    sources with the same model; nan for none.
    """
    own = pairs.look_up(asked.before.filter(pc.equal(asked.before["judge"], judge)))
    return np.where(np.isnan(own), known_scores(pairs, reranker_fingerprint(reranker)), own)
