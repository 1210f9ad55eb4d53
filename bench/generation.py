"""Generation: quarry's batching against one request at a time, against all at once through a
server, and against vLLM's own figure.

`.venv-vllm/bin/python bench/generation.py` (after `make test-vllm`) takes about 6 minutes on two
cores, with a tiny random Llama made on the spot; `--llm MODEL` takes a real one, on a device if
there is one. The result goes to bench/results/generation.json.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from parts import generation
from sides import ceilings, record, run_side

RESULT = Path(__file__).parent / "results" / "generation.json"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", help="a model, in place of the tiny one")
    parser.add_argument("--prompts", type=int, default=1024, help="requests")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    limits = run_side(ceilings)
    del limits["peak_memory_mb"]
    with TemporaryDirectory() as folder:
        if options.llm is None:
            from tiny_llama import save_llama

            save_llama(Path(folder) / "llama", longest=2048)
        model = options.llm or str(Path(folder) / "llama")
        record(
            options.out,
            "generation",
            limits,
            generation.measure,
            llm=model,
            prompts=options.prompts,
            tiny=options.llm is None,
        )


if __name__ == "__main__":
    main()
