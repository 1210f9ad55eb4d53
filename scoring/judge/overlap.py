"""candidates, positives + BM25 index -> judgments: how much of a query's words a document has,
weighed by how rare they are.

overlap(q, d) = sum of idf(t) over the distinct tokens t of q that d has / the same over all
distinct tokens of q, in [0, 1], with
idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)), N documents and df of them with t: above 0 for every
word. A word that no document has counts in neither sum, as in BM25; a query without any other has
no overlap (null). 1 - overlap is the lexical hardness of a negative.

Tokens are those of the index, and no text of a document is read: whether it has a word is looked up
in the word's postings.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from miner.engine import How
from miner.options import NAME, Options, option
from miner.query_shard import Pairs
from miner.search.bm25 import hashes_of
from miner.search.tokens import IndexBm25, tokenize
from miner.store import Manifest, Run
from scoring.judge.judging import Asked, Judged, Judging, judgments


class JudgeOverlap(Options):
    """Lexical overlap: the share of a query's words, weighed by idf, that a document has."""

    index: str = option("bm25", "which BM25 index: its tokens and its postings serve", pattern=NAME)


class Words(NamedTuple):
    """The words of n queries: distinct in each, known to the corpus, in the order in which they
    stand in the query.

    Attributes:
        starts: (n + 1,) int64; words starts[i] to starts[i + 1] are those of query i.
        terms: (words,) int64, places in the two below.
        hashes: (t,) uint64, what the index knows a term by.
        idf: (t,) float64.
    """

    starts: np.ndarray
    terms: np.ndarray
    hashes: np.ndarray
    idf: np.ndarray


def judge_overlap(run: Run, options: JudgeOverlap, how: How) -> Manifest:
    """Judge all pairs of all sources, and positives, that are not judged yet: candidates, positives
    + BM25 index -> 4_judgments/overlap.

    Raises:
        UserError: there are no tables or no BM25 index, or a source or the index is older than the
            tables.
    """
    run.tables()
    index = run.need_index(options.index, "bm25")
    return Judging(run, "overlap").carry_out(
        options,
        how,
        lambda: partial(_measure_overlap, index.stage),
        inputs={index.stage: index.fingerprint},
    )


def _measure_overlap(folder: str, asked: Asked) -> Judged:
    return [judgments(asked.pairs, "overlap", overlap(folder, asked.pairs))], {}


def overlap(folder: str, pairs: Pairs) -> np.ndarray:
    """Return the overlap of pairs, (p,) float64 in [0, 1]; nan for a query without a word that
    the corpus has.

    Args:
        folder: of the BM25 index, such as "2_index/bm25".
        pairs: p of them; the texts of made documents are cut into words now.
    """
    run, corpus, query, row = pairs.shard.run, pairs.shard.documents, pairs.query, pairs.row
    found = np.zeros(len(pairs))
    words = query_words(run, folder, pairs.shard.texts)
    indexed = corpus.count
    shard = np.where(row < indexed, row // corpus.shard_size, len(corpus.keys))
    # each document shard's pairs together, in order of query
    order = np.argsort(shard, kind="stable")
    for number in np.unique(shard[row < indexed]):
        part = order[slice(*np.searchsorted(shard[order], [number, number + 1]))]
        begin, end, rows = _postings(run.path / folder, corpus.keys[number], words.hashes)
        found[part] = _shared(
            words.starts,
            words.terms,
            words.idf,
            (begin, end, rows),
            query[part],
            row[part] - number * corpus.shard_size,
        )
    made = np.flatnonzero(row >= indexed)
    if len(made):
        rows, place = np.unique(row[made], return_inverse=True)
        postings = _made_postings(run, folder, corpus.texts(rows), words.hashes)
        found[made] = _shared(words.starts, words.terms, words.idf, postings, query[made], place)
    whole = _whole(words.starts, words.terms, words.idf)
    return np.divide(found, whole[query], out=np.full(len(query), np.nan), where=whole[query] > 0)


def query_words(run: Run, folder: str, texts: list[str]) -> Words:
    """Return the words of queries, cut as the index cuts documents."""
    index = run.need(folder, "index bm25")
    tokens = tokenize(texts, IndexBm25(**index.options))
    owner = np.repeat(np.arange(len(texts)), np.diff(tokens.starts))
    first = np.sort(np.unique(owner * max(len(tokens.terms), 1) + tokens.ids, return_index=True)[1])
    hashes = hashes_of(tokens.terms)
    known, counts = (
        np.load(run.path / folder / f"_corpus_{name}.npy", mmap_mode="r")
        for name in ("hashes", "documents")
    )
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    documents = np.where(known[place] == hashes, counts[place], 0)
    first = first[documents[tokens.ids[first]] > 0]
    starts = np.searchsorted(owner[first], np.arange(len(texts) + 1))
    idf = np.log1p((index.facts["documents"] - documents + 0.5) / (documents + 0.5))
    return Words(starts, tokens.ids[first].astype(np.int64), hashes, idf)


def _made_postings(
    run: Run, folder: str, texts: list[str], hashes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of terms where their postings begin and end among those of some texts, and the
    places of the texts.
    """
    tokens = tokenize(texts, IndexBm25(**run.need(folder, "index bm25").options))
    owner = np.repeat(np.arange(len(texts)), np.diff(tokens.starts))
    term = hashes_of(tokens.terms)[tokens.ids]
    order = np.lexsort((owner, term))
    begin, end = (np.searchsorted(term[order], hashes, side=side) for side in ("left", "right"))
    return begin, end, owner[order]


def _postings(
    folder: Path, key: str, hashes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of terms where their postings begin and end in one document shard, and the rows of
    all its postings.
    """
    here, starts, rows = (
        np.load(folder / name / f"{key}.npy", mmap_mode="r")
        for name in ("_hashes", "_starts", "_rows")
    )
    place = np.searchsorted(here, hashes)
    end = np.minimum(place + 1, len(here))
    # a term that is not here has none
    end = np.where(np.append(here, np.uint64(0))[place] == hashes, end, place)
    return starts[place], starts[end], rows


@numba.njit(cache=True, nogil=True)
def _shared(starts, terms, idf, postings, query, row):  # type: ignore[no-untyped-def] # compiled
    """Sum the idf of the words of each pair's query that its document has, in the order of the
    words.
    """
    begin, end, rows = postings
    total = np.zeros(len(query))
    for pair in range(len(query)):
        for term in terms[starts[query[pair]] : starts[query[pair] + 1]]:
            place = begin[term] + np.searchsorted(rows[begin[term] : end[term]], row[pair])
            if place < end[term] and rows[place] == row[pair]:
                total[pair] += idf[term]
    return total


@numba.njit(cache=True, nogil=True)
def _whole(starts, terms, idf):  # type: ignore[no-untyped-def] # compiled
    """Sum the idf of all words of each query, in their order: what `_shared` sums for a document
    that has them all.
    """
    total = np.zeros(len(starts) - 1)
    for query in range(len(total)):
        for term in terms[starts[query] : starts[query + 1]]:
            total[query] += idf[term]
    return total
