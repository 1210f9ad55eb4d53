"""candidates, positives + target encoder -> judgments: cosine of query and document, and of
document and nearest positive.

Rows of judge "similarity" hold s(q, d) for every distinct candidate of every source, and for every
positive. Rows of judge "similarity.positive" hold the highest s(p, d) over the query's positives,
for candidates that are none of them.
"""

from functools import partial

import numpy as np

from miner.corpus import Shelf
from miner.engine import How
from miner.models.encoder import encoder_facts, encoder_fingerprint, load_encoder
from miner.models.hub import Encoder
from miner.query_shard import SOURCES, candidate_pairs, positive_rows
from miner.search.dense import Vectors, document_vectors, find_index
from miner.search.topk import dots
from miner.store import Manifest, Run, Shard, Stage, run_stage
from scoring.judge.judging import in_order, judged_sources, judgments, only_new

STAGE = f"{Run.JUDGES}/similarity"


class JudgeSimilarity(Encoder):
    """Cosine under the target encoder: query to document, and document to the nearest positive."""


def judge_similarity(run: Run, options: JudgeSimilarity, how: How) -> Manifest:
    """Judge all pairs of all sources that are not judged yet: candidates, positives + encoder ->
    4_judgments/similarity.
    """
    sources, inputs = judged_sources(run, how)
    options = target_encoder(run, options)
    index = find_index(run, options)
    stage = Stage(
        STAGE,
        "judgments",
        options.record(),
        inputs,
        model=encoder_fingerprint(options),
        grows=SOURCES,
    )
    facts = {
        **encoder_facts(options),
        "vectors": f"{run.INDEXES}/{index}" if index else "encoded per shard",
    }
    return run_stage(
        run,
        stage,
        lambda: partial(_judge_shard, run, options, sources, index),
        run.query_shards(),
        how,
        lambda: facts,
    )


def target_encoder(run: Run, options: JudgeSimilarity) -> JudgeSimilarity:
    """Return the options; where none is given, those of the dense index if there is one, so that
    its vectors serve.
    """
    made = run.find(f"{run.INDEXES}/dense")
    if options != JudgeSimilarity() or made is None or made.facts["kind"] != "dense":
        return options
    return JudgeSimilarity(
        **{name: value for name, value in made.options.items() if name in Encoder.model_fields}
    )


def _judge_shard(
    run: Run, options: JudgeSimilarity, sources: list[str], index: str | None, key: str
) -> Shard:
    corpus, queries = Shelf(run, key), run.read(run.QUERIES, key)
    query_ids = queries["query_id"].to_pylist()
    positive_query, positive_row = positive_rows(corpus, query_ids, run.read(run.POSITIVES, key))
    asked = candidate_pairs(run, corpus, query_ids, sources, key).join(positive_query, positive_row)
    pairs, known = only_new(run, STAGE, key, asked)
    candidates = pairs.take(~np.isin(pairs.codes, positive_query * len(corpus) + positive_row))

    rows = np.unique(np.concatenate((pairs.row, positive_row)))
    if index:
        query_vectors, vectors = (
            np.ascontiguousarray(Vectors(run, index).queries(key)),
            document_vectors(run, index, corpus, rows),
        )
    else:
        encode = load_encoder(options)
        query_vectors, vectors = (
            encode(queries["text"].to_pylist(), "query"),
            encode(corpus.texts(rows), "document"),
        )
    place, positive_place = (
        np.searchsorted(rows, candidates.row),
        np.searchsorted(rows, positive_row),
    )
    to_query = dots(query_vectors, pairs.query, vectors, np.searchsorted(rows, pairs.row))
    to_positive = _nearest_positive(
        vectors, candidates.query, place, positive_query, positive_place
    )
    new = (
        judgments(pairs, "similarity", to_query),
        judgments(candidates, "similarity.positive", to_positive),
    )
    return Shard({key: in_order(known, *new)})


def _nearest_positive(
    vectors: np.ndarray,
    query: np.ndarray,
    place: np.ndarray,
    positive_query: np.ndarray,
    positive_place: np.ndarray,
) -> np.ndarray:
    """Return for each (query, document) the highest inner product of the document with a
    positive of the query, (p,) float32.
    """
    # Positives lie in order of query, so those of one query are a slice: pair number i with each of
    # its query's positives in turn.
    first, last = (
        np.searchsorted(positive_query, query),
        np.searchsorted(positive_query, query, side="right"),
    )
    nearest = np.full(len(query), -np.inf, np.float32)
    for turn in range(int((last - first).max(initial=0))):
        positive = np.where(
            first + turn < last,
            positive_place[np.minimum(first + turn, len(positive_place) - 1)],
            -1,
        )
        nearest = np.maximum(nearest, dots(vectors, place, vectors, positive))
    return nearest
