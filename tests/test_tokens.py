import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import miner.search.tokens
from miner.errors import UserError
from miner.search.tokens import IndexBm25, tokenize, tokenizer

OPTIONS = [
    IndexBm25(),
    IndexBm25(stop_words="english"),
    IndexBm25(stop_words="english", stemmer="english"),
    IndexBm25(token_pattern=r"[a-z]{2,}|\d", stemmer="english"),
    IndexBm25(token_pattern=r"(a|b)\w"),
    IndexBm25(bigrams=False),
]
WORDS = st.sampled_from(
    [
        "the",
        "Bees",
        "running",
        "ΣΑΣ",
        "İstanbul",
        "x_1",
        "naïve",
        "𝟛",
        "日本",
        "東京都に行く",
        "हिन्दी में",
        "ภาษาไทย",
        "usb接口",
        "한국어는",
        "\U00020000\U00020001x",
        "a\nb",
        "it's",
        "\u0301",
        "ß",
        "¼",
        "",
    ]
)
TEXTS = st.lists(
    st.one_of(st.text(max_size=20), st.lists(WORDS, max_size=8).map(" ".join)), max_size=12
)


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@given(TEXTS, st.sampled_from([1, 9, 10**6]))
@settings(max_examples=150, deadline=None)
def test_the_quick_tokens_are_those_of_the_definition(options, texts, chunk):
    before, miner.search.tokens.CHUNK = miner.search.tokens.CHUNK, chunk
    try:
        tokens = tokenize(texts, options)
    finally:
        miner.search.tokens.CHUNK = before
    plain = [tokenizer(options)(text) for text in texts]
    assert [
        [tokens.terms[number] for number in part]
        for part in np.split(tokens.ids, tokens.starts[1:-1])
    ][: len(texts)] == plain
    assert (
        tokens.starts[0] == 0
        and tokens.starts[-1] == len(tokens.ids)
        and len(tokens.starts) == len(texts) + 1
    )
    assert tokens.terms == list(dict.fromkeys(token for text in plain for token in text))


def test_more_words_than_the_first_table_holds():
    words = [f"w{number:x}" for number in range(9000)]
    tokens = tokenize([" ".join(words), " ".join(reversed(words))], IndexBm25())
    assert tokens.terms == words
    assert tokens.ids.tolist() == [*range(9000), *range(8999, -1, -1)]


def test_stop_words_and_stemmer():
    assert tokenizer(IndexBm25())("The Bees' dances!") == ["the", "bees", "dances"]
    assert tokenizer(IndexBm25(stop_words="english", stemmer="english"))("The Bees' dances!") == [
        "bee",
        "danc",
    ]


def test_a_pattern_with_groups_gives_whole_matches():
    assert (
        tokenizer(IndexBm25(token_pattern=r"(\d+)(-\d+)?"))("12-3 and 4")
        == ["12-3", "4"]
        == [m.group() for m in re.finditer(r"(\d+)(-\d+)?", "12-3 and 4")]
    )


def test_a_wrong_pattern_is_said():
    with pytest.raises(UserError, match="no regular expression"):
        tokenize(["a"], IndexBm25(token_pattern="("))
