"""Pairs of a set -> TREC files: qrels.trec of the positives, run.trec of the negatives."""

from collections.abc import Sequence
from pathlib import Path

from scoring.pairs import negatives_of, positives_of, ranked_by_judge, scores_told, write_parts

QREL = "{query_id} 0 {doc_id} {relevance}\n"
RUN_LINE = "{query_id} Q0 {doc_id} {rank} {score} "


def write_trec(folder: Path, keys: Sequence[str], tag: str) -> dict[str, object]:
    """Write both files; return what the manifest is to say."""
    judged = ranked_by_judge(folder, keys)
    positives = (QREL.format(**row) for row in positives_of(folder, keys))
    negatives = (RUN_LINE.format(**row) for row in negatives_of(folder, keys, judged))
    write_parts(folder / "qrels.trec", positives)
    write_parts(folder / "run.trec", (f"{line}{tag}\n" for line in negatives))
    return scores_told(judged)
