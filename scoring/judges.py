"""The catalogue of judges: what `quarry judge NAME` runs.

A judge is one file with a plain function (run, options, how) -> Manifest and its options class, and
one line here. Other packages add theirs through entry points of the group "quarry.judges".
"""

from miner.sources import Part

JUDGES = {
    "similarity": Part(
        "scoring.judge.similarity:judge_similarity",
        "Cosine to the query and to the nearest positive.",
    ),
    "cross-encoder": Part(
        "scoring.judge.cross_encoder:judge_cross_encoder", "The score of a cross-encoder."
    ),
    "llm": Part(
        "scoring.judge.llm:judge_llm",
        "p(yes) of a language model that a document answers its query.",
        dry="scoring.judge.llm:preview_llm",
    ),
    "duplicates": Part(
        "scoring.judge.duplicates:judge_duplicates",
        "Copies of a positive or the query, and what is tied to a positive.",
    ),
    "overlap": Part(
        "scoring.judge.overlap:judge_overlap", "The share of a query's words that a document has."
    ),
    "image": Part(
        "scoring.judge.image:judge_image", "How well a caption fits the image of its query."
    ),
    "view": Part(
        "scoring.judge.view:judge_view", "Cosine by another dense index, such as of one facet."
    ),
}
