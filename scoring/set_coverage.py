"""sets + reference + vectors -> coverage of each set, with its interval, and what it misses.

Gradients are sums over queries, so a set is read shard by shard. For intervals they are summed in
BLOCKS groups of queries, by a hash of the id, and one group after the other is left out (the
jackknife: resamples with repeats would raise coverage, since the same queries make G and R). The
groups are the same for every set, so that two sets are compared with the same queries. Queries
without a negative in a set count neither for its gradient nor for the reference that it is held
against.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.query_shard import IDS, QueryShard
from miner.search.vectors import Vectors
from miner.seeds import generator, hash_of
from miner.store import Run
from scoring.coverage import EDGES, Pull, coverage, coverage_cosine, head_gradient, joined
from scoring.metrics import REFERENCE as FOLDER
from scoring.metrics import Covering, Values

BLOCKS = 32
REFERENCE = "reference"
MEASURES = {"coverage": coverage, "coverage_cosine": coverage_cosine}


class SetShard(NamedTuple):
    """The positives of one shard whose queries have a negative in a set, p of them, and those
    negatives, m of them.

    Attributes:
        block: of each positive's query (p,) int64.
        queries, positives: vectors (p, d).
        reference: v (p, d).
        owner, row: place of a positive, place in documents, of each negative (m,) int64.
        rank: of each negative in its query's set, from 0 (m,).
        documents: vectors.
        query: place of each positive's query in the shard (p,).
    """

    block: np.ndarray
    queries: np.ndarray
    positives: np.ndarray
    reference: np.ndarray
    owner: np.ndarray
    row: np.ndarray
    rank: np.ndarray
    documents: np.ndarray
    query: np.ndarray


def measure_coverage(
    run: Run, name: str, options: Covering, sizes: Sequence[int]
) -> tuple[Values, Values, dict[str, Any]]:
    """Return the measures of a set, what they are without each block of queries, and facts: the
    reference, and what of it the set gives by band of hardness.

    Args:
        run: a run with a reference.
        name: of the set.
        options: tau, batch, seed.
        sizes: ascending; of which the first negatives of each query are measured as well.

    Returns:
        (measure, k) -> (1,); the same -> (BLOCKS,); facts for the manifest.
    """
    told = run.need(FOLDER, "score")
    sums = _sum_blocks(run, [name], options, [*sizes, None])
    reference = sums.pop(REFERENCE)
    value: Values = {}
    without: Values = {}
    for size in (None, *sizes):
        for measure in MEASURES:
            key = measure if size is None else f"{measure}@{size}", size
            whole, without[key] = _measure(measure, sums[size], reference)
            value[key] = np.array([whole])
    bands = _by_band(run, sums[None].sum(axis=0, dtype=np.float64))
    return (
        value,
        without,
        {"coverage_reference": {**told.facts, **told.options}, "coverage_bands": bands},
    )


def measure_on_common(
    run: Run, names: tuple[str, str], measure: str, options: Covering
) -> list[tuple[float, np.ndarray]]:
    """Return a measure of two sets, on the queries that both have a negative for, and what it is
    without each block of them (BLOCKS,).

    Args:
        run: a run with a reference.
        names: of the sets.
        measure: such as "coverage@5".
        options: tau, batch, seed.
    """
    form, _, first = measure.partition("@")
    size = int(first) if first else None
    found = []
    for both in (names, names[::-1]):
        sums = _sum_blocks(run, both, options, [size])
        found.append(_measure(form, sums[size], sums[REFERENCE]))
    return found


def _measure(measure: str, own: np.ndarray, reference: np.ndarray) -> tuple[float, np.ndarray]:
    """Return a measure of G and R in blocks, and what it is without each of them."""
    form = MEASURES[measure]
    whole = own.sum(axis=0, dtype=np.float64), reference.sum(axis=0, dtype=np.float64)
    left = [form(whole[0] - own[b], whole[1] - reference[b]) for b in range(BLOCKS)]
    return float(form(*whole)), np.array(left)


def _sum_blocks(
    run: Run, names: Sequence[str], options: Covering, sizes: Sequence[int | None]
) -> dict[int | str | None, np.ndarray]:
    """Return G of the first negatives of the first set, by their number, and R, in blocks of
    queries: (BLOCKS, d, d) float32 each. Only queries count that have a negative in all sets.
    """
    vectors = read_vectors(run)
    width = vectors.queries(run.query_shards()[0]).shape[1]
    sums: dict[int | str | None, np.ndarray] = {
        size: np.zeros((BLOCKS, width, width), np.float32) for size in (REFERENCE, *sizes)
    }
    for key in run.query_shards():
        chosen, *others = (run.read(f"{run.SETS}/{name}", key, [*IDS, "rank"]) for name in names)
        for other in others:
            chosen = chosen.filter(
                pc.is_in(chosen["query_id"], other["query_id"].unique().cast(pa.string()))
            )
        held = read_held(QueryShard(run, key), vectors, chosen)
        for size, pull in chain([(REFERENCE, held.reference)], pulls_of(held, options, sizes)):
            add_blocks(sums[size], held, pull)
    return sums


def read_vectors(run: Run) -> Vectors:
    """Return the vectors that the reference was made of."""
    return Vectors(run, str(run.need(FOLDER, "score").facts["vectors"]).rpartition("/")[2])


def add_blocks(sums: np.ndarray, held: SetShard, pull: np.ndarray) -> None:
    """Add the gradients of a shard to those of its blocks of queries (BLOCKS, d, d)."""
    for block in np.unique(held.block):
        mine = held.block == block
        sums[block] += head_gradient(held.queries[mine], pull[mine])


def read_held(
    shard: QueryShard, vectors: Vectors, chosen: pa.Table, everyone: bool = False
) -> SetShard:
    """Read what the coverage of a set takes of one shard.

    Args:
        shard: the queries.
        vectors: of the reference.
        chosen: query_id, doc_id, rank of the negatives.
        everyone: queries without a negative count as well: they have no gradient.
    """
    query, row = shard.places(chosen)
    order = np.lexsort((chosen["rank"].to_numpy(), query))
    query, row = query[order], row[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    owner, positive = shard.positives
    at = np.flatnonzero(np.isin(owner, query) | everyone)
    one, item = joined(owner[at], query)
    rows, place = np.unique(row[item], return_inverse=True)
    block = [hash_of(0, shard.query_ids[query]) % BLOCKS for query in owner[at].tolist()]
    return SetShard(
        np.array(block, np.int64),
        vectors.queries(shard.key)[owner[at]],
        vectors.documents(positive[at]),
        np.load(shard.run.path / FOLDER / f"{shard.key}.npy", mmap_mode="r")[at],
        one,
        place,
        rank[item],
        documents_of(shard, vectors, rows),
        owner[at],
    )


def documents_of(shard: QueryShard, vectors: Vectors, rows: np.ndarray) -> np.ndarray:
    """Return vectors; those of made documents lie with the reference."""
    made = shard.documents.is_made(rows)
    if not made.any():
        return vectors.documents(rows)
    encoded = np.load(shard.run.path / FOLDER / "_made" / f"{shard.key}.npy", mmap_mode="r")
    out = np.empty((len(rows), encoded.shape[1]), np.float32)
    out[~made] = vectors.documents(rows[~made])
    out[made] = encoded[rows[made] - vectors.corpus.count]
    return out


def pulls_of(
    held: SetShard, options: Covering, sizes: Sequence[int | None]
) -> Iterator[tuple[int | None, np.ndarray]]:
    """Yield for each size u (p, d): of the positive's own first negatives, and with a batch also
    of what stands beside it there.
    """
    pull, before = Pull(held.queries, held.positives, options.tau), 0.0
    for size in sizes:
        most = np.inf if size is None else size
        own = held.rank < most
        new = own & (held.rank >= before)
        pull.add_own(held.owner[new], held.row[new], held.documents)
        before = most
        if options.batch is None:
            yield size, pull.gradient()
        else:
            others = generator(options.seed, "batches").permutation(len(held.query))
            beside = copy(pull)
            beside.pulled = pull.pulled.copy()
            for part in np.array_split(others, -(-len(others) // options.batch)):
                _add_batch(beside, held, part, (held.owner[own], held.row[own]))
            yield size, beside.gradient()


def _add_batch(
    pull: Pull, held: SetShard, part: np.ndarray, own: tuple[np.ndarray, np.ndarray]
) -> None:
    """Add to the positives of one batch what other queries bring along: positives come after the
    documents.
    """
    count = len(held.documents)
    mine = np.isin(own[0], part)
    beside = np.concatenate((np.unique(own[1][mine]), count + part))
    owner, row = np.repeat(part, len(beside)), np.tile(beside, len(part))
    width = count + len(held.query)
    new = ~np.isin(owner * width + row, own[0][mine] * width + own[1][mine])
    new &= np.append(np.full(count, -1), held.query)[row] != held.query[owner]
    pull.add_own(owner[new], row[new], np.concatenate((held.documents, held.positives)))


def _by_band(run: Run, own: np.ndarray) -> list[dict[str, Any]]:
    """Return for each band of hardness what share of sum |R| the corpus's documents in it ask for
    and what share of it the set's gradient gives. The first add up to 1, the second to the
    coverage of a set that has all queries.
    """
    keys = run.query_shards()
    files = [run.path / FOLDER / "_bands" / f"{key}.npy" for key in keys]
    bands = np.sum([np.load(file) for file in files], axis=0)
    whole = bands.sum(axis=0)
    total = np.abs(whole).sum() or 1.0
    ends = [None, *EDGES, None]
    return [
        {
            "above": ends[place],
            "below": ends[place + 1],
            "asked": round(float((np.sign(whole) * band).sum() / total), 4),
            "given": round(float((np.sign(own) * band).sum() / total), 4),
        }
        for place, band in enumerate(bands)
    ]
