"""TREC corpus, topics and qrels -> rows to stage.

What kind a file is, is read off its first line: `{` is jsonl, `<` is markup, anything else is
tab-separated.
"""

import html
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from miner.ingest.delimited import SNIFFED, tsv_cells
from miner.ingest.formats import read_qrels
from miner.ingest.inputs import Bad, Input, Records, lines
from miner.ingest.readers import blocks, json_lines
from miner.ingest.rows import (
    Item,
    Reading,
    WithRuns,
    build_rows,
    filled,
    first_of,
    identifier,
    text_of,
    title_of,
)
from miner.options import option
from miner.store import Run

DOCUMENT_IDS = ("docid", "_id", "id", "doc_id", "docno", "pid")
QUERY_IDS = ("qid", "_id", "id", "query_id", "query-id", "topic_id")
TEXTS = ("text", "contents", "passage", "body", "query", "title")
DOCNO = re.compile(r"<docno>(.*?)</docno>", re.I | re.S)
TITLE = re.compile(r"<(title|headline)>(.*?)</\1>", re.I | re.S)
BODY = re.compile(r"<text>(.*?)</text>", re.I | re.S)
NUMBER = re.compile(r"<num>\s*(?:number:)?\s*([^\s<]+)", re.I)
TOPIC = re.compile(r"<title>\s*(?:topic:)?([^<]*)", re.I)
TAG = re.compile(r"<[^>]*>")
XML_TOPIC = re.compile(r"<topic\b", re.I)
XML_NUMBER = re.compile(
    r"""<topic\b[^>]*\b(?:number|id|num)\s*=\s*["']([^"']*)["'][^>]*>"""
    r"""|<(?:number|num|id)>\s*([^<]*?)\s*</""",
    re.I,
)
# in order of preference; of <top>, a title need not be closed
TOPIC_TEXTS = (
    TOPIC,
    re.compile(r"<query>(.*?)</query>", re.I | re.S),
    re.compile(r"<question>(.*?)</question>", re.I | re.S),
    re.compile(r"<summary>(.*?)</summary>", re.I | re.S),
    re.compile(r"<description>(.*?)</description>", re.I | re.S),
)


class IngestTrec(WithRuns):
    """TREC corpus, topics, qrels; run files become sources as they are."""

    corpus: Path = option(
        ..., "documents: jsonl, tsv (id, text) or TREC <DOC> text; .gz may follow"
    )
    topics: Path = option(..., "queries: tsv (id, text), jsonl or TREC <top> text; .gz may follow")
    qrels: Path = option(..., "qrels: four columns, or BEIR's three with a header")

    def read(self, run: Run) -> Reading:
        """TREC corpus, topics and qrels -> rows."""
        return trec(self)


def trec(options: IngestTrec) -> Reading:
    """TREC corpus, topics and qrels -> rows.

    Raises:
        UserError: a file is missing.
    """
    given = (options.corpus, options.topics, options.qrels)
    notes: list[str] = []
    corpus, topics, qrels = files = [options.input(path, notes) for path in given]
    inputs = {str(path): file.fingerprint() for path, file in zip(given, files, strict=True)}
    documents = chain.from_iterable(
        build_rows(part, "documents", _records(part, "doc", DOCUMENT_IDS), _document)
        for part in corpus.parts()
    )
    queries = build_rows(topics, "queries", _records(topics, "top", QUERY_IDS), _query)
    return Reading(inputs, chain(documents, queries, read_qrels(qrels)), notes)


def _records(file: Input, tag: str, ids: Sequence[str]) -> Records:
    """Yield the records of a file of any of the three kinds, with whatever names its columns
    have.
    """
    first = next(
        (line for _, line in lines(file) if isinstance(line, str) and line.strip()), ""
    ).strip()
    if first.startswith("{"):
        yield from json_lines(file, {})
    elif first.startswith("<"):
        parse = _parse_document if tag == "doc" else _parse_topic
        if tag == "top" and XML_TOPIC.search("\n".join(_first_lines(file))):
            tag = "topic"
        for line, block in blocks(file, tag):
            yield line, block if isinstance(block, Bad) else parse(block)
    else:
        yield from _tab_separated(file, ids)


def _first_lines(file: Input) -> list[str]:
    return [line for _, line in islice(lines(file), SNIFFED) if isinstance(line, str)]


def _tab_separated(file: Input, ids: Sequence[str]) -> Records:
    """Yield id and text, or of documents id, title and text; a first line that names columns
    decides instead. A tab in the text, which comes last, is part of it.
    """
    header: list[str] = []
    names = ["id", "text"]
    if ids == DOCUMENT_IDS and _has_titles(file):
        names = ["id", "title", "text"]
    for position, (line, cells) in enumerate(tsv_cells(file)):
        if isinstance(cells, Bad):
            yield line, cells
        elif (
            position == 0
            and cells[0].lower() in ids
            and {cell.lower() for cell in cells[1:]} <= set(TEXTS)
        ):
            header = [cell.lower() for cell in cells]
        elif len(cells) < len(names) or (header and len(cells) != len(header)):
            yield line, Bad("bad_columns", "\t".join(cells))
        else:
            last = len(header or names) - 1
            texts = [*cells[:last], "\t".join(cells[last:])]
            yield line, dict(zip(header or names, texts, strict=True))


def _has_titles(file: Input) -> bool:
    """Tell whether most of the first rows have more than two columns: else what is more is a tab
    in the text.
    """
    found = (cells for _, cells in islice(tsv_cells(file), SNIFFED) if not isinstance(cells, Bad))
    more = [len(cells) > 2 for cells in found]
    return 2 * sum(more) > len(more)


def _parse_document(block: str) -> dict[str, Any]:
    found = {
        "docno": DOCNO.findall(block)[:1],
        "title": [title for _, title in TITLE.findall(block)[:1]],
        "text": BODY.findall(block),
    }
    return {
        name: " ".join(_without_tags(part) for part in parts)
        for name, parts in found.items()
        if parts
    }


def _parse_topic(block: str) -> dict[str, Any]:
    """Return number and text of a topic: of <top>, or of the XML of TREC 2014 to 2023, whose number
    may be an attribute, and whose text may be all that the topic holds.
    """
    number = NUMBER.search(block) or XML_NUMBER.search(block)
    text = next((match[1] for one in TOPIC_TEXTS if (match := one.search(block))), None)
    if text is None and number is not None and XML_TOPIC.match(block):
        text = XML_NUMBER.sub(" ", block)
    found = {"qid": number and next(filter(None, number.groups()), ""), "text": text}
    return {name: _without_tags(value) for name, value in found.items() if value is not None}


def _without_tags(markup: str) -> str:
    """Return the text of markup: tags gone, entities resolved, white space folded."""
    return " ".join(html.unescape(TAG.sub(" ", markup)).split())


def _document(record: dict[str, Any]) -> Iterator[Item]:
    doc_id, title, text = (
        identifier(record, first_of(record, DOCUMENT_IDS)),
        title_of(record),
        text_of(record, first_of(record, TEXTS[:4])),
    )
    filled(title, text)
    yield "documents", (doc_id, title, "listed", text)


def _query(record: dict[str, Any]) -> Iterator[Item]:
    query_id, text = (
        identifier(record, first_of(record, QUERY_IDS)),
        text_of(record, first_of(record, TEXTS)),
    )
    filled(text)
    yield "queries", (query_id, "listed", text)
