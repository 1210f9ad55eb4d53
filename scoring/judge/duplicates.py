"""candidates, positives + texts -> judgments: what can never be a negative, seen without a model.

Two texts are near-copies if the Jaccard similarity of their sets of character shingles reaches
`near`. A text contains a positive, as a page contains a passage, if it has at least the share
`contain` of the positive's distinct shingles. What links and labels say, if they were given, is in
scoring.judge.links.
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.ingest.inputs import find_input
from miner.normal import normalise, text_hash
from miner.options import Options, option
from miner.store import Manifest, Run
from miner.views import masked
from scoring.judge.judging import Asked, Judge, Judged, Judging, judgments
from scoring.judge.links import linked, open_links, read_facts, write_links
from scoring.judge.shingles import Digests, digest, likeness, shingles
from scoring.reasons import COPIES

CODES = {reason: code for code, reason in enumerate([None, *COPIES])}  # None: keep
CHUNK = 4096  # pairs that are compared at a time


class JudgeDuplicates(Options):
    """What can never be a negative, seen without a model: copies of a positive or the query, and
    what links or labels tie to a positive.
    """

    shingle: int = option(5, "characters in a shingle of the normalised text", ge=1)
    near: float = option(
        0.9, "Jaccard similarity of shingles from which a text is a near-copy", gt=0, le=1
    )
    contain: float = option(
        0.95, "share of a positive's shingles from which a text contains it", gt=0, le=1
    )
    contain_shingles: int = option(
        50, "positives with fewer distinct shingles are not looked for in other texts", ge=1
    )
    code: str | None = option(
        None, "documents are code of this language: names count by their kind, comments not at all"
    )
    links: Path | None = option(
        None,
        "csv, tsv, jsonl or parquet whose first two columns are the ids of a document and of one"
        " that it links to; a header does no harm, what the corpus does not have is passed over",
    )
    hub: int | None = option(
        None,
        "a document that links to more than N does not tie them to each other [default: none]",
        ge=2,
    )
    labels: Path | None = option(
        None,
        "a file like that of --links: a document's id and its class label; a document may have"
        " several",
    )


def judge_duplicates(run: Run, options: JudgeDuplicates, how: How) -> Manifest:
    """Judge all candidates of all sources: candidates, positives -> 4_judgments/duplicates.

    A candidate is dropped for the first of these reasons that holds; `score` is what was compared:

        positive            it is one, by id (1)
        same_text           as a positive's (1)
        near_duplicate      of a positive (its highest Jaccard similarity, at least `near`)
        contains_positive   (the highest share of a positive's shingles that it has, at least
                            `contain`)
        equals_query        its text is the query's (1)
        linked              to a positive, or from it (null, as below)
        co_cited            some document, of the corpus or not, links to it and to a positive
        same_label          it shares a class label with a positive

    Else it is kept; score is then the highest Jaccard similarity that had to be computed, null
    where the bounds were enough.

    Raises:
        UserError: there are no tables, a source is older than they are, or the file of links or
            labels is not there, cannot be read or knows no document of the corpus.
    """
    run.tables()
    if options.code:
        masked("", options.code)  # no such language is said before anything is written
    files = {"links": options.links, "labels": options.labels}
    given = {name: find_input(file).fingerprint() for name, file in files.items() if file}
    judging = Judging(run, "duplicates", positives=False)
    folder = run.path / judging.folder
    prepare = partial(_prepare_links, run, options, folder)
    return judging.carry_out(options, how, prepare, given, facts=lambda: read_facts(folder))


def _prepare_links(run: Run, options: JudgeDuplicates, folder: Path) -> Judge:
    """Write what links and labels say and return the judge; a file that is the user's mistake
    leaves nothing that would stand in the way of the next.
    """
    try:
        write_links(run, options.links, options.labels, options.hub, folder)
    except UserError:
        if not any(folder.rglob("*.parquet")):
            shutil.rmtree(folder)
        raise
    return partial(_find_copies, options, folder)


def _find_copies(options: JudgeDuplicates, folder: Path, asked: Asked) -> Judged:
    shard, pairs = asked.shard, asked.pairs
    rows = np.unique(np.concatenate((pairs.row, shard.positives[1])))
    read = partial(_read_texts, options, shard.documents)
    digests = digest(read, rows, options.shingle, np.searchsorted(rows, shard.positives[1]))
    # a made text is a near-copy by intent: only a text that is equal is none
    retrieved = ~shard.documents.is_made(pairs.row)
    reason, compare = _by_hash(asked, options, digests, rows, retrieved)
    nearest, contained = _compare(asked, options, rows, compare)
    reason[contained >= options.contain] = CODES["contains_positive"]
    reason[nearest >= options.near] = CODES["near_duplicate"]
    for links in open_links(folder):
        kept = np.flatnonzero((reason == 0) & retrieved)
        hit = linked(links, (pairs.query[kept], pairs.row[kept]), shard.positives)
        reason[kept[hit]] = CODES[links.reason]
    score = np.where(reason <= CODES["equals_query"], 1.0, np.nan)
    score = np.where(reason == CODES["contains_positive"], contained, score)
    by_jaccard = retrieved & np.isin(reason, (0, CODES["near_duplicate"]))
    score = np.where(by_jaccard, nearest, score)
    verdict = pa.array(np.where(reason == 0, "keep", "drop").tolist(), pa.string())
    names = list(CODES)
    reasons = pa.array([names[code] for code in reason.tolist()], pa.string())
    return [judgments(pairs, "duplicates", score, verdict, reasons)], {}


def _read_texts(options: JudgeDuplicates, documents: Corpus, rows: np.ndarray) -> list[str]:
    texts = documents.texts(rows)
    return [masked(text, options.code) for text in texts] if options.code else texts


def _by_hash(
    asked: Asked,
    options: JudgeDuplicates,
    digests: Digests,
    rows: np.ndarray,
    retrieved: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the reasons that ids and hashes of texts give (p,), and what is left to compare,
    (c, 3) int64: pair, place of its document, place of a positive.
    """
    query, positives = asked.pairs.query, asked.shard.positives
    places = np.searchsorted(rows, asked.pairs.row)
    positive_places = np.searchsorted(rows, positives[1])
    reason, compare = np.zeros(len(query), np.int64), [np.empty((0, 3), np.int64)]
    for number, text in enumerate(asked.shard.texts):
        pairs = np.arange(*np.searchsorted(query, [number, number + 1]))
        mine, theirs = places[pairs], positive_places[positives[0] == number]
        found = {
            "positive": np.isin(mine, theirs),
            "same_text": np.isin(digests.text[mine], digests.text[theirs]),
            "equals_query": digests.text[mine] == text_hash(normalise(text)),
        }
        reason[pairs] = np.select(list(found.values()), [CODES[name] for name in found], 0)
        open_ = retrieved[pairs] & ~found["positive"] & ~found["same_text"]
        for positive in theirs.tolist():
            close = open_ & digests.possible(mine, positive, options.near)
            if len(digests.shingles[positive]) >= options.contain_shingles:
                close |= open_ & digests.may_contain(mine, positive, options.contain)
            to = np.full(close.sum(), positive)
            compare.append(np.stack((pairs[close], mine[close], to), axis=1))
    return reason, np.concatenate(compare)


def _compare(
    asked: Asked, options: JudgeDuplicates, rows: np.ndarray, compare: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return of each pair the highest Jaccard similarity and the highest share of a positive, (p,)
    both, nan where none is asked for. The texts are read some at a time.
    """
    nearest, contained = (np.full(len(asked.pairs), np.nan) for _ in range(2))
    for start in range(0, len(compare), CHUNK):
        chunk = compare[start : start + CHUNK]
        needed = np.unique(chunk[:, 1:])
        texts = zip(
            needed.tolist(), _read_texts(options, asked.shard.documents, rows[needed]), strict=True
        )
        sets = {
            place: np.unique(shingles(normalise(text), options.shingle)) for place, text in texts
        }
        for pair, document, positive in chunk.tolist():
            jaccard, share = likeness(sets[document], sets[positive])
            nearest[pair] = np.fmax(nearest[pair], jaccard)
            if len(sets[positive]) >= options.contain_shingles:
                contained[pair] = np.fmax(contained[pair], share)
    return nearest, contained
