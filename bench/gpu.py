"""One GPU: encoding, exact and approximate search at the size of MS MARCO, through quarry's own
engines, and how far from the floor.

`python bench/gpu.py` takes about 20 minutes on one GPU and writes bench/results/gpu.json; `--device
cpu --documents 20000 --queries 500` goes through the same on a CPU and writes nothing unless
`--out` says where. Texts, vectors and the encoder's weights are random (its shape is
all-MiniLM-L6-v2's), so nothing is fetched. Vectors are made on the device and held in the machine's
memory, from where the engine takes them block by block. Queries go chunk by chunk; a search that is
not done after `--seconds` stops there, and the rest is projected.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from parts.encode import encoder_work
from sides import ceilings, floor, machine, memory_mb, seconds_of, write_result

RESULT = Path(__file__).parent / "results" / "gpu.json"
WIDTH, LAYERS, HEADS, INNER, WORDS = 384, 6, 12, 1536, 30_522  # all-MiniLM-L6-v2
LENGTHS = (128, 256)
BLOCK = 262_144  # documents that are made, or read by the engine, at a time


def encode(options: argparse.Namespace, limits: dict[str, float]) -> dict[str, Any]:
    """Encode texts of 128 and of 256 tokens."""
    from miner.models.encoder import load_encoder
    from miner.models.hub import Encoder, hardware

    result: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        write_encoder(folder)
        for length in LENGTHS:
            chosen = Encoder(encoder=folder, max_length=length, device=options.device)
            encode, dtype = load_encoder(chosen), hardware(options.device, "auto")[1]
            rng = np.random.default_rng(length)
            texts = [
                " ".join(f"w{word}" for word in rng.integers(0, WORDS - 5, length - 2))
                for _ in range(options.texts)
            ]
            encode(texts[:64], "document")
            seconds = seconds_of(partial(encode, texts, "document"))
            work = encoder_work(folder, np.full(len(texts), length))
            rate = "bf16_flops" if dtype != "fp32" else "fp32_flops"
            result[f"{length} tokens"] = {
                "texts": len(texts),
                "dtype": dtype,
                "documents_per_second": round(len(texts) / seconds, 1),
                "floor": floor(
                    seconds, limits, flops=work["flops"], moved=work["bytes"], rate=rate
                ),
            }
    return result


def write_encoder(folder: str) -> None:
    """Save a model of all-MiniLM-L6-v2's shape with random weights, whose words are w0, w1, …,
    one token each.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined] # made when asked for

    torch.manual_seed(0)
    bare = Path(folder) / "bare"
    bare.mkdir()
    (bare / "vocab.txt").write_text(
        "\n".join(
            [
                "[PAD]",
                "[UNK]",
                "[CLS]",
                "[SEP]",
                "[MASK]",
                *(f"w{word}" for word in range(WORDS - 5)),
            ]
        )
    )
    BertTokenizerFast(str(bare / "vocab.txt")).save_pretrained(bare)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
    )
    BertModel(config).save_pretrained(bare)
    modules = [Transformer(str(bare), max_seq_length=LENGTHS[-1]), Pooling(WIDTH)]
    SentenceTransformer(modules=modules, device="cpu").save(folder)


def vectors(count: int, seed: int, device: str) -> np.ndarray:
    """Return random unit vectors (count, WIDTH) float32 in memory, made on the device."""
    import torch

    generator, out = torch.Generator(device).manual_seed(seed), np.empty((count, WIDTH), np.float32)
    for start in range(0, count, BLOCK):
        made = torch.randn(min(BLOCK, count - start), WIDTH, generator=generator, device=device)
        out[start : start + BLOCK] = torch.nn.functional.normalize(made, dim=1).cpu().numpy()
    return out


def in_chunks(
    queries: np.ndarray, options: argparse.Namespace, search: Callable[[np.ndarray], Any]
) -> dict[str, Any]:
    """Search chunk by chunk until all is done or the time is over; the first chunk, which brings
    the documents to the device, counts.
    """
    starts, start = range(0, len(queries), options.chunk), time.perf_counter()
    seconds: list[float] = []
    for first in starts:
        seconds.append(seconds_of(partial(search, queries[first : first + options.chunk])))
        if time.perf_counter() - start > options.seconds:
            break
    done = min(len(seconds) * options.chunk, len(queries))
    steady = float(np.median(seconds[1:] or seconds))
    return {
        "queries_done": done,
        "seconds": round(sum(seconds), 3),
        "seconds_of_the_first_chunk": round(seconds[0], 3),
        "seconds_of_a_chunk": round(steady, 3),
        "seconds_of_all_queries": round(sum(seconds) + steady * (len(starts) - len(seconds)), 1),
        "projected": done < len(queries),
    }


