"""The tables under data: what the scripts that build them make of small inputs, and that what is
committed is what they make.
"""

import importlib.util
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest

DATA = Path(__file__).parents[1] / "data"
ENTRIES = """
Pug: {n: {sense: [{id: 'pug%1:05:01::', synset: 00000003-n}]}}
dog:
  n:
    form: [dogs, dogges]
    sense:
    - {id: 'dog%1:05:00::', synset: 00000002-n, derivation: ['dog%2:38:00::', 'doggy%3:00:00::']}
    - {id: 'dog%1:05:01::', synset: 00000003-n}
  v: {sense: [{id: 'dog%2:38:00::', synset: 00000009-v, agent: ['dog%1:05:00::']}]}
Dog: {n: {sense: [{id: 'dog%1:18:00::', synset: 00000001-n},
    {id: 'dog%1:05:09::', synset: 00000002-n}]}}
bow:
  n-2: {sense: [{id: 'bow%1:04:00::', synset: 00000001-n}]}
  n-1: {sense: [{id: 'bow%1:06:00::', synset: 00000004-n}]}
doggy: {a: {sense: [{id: 'doggy%3:00:00::', synset: 00000005-a, antonym: ['undoggy%3:00:00::'],
    pertainym: ['dog%1:05:00::']}]}}
undoggy: {a: {sense: [{id: 'undoggy%3:00:00::', synset: 00000006-s, antonym: ['doggy%3:00:00::']}]}}
hot dog: {n: {sense: [{id: 'hot_dog%1:13:00::', synset: 00000007-n}]}}
"""
ANIMALS = """
00000001-n: {members: [bow, Dog], partOfSpeech: n, definition: [x]}
00000002-n: {members: [dog], partOfSpeech: n, hypernym: [00000001-n], mero_part: [00000004-n],
    mero_member: [00000003-n]}
00000003-n: {members: [dog, Pug], partOfSpeech: n, definition: [a very small dog],
    hypernym: [00000002-n],
    instance_hypernym: [00000001-n, 00000002-n]}
00000004-n: {members: [bow], partOfSpeech: n}
"""
OTHERS = {
    "entries-d.yaml": ENTRIES,
    "noun.animal.yaml": ANIMALS,
    "noun.food.yaml": "00000007-n: {members: [hot dog], partOfSpeech: n}",
    "verb.motion.yaml": (
        "00000009-v: {members: [dog], partOfSpeech: v, entails: [00000009-v], causes: [00000009-v]}"
    ),
    "adj.all.yaml": (
        "00000005-a: {members: [doggy], partOfSpeech: a, similar: [00000006-s], attribute:"
        " [00000001-n]}\n00000006-s: {members: [undoggy], partOfSpeech: s, similar: [00000005-a],"
        " also: [00000005-a]}"
    ),
    "frames.yaml": "via: Somebody ----s",
}
NORMS = "Word\tBigram\tConc.M\tConc.SD\tUnknown\tTotal\tPercent_known\tSUBTLEX\tDom_Pos\n"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(tmp_path) -> Path:
    with tarfile.open(tmp_path / "wordnet.tar.gz", "w:gz") as tar:
        for name, text in OTHERS.items():
            (tmp_path / name).write_text(text)
            tar.add(tmp_path / name, f"src/yaml/{name}")
    return tmp_path / "wordnet.tar.gz"


def test_a_tiny_wordnet_becomes_exact_rows(tiny, tmp_path):
    script("build_wordnet").main([str(tiny), "--out", str(tmp_path / "out")])
    words, synsets, links = (
        pq.read_table(tmp_path / "out" / f"{name}.parquet")
        for name in ("words", "synsets", "links")
    )
    # synsets by (field, id): 0 doggy, 1 undoggy, 2..5 animals, 6 hot dog, 7 the verb
    assert [tuple(row.values()) for row in words.to_pylist()] == [
        ("a", "doggy", False, [0], []),
        ("a", "undoggy", False, [1], []),
        ("n", "bow", False, [5, 2], []),  # n-1 before n-2
        ("n", "dog", False, [3, 4, 2], ["dogs", "dogges"]),  # dog before Dog, a sense of both once
        ("n", "hot dog", False, [6], []),
        ("n", "pug", True, [4], []),
        ("v", "dog", False, [7], []),
    ]
    assert synsets["field"].to_pylist() == [
        "adj.all",
        "adj.all",
        *["noun.animal"] * 4,
        "noun.food",
        "verb.motion",
    ]
    assert synsets["satellite"].to_pylist() == [False, True, *[False] * 6]
    assert synsets["hypernyms"].to_pylist() == [[], [], [], [2], [3, 2], [], [], []]
    assert synsets["parts"].to_pylist() == [[], [], [], [5, 4], [], [], [], []]
    assert [synsets[name].to_pylist()[7] for name in ("entails", "causes")] == [[7], [7]]
    assert [synsets[name].to_pylist()[:2] for name in ("similar", "also", "attributes")] == [
        [[1], [0]],
        [[], [0]],
        [[2], []],
    ]
    assert synsets["genus"].to_pylist() == [[], [], [], [], [3], [], [], []]  # a small dog
    assert [tuple(row.values()) for row in links.to_pylist()] == [
        ("antonym", 0, 0, 1, 1),  # said by both, kept once
        ("derivation", 0, 0, 3, 3),
        ("derivation", 3, 3, 6, 7),  # an agent is a derivation
        ("pertainym", 0, 0, 3, 3),  # from the adjective to the noun
    ]


