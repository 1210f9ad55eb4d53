"""The connection to a server: its URL, the key that goes there and nowhere else, bodies of bounded
size, how long it asks to wait.
"""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import openai
from httpx2 import AsyncByteStream

from miner.errors import UserError
from miner.llm.requests import Llm

KEY = "OPENAI_API_KEY"
SHORTEST_KEY = 12  # characters; a shorter one is a dummy such as EMPTY, which texts may hold
LARGEST = 4 * 2**20  # bytes of an answer that are read; one of 100,000 tokens has under a tenth
LONGEST_WAIT = 30.0  # seconds before a request is sent again


class TooLarge(Exception):
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


def connect(options: Llm) -> Any:
    """Return a client of a server; it follows redirects within the server alone.

    Raises:
        UserError: the URL or the key cannot be used; later, where a request would go elsewhere.
    """
    url = base_url(options.server or "")
    http = openai.DefaultAsyncHttpxClient()
    home = http.build_request("GET", url).url.origin

    async def stay(request: Any) -> None:  # called for each hop, before anything is sent
        if request.url.origin != home:
            raise UserError(
                f"{url} redirects to {request.url.scheme}://{request.url.netloc.decode()}; key and"
                " texts go to --server alone: give that address if you trust it"
            )

    async def bound(response: Any) -> None:
        response.stream = _Bounded(response.stream)

    http.event_hooks = {"request": [stay], "response": [bound]}
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=_own_key() or "none",
        max_retries=0,
        timeout=options.timeout,
        http_client=http,
    )


def _own_key() -> str:
    found = os.environ.get(KEY, "").strip()
    if not (found.isascii() and found.isprintable()):
        raise UserError(f"{KEY} holds a character that no key has, such as a line break; set it")
    return found


def hide(text: str) -> str:
    """Return what a server said without the key, should it say that."""
    key = _own_key()
    return text.replace(key, "[key]") if len(key) >= SHORTEST_KEY else text


def seconds(header: str | None) -> float:
    """Return how long a Retry-After, in seconds or as a date, asks to wait; 0 if it says nothing
    that can be read.
    """
    try:
        wait = float(header or 0)
    except ValueError:
        try:
            when = parsedate_to_datetime(header or "")
        except ValueError:
            return 0.0
        # a date that leaves its zone open, "-0000", is one of Greenwich
        wait = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, min(LONGEST_WAIT, wait))


class _Bounded(AsyncByteStream):
    """The body of an answer, read up to `LARGEST` bytes as they come over the wire."""

    def __init__(self, stream: Any):
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for part in self.stream:
            read += len(part)
            if read > LARGEST:
                raise TooLarge
            yield part

    async def aclose(self) -> None:
        await self.stream.aclose()
