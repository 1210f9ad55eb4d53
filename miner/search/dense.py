"""queries + vectors -> candidates.

Every engine of `miner.search.flat` reads the same arrays, shard by shard, and gives the same
candidates; `miner.search.approximate` finds most of them.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.options import NAME, Options, option
from miner.query_shard import QueryShard
from miner.search import approximate, torch_scan
from miner.search.flat import Engine, choose_engine, search
from miner.search.vectors import Vectors
from miner.seeds import hash_of
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run

# (queries (n, d), depth) -> rows (n, depth) int64 and scores (n, depth) float32 in order of rank,
# -1 where there are fewer
Find = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
# approximate search is held against exact search with so many queries, drawn with this seed
RECALL_QUERIES, SEED = 256, 0


class MineDense(Options):
    """Dense candidates: search by inner product, exact unless a factory is named."""

    k: int = option(
        50, "candidates per query; positives that are found come on top", short="-k", ge=1
    )
    name: str = option("dense", "name of the source", pattern=NAME)
    index: str | None = option(
        None, "which index [default: the one named as the source]", pattern=NAME
    )
    search: Literal["auto", "torch", "faiss", "numpy"] = option(
        "auto", "engine; all exact ones give the same answer"
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "where to search; auto: GPUs if the engine can use them"
    )
    factory: str | None = option(
        None, "a FAISS index_factory string, such as IVF1024,Flat or HNSW32: approximate"
    )
    parameters: str | None = option(
        None, "FAISS search parameters for the factory, such as nprobe=32 or efSearch=128"
    )
    group_documents: int = option(
        2000000, "documents in one FAISS index of a factory; more are cut and merged", ge=1
    )
    queries_from_positives: bool = option(
        False, "search with each query's positives instead of the query"
    )
    symmetric: bool = option(
        False, "search with the query and with its positives; the best score counts"
    )


def mine_dense(run: Run, options: MineDense, how: How) -> Manifest:
    """Search every query, exactly unless a factory is named: queries + vectors ->
    3_candidates/<name>.

    Raises:
        UserError: there is no such index, or options contradict each other.
    """
    inputs = run.table_input()
    index = run.need_index(options.index or options.name, "dense")
    inputs |= {index.stage: index.fingerprint}
    _refuse_contradictions(options)
    # All exact engines give the same bytes: which one it was is a fact, not a part of the plan; and
    # it is chosen when there is work to do.
    engine = cache(
        partial(choose_engine, "faiss" if options.factory else options.search, options.device)
    )
    searched = {"searched_with": searched_with(options)}
    plan: dict[str, Any] = {"k": options.k, "name": options.name, **searched}

    def find() -> Find:
        exact = replace(engine(), vectors=index.fingerprint)
        return partial(_find_exactly, run, options.index or options.name, exact)

    if options.factory:
        built, find = _approximate(run, options, index, engine().device, how)
        plan |= {**built.options, "parameters": options.parameters}
        inputs[built.stage] = built.fingerprint

    def facts() -> dict[str, Any]:
        told = {"engine": engine().name, "device": engine().device, **searched}
        return told | (recall(run, options, find()) if options.factory else {})

    stage = Stage(f"{run.SOURCES}/{options.name}", "candidates", plan, inputs, made_by="mine dense")
    prepare, keys = lambda: partial(_search_shard, options, run, find()), run.query_shards()
    try:
        return run_stage(run, stage, prepare, keys, how, facts)
    finally:
        torch_scan.forget_vectors()
        approximate.forget_indexes()


def _refuse_contradictions(options: MineDense) -> None:
    """Refuse options that contradict each other."""
    if options.symmetric and options.queries_from_positives:
        raise UserError(
            "--symmetric searches with the query too, --queries-from-positives without it; give one"
            " of them"
        )
    if options.parameters and not options.factory:
        raise UserError(
            f"--parameters {options.parameters} belongs to an approximate index; name it with"
            " --factory, or leave it out"
        )
    if options.factory and options.search in ("numpy", "torch"):
        raise UserError(
            f"--factory {options.factory} is built by FAISS, not by --search {options.search};"
            " leave --search out"
        )


def _approximate(
    run: Run, options: MineDense, index: Manifest, device: str, how: How
) -> tuple[Manifest, Callable[[], Find]]:
    """Build the approximate index that the options name, if it is not there, and return its
    manifest and what gives its search.
    """
    vectors = Vectors(run, options.index or options.name)
    what = approximate.Factory(
        index.stage, options.factory or "", options.parameters or "", options.group_documents
    )
    groups = what.groups(vectors.blocks(), vectors.corpus.shard_size)
    return approximate.build_index(run, what, index.fingerprint, groups, how), lambda: partial(
        approximate.find, run, what, groups, device
    )


def _find_exactly(
    run: Run, name: str, engine: Engine, queries: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    return search(engine, queries, Vectors(run, name).blocks(), depth)


def searched_with(options: MineDense) -> str:
    """Return what a source's candidates are near to; ranks say how well queries are answered
    only if it is "query".
    """
    return (
        "query and positives"
        if options.symmetric
        else "positives"
        if options.queries_from_positives
        else "query"
    )


def merge(
    found: tuple[np.ndarray, np.ndarray],
    owners: np.ndarray,
    positives: tuple[np.ndarray, np.ndarray],
    queries: int,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Merge what several vectors found for one query: a document counts by its best score; the
    query's own positives are left out.

    Args:
        found: rows and scores, both (s, m), -1 for no document.
        owners: (s,) place of the query that each vector searched for.
        positives: places of queries and rows of their positives, both (p,).
        queries: how many there are, those that nothing searched for counted.
        k: documents per query.

    Returns:
        rows (queries, k) int64 and scores (queries, k) float32, in order of score, then row; -1 and
        -inf where there are fewer.
    """
    rows, scores, owner = found[0].ravel(), found[1].ravel(), np.repeat(owners, found[0].shape[1])
    size = max(rows.max(initial=0), positives[1].max(initial=0)) + 1
    there = (rows >= 0) & ~np.isin(owner * size + rows, positives[0] * size + positives[1])
    rows, scores, owner = rows[there], scores[there], owner[there]
    order = np.lexsort((rows, -scores, owner))
    rows, scores, owner = rows[order], scores[order], owner[order]
    # of each document, where it scores best
    first = np.sort(np.unique(owner * size + rows, return_index=True)[1])
    rows, scores, owner = rows[first], scores[first], owner[first]
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    keep, shape = rank < k, (queries, k)
    out_rows, out_scores = np.full(shape, -1), np.full(shape, -np.inf, np.float32)
    out_rows[owner[keep], rank[keep]] = rows[keep]
    out_scores[owner[keep], rank[keep]] = scores[keep]
    return out_rows, out_scores


