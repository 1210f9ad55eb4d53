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

from miner.engine import How
from miner.errors import UserError
from miner.models.hub import Reranker, gpu_count
from miner.models.reranker import bare, load_reranker, reranker_facts, reranker_fingerprint
from miner.options import NAME, option
from miner.query_shard import Pairs, QueryShard
from miner.search.topk import best
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run

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
    inputs, name = run.table_input(), options.name
    if name in options.sources:
        raise UserError(
            f"--from {name} names the source that is being made; name others, or give this one"
            " another --name"
        )
    stage = Stage(
        f"{run.SOURCES}/{name}",
        "candidates",
        options.record(),
        inputs | run.need_sources(options.sources),
        model=reranker_fingerprint(options),
        grows=f"{run.SOURCES}/",
        made_by="mine cross-encoder",
    )
    how = replace(how, workers=max(how.workers, gpu_count(options)))
    task = partial(_rerank_shard, run, options)
    return run_stage(
        run, stage, lambda: task, run.query_shards(), how, partial(reranker_facts, options)
    )


def scores_of(pairs: Pairs, reranker: Reranker, known: np.ndarray) -> np.ndarray:
    """Return the scores (p,) float32 of pairs; the model is asked, and loaded, only for those that
    are nan in `known`.

    Args:
        pairs: p of them.
        reranker: the model.
        known: (p,) float32.
    """
    todo = np.isnan(known)
    if not todo.any():
        return known
    places, query = np.unique(pairs.query[todo], return_inverse=True)
    rows, document = np.unique(pairs.row[todo], return_inverse=True)
    texts, documents = pairs.shard.texts, pairs.shard.documents.texts(rows)
    score = load_reranker(bare(reranker))
    out = known.copy()
    out[todo] = score([texts[place] for place in places], documents, query, document)
    return out


def known_scores(pairs: Pairs, model: str) -> np.ndarray:
    """Return the scores (p,) float32 that finished sources of these tables have already from a
    model, by its fingerprint; nan for none.
    """
    run, key = pairs.shard.run, pairs.shard.key
    known, tables = np.full(len(pairs), np.nan, np.float32), run.tables().fingerprint
    for name in run.names(Run.SOURCES):
        made = run.find(f"{Run.SOURCES}/{name}")
        if made and made.model == model and made.inputs.get(Run.TABLES) == tables:
            found = pairs.look_up(run.read(f"{made.stage}/{SCORES}", key))
            known = np.where(np.isnan(known), found, known)
    return known


def _rerank_shard(run: Run, options: MineCrossEncoder, key: str) -> Shard:
    shard = QueryShard(run, key)
    pairs = shard.pairs(options.sources)
    # of this very model and tables, or the store had refused
    before = run.path / run.SOURCES / options.name / SCORES / f"{key}.parquet"
    own = pq.read_table(before, partitioning=None) if before.exists() else PAIR_SCORES.empty_table()
    known = pairs.look_up(own)
    known = np.where(np.isnan(known), known_scores(pairs, reranker_fingerprint(options)), known)
    score = scores_of(pairs, options, known)
    table = shard.candidates(_ranked(pairs, score), options.k, options.name)
    scores = pa.table([*pairs.ids(), score], schema=PAIR_SCORES)
    return Shard({f"{SCORES}/{key}": scores, key: table})


def _ranked(pairs: Pairs, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each query's rows and scores, both (queries, m), in order of score, then row; -1
    and -inf where there are fewer.
    """
    counts = np.bincount(pairs.query, minlength=len(pairs.shard.query_ids))
    line = np.arange(len(score)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = len(counts), int(counts.max(initial=0))
    rows, scores = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    rows[pairs.query, line], scores[pairs.query, line] = pairs.row, score
    return best(rows, scores, shape[1])
