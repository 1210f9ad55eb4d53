"""The documents of a run, read by row from memory-mapped Arrow: a corpus larger than memory is served.

Documents are stored in order of doc_id (as UTF-8 bytes), in shards of equal size. So a row number stands for a document, rows compare as
doc_ids do, and a tie broken by row is a tie broken by doc_id.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from miner.store import Run, shard_keys
from miner.tables import full_text

FOLDER = "1_tables/documents"
IDS = "1_tables/_doc_ids.npy"  # all doc_ids as fixed-width bytes, memory-mapped and searched


class Corpus:
    """The documents table of a run."""

    def __init__(self, run: Run):
        facts = run.tables().facts
        self.run, self.count, self.shard_size = run, int(facts["documents"]), int(facts["shard_documents"])
        self.keys = shard_keys(facts["document_shards"])

    def __len__(self) -> int:
        return self.count

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.load(self.run.path / IDS, mmap_mode="r")

    def shard(self, key: str) -> pa.Table:
        """Return one shard of documents without reading it: pages come in as rows are touched."""
        return pa.ipc.open_file(pa.memory_map(str(self.run.path / FOLDER / f"{key}.arrow"))).read_all()

    def shard_rows(self, key: str) -> np.ndarray:
        """Return the row numbers of a shard's documents."""
        start = int(key) * self.shard_size
        return np.arange(start, min(start + self.shard_size, self.count))

    def rows(self, doc_ids: Sequence[str | None]) -> np.ndarray:
        """Return the row of each doc_id as int64; -1 for an id that is not in the corpus."""
        wanted = np.array([(doc_id or "").encode() for doc_id in doc_ids] or [b""], dtype=bytes)[: len(doc_ids)]
        if self.count == 0:
            return np.full(len(doc_ids), -1)
        rows = np.searchsorted(self._ids, wanted)
        found = self._ids[np.minimum(rows, self.count - 1)] == wanted
        return np.where(found, rows, -1)

    def doc_ids(self, rows: np.ndarray) -> pa.Array:
        """Return the doc_ids of rows."""
        return pa.array(self._ids[rows], pa.binary()).cast(pa.string())

    def documents(self, rows: np.ndarray) -> pa.Table:
        """Return the documents of rows (int64, any order, repeats allowed), in that order."""
        shard, parts, order = rows // self.shard_size, [], []
        for number in np.unique(shard):
            places = np.flatnonzero(shard == number)
            parts.append(self.shard(self.keys[number]).take(pa.array(rows[places] - number * self.shard_size)))
            order.append(places)
        if not parts:
            return self.shard(self.keys[0]).slice(0, 0)
        return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(order), kind="stable")))

    def texts(self, rows: np.ndarray) -> list[str]:
        """Return title and text of rows, as encoders read them."""
        return texts_of(self.documents(rows))


def texts_of(documents: pa.Table) -> list[str]:
    """Return title and text of each document of a table."""
    return [full_text(title, text) for title, text in zip(documents["title"].to_pylist(), documents["text"].to_pylist(), strict=True)]
