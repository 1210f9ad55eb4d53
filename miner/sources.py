"""The catalogue of sources: what `quarry mine NAME` runs.

A source is one file with a plain function (run, options, how) -> Manifest, its options class, and
one line here.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from miner.options import (
    MineBm25,
    MineCrossEncoder,
    MineDense,
    MineGenerate,
    MineRandom,
    MineSubstitute,
    Options,
)


class Part(NamedTuple):
    """A source, a judge or another step: its options, and where its function is, as
    "module:function", imported when it is called.
    """

    options: type[Options]
    where: str

    def load(self) -> Callable[..., Any]:
        """Import and return the function."""
        module, _, function = self.where.partition(":")
        return getattr(import_module(module), function)


SOURCES = {
    "bm25": Part(MineBm25, "miner.search.bm25:mine_bm25"),
    "dense": Part(MineDense, "miner.search.dense:mine_dense"),
    "random": Part(MineRandom, "miner.search.random_documents:mine_random"),
    "substitute": Part(MineSubstitute, "miner.words.substitute:mine_substitute"),
    "generate": Part(MineGenerate, "miner.llm.generate:mine_generate"),
    "cross-encoder": Part(
        MineCrossEncoder, "miner.search.cross_encoder:mine_cross_encoder"
    ),  # last: a plan is in this order, and it reads other sources
}
