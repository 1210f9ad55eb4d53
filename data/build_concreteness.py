"""Norms of concreteness (Brysbaert, Warriner & Kuperman 2014) -> ratings.parquet.

    python data/build_concreteness.py Concreteness_ratings_Brysbaert_et_al_BRM.txt

One row per word or bigram, sorted by word; the same input gives the same bytes (under one version
of pyarrow).
"""

import argparse
import csv
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        # lowercased; the two words of a bigram with one space between them
        pa.field("word", pa.string(), nullable=False),
        pa.field("bigram", pa.bool_(), nullable=False),
        pa.field("mean", pa.float32(), nullable=False),  # 1 abstract to 5 concrete
        pa.field("sd", pa.float32(), nullable=False),
        pa.field("known", pa.float32(), nullable=False),  # share of the raters who knew it
    ]
)
COLUMNS = ("Word", "Bigram", "Conc.M", "Conc.SD", "Percent_known")


def read_norms(file: Path) -> pa.Table:
    """Read the tab-separated norms.

    Raises:
        SystemExit: a column is missing, or two rows hold one word.
    """
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise SystemExit(f"{file}: missing columns {missing} (found {reader.fieldnames})")
        rows = sorted(
            (" ".join(row["Word"].lower().split()), *(row[name] for name in COLUMNS[1:]))
            for row in reader
        )
    twice = [one[0] for one, two in pairwise(rows) if one[0] == two[0]]
    if twice:
        raise SystemExit(f"{file}: words with two rows: {twice[:5]}")
    words = [row[0] for row in rows]
    numbers = [[float(row[place]) for row in rows] for place in (2, 3, 4)]
    return pa.table([words, [row[1] == "1" for row in rows], *numbers], schema=SCHEMA)


def write(table: pa.Table, path: Path) -> None:
    """Write one table as Parquet (zstd), its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", compression_level=19)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, build, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the norms, tab-separated")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "concreteness",
        help="folder to write ratings.parquet in",
    )
    options = parser.parse_args(arguments)
    write(read_norms(options.file), options.out / "ratings.parquet")


if __name__ == "__main__":
    main()
