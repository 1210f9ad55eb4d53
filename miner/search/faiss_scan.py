"""Exact search with FAISS, on a CPU or GPUs: it proposes a few documents more than are asked."""

from collections.abc import Callable

import numpy as np

from miner.errors import log
from miner.search.rounding import Pieces, error_bounds, rounded
from miner.search.topk import Top

# (queries, documents, depth) -> places of documents (n, >= depth) int64 and about their scores,
# lowest last
Propose = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
# documents FAISS proposes beyond what is asked, so that the exact order decides at the edge
SPARE = 16
FAISS_GPU_DEPTH = 2048  # more FAISS does not return from a GPU


def scan_faiss(top: Top, pieces: Pieces, propose: Propose) -> None:
    """Search with FAISS, which proposes a few documents more than are asked.

    Where what it left out could still belong in (a tie of many copies of one text, say), it is
    asked again for that query, for ever more.
    """
    queries, depth = rounded(top.queries, "fp32"), top.keys.shape[1]
    for first, piece in pieces:
        error, before = error_bounds(queries, rounded(piece, "fp32")), top.keys.copy()
        open_, asked = np.arange(len(top.queries)), min(depth + SPARE, len(piece))
        while len(open_):
            places, about = propose(top.queries[open_], piece, asked)
            top.keys[open_] = before[open_]  # a document may be offered only once
            counts = np.zeros(len(top.queries), np.int64)
            counts[open_] = places.shape[1]
            top.offer_some((counts, places.ravel(), about.ravel()), error, piece, first)
            settled = (places.shape[1] == len(piece)) | (
                about[:, -1] < top.worst()[open_] - error[open_]
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
