"""The documents of a run, read by row from memory-mapped Arrow: a corpus larger than memory is
served.

Documents are stored in order of doc_id (as UTF-8 bytes), in shards of equal size. So a row number
stands for a document, rows compare as doc_ids do, and a tie broken by row is a tie broken by
doc_id.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner.normal import text_hashes
from miner.store import Run, shard_keys
from miner.tables import MADE, full_text

MADE_DOCUMENTS = "_documents"  # beside the candidates of the source that made them
# documents, in columns whose texts may be more than 2 GiB
LARGE = pa.schema(
    [("doc_id", pa.string()), ("title", pa.large_string()), ("text", pa.large_string())]
)
TEXT_HASHES = f"{Run.TABLES}/_text_hashes.npy"
IDS = f"{Run.TABLES}/_doc_ids.npy"  # all doc_ids as fixed-width bytes, memory-mapped and searched


class Corpus:
    """The documents table of a run."""

    def __init__(self, run: Run):
        facts = run.tables().facts
        self.run, self.count, self.shard_size = (
            run,
            int(facts["documents"]),
            int(facts["shard_documents"]),
        )
        self.keys = shard_keys(facts["document_shards"])

    def __len__(self) -> int:
        return self.count

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.load(self.run.path / IDS, mmap_mode="r")

    def is_made(self, rows: np.ndarray) -> np.ndarray:
        """Return which rows are made documents."""
        return rows >= self.count

    def shard(self, key: str) -> pa.Table:
        """Return one shard of documents without reading it: pages come in as rows are touched."""
        return pa.ipc.open_file(
            pa.memory_map(str(self.run.path / Run.DOCUMENTS / f"{key}.arrow"))
        ).read_all()

    def shard_rows(self, key: str) -> np.ndarray:
        """Return the row numbers of a shard's documents."""
        start = int(key) * self.shard_size
        return np.arange(start, min(start + self.shard_size, self.count))

    def rows(self, doc_ids: Sequence[str | None]) -> np.ndarray:
        """Return the row of each doc_id as int64; -1 for an id that is not in the corpus."""
        out, size = np.full(len(doc_ids), -1), self._ids.dtype.itemsize
        encoded = [(doc_id or "").encode() for doc_id in doc_ids]
        # an id that is longer than all of the corpus is none of them; to compare it, NumPy would
        # copy them all
        places = np.array([at for at, one in enumerate(encoded) if len(one) <= size], np.int64)
        if self.count and len(places):
            wanted = np.array([encoded[at] for at in places], self._ids.dtype)
            rows = np.searchsorted(self._ids, wanted)
            found = self._ids[np.minimum(rows, self.count - 1)] == wanted
            out[places] = np.where(found, rows, -1)
        return out

    @cached_property
    def _text_hashes(self) -> np.ndarray:
        return np.load(self.run.path / TEXT_HASHES, mmap_mode="r")

    def text_hashes(self, rows: np.ndarray) -> np.ndarray:
        """Return 64 bits that stand for the text of each row in normal form, uint64."""
        return self._text_hashes[rows]

    def doc_ids(self, rows: np.ndarray) -> pa.Array:
        """Return the doc_ids of rows."""
        return pa.array(self._ids[rows], pa.binary()).cast(pa.string())

    def documents(self, rows: np.ndarray) -> pa.Table:
        """Return the documents of rows (int64, any order, repeats allowed), in that order; their
        texts may be more than the 2 GiB that a plain column of strings can hold.
        """
        shard = rows // self.shard_size
        parts, order = [LARGE.empty_table()], [np.empty(0, np.int64)]
        for number in np.unique(shard):
            places = np.flatnonzero(shard == number)
            here = pa.array(rows[places] - number * self.shard_size)
            parts.append(self.shard(self.keys[number]).cast(LARGE).take(here))
            order.append(places)
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(parts).take(pa.array(back))

    def texts(self, rows: np.ndarray) -> list[str]:
        """Return title and text of rows, as encoders read them."""
        return texts_of(self.documents(rows))


def texts_of(documents: pa.Table) -> list[str]:
    """Return title and text of each document of a table."""
    return [
        full_text(title, text)
        for title, text in zip(
            documents["title"].to_pylist(), documents["text"].to_pylist(), strict=True
        )
    ]


def made_documents(run: Run, key: str) -> pa.Table:
    """Return what all finished sources made for a query shard, in order of doc_id; what two
    sources made alike stands once.
    """
    folders = [run.path / run.SOURCES / name / MADE_DOCUMENTS for name in run.names(run.SOURCES)]
    files = [file for folder in folders if (file := folder / f"{key}.parquet").exists()]
    parts = [pq.read_table(file, partitioning=None) for file in files]
    table = pa.concat_tables([MADE.schema.empty_table(), *parts]).sort_by("doc_id").combine_chunks()
    again = pc.equal(table["doc_id"][1:], table["doc_id"][:-1]).to_numpy()
    return table.filter(pa.array(np.append(True, ~again)[: len(table)]))


class Documents(Corpus):
    """The documents of a run, rows 0 to `count` - 1, and those made for one query shard, from
    row `count` on.
    """

    def __init__(self, run: Run, key: str):
        super().__init__(run)
        self.made = made_documents(run, key)

    def __len__(self) -> int:
        return self.count + len(self.made)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {
            doc_id: self.count + place
            for place, doc_id in enumerate(self.made["doc_id"].to_pylist())
        }

    def rows(self, doc_ids: Sequence[str | None]) -> np.ndarray:
        """Return the row of each doc_id as int64; -1 for an id that is neither in the corpus nor
        made.
        """
        rows = super().rows(doc_ids)
        if len(self.made):
            for place in np.flatnonzero(rows < 0).tolist():
                rows[place] = self._place.get(doc_ids[place] or "", -1)
        return rows

    @cached_property
    def _made_hashes(self) -> np.ndarray:
        return text_hashes(self.made["text"].to_pylist())

    def text_hashes(self, rows: np.ndarray) -> np.ndarray:
        """Return 64 bits that stand for the text of each row in normal form, uint64."""
        made = self.is_made(rows)
        if not made.any():
            return super().text_hashes(rows)
        out = np.empty(len(rows), np.uint64)
        out[~made] = super().text_hashes(rows[~made])
        out[made] = self._made_hashes[rows[made] - self.count]
        return out

    def doc_ids(self, rows: np.ndarray) -> pa.Array:
        """Return the doc_ids of rows."""
        made = self.is_made(rows)
        if not made.any():
            return super().doc_ids(rows)
        own = self.made["doc_id"].combine_chunks().take(pa.array(rows[made] - self.count))
        both = pa.concat_arrays([super().doc_ids(rows[~made]), own])
        return both.take(pa.array(np.argsort(np.argsort(made, kind="stable"))))

    def documents(self, rows: np.ndarray) -> pa.Table:
        """Return the documents of rows (int64, any order, repeats allowed), in that order; made
        ones have no title.
        """
        made = self.is_made(rows)
        if not made.any():
            return super().documents(rows)
        taken = self.made.take(pa.array(rows[made] - self.count))
        titles = pa.array([""] * len(taken), pa.large_string())
        titled = pa.table([taken["doc_id"], titles, taken["text"].cast(pa.large_string())], LARGE)
        both = pa.concat_tables([super().documents(rows[~made]), titled])
        return both.take(pa.array(np.argsort(np.argsort(made, kind="stable"))))
