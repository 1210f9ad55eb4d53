"""What every bench needs: a side runs in a process of its own; its seconds and peak memory; the
machine, its ceilings, the result file.

`python bench/sides.py MODULE FUNCTION JSON` is what `run_side` starts: it calls the function with
the JSON's values and prints what it returns, as JSON, on its last line.
"""

import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = [
    *["quarry-negatives", "numpy", "numba", "torch", "transformers", "sentence-transformers"],
    *["faiss-cpu", "faiss-gpu", "rank-bm25", "bm25s", "tantivy"],
]
THREADS = os.cpu_count() or 1
POLL = 0.02  # seconds between two looks at a side's memory


def run_side(side: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """Run a side in a fresh process and return what it measured, with `peak_memory_mb`: the most it
    held resident at any time.

    The peak is watched from outside, because quarry's stages begin the kernel's count anew. It
    takes in imports, inputs, mapped files.

    Raises:
        RuntimeError: the side failed; the end of its error output is the message.
    """
    command = [sys.executable, __file__, side.__module__, side.__name__, json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        peak = 0.0
        try:
            while process.poll() is None:
                peak = max(peak, memory_mb("VmHWM", process.pid))
                time.sleep(POLL)
        finally:  # an interrupted bench leaves no side behind
            process.kill()
        for file in (output, errors):
            file.seek(0)
        if process.returncode:
            raise RuntimeError(
                f"side {side.__module__}.{side.__name__} failed"
                f" ({process.returncode}):\n{errors.read()[-4000:]}"
            )
        measured = json.loads(output.read().splitlines()[-1])
    return measured["result"] | {"peak_memory_mb": round(max(peak, measured["peak_memory_mb"]), 1)}


def run_rounds(
    sides: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]], rounds: int = 2
) -> dict[str, dict[str, Any]]:
    """Run sides (name -> side, arguments) in turn, several times over, and keep the best of each
    figure, of memory the highest.

    What else the machine does only ever slows a side down, and not all rounds alike.
    """
    best: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name, (side, arguments) in sides.items():
            measured, before = run_side(side, **arguments), best.get(name, {})
            for figure, value in measured.items():
                if figure in before and not isinstance(value, str):
                    pick = min if figure.endswith("seconds") else max
                    measured[figure] = pick(value, before[figure])
            best[name] = measured
    return best


def memory_mb(line: str = "VmRSS", process: int | str = "self") -> float:
    """Return what /proc says of a process's memory (VmRSS now, VmHWM at most, VmSize of
    addresses); 0 when the process is gone.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next(
        (int(entry.split()[1]) / 1024 for entry in status.splitlines() if entry.startswith(line)),
        0.0,
    )


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how many seconds `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best_of(times: int, work: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of some runs: what else the machine does only ever adds."""
    return min(seconds_of(work) for _ in range(times))


def record(
    out: Path,
    name: str,
    limits: dict[str, float],
    measure: Callable[..., dict[str, Any]],
    **sizes: Any,
) -> None:
    """Measure a part and write it to the result file with the command, the machine and its
    ceilings; print its targets.
    """
    start = time.perf_counter()
    measured = measure(limits, **sizes)
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_result(out, {name: {**facts, "machine": machine(), "ceilings": limits, **measured}})
    print(json.dumps({name: measured.get("targets", measured)}, indent=1), flush=True)


def target(
    what: str, measured: float, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """Return what was to be reached, what was measured, and whether it was met."""
    bounds = {"at_least": at_least} if at_least is not None else {"at_most": at_most}
    met = measured >= at_least if at_least is not None else measured <= (at_most or 0)
    return {"what": what, **bounds, "measured": round(measured, 4), "met": bool(met)}


def floor(
    seconds: float,
    ceilings: dict[str, float],
    *,
    flops: float,
    moved: float,
    rate: str = "fp32_flops",
) -> dict[str, float]:
    """Return the least seconds that the work can take on this machine, and how many times that was
    measured.

    Args:
        seconds: measured.
        ceilings: from `ceilings`.
        flops: floating-point operations that must be done.
        moved: bytes that must be read or written, each once.
        rate: which ceiling the operations go by.
    """
    by_flops, by_bytes = flops / ceilings[rate], moved / ceilings["bytes"]
    least = max(by_flops, by_bytes)
    return {
        "flops": flops,
        "bytes": moved,
        "seconds_by_flops": round(by_flops, 6),
        "seconds_by_bytes": round(by_bytes, 6),
        "seconds_measured": round(seconds, 6),
        "times_the_floor": round(seconds / least, 2),
    }


def ceilings(device: str = "cpu", size: int = 2048) -> dict[str, float]:
    """Measure the most this machine can do: a large matrix product in each dtype (operations a
    second), a large copy (bytes a second).
    """
    import torch

    def best(work: Callable[[], Any]) -> float:
        def once() -> None:
            work()
            if device != "cpu":
                torch.cuda.synchronize()

        once()
        return best_of(5, once)

    rates = {}
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        left = torch.randn(size, size, device=device).to(dtype)
        rates[f"{name}_flops"] = 2 * size**3 / best(partial(torch.mm, left, left))
    # far more than a cache holds
    source = torch.ones(size * 2**18, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    return rates | {"bytes": 2 * source.numel() / best(partial(copy.copy_, source))}


def machine() -> dict[str, Any]:
    """Say what this was measured on, and with which versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {
        "processor": next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
            platform.processor(),
        ),
        "cores": THREADS,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_result(file: Path, result: dict[str, Any]) -> None:
    """Write a result; parts that an earlier run measured and this one did not stay as they are."""
    before = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(before | result, indent=1) + "\n")


def main() -> None:
    """Run one side here."""
    module, function, arguments = sys.argv[1:]
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    peak = max(memory_mb("VmHWM"), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    print(json.dumps({"result": result, "peak_memory_mb": peak}))


if __name__ == "__main__":
    main()
