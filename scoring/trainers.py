"""One query with its positives and negatives -> rows as trainers read them that nest. A format is
one entry of TRAINERS; `scoring.export_rows` has those of flat columns.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from miner.tables import DOUBLE, TEXT, full_text

Row = dict[str, Any]


class Passage(NamedTuple):
    """A document as one of a query's; the score is the judge's, None without one."""

    doc_id: str
    title: str
    text: str
    score: float | None

    @property
    def whole(self) -> str:
        """Return title and text as one."""
        return full_text(self.title, self.text)


class Group(NamedTuple):
    """A query with its positives, in order of doc_id, and its negatives, the best ranks first."""

    query_id: str
    query: str
    positives: list[Passage]
    negatives: list[Passage]


class Trainer(NamedTuple):
    """A format.

    Attributes:
        rows: makes rows of a group; the prompt is what the user gave for it.
        schema: of the rows.
        scored: whether each passage must have a score ("always"), may have one ("maybe"), or none
            is told ("never").
        file_type: that the trainer reads.
    """

    rows: Callable[[Group, str | None], Iterator[Row]]
    schema: pa.Schema
    scored: str
    file_type: str


def flag_embedding(group: Group, prompt: str | None) -> Iterator[Row]:
    """FlagEmbedding's embedders and rerankers: query, pos, neg, their scores for distillation. An
    embedder takes the prompt of a row for its own, a reranker query_prompt.
    """
    yield {
        "query": group.query,
        "pos": [passage.whole for passage in group.positives],
        "neg": [passage.whole for passage in group.negatives],
        "pos_scores": [passage.score for passage in group.positives],
        "neg_scores": [passage.score for passage in group.negatives],
        "prompt": prompt,
        "query_prompt": prompt,
        "type": "normal",
    }


def tevatron(group: Group, prompt: str | None) -> Iterator[Row]:
    """Tevatron's retrievers: passages with their ids and titles."""

    def told(passages: list[Passage]) -> list[Row]:
        return [{"docid": one.doc_id, "title": one.title, "text": one.text} for one in passages]

    query = f"{prompt}{group.query}" if prompt else group.query
    yield {
        "query_id": group.query_id,
        "query": query,
        "positive_passages": told(group.positives),
        "negative_passages": told(group.negatives),
    }


def pylate(group: Group, prompt: str | None) -> Iterator[Row]:
    """PyLate's distillation: ids and scores; queries and documents lie beside."""
    passages = [*group.positives, *group.negatives]
    yield {
        "query_id": group.query_id,
        "document_ids": [passage.doc_id for passage in passages],
        "scores": [passage.score for passage in passages],
    }


def swift_embedding(group: Group, prompt: str | None) -> Iterator[Row]:
    """ms-swift's embedding task: messages of the query, of each positive and each negative."""
    yield _swift(group, prompt, "user")


def swift_reranker(group: Group, prompt: str | None) -> Iterator[Row]:
    """ms-swift's reranker task: documents are answers of the assistant."""
    yield _swift(group, prompt, "assistant")


def _swift(group: Group, prompt: str | None, role: str) -> Row:
    def told(passages: list[Passage]) -> list[list[Row]]:
        return [[{"role": role, "content": passage.whole}] for passage in passages]

    system = [{"role": "system", "content": prompt}] if prompt else []
    return {
        "messages": [*system, {"role": "user", "content": group.query}],
        "positive_messages": told(group.positives),
        "negative_messages": told(group.negatives),
    }


def preference(group: Group, prompt: str | None) -> Iterator[Row]:
    """Pairs for preference training (DPO) of rerankers that write: a row for every positive and
    negative.
    """
    asked = f"{prompt}{group.query}" if prompt else group.query
    for positive in group.positives:
        for negative in group.negatives:
            yield {"prompt": asked, "chosen": positive.whole, "rejected": negative.whole}


_TEXTS, _NUMBERS = pa.list_(TEXT), pa.list_(DOUBLE)
_PASSAGES = pa.list_(pa.struct([("docid", TEXT), ("title", TEXT), ("text", TEXT)]))
_MESSAGES = pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))
_SWIFT = pa.schema(
    [
        ("messages", _MESSAGES),
        ("positive_messages", pa.list_(_MESSAGES)),
        ("negative_messages", pa.list_(_MESSAGES)),
    ]
)
TRAINERS: dict[str, Trainer] = {
    "flag-embedding": Trainer(
        flag_embedding,
        pa.schema(
            [
                ("query", TEXT),
                ("pos", _TEXTS),
                ("neg", _TEXTS),
                ("pos_scores", _NUMBERS),
                ("neg_scores", _NUMBERS),
                ("prompt", TEXT),
                ("query_prompt", TEXT),
                ("type", TEXT),
            ]
        ),
        "maybe",
        "jsonl",
    ),
    "tevatron": Trainer(
        tevatron,
        pa.schema(
            [
                ("query_id", TEXT),
                ("query", TEXT),
                ("positive_passages", _PASSAGES),
                ("negative_passages", _PASSAGES),
            ]
        ),
        "never",
        "jsonl",
    ),
    "pylate": Trainer(
        pylate,
        pa.schema([("query_id", TEXT), ("document_ids", _TEXTS), ("scores", _NUMBERS)]),
        "always",
        "parquet",
    ),
    "swift-embedding": Trainer(swift_embedding, _SWIFT, "never", "jsonl"),
    "swift-reranker": Trainer(swift_reranker, _SWIFT, "never", "jsonl"),
    "preference": Trainer(
        preference,
        pa.schema([("prompt", TEXT), ("chosen", TEXT), ("rejected", TEXT)]),
        "never",
        "parquet",
    ),
}
SCORES = ("pos_scores", "neg_scores")  # left out where no judge scored
PROMPTS = ("prompt", "query_prompt")  # of flag-embedding, left out where none is given
