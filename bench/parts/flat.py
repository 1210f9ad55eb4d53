"""Exact dense search beside faiss.knn and torch, and out of core: random unit vectors, the same
for all.
"""

import resource
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from inputs import read_vectors, write_vectors_run
from sides import best_of, floor, memory_mb, run_rounds, run_side, target

REPEATS = 3
WIDTH = 384
CAP_MB = 1024  # what a capped process may map beyond what it has mapped when it starts to work
CLOSE = 2e-6  # scores this near may come in either order from an engine that sums in float32


def measure(
    ceilings: dict[str, float],
    documents: int = 200_000,
    queries: int = 2000,
    k: int = 100,
    out_of_core: tuple[int, int] = (1_000_000, 500),
) -> dict[str, Any]:
    """Measure all sides, check that all find the same, then search what is larger than the
    address space allowed.
    """
    with TemporaryDirectory() as folder:
        run_side(
            write_vectors_run, folder=folder, documents=documents, queries=queries, width=WIDTH
        )
        run_side(write_vectors_run, folder=f"{folder}/tiny", documents=8, queries=2, width=WIDTH)
        arguments = {"folder": folder, "k": k}
        sides = run_rounds(
            {
                "quarry": (quarry, arguments),
                "faiss.knn": (faiss_knn, arguments),
                "torch": (torch_topk, arguments),
            }
        )
        checked = {
            peer: same_answers(folder, f"{folder}/{peer}.npz") for peer in ("faiss.knn", "torch")
        }
    capped = search_capped(*out_of_core, k)
    ours = sides["quarry"]["seconds"]
    return {
        "what": f"{documents} x {WIDTH} random unit vectors, {queries} queries, top {k}",
        "sides": sides,
        "checked": checked,
        "out of core": capped,
        "targets": [
            target("speed, times faiss.knn", sides["faiss.knn"]["seconds"] / ours, at_least=1.0),
            target("speed, times torch", sides["torch"]["seconds"] / ours, at_least=1.0),
            target("out of core: same candidates", float(capped["same_candidates"]), at_least=1.0),
        ],
        "also": {
            "search alone, times faiss.knn": round(
                sides["faiss.knn"]["seconds"] / sides["quarry"]["search_alone_seconds"], 2
            )
        },
        "floor": floor(
            ours,
            ceilings,
            flops=2 * documents * queries * WIDTH,
            moved=4 * WIDTH * (documents + queries),
            rate=sides["quarry"]["multiplies_at"],
        ),
    }


def quarry(folder: str, k: int, cap: bool = False) -> dict[str, Any]:
    """Measure stage mine dense; with `cap`, under a limit of what this process may map."""
    from miner.engine import How
    from miner.search.dense import MineDense, mine_dense
    from miner.search.flat import choose_engine, search
    from miner.search.rounding import fast_dtype
    from miner.search.vectors import Vectors
    from miner.store import Run

    how = How(force=True)
    # loads what is compiled, starts the threads
    mine_dense(Run(Path(folder) / "tiny" / "run"), MineDense(k=k), how)
    before = memory_mb("VmSize")
    if cap:
        limit = int((before + CAP_MB) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    run, repeats = Run(Path(folder) / "run"), 1 if cap else REPEATS
    seconds = best_of(repeats, lambda: mine_dense(run, MineDense(k=k), how))
    queries, blocks, engine = (
        read_vectors(folder, "queries"),
        Vectors(run, "dense").blocks(),
        choose_engine("auto", "cpu"),
    )
    alone = best_of(repeats, lambda: search(engine, queries, blocks, k))
    return {
        "clock": (
            "stage mine dense: vectors mapped, searched, scored again in float64, ids and positives"
            " looked up, Parquet written; alone: the search with its exact scores, rows in memory."
            " Imports and compiling left out"
        ),
        "seconds": round(seconds, 3),
        "search_alone_seconds": round(alone, 3),
        "multiplies_at": f"{fast_dtype('cpu')}_flops",
        "address_space_before_mb": round(before),
    }


def faiss_knn(folder: str, k: int) -> dict[str, Any]:
    """Measure faiss.knn on vectors in memory."""
    import faiss

    documents, queries = read_vectors(folder, "documents"), read_vectors(folder, "queries")
    found: list[Any] = []
    faiss.knn(queries[:2], documents[:k], k, metric=faiss.METRIC_INNER_PRODUCT)
    seconds = best_of(
        REPEATS,
        lambda: found.append(faiss.knn(queries, documents, k, metric=faiss.METRIC_INNER_PRODUCT)),
    )
    np.savez(Path(folder) / "faiss.knn.npz", scores=found[0][0], rows=found[0][1])
    return {
        "clock": "faiss.knn alone, vectors in memory, rows in memory",
        "seconds": round(seconds, 3),
    }


def torch_topk(folder: str, k: int, chunk: int = 16_384) -> dict[str, Any]:
    """Measure torch: product and topk of one chunk of documents after another, merged by topk;
    fp32.
    """
    import torch

    documents, queries = (
        torch.from_numpy(read_vectors(folder, table)) for table in ("documents", "queries")
    )

    def search(documents: Any) -> tuple[Any, Any]:
        scores, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(documents), chunk):
            block = documents[start : start + chunk]
            new, place = (queries @ block.T).topk(min(k, len(block)), dim=1)
            scores, rows = torch.cat((scores, new), 1), torch.cat((rows, place + start), 1)
            scores, kept = scores.topk(min(k, scores.shape[1]), dim=1)
            rows = rows.gather(1, kept)
        return scores, rows

    found: list[Any] = []
    with torch.inference_mode():
        search(documents[: 2 * k])
        seconds = best_of(REPEATS, lambda: found.append(search(documents)))
    np.savez(Path(folder) / "torch.npz", scores=found[0][0].numpy(), rows=found[0][1].numpy())
    return {
        "clock": (
            f"product and topk in chunks of {chunk} documents alone, vectors and rows in memory"
        ),
        "seconds": round(seconds, 3),
    }


