"""candidates, positives + target encoder -> judgments: cosine of query and document, and of
document and nearest positive.

Rows of judge "similarity" hold s(q, d) for every distinct candidate of every source, and for every
positive. Rows of judge "similarity.positive" hold the highest s(p, d) over the query's positives,
for candidates that are none of them.
"""

from functools import partial

import numpy as np

from miner.engine import How
from miner.models.encoder import encoder_facts, encoder_fingerprint, load_encoder
from miner.models.hub import Encoder
from miner.search.topk import dots
from miner.search.vectors import Vectors, document_vectors, find_index
from miner.store import Manifest, Run
from scoring.judge.judging import Asked, Judged, Judging, judgments


class JudgeSimilarity(Encoder):
    """Cosine under the target encoder: query to document, and document to the nearest positive."""


def judge_similarity(run: Run, options: JudgeSimilarity, how: How) -> Manifest:
    """Judge all pairs of all sources that are not judged yet: candidates, positives + encoder ->
    4_judgments/similarity.
    """
    run.tables()
    options = target_encoder(run, options)
    index = find_index(run, options)
    vectors = f"{run.INDEXES}/{index}" if index else "encoded per shard"
    return Judging(run, "similarity").carry_out(
        options,
        how,
        lambda: partial(_compare_vectors, options, index),
        model=encoder_fingerprint(options),
        facts=lambda: {**encoder_facts(options), "vectors": vectors},
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


def _compare_vectors(options: JudgeSimilarity, index: str | None, asked: Asked) -> Judged:
    shard, pairs = asked.shard, asked.pairs
    candidates = pairs.take(~pairs.positive)
    rows = np.unique(np.concatenate((pairs.row, shard.positives[1])))
    if index:
        queries = np.ascontiguousarray(Vectors(shard.run, index).queries(shard.key))
        vectors = document_vectors(shard.run, index, shard.documents, rows)
    else:
        encode = load_encoder(options)
        queries = encode(shard.texts, "query")
        vectors = encode(shard.documents.texts(rows), "document")
    to_query = dots(queries, pairs.query, vectors, np.searchsorted(rows, pairs.row))
    places = np.searchsorted(rows, candidates.row), np.searchsorted(rows, shard.positives[1])
    to_positive = _nearest_positive(vectors, candidates.query, places, shard.positives[0])
    said = judgments(candidates, "similarity.positive", to_positive)
    return [judgments(pairs, "similarity", to_query), said], {}


def _nearest_positive(
    vectors: np.ndarray,
    query: np.ndarray,
    places: tuple[np.ndarray, np.ndarray],
    positive_query: np.ndarray,
) -> np.ndarray:
    """Return for each pair the highest inner product of its document with a positive of its query,
    (p,) float32.

    Args:
        vectors: (d, dimensions) float32.
        query: (p,) places of the pairs' queries.
        places: of the pairs' documents (p,), and of the positives (m,), in `vectors`.
        positive_query: (m,) places of the positives' queries, ascending.
    """
    # Positives lie in order of query, so those of one query are a slice: pair number i with each of
    # its query's positives in turn.
    document, positive_place = places
    first, last = (np.searchsorted(positive_query, query, side) for side in ("left", "right"))
    nearest = np.full(len(query), -np.inf, np.float32)
    for turn in range(int((last - first).max(initial=0))):
        at = positive_place[np.minimum(first + turn, len(positive_place) - 1)]
        positive = np.where(first + turn < last, at, -1)
        nearest = np.maximum(nearest, dots(vectors, document, vectors, positive))
    return nearest
