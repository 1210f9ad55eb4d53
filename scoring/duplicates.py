"""candidates, positives + texts -> judgments: which candidates are copies, of a positive or of the query itself.

Texts are compared in normal form: NFKC, casefolded, every run of spaces, punctuation, symbols and control characters one space. Two
texts are near-copies if the Jaccard similarity of their sets of character shingles reaches `near`.

Few pairs need that similarity. Each shingle sets one bit of its document, which has one or two bits for each. A bit that only one of two
documents has set stands for at least one shingle that only one of them has; so with x such bits, and at most m shingles in common, Jaccard
<= m / (m + x). This bound never passes over a near-copy, and leaves almost none of the other pairs to be compared in full.
"""

import hashlib
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache, partial

import numba
import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.engine import How
from miner.exact import positive_rows
from miner.store import Manifest, Run, Shard, Stage, run_stage
from miner.tables import JUDGMENTS, conform
from scoring.options import JudgeDuplicates
from scoring.pairs import candidate_pairs, judged_sources

REASONS = (None, "positive", "same_text", "near_duplicate", "equals_query")  # in order of precedence; None: keep
KEEP, POSITIVE, SAME_TEXT, NEAR_DUPLICATE, EQUALS_QUERY = range(5)
CHUNK = 4096  # texts, or pairs, that are in memory at a time
SPACE = 32
MULTIPLIER, MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def judge_duplicates(run: Run, options: JudgeDuplicates, how: How) -> Manifest:
    """Judge all candidates of all sources: candidates, positives -> 4_judgments/duplicates.

    A candidate is dropped as "positive" (its id, score 1), "same_text" (as a positive, score 1), "near_duplicate" (of a positive; score is
    the highest Jaccard similarity) or "equals_query" (score 1); the first of these that holds is the reason. Else it is kept; score is then
    the highest Jaccard similarity that had to be computed, null where a bound was enough.

    Raises:
        UserError: there are no tables, or a source is older than they are.
    """
    sources, inputs = judged_sources(run, how)
    stage = Stage("4_judgments/duplicates", "judgments", options.record(), inputs)
    return run_stage(run, stage, lambda: partial(_judge_shard, run, options, sources), run.query_shards(), how)


