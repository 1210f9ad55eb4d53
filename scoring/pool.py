"""survivors of a shard -> their positions by a sampler: what `scoring.samplers` needs is
gathered here.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from miner.corpus import Documents
from miner.errors import UserError
from miner.search.vectors import document_vectors
from miner.store import Run
from scoring.recipe import SIMILARITY, Recipe, database, judged
from scoring.samplers import SAMPLERS, Cells, Pool

# The draw depends on the seed and the ids alone: 52 bits of a hash, and never 0 or 1.
SURVIVORS = """
SELECT query_id, doc_id, min(rank * {sources} + place) AS turn, any_value(s_0) AS score,
    ((md5_number_lower('{seed}' || chr(31) || query_id || chr(31) || doc_id) >> 12)::DOUBLE + 0.5) /
        4503599627370496 AS draw
FROM graded WHERE step = {passed} GROUP BY query_id, doc_id ORDER BY query_id, turn, doc_id
"""


def survivors(db: duckdb.DuckDBPyConnection, recipe: Recipe, passed: int) -> pa.Table:
    """Return each document that passed all rules once, query after query, with its turn, score
    and draw.
    """
    text = SURVIVORS.format(sources=len(recipe.quotas), seed=recipe.options.seed, passed=passed)
    return db.sql(text).to_arrow_table()


def positions(run: Run, recipe: Recipe, cells: Cells | None, key: str, found: pa.Table) -> pa.Table:
    """Return the survivors' positions by the recipe's sampler: query_id, doc_id, position; 0 is
    left out.
    """
    options, sampler = recipe.options, SAMPLERS[recipe.options.sampler]
    place = {
        query_id: number
        for number, query_id in enumerate(sorted(set(found["query_id"].to_pylist())))
    }
    query = np.array([place[query_id] for query_id in found["query_id"].to_pylist()], np.int64)
    pool = Pool(query, *(found[name].to_numpy() for name in ("turn", "draw", "score")))
    if "positives" in sampler.needs:
        positive_query, positive_score = _positives(run, recipe, key, place)
        pool = replace(pool, positive_query=positive_query, positive_score=positive_score)
    if "weight" in sampler.needs and cells is not None:
        pool = replace(
            pool,
            weight=cells.weigh(
                _surface(run, key, found), found["score"].to_numpy(), options.weight_cap
            ),
        )
    if "vectors" in sampler.needs:
        documents, index = Documents(run, key), vectors_of(run)
        vectors = document_vectors(
            run, index, documents, documents.rows(found["doc_id"].to_pylist())
        )
        pool = replace(pool, vectors=lambda places: vectors[places])
    quotas = [quota.most for quota in recipe.quotas]
    most = (
        options.negatives
        if all(quota is None or quota >= (options.negatives or 0) for quota in quotas)
        else None
    )
    position = sampler.order(pool, options, most) if len(found) else np.empty(0, np.int64)
    return found.select(["query_id", "doc_id"]).append_column(
        "position", pa.array(position, pa.int64())
    )


def _positives(
    run: Run, recipe: Recipe, key: str, place: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    with database(
        positives=run.read(run.POSITIVES, key), judged=judged(run, recipe.judges[0], key)
    ) as db:
        rows = db.sql(
            "SELECT query_id, doc_id, score FROM positives LEFT JOIN judged USING (query_id,"
            " doc_id) ORDER BY query_id, doc_id"
        )
        table = rows.to_arrow_table()
    query = np.array(
        [place.get(query_id, -1) for query_id in table["query_id"].to_pylist()], np.int64
    )
    return query[query >= 0], table["score"].to_numpy()[query >= 0].astype(np.float64)


def _surface(run: Run, key: str, found: pa.Table) -> np.ndarray:
    """Return the lexical overlap of survivors (c,); 0 for a query without a known word."""
    with database(
        found=found.append_column("row", pa.array(np.arange(len(found)))),
        judged=judged(run, "overlap", key),
    ) as db:
        rows = db.sql(
            "SELECT coalesce(judged.score, 0)::DOUBLE AS s FROM found LEFT JOIN judged USING"
            " (query_id, doc_id) ORDER BY row"
        )
        return rows.to_arrow_table()["s"].to_numpy()


def vectors_of(run: Run) -> str:
    """Return the name of the dense index whose vectors judge similarity read, else of the one named
    dense.

    Raises:
        UserError: there is none.
    """
    similar = run.find(SIMILARITY)
    stage = str(similar.facts.get("vectors", "")) if similar else ""
    name = Path(stage).name if stage.startswith(f"{run.INDEXES}/") else "dense"
    run.need_current(f"{run.INDEXES}/{name}", "index dense")
    return name


def count_cells(run: Run, recipe: Recipe, survivors_of: Callable[[str], pa.Table]) -> Cells:
    """Count the survivors of all shards by cell. Score bins lie between the lowest and the highest
    score of any survivor.

    Raises:
        UserError: no candidate passes the rules.
    """
    bounds = [
        (float(score.min()), float(score.max()))
        for score in _scores(run, survivors_of)
        if len(score)
    ]
    if not bounds:
        raise UserError(
            f"no candidate passes the rules of set {recipe.options.name}; `quarry select …"
            " --dry-run` shows at which they fail"
        )
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    count = partial(Cells.count, bins=recipe.options.bins, low=low, high=high)
    counts: Iterator[Cells] = (
        count(_surface(run, key, found), found["score"].to_numpy())
        for key in run.query_shards()
        if len(found := survivors_of(key))
    )
    total = next(counts)
    for cells in counts:
        total += cells
    return total


def _scores(run: Run, survivors_of: Callable[[str], pa.Table]) -> Iterator[np.ndarray]:
    return (survivors_of(key)["score"].to_numpy() for key in run.query_shards())
