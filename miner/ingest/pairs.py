"""Files of pairs and of captions -> rows."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

from miner.ingest.inputs import Input
from miner.ingest.readers import read_rows
from miner.ingest.rows import (
    Ingest,
    Item,
    Reading,
    Reject,
    Row,
    filled,
    first_of,
    hash_id,
    identifier,
    is_null,
    raw,
    text_of,
    title_of,
)
from miner.options import option
from miner.store import Run


class CorpusColumns(Ingest):
    """Which columns of a file of documents are read."""

    corpus_text: str = option("text", "column of the corpus with the text")
    corpus_id: str | None = option(
        None, "column of the corpus with the id (default: _id, id or doc_id if there, else a hash)"
    )
    split: str = option("train", "split of hf:NAME")


class IngestPairs(CorpusColumns):
    """Queries with positives in one file: jsonl, csv, tsv, parquet, or hf:NAME through datasets."""

    file: str = option(..., "the file (.gz may follow), or hf:NAME", argument=True)
    query: str = option("query", "column with the query's text")
    positive: str = option("positive", "column with the positive's text, or a list of texts")
    query_id: str | None = option(None, "column with the query's id (default: a hash of the text)")
    positive_id: str | None = option(
        None, "column with the positive's id, or a list of ids (default: a hash of the text)"
    )
    negative: str | None = option(
        None,
        "column with a list of texts that are negatives of the query: they become the source own",
    )
    negative_score: str | None = option(
        None, "column with a score of each of these negatives, the higher the harder"
    )
    label: str | None = option(
        None, "column with the positive's class label, or a list of labels, one for each positive"
    )
    corpus: str | None = option(None, "more documents: a file of the same kinds, or hf:NAME")

    def read(self, run: Run) -> Reading:
        """File of pairs -> rows."""
        return pairs(self)


class IngestCaptions(Ingest):
    """Captions: each is a query and its own positive. COCO captions json; jsonl, csv, tsv, parquet
    with a caption column; Flickr's image.jpg#0<TAB>caption; or one caption a line (.txt).
    """

    file: str = option(..., "the file (.gz may follow), or hf:NAME", argument=True)
    caption: str = option("caption", "column with the caption")
    caption_id: str | None = option(
        None, "column with the caption's id (default: id if there, else a hash of the text)"
    )
    group: str | None = option(
        None, "column with the image's id: captions of one image become each other's positives"
    )
    image: str | None = option(
        None, "column with the image's path, for export --format open-clip; of COCO json: file_name"
    )
    split: str = option("train", "split of hf:NAME")

    def read(self, run: Run) -> Reading:
        """File of captions -> rows."""
        return captions(self)


def pairs(options: IngestPairs) -> Reading:
    """Pairs, and a corpus if one is given -> rows. The corpus comes first, so that its documents
    win.

    Raises:
        UserError: a file is missing.
    """
    notes: list[str] = []
    file = options.input(options.file, notes, split=options.split)
    needs = {options.query: "--query", options.positive: "--positive"}
    if options.query_id:
        needs[options.query_id] = "--query-id"
    if options.positive_id:
        needs[options.positive_id] = "--positive-id"
        if options.corpus:
            del needs[options.positive]  # ids are enough where a corpus has the texts
    for column, flag in (
        (options.label, "--label"),
        (options.negative, "--negative"),
        (options.negative_score, "--negative-score"),
    ):
        if column:
            needs[column] = flag
    inputs = {options.file: file.fingerprint()}
    rows = read_rows(file, "queries", needs, partial(_pair, options), (options.positive,))
    if options.corpus:
        corpus = options.input(options.corpus, notes, split=options.split)
        inputs[options.corpus] = corpus.fingerprint()
        rows = chain(corpus_rows(corpus, options), rows)
    return Reading(inputs, rows, notes)


def corpus_rows(file: Input, options: CorpusColumns) -> Iterator[Row]:
    """Documents of a file whose columns the options name -> rows."""
    needs = {options.corpus_text: "--corpus-text"} | (
        {options.corpus_id: "--corpus-id"} if options.corpus_id else {}
    )
    names = (options.corpus_id,) if options.corpus_id else ("_id", "id", "doc_id")

    def build(record: dict[str, Any]) -> Iterator[Item]:
        title, text, column = (
            title_of(record),
            text_of(record, options.corpus_text),
            first_of(record, names),
        )
        filled(title, text)
        if column in record:
            yield "documents", (identifier(record, column), title, "listed", text)
        else:
            yield "documents", (hash_id("d", text), title, "hashed", text)

    return read_rows(file, "documents", needs, build, (*names, "title"))


def _pair(options: IngestPairs, record: dict[str, Any]) -> Iterator[Item]:
    """Yield the query of a record, and a document and a positive for each of its positives; one
    bad positive leaves the others in.
    """
    text = text_of(record, options.query)
    filled(text)
    query_id = identifier(record, options.query_id) if options.query_id else hash_id("q", text)
    yield "queries", (query_id, "paired", text)
    found = _listed_positives(options, record)
    if not options.positive_id:
        whole = [one for one in found if not _is_empty(one[options.positive])]
        if isinstance(record[options.positive], list):
            if not whole:
                raise Reject(f"missing_{options.positive}")
            yield from _empty_members(len(found) - len(whole), record)
            found = whole
    for positive in found:
        try:
            yield from _positive(options, query_id, positive)
        except Reject as reject:
            yield "rejects", ("documents", str(reject), raw(record))
    if options.negative:
        yield from _negatives(options, query_id, record)


def _is_empty(value: Any) -> bool:
    return is_null(value) or (isinstance(value, str) and not value.strip())


def _empty_members(count: int, record: Mapping[str, Any]) -> Iterator[Item]:
    """Yield a reject for each null or blank member of a list: the others stay."""
    for _ in range(count):
        yield "rejects", ("documents", "empty_member", raw(record))


def _negatives(options: IngestPairs, query_id: str, record: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the documents that a query came with as negatives, and their order and scores."""
    texts = _as_list(record.get(options.negative or ""))
    scores = _as_list(record.get(options.negative_score)) if options.negative_score else []
    if scores and len(scores) != len(texts):
        yield "rejects", ("documents", "unequal_lists", raw(record))
        scores = []
    for place, value in enumerate(texts):
        if _is_empty(value):
            yield from _empty_members(1, record)
            continue
        try:
            text = text_of({"negative": value}, "negative")
            score = _score(scores[place]) if scores else None
        except Reject as reject:
            yield "rejects", ("documents", str(reject), raw(record))
            continue
        doc_id = hash_id("d", text)
        yield "documents", (doc_id, "", "paired", text)
        yield "negatives", (query_id, doc_id, score)


