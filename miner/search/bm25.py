"""documents -> BM25 index; queries + BM25 index -> candidates.

The index says how often each term stands in each document, one document shard at a time; what
decides the weights (how many documents there are, how long they are, in how many a term stands) is
counted over the whole corpus. So any number of shards gives the same scores, those of rank_bm25
(https://github.com/dorianbrown/rank_bm25), its rule for negative idf included, and other parameters
need no new index. Documents that share no word with a query, or score 0 or less, are no candidates.

A search goes over one document shard at a time and keeps each query's best in a heap. It sums in
float64, in the order of the query's tokens, with rank_bm25's own operations; scores are then
float32, as the candidates table keeps them, and what is equal there is a tie.

Files of a shard, in `2_index/<name>`: `_hashes` (terms, ascending: a term is known by 64 bits of
its hash), `_starts`, `_rows`, `_frequencies` (postings by term, then row of the shard), `_terms`
(the words, to check that no two share a hash), and the length of each document in tokens. Files of
the whole: `_corpus_hashes`, `_corpus_documents`.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.files import write_array
from miner.options import NAME, Options, option
from miner.query_shard import QueryShard
from miner.search.bm25_variants import VARIANTS, okapi_idf
from miner.search.kernels import EMPTY, search_postings
from miner.search.postings import Columns, Postings, count_postings, weigh
from miner.search.tokens import IndexBm25, tokenize, tokenizer
from miner.search.topk import best, in_order, in_threads
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.views import shard_texts, view_input, write_view


class MineBm25(Options):
    """BM25 candidates, with the scores of rank-bm25."""

    k: int = option(
        50, "candidates per query; positives that are found come on top", short="-k", ge=1
    )
    name: str = option("bm25", "name of the source", pattern=NAME)
    index: str | None = option(
        None, "which index [default: the one named as the source]", pattern=NAME
    )
    variant: Literal["okapi", "l", "plus"] = option(
        "okapi", "BM25Okapi, BM25L or BM25Plus of rank-bm25"
    )
    k1: float = option(1.5, "saturation of term frequency", ge=0)
    b: float = option(0.75, "weight of document length", ge=0, le=1)
    epsilon: float = option(
        0.25, "okapi: floor of a negative idf, as a share of the average idf", ge=0
    )
    delta: float | None = option(
        None, "l, plus: what a word's presence is worth [default: l 0.5, plus 1]", ge=0
    )
    engine: Literal["quarry", "rank-bm25"] = option(
        "quarry", "rank-bm25: the library itself, slow, as the reference"
    )


def index_bm25(run: Run, options: IndexBm25, how: How) -> Manifest:
    """Index all documents: documents -> 2_index/<name>."""
    # a wrong pattern is the user's mistake, and is said before anything is written
    tokenizer(options)
    stage = Stage(
        f"{run.INDEXES}/{options.name}",
        "documents",
        options.record(),
        run.table_input() | view_input(options.view),
        made_by="index bm25",
    )
    folder = run.path / stage.folder

    def prepare() -> partial[Shard]:
        write_view(options.view, folder)
        return partial(_index_shard, run, options, folder)

    return run_stage(
        run, stage, prepare, Corpus(run).keys, how, partial(_count_corpus, run, options)
    )


def mine_bm25(run: Run, options: MineBm25, how: How) -> Manifest:
    """Search every query: queries + BM25 index -> 3_candidates/<name>."""
    inputs = run.table_input()
    index = run.need_index(options.index or options.name, "bm25")
    stage = Stage(
        f"{run.SOURCES}/{options.name}",
        "candidates",
        options.record(),
        inputs | {index.stage: index.fingerprint},
        made_by="mine bm25",
    )
    task = partial(_mine_shard, run, options, index.fingerprint)
    return run_stage(
        run, stage, lambda: task, run.query_shards(), how, partial(_lost_to_idf, run, options)
    )


def _lost_to_idf(run: Run, options: MineBm25) -> dict[str, Any]:
    """Return a note if words weigh nothing, as Okapi's idf of a word of half of the documents is
    0: what matches by them alone is no candidate.
    """
    engine = Bm25(run, options.model_copy(update={"engine": "quarry"}))
    hashes = np.asarray(engine.hashes)
    nothing = hashes[engine.idf(hashes) <= 0]
    if not len(nothing):
        return {}
    lost = 0
    for key in run.query_shards():
        tokens = tokenize(run.read(run.QUERIES, key)["text"].to_pylist(), engine.index)
        weightless = np.isin(hashes_of(tokens.terms), nothing)[tokens.ids]
        ends = np.concatenate(([0], np.cumsum(weightless)))[tokens.starts]
        lost += int((np.diff(ends) > 0).sum())
    if not lost:
        return {}
    return {
        "notes": [
            f"{lost:,} queries have words that weigh nothing, as half of the documents have them,"
            " so what matches by these alone is no candidate; with --variant plus it is"
        ]
    }


def _index_shard(run: Run, options: IndexBm25, folder: Path, key: str) -> Shard:
    documents = shard_texts(run, options.view, folder, key)
    tokens = tokenize(documents, options)
    hashes = hashes_of(tokens.terms)
    order = np.argsort(hashes)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    frequency, starts, rows = count_postings(tokens.starts, place[tokens.ids], len(order))
    terms = pa.array(tokens.terms, pa.string()).take(pa.array(order))
    files = {
        f"_terms/{key}": pa.table(
            {"hash": hashes[order], "term": terms, "documents": np.diff(starts)}
        ),
        f"_hashes/{key}": hashes[order],
        f"_starts/{key}": starts,
        f"_rows/{key}": rows.astype(np.uint16 if len(documents) <= 1 << 16 else np.int32),
        f"_frequencies/{key}": frequency.astype(np.min_scalar_type(frequency.max(initial=0))),
        key: np.diff(tokens.starts).astype(np.int32),
    }
    return Shard(files)


def hashes_of(terms: Sequence[str]) -> np.ndarray:
    """Return 64 bits that stand for each term, uint64."""
    digests = b"".join(
        hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for term in terms
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _count_corpus(run: Run, options: IndexBm25) -> dict[str, Any]:
    """Count over all shards in how many documents each term stands; write that and return the
    manifest's facts.
    """
    corpus, folder = Corpus(run), run.path / run.INDEXES / options.name
    tokens = sum(
        int(np.load(folder / f"{key}.npy", mmap_mode="r").sum(dtype=np.int64))
        for key in corpus.keys
    )
    with duckdb.connect(
        config={"memory_limit": "1GB", "temp_directory": str(folder / "_spill")}
    ) as connection:
        counted = connection.sql(
            "SELECT hash, sum(documents)::BIGINT AS documents, min(term) <> max(term) AS shared "
            "FROM read_parquet(?, hive_partitioning = false) GROUP BY hash ORDER BY hash",
            params=[str(folder / "_terms" / "*.parquet")],
        ).to_arrow_table()
    if not tokens:
        raise UserError(
            f"no document has a token under --token-pattern {options.token_pattern!r}; choose one"
            " that matches words"
        )
    hashes, documents = counted["hash"].to_numpy(), counted["documents"].to_numpy()
    if any(counted["shared"].to_pylist()):
        raise RuntimeError("two terms share one 64-bit hash")
    write_array(folder / "_corpus_hashes.npy", hashes)
    write_array(folder / "_corpus_documents.npy", documents)
    mean = math.fsum(okapi_idf(documents, len(corpus))) / len(hashes)
    return {
        "kind": "bm25",
        "documents": len(corpus),
        "tokens": tokens,
        "terms": len(hashes),
        "mean_idf": mean,
    }


class Bm25:
    """An index and how it weighs; arrays are memory-mapped, and nothing but the corpus's counts
    is read until searched.
    """

    def __init__(self, run: Run, options: MineBm25):
        index = run.need_index(options.index or options.name, "bm25")
        self.folder, self.corpus, self.options = run.path / index.stage, Corpus(run), options
        self.index, self.facts = IndexBm25(**index.options), index.facts
        self.variant = VARIANTS[options.variant]
        self.delta = self.variant.delta if options.delta is None else options.delta
        self.hashes, self.counts = self._load("_corpus_hashes"), self._load("_corpus_documents")

    def _load(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def idf(self, hashes: np.ndarray) -> np.ndarray:
        """Return the idf of terms by their hashes; NaN for a term that is in no document."""
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        df = np.where(self.hashes[place] == hashes, self.counts[place], np.nan)
        total, mean = self.facts["documents"], self.facts["mean_idf"]
        return self.variant.idf(df, total, mean, self.options.epsilon)

    def search(self, texts: Sequence[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `depth` best documents of each text.

        Returns:
            rows (n, depth) int64 and scores (n, depth) float32, in order of score downwards, then
            row; -1 and -inf where there are fewer.
        """
        queries = tokenize(texts, self.index)
        hashes = hashes_of(queries.terms)
        idf = self.idf(hashes)
        known = np.isfinite(idf)[queries.ids]
        starts, ids = np.concatenate(([0], np.cumsum(known)))[queries.starts], queries.ids[known]
        keys = np.full((len(texts), min(depth, len(self.corpus))), EMPTY, np.int64)
        # for each word, in every document
        absent = idf[ids] * (self.delta if self.variant.absent else 0)
        base = np.diff(np.concatenate(([0], np.cumsum(absent)))[starts])
        for key in self.corpus.keys:
            columns = self._columns(key, hashes, np.nan_to_num(idf))
            first = int(self.corpus.shard_rows(key)[0])

            def work(part: slice, columns: Columns = columns, first: int = first) -> None:
                bounds = starts[part.start : part.stop + 1]
                search_postings(bounds, ids, tuple(columns), first, base[part], keys[part])

            in_threads(len(texts), work)
        return in_order(keys)

    def _columns(self, key: str, hashes: np.ndarray, idf: np.ndarray) -> Columns:
        """Weigh the postings of some terms in one shard."""
        here, starts = self._load(f"_hashes/{key}"), self._load(f"_starts/{key}")
        place = np.searchsorted(here, hashes)
        there = (place < len(here)) & (np.append(here, np.uint64(0))[place] == hashes)
        begin = np.where(there, starts[place], 0)
        end = np.where(there, starts[np.minimum(place + 1, len(here))], 0)
        postings = Postings(
            begin,
            end - begin,
            self._load(f"_rows/{key}"),
            self._load(f"_frequencies/{key}"),
            self._load(key),
        )
        b, mean = self.options.b, self.facts["tokens"] / self.facts["documents"]

        def weight(
            part: slice, size: np.ndarray, tf: np.ndarray, lengths: np.ndarray
        ) -> np.ndarray:
            norm = 1 - b + b * lengths / mean
            repeated = np.repeat(idf[part], size)
            return self.variant.weight(repeated, tf, norm, self.options.k1, self.delta)

        return weigh(postings, weight)


