"""A server that speaks OpenAI's protocol, whatever it is made of: bounded concurrency, retries with
backoff, and what it can do found out by asking for it.
"""

import asyncio
import random
import re
from collections.abc import Sequence
from json import loads
from typing import Any

import openai

from miner.errors import UserError, log
from miner.llm.connection import KEY, LONGEST_WAIT, TooLarge, base_url, connect, hide, seconds
from miner.llm.labels import EXACT, NO_LABEL, WAYS, NoScores, Way
from miner.llm.requests import Answer, Budget, Done, Llm, Request

FIRST_WAIT = 0.5  # seconds before a request is sent again, doubled each time
# times the concurrency of requests that fail for good, one after the other: then the server is gone
GIVE_UP = 2
# what an answer may be held to, the closest first; "" is nothing: what comes is checked here
LENGTHS = re.compile(r'"(?:min|max)Length": \d+, ')
FORMATS = ("json_schema", "json_object", "")
FINAL_ERRORS = ("too_large", "too_long", "rejected", "no_scores")  # sent again it fares no better
REFUSALS = ("rejected", "too_long", "no_scores")  # of something that was asked for
PROBE = "This asks what you can do."  # system text of requests that find that out


class Away(UserError):
    """No server answers."""


def without_lengths(schema: str) -> str:
    """Return a schema without the lengths of its texts, which differ from request to request: what
    a server makes of it does not hang on them.

    >>> without_lengths('{"maxLength": 512, "minLength": 8, "type": "string"}')
    '{"type": "string"}'
    """
    return LENGTHS.sub("", schema)


