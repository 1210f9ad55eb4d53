"""Requests to a large language model, and the door that all of them go through: answers on disk first, then the model, within a budget.

Every finished answer lies in `llm_answers.sqlite` of the run folder under the hash of all that decides it: model, messages, schema,
sampling, seed, prompt version. A killed run, a stage made again, or another set of checks asks for nothing twice.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path
from typing import Protocol

from miner.errors import UserError
from miner.models import llm_fingerprint, load_llm
from miner.options import Llm
from miner.store import Run, fingerprint

FILE = "llm_answers.sqlite"
TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"


@dataclass(frozen=True)
class Request:
    """What is asked of a model.

    Attributes:
        system: the part that many requests share; it comes first, so that an engine can keep its prefix.
        user: the part of this request.
        prompt: name and version of the prompt.
        schema: JSON schema of the answer as JSON, "" for free text.
        labels: words whose log-probabilities as the first token of the answer are asked for, instead of a text; each must be one token.
        temperature, top_p, max_tokens, seed: sampling.
    """

    system: str
    user: str
    prompt: str
    schema: str = ""
    labels: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1
    seed: int = 0

    def key(self, model: str) -> str:
        """Return the hash under which the answer of a model, by its fingerprint, is kept."""
        return fingerprint([model, asdict(self)], size=16)

    def messages(self) -> list[dict[str, str]]:
        """Return the request as a chat."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        text: what the model wrote.
        finish: why it stopped; "length" is cut off.
        tokens: of the prompt and of the answer.
        scores: natural log-probabilities of the request's labels.
        error: why there is none: rate_limited, server_error, timeout, connection, bad_answer, too_large, too_long, rejected; "" if it came.
    """

    text: str = ""
    finish: str = "stop"
    tokens: tuple[int, int] = (0, 0)
    scores: tuple[float, ...] = ()
    error: str = ""


class Budget:
    """How many requests and tokens a call may still use. It is looked at before a request is sent, so what is under way is finished."""

    def __init__(self, requests: int | None, tokens: int | None):
        self.requests, self.tokens = requests, tokens
        self.sent, self.used = 0, 0

    def admit(self) -> bool:
        """Return whether one more request may be sent, and count it if so."""
        over = (self.requests is not None and self.sent >= self.requests) or (self.tokens is not None and self.used >= self.tokens)
        self.sent += not over
        return not over


Done = Callable[[int, Answer], None]


class Model(Protocol):
    """A back end: vLLM in this process, or a server."""

    def generate(self, requests: Sequence[Request], done: Done, budget: Budget) -> None:
        """Answer requests and call done(place, answer) for each as soon as it is finished; leave out what the budget does not admit."""


class Door:
    """What asks a model for a stage: answers that are on disk are not asked for again."""

    def __init__(self, run: Run, options: Llm, budget: Budget | None = None):
        self.path, self.options = run.path / FILE, options
        self.model = llm_fingerprint(options)
        self.budget = budget or Budget(options.max_requests, options.max_tokens_total)

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers to requests, in their order; the model is loaded only if one of them is not on disk.

        Raises:
            UserError: the budget is spent, or there is no such model or server; finished answers are kept.
        """
        keys = [request.key(self.model) for request in requests]
        with _opened(self.path) as answers:
            found = dict(answers.read(keys))
            todo = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
            if todo:
                places = list(todo)

                def done(place: int, answer: Answer) -> None:
                    self.budget.used += sum(answer.tokens)
                    found[places[place]] = answer
                    if not answer.error:  # what failed may succeed another day
                        answers.write(places[place], answer)

                load_llm(self.options).generate(list(todo.values()), done, self.budget)
        missing = sum(key not in found for key in todo)
        if missing:
            raise UserError(
                f"the budget is spent ({self.budget.sent:,} requests, {self.budget.used:,} tokens); {missing:,} requests of this shard are "
                "open and all answers are kept: repeat the command to go on, or raise --max-requests and --max-tokens-total"
            )
        return [found[key] for key in keys]


class _Answers:
    def __init__(self, connection: sqlite3.Connection):
        self.connection = connection

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, Answer]]:
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            query = f"SELECT key, answer FROM answers WHERE key IN ({','.join('?' * len(part))})"
            for key, text in self.connection.execute(query, part):
                held = loads(text)
                yield key, Answer(held["text"], held["finish"], tuple(held["tokens"]), tuple(held["scores"]))

    def write(self, key: str, answer: Answer) -> None:
        self.connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, dumps(asdict(answer))))


@contextmanager
def _opened(path: Path) -> Iterator[_Answers]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(TABLE)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path} holds the answers of a model and cannot be read ({error}); move it away to ask for all anew"
            ) from error
        yield _Answers(connection)
