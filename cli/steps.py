"""Every step of the flow that a command carries out, in flow order."""

from typing import NamedTuple

from miner import options as mining
from miner.sources import SOURCES, Part
from scoring import options as weighing
from scoring.judges import JUDGES

STAGES = ("ingest", "index", "mine", "judge", "select", "score", "report", "export")


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


INGEST: dict[str, type[mining.Options]] = {
    "beir": mining.Beir,
    "pairs": mining.Pairs,
    "trec": mining.Trec,
    "captions": mining.Captions,
    "pseudo-queries": mining.PseudoQueries,
    "stdlib": mining.Stdlib,
}
INDEXES = {
    "bm25": Part(mining.IndexBm25, "miner.search.bm25:index_bm25"),
    "dense": Part(mining.IndexDense, "miner.search.dense:index_dense"),
}
STEPS = [
    *(
        Step("ingest", name, Part(kind, "miner.ingest.ingest:ingest"))
        for name, kind in INGEST.items()
    ),
    *(Step("index", name, part) for name, part in INDEXES.items()),
    *(Step("mine", name, part) for name, part in SOURCES.items()),
    *(Step("judge", name, part) for name, part in JUDGES.items()),
    Step("select", None, Part(weighing.Select, "scoring.select:select")),
    Step("score", None, Part(weighing.Score, "scoring.score:score")),
    Step("report", None, Part(weighing.Report, "scoring.report:report")),
    Step("export", None, Part(weighing.Export, "scoring.export:export")),
]