class Server:
    """A model that a server runs.

    Args:
        options: where the server is, and how it is asked.
        name: under which it has the model.
        way: how it scores labels, as `find_way` found.
    """

    def __init__(self, options: Llm, name: str, way: Way = WAYS[0]):
        self.options, self.name, self.way = options, name, way
        self.url = base_url(options.server or "")
        self.lost = 0  # requests that failed for good since the last that did not
        self.said = ""  # by the server, of what it refused last
        self.tokens: dict[str, list[int]] = {}  # of labels, as a server of vLLM says them
        self.formats: dict[str, str] = {}  # of FORMATS, by schema without lengths

    def generate(self, requests: Sequence[Request], done: Done, budget: Budget) -> None:
        """Answer requests; see `Model`."""
        asyncio.run(self._all(requests, done, budget))

    def find_way(self, labels: Sequence[str]) -> Way:
        """Find out how the server scores labels, by asking it.

        Raises:
            Away: it is not there.
            UserError: it refuses even a plain request, or a label is no token of vLLM's model.
        """
        return asyncio.run(self._find_way(labels))

    async def _find_way(self, labels: Sequence[str]) -> Way:
        probe = Request(PROBE, f"Answer {' or '.join(labels)}.", "probe", labels=tuple(labels))
        failed = ""
        async with connect(self.options) as client:
            await self._learn(client, labels)
            for self.way in WAYS:
                if self.way.scores == EXACT and not all(self.tokens.values()):
                    continue
                failed = (await self._one(client, probe, Budget(None, None)) or Answer()).error
                if failed in ("", NO_LABEL):
                    if self.way.scores == EXACT:
                        self._check_single(labels)
                    return self.way
                if failed not in REFUSALS:
                    break
        kind = Away if failed == "connection" else UserError
        raise kind(f"{self.url} does not answer for model {self.name!r} ({failed}) {self.said}")

    async def _all(self, requests: Sequence[Request], done: Done, budget: Budget) -> None:
        async with connect(self.options) as client:
            if self.way.scores == EXACT:
                words = sorted({word for request in requests for word in request.labels})
                await self._learn(client, words)
                self._check_single(words)
            schemas = {without_lengths(request.schema): request.schema for request in requests}
            for kind in sorted(schemas.keys() - {"", *self.formats}):
                await self._find_format(client, kind, schemas[kind])
            places = iter(range(len(requests)))

            async def work() -> None:
                for place in places:  # one iterator for all: each takes the next when it is free
                    answer = await self._one(client, requests[place], budget)
                    if answer is None:
                        return
                    self._watch(answer)
                    done(place, answer)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.options.concurrency, len(requests))):
                        group.create_task(work())
            except* UserError as errors:
                raise errors.exceptions[0] from None

    async def _find_format(self, client: Any, bare_schema: str, schema: str) -> None:
        """Find out what the server holds answers of a schema to. If it is busy, nothing is settled
        and the next call asks again.
        """
        probe = Request(
            PROBE, "Answer with any JSON of its kind.", "probe", schema=schema, max_tokens=64
        )
        for kind in FORMATS:
            self.formats[bare_schema] = kind
            answer = await self._one(client, probe, Budget(None, None))
            if answer is None or answer.error not in REFUSALS:
                break
        if answer is None or answer.error:
            del self.formats[bare_schema]
        elif kind != FORMATS[0]:
            log.warning(
                "%s refuses response_format json_schema: %s is asked for, and what comes is checked"
                " here",
                self.url,
                kind or "none",
            )

    def _watch(self, answer: Answer) -> None:
        passes = ("", "too_long", NO_LABEL)
        self.lost = 0 if answer.error in passes else self.lost + 1
        if self.lost >= GIVE_UP * self.options.concurrency:
            raise UserError(
                f"{self.url}: the last {self.lost} requests failed, the last one as {answer.error};"
                " what was answered is kept: see to the server, then repeat the command to go on"
            )

    async def _one(self, client: Any, request: Request, budget: Budget) -> Answer | None:
        """Return the answer to a request, with the last error if all attempts fail; None if the
        budget does not admit it.
        """
        failed = Answer(error="connection")
        for attempt in range(self.options.attempts):
            if not budget.admit():
                return None
            try:
                async with asyncio.timeout(self.options.timeout):
                    said = await client.chat.completions.create(**self._payload(request))
                    return self._read(said, request)
            except Exception as error:  # noqa: BLE001 - the client raises many kinds; `_failure` raises what it does not know
                failed, wait = self._failure(error)
            if failed.error in FINAL_ERRORS:
                return failed
            if attempt + 1 < self.options.attempts:
                backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(wait, backoff))
        return failed

    def _payload(self, request: Request) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "model": self.name,
            "messages": request.messages(),
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
        }
        if request.top_p < 1:  # 1 is the default, and text-generation-inference refuses it
            asked["top_p"] = request.top_p
        kind = (
            self.formats.get(without_lengths(request.schema), FORMATS[0]) if request.schema else ""
        )
        if kind:
            asked["response_format"] = {"type": kind}
        if kind == FORMATS[0]:
            schema = {"name": "answer", "schema": loads(request.schema), "strict": True}
            asked["response_format"] |= {"json_schema": schema}
        return asked | (self.way.asks(request, self.tokens) if request.labels else {})

    def _read(self, completion: Any, request: Request) -> Answer:
        choice, usage = completion.choices[0], completion.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        if request.labels:
            scores = self.way.read(choice, request.labels, self.tokens)
            error = NO_LABEL if scores is None else ""
            return Answer("", "stop", tokens, scores or (), error)
        text = choice.message.content or getattr(choice.message, "refusal", None) or ""
        details = getattr(usage, "prompt_tokens_details", None)
        cached = getattr(details, "cached_tokens", None) or 0
        return Answer(hide(text), choice.finish_reason or "stop", tokens, cached=cached)

    def _failure(self, error: Exception) -> tuple[Answer, float]:
        """Return an answer that says what went wrong, and the seconds that the server asks to wait.

        Raises:
            UserError: no other request will fare better.
        """
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, TooLarge):
                return Answer(error="too_large"), 0.0
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, openai.APIStatusError):
            return self._refusal(error)
        if isinstance(error, NoScores):
            return Answer(error="no_scores"), 0.0
        if isinstance(error, (TimeoutError, openai.APITimeoutError)):
            return Answer(error="timeout"), 0.0
        if isinstance(error, openai.APIConnectionError):
            return Answer(error="connection"), 0.0
        if isinstance(error, (openai.APIError, ValueError, TypeError, AttributeError, LookupError)):
            return Answer(error="bad_answer"), 0.0  # half a JSON, or not what the protocol says
        raise error

    def _refusal(self, error: openai.APIStatusError) -> tuple[Answer, float]:
        status = error.status_code
        self.said = said = hide(" ".join(str(error.message).split()))[:300]
        if status in (401, 403, 404):
            raise UserError(
                f"{self.url} answers {status} for model {self.name!r} ({said}); see --server,"
                f" --llm and {KEY}"
            )
        if status in (408, 429) or (status >= 500 and status != 501):  # 501: not implemented
            kind = "rate_limited" if status == 429 else "server_error"
            return Answer(error=kind), seconds(error.response.headers.get("retry-after"))
        long = "context length" in said or "maximum" in said
        return Answer(error="too_long" if long else "rejected"), 0.0

    async def _ids(self, client: Any, word: str) -> list[int]:
        """Return the tokens of a word as vLLM's server says them, none if it is another server."""
        asked = {"model": self.name, "prompt": word, "add_special_tokens": False}
        patient = client.with_options(max_retries=self.options.attempts - 1)
        try:
            said = await patient.post(
                self.url.removesuffix("/v1") + "/tokenize", body=asked, cast_to=object
            )
            return [int(token) for token in said["tokens"]]
        except (openai.APIStatusError, ValueError, TypeError, LookupError):
            return []
        except openai.APIError as error:
            raise Away(f"{self.url} does not answer ({error})") from error

    async def _learn(self, client: Any, words: Sequence[str]) -> None:
        for word in words:
            if word not in self.tokens:
                self.tokens[word] = await self._ids(client, word)

    def _check_single(self, words: Sequence[str]) -> None:
        for word in words:
            if len(self.tokens[word]) != 1:
                raise UserError(
                    f"{word!r} is {len(self.tokens[word])} tokens for {self.name}; judge llm needs"
                    " answers of one token: see --prompt"
                )


def served_model(options: Llm) -> str:
    """Return the name of the model that is asked for: --llm, or the first that the server has.

    Raises:
        UserError: the server is not there, or has no such model.
    """

    url = base_url(options.server or "")

    async def names() -> list[str]:
        async with connect(options) as client:
            return [model.id async for model in client.models.list()]

    try:
        found = asyncio.run(names())
    except openai.APIStatusError as error:
        if error.status_code == 404 and options.llm:  # a server need not have a list
            return options.llm
        raise UserError(
            f"{url} answers {error.status_code} when asked for its models; see --server, --llm and"
            f" {KEY}"
        ) from error
    except (openai.APIError, ValueError) as error:
        raise Away(
            f"no server that speaks OpenAI's protocol at {url} ({error}); start one with `vllm"
            " serve MODEL`"
        ) from error
    if not found or (options.llm and options.llm not in found):
        raise UserError(
            f"{url} has no model {options.llm or ''} (found {', '.join(found) or 'none'}); name one"
            " of these with --llm"
        )
    return options.llm or found[0]
