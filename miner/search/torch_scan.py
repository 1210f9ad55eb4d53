"""Exact search with torch, on a CPU and on GPUs, and with NumPy, the reference.

Each scan is a function of a `Top` and pieces of documents. It computes scores that are about right,
in whatever way is quickest, and offers them with a bound on how far they may be off.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import numba
import numpy as np

from miner.errors import log
from miner.search.kernels import HALF_BIT
from miner.search.rounding import PIECE, Pieces, Rounded, error_bounds, fast_dtype, rounded
from miner.search.topk import Top

TILE_QUERIES, TILE_DOCUMENTS = 256, 2048  # so that a tile of scores stays in a core's own cache
SCORES = 2**30  # that a GPU computes at a time at most
SMALLEST = 256  # documents: with less memory than these take, a GPU is of no use


def scan_numpy(top: Top, pieces: Pieces) -> None:
    """Search with NumPy: the reference."""
    queries = rounded(top.queries, "fp32")
    for first, piece in pieces:
        allowed = error_bounds(queries, rounded(piece, "fp32"))
        for start in range(0, len(top.queries), TILE_QUERIES):
            part = slice(start, start + TILE_QUERIES)
            top.offer_tile(part, top.queries[part] @ piece.T, allowed[part], piece, first)


def scan_torch(top: Top, pieces: Pieces, dtype: str | None = None) -> None:
    """Search with torch on the CPU: each thread multiplies tiles of its own queries and offers
    them while they are in its cache.
    """
    dtype, threads = dtype or fast_dtype("cpu"), numba.config.NUMBA_NUM_THREADS
    queries = rounded(top.queries, dtype)
    left, size = _tensor(queries.values), min(TILE_QUERIES, -(-len(top.queries) // threads))
    parts = [slice(start, start + size) for start in range(0, len(left), size)]
    with _threads(threads) as pool:
        for first, piece in pieces:
            starts = range(0, len(piece), TILE_DOCUMENTS)
            tiles = [(first + start, piece[start : start + TILE_DOCUMENTS]) for start in starts]
            documents = list(pool.map(lambda tile: rounded(tile[1], dtype), tiles))
            allowed = [error_bounds(queries, tile) for tile in documents]
            right = [_tensor(tile.values).T for tile in documents]

            def work(part: slice, tiles=tiles, allowed=allowed, right=right) -> None:  # type: ignore[no-untyped-def]
                for (first, tile), error, vectors in zip(tiles, allowed, right, strict=True):
                    top.offer_tile(part, _to_numpy(left[part] @ vectors), error[part], tile, first)

            list(pool.map(work, parts))


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Open threads in each of which torch computes alone, and leave torch's own number of
    threads as it was.
    """
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def scan_device(
    top: Top, pieces: Pieces, device: str, kept: dict[Any, Rounded], dtype: str | None = None
) -> None:
    """Search on a GPU, which finds the documents that are not out; they are scored on the CPU.
    Pieces that do not fit are halved.

    Args:
        top, pieces: as for every engine.
        device: a torch device; "cpu" does the same there.
        kept: documents that the device holds already; more are put in while half of its memory is
            free.
        dtype: "bf16" or "fp32" [default: what the device is quick at].
    """
    import torch

    # `error_bounds` says that sums are float32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")  # and that no product is cut to TF32
    dtype, size = dtype or fast_dtype(device), min(PIECE, max(SMALLEST, SCORES // len(top.queries)))
    queries: Rounded | None = None
    for first, piece in pieces:
        start = 0
        while start < len(piece):
            part = piece[start : start + size]
            try:
                queries = queries or _sent(rounded(top.queries, dtype), device)
                held = _held(kept, device, dtype, (first + start, part))
                found, error = _offers_of(top, queries, held)
            except torch.OutOfMemoryError:
                kept.clear()
                torch.cuda.empty_cache()
                size = min(size, len(part)) // 2
                if size < SMALLEST:
                    said = "%s has not the memory to search %d documents: searching on the CPU"
                    log.warning(said, device, 2 * size)
                    return scan_torch(top, chain([(first + start, piece[start:])], pieces))
                continue
            top.offer_some(found, error, part, first + start)
            start += len(part)


@lru_cache(maxsize=1)
def kept_on(vectors: str) -> dict[str, dict[Any, Rounded]]:
    """Return what devices hold of some vectors, device by device: only of those that were asked
    for last.
    """
    return {}


def forget_vectors() -> None:
    """Let go of all that devices hold."""
    kept_on.cache_clear()


def _held(
    kept: dict[Any, Rounded], device: str, dtype: str, part: tuple[int, np.ndarray]
) -> Rounded:
    """Return documents as a device holds them, brought there if they are not."""
    import torch

    key = (part[0], len(part[1]), dtype)
    if key in kept:
        return kept[key]
    documents = _sent(rounded(part[1], dtype), device)
    free, total = torch.cuda.mem_get_info(device) if device != "cpu" else (1, 1)
    if 2 * free > total:
        kept[key] = documents
    return documents


def _sent(vectors: Rounded, device: str) -> Rounded:
    return replace(vectors, values=_tensor(vectors.values).to(device))


def _offers_of(
    top: Top, queries: Rounded, documents: Rounded
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Return the documents that may be among the best, as `Top.offer_some` takes them, and by
    how much their scores are off.
    """
    import torch

    error, depth = error_bounds(queries, documents), top.keys.shape[1]
    scores = queries.values @ documents.values.T
    # of itself a score moved when it was rounded
    share = HALF_BIT if scores.dtype == torch.bfloat16 else 0.0
    worst = top.worst().astype(np.float64)
    # the first documents: the depth-th best of them is a limit too
    if np.isinf(worst).any() and depth <= scores.shape[1]:
        edge = scores.topk(depth, dim=1).values[:, -1].double().cpu().numpy()
        worst = np.maximum(worst, edge - 2 * share * np.abs(edge) - error)
    limit = worst - error
    limit -= share * np.abs(np.where(np.isfinite(limit), limit, 0))
    query, place = (
        scores >= torch.from_numpy(limit).to(scores.device, scores.dtype)[:, None]
    ).nonzero(as_tuple=True)
    about = scores[query, place].float().cpu().numpy()
    counts = torch.bincount(query, minlength=len(scores)).cpu().numpy()
    norm = documents.norms.max() + documents.errors.max()
    return (counts, place.cpu().numpy(), about), error + 1.01 * share * norm * (
        queries.norms + queries.errors
    )


def _tensor(values: np.ndarray) -> Any:
    import torch

    return (
        torch.from_numpy(values).view(torch.bfloat16)
        if values.dtype == np.uint16
        else torch.from_numpy(values)
    )


def _to_numpy(scores: Any) -> np.ndarray:
    import torch

    return np.asarray(scores.view(torch.uint16) if scores.dtype == torch.bfloat16 else scores)
