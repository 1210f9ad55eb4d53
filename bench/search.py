"""BM25, encoding, dense search and the whole dense job beside what users would pick instead; how
they grow; how far from the floor.

`make bench` runs all of it (about 25 minutes on two cores); `python bench/search.py --only bm25`
one part. Each side runs in a process of its own, one after the other, on the same input, and only
ratios within one run are claims. The result goes to bench/results/search.json; a part that was not
run keeps what an earlier run wrote.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parts import bm25, encode, flat, growth, job
from sides import ceilings, record, run_side

RESULT = Path(__file__).parent / "results" / "search.json"
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "bm25": bm25.measure,
    "encode": encode.measure,
    "flat": flat.measure,
    "job": job.measure,
    "growth": growth.measure,
}


def sizes(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the arguments of each part: those of the command, else the part's own."""
    asked = {
        name: getattr(options, name)
        for name in ("documents", "queries")
        if getattr(options, name) is not None
    }
    whole = {"documents": 0, "queries": 0} if options.full else {}
    texts = {**whole, **asked, "max_length": options.max_length}
    return {"bm25": asked, "encode": texts, "flat": asked, "job": texts, "growth": {}}


def main() -> None:
    """Measure the parts asked for and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="measure this part alone; repeat for more"
    )
    parser.add_argument(
        "--documents", type=int, help="documents, in place of the part's own number (not growth)"
    )
    parser.add_argument("--queries", type=int, help="queries, likewise")
    parser.add_argument(
        "--full",
        action="store_true",
        help="encode and job: all of MedQuAD's training pairs (an hour)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        help="encode and job: tokens read of a text [default: the model's own]",
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    limits = run_side(ceilings)
    del limits["peak_memory_mb"]
    for name in options.only or PARTS:
        record(options.out, name, limits, PARTS[name], **sizes(options)[name])


if __name__ == "__main__":
    main()
