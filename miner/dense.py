"""documents, queries -> vectors; queries + vectors -> candidates.

An index is a folder of memory-mapped arrays of unit vectors, one a shard: `documents/00000.npy`, `queries/00000.npy`. FAISS and NumPy
read the same arrays, shard by shard; `miner.exact` decides scores and order, so both give the same answer.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np

from miner.corpus import Corpus, texts_of
from miner.engine import How
from miner.errors import UserError
from miner.exact import best, candidates, depth_for, dots, positive_rows
from miner.models import encoder_facts, encoder_fingerprint, load_encoder
from miner.options import Encoder, IndexDense, MineDense
from miner.store import Manifest, Run, Shard, Stage, run_stage

# (queries, block, depth) -> rows of the block (n, depth) int64 and about their scores (n, depth), lowest last
Search = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
SPARE = 16  # documents an engine proposes beyond what is asked, so that the exact order decides at the edge
DOUBT = 2e-5  # by how much an engine's float32 inner product of unit vectors may be off


def index_dense(run: Run, options: IndexDense, how: How) -> Manifest:
    """Encode all documents and queries: documents, queries -> 2_index/<name>."""
    tables = run.tables()
    stage = Stage(
        f"2_index/{options.name}", "documents", options.record(), {"1_tables": tables.fingerprint}, model=encoder_fingerprint(options)
    )
    keys = [f"documents/{key}" for key in Corpus(run).keys] + [f"queries/{key}" for key in run.query_shards()]
    facts = {"kind": "dense", **encoder_facts(options)}
    return run_stage(run, stage, lambda: partial(_encode_shard, run, options), keys, how, lambda: facts)


def mine_dense(run: Run, options: MineDense, how: How) -> Manifest:
    """Search every query, exactly: queries + vectors -> 3_candidates/<name>."""
    tables, index = run.tables(), run.need_current(f"2_index/{options.name}", "index dense")
    if index.facts["kind"] != "dense":
        raise UserError(
            f"2_index/{options.name} is a {index.facts['kind']} index; `quarry mine dense` wants one that `quarry index dense` made"
        )
    engine = engine_name(options.search)
    inputs = {"1_tables": tables.fingerprint, f"2_index/{options.name}": index.fingerprint}
    # All engines give the same bytes: which one it was is a fact, not a part of the fingerprint.
    stage = Stage(f"3_candidates/{options.name}", "candidates", {"k": options.k, "name": options.name}, inputs)
    return run_stage(run, stage, lambda: partial(_search_shard, run, options, engine), run.query_shards(), how, lambda: {"search": engine})


class Vectors:
    """The vectors of a dense index, memory-mapped."""

    def __init__(self, run: Run, name: str):
        self.folder, self.corpus = run.path / "2_index" / name, Corpus(run)

    def block(self, key: str) -> np.ndarray:
        """Return the vectors (m, d) float32 of a document shard."""
        return np.load(self.folder / "documents" / f"{key}.npy", mmap_mode="r")

    def queries(self, key: str) -> np.ndarray:
        """Return the vectors (n, d) float32 of a query shard."""
        return np.load(self.folder / "queries" / f"{key}.npy", mmap_mode="r")

    def documents(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors (p, d) float32 of documents, by row of the corpus."""
        out = np.empty((len(rows), self.block(self.corpus.keys[0]).shape[1]), np.float32)
        shard = rows // self.corpus.shard_size
        for number in np.unique(shard):
            here = shard == number
            out[here] = self.block(self.corpus.keys[number])[rows[here] - number * self.corpus.shard_size]
        return out


def find_index(run: Run, options: Encoder) -> str | None:
    """Return the name of a finished dense index of the tables as they are now, whose vectors are those of this encoder, or None."""
    model, tables = encoder_fingerprint(options), run.tables().fingerprint
    made = {name: run.find(f"2_index/{name}") for name in run.names("2_index")}
    return next((name for name, index in made.items() if index and index.model == model and index.inputs["1_tables"] == tables), None)


def engine_name(search: str) -> str:
    """Return the engine that "auto" stands for here.

    Raises:
        UserError: faiss was asked for and is not installed.
    """
    installed = find_spec("faiss") is not None
    if search == "faiss" and not installed:
        raise UserError("--search faiss, but faiss is not installed: pip install 'quarry-negatives[cpu]', or use --search numpy")
    return search if search != "auto" else "faiss" if installed else "numpy"


def search_faiss(queries: np.ndarray, block: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Search with FAISS's flat inner product, without copying the block into an index."""
    import faiss

    scores, rows = faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(block), depth, metric=faiss.METRIC_INNER_PRODUCT)
    return rows.astype(np.int64), scores


def search_numpy(queries: np.ndarray, block: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Search with NumPy: the reference."""
    scores = queries @ block.T
    rows = np.argpartition(-scores, depth - 1, axis=1)[:, :depth].astype(np.int64)
    found = np.take_along_axis(scores, rows, 1)
    order = np.argsort(-found, axis=1)
    return np.take_along_axis(rows, order, 1), np.take_along_axis(found, order, 1)


ENGINES: dict[str, Search] = {"faiss": search_faiss, "numpy": search_numpy}


def search_block(search: Search, queries: np.ndarray, block: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact `depth` best rows (n, depth) and scores of one block, whatever the engine.

    The engine proposes a few more than asked. Where what it left out could still belong in (a tie of many copies of one text, say), it is
    asked again for that query, for ever more.
    """
    depth = min(depth, len(block))
    out_rows, out_scores = np.empty((len(queries), depth), np.int64), np.empty((len(queries), depth), np.float32)
    open_, asked = np.arange(len(queries)), min(depth + SPARE, len(block))
    while len(open_):
        proposed, about = search(queries[open_], block, asked)
        exact = dots(queries, np.repeat(open_, asked), block, proposed.ravel()).reshape(proposed.shape)
        rows, scores = best(proposed, exact, depth)
        out_rows[open_], out_scores[open_] = rows, scores
        settled = (asked == len(block)) | (about[:, -1] < scores[:, -1] - DOUBT)
        open_, asked = open_[~settled], min(asked * 4, len(block))
    return out_rows, out_scores


def _encode_shard(run: Run, options: IndexDense, key: str) -> Shard:
    encode = load_encoder(options)
    table, _, shard = key.partition("/")
    if table == "documents":
        return Shard({key: encode(texts_of(Corpus(run).shard(shard)), "document")})
    return Shard({key: encode(run.read("1_tables/queries", shard)["text"].to_pylist(), "query")})


def _search_shard(run: Run, options: MineDense, engine: str, key: str) -> Shard:
    vectors = Vectors(run, options.name)
    corpus, queries = vectors.corpus, np.ascontiguousarray(vectors.queries(key))
    query_ids = run.read("1_tables/queries", key)["query_id"].to_pylist()
    positives = positive_rows(corpus, query_ids, run.read("1_tables/positives", key))
    depth = depth_for(options.k, positives[0])
    rows, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for shard in corpus.keys:
        new_rows, new_scores = search_block(ENGINES[engine], queries, vectors.block(shard), depth)
        new_rows += corpus.shard_rows(shard)[0]
        rows, scores = best(np.hstack((rows, new_rows)), np.hstack((scores, new_scores)), depth)
    return Shard({key: candidates(corpus, query_ids, positives, (rows, scores), options.k, options.name)})
