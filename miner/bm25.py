"""documents -> BM25 index; queries + BM25 index -> candidates.

Scores are those of rank_bm25.BM25Okapi, its rule for negative idf included; documents that score 0 or less are no candidates. The index
is made by bm25s (Lucene's variant, eager sparse scores: https://arxiv.org/abs/2407.03618); each term's column is then scaled to Okapi's.
It is a folder of memory-mapped arrays in column order: `terms` (vocabulary), `indptr`, `rows`, `weights`.
"""

import re
from collections.abc import Callable
from functools import lru_cache, partial

import numba
import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.exact import best, candidates, depth_for, in_threads, positive_rows
from miner.options import IndexBm25, MineBm25
from miner.store import Manifest, Run, Shard, Stage, run_stage

Tokenize = Callable[[str], list[str]]


def index_bm25(run: Run, options: IndexBm25, how: How) -> Manifest:
    """Index all documents: documents -> 2_index/<name>."""
    tokenizer(options)  # a wrong pattern is the user's mistake, and is said before anything is written
    stage = Stage(f"2_index/{options.name}", "terms", options.record(), {"1_tables": run.tables().fingerprint})
    return run_stage(run, stage, lambda: partial(_build, run, options), ["terms"], how, lambda: {"kind": "bm25"})


def mine_bm25(run: Run, options: MineBm25, how: How) -> Manifest:
    """Search every query: queries + BM25 index -> 3_candidates/<name>."""
    tables, index = run.tables(), run.need_current(f"2_index/{options.name}", "index bm25")
    if index.facts["kind"] != "bm25":
        raise UserError(
            f"2_index/{options.name} is a {index.facts['kind']} index; `quarry mine bm25` wants one that `quarry index bm25` made"
        )
    inputs = {"1_tables": tables.fingerprint, f"2_index/{options.name}": index.fingerprint}
    stage = Stage(f"3_candidates/{options.name}", "candidates", options.record(), inputs)
    return run_stage(run, stage, lambda: partial(_search_shard, run, options, IndexBm25(**index.options)), run.query_shards(), how)


@lru_cache
def tokenizer(options: IndexBm25) -> Tokenize:
    """Return the function that turns a text into tokens.

    Raises:
        UserError: the token pattern is no regular expression.
    """
    try:
        find = re.compile(options.token_pattern).findall
    except re.error as error:
        raise UserError(f"--token-pattern {options.token_pattern!r} is no regular expression: {error}") from error
    stop: frozenset[str] = frozenset()
    if options.stop_words == "english":
        from bm25s.stopwords import STOPWORDS_EN

        stop = frozenset(STOPWORDS_EN)
    if options.stemmer == "english":
        import Stemmer

        stem = Stemmer.Stemmer("english").stemWords
        return lambda text: stem([token for token in find(text.lower()) if token not in stop])
    return lambda text: [token for token in find(text.lower()) if token not in stop]


def _build(run: Run, options: IndexBm25, key: str) -> Shard:
    import bm25s

    corpus, tokenize = Corpus(run), tokenizer(options)
    vocabulary: dict[str, int] = {}
    token_ids: list[list[int]] = []
    for shard in corpus.keys:
        texts = corpus.texts(corpus.shard_rows(shard))
        token_ids.extend([vocabulary.setdefault(token, len(vocabulary)) for token in tokenize(text)] for text in texts)
    if not vocabulary:
        raise UserError(f"no document has a token under --token-pattern {options.token_pattern!r}; choose one that matches words")
    retriever = bm25s.BM25(k1=options.k1, b=options.b, method="lucene", dtype="float64", int_dtype="int32")
    retriever.index((token_ids, vocabulary), create_empty_token=False, show_progress=False)
    matrix = retriever.scores
    indptr = np.asarray(matrix["indptr"], np.int64)
    frequency = np.diff(indptr)
    scale = (options.k1 + 1) * okapi_idf(frequency, len(corpus), options.epsilon) / lucene_idf(frequency, len(corpus))
    weights = np.asarray(matrix["data"], np.float64) * np.repeat(scale, frequency)
    files = {
        "indptr": indptr,
        "rows": np.asarray(matrix["indices"], np.int32),
        "weights": weights,
        "terms": pa.table({"term": pa.array(list(vocabulary), pa.string())}),
    }
    return Shard(files)


