"""documents, queries -> vectors: a dense index."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from miner.corpus import Corpus
from miner.engine import How
from miner.models.encoder import encoder_facts, encoder_fingerprint, load_encoder
from miner.models.hub import Encoder, gpu_count
from miner.options import NAME, VIEW, option
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.views import shard_texts, view_input, write_view


class IndexDense(Encoder):
    """Dense index: the vectors of all documents and queries."""

    name: str = option("dense", "name of the index, for more than one", pattern=NAME)
    view: str | None = option(None, VIEW)


def index_dense(run: Run, options: IndexDense, how: How) -> Manifest:
    """Encode all documents and queries, with a worker for each GPU: documents, queries ->
    2_index/<name>.
    """
    stage = Stage(
        f"{run.INDEXES}/{options.name}",
        "documents",
        options.record(),
        run.table_input() | view_input(options.view),
        model=encoder_fingerprint(options),
        made_by="index dense",
    )

    def prepare() -> partial[Shard]:
        write_view(options.view, run.path / stage.folder)
        return partial(_encode_shard, run, options, run.path / stage.folder)

    keys = [f"documents/{key}" for key in Corpus(run).keys] + [
        f"queries/{key}" for key in run.query_shards()
    ]
    facts = {"kind": "dense", **encoder_facts(options)}
    how = replace(how, workers=max(how.workers, gpu_count(options)))
    return run_stage(run, stage, prepare, keys, how, lambda: facts)


def _encode_shard(run: Run, options: IndexDense, folder: Path, key: str) -> Shard:
    encode = load_encoder(options)
    table, _, shard = key.partition("/")
    if table == "documents":
        return Shard({key: encode(shard_texts(run, options.view, folder, shard), "document")})
    return Shard({key: encode(run.read(run.QUERIES, shard)["text"].to_pylist(), "query")})
