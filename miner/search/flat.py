"""Exact search of blocks of vectors by inner product: NumPy (the reference), torch on a CPU, torch
on GPUs, FAISS on either.

Each engine is a function of a `Top` and pieces of documents. It computes scores that are about
right, in whatever way is quickest, and a bound on how far they may be off; `Top` does the rest, so
every engine gives the same bytes. The bound is the inequality of Cauchy and Schwarz over the
measured rounding of the vectors, and the textbook bound of a sum in float32: vectors need not be of
length one.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numba
import numpy as np

from miner.errors import UserError
from miner.search.topk import HALF_BIT, Top, best

# row of the first document, and what reads the vectors (m, d) float32
Block = tuple[int, Callable[[], np.ndarray]]
Pieces = Iterator[tuple[int, np.ndarray]]  # the same, read and cut
Scan = Callable[[Top, Pieces], None]
# (queries, documents, depth) -> places of documents (n, >= depth) int64 and about their scores,
# lowest last
Propose = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]

PIECE = 16384  # documents that are prepared at a time
TILE_QUERIES, TILE_DOCUMENTS = 256, 2048  # so that a tile of scores stays in a core's own cache
# documents FAISS proposes beyond what is asked, so that the exact order decides at the edge
SPARE = 16
FAISS_GPU_DEPTH = 2048  # more FAISS does not return from a GPU
SCORES = 2**30  # that a GPU computes at a time at most
SMALLEST = 256  # documents: with less memory than these take, a GPU is of no use
TINY = 1e-16  # of numbers so small that float32 loses them, or their squares

log = logging.getLogger("quarry")


@dataclass(frozen=True)
class Engine:
    """What searches, and where.

    Attributes:
        name: torch, faiss or numpy.
        device: "cpu", or "cuda", which means all GPUs there are.
        vectors: names the documents' vectors; what a GPU holds of them stays there for the next
            queries. "" keeps nothing.
    """

    name: str
    device: str
    vectors: str = ""


@dataclass(frozen=True)
class Rounded:
    """Vectors as an engine multiplies them.

    Attributes:
        values: (n, d): an array of float32, or of uint16, which are the bits of bfloat16; or a
            tensor on a device.
        norms: (n,) float64, lengths of the vectors before rounding.
        errors: (n,) float64, lengths of what rounding changed.
    """

    values: Any
    norms: np.ndarray
    errors: np.ndarray


def choose_engine(search: str, device: str) -> Engine:
    """Return the engine that options stand for here. What was asked for and is not there is said
    loudly, and the CPU taken.

    Raises:
        UserError: faiss was asked for and is not installed.
    """
    if search == "faiss" and find_spec("faiss") is None:
        raise UserError(
            "faiss is asked for and not installed: pip install 'quarry-negatives[cpu]', or leave"
            " --search and --factory out"
        )
    name = "torch" if search == "auto" else search
    if device == "cpu" or gpus(name) == 0:
        if device == "cuda":
            log.warning("--device cuda, but %s sees no GPU here: searching on the CPU", name)
        return Engine(name, "cpu")
    return Engine(name, "cuda")


def gpus(name: str) -> int:
    """Return how many GPUs an engine can use here."""
    if name == "torch":
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "faiss":
        import faiss

        return int(faiss.get_num_gpus())
    return 0


def search(
    engine: Engine, queries: np.ndarray, blocks: Sequence[Block], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact `depth` best documents of each query; memory follows the block.

    Args:
        engine: from `choose_engine`; it does not change the answer.
        queries: (n, d) float32.
        blocks: the documents; which rows are together does not change the answer.
        depth: documents per query.

    Returns:
        rows (n, depth) int64 and scores (n, depth) float32 in order of score downwards, then row;
        -1 and -inf where there are fewer.
    """
    count = min(gpus(engine.name), len(blocks)) if engine.device == "cuda" else 1
    return deal([_scan(engine, number) for number in range(max(1, count))], queries, blocks, depth)