def _score(value: Any) -> float | None:
    if is_null(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Reject("bad_score") from None


def _listed_positives(options: IngestPairs, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record's positives one by one. A string is one positive, never a list of its
    characters; one label is that of them all.
    """
    columns = {options.positive: _as_list(record.get(options.positive))}
    named = options.positive_id or options.positive
    if options.positive_id:
        columns[named] = _as_list(record.get(named))
    count = len(columns[named])
    if not count:
        raise Reject(f"missing_{named}")
    if options.label:
        label = record.get(options.label)
        columns[options.label] = label if isinstance(label, list) else [label] * count
    if any(len(values) != count for values in columns.values() if values):
        raise Reject("unequal_lists")
    return [
        {column: values[place] if values else None for column, values in columns.items()}
        for place in range(count)
    ]


def _as_list(value: Any) -> list[Any]:
    if is_null(value):
        return []
    return value if isinstance(value, list) else [value]


def _positive(options: IngestPairs, query_id: str, positive: Mapping[str, Any]) -> Iterator[Item]:
    """Yield a positive, and its document unless it has an id and no text: then the id refers to
    a document from elsewhere.
    """
    if options.positive_id:
        doc_id = identifier(positive, options.positive_id)
        text = "" if is_null(positive[options.positive]) else text_of(positive, options.positive)
    else:
        text = text_of(positive, options.positive)
        filled(text)
        doc_id = hash_id("d", text)
    if text.strip():
        yield "documents", (doc_id, "", "paired", text)
    yield "positives", (query_id, doc_id, 1)
    if options.label and (label := _label(positive, options.label)):
        yield "labels", (doc_id, label)


def _label(positive: Mapping[str, Any], column: str) -> str:
    """Return a class label as text; null and blank are no label."""
    value = positive[column]
    return (
        ""
        if is_null(value)
        else str(value)
        if isinstance(value, bool)
        else text_of(positive, column).strip()
    )


def captions(options: IngestCaptions) -> Reading:
    """Captions -> rows.

    Raises:
        UserError: the file is missing.
    """
    notes: list[str] = []
    file = options.input(options.file, notes, split=options.split)
    needs = {options.caption: "--caption"}
    if options.caption_id:
        needs[options.caption_id] = "--caption-id"
    if options.group:
        needs[options.group] = "--group"
    if options.image:
        needs[options.image] = "--image"
    rows = read_rows(file, "captions", needs, partial(_caption, options), ("id",))
    return Reading({options.file: file.fingerprint()}, rows, notes)


def _caption(options: IngestCaptions, record: dict[str, Any]) -> Iterator[Item]:
    text = text_of(record, options.caption)
    filled(text)
    group = identifier(record, options.group) if options.group else None
    image = _image(record, options.image) if options.image else None
    column = options.caption_id or "id"
    if options.caption_id or column in record:
        yield "captions", (identifier(record, column), group, image, "listed", text)
    else:
        yield "captions", (hash_id("q", text), group, image, "hashed", text)


def _image(record: Mapping[str, Any], column: str) -> str | None:
    """Return an image's path as text; null and blank are no image, and the caption stays."""
    return None if is_null(record.get(column)) else text_of(record, column).strip() or None
