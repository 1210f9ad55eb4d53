"""What asks a language model for a stage: answers on disk first, then the model, within a
budget.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import lru_cache
from json import dumps, loads
from pathlib import Path

from miner.errors import UserError
from miner.files import fingerprint
from miner.llm.requests import Answer, Budget, Llm, Model, Request
from miner.models.hub import locate, weights_fingerprint
from miner.store import Run

_LOADED: dict[Llm, "Model"] = {}
FILE = "llm_answers.sqlite"
TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"
)


def llm_door(options: Llm) -> Llm:
    """Return the language model of a source's or a judge's options alone: the same one is then
    loaded once.

    Raises:
        UserError: neither a model nor a server is given.
    """
    if not (options.llm or options.server):
        raise UserError(
            "no language model: give --llm a hub id or folder for vLLM, or --server the URL of one"
            " that runs"
        )
    return Llm(**{name: getattr(options, name) for name in Llm.model_fields})


@lru_cache
def _served(options: Llm) -> str:
    from miner.llm.server import served_model

    return served_model(options)


def llm_fingerprint(options: Llm) -> str:
    """Return what decides a language model's answers: its weights and vLLM's options, or the name
    under which a server has it.

    Raises:
        UserError: there is no such model or server.
    """
    door = llm_door(options)
    if door.server:
        return fingerprint(["served", _served(door)])
    return fingerprint(
        ["vllm", weights_fingerprint(locate(str(door.llm), kind="llm")), sorted(door.llm_option)]
    )


def llm_name(options: Llm) -> str:
    """Return the name of a language model, as it stands beside what it wrote."""
    return _served(llm_door(options)) if options.server else str(options.llm)


def load_llm(options: Llm) -> "Model":
    """Build the language model that `options` describe; one at a time, for an engine takes most of
    a GPU.

    Raises:
        UserError: there is no such model or server, or vLLM is not installed.
    """
    door = llm_door(options)
    if door not in _LOADED:
        for other in _LOADED.values():
            getattr(other, "close", lambda: None)()
        _LOADED.clear()
        if door.server:
            from miner.llm.server import Server

            _LOADED[door] = Server(door, _served(door))
        else:
            from miner.llm.vllm_engine import Engine

            _LOADED[door] = Engine(
                locate(str(door.llm), kind="llm"), door.llm_option, door.trust_remote_code
            )
    return _LOADED[door]


class Door:
    """What asks a model for a stage: answers that are on disk are not asked for again."""

    def __init__(self, run: Run, options: Llm, budget: Budget | None = None):
        self.path, self.options = run.path / FILE, options
        self.model = llm_fingerprint(options)
        self.budget = budget or Budget(options.max_requests, options.max_tokens_total)

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers to requests, in their order; the model is loaded only if one of them
        is not on disk.

        Raises:
            UserError: the budget is spent, or there is no such model or server; finished answers
                are kept.
        """
        keys = [request.key(self.model) for request in requests]
        with _opened(self.path) as answers:
            found = dict(answers.read(keys))
            todo = {
                key: request
                for key, request in zip(keys, requests, strict=True)
                if key not in found
            }
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
                f"the budget is spent ({self.budget.sent:,} requests, {self.budget.used:,} tokens);"
                f" {missing:,} requests of this shard are open and all answers are kept: repeat the"
                " command to go on, or raise --max-requests and --max-tokens-total"
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
                yield (
                    key,
                    Answer(
                        held["text"], held["finish"], tuple(held["tokens"]), tuple(held["scores"])
                    ),
                )

    def write(self, key: str, answer: Answer) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, dumps(asdict(answer)))
        )


@contextmanager
def _opened(path: Path) -> Iterator[_Answers]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(TABLE)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path} holds the answers of a model and cannot be read ({error}); move it away to"
                " ask for all anew"
            ) from error
        yield _Answers(connection)
