"""Encoding beside SentenceTransformer.encode: the same texts, the default encoder, fp32 and
bf16, one process a side.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from inputs import read_texts, write_pairs_run
from sides import floor, run_side, seconds_of, target

NEIGHBOURS = 50


def measure(
    ceilings: dict[str, float],
    documents: int = 2000,
    queries: int = 500,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Measure all sides; bf16 must find the neighbours that fp32 finds."""
    with TemporaryDirectory() as folder:
        texts = run_side(write_pairs_run, folder=folder, documents=documents, queries=queries)
        work = run_side(transformer_work, folder=folder, max_length=max_length)
        sides = {}
        for dtype in ("bf16", "fp32"):
            for side in (sentence_transformers, quarry):
                name = f"{side.__name__} {dtype}"
                sides[name] = run_side(side, folder=folder, dtype=dtype, max_length=max_length)
                sides[name]["documents_per_second"] = round(
                    texts["documents"] / sides[name]["seconds"], 2
                )
        reference = neighbours(folder, "sentence_transformers fp32")
        overlap = {
            name: round(
                float(
                    np.mean(
                        [
                            len(a & b) / len(a)
                            for a, b in zip(reference, neighbours(folder, name), strict=True)
                        ]
                    )
                ),
                5,
            )
            for name in sides
        }
    rate = {name: side["documents_per_second"] for name, side in sides.items()}
    return {
        "what": (
            f"{texts['texts']}: {texts['documents']} documents, evenly spaced, {work['tokens']}"
            f" tokens without padding; neighbours: top {NEIGHBOURS} among them of"
            f" {texts['queries']} queries"
        ),
        "sides": sides,
        "overlap with sentence_transformers fp32": overlap,
        "targets": [
            target(
                "bf16, times SentenceTransformer.encode fp32",
                rate["quarry bf16"] / rate["sentence_transformers fp32"],
                at_least=2.2,
            ),
            target(
                "fp32, times SentenceTransformer.encode fp32",
                rate["quarry fp32"] / rate["sentence_transformers fp32"],
                at_least=1.1,
            ),
            target("bf16, overlap of neighbours", overlap["quarry bf16"], at_least=0.97),
        ],
        "also": {
            "bf16, times SentenceTransformer.encode bf16": round(
                rate["quarry bf16"] / rate["sentence_transformers bf16"], 2
            )
        },
        "floor": {
            dtype: floor(
                sides[f"quarry {dtype}"]["seconds"],
                ceilings,
                flops=work["flops"],
                moved=work["bytes"],
                rate=f"{dtype}_flops",
            )
            for dtype in ("fp32", "bf16")
        },
    }


def quarry(folder: str, dtype: str, max_length: int | None) -> dict[str, Any]:
    """Measure quarry's encoder."""
    from miner.models.encoder import load_encoder
    from miner.models.hub import Encoder

    encode = load_encoder(Encoder(dtype=dtype, max_length=max_length))
    return _measure(folder, f"quarry {dtype}", encode)


def sentence_transformers(folder: str, dtype: str, max_length: int | None) -> dict[str, Any]:
    """Measure sentence-transformers' own encode in its default batches of 32."""
    import torch
    from sentence_transformers import SentenceTransformer

    from miner.models.hub import default_encoder

    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = SentenceTransformer(
        default_encoder(),
        device="cpu",
        model_kwargs={"dtype": torch_dtype, "attn_implementation": "sdpa"},
    )
    if max_length is not None:
        model.max_seq_length = max_length

    def encode(texts: list[str], role: str) -> np.ndarray:
        method = model.encode_query if role == "query" else model.encode_document
        return method(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)

    return _measure(folder, f"sentence_transformers {dtype}", encode)


def _measure(folder: str, name: str, encode: Any) -> dict[str, Any]:
    """Encode all documents under the clock, the queries after it, and leave both in `folder`."""
    documents, queries = read_texts(folder, "corpus"), read_texts(folder, "queries")
    encode(["a short text", "another"], "document")
    vectors: list[np.ndarray] = []
    seconds = seconds_of(lambda: vectors.append(encode(documents, "document")))
    np.savez(
        Path(folder) / f"{name}.npz",
        documents=vectors[0].astype(np.float32),
        queries=encode(queries, "query").astype(np.float32),
    )
    clock = (
        "texts in memory to unit vectors in memory; loading the model and a first short batch"
        " left out"
    )
    return {"clock": clock, "seconds": round(seconds, 3)}


def neighbours(folder: str, name: str) -> list[set[int]]:
    """Return the rows of each query's nearest documents by a side's vectors."""
    vectors = np.load(Path(folder) / f"{name}.npz")
    scores = vectors["queries"] @ vectors["documents"].T
    return [
        set(np.argpartition(-row, min(NEIGHBOURS, len(row)) - 1)[:NEIGHBOURS].tolist())
        for row in scores
    ]


def transformer_work(
    folder: str, max_length: int | None, tables: tuple[str, ...] = ("corpus",)
) -> dict[str, Any]:
    """Count the tokens of all documents, without padding, and what must be computed and read for
    them (a side).
    """
    from transformers import AutoTokenizer

    from miner.models.hub import default_encoder, locate

    path = str(locate(default_encoder()))
    longest = max_length or 256  # the default encoder's own
    texts = [text for table in tables for text in read_texts(folder, table)]
    tokens = AutoTokenizer.from_pretrained(path)(texts, truncation=True, max_length=longest)[
        "input_ids"
    ]
    return encoder_work(path, np.array([len(ids) for ids in tokens]))


def encoder_work(path: str, lengths: np.ndarray) -> dict[str, Any]:
    """Return what a BERT encoder must do at least for texts of these lengths in tokens.

    In a layer of width h and inner width i a token takes 8 h^2 + 4 h i operations, and 4 n h more
    for attention in a text of n tokens; the weights are read once, in 4 bytes each.
    """
    from transformers import AutoConfig

    config, lengths = AutoConfig.from_pretrained(path), lengths.astype(float)
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return {
        "tokens": int(lengths.sum()),
        "flops": (
            layers
            * (lengths.sum() * (8 * width**2 + 4 * width * inner) + (lengths**2).sum() * 4 * width)
        ),
        "bytes": 4.0 * layers * (4 * width**2 + 2 * width * inner),
    }