@cache
def _fold() -> np.ndarray:
    """Return for every code point itself, or a space for what separates words. Marks do not: in Devanagari they are vowels."""
    codes = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    categories = [unicodedata.category(chr(code)) for code in codes]
    separates = [(name[0] in "PSZ" or name in ("Cc", "Cf")) and code != ord("_") for code, name in enumerate(categories)]
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
    """Return the normal form of a text; of a text that is nothing but punctuation, its NFKC casefolded words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _squeeze(_codes(folded), _fold()).tobytes().decode("utf-32-le") or " ".join(folded.split())


def shingles(normal: str, size: int) -> np.ndarray:
    """Return a hash of each run of `size` characters, (max(1, characters - size + 1),) uint64 with repeats; none for an empty text."""
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
    """Return the bits that hashes set, (width,) uint64; width is a power of two, and half as wide is one half over the other."""
    bits, last = np.zeros(width, np.uint64), np.uint64(64 * width - 1)
    for value in hashes:
        place = (value >> np.uint64(32)) & last
        bits[place >> np.uint64(6)] |= np.uint64(1) << (place & np.uint64(63))
    return bits


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Return the Jaccard similarity of two sets, each sorted and without repeats; 1 for two empty ones."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    union = len(left) + len(right) - common
    return common / union if union else 1.0


@dataclass(frozen=True)
class Digests:
    """What is kept in memory of n texts.

    Attributes:
        text: (n,) uint64, a hash of the normal form.
        count: (n,) int64, shingles, repeats counted.
        start: (n,) int64, where a text's bits begin in `bits`.
        width: (n,) int64, how many numbers they fill: a power of two.
        bits: (w,) uint64.
    """

    text: np.ndarray
    count: np.ndarray
    start: np.ndarray
    width: np.ndarray
    bits: np.ndarray

    def possible(self, left: np.ndarray, right: int, near: float) -> np.ndarray:
        """Return which texts of `left` may have a Jaccard similarity to the text `right` of at least `near`."""
        different = np.zeros(len(left), np.int64)
        for width in np.unique(self.width[left]):
            alike = np.flatnonzero(self.width[left] == width)
            shared = min(width, self.width[right])
            either = self._folded(left[alike], shared) ^ self._folded(np.array([right]), shared)
            different[alike] = np.bitwise_count(either).sum(axis=1)
        common = np.minimum(self.count[left], self.count[right])
        return common >= near * (common + different)

    def _folded(self, places: np.ndarray, width: int) -> np.ndarray:
        """Return the bits of texts of one width, (p, width): as they would be, had they been made that narrow."""
        whole = self.bits[self.start[places][:, None] + np.arange(self.width[places[0]])]
        return np.bitwise_or.reduce(whole.reshape(len(places), -1, width), axis=1)


def digest(corpus: Corpus, rows: np.ndarray, size: int) -> Digests:
    """Read the documents of rows, some at a time, and digest their texts."""
    text, count, bits = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.int64), [np.empty(0, np.uint64)]
    for start in range(0, len(rows), CHUNK):
        for place, raw in enumerate(corpus.texts(rows[start : start + CHUNK]), start):
            normal = normalise(raw)
            hashes = shingles(normal, size)
            text[place], count[place] = _text_hash(normal), len(hashes)
            bits.append(_set_bits(hashes, 1 << max(0, len(hashes).bit_length() - 6)))
    width = np.array([len(part) for part in bits[1:]], np.int64)
    return Digests(text, count, np.cumsum(width) - width, width, np.concatenate(bits))


def _text_hash(normal: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest()))


def _judge_shard(run: Run, options: JudgeDuplicates, sources: list[str], key: str) -> Shard:
    corpus, queries = Corpus(run), run.read("1_tables/queries", key)
    query_ids = queries["query_id"].to_pylist()
    query, row = candidate_pairs(run, corpus, query_ids, sources, key)
    positive_query, positive_row = positive_rows(corpus, query_ids, run.read("1_tables/positives", key))
    rows = np.unique(np.concatenate((row, positive_row)))
    digests = digest(corpus, rows, options.shingle)
    places, positive_places = np.searchsorted(rows, row), np.searchsorted(rows, positive_row)

    reason = np.full(len(row), KEEP)
    compare = [np.empty((0, 3), np.int64)]  # pair, place of its document, place of a positive
    for number, text in enumerate(queries["text"].to_pylist()):
        pairs = np.arange(*np.searchsorted(query, [number, number + 1]))
        mine, positives = places[pairs], positive_places[positive_query == number]
        reason[pairs] = by_hash = _by_hash(digests, mine, positives, _text_hash(normalise(text)))
        undecided = (by_hash == KEEP) | (by_hash == EQUALS_QUERY)
        for positive in positives:
            near = undecided & digests.possible(mine, positive, options.near)
            compare.append(np.stack((pairs[near], mine[near], np.full(near.sum(), positive)), axis=1))

    nearest = _nearest(corpus, rows, options.shingle, np.concatenate(compare), len(row))
    reason[nearest >= options.near] = NEAR_DUPLICATE
    score = np.where((reason == KEEP) | (reason == NEAR_DUPLICATE), nearest, 1.0)
    return _shard(key, queries["query_id"].take(pa.array(query)), corpus.doc_ids(row), reason, score)


def _by_hash(digests: Digests, mine: np.ndarray, positives: np.ndarray, query_hash: np.uint64) -> np.ndarray:
    """Return the reasons that ids and hashes of texts give for the candidates of one query, (c,)."""
    same = np.isin(digests.text[mine], digests.text[positives])
    equal = digests.text[mine] == query_hash
    return np.select([np.isin(mine, positives), same, equal], [POSITIVE, SAME_TEXT, EQUALS_QUERY], KEEP)


def _nearest(corpus: Corpus, rows: np.ndarray, size: int, compare: np.ndarray, count: int) -> np.ndarray:
    """Return the highest Jaccard similarity of each of `count` pairs, nan where none is asked for.

    Args:
        corpus: gives the texts, some at a time.
        rows: places -> rows of the corpus.
        size: characters in a shingle.
        compare: (c, 3) int64: which pair, place of its document, place of a positive.
        count: how many pairs there are.
    """
    nearest = np.full(count, np.nan)
    for start in range(0, len(compare), CHUNK):
        chunk = compare[start : start + CHUNK]
        needed = np.unique(chunk[:, 1:])
        texts = zip(needed.tolist(), corpus.texts(rows[needed]), strict=True)
        sets = {place: np.unique(shingles(normalise(text), size)) for place, text in texts}
        for pair, document, positive in chunk.tolist():
            nearest[pair] = np.fmax(nearest[pair], jaccard(sets[document], sets[positive]))
    return nearest


def _shard(key: str, query_ids: pa.ChunkedArray, doc_ids: pa.Array, reason: np.ndarray, score: np.ndarray) -> Shard:
    columns = {
        "query_id": query_ids,
        "doc_id": doc_ids,
        "judge": pa.array(["duplicates"] * len(reason), pa.string()),
        "score": pa.array(score.astype(np.float32), mask=np.isnan(score)),
        "verdict": pa.array(np.where(reason == KEEP, "keep", "drop").tolist(), pa.string()),
        "reason": pa.array([REASONS[code] for code in reason.tolist()], pa.string()),
    }
    return Shard({key: conform(pa.table(columns), JUDGMENTS)})
