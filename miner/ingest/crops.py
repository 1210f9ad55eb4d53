"""A corpus without queries -> rows to stage: each document's crops, one as the query, one as the
document (Contriever, Izacard et al. 2022, **published**): independent spans of a chunk of 256
words, each of a length of U(.1, .5) of it, words deleted with probability .1.
"""

import heapq
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from miner.files import fingerprint
from miner.ingest.pairs import CorpusColumns, corpus_rows
from miner.ingest.rows import Reading, Row, hash_id
from miner.options import option
from miner.seeds import generator
from miner.store import Run
from miner.tables import full_text

CHUNK_WORDS, SHORTEST, LONGEST = 256, 0.1, 0.5
LEAST = 8  # words below which a document has no query


class IngestCrops(CorpusColumns):
    """A corpus without queries: a span of a document is a query for another span of it."""

    corpus: str = option(
        ..., "the documents: jsonl, csv, tsv, parquet (.gz may follow), or hf:NAME", argument=True
    )
    sample: int | None = option(
        None, "documents that get queries, drawn by seed [default: all]", ge=1
    )
    k: int = option(1, "queries per document", short="-k", ge=1)
    whole: bool = option(
        False, "documents stay whole, and are the positives [default: a span of each]"
    )
    delete: float = option(0.1, "probability that a word of a span is left out", ge=0, lt=1)
    seed: int = option(0, "seed of the spans and of --sample")

    def read(self, run: Run) -> Reading:
        """Corpus -> rows."""
        return crops(self)


class Span(NamedTuple):
    """Words of a document, and what stands between them."""

    words: list[str]
    space: str


def crops(options: IngestCrops) -> Reading:
    """Corpus -> rows, read twice: documents, then queries and positives.

    Raises:
        UserError: the file is missing, or has no column of texts.
    """
    notes: list[str] = []
    file = options.input(options.corpus, notes, split=options.split)
    documents = corpus_rows(file, options)
    if not options.whole:
        documents = (_cropped(options, row) for row in documents)
    asked = drawn_documents(options.sample, options.seed, corpus_rows(file, options))
    rows = chain(documents, chain.from_iterable(_queries_of(options, row) for row in asked))
    return Reading({options.corpus: file.fingerprint()}, rows, notes)


def crop(span: Span, options: IngestCrops, *ids: str) -> str:
    """Return a span of a chunk of a document; which one depends on the seed and the ids."""
    draw = generator(options.seed, "crop", *ids)
    words, size = span.words, min(CHUNK_WORDS, len(span.words))
    words = words[(start := int(draw.integers(len(words) - size + 1))) : start + size]
    length = max(LEAST // 2, round(draw.uniform(SHORTEST, LONGEST) * size))
    words = words[(start := int(draw.integers(size - length + 1))) : start + length]
    kept = [
        word
        for word, chance in zip(words, draw.random(length), strict=True)
        if chance >= options.delete
    ]
    return span.space.join(kept or words[:1])


def span_of(text: str) -> Span:
    """Return the words of a text; of one that is written without spaces, its characters."""
    words = text.split()
    return Span(list(text), "") if len(text) > 4 * LEAST * max(1, len(words)) else Span(words, " ")


def _queries_of(options: IngestCrops, row: Row) -> Iterator[Row]:
    """Yield a document's queries and positives, or that it is too short to have any."""
    doc_id, text = row.values[0], full_text(row.values[1], row.values[-1])
    if len((span := span_of(text)).words) < LEAST:
        yield row._replace(table="rejects", values=("queries", "too_short", text))
        return
    for turn in range(options.k):
        query = crop(span, options, doc_id, str(turn))
        query_id = hash_id("q", f"{doc_id} {turn}")
        yield row._replace(table="queries", values=(query_id, "paired", query))
        yield row._replace(table="positives", values=(query_id, doc_id, 1))


def _cropped(options: IngestCrops, row: Row) -> Row:
    """Return a document as a span of it."""
    if row.table != "documents":
        return row
    doc_id, title, kind, text = row.values
    span = span_of(full_text(title, text))
    if len(span.words) < LEAST:
        return row
    return row._replace(values=(doc_id, "", kind, crop(span, options, doc_id, "document")))


def drawn_documents(sample: int | None, seed: int, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the documents that get queries: all, each id once, or `sample` of them, drawn by
    seed and id.
    """
    found = _distinct(rows)
    if sample is None:
        return found
    return iter(heapq.nsmallest(sample, found, key=lambda row: fingerprint([seed, row.values[0]])))


def _distinct(rows: Iterator[Row]) -> Iterator[Row]:
    seen = set[str]()
    for row in rows:
        if row.table == "documents" and row.values[0] not in seen:
            seen.add(row.values[0])
            yield row
