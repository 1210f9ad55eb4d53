"""What is asked of a language model, what it answers, and how much may be asked: no model is known
here.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from miner.files import fingerprint
from miner.options import Options, option


class Asking(Options):
    """How a large language model is asked: vLLM in this process, or a server that speaks
    OpenAI's protocol, such as `vllm serve`.
    """

    server: str | None = option(
        None,
        "URL such as http://localhost:8000/v1; a key comes from OPENAI_API_KEY alone",
        free=True,
    )
    llm_option: tuple[str, ...] = option(
        (),
        "KEY=VALUE for vLLM in this process, such as max_model_len=8192 or tensor_parallel_size=2;"
        " repeat for more",
    )
    max_words: int = option(400, "words of a document that the model is shown", ge=1)
    concurrency: int = option(256, "requests that a server has at once", free=True, ge=1)
    timeout: float = option(120.0, "seconds that a server may take for one answer", free=True, gt=0)
    attempts: int = option(
        5, "times that a request is sent when a server is busy, fails or drops it", free=True, ge=1
    )
    max_requests: int | None = option(
        None, "requests of this call; then it stops, to be resumed", free=True, ge=1
    )
    max_tokens_total: int | None = option(
        None,
        "tokens of this call, prompts and answers; then it stops, to be resumed",
        free=True,
        ge=1,
    )
    trust_remote_code: bool = option(False, "run code that comes with the model")


class Llm(Asking):
    """A large language model."""

    llm: str | None = option(
        None,
        "hub id or local path of a model for vLLM; with --server, its name there [default there:"
        " the first it serves]",
    )


class Generator(Llm):
    """How texts are generated and verified."""

    temperature: float = option(0.8, "of sampling; 0 takes the likeliest token", ge=0)
    top_p: float = option(0.95, "of sampling", gt=0, le=1)
    max_tokens: int | None = option(
        None, "tokens of an answer [default: what the longest text that is allowed needs]", ge=1
    )
    retries: int = option(2, "times that a text is asked for again when it fails a check", ge=0)
    tokens_per_negative: int | None = option(
        None,
        "tokens of answers that a query may cost for each negative; then what failed is not asked"
        " for again [default: no bound but --retries]",
        ge=1,
    )
    checker: str | None = option(
        None,
        "cross-encoder; a text that it scores as high as the query's lowest positive answers the"
        " query and is left out",
    )
    seed: int = option(0, "seed of choices and of the model; each depends on it and on ids alone")


@dataclass(frozen=True)
class Request:
    """What is asked of a model.

    Attributes:
        system: the part that many requests share; it comes first, so that an engine can keep its
            prefix.
        user: the part of this request.
        turns: of examples, what was asked and answered before it: shared as well.
        prompt: name and version of the prompt.
        schema: JSON schema of the answer as JSON, "" for free text.
        labels: words whose log-probabilities as the first token of the answer are asked for,
            instead of a text; each must be one token.
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
    turns: tuple[tuple[str, str], ...] = ()

    def key(self, model: str) -> str:
        """Return the hash under which the answer of a model, by its fingerprint, is kept."""
        return fingerprint([model, asdict(self)], size=16)

    def messages(self) -> list[dict[str, str]]:
        """Return the request as a chat."""
        said = [("system", self.system)]
        said += [
            one for asked, told in self.turns for one in (("user", asked), ("assistant", told))
        ]
        return [{"role": role, "content": text} for role, text in [*said, ("user", self.user)]]


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        text: what the model wrote.
        finish: why it stopped; "length" is cut off.
        tokens: of the prompt and of the answer.
        scores: natural log-probabilities of the request's labels.
        error: why there is none: rate_limited, server_error, timeout, connection, bad_answer,
            too_large, too_long, rejected, no_scores (no log-probabilities come), no_label (it is
            none of the labels); "" if it came.
        cached: tokens of the prompt that the engine had from an earlier one.
    """

    text: str = ""
    finish: str = "stop"
    tokens: tuple[int, int] = (0, 0)
    scores: tuple[float, ...] = ()
    error: str = ""
    cached: int = 0


class Budget:
    """How many requests and tokens a call may still use. It is looked at before a request is
    sent, so what is under way is finished.
    """

    def __init__(self, requests: int | None, tokens: int | None):
        self.requests, self.tokens = requests, tokens
        self.sent, self.used = 0, 0

    def admit(self) -> bool:
        """Return whether one more request may be sent, and count it if so."""
        over = (self.requests is not None and self.sent >= self.requests) or (
            self.tokens is not None and self.used >= self.tokens
        )
        self.sent += not over
        return not over


Done = Callable[[int, Answer], None]


class Model(Protocol):
    """A back end: vLLM in this process, or a server."""

    def generate(self, requests: Sequence[Request], done: Done, budget: Budget) -> None:
        """Answer requests and call done(place, answer) for each as soon as it is finished; leave
        out what the budget does not admit.
        """
