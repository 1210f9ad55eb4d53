"""Words of sibling texts, and what WordNet ties to them, never come into a text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_substitute import HOW, all_made, substitute
from test_wordnet import RATED

from miner.corpus import Documents
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestCaptions
from miner.store import Run
from miner.words.kinds import PARTS, Key
from miner.words.parsing import load_parser
from miner.words.siblings import Guarded, Ties, WordSet, content_of
from miner.words.wordnet import load_wordnet

IMAGES = {
    "1": ["A man reads on a chair.", "Somebody sits on a couch with a book."],
    "2": ["A cat sleeps on a sofa.", "An animal lies on a bed."],
    "3": ["A dog runs on a beach.", "A puppy plays with a ball."],
    "4": ["A woman cuts an apple with a knife.", "A lady slices fruit in a kitchen."],
    "5": ["A horse eats grass in a field.", "A mare grazes beside a barn."],
    "6": ["A boy rides a bus to a school.", "A child waits at a station."],
    "7": ["A girl throws a ball in a park.", "A kid tosses a frisbee."],
    "8": ["A bird sits on a chair near a table.", "A parrot perches in a room."],
}


@pytest.fixture
def run(tmp_path):
    lines = [
        f"{image}{number},{image},{text}"
        for image, texts in IMAGES.items()
        for number, text in enumerate(texts)
    ]
    file = tmp_path / "captions.csv"
    file.write_text("id,image,caption\n" + "\n".join(lines) + "\n")
    made = Run(tmp_path / "run")
    # siblings in other shards: what was parsed there is known here
    ingest(made, IngestCaptions(file=str(file), group="image", shard_queries=3), HOW)
    return made


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from conftest import make_encoder

    return make_encoder(tmp_path_factory.mktemp("encoder"), seed=1)


def test_nothing_tied_to_a_word_of_a_sibling_is_brought_in(run, encoder):
    substitute(run, encoder, k=2)
    texts = sorted(text for group in IMAGES.values() for text in group)
    said = dict(zip(texts, map(content_of, load_parser("en_quarry")(texts)), strict=True))
    guarded = {
        text: set.union(*(said[one] for one in group))
        for group in IMAGES.values()
        for text in group
    }
    parents = {
        row["doc_id"]: row["text"] for row in Documents(run, "00000").shard("00000").to_pylist()
    }
    made, related = all_made(run), load_wordnet().related
    assert len(made) >= 20 and Key("couch", "NOUN") in guarded["A man reads on a chair."]
    kinds = {"O": "NOUN", "A": "ADJ", "R": "VERB"}
    for row in made:
        kind, new = kinds[row["detail"]["route"]], row["detail"]["new_lemma"]
        for lemma, pos in guarded[parents[row["parent_id"]]]:
            assert PARTS.get(pos, pos) != kind or not related(new, lemma, kind)


NUMBERS = ["two", "three", "2", "first", "third", "monday", "friday"]


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from([*RATED, *NUMBERS]), min_size=1, max_size=30, unique=True),
    said=st.sampled_from([*RATED, *NUMBERS]),
    pos=st.sampled_from(["NOUN", "VERB", "ADJ", "NUM"]),
)
def test_ties_are_what_related_says(words, said, pos):
    wordnet = load_wordnet()
    vocabulary = [Key(word, pos) for word in sorted(words)]
    barred = Ties(vocabulary, wordnet).barred_from(Guarded(frozenset(), frozenset([(said, pos)])))
    for number, (lemma, _) in enumerate(vocabulary):
        assert (number in barred) == wordnet.related(lemma, said, pos), lemma


def test_all_words_of_a_compound_must_stand_there():
    vocabulary = [Key("dining table", "NOUN"), Key("dog", "NOUN"), Key("table", "NOUN")]
    ties = Ties(vocabulary, load_wordnet())

    def barred(*forms):
        found = ties.barred_from(Guarded(frozenset(forms), frozenset()))
        return [number for number in range(3) if number in found]

    assert barred("table") == [2] and barred("dining", "table", "lamp") == [0, 2]
    assert 2 not in WordSet(0) and [one for one in range(20) if one in WordSet(1 << 9 | 1)] == [
        0,
        9,
    ]
