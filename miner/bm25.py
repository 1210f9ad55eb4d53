"""documents -> BM25 index; queries + BM25 index -> candidates.

The index says how often each term stands in each document, one document shard at a time; what decides the weights (how many documents
there are, how long they are, in how many a term stands) is counted over the whole corpus. So any number of shards gives the same scores,
those of rank_bm25 (https://github.com/dorianbrown/rank_bm25), its rule for negative idf included, and other parameters need no new index.
Documents that share no word with a query, or score 0 or less, are no candidates.

A search goes over one document shard at a time and keeps each query's best in a heap. It sums in float64, in the order of the query's
tokens, with rank_bm25's own operations; scores are then float32, as the candidates table keeps them, and what is equal there is a tie.

Files of a shard, in `2_index/<name>`: `_hashes` (terms, ascending: a term is known by 64 bits of its hash), `_starts`, `_rows`,
`_frequencies` (postings by term, then row of the shard), `_terms` (the words, to check that no two share a hash), and the length of each
document in tokens. Files of the whole: `_corpus_hashes`, `_corpus_documents`.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import duckdb
import numba
import numpy as np
import pyarrow as pa

from miner.corpus import Corpus, texts_of
from miner.engine import How
from miner.errors import UserError
from miner.exact import best, candidates, depth_for, in_threads, positive_rows
from miner.options import IndexBm25, MineBm25
from miner.store import Manifest, Run, Shard, Stage, run_stage, write_array
from miner.tokens import tokenize, tokenizer

DELTA = {"okapi": 0.0, "l": 0.5, "plus": 1.0}  # rank_bm25's defaults
VARIANT = {"okapi": 0, "l": 1, "plus": 2}  # as the kernel knows them
DENSE = 4  # terms in more than a DENSE-th of a shard's documents are added as whole columns: that runs in vector registers
BLOCK = 64  # sums that are held against the threshold at a time


def index_bm25(run: Run, options: IndexBm25, how: How) -> Manifest:
    """Index all documents: documents -> 2_index/<name>."""
    tokenizer(options)  # a wrong pattern is the user's mistake, and is said before anything is written
    stage = Stage(f"2_index/{options.name}", "documents", options.record(), {"1_tables": run.tables().fingerprint})
    return run_stage(run, stage, lambda: partial(_index_shard, run, options), Corpus(run).keys, how, partial(_count_corpus, run, options))


def mine_bm25(run: Run, options: MineBm25, how: How) -> Manifest:
    """Search every query: queries + BM25 index -> 3_candidates/<name>."""
    name = options.index or options.name
    tables, index = run.tables(), run.need_current(f"2_index/{name}", "index bm25")
    if index.facts["kind"] != "bm25":
        raise UserError(f"2_index/{name} is a {index.facts['kind']} index; `quarry mine bm25` wants one that `quarry index bm25` made")
    inputs = {"1_tables": tables.fingerprint, f"2_index/{name}": index.fingerprint}
    stage = Stage(f"3_candidates/{options.name}", "candidates", options.record(), inputs)
    return run_stage(run, stage, lambda: partial(_mine_shard, run, options), run.query_shards(), how)


def _index_shard(run: Run, options: IndexBm25, key: str) -> Shard:
    documents = Corpus(run).shard(key)
    tokens = tokenize(texts_of(documents), options)
    hashes = hashes_of(tokens.terms)
    order = np.argsort(hashes)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    frequency, starts, rows = _postings(tokens.starts, place[tokens.ids], len(order))
    terms = pa.array(tokens.terms, pa.string()).take(pa.array(order))
    files = {
        f"_terms/{key}": pa.table({"hash": hashes[order], "term": terms, "documents": np.diff(starts)}),
        f"_hashes/{key}": hashes[order],
        f"_starts/{key}": starts,
        f"_rows/{key}": rows.astype(np.uint16 if len(documents) <= 1 << 16 else np.int32),
        f"_frequencies/{key}": frequency.astype(np.min_scalar_type(frequency.max(initial=0))),
        key: np.diff(tokens.starts).astype(np.int32),
    }
    return Shard(files)


def hashes_of(terms: Sequence[str]) -> np.ndarray:
    """Return 64 bits that stand for each term, uint64."""
    digests = b"".join(hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest() for term in terms)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


@numba.njit(cache=True, nogil=True)
def _postings(text_starts, ids, terms):  # type: ignore[no-untyped-def] # compiled
    """Count: tokens of texts (starts and ids) -> frequencies, starts (terms + 1,) and rows of postings, by term, then row."""
    last, starts = np.full(terms, -1, np.int64), np.zeros(terms + 1, np.int64)
    for row in range(len(text_starts) - 1):
        for token in range(text_starts[row], text_starts[row + 1]):
            if last[ids[token]] != row:
                last[ids[token]] = row
                starts[ids[token] + 1] += 1
    starts = np.cumsum(starts)
    frequency, rows = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.int32)
    filled = starts[:-1].copy()
    last[:] = -1
    for row in range(len(text_starts) - 1):
        for token in range(text_starts[row], text_starts[row + 1]):
            term = ids[token]
            if last[term] == row:
                frequency[filled[term] - 1] += 1
            else:
                last[term] = row
                frequency[filled[term]], rows[filled[term]] = 1, row
                filled[term] += 1
    return frequency, starts, rows


def _count_corpus(run: Run, options: IndexBm25) -> dict[str, Any]:
    """Count over all shards in how many documents each term stands; write that and return the manifest's facts."""
    corpus, folder = Corpus(run), run.path / "2_index" / options.name
    tokens = sum(int(np.load(folder / f"{key}.npy", mmap_mode="r").sum(dtype=np.int64)) for key in corpus.keys)
    with duckdb.connect(config={"memory_limit": "1GB", "temp_directory": str(folder / "_spill")}) as connection:
        counted = connection.sql(
            "SELECT hash, sum(documents)::BIGINT AS documents, min(term) <> max(term) AS shared "
            "FROM read_parquet(?, hive_partitioning = false) GROUP BY hash ORDER BY hash",
            params=[str(folder / "_terms" / "*.parquet")],
        ).to_arrow_table()
    if not tokens:
        raise UserError(f"no document has a token under --token-pattern {options.token_pattern!r}; choose one that matches words")
    hashes, documents = counted["hash"].to_numpy(), counted["documents"].to_numpy()
    if any(counted["shared"].to_pylist()):
        raise RuntimeError("two terms share one 64-bit hash")
    write_array(folder / "_corpus_hashes.npy", hashes)
    write_array(folder / "_corpus_documents.npy", documents)
    mean = math.fsum(okapi_idf(documents, len(corpus))) / len(hashes)
    return {"kind": "bm25", "documents": len(corpus), "tokens": tokens, "terms": len(hashes), "mean_idf": mean}


