"""A server that speaks OpenAI's protocol, made for `vllm serve`: bounded concurrency, retries
with backoff, answers of bounded size.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from json import loads
from typing import Any
from urllib.parse import urlsplit

import openai
from httpx2 import AsyncByteStream

from miner.errors import UserError
from miner.llm.requests import Answer, Budget, Done, Llm, Request

KEY = "OPENAI_API_KEY"
LARGEST = 4 * 2**20  # bytes of an answer that are read; one of 100,000 tokens has under a tenth
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a request is sent again, doubled each time
# times the concurrency of requests that fail for good, one after the other: then the server is gone
GIVE_UP = 2


class Away(UserError):
    """No server answers."""


class _TooLarge(Exception):
    """An answer has more bytes than are read."""


def base_url(server: str) -> str:
    """Return where a server's API is.

    Raises:
        UserError: it is no URL, or holds a password, which would stand in logs.
    """
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--server is {server!r}; expected a URL such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(
            "--server holds a name, password or query; expected a bare URL: a key is read from"
            f" {KEY} alone"
        )
    url = server.rstrip("/")
    return url if parts.path.rstrip("/") else f"{url}/v1"


class Server:
    """A model that a server runs."""

    def __init__(self, options: Llm, name: str):
        self.options, self.name, self.url = options, name, base_url(options.server or "")
        self.lost = 0  # requests that failed for good since the last that did not

    def generate(self, requests: Sequence[Request], done: Done, budget: Budget) -> None:
        """Answer requests; see `Model`."""
        asyncio.run(self._all(requests, done, budget))

    async def _all(self, requests: Sequence[Request], done: Done, budget: Budget) -> None:
        async with _client(self.options) as client:
            words = sorted({word for request in requests for word in request.labels})
            tokens = {word: await self._token(client, word) for word in words}
            places = iter(range(len(requests)))

            async def work() -> None:
                for place in places:  # one iterator for all: each takes the next when it is free
                    answer = await self._one(
                        client,
                        requests[place],
                        [tokens[word] for word in requests[place].labels],
                        budget,
                    )
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

    def _watch(self, answer: Answer) -> None:
        self.lost = self.lost + 1 if answer.error and answer.error != "too_long" else 0
        if self.lost >= GIVE_UP * self.options.concurrency:
            raise UserError(
                f"{self.url}: the last {self.lost} requests failed, the last one as {answer.error};"
                " what was answered is kept: see to the server, then repeat the command to go on"
            )

    async def _one(
        self, client: Any, request: Request, labels: list[int], budget: Budget
    ) -> Answer | None:
        """Return the answer to a request, with the last error if all attempts fail; None if the
        budget does not admit it.
        """
        failed = Answer(error="connection")
        for attempt in range(self.options.attempts):
            if not budget.admit():
                return None
            try:
                async with asyncio.timeout(self.options.timeout):
                    return _read(
                        await client.chat.completions.create(**self._payload(request, labels)),
                        labels,
                    )
            except Exception as error:  # noqa: BLE001 - the client raises many kinds; `_failure` raises what it does not know
                failed, wait = self._failure(error)
            if failed.error in ("too_large", "too_long", "rejected"):
                return failed
            if attempt + 1 < self.options.attempts:
                backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(wait, backoff))
        return failed

    def _payload(self, request: Request, labels: list[int]) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "model": self.name,
            "messages": request.messages(),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
        }
        if request.schema:
            schema = {"name": "answer", "schema": loads(request.schema), "strict": True}
            asked["response_format"] = {"type": "json_schema", "json_schema": schema}
        if labels:
            ours = {
                "logprob_token_ids": labels,
                "return_tokens_as_token_ids": True,
                "chat_template_kwargs": {"enable_thinking": False},
            }
            asked |= {"logprobs": True, "extra_body": ours}
        return asked

    def _failure(self, error: Exception) -> tuple[Answer, float]:
        """Return an answer that says what went wrong, and the seconds that the server asks to wait.

        Raises:
            UserError: no other request will fare better.
        """

        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, _TooLarge):
                return Answer(error="too_large"), 0.0
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, openai.APIStatusError):
            status, said = error.status_code, " ".join(str(error.message).split())[:300]
            if status in (401, 403, 404):
                raise UserError(
                    f"{self.url} answers {status} for model {self.name!r} ({said}); see --server,"
                    f" --llm and {KEY}"
                )
            if status == 429 or status >= 500 or status == 408:
                return Answer(error="rate_limited" if status == 429 else "server_error"), _seconds(
                    error.response.headers.get("retry-after")
                )
            return (
                Answer(
                    error=(
                        "too_long" if "context length" in said or "maximum" in said else "rejected"
                    )
                ),
                0.0,
            )
        if isinstance(error, (TimeoutError, openai.APITimeoutError)):
            return Answer(error="timeout"), 0.0
        if isinstance(error, openai.APIConnectionError):
            return Answer(error="connection"), 0.0
        if isinstance(error, (openai.APIError, ValueError, TypeError, AttributeError, LookupError)):
            return Answer(error="bad_answer"), 0.0  # half a JSON, or not what the protocol says
        raise error

    async def _token(self, client: Any, word: str) -> int:

        url = self.url.removesuffix("/v1") + "/tokenize"
        try:
            said = await client.post(
                url,
                body={"model": self.name, "prompt": word, "add_special_tokens": False},
                cast_to=object,
            )
        except openai.APIError as error:
            raise UserError(
                f"{url} does not say what tokens {word!r} is ({error}); judge llm needs a server of"
                " vLLM"
            ) from error
        ids = said["tokens"]
        if len(ids) != 1:
            raise UserError(
                f"{word!r} is {len(ids)} tokens for {self.name}; judge llm needs answers of one"
                " token: see --prompt"
            )
        return int(ids[0])


def served_model(options: Llm) -> str:
    """Return the name of the model that is asked for: --llm, or the first that the server has.

    Raises:
        UserError: the server is not there, or has no such model.
    """

    url = base_url(options.server or "")

    async def names() -> list[str]:
        async with _client(options) as client:
            return [model.id async for model in client.models.list()]

    try:
        found = asyncio.run(names())
    except openai.APIStatusError as error:
        raise UserError(
            f"{url} answers {error.status_code} when asked for its models; see --server and {KEY}"
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


def _client(options: Llm) -> Any:

    async def bound(response: Any) -> None:
        response.stream = _Bounded(response.stream)

    http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [bound]})
    return openai.AsyncOpenAI(
        base_url=base_url(options.server or ""),
        api_key=os.environ.get(KEY) or "none",
        max_retries=0,
        timeout=options.timeout,
        http_client=http,
    )


class _Bounded(AsyncByteStream):
    """The body of an answer, read up to `LARGEST` bytes as they come over the wire."""

    def __init__(self, stream: Any):
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for part in self.stream:
            read += len(part)
            if read > LARGEST:
                raise _TooLarge
            yield part

    async def aclose(self) -> None:
        await self.stream.aclose()


def _read(completion: Any, labels: list[int]) -> Answer:
    choice, usage = completion.choices[0], completion.usage
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None) or 0
    if labels:
        said = {item.token: item.logprob for item in choice.logprobs.content[0].top_logprobs}
        return Answer(
            "", "stop", tokens, tuple(float(said[f"token_id:{token}"]) for token in labels)
        )
    refusal = getattr(choice.message, "refusal", None)
    text = choice.message.content or refusal or ""
    return Answer(text, choice.finish_reason or "stop", tokens, cached=cached)


def _seconds(header: str | None) -> float:
    try:
        return min(float(header or 0), LONGEST_WAIT)
    except ValueError:
        return 0.0
