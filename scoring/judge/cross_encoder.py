"""candidates, positives + cross-encoder -> judgments: the score of each pair, read by the model as
one text.

Rows of judge "cross-encoder" (or the name that is given) hold the score of every distinct candidate
of every source, and of every positive. Under a budget, candidates beyond it have a null score and
the reason "over_budget": a query's best N are scored, by a cheap reranker, whose scores are the
rows of judge "cross-encoder.first", or by their best rank in any source. Positives are always
scored, on top of the N.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import Shelf
from miner.engine import How
from miner.errors import UserError
from miner.files import fingerprint
from miner.models.hub import Reranker, gpu_count
from miner.models.reranker import bare, reranker_facts, reranker_fingerprint
from miner.options import NAME, option
from miner.query_shard import SOURCES, Pairs, candidate_pairs, positive_rows
from miner.search.cross_encoder import known_scores, scores_of
from miner.store import Manifest, Run, Shard, Stage, run_stage
from miner.tables import JUDGMENTS
from scoring.judge.judging import (
    OVER_BUDGET,
    best_of_each,
    best_ranks,
    check_name,
    in_order,
    judged_sources,
    judgments,
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
    _check(options)
    models = [reranker_fingerprint(reranker) for reranker in rerankers(options)]
    sources, inputs = judged_sources(run, how)
    model = models[0] if len(models) == 1 else fingerprint(models)
    stage = Stage(
        _folder(options), "judgments", options.record(), inputs, model=model, grows=SOURCES
    )
    how = replace(how, workers=max(how.workers, gpu_count(options)))
    return run_stage(
        run,
        stage,
        lambda: partial(_judge_shard, run, options, sources),
        run.query_shards(),
        how,
        partial(_facts, options),
    )


def rerankers(options: JudgeCrossEncoder) -> list[Reranker]:
    """Return the reranker and, if one is named, the cheap one that comes first."""
    strong = bare(options)
    return [strong] + (
        [strong.model_copy(update={"reranker": options.first})] if options.first else []
    )


def _folder(options: JudgeCrossEncoder) -> str:
    return f"{Run.JUDGES}/{options.name}"


def _check(options: JudgeCrossEncoder) -> None:
    check_name(options.name, JudgeCrossEncoder)
    if options.first and options.max_pairs_per_query is None:
        raise UserError(
            f"--first {options.first} chooses what is within a budget; give one with"
            " --max-pairs-per-query, or leave it out"
        )


def _facts(options: JudgeCrossEncoder) -> dict[str, Any]:
    strong, *cheap = [reranker_facts(reranker) for reranker in rerankers(options)]
    return strong | {
        f"first_{name}": cheap[0][name]
        for name in ("reranker", "activation", "score_scale")
        if cheap
    }


@dataclass(frozen=True)
class Before:
    """What is known of a shard's scores from before: this judge's own rows, and the side tables
    of sources with the same model.
    """

    run: Run
    key: str
    rows: pa.Table

    def scores(self, reranker: Reranker, judge: str, pairs: Pairs) -> np.ndarray:
        """Return the known scores (p,) of pairs; nan for none."""
        own = pairs.look_up(self.rows.filter(pc.equal(self.rows["judge"], judge)))
        return np.where(
            np.isnan(own),
            known_scores(self.run, reranker_fingerprint(reranker), self.key, pairs),
            own,
        )


def _judge_shard(run: Run, options: JudgeCrossEncoder, sources: list[str], key: str) -> Shard:
    corpus, queries = Shelf(run, key), run.read(run.QUERIES, key)
    query_ids = queries["query_id"].to_pylist()
    positives = positive_rows(corpus, query_ids, run.read(run.POSITIVES, key))
    pairs = candidate_pairs(run, corpus, query_ids, sources, key).join(*positives)
    texts, rows = queries["text"].to_pylist(), run.read_before(_folder(options), key)
    before = Before(run, key, JUDGMENTS.schema.empty_table() if rows is None else rows)
    strong, *cheap = rerankers(options)
    parts, within = [], np.ones(len(pairs.row), bool)
    if options.max_pairs_per_query is not None:
        order = best_ranks(run, pairs, sources, key)
        for first in cheap:
            score = scores_of(
                pairs, texts, first, before.scores(first, f"{options.name}.first", pairs)
            )
            parts.append(judgments(pairs, f"{options.name}.first", score))
            order = -score.astype(np.float64)
        positive = np.isin(pairs.codes, positives[0] * len(corpus) + positives[1])
        within = positive | best_of_each(
            pairs, np.where(positive, np.inf, order), options.max_pairs_per_query
        )
    score, chosen = np.full(len(within), np.nan, np.float32), pairs.take(within)
    score[within] = scores_of(chosen, texts, strong, before.scores(strong, options.name, chosen))
    reason = pa.array(np.full(len(within), OVER_BUDGET), mask=within)
    over = int((~within).sum())
    return Shard(
        {key: in_order(*parts, judgments(pairs, options.name, score, reason=reason))},
        {OVER_BUDGET: over} if over else {},
    )
