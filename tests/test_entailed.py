"""What follows from the original is no negative: kinds of replacements that are never made."""

import pytest

from miner.words.concreteness import load_ratings, words_of
from miner.words.kinds import PARTS
from miner.words.parsing import load_parser
from miner.words.wordnet import load_wordnet

# original, replacement, part of speech: a sentence with the first mostly says the second as well
ENTAILED = {
    "kind": [("poodle", "dog", "NOUN"), ("oak", "tree", "NOUN"), ("boy", "child", "NOUN")],
    "person": [("mother", "woman", "NOUN"), ("surgeon", "doctor", "NOUN"), ("girl", "kid", "NOUN")],
    "colour": [("scarlet", "red", "ADJ"), ("crimson", "red", "ADJ")],
    "degree": [("huge", "big", "ADJ"), ("furious", "angry", "ADJ"), ("ancient", "old", "ADJ")],
    "manner": [("sprint", "run", "VERB"), ("whisper", "speak", "VERB"), ("devour", "eat", "VERB")],
    "cause": [("snore", "sleep", "VERB")],
    "material": [
        ("oak", "wood", "NOUN"),
        ("marble", "stone", "NOUN"),
        ("steel", "metal", "NOUN"),
        ("silk", "fabric", "NOUN"),
        ("bread", "flour", "NOUN"),
        ("window", "glass", "NOUN"),
    ],
    "part": [("kitchen", "house", "NOUN"), ("wheel", "car", "NOUN"), ("forest", "tree", "NOUN")],
    "group": [("flock", "bird", "NOUN"), ("fleet", "ship", "NOUN")],
    "place": [("Paris", "France", "PROPN"), ("Tokyo", "Japan", "PROPN")],
    "same": [("couch", "sofa", "NOUN"), ("street", "road", "NOUN")],
}
CONTRADICTING = [
    ("red", "blue", "ADJ"),
    ("hot", "cold", "ADJ"),
    ("dog", "cat", "NOUN"),
    ("man", "woman", "NOUN"),
    ("boy", "girl", "NOUN"),
    ("sit", "stand", "VERB"),
    ("bus", "train", "NOUN"),
    ("monday", "tuesday", "NOUN"),
    ("silk", "cotton", "NOUN"),
    ("gold", "silver", "NOUN"),
    ("knife", "fork", "NOUN"),
    ("summer", "winter", "NOUN"),
]


def may_replace(old: str, new: str, pos: str) -> bool:
    """As `miner.words.neighbours.neighbours` asks: both are known, and nothing ties them."""
    wordnet, kind = load_wordnet(), PARTS.get(pos, pos)
    known = wordnet.knows(old, kind) and wordnet.knows(new, kind)
    return known and not wordnet.related(old, new, kind)


@pytest.mark.parametrize("kind", ENTAILED)
def test_what_follows_from_the_original_does_not_replace_it(kind):
    assert [pair for pair in ENTAILED[kind] if may_replace(*pair)] == []


def test_what_contradicts_it_does():
    assert [pair for pair in CONTRADICTING if not may_replace(*pair)] == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Three dogs sleep on two sofas.", {"Three", "two"}),
        ("At least three dogs sleep.", set()),
        ("There are more than five birds here.", set()),
        ("Up to ten people sit there.", set()),
        ("A man under two umbrellas.", set()),  # read as a bound: no loss
    ],
)
def test_a_number_that_is_a_bound_is_not_changed(text, numbers):
    (parsed,) = load_parser("en_quarry")([text])
    found = {word.surface for word in words_of(parsed, load_ratings(None), "AR")}
    asked = {"three", "five", "ten", "two"}
    assert {word for word in found if word.lower() in asked} == numbers
