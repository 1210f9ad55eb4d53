"""TREC corpus, topics and qrels -> rows to stage.

What kind a file is, is read off its first line: `{` is jsonl, `<` is markup, anything else is
tab-separated.
"""

import html
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from miner.ingest.formats import read_qrels
from miner.ingest.inputs import Bad, Input, Records, find_input, lines
from miner.ingest.readers import blocks, json_lines, tsv_cells
from miner.ingest.rows import (
    Ingest,
    Item,
    Reading,
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


class IngestTrec(Ingest):
    """TREC corpus, topics, qrels; run files become sources as they are."""

    corpus: Path = option(
        ..., "documents: jsonl, tsv (id, text) or TREC <DOC> text; .gz may follow"
    )
    topics: Path = option(..., "queries: tsv (id, text), jsonl or TREC <top> text; .gz may follow")
    qrels: Path = option(..., "qrels: four columns, or BEIR's three with a header")
    run_file: tuple[str, ...] = option(
        (), "a TREC run that becomes a source: FILE or NAME=FILE; repeat for more"
    )

    def read(self, run: Run) -> Reading:
        """TREC corpus, topics and qrels -> rows."""
        return trec(self)


def trec(options: IngestTrec) -> Reading:
    """TREC corpus, topics and qrels -> rows.

    Raises:
        UserError: a file is missing.
    """
    given = (options.corpus, options.topics, options.qrels)
    corpus, topics, qrels = files = [find_input(path) for path in given]
    inputs = {str(path): file.fingerprint() for path, file in zip(given, files, strict=True)}
    documents = build_rows(corpus, "documents", _records(corpus, "doc", DOCUMENT_IDS), _document)
    queries = build_rows(topics, "queries", _records(topics, "top", QUERY_IDS), _query)
    return Reading(inputs, chain(documents, queries, read_qrels(qrels)))


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
        for line, block in blocks(file, tag):
            yield line, block if isinstance(block, Bad) else parse(block)
    else:
        yield from _tab_separated(file, ids)


def _tab_separated(file: Input, ids: Sequence[str]) -> Records:
    """Yield id and text, or id, title and text; a first line that names columns decides instead."""
    header: list[str] = []
    for position, (line, cells) in enumerate(tsv_cells(file)):
        if isinstance(cells, Bad):
            yield line, cells
        elif (
            position == 0
            and cells[0].lower() in ids
            and {cell.lower() for cell in cells[1:]} <= set(TEXTS)
        ):
            header = [cell.lower() for cell in cells]
        elif len(cells) not in ((len(header),) if header else (2, 3)):
            yield line, Bad("bad_columns", "\t".join(cells))
        else:
            names = header or (["id", "text"] if len(cells) == 2 else ["id", "title", "text"])
            yield line, dict(zip(names, cells, strict=True))


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
    found = {"qid": NUMBER.search(block), "text": TOPIC.search(block)}
    return {name: _without_tags(match[1]) for name, match in found.items() if match}


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
