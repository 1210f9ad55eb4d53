"""candidates, positives + target encoder -> judgments: cosine of query and document, and of document and nearest positive.

Rows of judge "similarity" hold s(q, d) for every distinct candidate of every source, and for every positive. Rows of judge
"similarity.positive" hold the highest s(p, d) over the query's positives, for candidates that are none of them.
"""

from functools import partial

import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.dense import Vectors, find_index
from miner.engine import How
from miner.exact import dots, positive_rows
from miner.models import encoder_facts, encoder_fingerprint, load_encoder
from miner.options import Encoder
from miner.store import Manifest, Run, Shard, Stage, run_stage
from miner.tables import JUDGMENTS, conform
from scoring.options import JudgeSimilarity
from scoring.pairs import candidate_pairs, judged_sources


def judge_similarity(run: Run, options: JudgeSimilarity, how: How) -> Manifest:
    """Judge all pairs of all sources: candidates, positives + encoder -> 4_judgments/similarity."""
    sources, inputs = judged_sources(run, how)
    options = target_encoder(run, options)
    index = find_index(run, options)
    stage = Stage("4_judgments/similarity", "judgments", options.record(), inputs, model=encoder_fingerprint(options))
    facts = {**encoder_facts(options), "vectors": f"2_index/{index}" if index else "encoded per shard"}
    return run_stage(run, stage, lambda: partial(_judge_shard, run, options, sources, index), run.query_shards(), how, lambda: facts)


def target_encoder(run: Run, options: JudgeSimilarity) -> JudgeSimilarity:
    """Return the options; where none is given, those of the dense index if there is one, so that its vectors serve."""
    made = run.find("2_index/dense")
    if options != JudgeSimilarity() or made is None or made.facts["kind"] != "dense":
        return options
    return JudgeSimilarity(**{name: value for name, value in made.options.items() if name in Encoder.model_fields})


def _judge_shard(run: Run, options: JudgeSimilarity, sources: list[str], index: str | None, key: str) -> Shard:
    corpus, queries = Corpus(run), run.read("1_tables/queries", key)
    query_ids = queries["query_id"].to_pylist()
    positive_query, positive_row = positive_rows(corpus, query_ids, run.read("1_tables/positives", key))
    query, row = candidate_pairs(run, corpus, query_ids, sources, key)
    is_positive = np.isin(query * len(corpus) + row, positive_query * len(corpus) + positive_row)
    query, row = query[~is_positive], row[~is_positive]

    rows = np.unique(np.concatenate((row, positive_row)))
    if index:
        vectors = Vectors(run, index)
        query_vectors, document_vectors = np.ascontiguousarray(vectors.queries(key)), vectors.documents(rows)
    else:
        encode = load_encoder(options)
        query_vectors, document_vectors = encode(queries["text"].to_pylist(), "query"), encode(corpus.texts(rows), "document")
    place, positive_place = np.searchsorted(rows, row), np.searchsorted(rows, positive_row)

    to_query = dots(query_vectors, query, document_vectors, place)
    to_query_positive = dots(query_vectors, positive_query, document_vectors, positive_place)
    to_positive = _nearest_positive(document_vectors, query, place, positive_query, positive_place)
    parts = [
        _judgments(
            "similarity",
            np.concatenate((query, positive_query)),
            np.concatenate((row, positive_row)),
            np.concatenate((to_query, to_query_positive)),
        ),
        _judgments("similarity.positive", query, row, to_positive),
    ]
    judge, query, row, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((judge, row, query))
    columns = {
        "query_id": queries["query_id"].take(pa.array(query[order])),
        "doc_id": corpus.doc_ids(row[order]),
        "judge": pa.array(judge[order], pa.string()),
        "score": pa.array(score[order], pa.float32()),
        "verdict": pa.nulls(len(order), pa.string()),
        "reason": pa.nulls(len(order), pa.string()),
    }
    return Shard({key: conform(pa.table(columns), JUDGMENTS)})


def _judgments(judge: str, query: np.ndarray, row: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.full(len(query), judge), query, row, score


def _nearest_positive(
    vectors: np.ndarray, query: np.ndarray, place: np.ndarray, positive_query: np.ndarray, positive_place: np.ndarray
) -> np.ndarray:
    """Return for each (query, document) the highest inner product of the document with a positive of the query, (p,) float32."""
    # Positives lie in order of query, so those of one query are a slice: pair number i with each of its query's positives in turn.
    first, last = np.searchsorted(positive_query, query), np.searchsorted(positive_query, query, side="right")
    nearest = np.full(len(query), -np.inf, np.float32)
    for turn in range(int((last - first).max(initial=0))):
        positive = np.where(first + turn < last, positive_place[np.minimum(first + turn, len(positive_place) - 1)], -1)
        nearest = np.maximum(nearest, dots(vectors, place, vectors, positive))
    return nearest