def deal(
    scans: Sequence[Scan], queries: np.ndarray, blocks: Sequence[Block], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Deal the blocks out to several scans, one a GPU, and merge what they find, as `search`
    says.
    """
    if not len(queries) or not depth:
        return np.empty((len(queries), depth), np.int64), np.empty(
            (len(queries), depth), np.float32
        )
    tops = [Top(queries, depth) for _ in scans]
    with ThreadPoolExecutor(len(scans)) as pool:
        shares = [pieces(blocks[number :: len(scans)]) for number in range(len(scans))]
        list(pool.map(lambda scan, top, share: scan(top, share), scans, tops, shares))
    rows, scores = zip(*(top.result() for top in tops), strict=True)
    return best(np.hstack(rows), np.hstack(scores), depth)


def _scan(engine: Engine, number: int) -> Scan:
    if engine.name == "numpy":
        return scan_numpy
    if engine.name == "faiss":
        return partial(
            scan_faiss,
            propose=or_cpu(partial(faiss_gpu, number)) if engine.device == "cuda" else faiss_cpu,
        )
    if engine.device == "cpu":
        return scan_torch
    device = f"cuda:{number}"
    return partial(
        scan_device,
        device=device,
        kept=_kept(engine.vectors).setdefault(device, {}) if engine.vectors else {},
    )


def pieces(blocks: Iterable[Block]) -> Pieces:
    """Read blocks one after the other and cut them small."""
    for first, read in blocks:
        block = read()
        for start in range(0, len(block), PIECE):
            yield first + start, block[start : start + PIECE]


def fast_dtype(device: str) -> str:
    """Return "bf16" where the hardware multiplies it faster than float32, else "fp32"."""
    import torch

    if device != "cpu":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return (
        "bf16"
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        else "fp32"
    )


def rounded(vectors: np.ndarray, dtype: str) -> Rounded:
    """Round vectors (n, d) float32 to "bf16", or copy them as "fp32", and measure them."""
    values = np.empty(vectors.shape, np.uint16 if dtype == "bf16" else np.float32)
    norms, errors = np.zeros((2, len(vectors)))
    if dtype == "bf16":
        _round(vectors, values, norms, errors)
    else:
        _copy(vectors, values, norms)
    return Rounded(values, norms, errors)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _round(vectors, values, norms, errors):  # type: ignore[no-untyped-def] # compiled
    for row in range(len(vectors)):
        square, lost = np.float32(0), np.float32(0)
        for i in range(vectors.shape[1]):
            number = np.float32(vectors[row, i])
            bits = (np.int64(number.view(np.int32)) + 0x8000) >> 16
            values[row, i] = np.uint16(bits)
            change = number - np.int32(bits << 16).view(np.float32)
            square += number * number
            lost += change * change
        norms[row], errors[row] = np.sqrt(square), np.sqrt(lost)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _copy(vectors, values, norms):  # type: ignore[no-untyped-def] # compiled
    for row in range(len(vectors)):
        square = np.float32(0)
        for i in range(vectors.shape[1]):
            values[row, i] = vectors[row, i]
            square += vectors[row, i] * vectors[row, i]
        norms[row] = np.sqrt(square)


def doubts(queries: Rounded, documents: Rounded) -> np.ndarray:
    """Return by how much at most any float32 inner product of each query with any of the documents
    is off (n,) float64.

    |q.d - q'.d'| <= |q| |d - d'| + |q - q'| |d'|; a sum of n products in float32, in any order, is
    off by n 2^-24 |q'| |d'| at most. That is taken twice, for units that cut instead of rounding,
    and a few roundings more for what is done with the score.
    """
    norm, error = documents.norms.max(), documents.errors.max()
    products = (queries.norms + queries.errors) * (norm + error)
    sums = (documents.values.shape[1] + 16) * 2.0**-23 * products
    off = queries.norms * error + queries.errors * (norm + error) + sums
    return np.nan_to_num(1.001 * off + TINY * (1 + queries.norms) * (1 + norm), nan=np.inf)


def scan_numpy(top: Top, pieces: Pieces) -> None:
    """Search with NumPy: the reference."""
    queries = rounded(top.queries, "fp32")
    for first, piece in pieces:
        allowed = doubts(queries, rounded(piece, "fp32"))
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
            allowed = [doubts(queries, tile) for tile in documents]
            right = [_tensor(tile.values).T for tile in documents]

            def work(part: slice, tiles=tiles, allowed=allowed, right=right) -> None:  # type: ignore[no-untyped-def]
                for (first, tile), doubt, vectors in zip(tiles, allowed, right, strict=True):
                    top.offer_tile(part, _array(left[part] @ vectors), doubt[part], tile, first)

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

    # `doubts` says that sums are float32
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
                found, doubt = _not_out(
                    top, queries, _held(kept, device, dtype, (first + start, part))
                )
            except torch.OutOfMemoryError:
                kept.clear()
                torch.cuda.empty_cache()
                size = min(size, len(part)) // 2
                if size < SMALLEST:
                    log.warning(
                        "%s has not the memory to search even %d documents: searching on the CPU",
                        device,
                        2 * size,
                    )
                    return scan_torch(top, chain([(first + start, piece[start:])], pieces))
                continue
            top.offer_some(found, doubt, part, first + start)
            start += len(part)


@lru_cache(maxsize=1)
def _kept(vectors: str) -> dict[str, dict[Any, Rounded]]:
    """Return what devices hold of some vectors, device by device: only of those that were asked
    for last.
    """
    return {}


def forget() -> None:
    """Let go of all that devices hold."""
    _kept.cache_clear()


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


def _not_out(
    top: Top, queries: Rounded, documents: Rounded
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Return the documents that may be among the best, as `Top.offer_some` takes them, and by
    how much their scores are off.
    """
    import torch

    doubt, depth = doubts(queries, documents), top.keys.shape[1]
    scores = queries.values @ documents.values.T
    # of itself a score moved when it was rounded
    share = HALF_BIT if scores.dtype == torch.bfloat16 else 0.0
    worst = top.worst().astype(np.float64)
    # the first documents: the depth-th best of them is a limit too
    if np.isinf(worst).any() and depth <= scores.shape[1]:
        edge = scores.topk(depth, dim=1).values[:, -1].double().cpu().numpy()
        worst = np.maximum(worst, edge - 2 * share * np.abs(edge) - doubt)
    limit = worst - doubt
    limit -= share * np.abs(np.where(np.isfinite(limit), limit, 0))
    query, place = (
        scores >= torch.from_numpy(limit).to(scores.device, scores.dtype)[:, None]
    ).nonzero(as_tuple=True)
    about = scores[query, place].float().cpu().numpy()
    counts = torch.bincount(query, minlength=len(scores)).cpu().numpy()
    norm = documents.norms.max() + documents.errors.max()
    return (counts, place.cpu().numpy(), about), doubt + 1.01 * share * norm * (
        queries.norms + queries.errors
    )


def scan_faiss(top: Top, pieces: Pieces, propose: Propose) -> None:
    """Search with FAISS, which proposes a few documents more than are asked.

    Where what it left out could still belong in (a tie of many copies of one text, say), it is
    asked again for that query, for ever more.
    """
    queries, depth = rounded(top.queries, "fp32"), top.keys.shape[1]
    for first, piece in pieces:
        doubt, before = doubts(queries, rounded(piece, "fp32")), top.keys.copy()
        open_, asked = np.arange(len(top.queries)), min(depth + SPARE, len(piece))
        while len(open_):
            places, about = propose(top.queries[open_], piece, asked)
            top.keys[open_] = before[open_]  # a document may be offered only once
            counts = np.zeros(len(top.queries), np.int64)
            counts[open_] = places.shape[1]
            top.offer_some((counts, places.ravel(), about.ravel()), doubt, piece, first)
            settled = (places.shape[1] == len(piece)) | (
                about[:, -1] < top.worst()[open_] - doubt[open_]
            )
            open_, asked = open_[~settled], min(asked * 4, len(piece))


def faiss_cpu(
    queries: np.ndarray, documents: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Propose with FAISS's flat inner product, without copying the documents into an index."""
    import faiss

    scores, places = faiss.knn(
        np.ascontiguousarray(queries),
        np.ascontiguousarray(documents),
        depth,
        metric=faiss.METRIC_INNER_PRODUCT,
    )
    return places, scores


def faiss_gpu(number: int) -> Propose:
    """Return what proposes with FAISS on one GPU."""
    import faiss

    resources = faiss.StandardGpuResources()

    def propose(
        queries: np.ndarray, documents: np.ndarray, depth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        left, right = np.ascontiguousarray(queries), np.ascontiguousarray(documents)
        scores, places = faiss.knn_gpu(
            resources, left, right, depth, metric=faiss.METRIC_INNER_PRODUCT, device=number
        )
        return places, scores

    return limited(propose, FAISS_GPU_DEPTH)


def limited(propose: Propose, limit: int) -> Propose:
    """Lift the limit of an engine that returns at most `limit` documents: asked for more, all
    are proposed, `limit` at a time.
    """

    def lifted(
        queries: np.ndarray, documents: np.ndarray, depth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if depth <= limit:
            return propose(queries, documents, depth)
        parts = []
        for start in range(0, len(documents), limit):
            part = documents[start : start + limit]
            places, scores = propose(queries, part, len(part))
            parts.append((np.where(places < 0, -1, places + start), scores))
        return np.hstack([places for places, _ in parts]), np.hstack(
            [scores for _, scores in parts]
        )

    return lifted


def or_cpu(build: Callable[[], Propose]) -> Propose:
    """Return what proposes on a GPU, until the GPU fails: that is said loudly, and the CPU goes
    on.
    """
    propose: Propose | None = None

    def tried(
        queries: np.ndarray, documents: np.ndarray, depth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        nonlocal propose
        try:
            propose = propose or build()
            return propose(queries, documents, depth)
        except RuntimeError as error:
            log.warning("FAISS on the GPU failed (%s): searching on the CPU", first_line(error))
            propose = faiss_cpu
        return propose(queries, documents, depth)

    return tried


def first_line(error: BaseException) -> str:
    """Return what an error of FAISS says, without the place in its sources."""
    return str(error).partition("\n")[0].rpartition(": ")[2]


def _tensor(values: np.ndarray) -> Any:
    import torch

    return (
        torch.from_numpy(values).view(torch.bfloat16)
        if values.dtype == np.uint16
        else torch.from_numpy(values)
    )


def _array(scores: Any) -> np.ndarray:
    import torch

    return np.asarray(scores.view(torch.uint16) if scores.dtype == torch.bfloat16 else scores)
