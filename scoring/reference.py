"""documents, queries, positives + vectors -> the reference of coverage: how the whole corpus pulls
on each query.

Row number i of a shard stands for its positive number i (`QueryShard.positives`). For the corpus
stand a seeded sample of documents and all candidates of the query; what of the sample is no
candidate counts for all that are none, so that the sums are unbiased. Left out are the query's
positives, what scores as high as the positive (a likely false negative: docs/validity.md says what
that is worth), and candidates that `select` would never take: what judge duplicates drops, and what
is as near to a positive as NEAR.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from miner.engine import How
from miner.query_shard import QueryShard
from miner.search.vectors import Vectors, document_vectors
from miner.seeds import generator
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from scoring.coverage import EDGES, Pull, head_gradient, joined
from scoring.judgments import compared_index, read_judgments
from scoring.metrics import REFERENCE, Covering

NEAR = 0.98  # as `select --near-positive` leaves out by default
CHUNK, TILE = 512, 4096  # positives and documents at a time


def make_reference(run: Run, options: Covering, how: How) -> Manifest | None:
    """Compute how the corpus pulls on all queries: 6_metrics/_reference; None where no index has
    the vectors that judge similarity compared.

    Raises:
        UserError: a source, a judge or the index is older than the tables.
    """
    name = compared_index(run)
    if name is None or run.find(f"{run.INDEXES}/{name}") is None:
        return None
    index, judges = run.need_current(f"{run.INDEXES}/{name}", "index dense"), ["similarity"]
    if run.find(f"{run.JUDGES}/duplicates"):
        judges.append("duplicates")
    seen = [index, *(run.need(f"{run.JUDGES}/{judge}", f"judge {judge}") for judge in judges)]
    inputs = run.table_input() | run.need_sources(run.names(run.SOURCES))
    inputs |= {one.stage: one.fingerprint for one in seen}
    record = {
        "tau": options.tau,
        "documents": options.reference,
        "unsafe": options.reference_unsafe,
        "seed": options.seed,
    }
    stage = Stage(REFERENCE, "reference", record, inputs, cheap=True, made_by="score")
    left_out = "positives, " + "what scores as high as one, " * (not options.reference_unsafe)
    left_out += f"what is {NEAR} near to one"
    left_out += ", what judge duplicates drops" if "duplicates" in judges else ""
    facts = {"vectors": index.stage, "left_out": left_out}
    task = partial(_reference_shard, run, options, name, "duplicates" in judges)
    return run_stage(run, stage, lambda: task, run.query_shards(), how, lambda: facts)


class Known(NamedTuple):
    """Documents of the corpus that a query of a shard is not to meet in the sample.

    Attributes:
        query, row: all of them, (k,) int64, in order of query.
        own: which count for themselves (k,): candidates that are not left out.
    """

    query: np.ndarray
    row: np.ndarray
    own: np.ndarray


def _known_documents(shard: QueryShard, duplicates: bool) -> Known:
    pairs = shard.pairs(shard.run.names(Run.SOURCES), positives=True)
    pairs = pairs.take(~shard.documents.is_made(pairs.row))
    near = read_judgments(shard, "similarity.positive").scores(pairs.codes)
    own = ~shard.same_text(pairs.query, pairs.row) & ~(near >= NEAR)
    if duplicates:
        said = read_judgments(shard, "duplicates", ["verdict"])
        own &= said.texts_at("verdict", said.find(pairs.codes)) != "drop"
    return Known(pairs.query, pairs.row, own)


def _reference_shard(run: Run, options: Covering, index: str, duplicates: bool, key: str) -> Shard:
    shard, vectors = QueryShard(run, key), Vectors(run, index)
    (owner, row), queries = shard.positives, vectors.queries(key)
    known, size = _known_documents(shard, duplicates), len(queries)
    sample, width = _sample(options, vectors.corpus.count), queries.shape[1]
    pulls, bands = [np.empty((0, width), np.float32)], np.zeros((len(EDGES) + 1, width, width))
    for start in range(0, len(row), CHUNK):
        part = slice(start, start + CHUNK)
        pull = Pull(
            queries[owner[part]],
            vectors.documents(row[part]),
            options.tau,
            EDGES,
            not options.reference_unsafe,
        )
        for tile, weights in _weights(known, sample, vectors.corpus.count, size):
            pull.add(vectors.documents(tile), weights[owner[part]])
        one, item = joined(owner[part], known.query[known.own])
        rows, place = np.unique(known.row[known.own][item], return_inverse=True)
        pull.add_own(one, place, vectors.documents(rows))
        pulls.append(pull.gradient().astype(np.float32))
        bands += [head_gradient(pull.queries, band) for band in pull.by_band()]
    made = np.arange(vectors.corpus.count, len(shard.documents))
    files = {f"_bands/{key}": bands}
    if len(made):
        files[f"_made/{key}"] = document_vectors(run, index, shard.documents, made)
    return Shard({**files, key: np.concatenate(pulls)})


def _sample(options: Covering, documents: int) -> np.ndarray:
    """Return rows of documents, ascending; all of them if the sample is 0 or as large."""
    if not 0 < options.reference < documents:
        return np.arange(documents)
    drawn = generator(options.seed, "reference").choice(documents, options.reference, replace=False)
    return np.sort(drawn)


def _weights(
    known: Known, sample: np.ndarray, documents: int, queries: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the sample part by part, and for how many documents each of a part counts beside each
    query (queries, part) float32: what is known for none.
    """
    place = np.searchsorted(sample, known.row)
    hit = np.append(sample, -1)[place] == known.row
    total = np.bincount(known.query, minlength=queries)
    drawn = np.bincount(known.query[hit], minlength=queries)
    share = (documents - total) / np.maximum(len(sample) - drawn, 1)
    query, place = known.query[hit], place[hit]
    for start in range(0, len(sample), TILE):
        tile = sample[start : start + TILE]
        weights = np.repeat(share[:, None], len(tile), axis=1).astype(np.float32)
        here = (place >= start) & (place < start + TILE)
        weights[query[here], place[here] - start] = 0
        yield tile, weights
