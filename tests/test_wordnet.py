"""Relations of words: exact known ones, symmetry, and what may stand for what."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miner.errors import UserError
from miner.words.wordnet import WordNet, load_wordnet

ROOT = Path(__file__).parents[1]
# shares of pairs, as measured; of "held", see bench/README.md
ENTAILED_LET_THROUGH = {"first": 0.026, "second": 0.052, "held": 0.064}
RATED = [
    row["word"]
    for row in pq.read_table(
        ROOT / "data" / "concreteness" / "ratings.parquet", columns=["word"]
    ).to_pylist()
][::7]


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return load_wordnet()


@pytest.mark.parametrize(
    ("a", "b", "pos"),
    [
        ("car", "automobile", "NOUN"),  # synonym
        ("poodle", "dog", "NOUN"),  # hyponym
        ("dog", "animal", "NOUN"),  # hypernym, far
        ("beagle", "entity", "NOUN"),  # the farthest
        ("chicken", "meat", "NOUN"),  # by its sense of food
        ("chicken", "bird", "NOUN"),  # by its sense of animal
        ("car", "bumper", "NOUN"),  # part
        ("taxi", "bumper", "NOUN"),  # part of what it is
        ("finger", "hand", "NOUN"),
        ("violin", "violinist", "NOUN"),  # derivation
        ("run", "jog", "VERB"),
        ("snore", "sleep", "VERB"),  # entailed
        ("kill", "die", "VERB"),  # caused
        ("huge", "large", "ADJ"),  # satellite and head
        ("huge", "giant", "ADJ"),  # two satellites of it
        ("crimson", "red", "ADJ"),
        ("azure", "blue", "ADJ"),
        ("red", "colorful", "ADJ"),
        ("quickly", "rapidly", "ADV"),
    ],
)
def test_what_may_not_stand_for_one_another(wordnet, a, b, pos):
    assert wordnet.related(a, b, pos) and wordnet.related(b, a, pos)
    assert b in wordnet.barred(a, pos) and a in wordnet.barred(b, pos)


@pytest.mark.parametrize(
    ("a", "b", "pos"),
    [
        ("dog", "cat", "NOUN"),
        ("dog", "wolf", "NOUN"),
        ("pizza", "burrito", "NOUN"),
        ("man", "woman", "NOUN"),
        ("red", "blue", "ADJ"),
        ("black", "white", "ADJ"),
        ("hot", "cold", "ADJ"),
        ("striped", "dotted", "ADJ"),
        ("sit", "stand", "VERB"),
        ("two", "three", "NUM"),
    ],
)
def test_what_may(wordnet, a, b, pos):
    assert not wordnet.related(a, b, pos) and not wordnet.related(b, a, pos)
    assert b not in wordnet.barred(a, pos) and a not in wordnet.barred(b, pos)


def pairs(part: str, label: str) -> list[tuple[str, str, str]]:
    """Pairs of words that one of us labelled by hand: does the second word follow from the first,
    or exclude it? Of the part `held` nothing was looked at but these shares.
    """
    table = csv.DictReader((ROOT / "tests" / "word_pairs.tsv").open(), delimiter="\t")
    return [
        (row["old"], row["new"], row["pos"])
        for row in table
        if row["part"] == part and row["label"] == label
    ]


@pytest.mark.parametrize("part", ["first", "second", "held"])
def test_few_words_that_follow_may_stand_and_most_that_exclude(wordnet, part):
    share = {
        label: sum(
            wordnet.knows(a, pos) and wordnet.knows(b, pos) and not wordnet.related(a, b, pos)
            for a, b, pos in pairs(part, label)
        )
        / len(pairs(part, label))
        for label in ("entails", "contradicts")
    }
    assert share["entails"] <= ENTAILED_LET_THROUGH[part] and share["contradicts"] >= 0.9


@pytest.mark.parametrize(
    ("a", "b", "pos", "tied"),
    [
        ("kitten", "cat", "NOUN", True),  # its gloss: young domestic cat
        ("grandmother", "woman", "NOUN", True),  # by two glosses, one above the other
        ("ship", "boat", "NOUN", True),  # patrol ship, patrol boat
        ("cap", "hat", "NOUN", True),  # a dunce cap is a hat
        ("thumb", "hand", "NOUN", True),  # the hand has fingers
        ("petal", "flower", "NOUN", True),  # a part of a part of a part
        ("rest", "relax", "VERB", True),  # rest and relaxation are one noun
        ("quietly", "silently", "ADV", True),  # by their adjectives
        ("starving", "hungry", "ADJ", True),  # by starved
        ("two", "2", "NUM", True),
        ("third", "3rd", "ADJ", True),
        ("holland", "netherlands", "PROPN", True),
        ("day", "night", "NOUN", False),  # a day of 24 hours has a night
        ("friday", "sunday", "NOUN", False),
        ("eight", "8000", "NUM", False),
        ("france", "germany", "PROPN", False),
        ("mercury", "venus", "NOUN", False),
    ],
)
def test_each_kind_of_tie(wordnet, a, b, pos, tied):
    assert wordnet.related(a, b, pos) == wordnet.related(b, a, pos) == tied


@pytest.mark.parametrize(
    ("word", "pos", "has"),
    [
        ("dog", "NOUN", ("fox", "wolf")),
        ("bus", "NOUN", ("train",)),
        ("red", "ADJ", ("blue", "green", "yellow", "black", "white")),
        ("striped", "ADJ", ("checked", "dotted")),
        ("large", "ADJ", ("small", "tiny")),
        ("tiny", "ADJ", ("huge", "large")),
        ("round", "ADJ", ("square",)),
        ("hot", "ADJ", ("cold",)),
        ("fried", "ADJ", ("boiled", "steamed")),
        ("hepatic", "ADJ", ("cardiac", "gastric")),  # liver, heart, stomach: organs
        ("sit", "VERB", ("stand", "lie")),
        ("quickly", "ADV", ("slowly",)),
        ("two", "NUM", ("three", "twelve")),
    ],
)
def test_co_hyponyms(wordnet, word, pos, has):
    beside = wordnet.co_hyponyms(word, pos)
    assert set(has) <= set(beside)
    assert word not in beside and len(set(beside)) == len(beside)
    assert not set(beside) & wordnet.barred(word, pos)


def test_antonyms_come_first_then_the_first_sense(wordnet):
    assert wordnet.co_hyponyms("large", "ADJ")[0] == "small"
    assert wordnet.co_hyponyms("man", "NOUN")[0] == "woman"
    dog = wordnet.co_hyponyms("dog", "NOUN")
    assert dog.index("wolf") < dog.index("bastard")  # a second sense, "unpleasant person"
    assert "bastard" not in wordnet.co_hyponyms("dog", "NOUN", senses=1)


def test_an_adjective_s_head_is_not_beside_it(wordnet):
    assert not {"chromatic", "achromatic", "colored"} & set(wordnet.co_hyponyms("red", "ADJ"))


def test_no_compound_of_the_word_is_beside_it(wordnet):
    assert not [
        one
        for one in wordnet.co_hyponyms("brown", "ADJ")
        if "brown" in one.replace("-", " ").split()
    ]


def test_common_words_get_no_names(wordnet):
    cased = pq.read_table(ROOT / "data" / "wordnet" / "words.parquet").filter(
        pa.compute.field("cased")
    )
    names = {
        lemma
        for lemma, pos in zip(cased["lemma"].to_pylist(), cased["pos"].to_pylist(), strict=True)
        if pos == "n"
    }
    beside = {
        one
        for word in ("dog", "cup", "car", "tree", "day")
        for one in wordnet.co_hyponyms(word, "NOUN")
    }
    assert beside and not beside & names


@pytest.mark.parametrize(
    ("word", "pos", "field"),
    [
        ("pizza", "NOUN", "noun.food"),
        ("pizza", "PROPN", "noun.food"),
        ("dog", "NOUN", "noun.animal"),
        ("throw", "VERB", "verb.contact"),
        ("red", "ADJ", "adj.all"),
    ],
)
def test_fields(wordnet, word, pos, field):
    assert wordnet.field(word, pos) == field


@pytest.mark.parametrize(
    ("word", "pos"),
    [("qwzx", "NOUN"), ("pizza", "VERB"), ("in", "ADP"), ("pizza", "X"), ("", "NOUN")],
)
def test_unknown_words_are_themselves_and_nothing_else(wordnet, word, pos):
    assert not wordnet.knows(word, pos)
    assert (
        wordnet.field(word, pos) == ""
        and wordnet.co_hyponyms(word, pos) == ()
        and wordnet.forms(word, pos) == ()
    )
    assert wordnet.barred(word, pos) == {word}
    assert wordnet.related(word, word, pos) and not wordnet.related(word, "dog", pos)


def test_multi_word_lemmas_and_forms(wordnet):
    assert wordnet.knows("hot dog", "NOUN") and wordnet.related("hot dog", "frankfurter", "NOUN")
    assert wordnet.forms("gainsay", "VERB") == ("gainsaid",) and "gainsaid" in wordnet.barred(
        "gainsay", "VERB"
    )


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    a=st.sampled_from(RATED),
    b=st.sampled_from(RATED),
    pos=st.sampled_from(["NOUN", "VERB", "ADJ", "ADV"]),
    pick=st.integers(0, 10**6),
)
def test_related_is_symmetric_and_is_what_barred_says(wordnet, a, b, pos, pick):
    tied = sorted(wordnet.barred(a, pos))
    for other in (b, tied[pick % len(tied)]):
        assert wordnet.related(a, other, pos) == wordnet.related(other, a, pos)
        if wordnet.knows(a, pos) and wordnet.knows(other, pos):
            assert wordnet.related(a, other, pos) == (
                other in wordnet.barred(a, pos) or a in wordnet.barred(other, pos)
            )
    assert a in tied and not set(wordnet.co_hyponyms(a, pos)) & set(tied)


def test_a_missing_folder_is_the_user_s_mistake(tmp_path):
    with pytest.raises(UserError, match=r"no WordNet in .*build_wordnet.py"):
        WordNet(tmp_path)


@pytest.fixture(scope="module")
def toy_tar(tmp_path_factory) -> Path:
    import tarfile

    folder = tmp_path_factory.mktemp("toy")
    words = {
        "dog": "n 2",
        "hound": "n 2",
        "pug": "n 3",
        "animal": "n 1",
        "cat": "n 4",
        "glass": "n 5",
        "glasses": "n 6",
        "goggles": "n 6",
        "pug-dog": "v 9",
    }
    split = {word: its.split() for word, its in words.items()}
    entries = "\n".join(
        f"{word}: {{{pos}: {{sense: [{{id: '{word}', synset: {number}-{pos}}}]}}}}"
        for word, (pos, number) in split.items()
    )
    parents = {1: "", 2: "1-n", 3: "2-n", 4: "1-n", 5: "", 6: ""}
    synsets = "\n".join(
        f"{number}-n: {{hypernym: [{parent}], partOfSpeech: n}}"
        for number, parent in parents.items()
    )
    (folder / "entries-a.yaml").write_text(entries)
    (folder / "noun.animal.yaml").write_text(synsets)
    (folder / "verb.motion.yaml").write_text("9-v: {partOfSpeech: v}")
    with tarfile.open(folder / "toy.tar", "w") as tar:
        for name in ("entries-a.yaml", "noun.animal.yaml", "verb.motion.yaml"):
            tar.add(folder / name, f"src/{name}")
    return folder / "toy.tar"


@pytest.mark.parametrize(
    ("old", "new", "lemmas", "says"),
    [
        ("dogs", "hounds", ("dog", "hound"), ["synonym"]),
        ("pugs", "dogs", (None, None), ["hypernym"]),
        ("pugs", "animals", ("pug", "animal"), ["hypernym"]),
        ("animal", "pug", (None, None), ["hyponym"]),
        ("cats", "cat", ("cat", "cat"), ["inflection", "synonym"]),
        ("cats", "cat", (None, None), ["inflection", "synonym"]),
        ("glasses", "goggles", ("glass", "goggles"), ["synonym"]),  # as it stands
        ("cats", "dogs", ("cat", "dog"), []),
        ("cats", "pugs", (None, None), []),
    ],
)
def test_the_checking_script_finds_each_kind_of_offence(toy_tar, old, new, lemmas, says):
    spec = importlib.util.spec_from_file_location(
        "check_substitutions", ROOT / "bench" / "check_substitutions.py"
    )
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    detail = {"old": old, "new": new, "old_lemma": lemmas[0], "new_lemma": lemmas[1], "route": "O"}
    assert check.judge(detail, check.Senses(toy_tar)) == says


def test_the_checking_script_counts_and_exits(toy_tar, tmp_path):
    def run(rows: list[dict[str, str]]) -> subprocess.CompletedProcess[str]:
        table = pa.table(
            {
                "doc_id": [str(place) for place in range(len(rows))],
                "detail": pa.array(rows, pa.struct({"old": pa.string(), "new": pa.string()})),
            }
        )
        pq.write_table(table, tmp_path / "00000.parquet")
        command = [
            sys.executable,
            str(ROOT / "bench" / "check_substitutions.py"),
            str(toy_tar),
            str(tmp_path),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    clean, bad = [{"old": "cat", "new": "dog"}], [{"old": "dog", "new": "hound"}] * 2
    assert run(clean).returncode == 0
    found = run(clean + bad)
    assert (
        found.returncode == 1
        and "3 replacements, 2 different" in found.stdout
        and "synonym    2" in found.stdout
    )
    assert "dog -> hound (route None, 2 times): synonym" in found.stdout
    assert run([]).returncode == 2
