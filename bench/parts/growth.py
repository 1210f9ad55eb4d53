"""How quarry's seconds and memory grow with documents and with queries: BM25 and flat search,
and the exponents fitted to them.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from inputs import write_texts_run, write_vectors_run
from sides import memory_mb, run_side, seconds_of

WIDTH = 384


def measure(
    ceilings: dict[str, float],
    documents: tuple[int, ...] = (10_000, 100_000, 1_000_000),
    queries: tuple[int, ...] = (200, 2000, 20_000),
    middle: tuple[int, int] = (100_000, 2000),
    k: int = 100,
) -> dict[str, Any]:
    """Measure each size of one thing at the middle size of the other."""
    grown = {}
    for name, side, write, more in (
        ("bm25", bm25, write_texts_run, {}),
        ("flat", flat, write_vectors_run, {"width": WIDTH}),
    ):
        with TemporaryDirectory() as tiny:
            run_side(write, folder=tiny, documents=8, queries=2, **more)
            measured = {
                size: _point(
                    side,
                    write,
                    {"documents": size[0], "queries": size[1], **more},
                    {"tiny": tiny, "k": k},
                )
                for size in [
                    *((count, middle[1]) for count in documents),
                    *((middle[0], count) for count in queries),
                ]
            }
        points = {
            "documents": [measured[count, middle[1]] for count in documents],
            "queries": [measured[middle[0], count] for count in queries],
        }
        grown[name] = {
            f"with {what}": {"points": rows, "exponents": exponents(rows, what)}
            for what, rows in points.items()
        }
    return {
        "what": (
            f"top {k}; documents at {middle[1]} queries, queries at {middle[0]} documents; exponent"
            " e: figure ~ size^e, by least squares of logarithms; memory is what the peak lies"
            " above the process before the work, imports and a tiny search done"
        ),
        **grown,
    }


def _point(
    side: Any, write: Any, size: dict[str, int], arguments: dict[str, Any]
) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        written = run_side(write, folder=folder, **size)
        measured = run_side(side, folder=folder, **arguments)
    measured["memory_mb"] = round(
        max(measured["peak_memory_mb"] - measured.pop("before_mb"), 1.0), 1
    )
    return {"documents": written["documents"], "queries": written["queries"], **measured}


def exponents(points: list[dict[str, Any]], size: str) -> dict[str, float]:
    """Return for each figure the slope of its logarithm against the size's, by least squares."""
    figures = [name for name in points[0] if name.endswith("_seconds") or name == "memory_mb"]
    sizes = np.log([point[size] for point in points])
    return {
        name: round(
            float(np.polyfit(sizes, np.log([max(point[name], 1e-9) for point in points]), 1)[0]), 2
        )
        for name in figures
    }


def bm25(folder: str, tiny: str, k: int) -> dict[str, Any]:
    """Measure stages index bm25 and mine bm25."""
    from miner.engine import How
    from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
    from miner.search.tokens import IndexBm25

    how = How(force=True)
    stages = {
        "index": lambda run: index_bm25(run, IndexBm25(), how),
        "search": lambda run: mine_bm25(run, MineBm25(k=k), how),
    }
    return _stages(folder, tiny, stages)


def flat(folder: str, tiny: str, k: int) -> dict[str, Any]:
    """Measure stage mine dense."""
    from miner.engine import How
    from miner.search.dense import MineDense, mine_dense

    return _stages(
        folder, tiny, {"search": lambda run: mine_dense(run, MineDense(k=k), How(force=True))}
    )


def _stages(folder: str, tiny: str, stages: dict[str, Any]) -> dict[str, Any]:
    from miner.store import Run

    for work in stages.values():
        work(Run(Path(tiny) / "run"))  # loads what is compiled
    before, run = memory_mb(), Run(Path(folder) / "run")
    seconds = {
        f"{name}_seconds": round(seconds_of(partial(work, run)), 3) for name, work in stages.items()
    }
    return {**seconds, "before_mb": round(before, 1)}
