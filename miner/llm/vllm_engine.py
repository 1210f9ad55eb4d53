"""vLLM in this process: continuous batching over whole shards, structured outputs,
log-probabilities of chosen tokens.
"""

import atexit
import os
from collections.abc import Sequence
from itertools import islice
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any, NamedTuple

from miner.errors import UserError
from miner.llm.requests import Answer, Budget, Done, Request
from miner.models.hub import hardware

# requests that wait in the engine, at least; where tokens are counted, a quarter, as the budget is
# looked at before a request is handed over
BLOCK = 256


class Handed(NamedTuple):
    """A request at its place, with the tokens of its labels."""

    place: int
    request: Request
    labels: list[int]


def engine_options(given: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE; a value that is JSON (a number, true, an object) is that, any other is text.

    Raises:
        UserError: one has no "=".
    """
    found: dict[str, Any] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(
                f"--llm-option is {item!r}; expected KEY=VALUE as vLLM's LLM takes it, such as"
                " max_model_len=8192"
            )
        try:
            found[key] = loads(value)
        except JSONDecodeError:
            found[key] = value
    return found


class VllmEngine:
    """A model that vLLM runs in this process.

    Raises:
        UserError: vLLM is not installed, or does not load the model.
    """

    def __init__(self, folder: Path, options: Sequence[str], trust_remote_code: bool):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for summaries
        # GiB for what was read, on a CPU: vLLM would take nine tenths of the machine
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(
                f"--llm without --server needs vLLM ({error}): pip install 'quarry-negatives[vllm]'"
            ) from error
        plain = _defaults(current_platform.is_cpu())
        try:
            self.llm = LLM(
                model=str(folder),
                trust_remote_code=trust_remote_code,
                **(plain | engine_options(options)),
            )
        # a RuntimeError is of the engine's own process, which has said why
        except (ValueError, OSError, TypeError, RuntimeError) as error:
            raise UserError(
                f"vLLM cannot load {folder}: {str(error).strip().splitlines()[0]}"
            ) from error
        # vLLM ends its process when Python ends, but by a hook that, as imports fall, may come
        # after the one by which multiprocessing waits for that process: for ever (seen)
        atexit.register(self.close)
        self.tokenizer = self.llm.get_tokenizer()
        self._open: dict[str, str] = {}  # ids of outputs -> the engine's own
        self.longest: int = self.llm.llm_engine.model_config.max_model_len

    def close(self) -> None:
        """End the engine's process and free its memory."""
        self.llm.llm_engine.engine_core.shutdown()

    def generate(self, requests: Sequence[Request], done: Done, budget: Budget) -> None:
        """Answer requests; see `Model`. The engine is kept busy: as some are finished, others are
        handed to it.
        """
        labels = {
            words: [self._token(word) for word in words]
            for words in {request.labels for request in requests}
        }
        places, block = iter(range(len(requests))), BLOCK if budget.tokens is None else BLOCK // 4
        waiting: dict[str, Handed] = {}
        try:
            while True:
                while len(waiting) < block and (part := list(islice(places, block))):
                    fitting = [place for place in part if self._fits(requests[place])]
                    for place in sorted(set(part) - set(fitting)):
                        done(place, Answer(error="too_long"))
                    admitted = [place for place in fitting if budget.admit()]
                    asked = [
                        Handed(place, requests[place], labels[requests[place].labels])
                        for place in admitted
                    ]
                    waiting |= self._enqueue(asked)
                if not waiting:
                    return
                for output in self.llm.llm_engine.step():
                    if output.finished:
                        one = waiting.pop(self._open.pop(output.request_id))
                        done(one.place, _answer(output, one.labels))
        except BaseException:  # such as Ctrl-C: what is finished is kept, the rest is given up
            self.llm.llm_engine.abort_request(list(waiting), internal=True)
            raise

    def _enqueue(self, asked: list[Handed]) -> dict[str, Handed]:
        """Hand requests to the engine; return them by the engine's own ids."""
        if not asked:
            return {}
        try:
            ids = self.llm.enqueue_chat(
                [one.request.messages() for one in asked],
                sampling_params=[_sampling(one.request, one.labels) for one in asked],
                chat_template_kwargs={"enable_thinking": False},
                use_tqdm=False,
            )
        except ValueError as error:  # such as a model without a chat template
            raise UserError(
                f"vLLM refuses the requests: {str(error).strip().splitlines()[0]}"
            ) from error
        # outputs have the id without what the engine adds to it
        self._open |= {name.partition("-")[0]: name for name in ids}
        return dict(zip(ids, asked, strict=True))

    def _fits(self, request: Request) -> bool:
        """Return whether a request and its answer fit the model; tokens are counted only where
        bytes do not settle it.
        """
        room = self.longest - request.max_tokens
        # a token is at least a byte; 256 are for the template
        chat = request.messages()
        if sum(len(said["content"].encode()) + 32 for said in chat) + 256 <= room:
            return True
        ids = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return len(ids["input_ids"]) <= room

    def _token(self, word: str) -> int:
        ids = self.tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:
            raise UserError(
                f"{word!r} is {len(ids)} tokens for this model; judge llm needs answers of one"
                " token: see --prompt"
            )
        return int(ids[0])


def _defaults(on_cpu: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "dtype": "auto",
        "seed": 0,
        "enable_prefix_caching": True,
        "load_format": "safetensors",
        "use_tqdm_on_load": False,
        # else a small model fills its answer with line ends
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
    }
    if on_cpu:
        # there a seeded request whose prompt is split over steps ends the engine (seen in vLLM
        # 0.32); compiling takes minutes and gains little
        plain |= {"enable_chunked_prefill": False, "enforce_eager": True}
        plain["dtype"] = {"fp32": "float32", "bf16": "bfloat16"}[hardware("cpu", "auto")[1]]
    return plain


def _answer(output: Any, labels: list[int]) -> Answer:
    made = output.outputs[0]
    scores = tuple(float(made.logprobs[0][token].logprob) for token in labels)
    tokens = len(output.prompt_token_ids), len(made.token_ids)
    text = "" if labels else made.text
    cached = int(output.num_cached_tokens or 0)
    return Answer(text, made.finish_reason or "stop", tokens, scores, cached=cached)


def _sampling(request: Request, labels: list[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    structured = StructuredOutputsParams(json=request.schema) if request.schema else None
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        seed=request.seed,
        structured_outputs=structured,
        logprob_token_ids=labels or None,
    )
