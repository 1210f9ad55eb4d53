"""The catalogue of judges: what `quarry judge NAME` runs.

A judge is one file with a plain function (run, options, how) -> Manifest, its options class, and one line here.
"""

from miner.sources import Part
from scoring.options import JudgeDuplicates, JudgeSimilarity

JUDGES = {
    "similarity": Part(JudgeSimilarity, "scoring.similarity:judge_similarity"),
    "duplicates": Part(JudgeDuplicates, "scoring.duplicates:judge_duplicates"),
}