def test_the_order_of_the_files_in_the_tar_does_not_matter(tiny, tmp_path):
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for name in reversed(OTHERS):
            tar.add(tmp_path / name, name)
    build = script("build_wordnet")
    for file, out in ((tiny, "one"), (tmp_path / "other.tar", "two")):
        build.main([str(file), "--out", str(tmp_path / out)])
    assert all(
        (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        for name in ("words.parquet", "links.parquet")
    )


def test_a_tar_without_wordnet_is_named(tmp_path):
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(SystemExit, match=r"empty.tar: expected entries-"):
        script("build_wordnet").main([str(tmp_path / "empty.tar"), "--out", str(tmp_path)])


def test_norms_become_exact_rows(tmp_path):
    (tmp_path / "norms.txt").write_text(
        NORMS + "Zoo\t0\t4.5\t.5\t0\t25\t1.00\t9\tNoun\nhot "
        " dog\t1\t5\t0\t1\t25\t0.96\t0\t\nnull\t0\t2\t1\t0\t20\t.5\t0\t\n"
    )
    script("build_concreteness").main([str(tmp_path / "norms.txt"), "--out", str(tmp_path)])
    rows = pq.read_table(tmp_path / "ratings.parquet").to_pylist()
    assert [(row["word"], row["bigram"], row["mean"], row["sd"]) for row in rows] == [
        ("hot dog", True, 5, 0),
        ("null", False, 2, 1),  # a word, not a missing value
        ("zoo", False, 4.5, 0.5),
    ]
    assert [row["known"] for row in rows] == [pytest.approx(0.96), 0.5, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Word\tRating\nzoo\t4\n", r"missing columns \['Bigram'"),
        (NORMS + "Zoo\t0\t4\t1\t0\t9\t1\t1\t\nzoo\t0\t3\t1\t0\t9\t1\t1\t\n", "two rows: .'zoo'"),
    ],
)
def test_norms_that_cannot_be_read_are_named(tmp_path, text, says):
    (tmp_path / "norms.txt").write_text(text)
    with pytest.raises(SystemExit, match=says):
        script("build_concreteness").main([str(tmp_path / "norms.txt"), "--out", str(tmp_path)])


def test_the_committed_ratings_are_the_norms():
    table = pq.read_table(DATA / "concreteness" / "ratings.parquet")
    words, mean = table["word"].to_pylist(), table["mean"].to_numpy()
    assert (len(words), sum(table["bigram"].to_pylist())) == (39954, 2896)
    assert words == sorted(set(words))
    of = dict(zip(words, np.round(mean, 2).tolist(), strict=True))
    # the method's figure; its plate is cut to 4.7
    published = {"broccoli": 4.87, "pasta": 4.86, "chicken": 4.8, "plate": 4.77}
    assert {word: pytest.approx(of[word], abs=5e-3) for word in published} == published
    assert mean.min() >= 1 and mean.max() <= 5


def test_the_committed_wordnet_is_whole_and_small():
    tables = {
        name: pq.read_table(DATA / "wordnet" / f"{name}.parquet")
        for name in ("words", "synsets", "links")
    }
    assert {name: table.num_rows for name, table in tables.items()} == {
        "words": 135317,
        "synsets": 107525,
        "links": 48768,
    }
    assert sum(file.stat().st_size for file in (DATA / "wordnet").iterdir()) < 2_000_000
    pairs = list(
        zip(tables["words"]["pos"].to_pylist(), tables["words"]["lemma"].to_pylist(), strict=True)
    )
    assert pairs == sorted(set(pairs))
    senses = tables["words"]["senses"].combine_chunks()
    assert set(senses.flatten().to_pylist()) == set(range(107525))  # every synset has a word
    assert min(senses.value_lengths().to_pylist()) == 1


def test_the_norms_rebuild_the_committed_bytes(shared, tmp_path):
    source = shared / "concreteness" / "Concreteness_ratings_Brysbaert_et_al_BRM.txt"
    script("build_concreteness").main([str(source), "--out", str(tmp_path)])
    _same(tmp_path / "ratings.parquet", DATA / "concreteness" / "ratings.parquet")


@pytest.mark.slow
def test_wordnet_rebuilds_the_committed_bytes(shared, tmp_path):
    script("build_wordnet").main(
        [str(shared / "open-english-wordnet" / "oewn-yaml.tar.gz"), "--out", str(tmp_path)]
    )
    for name in ("words", "synsets", "links"):
        _same(tmp_path / f"{name}.parquet", DATA / "wordnet" / f"{name}.parquet")


def _same(made: Path, committed: Path) -> None:
    """The rows always; the bytes where the same version of Arrow wrote them."""
    assert pq.read_table(made).equals(pq.read_table(committed))
    if pq.read_metadata(made).created_by == pq.read_metadata(committed).created_by:
        assert made.read_bytes() == committed.read_bytes()
