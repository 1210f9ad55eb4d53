"""The rules that a candidate meets one by one, and what becomes of it: each reason is told here."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from miner.query_shard import QueryShard
from scoring.judge import duplicates
from scoring.judgments import Judgments, read_judgments
from scoring.recipe import DUPLICATES, MARGINS, NEAREST, Recipe
from scoring.samplers import SAMPLERS

# Every reason for which a candidate is no negative, in the order in which it meets them. Rules of
# another judge than `--judge` have ":JUDGE" after their name.
REASONS = {
    **duplicates.REASONS,
    "near_positive": "a vector that is nearly a positive's",
    "promote": "relevant, as judges say: written apart as a likely positive",
    "drop": "dropped by a judge's own verdict",
    "other_positive": "a positive of another query",
    "min_rank": "ranked better than the recipe's window",
    "max_rank": "ranked worse than the recipe's window",
    "no_score": "no score, where a rule needs one",
    "absolute_margin": "too near the lowest positive",
    "percent_margin": "too near the lowest positive",
    "percentile_margin": "above that percentile of all positives' scores",
    "min_score": "below the lowest score asked for",
    "max_score": "above the highest score asked for",
    "quantile": "not hard enough for the sampler",
    "eci": "would lower the set's ECI",
    "quota": "beyond the K of its source",
    "negatives": "beyond the number of negatives of a query",
}
Numbers = np.ndarray | float | None


class Rule(NamedTuple):
    """A rule over the n candidates of a shard.

    Attributes:
        reason: of what fails, one for all or one each (n,).
        fails: which fail (n,).
        value: what was compared (n,). threshold: with what.
    """

    reason: "str | np.ndarray"
    fails: np.ndarray
    value: Numbers = None
    threshold: Numbers = None


@dataclass(frozen=True)
class Candidates:
    """The candidates of a recipe's sources in one query shard, n of them: source after source.

    Attributes:
        shard: their queries.
        recipe: the recipe.
        source: place of the source in the recipe (n,) int64.
        codes: of the pairs (n,) int64.
        rank: in the source (n,) int64. found_score: there (n,) float32.
    """

    shard: QueryShard
    recipe: Recipe
    source: np.ndarray
    codes: np.ndarray
    rank: np.ndarray
    found_score: np.ndarray

    @classmethod
    def read(cls, shard: QueryShard, recipe: Recipe) -> "Candidates":
        """Read the candidates of the recipe's sources."""
        columns = ["query_id", "doc_id", "rank", "score"]
        names = [f"{shard.run.SOURCES}/{quota.source}" for quota in recipe.quotas]
        tables = [shard.run.read(name, shard.key, columns) for name in names]
        codes = [shard.candidate_codes(table) for table in tables]
        ranks = [table["rank"].to_numpy().astype(np.int64) for table in tables]
        scores = [table["score"].to_numpy().astype(np.float32) for table in tables]
        source = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        return cls(shard, recipe, source, *map(np.concatenate, (codes, ranks, scores)))

    @property
    def query(self) -> np.ndarray:
        """Return the places of their queries (n,)."""
        return self.codes // len(self.shard.documents)

    @property
    def row(self) -> np.ndarray:
        """Return the rows of their documents (n,)."""
        return self.codes % len(self.shard.documents)

    @cached_property
    def _judged(self) -> list[tuple[Judgments, np.ndarray]]:
        """What each judge said, and where in it these candidates are."""
        asked = ("verdict", "reason")
        said = [read_judgments(self.shard, judge, asked) for judge in self.recipe.judges]
        return [(one, one.find(self.codes)) for one in said]

    def scores(self, judge: int) -> np.ndarray:
        """Return what judge number `judge` of the recipe says (n,); nan for none."""
        if not self.recipe.judges:
            return np.full(len(self.codes), np.nan)
        said, places = self._judged[judge]
        return said.scores_at(places)

    def lowest(self, judge: int) -> np.ndarray:
        """Return the lowest score of the query's positives by that judge (n,); nan if one has
        none.
        """
        lowest = np.full(len(self.shard.query_ids), np.inf)
        if self.recipe.judges:
            scores = self._judged[judge][0].scores(self.shard.codes(*self.shard.positives))
            with np.errstate(invalid="ignore"):  # nan stays
                np.minimum.at(lowest, self.shard.positives[0], scores)
        return np.where(np.isfinite(lowest), lowest, np.nan)[self.query]

    def texts(self, judge: int, column: str) -> np.ndarray:
        """Return that judge's verdicts or reasons (n,); None for none."""
        said, places = self._judged[judge]
        return said.texts_at(column, places)


def rules(found: Candidates, percentile: dict[str, float], others: np.ndarray | None) -> list[Rule]:
    """Return the rules that a candidate meets one by one, in order.

    Args:
        found: the candidates of a shard, and their recipe.
        percentile: judge -> the score that stands for its `percentile_margin`.
        others: rows of all positives of the run, if `drop_other_positives`.
    """
    recipe, options = found.recipe, found.recipe.options
    made = [Rule("positive", found.shard.is_positive(found.query, found.row)), *_copies(found)]
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
