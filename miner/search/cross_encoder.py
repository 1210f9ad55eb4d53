"""candidates of other sources + cross-encoder -> candidates: the best of what they found.

Each distinct pair is scored once. All scores, positives' included, lie in the side table `_scores`,
where the judge with the same model finds them (`known_scores`). When one of the sources is mined
again, only its new pairs are scored.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miner.corpus import Shelf
from miner.engine import How
from miner.errors import UserError
from miner.models.hub import Reranker, gpu_count
from miner.models.reranker import bare, load_reranker, reranker_facts, reranker_fingerprint
from miner.options import NAME, option
from miner.query_shard import SOURCES, Pairs, candidate_pairs, candidates, positive_rows
from miner.search.topk import best
from miner.store import Manifest, Run, Shard, Stage, run_stage

SCORES = "_scores"
PAIR_SCORES = pa.schema(
    [("query_id", pa.string()), ("doc_id", pa.string()), ("score", pa.float32())]
)


class MineCrossEncoder(Reranker):
    """Cross-encoder candidates: the best of what other sources found."""

    sources: tuple[str, ...] = option(
        ..., "source whose candidates are scored; repeat for more", flag="--from", min_length=1
    )
    k: int = option(
        50, "candidates per query; positives that are found come on top", short="-k", ge=1
    )
    name: str = option("cross-encoder", "name of the source", pattern=NAME)


def mine_cross_encoder(run: Run, options: MineCrossEncoder, how: How) -> Manifest:
    """Score all pairs of some sources and keep the best: candidates + cross-encoder ->
    3_candidates/<name>.

    Raises:
        UserError: a source is not there, named twice or this one itself; or the model is not to be
            had.
    """
    inputs = run.table_input() | _need_sources(run, options)
    model = reranker_fingerprint(options)
    stage = Stage(
        f"{SOURCES}{options.name}",
        "candidates",
        options.record(),
        inputs,
        model=model,
        grows=SOURCES,
    )
    how = replace(how, workers=max(how.workers, gpu_count(options)))
    return run_stage(
        run,
        stage,
        lambda: partial(_rerank_shard, run, options),
        run.query_shards(),
        how,
        lambda: reranker_facts(options),
    )


def _need_sources(run: Run, options: MineCrossEncoder) -> dict[str, str]:
    """Return the stages of the sources -> their fingerprints."""
    names = options.sources
    if options.name in names:
        raise UserError(
            f"--from {options.name} names the source that is being made; name others, or give this"
            " one another --name"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--from names {', '.join(twice)} more than once; name each source once")
    found = [name for name in run.names(SOURCES) if name != options.name]
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UserError(
            f"no finished source {', '.join(unknown)} in {run.path / SOURCES} (found"
            f" {', '.join(found) or 'none'}); take one of these, or run `quarry mine {unknown[0]}`"
            " first"
        )
    stages = [run.need_current(f"{SOURCES}{name}", f"mine {name}") for name in names]
    return {stage.stage: stage.fingerprint for stage in stages}


def scores_of(pairs: Pairs, texts: list[str], reranker: Reranker, known: np.ndarray) -> np.ndarray:
    """Return the scores (p,) float32 of pairs; the model is asked, and loaded, only for those that
    are nan in `known`.

    Args:
        pairs: p of them.
        texts: of the queries of their shard, in order.
        reranker: the model.
        known: (p,) float32.
    """
    todo = np.isnan(known)
    if not todo.any():
        return known
    places, query = np.unique(pairs.query[todo], return_inverse=True)
    rows, document = np.unique(pairs.row[todo], return_inverse=True)
    out = known.copy()
    out[todo] = load_reranker(bare(reranker))(
        [texts[place] for place in places], pairs.corpus.texts(rows), query, document
    )
    return out


def known_scores(run: Run, model: str, key: str, pairs: Pairs) -> np.ndarray:
    """Return the scores (p,) float32 that finished sources have already from a model, by its
    fingerprint; nan for none.
    """
    known, tables = np.full(len(pairs.query), np.nan, np.float32), run.tables().fingerprint
    for name in run.names(SOURCES):
        made = run.find(f"{SOURCES}{name}")
        if made and made.model == model and made.inputs.get(run.TABLES) == tables:
            known = np.where(
                np.isnan(known), pairs.look_up(run.read(f"{made.stage}/{SCORES}", key)), known
            )
    return known


def _rerank_shard(run: Run, options: MineCrossEncoder, key: str) -> Shard:
    corpus, queries = Shelf(run, key), run.read(run.QUERIES, key)
    query_ids = queries["query_id"].to_pylist()
    pairs = candidate_pairs(run, corpus, query_ids, options.sources, key)
    # of this very model and tables, or the store had refused
    made = run.path / SOURCES / options.name / SCORES / f"{key}.parquet"
    known = pairs.look_up(
        pq.read_table(made, partitioning=None) if made.exists() else PAIR_SCORES.empty_table()
    )
    known = np.where(
        np.isnan(known), known_scores(run, reranker_fingerprint(options), key, pairs), known
    )
    score = scores_of(pairs, queries["text"].to_pylist(), options, known)
    positives = positive_rows(corpus, query_ids, run.read(run.POSITIVES, key))
    table = candidates(
        corpus, query_ids, positives, _ranked(pairs, score, len(query_ids)), options.k, options.name
    )
    return Shard(
        {f"{SCORES}/{key}": pa.table([*pairs.ids(), score], schema=PAIR_SCORES), key: table}
    )


def _ranked(pairs: Pairs, score: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each query's rows and scores, both (queries, m), in order of score, then row; -1
    and -inf where there are fewer.
    """
    counts = np.bincount(pairs.query, minlength=queries)
    line = np.arange(len(score)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = queries, int(counts.max(initial=0))
    rows, scores = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    rows[pairs.query, line], scores[pairs.query, line] = pairs.row, score
    return best(rows, scores, shape[1])
