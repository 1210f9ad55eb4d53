"""Every step of the flow that a command carries out, in flow order."""

from functools import cache
from typing import NamedTuple

from miner.errors import UserError
from miner.sources import SOURCES, Part, with_others
from scoring.judges import JUDGES

STAGES = ("ingest", "index", "mine", "judge", "tune", "select", "score", "report", "export")


class Step(NamedTuple):
    """One command: `stage name`, or `stage` alone where there is but one (its section in
    quarry.toml may then be one for each set).
    """

    stage: str
    name: str | None
    part: Part

    @property
    def title(self) -> str:
        """Return the command's words."""
        return f"{self.stage} {self.name}" if self.name else self.stage


def _format(where: str, about: str) -> Part:
    return Part("miner.ingest.auto:ingest_any", about, where)


FORMATS = {
    "auto": _format("miner.ingest.auto:IngestAuto", "Looks what it is, says so, and does that."),
    "beir": _format("miner.ingest.formats:IngestBeir", "BEIR folder: corpus, queries, qrels."),
    "pairs": _format("miner.ingest.pairs:IngestPairs", "Queries with positives in one file."),
    "trec": _format("miner.ingest.trec:IngestTrec", "TREC corpus, topics, qrels and run files."),
    "tables": _format(
        "miner.ingest.three_tables:IngestTables", "Documents, queries, positives: a file each."
    ),
    "captions": _format(
        "miner.ingest.pairs:IngestCaptions", "Captions: each is a query and its own positive."
    ),
    "crops": _format(
        "miner.ingest.crops:IngestCrops", "A corpus; spans of its documents are the queries."
    ),
    "pseudo-queries": _format(
        "miner.llm.pseudo_queries:IngestPseudoQueries", "A corpus; a model writes its queries."
    ),
    "stdlib": _format("miner.ingest.stdlib:IngestStdlib", "Python's own standard library."),
}
INDEXES = {
    "bm25": Part("miner.search.bm25:index_bm25", "Which words stand in which document."),
    "dense": Part("miner.search.dense_index:index_dense", "Vectors of all documents and queries."),
}
SINGLE = {
    "tune": Part("scoring.tune:tune", "Search recipes for the highest coverage."),
    "select": Part(
        "scoring.select:select",
        "A recipe: which candidates become negatives.",
        dry="scoring.select:preview",
    ),
    "score": Part("scoring.score:score", "ECI and its parts; retrieval quality of sources."),
    "report": Part("scoring.report:report", "One self-contained page."),
    "export": Part("scoring.export:export", "A set as a trainer reads it."),
}


@cache
def steps_of(stage: str) -> tuple[Step, ...]:
    """Return the steps of a stage: those of the house, then those of other packages."""
    if stage in SINGLE:
        return (Step(stage, None, SINGLE[stage]),)
    parts = {
        "ingest": lambda: FORMATS,
        "index": lambda: INDEXES,
        "mine": lambda: with_others(SOURCES, "quarry.sources"),
        "judge": lambda: with_others(JUDGES, "quarry.judges"),
    }[stage]()
    return tuple(Step(stage, name, part) for name, part in parts.items())


def step_of(stage: str, name: str | None = None) -> Step:
    """Return one step of a stage.

    Raises:
        UserError: there is none of this name.
    """
    found = {step.name: step for step in steps_of(stage)}
    if name not in found:
        names = ", ".join(str(one) for one in found)
        raise UserError(f"{stage}: there is no {name!r}; expected one of {names}")
    return found[name]


def steps() -> tuple[Step, ...]:
    """Return all steps in flow order."""
    return tuple(step for stage in STAGES for step in steps_of(stage))
