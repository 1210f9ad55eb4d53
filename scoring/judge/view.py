"""candidates + a dense index -> judgments: cosine of query and document in another view, such as
one facet of the documents (after Ideation Space: near in one facet, far in another).
"""

from functools import partial

import numpy as np

from miner.engine import How
from miner.options import NAME, Options, option
from miner.search.topk import dots
from miner.search.vectors import Vectors, document_vectors
from miner.store import Manifest, Run
from scoring.judge.judging import Asked, Judged, Judging, check_name, judgments


class JudgeView(Options):
    """Cosine by the vectors of a dense index, of any view and encoder."""

    name: str = option("view", "name of the judge, for more than one", pattern=NAME)
    index: str = option(..., "dense index whose vectors are compared")


def judge_view(run: Run, options: JudgeView, how: How) -> Manifest:
    """Judge all pairs of all sources: candidates, positives + index -> 4_judgments/<name>.

    Raises:
        UserError: there is no such dense index, or the name is another judge's.
    """
    run.tables()
    check_name(options.name, JudgeView)
    index = run.need_index(options.index, "dense")
    task = partial(_compare_views, options)
    inputs = {index.stage: index.fingerprint}
    return Judging(run, options.name, "view").carry_out(options, how, lambda: task, inputs)


def _compare_views(options: JudgeView, asked: Asked) -> Judged:
    shard, pairs = asked.shard, asked.pairs
    rows, place = np.unique(pairs.row, return_inverse=True)
    queries = np.ascontiguousarray(Vectors(shard.run, options.index).queries(shard.key))
    documents = document_vectors(shard.run, options.index, shard.documents, rows)
    return [judgments(pairs, options.name, dots(queries, pairs.query, documents, place))], {}
