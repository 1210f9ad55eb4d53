"""What becomes of each candidate once the rules have spoken: quotas, the mixture of sources, and
the rows that are written of it.
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.tables import PROMOTED, REJECTED, SETS, conform
from scoring.judgments import Candidates
from scoring.reasons import Numbers, Rule


class Fate(NamedTuple):
    """What becomes of the n candidates of a shard.

    Attributes:
        found: the candidates.
        asked: the rules that they met.
        step: the rule that each fails first (n,); after the rules, the sampler, then none.
        slot: of those that pass, the place in their source's own selection (n,), else 0.
        picked: which are within the K of their source (n,).
        turn: the place of the pair in the mixture (n,); 0 if no source picked it.
    """

    found: Candidates
    asked: list[Rule]
    step: np.ndarray
    slot: np.ndarray
    picked: np.ndarray
    turn: np.ndarray

    @classmethod
    def of(
        cls, found: Candidates, asked: list[Rule], step: np.ndarray, order: np.ndarray
    ) -> "Fate":
        """Let quotas and mixture decide about what passed the rules.

        Args:
            found, asked, step: as above.
            order: of a source's candidates for its slots (n,), ties by doc_id; ranks for the
                sampler `top`, else positions that all sources share.
        """
        passed = np.flatnonzero(step > len(asked))
        source, code = found.source[passed], found.codes[passed]
        sort = np.lexsort((code, order[passed], source, found.query[passed]))
        slot = np.zeros(len(step), np.int64)
        slot[passed[sort]] = _count_up(found.query[passed][sort], source[sort])
        most = np.array([quota.most or np.iinfo(np.int64).max for quota in found.recipe.quotas])
        picked = (slot > 0) & (slot <= most[found.source])
        mix = slot * len(most) + found.source
        if found.recipe.options.sampler != "top":
            mix = order
        distinct, place = np.unique(found.codes[picked], return_inverse=True)
        first = np.full(len(distinct), np.iinfo(np.int64).max)
        np.minimum.at(first, place, mix[picked])
        query = distinct // max(len(found.shard.documents), 1)
        sort = np.lexsort((first, query))
        turn = np.empty(len(distinct), np.int64)
        turn[sort] = _count_up(query[sort])
        at = np.searchsorted(distinct, found.codes)
        there = np.append(distinct, -1)[at] == found.codes
        return cls(found, asked, step, slot, picked, np.where(there, np.append(turn, 0)[at], 0))

    @property
    def negatives(self) -> int:
        """Return how many negatives a query may have."""
        return self.found.recipe.options.negatives or 2**31

    @property
    def kept(self) -> np.ndarray:
        """Return which candidates' pairs are negatives (n,)."""
        return (self.turn > 0) & (self.turn <= self.negatives)

    def tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Return the rows of `sets`, `rejected` and `promoted`."""
        rejected = self._rejected()
        up = pc.starts_with(rejected["reason"], "promote:")
        return (
            self.negative_rows(),
            rejected.filter(pc.invert(up)),
            conform(rejected.filter(up), PROMOTED),
        )

    def negative_rows(self) -> pa.Table:
        """Return the rows of `sets`."""
        found, recipe = self.found, self.found.recipe
        rows = np.flatnonzero(self.kept)
        rows = rows[np.lexsort((found.source[rows], self.turn[rows], found.query[rows]))]
        starts = np.flatnonzero(np.diff(found.codes[rows], prepend=-1))
        first = rows[starts]  # of each pair, its first source
        names = pa.array([quota.source for quota in recipe.quotas], pa.string())
        columns = [
            names.take(pa.array(found.source[rows])),
            pa.array(found.rank[rows], pa.int32()),
            pa.array(found.found_score[rows], pa.float32(), from_pandas=True),
        ]
        where = pa.StructArray.from_arrays(columns, ["source", "rank", "score"])
        offsets = pa.array(np.append(starts, len(rows)).astype(np.int32))
        return conform(
            pa.table(
                {
                    **self._ids(first),
                    "sources": pa.ListArray.from_arrays(offsets, where),
                    "rank": pa.array(self.turn[first], pa.int32()),
                    "score": _nullable(found.scores(0)[first]),
                    "positive_score": _nullable(found.lowest(0)[first]),
                    "weight": pa.array(np.ones(len(first)), pa.float32()),
                }
            ),
            SETS,
        )

    def _rejected(self) -> pa.Table:
        """Return one row for each pair that is no negative: that of the source in which it came
        furthest.
        """
        rows = np.flatnonzero(~self.kept)
        codes, source = self.found.codes[rows], self.found.source[rows]
        rows = rows[np.lexsort((source, -self.step[rows], ~self.picked[rows], codes))]
        rows = rows[np.flatnonzero(np.diff(self.found.codes[rows], prepend=-1))]
        value, threshold = (self._compared(part, rows) for part in ("value", "threshold"))
        return conform(
            pa.table(
                {
                    **self._ids(rows),
                    "reason": pa.array(self.reasons(rows), pa.string()),
                    "value": _nullable(value),
                    "threshold": _nullable(threshold),
                }
            ),
            REJECTED,
        )

    def _ids(self, rows: np.ndarray) -> dict[str, Any]:
        shard = self.found.shard
        query_ids = pa.array(shard.query_ids, pa.string())
        return {
            "query_id": query_ids.take(pa.array(self.found.query[rows])),
            "doc_id": shard.documents.doc_ids(self.found.row[rows]),
            "set_name": pa.array(np.full(len(rows), self.found.recipe.options.name), pa.string()),
        }

    def reasons(self, rows: np.ndarray) -> np.ndarray:
        """Return why candidates that are no negatives are none."""
        sampler = self.found.recipe.options.sampler
        out = np.where(self.picked[rows], "negatives", "quota").astype(object)
        for place, reason in enumerate([*(rule.reason for rule in self.asked), sampler]):
            mine = self.step[rows] == place
            out[mine] = reason[rows[mine]] if isinstance(reason, np.ndarray) else reason
        return out

    def _compared(self, part: str, rows: np.ndarray) -> np.ndarray:
        """Return value or threshold of what decided; nan for none."""
        quotas = self.found.recipe.quotas
        most = np.array([quota.most or np.nan for quota in quotas], float)[self.found.source[rows]]
        if part == "value":
            out = np.where(self.picked[rows], self.turn[rows], self.slot[rows]).astype(float)
        else:
            out = np.where(self.picked[rows], self.negatives, most)
        out[self.step[rows] == len(self.asked)] = np.nan
        for place, rule in enumerate(self.asked):
            mine, given = self.step[rows] == place, getattr(rule, part)
            out[mine] = _of(given, rows[mine])
        return out

    def fates(self) -> Counter[tuple[int, int, str]]:
        """Count (source, step, what became of a candidate there)."""
        said = self.reasons(np.arange(len(self.step)))
        said[self.kept] = "kept from another source"
        said[self.kept & self.picked] = "kept"
        passed = len(self.asked) + 1
        step = np.where(self.kept, passed + 2, self.step) + self.picked
        return Counter(zip(self.found.source.tolist(), step.tolist(), said.tolist(), strict=True))


def _count_up(*groups: np.ndarray) -> np.ndarray:
    """Return 1, 2, 3… within each run of equal values of all groups (n,)."""
    new = np.any([np.diff(group, prepend=-1) != 0 for group in groups], axis=0)
    starts = np.flatnonzero(new)
    return np.arange(1, len(new) + 1) - np.repeat(starts, np.diff(np.append(starts, len(new))))


def _of(given: Numbers, rows: np.ndarray) -> Any:
    if given is None:
        return np.nan
    return given[rows] if isinstance(given, np.ndarray) else given


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))
