"""The catalogue of sources: what `quarry mine NAME` runs.

A source is one file with a plain function (run, options, how) -> Manifest and its options class,
and one line here. Other packages add theirs through entry points of the group "quarry.sources".
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from miner.errors import UserError
from miner.options import Options


class Part:
    """A source, a judge or another step. Nothing of it is imported until it is asked for.

    Args:
        where: of its function, as "module:function".
        about: its line in a list of commands.
        kind: where its options class stands, if the function's annotation does not say.
        dry: of the function that says what would come of it, for --dry-run.
    """

    def __init__(self, where: str, about: str, kind: str | None = None, dry: str | None = None):
        self.where, self.about, self.kind, self.dry = where, about, kind, dry

    @property
    def function(self) -> Callable[..., Any]:
        """Import and return the function."""
        return _imported(self.where)

    @property
    def preview(self) -> Callable[..., dict[str, Any]]:
        """Import and return what says what would come of it."""
        return _imported(self.dry or "")

    @property
    def options(self) -> type[Options]:
        """Import and return the class of its options, as the function's `options` is annotated."""
        return _imported(self.kind) if self.kind else get_type_hints(self.function)["options"]


def _imported(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def with_others(own: Mapping[str, Part], group: str) -> dict[str, Part]:
    """Return a catalogue and, after it, what other packages register.

    Raises:
        UserError: a package registers a name that is taken.
    """
    found = dict(own)
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        package = entry.dist.name if entry.dist else "another package"
        if entry.name in found:
            raise UserError(
                f"{package} registers {entry.name!r} in {group}, which is taken; uninstall it"
            )
        found[entry.name] = Part(entry.value, f"From {package}.")
    return found


SOURCES = {
    "bm25": Part("miner.search.bm25:mine_bm25", "BM25 candidates, with the scores of rank-bm25."),
    "dense": Part("miner.search.dense:mine_dense", "Dense candidates: search by inner product."),
    "random": Part(
        "miner.search.random_documents:mine_random",
        "Random documents: the source that always exists.",
    ),
    "substitute": Part(
        "miner.words.substitute:mine_substitute",
        "Made negatives: a positive with one word changed.",
    ),
    "polarity": Part("miner.words.polarity:mine_polarity", "Made negatives: a caption negated."),
    "in-document": Part(
        "miner.words.in_document:mine_in_document", "Made negatives: other spans of a positive."
    ),
    "gloss": Part("miner.search.gloss:mine_gloss", "Glosses of other senses of the query's word."),
    "generate": Part(
        "miner.llm.generate:mine_generate",
        "Made negatives, written by a language model.",
        dry="miner.llm.generate:preview_generate",
    ),
    # last: a plan is in this order, and it reads other sources
    "cross-encoder": Part(
        "miner.search.cross_encoder:mine_cross_encoder", "The best of what other sources found."
    ),
}
