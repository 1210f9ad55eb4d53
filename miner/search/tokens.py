"""Texts -> tokens as numbers: one function for documents and queries, so that both are cut alike.

The plain definition is `tokenizer`: lower, find the pattern, leave stop words out, stem. `tokenize`
gives the same tokens, faster: a compiled kernel cuts runs of word characters (any other pattern
goes through `re`), each distinct word becomes a string once, and stop words and stems are looked up
per distinct word, not per token.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal, NamedTuple

import numba
import numpy as np

from miner.errors import UserError
from miner.options import NAME, Options, option

WORDS = r"(?u)\b\w+\b"  # the pattern that the kernel stands for
# characters that one thread cuts at a time: what tokenizing needs beyond its result follows from it
CHUNK = 1 << 21


class IndexBm25(Options):
    """BM25 index: which words stand in which document, how often. What a word weighs is decided
    when it is searched.
    """

    name: str = option("bm25", "name of the index, for more than one", pattern=NAME)
    token_pattern: str = option(
        "(?u)\\b\\w+\\b", "regular expression of a token; text is lowercased first"
    )
    stop_words: Literal["none", "english"] = option("none", "words to leave out")
    stemmer: Literal["none", "english"] = option("none", "Snowball stemmer")


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
    find, normalise = _find(options.token_pattern), _normaliser(options)
    return lambda text: [term for term in normalise(find(text.lower())) if term is not None]


def tokenize(texts: Sequence[str], options: IndexBm25) -> Tokens:
    """Cut texts into tokens on all cores; the same tokens as `tokenizer` gives.

    Raises:
        UserError: the token pattern is no regular expression.
    """
    find = _find(options.token_pattern)
    cut = _cut_words if options.token_pattern == WORDS else lambda chunk: _cut_pattern(chunk, find)
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


def _find(pattern: str) -> Callable[[str], list[str]]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--token-pattern {pattern!r} is no regular expression: {error}") from error
    if compiled.groups:  # findall would give the groups
        return lambda text: [match.group() for match in compiled.finditer(text)]
    return compiled.findall


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


def _cut_words(texts: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return tokens of each text, the tokens as places in the words, and the words."""
    joined = "\n".join(texts)
    lengths = np.array([len(text) for text in texts], np.int64)
    stops = np.cumsum(lengths + 1) - 1
    try:
        characters, word = np.frombuffer(joined.encode("latin-1"), np.uint8), _word_characters(256)
    except UnicodeEncodeError:
        characters, word = (
            np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32),
            _word_characters(0x110000),
        )
    counts, ids, first, length = _scan(characters, word, stops - lengths, stops)
    return (
        counts,
        ids,
        [
            joined[start : start + size]
            for start, size in zip(first.tolist(), length.tolist(), strict=True)
        ],
    )


@lru_cache
def _word_characters(count: int) -> np.ndarray:
    """Return for each code point below `count` whether it is one of `re`'s word characters."""
    return np.fromiter(
        (chr(point).isalnum() or point == ord("_") for point in range(count)), np.bool_, count
    )


@numba.njit(cache=True, nogil=True)
def _scan(characters, word, starts, stops):  # type: ignore[no-untyped-def] # compiled
    """Cut runs of word characters and number the distinct ones.

    Args:
        characters: code points of all texts; word: which code points belong to words; starts,
            stops: (n,) where each text lies.

    Returns:
        tokens of each text (n,), ids (tokens,), and for each distinct word where it stands first
        and how long it is.
    """
    counts = np.zeros(len(starts), np.int64)
    ids = np.empty((len(characters) + 1) // 2, np.int32)
    table = np.full(1 << 12, -1, np.int32)  # open addressing: a place holds the number of a word
    hashes = np.empty(1 << 11, np.uint64)
    first, length = np.empty(1 << 11, np.int64), np.empty(1 << 11, np.int64)
    tokens, words = 0, 0
    for text in range(len(starts)):
        at, stop = starts[text], stops[text]
        while at < stop:
            if not word[characters[at]]:
                at += 1
                continue
            begin, hashed = at, np.uint64(14695981039346656037)  # FNV-1a
            while at < stop and word[characters[at]]:
                hashed = (hashed ^ np.uint64(characters[at])) * np.uint64(1099511628211)
                at += 1
            span = (characters, begin, at - begin)
            place = _place(table, hashes, first, length, hashed, span)
            if table[place] < 0:
                if words == len(hashes):  # half full: double
                    hashes, first, length = _doubled(hashes), _doubled(first), _doubled(length)
                    table = _rehashed(hashes, words, 2 * len(table))
                    place = _place(table, hashes, first, length, hashed, span)
                table[place], hashes[words], first[words], length[words] = (
                    words,
                    hashed,
                    begin,
                    at - begin,
                )
                words += 1
            ids[tokens] = table[place]
            tokens += 1
            counts[text] += 1
    return counts, ids[:tokens].copy(), first[:words], length[:words]


@numba.njit(cache=True, nogil=True)
def _place(table, hashes, first, length, hashed, span):  # type: ignore[no-untyped-def] # compiled
    """Return the place of the word that `span` shows (characters, begin, size), or the empty
    place where it belongs.
    """
    characters, begin, size = span
    place = _slot(hashed, len(table))
    while table[place] >= 0:
        known = table[place]
        if hashes[known] == hashed and length[known] == size:
            offset = 0
            while offset < size and characters[first[known] + offset] == characters[begin + offset]:
                offset += 1
            if offset == size:
                break
        place = (place + 1) & (len(table) - 1)
    return place


@numba.njit(cache=True, nogil=True)
def _slot(hashed, size):  # type: ignore[no-untyped-def] # compiled
    return np.int64((hashed ^ (hashed >> np.uint64(32))) & np.uint64(size - 1))


@numba.njit(cache=True, nogil=True)
def _doubled(array):  # type: ignore[no-untyped-def] # compiled
    out = np.empty(2 * len(array), array.dtype)
    out[: len(array)] = array
    return out


@numba.njit(cache=True, nogil=True)
def _rehashed(hashes, words, size):  # type: ignore[no-untyped-def] # compiled
    table = np.full(size, -1, np.int32)
    for number in range(words):
        place = _slot(hashes[number], size)
        while table[place] >= 0:
            place = (place + 1) & (size - 1)
        table[place] = number
    return table
