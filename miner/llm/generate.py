"""queries, positives + prompt + language model -> made documents and candidates: negatives that
an LLM writes, each of them verified.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import Documents
from miner.engine import How
from miner.files import file_fingerprint, fingerprint
from miner.llm.client import Client
from miner.llm.prompts import Prompt, fill_in, load_prompt, prompt_path, shorten
from miner.llm.requests import Answer, Generator, Request
from miner.llm.room import room_for
from miner.llm.verify import REMEDIES, Guard, fault, read_text
from miner.made import Negative, made_shard
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
SHOWN = 2000  # characters of a failed text that are kept
Check = Callable[[str], tuple[str | None, dict[str, Any]]]


class MineGenerate(Generator):
    """Made negatives, written by an LLM about a query and its positive, and verified."""

    k: int = option(1, "negatives per query", short="-k", ge=1)
    name: str = option("generate", "name of the source", pattern=NAME)
    prompt: str = option(
        "hard-negative", "hard-negative, violate-one, contradict, or a file of your own (.toml)"
    )


@dataclass(frozen=True)
class Task:
    """A text that is to be written.

    Attributes:
        query_id, parent_id: of the query, and of the document that is rewritten.
        turn: number of the text for this query.
        fields: what the template may name.
        guard: what it is compared with.
        check: gives a further fault, and what `made_documents` says of the text.
    """

    query_id: str
    parent_id: str
    turn: int
    fields: dict[str, str]
    guard: Guard
    check: Check = field(default=lambda text: (None, {}))
    score: float | None = None


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


def _shard(run: Run, options: MineGenerate, client: Client, prompt: Prompt, key: str) -> Shard:
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
    return written_shard(run, options, client, prompt, tasks, key)


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


def write(
    client: Client,
    prompt: Prompt,
    tasks: Sequence[Task],
    options: Generator,
    answered: Callable[..., np.ndarray] | None = None,
) -> tuple[list[Negative], list[tuple[Any, ...]]]:
    """Ask for all texts at once, then again for those that failed a check, up to `retries` times;
    the model is then told what was wrong.

    Args:
        client: where requests go.
        prompt: the prompt.
        tasks: the texts.
        options: sampling and retries.
        answered: says of (tasks, texts) which texts answer their query.

    Returns:
        The negatives in order of tasks, and each failed answer, as FAILURES has them.
    """
    found: dict[int, Negative] = {}
    failures: list[tuple[Any, ...]] = []
    made: dict[str, list[str]] = {}
    told = {"prompt": prompt.title, "model": client.name, "meaning_effect": prompt.meaning_effect}
    why, spending = dict[int, str](), Spending(options, tasks)
    for place, task in enumerate(tasks):
        if room_for(prompt, task.guard, options.max_tokens, False):
            why[place] = ""
        else:
            failures.append((task.query_id, task.parent_id, task.turn, 0, "no_room", ""))
    for attempt in range(options.retries + 1):
        asked = [tasks[place] for place in why]
        requests = [
            request_of(prompt, task, attempt, options, reason)
            for task, reason in zip(asked, why.values(), strict=True)
        ]
        answers = (
            client.ask(requests, partial(_came_of_it, prompt, asked, requests)) if requests else []
        )
        came = list(zip(asked, requests, answers, strict=True))
        read = _checked_answers(came, prompt, made, answered)
        again = dict[int, str]()
        for place, task, answer, (text, reason, detail) in zip(
            why, asked, answers, read, strict=True
        ):
            spending.add(task, answer)
            names = task.query_id, task.parent_id
            if reason is None:
                found[place] = Negative(*names, text, told | detail, task.score, task.turn)
            else:
                failures.append((*names, task.turn, attempt, reason, text[:SHOWN]))
                if reason not in FINAL:
                    again[place] = reason
        why = {place: reason for place, reason in again.items() if spending.goes_on(tasks[place])}
    return [found[place] for place in sorted(found)], sorted(failures, key=lambda row: row[:4])


class Spending:
    """What the texts of each query have cost, in tokens of answers."""

    def __init__(self, options: Generator, tasks: Sequence[Task]):
        self.most, self.spent = options.tokens_per_negative, Counter[str]()
        self.asked = Counter(task.query_id for task in tasks)

    def add(self, task: Task, answer: Answer) -> None:
        """Count an answer."""
        self.spent[task.query_id] += answer.tokens[1]

    def goes_on(self, task: Task) -> bool:
        """Return whether a failed text may be asked for again."""
        query = task.query_id
        return self.most is None or self.spent[query] < self.most * self.asked[query]


def _came_of_it(
    prompt: Prompt, tasks: Sequence[Task], asked: Sequence[Request], place: int, answer: Answer
) -> str:
    """Say in a word what came, for the line that is shown meanwhile."""
    text, reason, _ = read_text(answer, prompt, asked[place].schema)
    return reason or fault(text, tasks[place].guard, prompt) or "kept"


def _checked_answers(
    came: Sequence[tuple[Task, Request, Answer]],
    prompt: Prompt,
    made: dict[str, list[str]],
    answered: Callable[..., np.ndarray] | None,
) -> list[tuple[str, str | None, dict[str, Any]]]:
    """Return for each answer its text, why it is no negative (None if it is one), and what is told
    of it.
    """
    read = [_judged(*one, prompt, made) for one in came]
    passed = [number for number, (_, reason, _) in enumerate(read) if reason is None]
    if answered and passed:
        says = answered([came[one][0] for one in passed], [read[one][0] for one in passed])
        for number in np.array(passed)[says].tolist():
            read[number] = (read[number][0], "answers_query", {})
    return read


# Errors of the way to the model: sending the same again would fare no better than the attempts that
# failed.
FINAL = {
    "rate_limited",
    "server_error",
    "timeout",
    "connection",
    "bad_answer",
    "too_large",
    "too_long",
    "rejected",
}


def _judged(
    task: Task, request: Request, answer: Answer, prompt: Prompt, made: dict[str, list[str]]
) -> tuple[str, str | None, dict[str, Any]]:
    text, reason, closed = read_text(answer, prompt, request.schema)
    if reason is None:
        others = made.setdefault(task.query_id, [])
        reason = fault(text, task.guard._replace(others=[*task.guard.others, *others]), prompt)
    detail: dict[str, Any] = {}
    if reason is None:
        reason, detail = task.check(text)
    if reason is None:
        others.append(text)
    return text, reason, detail | ({"closed": "at its last whole sentence"} if closed else {})


def request_of(
    prompt: Prompt, task: Task, attempt: int, options: Generator, reason: str = ""
) -> Request:
    """Return the request for a text; its seed depends on the ids, the turn and the attempt.

    Args:
        prompt, task, options: what is asked.
        attempt: 0, or how many answers failed before.
        reason: why the last one did: it is named, and one that was too long is asked for shorter.
    """
    seed = int(
        fingerprint([options.seed, task.query_id, task.parent_id, task.turn, attempt])[:7], 16
    )
    room = room_for(prompt, task.guard, options.max_tokens, reason == "truncated")
    assert room is not None, task  # noqa: S101 - those without are left out before
    asked = fill_in(prompt.template, task.fields | {"words": str(room.words)})
    return Request(
        prompt.opening(),
        f"{asked}\n{REMEDIES[reason]}" if reason in REMEDIES else asked,
        prompt.title,
        prompt.schema_text(room.characters),
        (),
        options.temperature,
        options.top_p,
        room.tokens,
        seed,
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
