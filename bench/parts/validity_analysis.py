"""What bench/validity.py makes of its runs: correlations of predictors with gains, with intervals
over sets and
test queries, and what else it announced.
"""

import json
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, spearmanr

RESAMPLES, LEAST_SETS = 1000, 16
DEGENERATE = ("easiest", "the same six", "near-copies")
OURS, RIVALS = "coverage", ("dense", "random", "margin 95%", "simans", "eci")


class Measured(NamedTuple):
    """One condition, s sets, t test queries.

    Attributes:
        name: data-student-loss-optimiser.
        sets: their names.
        gains: (s, seeds, t), of nDCG@10.
        predictors: name -> (s,).
        facts: learning rate, nDCG@10 before.
    """

    name: str
    sets: list[str]
    gains: np.ndarray
    predictors: dict[str, np.ndarray]
    facts: dict[str, float]

    def rho(self, predictor: str) -> float:
        """Return Spearman's correlation with the mean gain."""
        return float(spearmanr(self.predictors[predictor], self.gains.mean((1, 2))).statistic)


def read_conditions(cache: Path) -> list[Measured]:
    """Return the conditions of which enough sets were trained on."""
    found = []
    for file in sorted(cache.glob("*-*-*.npz")):
        kept = dict(np.load(file))
        data, student = file.stem.split("-")[:2]
        said = json.loads((cache / f"{data}-{student}-predictors.json").read_text())
        runs = {tuple(key.split("|")) for key in kept if "|" in key}
        # a condition that was cut off counts with the sets that it came to, by its first seed
        first = [name for name in said if (name, "0") in runs]
        seeds = [seed for seed in "0123456789" if all((name, seed) in runs for name in first)]
        if len(first) >= LEAST_SETS:
            gains = [[kept[f"{name}|{seed}"] - kept["before"] for seed in seeds] for name in first]
            columns = {
                column: np.array([said[name][column] for name in first])
                for column in next(iter(said.values()))
            }
            facts = {"rate": float(kept["rate"]), "before": float(kept["before"].mean())}
            found.append(Measured(file.stem, first, np.array(gains), columns, facts))
    return found


def analyse(cache: Path, ours: str = OURS) -> dict[str, Any]:
    """Return all tables; `ours` is the set that is held against the others."""
    measured = read_conditions(cache)
    names = list(measured[0].predictors)
    small = [one for one in measured if _student(one) in ("head", "static")]
    layer = [one for one in measured if _student(one) == "layer"]
    groups = {
        f"{loss}, {optimiser}, {students}": [one for one in some if _is(one, loss, optimiser)]
        for loss in ("explicit", "in-batch")
        for optimiser in ("adam", "sgd")
        for students, some in (("head and static", small), ("layer", layer))
    }
    groups["explicit, adam, all three"] = [
        one for one in (*small, *layer) if _is(one, "explicit", "adam")
    ]
    groups["held out: minilm"] = [one for one in measured if _student(one) == "minilm"]
    tables = {group: _table(members, names) for group, members in groups.items() if members}
    plain = {
        group: _table([_without(one, DEGENERATE) for one in members], names)
        for group, members in groups.items()
        if members
    }
    return {
        "summary": {
            group: {name: row["spearman"] for name, row in table.items()}
            for group, table in tables.items()
        },
        "tables": tables,
        "tables without degenerate sets": plain,
        "coverage sampler": {
            group: _sampler(members, ours) for group, members in groups.items() if members
        },
        "conditions": [_condition(one, names) for one in measured],
    }


def _student(one: Measured) -> str:
    return one.name.split("-")[1]


def _is(one: Measured, loss: str, optimiser: str) -> bool:
    return f"-{loss}-" in one.name and one.name.endswith(optimiser)


def _without(one: Measured, names: tuple[str, ...]) -> Measured:
    kept = [place for place, name in enumerate(one.sets) if name not in names]
    return one._replace(
        sets=[one.sets[place] for place in kept],
        gains=one.gains[kept],
        predictors={name: values[kept] for name, values in one.predictors.items()},
    )


