"""queries, positives + prompt + language model -> made documents and candidates: negatives that
an LLM writes, each of them verified.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import Documents
from miner.engine import How
from miner.files import file_fingerprint, fingerprint
from miner.llm.client import Client
from miner.llm.estimate import estimate
from miner.llm.prompts import Prompt, load_prompt, prompt_path, shorten
from miner.llm.requests import Generator
from miner.llm.verify import Guard, room_for
from miner.llm.writing import Task, request_of, write
from miner.made import made_shard
from miner.models.hub import Reranker
from miner.models.reranker import load_reranker, reranker_fingerprint
from miner.options import NAME, option
from miner.query_shard import originals_of
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.tables import from_rows

FAILED = "_failed"
TEXT = pa.string()
FAILURES = pa.schema(
    [
        ("query_id", TEXT),
        ("parent_id", TEXT),
        ("turn", pa.int32()),
        ("attempt", pa.int32()),
        ("reason", TEXT),
        ("text", TEXT),
    ]
)


class MineGenerate(Generator):
    """Made negatives, written by an LLM about a query and its positive, and verified."""

    k: int = option(1, "negatives per query", short="-k", ge=1)
    name: str = option("generate", "name of the source", pattern=NAME)
    prompt: str = option(
        "hard-negative", "hard-negative, violate-one, contradict, or a file of your own (.toml)"
    )


def mine_generate(run: Run, options: MineGenerate, how: How) -> Manifest:
    """Let a language model write negatives: queries, positives + prompt -> 3_candidates/<name>.

    Raises:
        UserError: there are no tables, no such prompt, model or server; or a budget is spent.
    """
    inputs, prompt = run.table_input(), load_prompt(options.prompt)
    client = Client(run, options)
    stage = Stage(
        f"{run.SOURCES}/{options.name}",
        "candidates",
        options.record(),
        inputs,
        model=model_of(client, options),
        algorithm=2,
        made_by="mine generate",
    )
    return run_stage(
        run,
        stage,
        lambda: partial(_shard, run, options, client, prompt),
        run.query_shards(),
        one_process(how),
        partial(facts, run, options, client, prompt),
    )


def model_of(client: Client, options: Any) -> str:
    """Return what decides the texts: the model, the prompt's file, and the checker's weights."""
    parts = [client.model, file_fingerprint(prompt_path(options.prompt))]
    if options.checker:
        parts.append(reranker_fingerprint(Reranker(reranker=options.checker)))
    return fingerprint(parts)


def one_process(how: How) -> How:
    """Return how a language model is asked: from this process alone, which keeps the engine, or
    many requests of a server, busy.
    """
    return replace(how, workers=1)


def facts(run: Run, options: Any, client: Client, prompt: Prompt) -> dict[str, Any]:
    """Return what a stage that generates says: the model, the prompt, and each failed answer by
    its reason.
    """
    folder = f"{run.SOURCES}/{options.name}"
    reasons = Counter[str]()
    for key in run.query_shards():
        reasons.update(run.read(f"{folder}/{FAILED}", key)["reason"].to_pylist())
    told = {
        "searched_with": "nothing: documents are made",
        "llm": client.name,
        "prompt": prompt.title,
    }
    return {**told, "failed_answers": dict(sorted(reasons.items()))}


def preview_generate(run: Run, options: MineGenerate) -> dict[str, Any]:
    """Return what writing would cost; a sample is written, and kept.

    Raises:
        UserError: there are no tables, no such prompt, model or server.
    """
    run.tables()
    prompt = load_prompt(options.prompt)
    shards = (
        [
            request_of(prompt, task, 0, options)
            for task in _tasks_of(run, options, key)
            if room_for(prompt, task.guard, options.max_tokens, False)
        ]
        for key in run.query_shards()
    )
    return estimate(Client(run, options), shards)


def _shard(run: Run, options: MineGenerate, client: Client, prompt: Prompt, key: str) -> Shard:
    return written_shard(run, options, client, prompt, _tasks_of(run, options, key), key)


def _tasks_of(run: Run, options: MineGenerate, key: str) -> list[Task]:
    queries = dict(
        zip(
            *(run.read(run.QUERIES, key)[name].to_pylist() for name in ("query_id", "text")),
            strict=True,
        )
    )
    tasks = []
    for query_id, what in originals_of(run, key, options.k):
        for turn, (parent, text) in enumerate(zip(what.parents, what.texts, strict=True)):
            fields = {
                "query": shorten(queries[query_id], options.max_words),
                "positive": shorten(text, options.max_words),
            }
            guard = Guard(text, queries[query_id], what.guarded, options.max_words)
            tasks.append(Task(query_id, parent, turn, fields, guard))
    return tasks


def written_shard(
    run: Run, options: Any, client: Client, prompt: Prompt, tasks: Sequence[Task], key: str
) -> Shard:
    """Have the texts of a shard written and verified; return it with what failed beside it."""
    answered = partial(_answered, run, options.checker, key) if options.checker else None
    made, failures = write(client, prompt, tasks, options, answered)
    kept = {(negative.query_id, negative.parent_id, negative.turn) for negative in made}
    # of a task; its earlier faults are in the table
    last = {failure[:3]: failure[4] for failure in failures}
    drops = Counter(reason for task, reason in last.items() if task not in kept)
    without = len(run.read(run.QUERIES, key)) - len({task.query_id for task in tasks})
    drops.update({"nothing_to_change": without} if without else {})
    return Shard(
        {
            f"{FAILED}/{key}": from_rows(failures, FAILURES),
            **made_shard(run, options.name, made, key).files,
        },
        drops,
    )


def _answered(
    run: Run, checker: str, key: str, tasks: Sequence[Task], texts: Sequence[str]
) -> np.ndarray:
    """Return which texts a cross-encoder scores at least as high as the lowest positive of their
    query (n,) bool.
    """
    positives = _positive_texts(run, key, {task.query_id for task in tasks})
    pairs = [(task.guard.query, text) for task, text in zip(tasks, texts, strict=True)]
    pairs += [(task.guard.query, text) for task in tasks for text in positives[task.query_id]]
    queries, documents = (list(dict.fromkeys(column)) for column in zip(*pairs, strict=True))
    query, document = (
        {text: place for place, text in enumerate(column)} for column in (queries, documents)
    )
    places = np.array([(query[asked], document[text]) for asked, text in pairs])
    scores = load_reranker(Reranker(reranker=checker))(
        queries, documents, places[:, 0], places[:, 1]
    )
    ends = len(texts) + np.cumsum([len(positives[task.query_id]) for task in tasks])
    lowest = [
        found.min(initial=np.inf)
        for found in np.split(scores[: ends[-1]], [len(texts), *ends[:-1]])[1:]
    ]
    return scores[: len(texts)] >= np.array(lowest)


def _positive_texts(run: Run, key: str, query_ids: set[str]) -> dict[str, list[str]]:
    """Return the texts of all positives of some queries of a shard."""
    documents, found = Documents(run, key), {query_id: list[str]() for query_id in query_ids}
    table = run.read(run.POSITIVES, key)
    table = table.filter(pc.is_in(table["query_id"], pa.array(sorted(query_ids))))
    texts = documents.texts(documents.rows(table["doc_id"].to_pylist()))
    for query_id, text in zip(table["query_id"].to_pylist(), texts, strict=True):
        found[query_id].append(text)
    return found
