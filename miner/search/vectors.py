"""documents, queries -> vectors: a dense index, and what reads it.

An index is a folder of memory-mapped arrays of unit vectors, one a shard: `documents/00000.npy`,
`queries/00000.npy`.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from miner.corpus import Corpus, texts_of
from miner.engine import How
from miner.models.encoder import encoder_facts, encoder_fingerprint, load_encoder
from miner.models.hub import Encoder, gpu_count
from miner.options import NAME, option
from miner.search.rounding import Block
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run


class IndexDense(Encoder):
    """Dense index: the vectors of all documents and queries."""

    name: str = option("dense", "name of the index, for more than one", pattern=NAME)


def index_dense(run: Run, options: IndexDense, how: How) -> Manifest:
    """Encode all documents and queries, with a worker for each GPU: documents, queries ->
    2_index/<name>.
    """
    stage = Stage(
        f"{run.INDEXES}/{options.name}",
        "documents",
        options.record(),
        run.table_input(),
        model=encoder_fingerprint(options),
        made_by="index dense",
    )
    keys = [f"documents/{key}" for key in Corpus(run).keys] + [
        f"queries/{key}" for key in run.query_shards()
    ]
    facts = {"kind": "dense", **encoder_facts(options)}
    how = replace(how, workers=max(how.workers, gpu_count(options)))
    return run_stage(
        run, stage, lambda: partial(_encode_shard, run, options), keys, how, lambda: facts
    )


def _encode_shard(run: Run, options: IndexDense, key: str) -> Shard:
    encode = load_encoder(options)
    table, _, shard = key.partition("/")
    if table == "documents":
        return Shard({key: encode(texts_of(Corpus(run).shard(shard)), "document")})
    return Shard({key: encode(run.read(run.QUERIES, shard)["text"].to_pylist(), "query")})


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
    those of this encoder, or None.
    """
    model, tables = encoder_fingerprint(options), run.tables().fingerprint
    for name in run.names(run.INDEXES):
        index = run.find(f"{run.INDEXES}/{name}")
        if index and index.model == model and index.inputs.get(run.TABLES) == tables:
            return name
    return None
