"""The rules that a candidate meets one by one; `scoring.reasons` tells what each says."""

from itertools import pairwise

import numpy as np

from miner.normal import text_hashes
from scoring.judge.shingles import nearest_before
from scoring.judgments import Candidates, read_judgments
from scoring.reasons import Rule
from scoring.recipe import DUPLICATES, MARGINS, NEAREST
from scoring.samplers import SAMPLERS


def rules(found: Candidates, percentile: dict[str, float], others: np.ndarray | None) -> list[Rule]:
    """Return the rules that a candidate meets one by one, in order.

    Args:
        found: the candidates of a shard, and their recipe.
        percentile: judge -> the score that stands for its `percentile_margin`.
        others: rows of all positives of the run, if `drop_other_positives`.
    """
    recipe, options = found.recipe, found.recipe.options
    made = [Rule("positive", found.shard.is_positive(found.query, found.row))]
    made += [*_equal_texts(found), *_copies(found)]
    if recipe.near:
        near = read_judgments(found.shard, NEAREST).scores(found.codes)
        least = options.near_positive
        made.append(Rule("near_positive", near >= least, near, least))
    made += _promotion(found)
    for place, judge in enumerate(recipe.judges):
        verdict, reason = found.texts(place, "verdict"), found.texts(place, "reason")
        fails = (verdict == "drop") | (verdict == "promote")
        reason[fails] = [f"{why or 'drop'}:{judge}" for why in reason[fails]]
        made.append(Rule(reason, fails, found.scores(place)))
    if others is not None:
        made.append(Rule("other_positive", np.isin(found.row, others)))
    if options.min_rank is not None:
        made.append(Rule("min_rank", found.rank < options.min_rank, found.rank, options.min_rank))
    if options.max_rank is not None:
        made.append(Rule("max_rank", found.rank > options.max_rank, found.rank, options.max_rank))
    return [*made, *_scored(found, percentile), *_sampler_rules(found)]


def _equal_texts(found: Candidates) -> list[Rule]:
    """Return the rules on what is the query or a positive of it under another name."""
    shard, corpus = found.shard, found.shard.documents
    made = [Rule("same_text", shard.same_text(found.query, found.row))]
    if not found.recipe.options.keep_self:
        by_id = corpus.rows(shard.query_ids)[found.query]
        made.append(Rule("self", (by_id == found.row) & (by_id >= 0)))
        made.append(
            Rule(
                "equals_query",
                text_hashes(shard.texts)[found.query] == corpus.text_hashes(found.row),
            )
        )
    return made


def repeats(found: Candidates, passed: np.ndarray) -> list[Rule]:
    """Return the rules on negatives of a query that are each other's copies: the best-ranked one
    stays.

    Args:
        found: the candidates of a shard, and their recipe.
        passed: which pass all other rules (n,).
    """
    at = np.flatnonzero(passed)
    at = at[np.lexsort((found.row[at], found.source[at], found.rank[at], found.query[at]))]
    hashes = found.shard.documents.text_hashes(found.row[at])
    order = np.lexsort((np.arange(len(at)), hashes, found.query[at]))
    new = np.diff(found.query[at][order], prepend=-1) != 0
    new |= np.append(True, np.diff(hashes[order]) != 0)[: len(at)]
    first = found.row[at][order][new]
    again = np.zeros(len(passed), bool)
    again[at[order]] = found.row[at][order] != first[np.cumsum(new) - 1]
    made = [Rule("repeated_text", again)]
    if (least := found.recipe.options.distinct) is not None:
        made.append(_near_repeats(found, at[~again[at]], least))
    return made


