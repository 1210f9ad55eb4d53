"""sets + vectors, texts -> what describes a set of negatives as a whole: of a seeded sample of its
triples, so that a set of any size takes the same memory.
"""

from collections.abc import Iterator

import numpy as np

from miner.query_shard import IDS, QueryShard
from miner.seeds import uniform
from miner.store import Run
from scoring.coverage import joined
from scoring.diagnostics import alignment, centroid_gap, effective_size, ngram_diversity, uniformity
from scoring.eci import eci_sem
from scoring.judgments import read_judgments
from scoring.metrics import Score, Values
from scoring.set_coverage import documents_of, read_vectors

SAMPLE = 2000  # triples


def describe_vectors(run: Run, name: str, options: Score) -> Values:
    """Return the measures of a set that need vectors or texts; none if it has no triple."""
    counts, made = _count_documents(run, name)
    total = int(counts.sum()) + made
    parts = list(_draw_triples(run, name, min(1.0, SAMPLE / max(total, 1)), options.seed))
    if not parts:
        return {}
    *arrays, texts = zip(*parts, strict=True)
    queries, positives, negatives, overlaps = (np.concatenate(column) for column in arrays)
    known = not np.isnan(overlaps).all()
    overlap = np.nan_to_num(overlaps) if known else None
    values = {
        "eci_sem": eci_sem(queries, positives, negatives, overlap, options.tau),
        "alignment": alignment(queries, positives),
        "uniformity": uniformity(negatives),
        "cross_uniformity": uniformity(positives, negatives),
        "centroid_gap": centroid_gap(positives, negatives),
        "ngram_diversity": ngram_diversity(text for part in texts for text in part),
        "effective_documents": effective_size(np.append(counts[counts > 0], np.ones(made))),
    }
    return {(measure, None): np.array([value]) for measure, value in values.items()}


def _count_documents(run: Run, name: str) -> tuple[np.ndarray, int]:
    """Return how often each document of the corpus is a negative, and how many made ones are."""
    counts, made = np.zeros(0, np.int64), 0
    for key in run.query_shards():
        shard = QueryShard(run, key)
        row = shard.places(run.read(f"{run.SETS}/{name}", key, IDS))[1]
        new = shard.documents.is_made(row)
        more = np.bincount(row[~new], minlength=shard.documents.count)
        counts, made = (counts + more if len(counts) else more), made + int(new.sum())
    return counts, made


def _draw_triples(
    run: Run, name: str, share: float, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]]:
    """Yield the triples of each shard whose negative is drawn: vectors of queries, positives and
    negatives, the share of the query's words that each negative has (nan for none), its text. A
    negative goes with the first positive of its query.
    """
    judged = run.find(f"{run.JUDGES}/overlap") is not None
    vectors = read_vectors(run)
    for key in run.query_shards():
        shard = QueryShard(run, key)
        chosen = run.read(f"{run.SETS}/{name}", key, IDS)
        ids = zip(*(chosen[column].to_pylist() for column in IDS), strict=True)
        drawn = np.array([uniform(seed, *pair) < share for pair in ids], bool)
        query, row = (places[drawn] for places in shard.places(chosen))
        first = np.unique(shard.positives[0], return_index=True)
        place, item = joined(query, first[0])
        query, row = query[place], row[place]
        if len(query):
            positive = shard.positives[1][first[1][item]]
            overlap = np.full(len(query), np.nan)
            if judged:
                overlap = read_judgments(shard, "overlap").scores(shard.codes(query, row))
            yield (
                vectors.queries(key)[query],
                vectors.documents(positive),
                documents_of(shard, vectors, row),
                overlap,
                shard.documents.texts(row),
            )