class RankBm25:
    """The library rank_bm25 itself, over the whole corpus in memory: the reference."""

    def __init__(self, run: Run, options: MineBm25):
        import rank_bm25

        corpus, variant = Corpus(run), VARIANTS[options.variant]
        index = run.need_index(options.index or options.name, "bm25")
        self.tokenize = tokenizer(IndexBm25(**index.options))
        view, folder = index.options["view"], run.path / index.stage
        tokens = [
            self.tokenize(text)
            for key in corpus.keys
            for text in shard_texts(run, view, folder, key)
        ]
        last = {"delta": variant.delta if options.delta is None else options.delta}
        if options.variant == "okapi":
            last = {"epsilon": options.epsilon}
        self.model = getattr(rank_bm25, variant.library)(tokens, k1=options.k1, b=options.b, **last)

    def search(self, texts: Sequence[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what `Bm25.search` returns."""
        documents = self.model.doc_freqs
        scores = np.full((len(texts), len(documents)), -np.inf, np.float32)
        for number, text in enumerate(texts):
            tokens = self.tokenize(text)
            found = self.model.get_scores(tokens)
            shared = [any(token in document for token in tokens) for document in documents]
            scores[number] = np.where(np.array(shared) & (found > 0), found, -np.inf)
        rows, scores = best(np.broadcast_to(np.arange(len(documents)), scores.shape), scores, depth)
        return np.where(np.isfinite(scores), rows, -1), scores


ENGINES: dict[str, type[Bm25] | type[RankBm25]] = {"quarry": Bm25, "rank-bm25": RankBm25}


@lru_cache(maxsize=1)
def _open_engine(run_path: str, options: MineBm25, fingerprint: str) -> Bm25 | RankBm25:
    return ENGINES[options.engine](Run(run_path), options)


def _mine_shard(run: Run, options: MineBm25, index: str, key: str) -> Shard:
    shard = QueryShard(run, key, made=False)
    found = _open_engine(str(run.path), options, index).search(shard.texts, shard.depth(options.k))
    return Shard({key: shard.candidates(found, options.k, options.name)})
