"""Texts -> tokens as numbers: one function for documents and queries, so that both are cut alike.

The plain definition is `tokenizer`: lower, find the pattern, cut what is written without spaces
into pairs, leave stop words out, stem. `tokenize` gives the same tokens, faster: Arrow cuts runs of
word characters (any other pattern goes through `re`), each distinct word becomes a string once, and
pairs, stop words and stems are looked up per distinct word, not per token.

A word is a run of letters, digits, marks and `_`; marks, as they are vowels in Devanagari and Thai.
Scripts that are written without spaces between words, and Hangul, whose words grow endings, are cut
into overlapping pairs of characters, as Lucene's CJK analyser does; a lone character stays.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal, NamedTuple

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.errors import UserError
from miner.options import NAME, VIEW, Options, option

WORDS = "words"  # the pattern that Arrow cuts by
NOT_A_WORD = r"[^\p{L}\p{M}\p{N}_]+"
# Han, kana, bopomofo, Hangul, Thai, Lao, Myanmar, Khmer
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3031-\u3035\u3041-\u312f"
    "\u3131-\u318e\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
RUN = re.compile(f"([{UNSPACED}]+)")
# characters that one thread cuts at a time: what tokenizing needs beyond its result follows from it
CHUNK = 1 << 21


class IndexBm25(Options):
    """BM25 index: which words stand in which document, how often. What a word weighs is decided
    when it is searched.
    """

    name: str = option("bm25", "name of the index, for more than one", pattern=NAME)
    token_pattern: str = option(
        WORDS, "regular expression of a token; words: letters, digits, marks; text is lowercased"
    )
    bigrams: bool = option(
        True, "cut what is written without spaces (Chinese, Japanese, Thai…) and Hangul into pairs"
    )
    stop_words: Literal["none", "english"] = option("none", "words to leave out")
    stemmer: Literal["none", "english"] = option("none", "Snowball stemmer")
    view: str | None = option(None, VIEW)


class Tokens(NamedTuple):
    """The tokens of n texts.

    Attributes:
        starts: (n + 1,) int64; tokens starts[i] to starts[i + 1] are those of text i, in order.
        ids: (tokens,) int32, places in `terms`.
        terms: the distinct tokens, in order of first appearance.
    """

    starts: np.ndarray
    ids: np.ndarray
    terms: list[str]


@lru_cache
def tokenizer(options: IndexBm25) -> Callable[[str], list[str]]:
    """Return the function that turns a text into tokens: the definition.

    Raises:
        UserError: the token pattern is no regular expression.
    """
    find, normalise = _find(options), _normaliser(options)
    return lambda text: [term for term in normalise(find(text.lower())) if term is not None]


def tokenize(texts: Sequence[str], options: IndexBm25) -> Tokens:
    """Cut texts into tokens on all cores; the same tokens as `tokenizer` gives.

    Raises:
        UserError: the token pattern is no regular expression.
    """
    find = _find(options)
    cut = partial(_cut_pattern, find=find)
    if options.token_pattern == WORDS:
        cut = partial(_cut_words, options=options)
    vocabulary: dict[str, int] = {}
    counts, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    with ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS) as pool:
        for here, local, words in pool.map(cut, _chunks(texts)):
            numbers = np.array(
                [vocabulary.setdefault(word, len(vocabulary)) for word in words], np.int32
            )
            counts.append(here)
            ids.append(numbers[local])
    starts = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    return _normalised(starts, np.concatenate(ids), list(vocabulary), options)


@lru_cache
def _unicode() -> tuple[str, re.Pattern[str]]:
    """Return the class of all marks, and a pattern of what Arrow may know otherwise than Python:
    what is beyond the basic plane, or not assigned in Python's tables.
    """
    marks, unknown = [], []
    for code in range(0x10000):
        category = unicodedata.category(chr(code))
        if category[0] == "M":
            marks.append(chr(code))
        elif category in ("Cn", "Cs"):
            unknown.append(chr(code))
    return "".join(marks), re.compile(f"[\U00010000-\U0010ffff{''.join(unknown)}]")


def _find(options: IndexBm25) -> Callable[[str], list[str]]:
    pattern = options.token_pattern
    try:
        compiled = re.compile(rf"[\w{_unicode()[0]}]+" if pattern == WORDS else pattern)
    except re.error as error:
        raise UserError(f"--token-pattern {pattern!r} is no regular expression: {error}") from error
    find: Callable[[str], list[str]] = compiled.findall
    if compiled.groups:  # findall would give the groups
        find = lambda text: [match.group() for match in compiled.finditer(text)]  # noqa: E731
    if not options.bigrams:
        return find
    return lambda text: [term for word in find(text) for term in pairs_of(word)]


def pairs_of(word: str) -> list[str]:
    """Return a word's parts: what is written without spaces in overlapping pairs of characters,
    marks with the character they stand on.

    >>> pairs_of("router"), pairs_of("重置路由器"), pairs_of("猫"), pairs_of("usb接口")
    (['router'], ['重置', '置路', '路由', '由器'], ['猫'], ['usb', '接口'])
    """
    if not RUN.search(word):
        return [word]
    terms = []
    for place, part in enumerate(RUN.split(word)):
        clusters = re.findall(f".[{_unicode()[0]}]*", part) if place % 2 else [part]
        if len(clusters) < 2:
            terms += [part] if part else []
        else:
            terms += [one + two for one, two in pairwise(clusters)]
    return terms


@lru_cache
def _normaliser(options: IndexBm25) -> Callable[[list[str]], list[str | None]]:
    """Return the function that gives for each word its term, None for a stop word."""
    stop: frozenset[str] = frozenset()
    if options.stop_words == "english":
        from bm25s.stopwords import STOPWORDS_EN

        stop = frozenset(STOPWORDS_EN)
    if options.stemmer == "english":
        import Stemmer

        stem = Stemmer.Stemmer("english").stemWords
        return lambda words: [
            None if word in stop else term for word, term in zip(words, stem(words), strict=True)
        ]
    return lambda words: [None if word in stop else word for word in words]


def _normalised(
    starts: np.ndarray, ids: np.ndarray, words: list[str], options: IndexBm25
) -> Tokens:
    """Put terms in the place of words."""
    if options.stop_words == options.stemmer == "none":
        return Tokens(starts, ids, words)
    terms: dict[str, int] = {}
    number = np.array(
        [
            -1 if term is None else terms.setdefault(term, len(terms))
            for term in _normaliser(options)(words)
        ]
        or [0],
        np.int32,
    )
    ids = number[ids]
    kept = np.concatenate(([0], np.cumsum(ids >= 0)))
    return Tokens(kept[starts], ids[ids >= 0], list(terms))


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text.lower())
        size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _cut_pattern(
    texts: list[str], find: Callable[[str], list[str]]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    words: dict[str, int] = {}
    cut = [[words.setdefault(word, len(words)) for word in find(text)] for text in texts]
    return (
        np.array([len(ids) for ids in cut], np.int64),
        np.array([number for ids in cut for number in ids], np.int32),
        list(words),
    )


def _cut_words(texts: list[str], options: IndexBm25) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return how many tokens each text has, the tokens as places in the words, and the words."""
    unknown = _unicode()[1]
    if any(not text.isascii() and unknown.search(text) for text in texts):
        return _cut_pattern(texts, _find(options))
    cut = pc.split_pattern_regex(pa.array(texts, pa.string()), NOT_A_WORD)
    parts, ends = cut.flatten(), cut.offsets.to_numpy()
    there = pc.not_equal(parts, "")
    kept = np.concatenate(([0], np.cumsum(there.to_numpy(zero_copy_only=False))))
    words = parts.filter(there).dictionary_encode()
    found = np.diff(kept[ends]), words.indices.to_numpy(), words.dictionary.to_pylist()
    return _in_pairs(*found) if options.bigrams else found


def _in_pairs(
    counts: np.ndarray, ids: np.ndarray, words: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Put the parts of each word in its place."""
    if all(word.isascii() or not RUN.search(word) for word in words):
        return counts, ids, words
    terms: dict[str, int] = {}
    parts = [[terms.setdefault(term, len(terms)) for term in pairs_of(word)] for word in words]
    size = np.array([len(part) for part in parts], np.int64)
    first, flat = np.cumsum(size) - size, np.array([one for part in parts for one in part])
    ends = np.concatenate(([0], np.cumsum(size[ids])))
    places = np.repeat(first[ids] - ends[:-1], size[ids]) + np.arange(ends[-1])
    starts = np.concatenate(([0], np.cumsum(counts)))
    return np.diff(ends[starts]), flat[places].astype(np.int32), list(terms)
