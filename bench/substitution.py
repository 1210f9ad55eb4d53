"""Substitution on real captions: coverage, speed, WordNet's ties, and the artefact probe of every
arm.

`python bench/substitution.py` takes about 15 minutes on two cores and reads the data folder beside
the checkout. The result goes to bench/results/substitution.json.
"""

import argparse
from pathlib import Path

from parts import substitution
from sides import ceilings, record, run_side

RESULT = Path(__file__).parent / "results" / "substitution.json"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, help="captions, in place of all")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    limits = run_side(ceilings)
    del limits["peak_memory_mb"]
    record(
        options.out,
        "substitution",
        limits,
        substitution.measure,
        **({"queries": options.queries} if options.queries else {}),
    )


if __name__ == "__main__":
    main()
