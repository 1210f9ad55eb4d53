"""What a judge judges, what of it was judged before, and the rows it writes.

A judge's stage grows with its sources (`Stage.grows`): another source, or one that was mined again, and only pairs that no earlier run has
judged are judged. Rows of pairs that no source has any more are dropped, so that the result is that of judging all of them afresh.
"""

import numpy as np
import pyarrow as pa

from miner.engine import How
from miner.options import MineRandom
from miner.pairs import SOURCES, Pairs
from miner.random_documents import mine_random
from miner.store import Run
from miner.tables import JUDGMENTS, conform


def judged_sources(run: Run, how: How) -> tuple[list[str], dict[str, str]]:
    """Return what a judge judges: the names of all finished sources, and the judge's inputs. `random` is drawn if it is not there.

    Raises:
        UserError: there are no tables, or a source is older than they are.
    """
    inputs = {"1_tables": run.tables().fingerprint}
    if run.find(f"{SOURCES}random") is None:
        mine_random(run, MineRandom(), how)
    names = run.names(SOURCES)
    return names, inputs | {f"{SOURCES}{name}": run.need_current(f"{SOURCES}{name}", f"mine {name}").fingerprint for name in names}


def judgments(pairs: Pairs, judge: str, score: np.ndarray, verdict: pa.Array | None = None, reason: pa.Array | None = None) -> pa.Table:
    """Return rows of `judgments`, one for each pair; nan is a null score.

    Args:
        pairs: p of them.
        judge: name of the judge.
        score: (p,).
        verdict: (p,) strings; None is no verdict.
        reason: (p,) strings; None is none.
    """
    nothing, (query_id, doc_id) = pa.nulls(len(score), pa.string()), pairs.ids()
    columns = {
        "query_id": query_id,
        "doc_id": doc_id,
        "judge": pa.array(np.full(len(score), judge), pa.string()),
        "score": pa.array(score.astype(np.float32), mask=np.isnan(score)),
        "verdict": nothing if verdict is None else verdict,
        "reason": nothing if reason is None else reason,
    }
    return conform(pa.table(columns), JUDGMENTS)


def only_new(run: Run, folder: str, key: str, pairs: Pairs) -> tuple[Pairs, pa.Table]:
    """Return the pairs that a judge has yet to judge, and its rows of the others from before its sources changed.

    Args:
        run: the run folder.
        folder: the judge's stage.
        key: the shard.
        pairs: all that it is asked.
    """
    before = run.read_before(folder, key)
    if before is None:
        return pairs, JUDGMENTS.schema.empty_table()
    codes, asked = pairs.codes_of(before), pairs.codes
    return pairs.take(~np.isin(asked, codes)), before.filter(pa.array(np.isin(codes, asked)))


def in_order(*parts: pa.Table) -> pa.Table:
    """Return judgments in order of query, document and judge."""
    return pa.concat_tables(parts).sort_by([("query_id", "ascending"), ("doc_id", "ascending"), ("judge", "ascending")])