def same_answers(folder: str, peer: str) -> str:
    """Hold quarry's candidates against a peer's rows.

    Raises:
        RuntimeError: they differ by more than the order of documents whose scores are equal to
            float32's precision.
    """
    from miner.store import Run

    run = Run(Path(folder) / "run")
    tables = [run.read("3_candidates/dense", key) for key in run.query_shards()]
    rows = np.concatenate(
        [np.array([int(doc_id[1:]) for doc_id in table["doc_id"].to_pylist()]) for table in tables]
    )
    scores = np.concatenate([table["score"].to_numpy() for table in tables])
    rank = np.concatenate([table["rank"].to_numpy() for table in tables])
    theirs = np.load(peer)
    k = theirs["rows"].shape[1]
    rows, scores = rows[rank <= k].reshape(-1, k), scores[rank <= k].reshape(-1, k)
    same = rows == theirs["rows"]
    if not np.allclose(scores, theirs["scores"], rtol=0, atol=CLOSE):
        raise RuntimeError(
            f"quarry's scores and those of {peer} differ by"
            f" {np.abs(scores - theirs['scores']).max()}"
        )
    known = np.sort(rows, 1) == np.sort(theirs["rows"], 1)
    edge = np.abs(scores - scores[:, -1:]) < CLOSE
    if not (known.all(1) | edge[:, :-1].any(1)).all():
        raise RuntimeError(f"quarry and {peer} find other documents")
    return (
        f"{same.mean():.6f} of places hold the same row, the others one whose score float32 cannot"
        " tell from it"
    )


def search_capped(documents: int, queries: int, k: int) -> dict[str, Any]:
    """Search with and without a cap on the address space, and compare the candidates byte by
    byte.
    """
    with TemporaryDirectory() as folder:
        run_side(
            write_vectors_run, folder=folder, documents=documents, queries=queries, width=WIDTH
        )
        run_side(write_vectors_run, folder=f"{folder}/tiny", documents=8, queries=2, width=WIDTH)
        found = Path(folder) / "run" / "3_candidates" / "dense"
        sides, contents = {}, []
        for name, cap in (("free", False), ("capped", True)):
            sides[name] = run_side(quarry, folder=folder, k=k, cap=cap)
            contents.append([file.read_bytes() for file in sorted(found.glob("*.parquet"))])
    return {
        "what": (
            f"{documents} x {WIDTH} vectors ({documents * WIDTH * 4 / 2**20:.0f} MB), {queries}"
            f" queries, top {k}; the capped process may map {CAP_MB} MB beyond what it has mapped"
            " after imports and a tiny search"
        ),
        **sides,
        "same_candidates": contents[0] == contents[1],
    }
