"""Exact search of blocks of vectors by inner product: NumPy (the reference), torch on a CPU, torch
on GPUs, FAISS on either.

Each engine is a function of a `Top` and pieces of documents. It computes scores that are about
right, in whatever way is quickest, and a bound on how far they may be off; `Top` does the rest, so
every engine gives the same bytes. The bound is the inequality of Cauchy and Schwarz over the
measured rounding of the vectors, and the textbook bound of a sum in float32: vectors need not be of
length one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np

from miner.errors import UserError, log
from miner.search.faiss_scan import faiss_cpu, faiss_gpu, or_cpu, scan_faiss
from miner.search.rounding import Block, Pieces, pieces
from miner.search.topk import Top, best
from miner.search.torch_scan import kept_on, scan_device, scan_numpy, scan_torch

Scan = Callable[[Top, Pieces], None]


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
        kept=kept_on(engine.vectors).setdefault(device, {}) if engine.vectors else {},
    )
