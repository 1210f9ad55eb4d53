"""queries that are words + documents that are their glosses -> candidates: the glosses of other
senses of the same word (after DefSent+, Tsukagoshi et al. 2024; **reconstructed**).

A document's headword is its title, else its text before the first colon; a query's is its text
before the first colon, comma or bracket ("bank (river)"). Any dictionary will do.
"""

from functools import partial
from pathlib import Path

import numpy as np

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.files import write_array
from miner.normal import text_hashes
from miner.options import NAME, Options, option
from miner.query_shard import QueryShard
from miner.seeds import generator
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run

HEADWORDS, ROWS_OF = "_headwords.npy", "_rows.npy"
NOT_A_WORD = 60  # characters; what is longer before a colon is no headword


class MineGloss(Options):
    """Glosses of other senses of the query's word."""

    name: str = option("gloss", "name of the source", pattern=NAME)
    k: int = option(10, "glosses per query, drawn where there are more", short="-k", ge=1)
    seed: int = option(0, "seed of the draw")


def mine_gloss(run: Run, options: MineGloss, how: How) -> Manifest:
    """Find glosses: queries, documents -> 3_candidates/<name>.

    Raises:
        UserError: there are no tables, or no document has a headword.
    """
    stage = Stage(
        f"{run.SOURCES}/{options.name}",
        "candidates",
        options.record(),
        run.table_input(),
        made_by="mine gloss",
    )
    folder = run.path / stage.folder

    def prepare() -> partial[Shard]:
        _write_headwords(run, folder)
        return partial(_gloss_shard, run, options, folder)

    return run_stage(run, stage, prepare, run.query_shards(), how)


def headword(title: str | None, text: str) -> str:
    """Return the word that a document explains, "" for none.

    >>> headword("bank", "sloping land"), headword("", "bank: sloping land"), headword("", "a bank")
    ('bank', 'bank', '')
    """
    if title and title.strip():
        return title.strip()
    word, colon, _ = text.partition(":")
    return word.strip() if colon and len(word) <= NOT_A_WORD else ""


def asked_word(query: str) -> str:
    """Return the word that a query asks for.

    >>> asked_word("bank (river)"), asked_word("Bank: where is it?")
    ('bank', 'Bank')
    """
    ends = [at for mark in ":,;([" if (at := query.find(mark)) > 0]
    return query[: min(ends, default=len(query))].strip()


def _write_headwords(run: Run, folder: Path) -> None:
    """Write the hashes of all headwords, ascending, and the row of each."""
    corpus, hashes, rows = Corpus(run), [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for key in corpus.keys:
        shard = corpus.shard(key)
        columns = (shard[name].to_pylist() for name in ("title", "text"))
        words = [headword(title, text) for title, text in zip(*columns, strict=True)]
        have = np.array([bool(word) for word in words], bool)
        hashes.append(text_hashes(word for word in words if word))
        rows.append(corpus.shard_rows(key)[have])
    every, where = np.concatenate(hashes), np.concatenate(rows)
    if not len(every):
        raise UserError(
            f"no document of {run.path} has a headword: expected a title, or a text such as"
            " 'bank: sloping land'"
        )
    order = np.argsort(every, kind="stable")
    write_array(folder / HEADWORDS, every[order])
    write_array(folder / ROWS_OF, where[order])


def _gloss_shard(run: Run, options: MineGloss, folder: Path, key: str) -> Shard:
    words, rows = (np.load(folder / name, mmap_mode="r") for name in (HEADWORDS, ROWS_OF))
    shard = QueryShard(run, key, made=False)
    asked = text_hashes(asked_word(text) for text in shard.texts)
    first, last = (np.searchsorted(words, asked, side) for side in ("left", "right"))
    depth = options.k + np.bincount(shard.positives[0], minlength=len(asked))
    found = np.full((len(asked), depth.max(initial=0)), -1, np.int64)
    for place, (start, stop) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        senses = np.sort(rows[start:stop])
        if len(senses) > depth[place]:
            draw = generator(options.seed, "gloss", shard.query_ids[place])
            senses = draw.choice(senses, depth[place], replace=False)
        found[place, : len(senses)] = senses
    none = np.full(found.shape, np.nan)
    return Shard({key: shard.candidates((found, none), options.k, options.name)})