def _search_shard(options: MineDense, run: Run, find: Find, key: str) -> Shard:
    shard = QueryShard(run, key, made=False)
    searchers, owners = _searchers(options, shard)
    found = find(searchers, min(shard.depth(options.k), len(shard.documents)))
    if searched_with(options) != "query":
        found = merge(found, owners, shard.positives, len(shard.query_ids), options.k)
    return Shard({key: shard.candidates(found, options.k, options.name)})


def _searchers(options: MineDense, shard: QueryShard) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors (s, d) that search for a shard's queries, and the place of the query
    that each belongs to (s,).
    """
    vectors = Vectors(shard.run, options.index or options.name)
    what, (owners, rows) = searched_with(options), shard.positives
    own = np.ascontiguousarray(vectors.queries(shard.key))
    if what == "query":
        return own, np.arange(len(own))
    others = vectors.documents(rows)
    if what == "positives":
        return others, owners
    return np.vstack((own, others)), np.concatenate((np.arange(len(own)), owners))


def recall(run: Run, options: MineDense, find: Find) -> dict[str, Any]:
    """Return which share of the k nearest documents approximate search finds, for a sample of
    queries.
    """
    engine = choose_engine("auto", "cpu" if options.device == "cpu" else "auto")
    exact = partial(_find_exactly, run, options.index or options.name, engine)
    corpus, hits, there, count = Corpus(run), 0, 0, 0
    for searchers, queries in _sample_queries(run, options):
        (about, _), (true, _) = (
            search(searchers, min(options.k, len(corpus))) for search in (find, exact)
        )
        count += queries
        there += (true >= 0).sum()
        hits += sum(len(np.intersect1d(a, t[t >= 0])) for a, t in zip(about, true, strict=True))
    return {
        f"recall@{options.k}": round(float(hits / there), 4) if there else None,
        "recall_queries": count,
    }


def _sample_queries(run: Run, options: MineDense) -> Iterator[tuple[np.ndarray, int]]:
    """Yield, shard by shard, the vectors that search for a sample of queries, and how many queries
    they are.

    The sample depends on the seed and the query_ids alone, not on how they are cut.
    """
    ids = (
        (query_id, key)
        for key in run.query_shards()
        for query_id in run.read(run.QUERIES, key)["query_id"].to_pylist()
    )
    drawn = heapq.nsmallest(RECALL_QUERIES, ids, key=lambda item: hash_of(SEED, item[0]))
    for key in sorted({key for _, key in drawn}):
        shard = QueryShard(run, key, made=False)
        searchers, owners = _searchers(options, shard)
        chosen = np.isin(shard.query_ids, [query_id for query_id, _ in drawn])
        yield searchers[chosen[owners]], int(chosen.sum())
