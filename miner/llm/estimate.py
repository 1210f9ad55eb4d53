"""What it would cost to have a stage's requests answered, at the rate of a sample that is asked and
kept.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from time import monotonic
from typing import Any

from miner.llm.client import Client, load_llm
from miner.llm.requests import Request

SAMPLE = 64  # requests


def estimate(client: Client, shards: Iterable[Sequence[Request]]) -> dict[str, Any]:
    """Return how many requests there are, how many are answered already, and what the others would
    take: tokens read and written, hours. Retries are not in it.

    Args:
        client: where requests go.
        shards: the requests of each shard, in order.

    Raises:
        UserError: there is no such model or server.
    """
    total = characters = count = 0
    sample: list[Request] = []
    for requests in shards:
        total += len(requests)
        still = client.not_answered(requests)
        count += len(still)
        characters += sum(map(_size, still))
        sample += islice(still, SAMPLE - len(sample))
    told: dict[str, Any] = {"llm": client.name, "requests": total, "answered": total - count}
    if not sample:
        return told
    load_llm(client.options, client.way)
    began = monotonic()
    answers = client.ask(sample)
    each = (monotonic() - began) / len(sample)
    read, written = (sum(answer.tokens[side] for answer in answers) for side in (0, 1))
    return told | {
        "sample": len(sample),
        "tokens_to_read": round(read * characters / sum(map(_size, sample))),
        "tokens_to_write": round(written * count / len(sample)),
        "requests_per_second": round(1 / each, 2),
        "hours": round((count - len(sample)) * each / 3600, 3),
    }


def _size(request: Request) -> int:
    return sum(len(said["content"]) for said in request.messages())
