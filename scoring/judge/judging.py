"""What a judge judges, what of it was judged before, and the rows it writes.

A judge's stage grows with its sources (`Stage.grows`): another source, or one that was mined again,
and only pairs that no earlier run has judged are judged. Rows of pairs that no source has any more
are dropped, so that the result is that of judging all of them afresh.
"""

import numpy as np
import pyarrow as pa

from miner.engine import How
from miner.errors import UserError
from miner.options import Options
from miner.query_shard import SOURCES, Pairs, positive_rows
from miner.search.random_documents import MineRandom, mine_random
from miner.store import Run
from miner.tables import JUDGMENTS, conform

OVER_BUDGET = "over_budget"
# added to the ranks of sources that give no scores: a random document was never retrieved, whatever
# its rank
UNRANKED = 2**31


def judged_sources(run: Run, how: How) -> tuple[list[str], dict[str, str]]:
    """Return what a judge judges: the names of all finished sources, and the judge's inputs.
    `random` is drawn if it is not there.

    Raises:
        UserError: there are no tables, or a source is older than they are.
    """
    inputs = run.table_input()
    if run.find(f"{SOURCES}random") is None:
        mine_random(run, MineRandom(), how)
    names = run.names(SOURCES)
    return names, inputs | {
        f"{SOURCES}{name}": run.need_current(f"{SOURCES}{name}", f"mine {name}").fingerprint
        for name in names
    }


def judgments(
    pairs: Pairs,
    judge: str,
    score: np.ndarray,
    verdict: pa.Array | None = None,
    reason: pa.Array | None = None,
) -> pa.Table:
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
    """Return the pairs that a judge has yet to judge, and its rows of the others from before its
    sources changed.

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
    return pa.concat_tables(parts).sort_by(
        [("query_id", "ascending"), ("doc_id", "ascending"), ("judge", "ascending")]
    )


def best_ranks(run: Run, pairs: Pairs, sources: list[str], key: str) -> np.ndarray:
    """Return the best retrieval rank (p,) float64 of each pair over all sources; those of
    sources without scores come after all others.
    """
    ranks = np.full(len(pairs.row), np.inf)
    for source in sources:
        table = run.read(f"{SOURCES}{source}", key)
        query, row = positive_rows(pairs.corpus, pairs.query_ids, table)
        place = np.searchsorted(pairs.codes, query * len(pairs.corpus) + row)
        unranked = table["score"].is_null().to_numpy()
        np.minimum.at(
            ranks, place, table["rank"].to_numpy() + np.where(unranked, float(UNRANKED), 0.0)
        )
    return ranks


def best_of_each(pairs: Pairs, order: np.ndarray, most: int) -> np.ndarray:
    """Return a mask (p,) of the `most` pairs of each query with the least finite `order`, ties
    by doc_id.
    """
    ranked = np.lexsort((pairs.row, order, pairs.query))
    counts = np.bincount(pairs.query)
    out = np.zeros(len(order), bool)
    out[ranked] = np.arange(len(ranked)) - np.repeat(np.cumsum(counts) - counts, counts) < most
    return out & np.isfinite(order)


def check_name(name: str, kind: type[Options]) -> None:
    """Refuse a name for a judge that would be taken for another's.

    Args:
        name: as given.
        kind: the judge's options, whose default name it may have.

    Raises:
        UserError: it holds a dot, or is another judge's.
    """
    from scoring.judges import JUDGES

    if "." in name:
        raise UserError(
            f"--name {name!r} holds a dot, which parts a judge from its side scores; take a name"
            " without"
        )
    if name in JUDGES and name != kind.model_fields["name"].default:
        raise UserError(
            f"--name {name} is the name of another judge; take one that is none of"
            f" {', '.join(JUDGES)}"
        )