def okapi_idf(frequency: np.ndarray, documents: int, epsilon: float) -> np.ndarray:
    """Return rank_bm25's idf: ln((N - df + .5) / (df + .5)); where negative, epsilon times the mean idf of all terms."""
    idf = np.log(documents - frequency + 0.5) - np.log(frequency + 0.5)
    return np.where(idf < 0, epsilon * idf.mean(), idf)


def lucene_idf(frequency: np.ndarray, documents: int) -> np.ndarray:
    """Return Lucene's idf: ln(1 + (N - df + .5) / (df + .5))."""
    return np.log(1 + (documents - frequency + 0.5) / (frequency + 0.5))


class Bm25:
    """An index folder, opened: nothing is read until searched."""

    def __init__(self, run: Run, options: IndexBm25):
        folder = run.path / "2_index" / options.name
        self.indptr, self.rows, self.weights = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("indptr", "rows", "weights"))
        self.tokenize = tokenizer(options)
        terms = run.read(f"2_index/{options.name}", "terms")["term"].to_pylist()
        self.vocabulary = {term: number for number, term in enumerate(terms)}
        self.documents = len(Corpus(run))

    def search(self, texts: list[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `depth` best documents of each text.

        Returns:
            rows (n, depth) int64 and scores (n, depth) float64, in order of score downwards, then row; -1 and -inf where there are fewer.
        """
        known = [[self.vocabulary[token] for token in self.tokenize(text) if token in self.vocabulary] for text in texts]
        starts = np.cumsum([0, *(len(terms) for terms in known)])
        flat = np.array([term for terms in known for term in terms], np.int64)
        shape = (len(texts), min(depth, self.documents))
        out_rows, out_scores = np.full(shape, -1, np.int64), np.full(shape, -np.inf)

        def work(part: slice) -> None:
            bounds = starts[part.start : part.stop + 1]
            _search(self.indptr, self.rows, self.weights, bounds, flat, self.documents, out_rows[part], out_scores[part])

        in_threads(len(texts), work)
        return best(out_rows, out_scores, shape[1])


@numba.njit(cache=True, nogil=True)
def _search(indptr, rows, weights, starts, terms, documents, out_rows, out_scores):  # type: ignore[no-untyped-def] # compiled
    """Sum the columns of each query's terms; keep the best documents in a heap, of equal scores the lower rows; in no order."""
    depth = out_rows.shape[1]
    sums = np.zeros(documents, np.float64)
    for query in range(len(starts) - 1):
        for place in range(starts[query], starts[query + 1]):
            for entry in range(indptr[terms[place]], indptr[terms[place] + 1]):
                sums[rows[entry]] += weights[entry]
        heap_rows, heap, size = out_rows[query], out_scores[query], 0
        for row in range(documents):
            score = sums[row]
            sums[row] = 0.0
            if score <= 0.0 or (size == depth and score <= heap[0]):
                continue  # rows come in order: one that only equals the worst kept so far is worse
            if size < depth:  # let it rise from the end
                place = size
                size += 1
                while place > 0 and score <= heap[(place - 1) // 2]:  # equal: the later row is worse, so nearer the root
                    heap[place], heap_rows[place] = heap[(place - 1) // 2], heap_rows[(place - 1) // 2]
                    place = (place - 1) // 2
            else:  # let it sink from the root, where the worst was
                place = 0
                while 2 * place + 1 < depth:
                    child = 2 * place + 1
                    right = child + 1
                    if right < depth and (
                        heap[right] < heap[child] or (heap[right] == heap[child] and heap_rows[right] > heap_rows[child])
                    ):
                        child = right
                    if heap[child] >= score:
                        break  # an equal child has the lower row: it is better, and stays below
                    heap[place], heap_rows[place] = heap[child], heap_rows[child]
                    place = child
            heap[place], heap_rows[place] = score, row


@lru_cache(maxsize=1)
def _open(run_path: str, options: IndexBm25, fingerprint: str) -> Bm25:
    return Bm25(Run(run_path), options)


def _search_shard(run: Run, options: MineBm25, index_options: IndexBm25, key: str) -> Shard:
    corpus, queries = Corpus(run), run.read("1_tables/queries", key)
    index = _open(str(run.path), index_options, run.tables().fingerprint)
    query_ids = queries["query_id"].to_pylist()
    positives = positive_rows(corpus, query_ids, run.read("1_tables/positives", key))
    found = index.search(queries["text"].to_pylist(), depth_for(options.k, positives[0]))
    return Shard({key: candidates(corpus, query_ids, positives, found, options.k, options.name)})
