"""The frame that all judges stand in: what is judged, what of it was judged before, and the rows
that are written.

A judge's stage grows with its sources (`Stage.grows`): another source, or one that was mined again,
and only pairs that no earlier run has judged are judged. Rows of pairs that no source has any more
are dropped, so that the result is that of judging all of them afresh.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from miner.engine import How
from miner.errors import UserError
from miner.options import Options
from miner.query_shard import Pairs, QueryShard
from miner.search.random_documents import MineRandom, mine_random
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run
from miner.tables import JUDGMENTS, conform

OVER_BUDGET = "over_budget"
# added to the ranks of sources that give no scores: a random document was never retrieved, whatever
# its rank
UNRANKED = 2**31


class Asked(NamedTuple):
    """What a judge is asked about one query shard.

    Attributes:
        shard: queries, positives, documents.
        pairs: the pairs to judge, p of them.
        sources: the names of all sources.
        before: the judge's rows from before its sources changed.
    """

    shard: QueryShard
    pairs: Pairs
    sources: list[str]
    before: pa.Table


# rows of judgments, and how many pairs were left out by which reason
Judged: TypeAlias = tuple[Iterable[pa.Table], Mapping[str, int]]
Judge: TypeAlias = Callable[[Asked], Judged]


class Judging(NamedTuple):
    """A judge at work in a run.

    Attributes:
        run: the run folder.
        name: of the judge, and of its folder.
        kind: the command that it is, if the name is another's.
        positives: whether it judges them too, beside the candidates.
        afresh: whether it is asked about all pairs each time, and finds what it knows itself.
    """

    run: Run
    name: str
    kind: str = ""
    positives: bool = True
    afresh: bool = False

    @property
    def folder(self) -> str:
        """Return the folder of its stage."""
        return f"{Run.JUDGES}/{self.name}"

    def carry_out(
        self,
        options: Options,
        how: How,
        prepare: Callable[[], Judge],
        inputs: Mapping[str, str] | None = None,
        model: str | None = None,
        facts: Callable[[], Mapping[str, Any]] = dict,
    ) -> Manifest:
        """Judge all pairs of all sources: candidates, positives -> 4_judgments/<name>. The source
        `random` is drawn if it is not there.

        Args:
            options: of the judge.
            how: force, workers, progress.
            prepare: gives what judges a shard (to be pickled); called if there is something to do.
            inputs: what it reads besides tables and candidates.
            model: fingerprint of its model.
            facts: what the manifest is to say besides.

        Raises:
            UserError: there are no tables, or a source is older than they are.
        """
        stage = Stage(
            self.folder,
            "judgments",
            options.record(),
            self.sources(how) | dict(inputs or {}),
            model=model,
            grows=f"{Run.SOURCES}/",
            made_by=f"judge {self.kind or self.name}",
        )
        keys = self.run.query_shards()
        return run_stage(
            self.run, stage, lambda: partial(_judge_shard, self, prepare()), keys, how, facts
        )

    def sources(self, how: How) -> dict[str, str]:
        """Return the inputs of every judge: the tables, and all finished sources."""
        run, inputs = self.run, self.run.table_input()
        if run.find(f"{run.SOURCES}/random") is None:
            mine_random(run, MineRandom(), how)
        stages = [
            run.need_current(f"{run.SOURCES}/{name}", f"mine {name}")
            for name in run.names(run.SOURCES)
        ]
        return inputs | {stage.stage: stage.fingerprint for stage in stages}

    def asked(self, key: str) -> Asked:
        """Return what there is to judge in a shard."""
        shard, sources = QueryShard(self.run, key), self.run.names(Run.SOURCES)
        before = self.run.read_before(self.folder, key)
        pairs = shard.pairs(sources, self.positives)
        return Asked(
            shard, pairs, sources, JUDGMENTS.schema.empty_table() if before is None else before
        )


def _judge_shard(judging: Judging, judge: Judge, key: str) -> Shard:
    asked = judging.asked(key)
    known = asked.before[:0]
    if not judging.afresh:
        codes, before = asked.pairs.codes, asked.shard.codes(*asked.shard.places(asked.before))
        known = asked.before.filter(pa.array(np.isin(before, codes)))
        asked = asked._replace(pairs=asked.pairs.take(~np.isin(codes, before)))
    rows, drops = judge(asked)
    order = [(name, "ascending") for name in ("query_id", "doc_id", "judge")]
    return Shard({key: pa.concat_tables([known, *rows]).sort_by(order)}, drops)


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


def within_budget(asked: Asked, most: int | None, order: np.ndarray | None = None) -> np.ndarray:
    """Return which pairs are judged (p,): positives, and of each query the `most` others with the
    least order, ties by doc_id.

    Args:
        asked: the pairs.
        most: None is no limit.
        order: (p,) float64; None is the best retrieval rank over all sources, where those of
            sources without scores come after all others.
    """
    pairs = asked.pairs
    if most is None:
        return np.ones(len(pairs), bool)
    order = np.where(pairs.positive, np.inf, _best_ranks(asked) if order is None else order)
    ranked = np.lexsort((pairs.row, order, pairs.query))
    counts = np.bincount(pairs.query)
    out = np.zeros(len(order), bool)
    out[ranked] = np.arange(len(ranked)) - np.repeat(np.cumsum(counts) - counts, counts) < most
    return pairs.positive | (out & np.isfinite(order))


def _best_ranks(asked: Asked) -> np.ndarray:
    shard, codes = asked.shard, asked.pairs.codes
    ranks = np.full(len(codes), np.inf)
    for source in asked.sources:
        table = shard.run.read(f"{Run.SOURCES}/{source}", shard.key)
        unranked = np.where(table["score"].is_null().to_numpy(), float(UNRANKED), 0.0)
        place = np.searchsorted(codes, shard.codes(*shard.places(table)))
        np.minimum.at(ranks, place, table["rank"].to_numpy() + unranked)
    return ranks


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
