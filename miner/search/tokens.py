"""Texts -> tokens as numbers: one function for documents and queries, so that both are cut alike.

The plain definition is `tokenizer`: lower, find the pattern, leave stop words out, stem. `tokenize`
gives the same tokens, faster: Arrow cuts runs of word characters (any other pattern goes through
`re`), each distinct word becomes a string once, and stop words and stems are looked up per distinct
word, not per token.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal, NamedTuple

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.errors import UserError
from miner.options import NAME, Options, option

WORDS = r"(?u)\b\w+\b"  # the pattern that Arrow cuts by
# what Python's \w is not, in the basic plane; beyond it, Arrow's tables and Python's differ
NOT_A_WORD = r"[^\p{L}\p{N}_]+"
BEYOND = re.compile("[\ud800-\udfff\U00010000-\U0010ffff]")
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
    """Return how many tokens each text has, the tokens as places in the words, and the words."""
    if any(BEYOND.search(text) for text in texts):
        return _cut_pattern(texts, _find(WORDS))
    cut = pc.split_pattern_regex(pa.array(texts, pa.string()), NOT_A_WORD)
    parts, ends = cut.flatten(), cut.offsets.to_numpy()
    there = pc.not_equal(parts, "")
    kept = np.concatenate(([0], np.cumsum(there.to_numpy(zero_copy_only=False))))
    words = parts.filter(there).dictionary_encode()
    return np.diff(kept[ends]), words.indices.to_numpy(), words.dictionary.to_pylist()
