"""Shards of an open-clip export -> train.tsv, as open_clip and NegCLIP's trainer read it.

Both read it with pandas: tab-separated, a header, `filepath` and `title` (their own defaults).
NegCLIP's takes two more columns, lists in Python's notation: `neg_caption`, negative captions of
which it draws one a step, and `neg_image`, rows of this file, one of which goes into the same batch
with its image and captions. Both are written as JSON that Python reads alike.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from miner.files import atomic
from scoring.export_texts import RATED

FILE = "train.tsv"
COLUMNS = ("filepath", "title", "neg_caption", "neg_image")


def write_tsv(folder: Path, keys: Sequence[str]) -> None:
    """Write the rows of all shards, in order, as one file: `neg_image` counts rows over all of
    them, from 0.

    `neg_image` has the rows of those negatives that are captions of other images. Where there is
    none, which is so of every made caption, it has the next row of another image: any image of the
    batch, since NegCLIP's trainer cannot do without one.
    """
    names = [
        (row["query_id"], row["filepath"])
        for shard in _shards(folder, keys, ["query_id", "filepath"])
        for row in shard.to_pylist()
    ]
    rows, images = (
        {query_id: number for number, (query_id, _) in enumerate(names)},
        [image for _, image in names],
    )
    following, number = next_of_another_image(images), 0
    with (
        atomic(folder / FILE) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
        for shard in _shards(folder, keys):
            columns = [*COLUMNS, *(name for name in RATED if name in shard.column_names)]
            if not number:
                writer.writerow(columns)
            for row in shard.to_pylist():
                near = [rows[doc_id] for doc_id in row["negative_ids"] if doc_id in rows]
                near = [other for other in near if images[other] != row["filepath"]]
                row["neg_image"] = near or [following[number]]
                writer.writerow([_cell(row[name]) for name in columns])
                number += 1


def next_of_another_image(images: Sequence[str]) -> list[int]:
    """Return for each row the next one, round and round, of another image; any row where there
    is only one image.
    """
    following = list(range(len(images)))
    # twice round: what the last rows are followed by stands at the beginning
    for row in reversed(range(2 * len(images))):
        here, after = row % len(images), (row + 1) % len(images)
        following[here] = after if images[after] != images[here] else following[after]
    return following


def _shards(
    folder: Path, keys: Sequence[str], columns: list[str] | None = None
) -> Iterator[pa.Table]:
    return (
        pq.read_table(folder / f"{key}.parquet", columns=columns, partitioning=None) for key in keys
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