def _near_repeats(found: Candidates, at: np.ndarray, least: float) -> Rule:
    """Return the rule on near-copies of a better-ranked candidate; `at` in order of query, then
    rank.
    """
    value, fails = np.full(len(found.codes), np.nan), np.zeros(len(found.codes), bool)
    ends = np.searchsorted(found.query[at], np.arange(len(found.shard.query_ids) + 1))
    for first, end in pairwise(ends.tolist()):
        mine = at[first:end]
        rows, place = np.unique(found.row[mine], return_index=True)
        rows = rows[np.argsort(place)]
        near = nearest_before(found.shard.documents, rows, least).tolist()
        nearest = dict(zip(rows.tolist(), near, strict=True))
        value[mine] = [nearest[row] for row in found.row[mine].tolist()]
        fails[mine] = value[mine] >= least
    return Rule("near_repeat", fails, value, least)


def _copies(found: Candidates) -> list[Rule]:
    """Return the rule that judge duplicates decides."""
    protects = found.recipe.protects
    if protects is None:
        return []
    name = DUPLICATES.rpartition("/")[2]
    said = read_judgments(found.shard, name, ["verdict", "reason"])
    places = said.find(found.codes)
    reason, verdict = (said.texts_at(column, places) for column in ("reason", "verdict"))
    threshold = np.full(len(reason), np.nan)
    for name, least in protects.items():
        threshold[reason == name] = np.nan if least is None else least
    return [Rule(reason, verdict == "drop", said.scores_at(places), threshold)]


def _promotion(found: Candidates) -> list[Rule]:
    said, recipe = np.ones(len(found.codes), bool), found.recipe
    if not recipe.promote:
        return []
    for judge, value in recipe.promote.items():
        place = recipe.judges.index(judge)
        said &= (
            found.texts(place, "verdict") == "promote"
            if value is None
            else found.scores(place) >= value
        )
    first, least = next(iter(recipe.promote.items()))
    return [Rule(f"promote:{first}", said, found.scores(recipe.judges.index(first)), least)]


def _scored(found: Candidates, percentile: dict[str, float]) -> list[Rule]:
    """Return the rules on scores. With `any` of several judges, a rule of one counts only where
    all the others leave the candidate out.
    """
    by_judge = [_of_judge(found, place, percentile) for place in range(len(found.recipe.judges))]
    asked = [made for made in by_judge if made]
    if found.recipe.options.agree == "any" and len(asked) > 1:
        failed = np.array([np.any([rule.fails for rule in made], axis=0) for made in asked])
        count = failed.sum(axis=0)
        asked = [
            [rule._replace(fails=rule.fails & (count == len(asked))) for rule in made]
            for made in asked
        ]
    return [rule for made in asked for rule in made]


def _of_judge(found: Candidates, place: int, percentile: dict[str, float]) -> list[Rule]:
    judge = found.recipe.judges[place]
    bounds = {bound.rule: bound.value for bound in found.recipe.bounds if bound.judge == judge}
    if not bounds:
        return []
    score, by, lowest = found.scores(place), f":{judge}" if place else "", None
    unknown = np.isnan(score)
    if any(rule in MARGINS for rule in bounds):
        lowest = found.lowest(place)
        unknown |= np.isnan(lowest)
    made = [Rule(f"no_score{by}", unknown, score)]
    for rule, value in bounds.items():
        bound: np.ndarray | float = value
        if rule == "absolute_margin" and lowest is not None:
            bound = lowest - value
        elif rule == "percent_margin" and lowest is not None:
            bound = lowest - (1 - value) * np.abs(lowest)
        elif rule == "percentile_margin":
            bound = percentile[judge]
        compare = {"min_score": np.less, "max_score": np.greater}.get(rule, np.greater_equal)
        made.append(Rule(f"{rule}{by}", compare(score, bound), score, bound))
    return made


def _sampler_rules(found: Candidates) -> list[Rule]:
    """Return the rule that keeps from a sampler what it cannot weigh."""
    needs = SAMPLERS[found.recipe.options.sampler].needs
    if not needs:
        return []
    score = found.scores(0)
    missing = np.isnan(score)
    if "positives" in needs:
        missing |= np.isnan(found.lowest(0))
    return [Rule("no_score", missing, score)]
