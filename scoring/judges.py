"""The catalogue of judges: what `quarry judge NAME` runs.

A judge is one file with a plain function (run, options, how) -> Manifest, its options class, and
one line here.
"""

from miner.sources import Part
from scoring.options import (
    JudgeCrossEncoder,
    JudgeDuplicates,
    JudgeLlm,
    JudgeOverlap,
    JudgeSimilarity,
)

JUDGES = {
    "similarity": Part(JudgeSimilarity, "scoring.judge.similarity:judge_similarity"),
    "cross-encoder": Part(JudgeCrossEncoder, "scoring.judge.cross_encoder:judge_cross_encoder"),
    "llm": Part(JudgeLlm, "scoring.judge.llm:judge_llm"),
    "duplicates": Part(JudgeDuplicates, "scoring.judge.duplicates:judge_duplicates"),
    "overlap": Part(JudgeOverlap, "scoring.judge.overlap:judge_overlap"),
}
