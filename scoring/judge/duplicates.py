"""candidates, positives + texts -> judgments: what can never be a negative, seen without a model.

Texts are compared in normal form: NFKC, casefolded, every run of spaces, punctuation, symbols and
control characters one space. Two
texts are near-copies if the Jaccard similarity of their sets of character shingles reaches `near`.
A text contains a positive, as a page contains a passage, if it has at least the share `contain` of
the positive's distinct shingles.

Few pairs need to be compared in full. Each shingle sets one bit of its document, which has one or
two bits for each. A bit that only one of two documents has set stands for at least one shingle that
only one of them has; so with x such bits, and at most m shingles in common, Jaccard <= m / (m + x).
And a shingle of a positive whose bit a candidate has not set is one that it lacks: with y of the
positive's n lacking in this way, it has at most (n - y) / n of them. These bounds never pass over a
copy, and leave almost no other pair.

What links and labels say, if they were given, is in scoring.judge.links.
"""

import hashlib
import shutil
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numba
import numpy as np
import pyarrow as pa

from miner.corpus import Corpus, Shelf
from miner.engine import How
from miner.errors import UserError
from miner.ingest.readers import find_input
from miner.query_shard import SOURCES, candidate_pairs, positive_rows
from miner.store import Manifest, Run, Shard, Stage, run_stage
from scoring.judge.judging import in_order, judged_sources, judgments, only_new
from scoring.judge.links import JudgeDuplicates, open_guards, read_facts, tied, write_guards

FOLDER = f"{Run.JUDGES}/duplicates"
REASONS = (  # in order of precedence; None: keep
    None,
    "positive",
    "same_text",
    "near_duplicate",
    "contains_positive",
    "equals_query",
    "linked",
    "co_cited",
    "same_label",
)
KEEP, POSITIVE, SAME_TEXT, NEAR_DUPLICATE, CONTAINS_POSITIVE, EQUALS_QUERY = range(6)
CHUNK = 4096  # texts, or pairs, that are in memory at a time
SPACE = 32
MULTIPLIER, MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


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
    sources, inputs = judged_sources(run, how)
    given = {
        name: find_input(file)
        for name, file in (("links", options.links), ("labels", options.labels))
        if file
    }
    stage = Stage(
        FOLDER,
        "judgments",
        options.record(),
        inputs | {name: file.fingerprint() for name, file in given.items()},
        grows=SOURCES,
    )
    return run_stage(
        run,
        stage,
        partial(_prepare, run, options, sources),
        run.query_shards(),
        how,
        lambda: read_facts(run.path / FOLDER),
    )


def _prepare(run: Run, options: JudgeDuplicates, sources: list[str]) -> Callable[[str], Shard]:
    """Write the guards and return the task; a file that is the user's mistake leaves nothing
    that would stand in the way of the next.
    """
    folder = run.path / FOLDER
    try:
        write_guards(run, options, folder)
    except UserError:
        if not any(folder.rglob("*.parquet")):
            shutil.rmtree(folder)
        raise
    return partial(_judge_shard, run, options, sources)


@cache
def _fold() -> np.ndarray:
    """Return for every code point itself, or a space for what separates words. Marks do not: in
    Devanagari they are vowels.
    """
    codes = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    categories = [unicodedata.category(chr(code)) for code in codes]
    separates = [
        (name[0] in "PSZ" or name in ("Cc", "Cf")) and code != ord("_")
        for code, name in enumerate(categories)
    ]
    return np.where(separates, np.uint32(SPACE), codes)


