"""What judges said of the pairs of a query shard, to be looked up by pair."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.query_shard import IDS, QueryShard
from miner.store import Run


@dataclass(frozen=True)
class Judgments:
    """One judge's j rows of a query shard.

    Attributes:
        codes: of the pairs (j,) int64, ascending.
        score: (j,) float64; nan where it is null or not finite.
        rows: verdict and reason, in the same order.
    """

    codes: np.ndarray
    score: np.ndarray
    rows: pa.Table

    def find(self, codes: np.ndarray) -> np.ndarray:
        """Return the place of each pair's row (c,) int64; j where there is none."""
        place = np.searchsorted(self.codes, codes)
        there = np.append(self.codes, -1)[place] == codes
        return np.where(there, place, len(self.codes))

    def scores(self, codes: np.ndarray) -> np.ndarray:
        """Return the scores of pairs (c,) float64; nan for none."""
        return self.scores_at(self.find(codes))

    def scores_at(self, places: np.ndarray) -> np.ndarray:
        """Return the scores at places that `find` gave (c,) float64; nan for none."""
        return np.append(self.score, np.nan)[places]

    def texts_at(self, column: str, places: np.ndarray) -> np.ndarray:
        """Return verdicts or reasons at places that `find` gave (c,); None for none."""
        encoded = self.rows[column].combine_chunks()
        values = np.array([*encoded.dictionary.to_pylist(), None], object)
        coded = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return values[np.append(coded, -1)[places]]


def read_judgments(shard: QueryShard, judge: str, columns: Sequence[str] = ()) -> Judgments:
    """Read one judge's rows of a shard; those of "similarity.positive" lie with "similarity".

    Args:
        shard: the queries.
        judge: its name.
        columns: "verdict", "reason", if they are asked for.
    """
    folder = f"{Run.JUDGES}/{judge.partition('.')[0]}"
    table = shard.run.read(folder, shard.key, [*IDS, "judge", "score", *columns])
    table = table.filter(pc.equal(table["judge"], judge))
    codes = shard.codes(*shard.places(table))
    score = table["score"].to_numpy().astype(np.float64)
    rows = table.select(list(columns))
    if not (np.diff(codes) > 0).all():  # ids that sort after "~", and documents that are gone
        order = np.argsort(codes, kind="stable")
        codes, score, rows = codes[order], score[order], rows.take(pa.array(order))
    return Judgments(codes, np.where(np.isfinite(score), score, np.nan), rows)
