"""The same prompts through quarry's engine, one by one, through a server with bounded and with
unbounded concurrency, and vLLM alone.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sides import run_side, target

TOKENS = 64  # of each answer; the end of the text is ignored nowhere, a random model seldom ends
SHARED = "You write hard negatives for training a search engine. " * 8
PLAIN = ("max_model_len=2048",)
# on a CPU: see miner/llm/vllm_engine.py
TINY = (*PLAIN, "dtype=float32", "enforce_eager=true", "enable_chunked_prefill=false")
ONE_BY_ONE = 32  # requests of the slow side


def measure(ceilings: dict[str, float], llm: str, prompts: int, tiny: bool) -> dict[str, Any]:
    """Measure all sides, one after the other, each in a process of its own."""
    options = {"llm": llm, "engine": TINY if tiny else PLAIN}
    sides = {
        "quarry, in process": run_side(ours, prompts=prompts, **options),
        "vLLM's generate, in process": run_side(bare, prompts=prompts, **options),
        "one by one, in process": run_side(one_by_one, prompts=min(prompts, ONE_BY_ONE), **options),
    }
    with served(llm, options["engine"]) as url:
        sides["quarry, server"] = run_side(through_server, url=url, prompts=prompts)
        sides["asyncio.gather of all, server"] = run_side(gathered, url=url, prompts=prompts)
        sides["one by one, server"] = run_side(
            through_server, url=url, prompts=min(prompts, ONE_BY_ONE), concurrency=1
        )
    speed = {name: side["tokens"] / side["seconds"] for name, side in sides.items()}
    for name, side in sides.items():
        side["tokens_per_second"] = round(speed[name], 1)
    return {
        "what": (
            f"{prompts} prompts that share {len(SHARED)} characters, {TOKENS} tokens each,"
            f" {'tiny random Llama' if tiny else llm}"
        ),
        "sides": sides,
        "targets": [
            target(
                "of vLLM's own throughput",
                speed["quarry, in process"] / speed["vLLM's generate, in process"],
                at_least=0.95,
            ),
            target(
                "times one by one, in process",
                speed["quarry, in process"] / speed["one by one, in process"],
                at_least=1,
            ),
            target(
                "times one by one, server",
                speed["quarry, server"] / speed["one by one, server"],
                at_least=1,
            ),
            target(
                "times asyncio.gather of all, server",
                speed["quarry, server"] / speed["asyncio.gather of all, server"],
                at_least=0.95,
            ),
        ],
    }


def _requests(prompts: int) -> list[Any]:
    from miner.llm.requests import Request

    return [
        Request(
            SHARED,
            f"<query>number {place} of {place * 7919 % 1000}</query>",
            "bench@1",
            temperature=0.8,
            max_tokens=TOKENS,
            seed=place,
        )
        for place in range(prompts)
    ]


def engine_of(llm: str, engine: list[str]) -> Any:
    """Load a model."""
    from miner.llm.vllm_engine import VllmEngine
    from miner.models.hub import locate

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    return VllmEngine(locate(llm, kind="llm"), engine, False)


def timed(engine: Any, requests: list[Any]) -> dict[str, Any]:
    """Have all requests but the first two, which warm up, answered at once."""
    from miner.llm.requests import Answer, Budget

    answers: dict[int, Answer] = {}
    engine.generate(requests[:2], answers.__setitem__, Budget(None, None))  # warm
    answers.clear()
    start = time.perf_counter()
    engine.generate(requests[2:], answers.__setitem__, Budget(None, None))
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "tokens": sum(answer.tokens[1] for answer in answers.values()),
        "cached_share_of_prompts": round(
            sum(answer.cached for answer in answers.values())
            / max(sum(answer.tokens[0] for answer in answers.values()), 1),
            4,
        ),
    }


def ours(llm: str, engine: list[str], prompts: int) -> dict[str, Any]:
    """Hand all requests to quarry's engine at once."""
    loaded = engine_of(llm, engine)
    measured = timed(loaded, _requests(prompts + 2))
    loaded.close()
    return measured


def one_by_one(llm: str, engine: list[str], prompts: int) -> dict[str, Any]:
    """Hand them over one at a time."""
    loaded, total = engine_of(llm, engine), {"seconds": 0.0, "tokens": 0}
    for request in _requests(prompts):
        once = _timed_one(loaded, request)
        total = {name: total[name] + once[name] for name in total}
    loaded.close()
    return total | {"seconds": round(total["seconds"], 3)}


def _timed_one(engine: Any, request: Any) -> dict[str, Any]:
    from miner.llm.requests import Budget

    answers: dict[int, Any] = {}
    start = time.perf_counter()
    engine.generate([request], answers.__setitem__, Budget(None, None))
    return {"seconds": time.perf_counter() - start, "tokens": answers[0].tokens[1]}


def bare(llm: str, engine: list[str], prompts: int) -> dict[str, Any]:
    """Do what `vllm bench throughput` times: LLM.generate of all prompts as text, with their
    sampling.
    """
    from vllm import SamplingParams

    loaded, requests = engine_of(llm, engine), _requests(prompts + 2)
    given = [
        loaded.tokenizer.apply_chat_template(
            request.messages(), add_generation_prompt=True, tokenize=False
        )
        for request in requests
    ]
    sampling = [
        SamplingParams(temperature=0.8, max_tokens=TOKENS, seed=request.seed)
        for request in requests
    ]
    loaded.llm.generate(given[:2], sampling[:2], use_tqdm=False)
    start = time.perf_counter()
    outputs = loaded.llm.generate(given[2:], sampling[2:], use_tqdm=False)
    seconds = time.perf_counter() - start
    loaded.close()
    return {
        "seconds": round(seconds, 3),
        "tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
    }


@contextmanager
def served(llm: str, engine: tuple[str, ...]) -> Iterator[str]:
    """Start vLLM's server on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [word for option in engine for word in _flag(*option.split("="))]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        llm,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *flags,
    ]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2"} | os.environ
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError("vLLM's server ended before it was up") from None
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


def _flag(name: str, value: str) -> list[str]:
    flag = "--" + name.replace("_", "-")
    return {"true": [flag], "false": [flag.replace("--", "--no-", 1)]}.get(value, [flag, value])


def through_server(url: str, prompts: int, concurrency: int = 256) -> dict[str, Any]:
    """Send them through quarry's client."""
    from miner.llm.requests import Llm
    from miner.llm.server import Server, served_model

    options = Llm(server=url, concurrency=concurrency, timeout=600)
    return timed(Server(options, served_model(options)), _requests(prompts + 2))


def gathered(url: str, prompts: int) -> dict[str, Any]:
    """Send them all at once, as a script would."""
    import openai

    async def run() -> dict[str, Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:
            name = (await client.models.list()).data[0].id

            async def one(request: Any) -> int:
                made = await client.chat.completions.create(
                    model=name,
                    messages=request.messages(),
                    temperature=0.8,
                    max_tokens=TOKENS,
                    seed=request.seed,
                )
                return made.usage.completion_tokens

            requests = _requests(prompts + 2)
            await asyncio.gather(*map(one, requests[:2]))
            start = time.perf_counter()
            tokens = await asyncio.gather(*map(one, requests[2:]))
            return {"seconds": round(time.perf_counter() - start, 3), "tokens": sum(tokens)}

    return asyncio.run(run())
