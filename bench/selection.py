"""Selection beside what users would pick instead: the same negatives, fewer false ones, rescoring
and selecting at speed.

`python bench/selection.py` runs all of it (about 25 minutes on two cores, and 18 more where the
reranker is not trained yet);
`--only agreement` one part. Parts on real data read the data folder beside the checkout. The result
goes to bench/results/selection.json; a part that was not run keeps what an earlier run wrote.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parts import agreement, false_negatives, rescoring, selecting
from sides import ceilings, record, run_side

RESULT = Path(__file__).parent / "results" / "selection.json"
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "agreement": agreement.measure,
    "false_negatives": false_negatives.measure,
    "rescoring": rescoring.measure,
    "selecting": selecting.measure,
}


def main() -> None:
    """Measure the parts asked for and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="measure this part alone; repeat for more"
    )
    parser.add_argument(
        "--queries",
        type=int,
        help="rescoring and selecting: queries, in place of the part's own number",
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    limits = run_side(ceilings)
    del limits["peak_memory_mb"]
    for name in options.only or PARTS:
        sizes = (
            {"queries": options.queries}
            if options.queries and name in ("rescoring", "selecting")
            else {}
        )
        record(options.out, name, limits, PARTS[name], **sizes)


if __name__ == "__main__":
    main()
