"""Captions with their images -> a tar file, as WebDataset and open_clip's --dataset-type webdataset
read it: an image, its caption (.txt), and its negatives (.json) under one key.

A key is the shard and a number, so it is unique and has no dot, where readers end it. The same rows
give the same bytes.
"""

import io
import json
import tarfile
from collections import Counter
from os.path import join
from pathlib import Path
from typing import Any

import pyarrow as pa

from miner.files import atomic, fingerprint
from miner.store import Run

KINDS_OF_IMAGE = (".jpg", ".jpeg", ".png", ".webp")  # that open_clip looks for
TOLD_BESIDE = ("query_id", "neg_caption", "negative_ids", "concreteness", "margin")


def write_tar(path: Path, images: Path, rows: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Write rows of captions whose images are there.

    Args:
        path: of the tar file. images: their folder.
        rows: filepath, title, neg_caption, query_id, negative_ids, and ratings if asked for.

    Returns:
        The rows that were written, by key and ids, and what was left out.
    """
    kept, drops = list[dict[str, Any]](), Counter[str]()
    with (
        atomic(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for row in rows.to_pylist():
            file = Path(join(images, row["filepath"]))
            kind = file.suffix.lower()
            if not file.is_file() or kind not in KINDS_OF_IMAGE:
                drops["unknown_image_kind" if file.is_file() else "no_image_file"] += 1
                continue
            row["key"] = f"{path.stem}_{len(kept):06d}"
            beside = {name: row[name] for name in TOLD_BESIDE if name in row}
            _add(tar, row["key"] + kind, file.read_bytes())
            _add(tar, f"{row['key']}.txt", row["title"].encode())
            _add(tar, f"{row['key']}.json", json.dumps(beside, ensure_ascii=False).encode())
            kept.append(row)
    schema = pa.schema(
        [rows.schema.field(name) for name in ("filepath", "query_id", "negative_ids")]
    )
    return pa.Table.from_pylist(kept, pa.schema([("key", pa.string()), *schema])), dict(drops)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of no owner and no time
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def image_sizes(run: Run, images: Path) -> str:
    """Return what stands for the images: which are there, and of how many bytes. To read them all
    would take as long as the export.
    """

    def size(path: str) -> int:
        file = Path(join(images, path))
        return file.stat().st_size if file.is_file() else -1

    listed = (run.read(run.IMAGES, key)["image"].to_pylist() for key in run.query_shards())
    return fingerprint([fingerprint([size(path) for path in paths]) for paths in listed])