def flat(
    options: argparse.Namespace,
    limits: dict[str, float],
    documents: np.ndarray,
    queries: np.ndarray,
) -> dict[str, Any]:
    """Search exactly with each engine that can use this device."""
    from miner.search.flat import choose_engine, gpus, search
    from miner.search.rounding import fast_dtype

    blocks = blocks_of(documents)
    result: dict[str, Any] = {}
    for name in ("torch", "faiss"):
        if name == "faiss" and (
            find_spec("faiss") is None or (options.device != "cpu" and not gpus("faiss"))
        ):
            result[name] = (
                "not installed" if find_spec("faiss") is None else "installed, but sees no GPU"
            )
            continue
        # what a GPU holds of them stays for the next chunk
        engine = replace(choose_engine(name, options.device), vectors="bench")
        search(engine, queries[:8], blocks[:1], options.k)
        measured = in_chunks(
            queries, options, partial(search, engine, blocks=blocks, depth=options.k)
        )
        share = measured["queries_done"] / len(queries)
        flops = 2 * len(documents) * len(queries) * WIDTH * share
        dtype = fast_dtype(options.device) if name == "torch" else "fp32"
        least = floor(
            measured["seconds"],
            limits,
            flops=flops,
            moved=(2 if dtype == "bf16" else 4) * documents.size,
            rate=f"{dtype}_flops",
        )
        result[name] = {
            **measured,
            "dtype": dtype,
            "peak_memory_mb": round(memory_mb("VmHWM")),
            "floor": least,
        }
    return result


def blocks_of(documents: np.ndarray) -> list[tuple[int, Callable[[], np.ndarray]]]:
    """Return the documents block by block, as engines read them."""
    return [
        (start, partial(documents.__getitem__, slice(start, start + BLOCK)))
        for start in range(0, len(documents), BLOCK)
    ]


def ivf(
    options: argparse.Namespace,
    limits: dict[str, float],
    documents: np.ndarray,
    queries: np.ndarray,
) -> dict[str, Any]:
    """Build a FAISS index, search with it, and say which share of the exact answer it finds for
    the first queries.
    """
    from miner.engine import How
    from miner.search.approximate import Factory, build_index, find, forget_indexes
    from miner.search.flat import choose_engine, search
    from miner.store import Run

    if find_spec("faiss") is None:
        return {"skipped": "faiss is not installed"}
    blocks, what = (
        blocks_of(documents),
        Factory("2_index/dense", options.factory, options.parameters, 2_000_000),
    )
    groups, device, sample = (
        what.groups(blocks, BLOCK),
        choose_engine("faiss", options.device).device,
        queries[:256],
    )
    with TemporaryDirectory() as folder:
        run = Run(folder)
        built = seconds_of(lambda: build_index(run, what, "random unit vectors", groups, How()))
        measured = in_chunks(
            queries, options, lambda part: find(run, what, groups, device, part, options.k)
        )
        about, _ = find(run, what, groups, device, sample, options.k)
        exact, _ = search(choose_engine("torch", options.device), sample, blocks, options.k)
        forget_indexes()
    share = float(
        np.mean([len(np.intersect1d(a, e)) / len(e) for a, e in zip(about, exact, strict=True)])
    )
    return {
        "faiss_on": device,
        "build_seconds": round(built, 3),
        **measured,
        "recall": round(share, 4),
    }


def machine_with(device: str) -> dict[str, Any]:
    """Say what this was measured on, the GPU too."""
    import torch

    return machine() | (
        {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    )


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument(
        "--documents", type=int, default=8_841_823, help="vectors searched (MS MARCO's passages)"
    )
    parser.add_argument(
        "--queries",
        type=int,
        default=502_939,
        help="queries (MS MARCO's training queries with a positive)",
    )
    parser.add_argument("--texts", type=int, default=50_000, help="texts encoded")
    parser.add_argument("--chunk", type=int, default=16_384, help="queries searched at a time")
    parser.add_argument(
        "--seconds", type=float, default=240, help="time after which a search stops"
    )
    parser.add_argument("-k", type=int, default=100, help="documents found for each query")
    parser.add_argument(
        "--factory", default="IVF4096,Flat", help="FAISS index of the approximate search"
    )
    parser.add_argument("--parameters", default="nprobe=32", help="its search parameters")
    parser.add_argument(
        "--only",
        choices=["encode", "flat", "ivf"],
        action="append",
        help="measure this alone; repeat for more",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="result file [default: bench/results/gpu.json on a GPU, none on a CPU]",
    )
    return parser.parse_args()


def main() -> None:
    """Measure the parts asked for and write the result."""
    options = parse()
    out = options.out or (RESULT if options.device.startswith("cuda") else None)
    wanted = options.only or ["encode", "flat", "ivf"]
    limits = ceilings(options.device, 2048 if options.device == "cpu" else 8192)
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine_with(options.device),
        "ceilings": limits,
    }
    works: dict[str, Callable[[], dict[str, Any]]] = {"encode": lambda: encode(options, limits)}
    if {"flat", "ivf"} & set(wanted):
        documents, queries = (
            vectors(options.documents, 0, options.device),
            vectors(options.queries, 1, options.device),
        )
        works |= {
            work.__name__: partial(work, options, limits, documents, queries)
            for work in (flat, ivf)
        }
    for name in wanted:
        measured = {name: {**facts, "options": vars(options) | {"out": str(out)}, **works[name]()}}
        print(json.dumps(measured, indent=1), flush=True)
        if out:
            write_result(out, measured)


if __name__ == "__main__":
    main()
