"""Putting words into texts."""

import pytest

from miner.words.concreteness import Word
from miner.words.edits import Edit, apply, article_for, carry_case, inflect, lemmas_of, put


@pytest.mark.parametrize(
    ("word", "article"),
    [
        *[
            ("elephant", "an"),
            ("horse", "a"),
            ("hour", "an"),
            ("honest man", "an"),
            ("unicorn", "a"),
            ("umbrella", "an"),
            ("uniform", "a"),
        ],
        *[
            ("European", "a"),
            ("MRI scan", "an"),
            ("one-way street", "a"),
            ("onion", "an"),
            ("user", "a"),
            ("ugly dog", "an"),
            ("TV", "a"),
        ],
        *[
            ("unimportant thing", "an"),
            ("eucalyptus", "a"),
            ("ewe", "a"),
            ("orange", "an"),
            ("house", "a"),
            ("useful tool", "a"),
        ],
    ],
)
def test_articles_follow_the_sound(word, article):
    assert article_for(word) == article


def test_articles_before_an_edit_are_repaired_and_others_left():
    assert (
        apply("A horse and an owl", [Edit(2, 7, "elephant"), Edit(15, 18, "dog")])
        == "An elephant and a dog"
    )
    assert (
        apply("the horse, a  cat", [Edit(4, 9, "owl"), Edit(14, 17, "ant")]) == "the owl, an  ant"
    )
    assert apply("Gala horse", [Edit(5, 10, "owl")]) == "Gala owl"


def test_case_is_carried():
    assert carry_case("cat", "Dog") == "Cat"
    assert carry_case("cat", "DOG") == "CAT"
    assert carry_case("TV", "radio") == "TV"
    word = Word(0, 0, 0, 4, "Dogs", "dog", "NOUN", "NNS", 4.8, "O")
    assert put("Dogs bark.", word, "cats", True) == ("Cats bark.", Edit(0, 4, "Cats"))


def test_forms():
    assert [
        inflect("horse", "NNS"),
        inflect("ride", "VBG"),
        inflect("hot dog", "NNS"),
        inflect("big", "JJR"),
    ] == ["horses", "riding", "hot dogs", "bigger"]
    assert {"dogs", "dog"} <= lemmas_of("Dogs")