@numba.njit(cache=True, nogil=True)
def _squeeze(codes: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Fold characters, with no space at either end and never two in a row."""
    out, count = np.empty_like(codes), 0
    for code in codes:
        folded = fold[code]
        if folded != SPACE or (count > 0 and out[count - 1] != SPACE):
            out[count] = folded
            count += 1
    return out[: count - 1] if count > 0 and out[count - 1] == SPACE else out[:count]


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def normalise(text: str) -> str:
    """Return the normal form of a text; of a text that is nothing but punctuation, its NFKC
    casefolded words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _squeeze(_codes(folded), _fold()).tobytes().decode("utf-32-le") or " ".join(
        folded.split()
    )


def shingles(normal: str, size: int) -> np.ndarray:
    """Return a hash of each run of `size` characters, (max(1, characters - size + 1),) uint64
    with repeats; none for an empty text.
    """
    return _hash_runs(_codes(normal), size)


@numba.njit(cache=True, nogil=True)
def _hash_runs(codes: np.ndarray, size: int) -> np.ndarray:
    size = min(size, len(codes))
    out = np.empty(len(codes) - size + 1 if size else 0, np.uint64)
    for place in range(len(out)):
        value = np.uint64(0)
        for code in codes[place : place + size]:
            value = value * MULTIPLIER + np.uint64(code)
        out[place] = value * MIXER
    return out


@numba.njit(cache=True, nogil=True)
def _set_bits(hashes: np.ndarray, width: int) -> np.ndarray:
    """Return the bits that hashes set, (width,) uint64; width is a power of two, and half as
    wide is one half over the other.
    """
    bits, last = np.zeros(width, np.uint64), np.uint64(64 * width - 1)
    for value in hashes:
        place = (value >> np.uint64(32)) & last
        bits[place >> np.uint64(6)] |= np.uint64(1) << (place & np.uint64(63))
    return bits


def likeness(document: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Return the Jaccard similarity of two sets, and the share of the second that the first has; 1
    for two, and for a second, empty ones.

    Args:
        document: sorted and without repeats, as
        positive: is.
    """
    common = len(np.intersect1d(document, positive, assume_unique=True))
    union = len(document) + len(positive) - common
    return common / union if union else 1.0, common / len(positive) if len(positive) else 1.0


@dataclass(frozen=True)
class Digests:
    """What is kept in memory of n texts.

    Attributes:
        text: (n,) uint64, a hash of the normal form.
        count: (n,) int64, shingles, repeats counted.
        start: (n,) int64, where a text's bits begin in `bits`.
        width: (n,) int64, how many numbers they fill: a power of two.
        bits: (w,) uint64.
        shingles: place of a text -> its distinct shingles, (s,) uint64; of the positives only.
    """

    text: np.ndarray
    count: np.ndarray
    start: np.ndarray
    width: np.ndarray
    bits: np.ndarray
    shingles: Mapping[int, np.ndarray]

    def may_contain(self, left: np.ndarray, right: int, contain: float) -> np.ndarray:
        """Return which texts of `left` may have at least the share `contain` of the distinct
        shingles of the text `right`.
        """
        return _may_contain(
            self.shingles[right], self.bits, self.start[left], self.width[left], contain
        )

    def possible(self, left: np.ndarray, right: int, near: float) -> np.ndarray:
        """Return which texts of `left` may have a Jaccard similarity to the text `right` of at
        least `near`.
        """
        different = np.zeros(len(left), np.int64)
        for width in np.unique(self.width[left]):
            alike = np.flatnonzero(self.width[left] == width)
            shared = min(width, self.width[right])
            either = self._folded(left[alike], shared) ^ self._folded(np.array([right]), shared)
            different[alike] = np.bitwise_count(either).sum(axis=1)
        common = np.minimum(self.count[left], self.count[right])
        return common >= near * (common + different)

    def _folded(self, places: np.ndarray, width: int) -> np.ndarray:
        """Return the bits of texts of one width, (p, width): as they would be, had they been
        made that narrow.
        """
        whole = self.bits[self.start[places][:, None] + np.arange(self.width[places[0]])]
        return np.bitwise_or.reduce(whole.reshape(len(places), -1, width), axis=1)


@numba.njit(cache=True, nogil=True)
def _may_contain(
    hashes: np.ndarray, bits: np.ndarray, start: np.ndarray, width: np.ndarray, contain: float
) -> np.ndarray:
    possible = np.ones(len(start), np.bool_)
    for document in range(len(start)):
        last, lacking = np.uint64(64 * width[document] - 1), 0
        for value in hashes:
            place = (value >> np.uint64(32)) & last
            if not (
                bits[start[document] + np.int64(place >> np.uint64(6))] >> (place & np.uint64(63))
            ) & np.uint64(1):
                lacking += 1
                # as the share itself is computed and compared
                if (len(hashes) - lacking) / len(hashes) < contain:
                    possible[document] = False
                    break
    return possible


def digest(corpus: Corpus, rows: np.ndarray, size: int, positives: np.ndarray) -> Digests:
    """Read the documents of rows, some at a time, and digest their texts; `positives` are places
    in `rows`.
    """
    text, count, bits = (
        np.zeros(len(rows), np.uint64),
        np.zeros(len(rows), np.int64),
        [np.empty(0, np.uint64)],
    )
    sets: dict[int, np.ndarray] = dict.fromkeys(positives.tolist(), bits[0])
    for start in range(0, len(rows), CHUNK):
        for place, raw in enumerate(corpus.texts(rows[start : start + CHUNK]), start):
            normal = normalise(raw)
            hashes = shingles(normal, size)
            text[place], count[place] = _text_hash(normal), len(hashes)
            bits.append(_set_bits(hashes, 1 << max(0, len(hashes).bit_length() - 6)))
            if place in sets:
                sets[place] = np.unique(hashes)
    width = np.array([len(part) for part in bits[1:]], np.int64)
    return Digests(text, count, np.cumsum(width) - width, width, np.concatenate(bits), sets)


def _text_hash(normal: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest()))


def _judge_shard(run: Run, options: JudgeDuplicates, sources: list[str], key: str) -> Shard:
    corpus, queries = Shelf(run, key), run.read(run.QUERIES, key)
    query_ids = queries["query_id"].to_pylist()
    new, known = only_new(run, FOLDER, key, candidate_pairs(run, corpus, query_ids, sources, key))
    query, row = new.query, new.row
    positive_query, positive_row = positive_rows(corpus, query_ids, run.read(run.POSITIVES, key))
    rows = np.unique(np.concatenate((row, positive_row)))
    places, positive_places = np.searchsorted(rows, row), np.searchsorted(rows, positive_row)
    digests = digest(corpus, rows, options.shingle, positive_places)
    # a made text is a near-copy by intent: only a text that is equal is none
    retrieved = ~corpus.is_made(row)

    reason = np.full(len(row), KEEP)
    compare = [np.empty((0, 3), np.int64)]  # pair, place of its document, place of a positive
    for number, text in enumerate(queries["text"].to_pylist()):
        pairs = np.arange(*np.searchsorted(query, [number, number + 1]))
        mine, positives = places[pairs], positive_places[positive_query == number]
        reason[pairs] = by_hash = _by_hash(digests, mine, positives, _text_hash(normalise(text)))
        undecided = (by_hash == KEEP) | (by_hash == EQUALS_QUERY)
        undecided &= retrieved[pairs]
        for positive in positives.tolist():
            close = undecided & _possible(digests, mine, positive, options)
            compare.append(
                np.stack((pairs[close], mine[close], np.full(close.sum(), positive)), axis=1)
            )

    nearest, contained = _compare(corpus, rows, options, np.concatenate(compare), len(row))
    reason[contained >= options.contain] = CONTAINS_POSITIVE
    reason[nearest >= options.near] = NEAR_DUPLICATE
    for ties in open_guards(run.path / FOLDER):
        asked = np.flatnonzero((reason == KEEP) & retrieved)
        reason[asked[tied(ties, (query[asked], row[asked]), (positive_query, positive_row))]] = (
            REASONS.index(ties.reason)
        )
    compared = [
        retrieved & np.isin(reason, (KEEP, NEAR_DUPLICATE)),
        reason == CONTAINS_POSITIVE,
        reason <= EQUALS_QUERY,
    ]
    score = np.select(compared, [nearest, contained, 1.0], np.nan)
    verdict = pa.array(np.where(reason == KEEP, "keep", "drop").tolist(), pa.string())
    reasons = pa.array([REASONS[code] for code in reason.tolist()], pa.string())
    said = judgments(new, "duplicates", score.astype(np.float64), verdict, reasons)
    return Shard({key: in_order(known, said)})


def _possible(
    digests: Digests, left: np.ndarray, positive: int, options: JudgeDuplicates
) -> np.ndarray:
    """Return which texts of `left` may be a near-copy of a positive, or contain it."""
    near = digests.possible(left, positive, options.near)
    if len(digests.shingles[positive]) < options.contain_shingles:
        return near
    return near | digests.may_contain(left, positive, options.contain)


def _by_hash(
    digests: Digests, mine: np.ndarray, positives: np.ndarray, query_hash: np.uint64
) -> np.ndarray:
    """Return the reasons that ids and hashes of texts give for the candidates of one query,
    (c,).
    """
    same = np.isin(digests.text[mine], digests.text[positives])
    equal = digests.text[mine] == query_hash
    return np.select(
        [np.isin(mine, positives), same, equal], [POSITIVE, SAME_TEXT, EQUALS_QUERY], KEEP
    )


def _compare(
    corpus: Corpus, rows: np.ndarray, options: JudgeDuplicates, compare: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return of each of `count` pairs the highest Jaccard similarity and the highest share of a
    positive, nan where none is asked for.

    Args:
        corpus: gives the texts, some at a time.
        rows: places -> rows of the corpus.
        options: what a shingle is, and how many a positive needs for a share.
        compare: (c, 3) int64: which pair, place of its document, place of a positive.
        count: how many pairs there are.
    """
    nearest, contained = np.full(count, np.nan), np.full(count, np.nan)
    for start in range(0, len(compare), CHUNK):
        chunk = compare[start : start + CHUNK]
        needed = np.unique(chunk[:, 1:])
        texts = zip(needed.tolist(), corpus.texts(rows[needed]), strict=True)
        sets = {
            place: np.unique(shingles(normalise(text), options.shingle)) for place, text in texts
        }
        for pair, document, positive in chunk.tolist():
            jaccard, share = likeness(sets[document], sets[positive])
            nearest[pair] = np.fmax(nearest[pair], jaccard)
            if len(sets[positive]) >= options.contain_shingles:
                contained[pair] = np.fmax(contained[pair], share)
    return nearest, contained
