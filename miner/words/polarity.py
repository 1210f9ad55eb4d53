"""captions -> made documents and candidates: the caption negated, or as a control changed as much
and still true (after PA-CCS, polarity-aware sentence similarity; the rules are **ours**).

By rules, the first that fits: a negation goes; an auxiliary gets a "not"; "there is a" becomes
"there is no"; a first "a", "an", "the" or "some" becomes "no". The placebo puts a word that changes
nothing at the same place, so that what a model learns of "not" can be told from what it learns of
any added word. The artefact probe finds inserted negations at sight: weigh these sets by it.
"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple

from miner.engine import How
from miner.errors import UserError
from miner.made import Negative, made_shard
from miner.options import NAME, Options, option
from miner.query_shard import originals_of
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run

AUXILIARY = r"(?:is|are|was|were|am|can|could|will|would|should|may|might|must)"
# pattern, what stands there of the negated text, of the placebo; the placebo of a negation that
# goes is another negation
RULES = (
    (re.compile(rf"\b({AUXILIARY}) not (any )?", re.I), r"\1 ", r"\1 certainly not \2"),
    (re.compile(r"\b(is|are|was|were|could|would|should)n't ", re.I), r"\1 ", r"\1 certainly not "),
    (re.compile(r"\b(there (?:is|are)) no ", re.I), r"\1 some ", r"\1 certainly no "),
    (re.compile(r"^(?:no) (?=\w)", re.I), "Some ", "Certainly no "),
    (re.compile(r"\b(there (?:is|are)) (an?|some|the) ", re.I), r"\1 no ", r"\1 certainly \2 "),
    (re.compile(rf"\b({AUXILIARY}) ", re.I), r"\1 not ", r"\1 certainly "),
    (re.compile(r"^(a)n?( )(?=\w)", re.I), "No ", r"\1\2certain "),
    (re.compile(r"^(the|some|one) (?=\w)", re.I), "No ", r"\1 certain "),
)


class MinePolarity(Options):
    """Made negatives: a caption negated, or with a word that changes nothing as a control."""

    name: str = option("polarity", "name of the source", pattern=NAME)
    edit: Literal["negation", "placebo"] = option(
        "negation", "placebo: as much is changed, and the text stays true"
    )
    retrieval: bool = option(
        False, "also where queries are no captions: there an opposite claim may be as relevant"
    )


class Turned(NamedTuple):
    """A text whose polarity was turned, or was not: what stood there, and what does."""

    text: str
    start: int
    old: str
    new: str


def mine_polarity(run: Run, options: MinePolarity, how: How) -> Manifest:
    """Negate captions: positives -> 3_candidates/<name>.

    Raises:
        UserError: there are no tables, or queries are no captions and `retrieval` is not given.
    """
    made = run.tables().facts["format"]
    if made != "captions" and not options.retrieval:
        raise UserError(
            f"{run.path} was ingested as {made}, where a document that says the opposite may be as"
            " relevant as the positive; pass --retrieval if in your data it is not"
        )
    stage = Stage(
        f"{run.SOURCES}/{options.name}",
        "candidates",
        options.record(),
        run.table_input(),
        made_by="mine polarity",
    )
    facts = {"searched_with": "nothing: documents are made"}
    if options.edit == "placebo":
        facts["control"] = "still true: `quarry tune` leaves it out unless it is named"
    task = partial(_turn_shard, run, options)
    return run_stage(run, stage, lambda: task, run.query_shards(), how, lambda: facts)


def turn(text: str, edit: str = "negation") -> Turned | None:
    """Return a text negated, or with a placebo; None if no rule fits.

    >>> turn("A dog is on the grass.").text, turn("Two dogs run", "negation")
    ('A dog is not on the grass.', None)
    >>> turn("A dog is on the grass.", "placebo").text
    'A dog is certainly on the grass.'
    """
    for pattern, negated, placebo in RULES:
        if found := pattern.search(text):
            new = found.expand(negated if edit == "negation" else placebo)
            if found[0][0].islower():  # else case would tell which is which
                new = new[0].lower() + new[1:]
            changed = text[: found.start()] + new + text[found.end() :]
            return Turned(changed, found.start(), found[0], new)
    return None


def _turn_shard(run: Run, options: MinePolarity, key: str) -> Shard:
    return made_shard(run, options.name, list(_turned(run, options, key)), key)


def _turned(run: Run, options: MinePolarity, key: str) -> Iterator[Negative]:
    effect = "negation" if options.edit == "negation" else "none"
    for query_id, what in originals_of(run, key, 1):
        for parent, text in zip(what.parents, what.texts, strict=True):
            if made := turn(text, options.edit):
                detail = {
                    "span": f"{made.start}:{made.start + len(made.new)}",
                    "old": made.old.strip(),
                    "new": made.new.strip(),
                    "route": options.edit,
                    "meaning_effect": effect,
                }
                yield Negative(query_id, parent, made.text, detail, None)
