"""A language model as a judge: does its p(yes) tell right answers from wrong ones, is it a
probability, and what does a pair cost?

`.venv-vllm/bin/python bench/llm_judge.py` (after `make demo-llm`; a quarter of an hour)
asks the embedded model, or `--llm MODEL`, through `judge llm --calibrate` about pairs of three data
sets beside the checkout, and writes bench/results/llm_judge.json. MS MARCO's passages are graded by
NIST: of each query up to 5 of each grade, a random half of the relevant ones hidden. SciFact's and
CoSQA's are positives, the first 5 others that BM25 finds, and random documents.
"""

import argparse
from pathlib import Path

from parts import llm_judging
from sides import record

RESULT = Path(__file__).parent / "results" / "llm_judge.json"
DATA_SETS = ("msmarco-dl", "scifact", "cosqa")


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", help="a model, in place of the embedded one")
    parser.add_argument("--queries", type=int, default=40, help="of each data set")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    for name in DATA_SETS:
        asked = {"data": name, "llm": options.llm, "queries": options.queries}
        record(options.out, name, {}, llm_judging.measure, **asked)


if __name__ == "__main__":
    main()
