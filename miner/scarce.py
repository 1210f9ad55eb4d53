"""A stage that found little says so: one line with the reason, and the flag that helps."""

from collections.abc import Mapping

import pyarrow.compute as pc

from miner.store import Run

LITTLE = 0.1  # share of queries that may go without before it is said
HINTS = {
    "mine bm25": (
        "none of their words is in the index, or all that match score 0: see --token-pattern and"
        " --bigrams of `quarry index bm25`, and --variant plus"
    ),
    "ingest trec": "the run file has no line for them that names a document of the corpus",
    "ingest pairs": "no negative of their own is given",
    "mine substitute": "no word of their texts could be replaced: see --min-rating and --route",
    "mine generate": "see what was left out, and the texts that failed in _failed",
}


def warnings_of(
    run: Run, folder: str, made_by: str, rows: int, drops: Mapping[str, int]
) -> list[str]:
    """Return what there is to say of a stage of candidates or of a set that left many queries with
    nothing.

    Args:
        run, folder: the stage.
        made_by: the command that made it.
        rows: in its main table.
        drops: what it left out.
    """
    is_set = folder.startswith(run.SETS)
    if not (is_set or folder.startswith(run.SOURCES)):
        return []
    queries = int(run.tables().facts["queries"])
    found = sum(
        pc.count_distinct(run.read(folder, key, ["query_id"])["query_id"].cast("string")).as_py()
        for key in run.query_shards()
    )
    without = queries - found
    if without <= LITTLE * queries and rows:
        return []
    said = f"{without:,} of {queries:,} queries have no {'negative' if is_set else 'candidate'}"
    rules = {reason: count for reason, count in drops.items() if reason != "positive"}
    most = max(rules, key=lambda reason: rules[reason], default=None)
    if is_set and most:
        hint = f"most candidates are left out as {most} ({drops[most]:,}): loosen that rule, or add"
        hint += " a source"
    else:
        hint = HINTS.get(made_by, "take another source beside it, or a larger -k")
    return [f"{said}: {hint}"]
