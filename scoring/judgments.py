"""What judges said of the pairs of a query shard, and the candidates of a recipe with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.query_shard import IDS, QueryShard
from miner.store import Run
from scoring.recipe import Recipe


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


def compared_index(run: Run) -> str | None:
    """Return the name of the dense index whose vectors judge similarity compared; None if it has
    not run, or encoded the texts itself.
    """
    similar = run.find(f"{run.JUDGES}/similarity")
    stage = Path(str(similar.facts.get("vectors", "")) if similar else "")
    return stage.name if stage.parent.name == run.INDEXES else None


def read_judgments(shard: QueryShard, judge: str, columns: Sequence[str] = ()) -> Judgments:
    """Read one judge's rows of a shard; those of "similarity.positive" lie with "similarity".

    Args:
        shard: the queries.
        judge: its name.
        columns: "verdict", "reason", if they are asked for.
    """
    folder = shard.run.judge_folder(judge)
    table = shard.run.read(folder, shard.key, [*IDS, "judge", "score", *columns])
    table = table.filter(pc.equal(table["judge"], judge))
    codes = shard.codes(*shard.places(table))
    score = table["score"].to_numpy().astype(np.float64)
    rows = table.select(list(columns))
    if not (np.diff(codes) > 0).all():  # ids that sort after "~", and documents that are gone
        order = np.argsort(codes, kind="stable")
        codes, score, rows = codes[order], score[order], rows.take(pa.array(order))
    return Judgments(codes, np.where(np.isfinite(score), score, np.nan), rows)


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
