"""An export -> README.md: a data set's card, by which `load_dataset(FOLDER)` finds the files."""

import json
from pathlib import Path
from typing import Any

from miner.files import atomic, fingerprint
from miner.store import Manifest, Run
from scoring.export_options import Export
from scoring.findings import percent
from scoring.metrics import FOLDER as METRICS
from scoring.metrics import SETS as SCORED

TOLD = {"coverage": "coverage", "eci_v1": "ECI", "signal": "S", "margin": "D"}


def write_card(run: Run, options: Export, made: Manifest, folder: Path) -> None:
    """Write the card of an export beside its shards.

    Args:
        run: the run. options: of the export. made: the set's manifest. folder: of the export.
    """
    end = options.kind
    parts = {"default": {"train": f"*.{end}"}}
    if options.dev:
        parts = {"default": {split: f"{split}/*.{end}" for split in ("train", "dev")}}
    if options.format == "pylate":
        parts = {"train": parts["default"], "queries": {"train": "_queries/*.parquet"}}
        parts["documents"] = {"train": "_documents/*.parquet"}
    # JSON is YAML, and quotes what YAML would read as something else.
    version = _version(made, options)
    configs = "".join(
        f"- config_name: {name}\n  version: {version}\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: {json.dumps(path)}\n" for split, path in files.items()
        )
        for name, files in parts.items()
    )
    tags = json.dumps(["hard-negatives", "quarry", options.format])
    first = next(iter(parts))
    config = "" if first == "default" else f', "{first}"'
    lines = [
        f"---\nconfigs:\n{configs}tags: {tags}\n---\n",
        f"# {options.name}, as {options.format}\n",
        _what(run, options, made),
        f'```python\nfrom datasets import load_dataset\n\ntrain = load_dataset("."{config}, '
        'split="train")\n```\n',
        f"Recipe:\n\n```json\n{json.dumps(made.options, indent=1, ensure_ascii=False)}\n```\n",
        "The texts are those of the corpus that was read: its licence holds for them.\n",
    ]
    with atomic(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines), "utf-8")


def _version(made: Manifest, options: Export) -> str:
    """Return a version that no other content has: `load_dataset` keeps what it once read of a
    folder of this name, wherever it lay, until the version is another.
    """
    digits = int(fingerprint([made.fingerprint, options.record()], 6), 16)
    return "1.{}.{}".format(*divmod(digits, 1 << 24))


def _what(run: Run, options: Export, made: Manifest) -> str:
    tables = run.tables().facts
    said = f"{made.rows['sets']:,} negatives of {tables['queries']:,} queries"
    said += f" over {tables['documents']:,} documents, positives kept out by"
    said += f" {made.facts.get('protected_by', 'ids')}."
    measured = _measured(run, options.name)
    if measured:
        shown = ", ".join(f"{TOLD[name]} {measured[name]:.3f}" for name in TOLD if name in measured)
        said += f" Scored: {shown}, unsafe {percent(measured.get('unsafe_share'))}."
    return said + "\n"


def _measured(run: Run, name: str) -> dict[str, Any]:
    """Return the measures of a set that is scored, and has not been made anew since."""
    scored, made = run.find(f"{SCORED}/{name}"), run.find(f"{run.SETS}/{name}")
    if not scored or not made or scored.inputs.get(made.stage) != made.fingerprint:
        return {}
    rows = run.read(METRICS, f"set-{name}").to_pylist()
    return {row["measure"]: row["value"] for row in rows if row["value"] is not None}
