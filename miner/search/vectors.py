"""What reads a dense index.

An index is a folder of memory-mapped arrays of unit vectors, one a shard: `documents/00000.npy`,
`queries/00000.npy`.
"""

from functools import partial

import numpy as np

from miner.corpus import Corpus
from miner.models.encoder import encoder_fingerprint, load_encoder
from miner.models.hub import Encoder
from miner.search.rounding import Block
from miner.store import Run


class Vectors:
    """The vectors of a dense index, memory-mapped."""

    def __init__(self, run: Run, name: str):
        self.folder, self.corpus = run.path / run.INDEXES / name, Corpus(run)

    def block(self, key: str) -> np.ndarray:
        """Return the vectors (m, d) float32 of a document shard."""
        return np.load(self.folder / "documents" / f"{key}.npy", mmap_mode="r")

    def blocks(self) -> list[Block]:
        """Return what reads the vectors of all document shards, in order."""
        return [
            (int(key) * self.corpus.shard_size, partial(self.block, key))
            for key in self.corpus.keys
        ]

    def queries(self, key: str) -> np.ndarray:
        """Return the vectors (n, d) float32 of a query shard."""
        return np.load(self.folder / "queries" / f"{key}.npy", mmap_mode="r")

    def documents(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors (p, d) float32 of documents, by row of the corpus."""
        out = np.empty((len(rows), self.block(self.corpus.keys[0]).shape[1]), np.float32)
        shard = rows // self.corpus.shard_size
        for number in np.unique(shard):
            here = shard == number
            out[here] = self.block(self.corpus.keys[number])[
                rows[here] - number * self.corpus.shard_size
            ]
        return out


def document_vectors(run: Run, index: str, documents: Corpus, rows: np.ndarray) -> np.ndarray:
    """Return the vectors (p, d) float32 of documents by row: the index's own; made ones are encoded
    now, as the index was.
    """
    vectors, made = Vectors(run, index), documents.is_made(rows)
    if not made.any():
        return vectors.documents(rows)
    options = run.need(f"{run.INDEXES}/{index}", "index dense").options
    encode = load_encoder(
        Encoder(**{name: value for name, value in options.items() if name in Encoder.model_fields})
    )
    encoded = encode(documents.texts(rows[made]), "document")
    out = np.empty((len(rows), encoded.shape[1]), np.float32)
    out[made], out[~made] = encoded, vectors.documents(rows[~made])
    return out


def find_index(run: Run, options: Encoder) -> str | None:
    """Return the name of a finished dense index of the tables as they are now, whose vectors are
    those of this encoder and of documents' own texts, or None.
    """
    model, tables = encoder_fingerprint(options), run.tables().fingerprint
    for name in run.names(run.INDEXES):
        index = run.find(f"{run.INDEXES}/{name}")
        if index is None or index.options.get("view"):
            continue
        if index.model == model and index.inputs.get(run.TABLES) == tables:
            return name
    return None