def okapi_idf(documents: np.ndarray, corpus: int) -> np.ndarray:
    """Return rank_bm25's idf of terms that stand in `documents` of `corpus` documents, before its floor: ln((N - df + .5) / (df + .5))."""
    return np.log(corpus - documents + 0.5) - np.log(documents + 0.5)


class Weights(NamedTuple):
    """What decides what a term weighs in a document: a variant of rank_bm25 with its parameters."""

    variant: int
    k1: float
    b: float
    delta: float
    mean_length: float


class Bm25:
    """An index and how it weighs; arrays are memory-mapped, and nothing but the corpus's counts is read until searched."""

    def __init__(self, run: Run, options: MineBm25):
        name = options.index or options.name
        self.folder, self.corpus, self.options = run.path / "2_index" / name, Corpus(run), options
        manifest = run.need(f"2_index/{name}", "index bm25")
        self.index, self.facts = IndexBm25(**manifest.options), manifest.facts
        self.weights = Weights(
            VARIANT[options.variant], options.k1, options.b, delta_of(options), self.facts["tokens"] / self.facts["documents"]
        )
        self.hashes, self.counts = self._load("_corpus_hashes"), self._load("_corpus_documents")

    def _load(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def idf(self, hashes: np.ndarray) -> np.ndarray:
        """Return the idf of terms by their hashes; NaN for a term that is in no document."""
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        count, total = np.where(self.hashes[place] == hashes, self.counts[place], np.nan), self.facts["documents"]
        if self.options.variant == "l":
            return np.log(total + 1) - np.log(count + 0.5)
        if self.options.variant == "plus":
            return np.log((total + 1) / count)
        idf = okapi_idf(count, total)
        return np.where(idf < 0, self.options.epsilon * self.facts["mean_idf"], idf)

    def search(self, texts: Sequence[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `depth` best documents of each text.

        Returns:
            rows (n, depth) int64 and scores (n, depth) float32, in order of score downwards, then row; -1 and -inf where there are fewer.
        """
        queries = tokenize(texts, self.index)
        hashes = hashes_of(queries.terms)
        idf = self.idf(hashes)
        known = np.isfinite(idf)[queries.ids]
        starts, ids = np.concatenate(([0], np.cumsum(known)))[queries.starts], queries.ids[known]
        shape = (len(texts), min(depth, len(self.corpus)))
        rows, scores, sizes = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32), np.zeros(len(texts), np.int64)
        absent = idf[ids] * (self.weights.delta if self.options.variant == "plus" else 0)  # for each word, in every document
        base = np.diff(np.concatenate(([0], np.cumsum(absent)))[starts])
        for key in self.corpus.keys:
            columns = self._columns(key, hashes, np.nan_to_num(idf))
            first = int(self.corpus.shard_rows(key)[0])

            def work(part: slice, columns: "Columns" = columns, first: int = first) -> None:
                bounds = starts[part.start : part.stop + 1]
                _search(bounds, ids, tuple(columns), first, base[part], (rows[part], scores[part], sizes[part]))

            in_threads(len(texts), work)
        return best(rows, scores, shape[1])

    def _columns(self, key: str, hashes: np.ndarray, idf: np.ndarray) -> "Columns":
        """Weigh the postings of some terms in one shard."""
        here, all_starts = self._load(f"_hashes/{key}"), self._load(f"_starts/{key}")
        lengths = self._load(key)
        place = np.minimum(np.searchsorted(here, hashes), max(len(here) - 1, 0))
        found = here[place] == hashes if len(here) else np.zeros(len(hashes), bool)
        begin = np.where(found, all_starts[place], 0)
        size = np.where(found, all_starts[np.minimum(place + 1, len(here))] - begin, 0)
        starts = np.concatenate(([0], np.cumsum(size)))
        wide = np.flatnonzero(size * DENSE > len(lengths))
        column = np.full(len(hashes), -1, np.int64)
        column[wide] = np.arange(len(wide))
        rows, weights, dense = np.empty(starts[-1], np.int32), np.empty(starts[-1]), np.zeros((len(wide), len(lengths)))
        postings = (self._load(f"_rows/{key}"), self._load(f"_frequencies/{key}"), lengths)

        def work(part: slice) -> None:
            _weigh(postings, begin[part], starts[part.start : part.stop + 1], idf[part], tuple(self.weights), rows, weights)

        in_threads(len(hashes), work)
        for term in wide:
            dense[column[term], rows[starts[term] : starts[term + 1]]] = weights[starts[term] : starts[term + 1]]
        return Columns(starts, rows, weights, column, dense)


class Columns(NamedTuple):
    """The weighed postings of t terms in one shard of m documents.

    Attributes:
        starts: (t + 1,) int64, where each term's postings lie.
        rows: int32, rows of the shard. weights: float64.
        column: (t,) int64, the line of `dense` that holds the same as a whole column, or -1.
        dense: (columns, m) float64.
    """

    starts: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    column: np.ndarray
    dense: np.ndarray


@numba.njit(cache=True, nogil=True)
def _weigh(postings, begin, starts, idf, how, out_rows, out_weights):  # type: ignore[no-untyped-def] # compiled
    """Weigh postings of terms with rank_bm25's operations, one by one, so that every bit is its own."""
    rows, frequencies, lengths = postings
    variant, k1, b, delta, mean_length = how
    for term in range(len(begin)):
        for out in range(starts[term], starts[term + 1]):
            entry = begin[term] + out - starts[term]
            frequency, row = np.float64(frequencies[entry]), rows[entry]
            norm = 1 - b + b * lengths[row] / mean_length
            if variant == 0:
                weight = idf[term] * (frequency * (k1 + 1) / (frequency + k1 * norm))
            elif variant == 1:
                share = frequency / norm
                weight = idf[term] * frequency * (k1 + 1) * (share + delta) / (k1 + share + delta)
            else:  # beyond what every document gets for the word
                weight = idf[term] * (frequency * (k1 + 1) / (k1 * norm + frequency))
            out_rows[out], out_weights[out] = row, weight


@numba.njit(cache=True, nogil=True)
def _search(query_starts, ids, columns, first, base, found):  # type: ignore[no-untyped-def] # compiled
    """Sum the columns of each query's tokens in one shard; let what beats the worst of its best so far into its heap.

    Args:
        query_starts: (n + 1,), ids: the tokens of n queries. columns: `Columns`. first: the shard's first row.
        base: (n,), what each query gives to every document.
        found: rows (n, depth), scores (n, depth) and sizes (n,): the heaps, worst first, which this changes.
    """
    all_rows, all_scores, sizes = found
    sums = np.zeros(columns[-1].shape[1], np.float64)
    for query in range(len(query_starts) - 1):
        terms = ids[query_starts[query] : query_starts[query + 1]]
        if len(terms):
            _add(terms, columns, sums)
            sizes[query] = _keep(sums, first, base[query], all_rows[query], all_scores[query], sizes[query])


@numba.njit(cache=True, nogil=True)
def _add(terms, columns, sums):  # type: ignore[no-untyped-def] # compiled
    starts, rows, weights, column, dense = columns
    for term in terms:
        if column[term] >= 0:
            line = dense[column[term]]
            for row in range(len(sums)):
                sums[row] += line[row]
        else:
            for entry in range(starts[term], starts[term + 1]):
                sums[rows[entry]] += weights[entry]


@numba.njit(cache=True, nogil=True)
def _keep(sums, first, base, heap_rows, heap, size):  # type: ignore[no-untyped-def] # compiled
    """Let the rows whose sums beat the worst in a heap into it, set the sums to zero, and return the heap's size."""
    limit = _sure(sums, len(heap)) if size < len(heap) else _limit(heap, size, base)
    for block in range(0, len(sums), BLOCK):
        part = sums[block : block + BLOCK]
        above = 0
        for place in range(len(part)):
            above += part[place] > limit
        if above:
            for place in range(len(part)):
                score = np.float32(part[place] + base)
                # a row that only equals the worst kept so far is worse: rows come in order
                if part[place] > limit and (size < len(heap) or score > heap[0]):
                    size = _push(heap_rows, heap, size, first + block + place, score)
                    limit = max(limit, _limit(heap, size, base))
        part[:] = 0.0
    return size


@numba.njit(cache=True, nogil=True)
def _sure(sums, depth):  # type: ignore[no-untyped-def] # compiled
    """Return what at least `depth` sums exceed, 0 if that is not known: as many blocks have a largest sum above it."""
    blocks = len(sums) // BLOCK
    if blocks < depth:
        return 0.0
    largest = np.zeros(blocks)
    for block in range(blocks):
        for place in range(block * BLOCK, (block + 1) * BLOCK):
            largest[block] = max(largest[block], sums[place])
    return np.partition(largest, blocks - depth)[blocks - depth] * (1 - 1e-6)


@numba.njit(cache=True, nogil=True)
def _limit(heap, size, base):  # type: ignore[no-untyped-def] # compiled
    """Return what a sum must at least exceed to get into the heap; a little less, so that no rounding leaves anything out."""
    return 0.0 if size < len(heap) else max(0.0, heap[0] * (1 - 1e-6) - base)


@numba.njit(cache=True, nogil=True)
def _push(heap_rows, heap, size, row, score):  # type: ignore[no-untyped-def] # compiled
    """Let a row into a heap whose root is the worst (of equal scores the higher row); in a full heap it takes the root's place."""
    depth = len(heap)
    if size < depth:  # let it rise from the end
        place = size
        size += 1
        while place > 0 and score <= heap[(place - 1) // 2]:  # equal: the later row is worse, so nearer the root
            heap[place], heap_rows[place] = heap[(place - 1) // 2], heap_rows[(place - 1) // 2]
            place = (place - 1) // 2
    else:  # let it sink from the root
        place = 0
        while 2 * place + 1 < depth:
            child = 2 * place + 1
            right = child + 1
            if right < depth and (heap[right] < heap[child] or (heap[right] == heap[child] and heap_rows[right] > heap_rows[child])):
                child = right
            if heap[child] >= score:
                break  # an equal child has the lower row: it is better, and stays below
            heap[place], heap_rows[place] = heap[child], heap_rows[child]
            place = child
    heap[place], heap_rows[place] = score, row
    return size


def delta_of(options: MineBm25) -> float:
    """Return the delta that the options mean."""
    return DELTA[options.variant] if options.delta is None else options.delta


class RankBm25:
    """The library rank_bm25 itself, over the whole corpus in memory: the reference."""

    def __init__(self, run: Run, options: MineBm25):
        import rank_bm25

        corpus = Corpus(run)
        self.tokenize = tokenizer(IndexBm25(**run.need(f"2_index/{options.index or options.name}", "index bm25").options))
        tokens = [self.tokenize(text) for key in corpus.keys for text in texts_of(corpus.shard(key))]
        kind = {"okapi": rank_bm25.BM25Okapi, "l": rank_bm25.BM25L, "plus": rank_bm25.BM25Plus}[options.variant]
        last = {"epsilon": options.epsilon} if options.variant == "okapi" else {"delta": delta_of(options)}
        self.model = kind(tokens, k1=options.k1, b=options.b, **last)

    def search(self, texts: Sequence[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what `Bm25.search` returns."""
        documents = self.model.doc_freqs
        scores = np.full((len(texts), len(documents)), -np.inf, np.float32)
        for number, text in enumerate(texts):
            tokens = self.tokenize(text)
            found = self.model.get_scores(tokens)
            shared = np.array([any(token in document for token in tokens) for document in documents])
            scores[number] = np.where(shared & (found > 0), found, -np.inf)
        rows, scores = best(np.broadcast_to(np.arange(len(documents)), scores.shape), scores, depth)
        return np.where(np.isfinite(scores), rows, -1), scores


ENGINES: dict[str, type[Bm25] | type[RankBm25]] = {"quarry": Bm25, "rank-bm25": RankBm25}


@lru_cache(maxsize=1)
def _open(run_path: str, options: MineBm25, fingerprint: str) -> Bm25 | RankBm25:
    return ENGINES[options.engine](Run(run_path), options)


def _mine_shard(run: Run, options: MineBm25, key: str) -> Shard:
    corpus, queries = Corpus(run), run.read("1_tables/queries", key)
    engine = _open(str(run.path), options, run.need(f"2_index/{options.index or options.name}", "index bm25").fingerprint)
    query_ids = queries["query_id"].to_pylist()
    positives = positive_rows(corpus, query_ids, run.read("1_tables/positives", key))
    found = engine.search(queries["text"].to_pylist(), depth_for(options.k, positives[0]))
    return Shard({key: candidates(corpus, query_ids, positives, found, options.k, options.name)})
