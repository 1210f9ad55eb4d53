"""survivors of a shard -> their positions by a sampler: what `scoring.samplers` needs is
gathered here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import duckdb
import numpy as np
import pyarrow as pa

from miner.errors import UserError
from miner.search.vectors import document_vectors
from miner.store import Run
from scoring.cells import Cells
from scoring.judgments import Candidates, compared_index, read_judgments
from scoring.recipe import Recipe
from scoring.samplers import SAMPLERS
from scoring.survivors import Pool

# The draw depends on the seed and the ids alone: 52 bits of a hash, and never 0 or 1.
DRAW = """
SELECT ((md5_number_lower($seed || chr(31) || query_id || chr(31) || doc_id) >> 12)::DOUBLE + 0.5)
    / 4503599627370496 AS draw
FROM survivors ORDER BY place
"""


@dataclass(frozen=True)
class Survivors:
    """The pairs of a shard that passed all rules, each once, in order of query, then document.

    Attributes:
        found: the candidates.
        codes: of the pairs (s,) int64, ascending.
        turn: (s,) int64, the lowest comes first in order of retrieval ranks; unique in a query.
        score: by the recipe's judge (s,).
    """

    found: Candidates
    codes: np.ndarray
    turn: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, found: Candidates, passed: np.ndarray) -> "Survivors":
        """Gather the candidates that passed (n,)."""
        codes, first, place = np.unique(found.codes[passed], return_index=True, return_inverse=True)
        turns = found.rank * len(found.recipe.quotas) + found.source
        turn = np.full(len(codes), np.iinfo(np.int64).max)
        np.minimum.at(turn, place, turns[passed])
        return cls(found, codes, turn, found.scores(0)[passed][first])

    def draws(self) -> np.ndarray:
        """Return a uniform number of each pair (s,)."""
        shard, size = self.found.shard, len(self.found.shard.documents)
        query_ids = pa.array(shard.query_ids, pa.string()).take(pa.array(self.codes // size))
        columns = {
            "query_id": query_ids,
            "doc_id": shard.documents.doc_ids(self.codes % size),
            "place": pa.array(np.arange(len(self.codes))),
        }
        with duckdb.connect(config={"threads": 1}) as db:
            db.register("survivors", pa.table(columns))
            seed = {"seed": str(self.found.recipe.options.seed)}
            drawn = db.sql(DRAW, params=seed).fetchnumpy()["draw"]
        return np.asarray(drawn, np.float64)

    def surface(self) -> np.ndarray:
        """Return the lexical overlap of each pair (s,); 0 for a query without a known word."""
        return np.nan_to_num(read_judgments(self.found.shard, "overlap").scores(self.codes))


def positions(recipe: Recipe, cells: Cells | None, survivors: Survivors) -> np.ndarray:
    """Return the survivors' positions by the recipe's sampler (s,) int64; 0 is left out."""
    options, sampler = recipe.options, SAMPLERS[recipe.options.sampler]
    if not len(survivors.codes):
        return np.empty(0, np.int64)
    shard, size = survivors.found.shard, len(survivors.found.shard.documents)
    query = survivors.codes // size
    pool = Pool(query, survivors.turn, survivors.draws(), survivors.score)
    if "positives" in sampler.needs:
        known = read_judgments(shard, recipe.judges[0]).scores(shard.codes(*shard.positives))
        pool = replace(pool, positive_query=shard.positives[0], positive_score=known)
    if "weight" in sampler.needs and cells is not None:
        weight = cells.weigh(survivors.surface(), survivors.score, options.weight_cap)
        pool = replace(pool, weight=weight)
    if "vectors" in sampler.needs:
        rows = survivors.codes % size
        vectors = document_vectors(shard.run, vectors_of(shard.run), shard.documents, rows)
        pool = replace(pool, vectors=lambda places: vectors[places])
    # where no quota bites, no more than this of a query is asked for
    wanted = options.negatives or 0
    within = all(quota.most is None or quota.most >= wanted for quota in recipe.quotas)
    return sampler.order(pool, options, options.negatives if within else None)


def vectors_of(run: Run) -> str:
    """Return the name of the dense index whose vectors judge similarity read, else of the one named
    dense.

    Raises:
        UserError: there is none.
    """
    name = compared_index(run) or "dense"
    run.need_current(f"{run.INDEXES}/{name}", "index dense")
    return name


def count_cells(recipe: Recipe, survivors: Callable[[], Iterator[Survivors]]) -> Cells:
    """Count the survivors of all shards by cell. Score bins lie between the lowest and the highest
    score of any survivor.

    Raises:
        UserError: no candidate passes the rules.
    """
    bounds = [(one.score.min(), one.score.max()) for one in survivors() if len(one.score)]
    if not bounds:
        raise UserError(
            f"no candidate passes the rules of set {recipe.options.name}; `quarry select …"
            " --dry-run` shows at which they fail"
        )
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    count = partial(Cells.count, bins=recipe.options.bins, low=float(low), high=float(high))
    first, *others = (count(one.surface(), one.score) for one in survivors() if len(one.score))
    return sum(others, first)