def _table(members: list[Measured], names: list[str]) -> dict[str, Any]:
    """Return predictor -> mean correlation with its interval, worst condition, pairs, regret, and
    by how much it beats ECI v1.
    """
    resampled = _resampled(members, names)
    rows = {}
    for place, name in enumerate(names):
        rho = [one.rho(name) for one in members]
        kendall = [
            float(kendalltau(one.predictors[name], one.gains.mean((1, 2))).statistic)
            for one in members
        ]
        pairs = [_pairs(one, name) for one in members]
        rows[name] = {
            "spearman": round(float(np.mean(rho)), 3),
            "interval": _interval(resampled[:, place]),
            "worst": round(min(rho), 3),
            "kendall": round(float(np.mean(kendall)), 3),
            "pairs right": round(float(np.nanmean(pairs)), 3),
            "regret": round(float(np.mean([_regret(one, name) for one in members])), 4),
            "over eci_v1": _interval(resampled[:, place] - resampled[:, names.index("eci_v1")]),
        }
    return rows


def _resampled(members: list[Measured], names: list[str], seed: int = 0) -> np.ndarray:
    """Return mean correlations over members of resampled sets and test queries (RESAMPLES,
    names).
    """
    random, out = np.random.default_rng(seed), np.empty((RESAMPLES, len(names), len(members)))
    for m, one in enumerate(members):
        gains, values = one.gains.mean(1), np.stack([one.predictors[name] for name in names])
        for r in range(RESAMPLES):
            sets = random.integers(0, len(gains), len(gains))
            queries = random.integers(0, gains.shape[1], gains.shape[1])
            gain = gains[np.ix_(sets, queries)].mean(1)
            out[r, :, m] = spearmanr(np.column_stack([gain, values[:, sets].T])).statistic[0, 1:]
    return out.mean(2)


def _interval(values: np.ndarray) -> list[float]:
    return [round(float(end), 3) for end in np.nanquantile(values, [0.025, 0.975])]


def noise(one: Measured) -> float:
    """Return the standard deviation of a gain over seeds."""
    return (
        float(np.sqrt(one.gains.mean(2).var(axis=1, ddof=1).mean()))
        if one.gains.shape[1] > 1
        else 0.0
    )


def _pairs(one: Measured, name: str) -> float:
    """Return the share of pairs of sets that really differ which a predictor orders right."""
    gain, value = one.gains.mean((1, 2)), one.predictors[name]
    least = 2 * noise(one) * np.sqrt(2 / one.gains.shape[1])
    right = [
        (gain[a] - gain[b]) * (value[a] - value[b]) > 0
        for a, b in combinations(range(len(gain)), 2)
        if abs(gain[a] - gain[b]) > least
    ]
    return float(np.mean(right)) if right else float("nan")


def _regret(one: Measured, name: str) -> float:
    gain = one.gains.mean((1, 2))
    return float(gain.max() - gain[np.argmax(one.predictors[name])])


def _sampler(members: list[Measured], ours: str) -> dict[str, Any]:
    """Return by how much training on the set of the sampler `coverage` gains more than on others:
    the
    mean over conditions, with its interval over test queries.
    """
    found = {}
    for rival in (*(one for one in RIVALS if one != ours), "the best other set"):
        random, differences, draws = np.random.default_rng(1), [], []
        for one in members:
            gains = one.gains.mean(1)
            others = {name: gains[place] for place, name in enumerate(one.sets) if name != ours}
            best = max(others, key=lambda name: others[name].mean())
            other = others[best if rival not in others else rival]
            each = gains[one.sets.index(ours)] - other
            differences.append(each.mean())
            drawn = random.integers(0, len(each), (RESAMPLES, len(each)))
            draws.append(each[drawn].mean(1))
        found[rival] = {
            "gain": round(float(np.mean(differences)), 4),
            "interval": _interval(np.mean(draws, axis=0)),
            "wins": f"{sum(d > 0 for d in differences)} of {len(differences)}",
        }
    return found


def _condition(one: Measured, names: list[str]) -> dict[str, Any]:
    order = np.argsort(-one.gains.mean((1, 2)))
    return {
        "condition": one.name,
        **{name: round(value, 5) for name, value in one.facts.items()},
        "seeds": one.gains.shape[1],
        "test queries": one.gains.shape[2],
        "noise": round(noise(one), 4),
        "spearman": {name: round(one.rho(name), 3) for name in names},
        "columns": ["gain", *names],
        "sets": {
            one.sets[place]: [
                round(float(one.gains[place].mean()), 4),
                *(round(float(one.predictors[name][place]), 3) for name in names),
            ]
            for place in order
        },
    }
