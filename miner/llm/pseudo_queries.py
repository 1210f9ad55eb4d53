"""A corpus without queries + language model -> rows to stage: documents, queries that they
answer, and the positives that follow.
"""

from collections.abc import Iterator
from itertools import chain, count, islice

from miner.files import file_fingerprint
from miner.ingest.crops import drawn_documents
from miner.ingest.pairs import CorpusColumns, corpus_rows
from miner.ingest.rows import Reading, Row, hash_id
from miner.llm.client import Client
from miner.llm.prompts import load_prompt, prompt_path, shorten
from miner.llm.requests import Generator
from miner.llm.verify import Guard
from miner.llm.writing import Task, write
from miner.options import option
from miner.store import Run
from miner.tables import full_text

BLOCK = 2048  # documents that are asked about at once


class IngestPseudoQueries(Generator, CorpusColumns):
    """A corpus without queries: a language model writes queries that its documents answer."""

    corpus: str = option(
        ..., "the documents: jsonl, csv, tsv, parquet (.gz may follow), or hf:NAME", argument=True
    )
    sample: int | None = option(
        None, "documents that get queries, drawn by seed [default: all]", ge=1
    )
    k: int = option(1, "queries per document", short="-k", ge=1)
    prompt: str = option(
        "pseudo-query", "pseudo-query, or a file of your own (.toml) that names document"
    )

    def read(self, run: Run) -> Reading:
        """Corpus + language model -> rows."""
        return pseudo_queries(run, self)


def pseudo_queries(run: Run, options: IngestPseudoQueries) -> Reading:
    """Corpus -> rows; the model is asked as they are read.

    Raises:
        UserError: the file is missing, there is no such prompt, model or server, or a budget is
            spent.
    """
    notes: list[str] = []
    file = options.input(options.corpus, notes, split=options.split)
    client = Client(run, options)
    inputs = {
        options.corpus: file.fingerprint(),
        "model": client.model,
        "prompt": file_fingerprint(prompt_path(options.prompt)),
    }
    return Reading(
        inputs,
        chain(corpus_rows(file, options), _queries(client, options, corpus_rows(file, options))),
        notes,
    )


def _queries(client: Client, options: IngestPseudoQueries, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield queries and positives of the documents that are drawn, and a reject for each text
    that failed for good.
    """
    prompt, numbers = load_prompt(options.prompt), count(1)
    drawn = drawn_documents(options.sample, options.seed, rows)
    while block := list(islice(drawn, BLOCK)):
        tasks = [
            Task(
                row.values[0],
                row.values[0],
                turn,
                {"document": shorten(text, options.max_words)},
                Guard(text, "", [], options.max_words),
            )
            for row in block
            for text in [full_text(row.values[1], row.values[-1])]
            for turn in range(options.k)
        ]
        made, failures = write(client, prompt, tasks, options)
        for one in made:
            query_id = hash_id("q", one.text)
            yield Row("queries", "generated", next(numbers), (query_id, "paired", one.text))
            yield Row("positives", "generated", next(numbers), (query_id, one.parent_id, 1))
        kept = {(one.query_id, one.turn) for one in made}
        last = {
            (failure[0], failure[2]): failure[4:]
            for failure in failures
            if (failure[0], failure[2]) not in kept
        }
        for reason, text in last.values():
            yield Row("rejects", "generated", next(numbers), ("queries", reason, text))
