"""Parsing: exact parses, texts rebuilt from tokens, models that are not there, what ships with
the project.
"""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.errors import UserError
from miner.words.data_files import data_file
from miner.words.parsing import Parsed, _load_spacy, load_parser, parser_fingerprint

TEXTS = [
    "A man riding a wave on top of a surfboard",
    "",
    "Two dogs are chasing a red frisbee. It flies over the fence!",
    "how many wheels does a truck have?",
    " \n\t ",
    "The children's knives weren't on the wooden tables.",
    "Wo\u0301w \N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{GRINNING FACE} nul\x00nul  two spaces ",
    "x",
]


@pytest.fixture(scope="module")
def parse():
    return load_parser("en_quarry")


def one(parse, text: str) -> Parsed:
    (parsed,) = parse([text])
    return parsed


def rebuilt(parsed: Parsed) -> str:
    return "".join(word + space for word, space in zip(parsed.word, parsed.space, strict=True))


def test_a_caption(parse):
    parsed = one(parse, "Two dogs chased a red ball in the park")
    assert parsed == Parsed(
        word=["Two", "dogs", "chased", "a", "red", "ball", "in", "the", "park"],
        lemma=["two", "dog", "chase", "a", "red", "ball", "in", "the", "park"],
        pos=["NUM", "NOUN", "VERB", "DET", "ADJ", "NOUN", "ADP", "DET", "NOUN"],
        tag=["CD", "NNS", "VBD", "DT", "JJ", "NN", "IN", "DT", "NN"],
        start=[0, 4, 9, 16, 18, 22, 27, 30, 34],
        space=[" "] * 8 + [""],
        head=[1, 2, 2, 5, 5, 2, 8, 8, 2],
        dep=["nummod", "nsubj", "ROOT", "det", "amod", "obj", "case", "det", "obl"],
        stop=[True, False, False, True, False, False, True, True, False],
        sentence=[0] * 9,
    )


def test_sentences_contractions_and_questions(parse):
    parsed = one(parse, "The dog isn't barking. Where are the women's old knives?")
    assert parsed.word == [
        "The",
        "dog",
        "is",
        "n't",
        "barking",
        ".",
        "Where",
        "are",
        "the",
        "women",
        "'s",
        "old",
        "knives",
        "?",
    ]
    assert parsed.lemma == [
        "the",
        "dog",
        "be",
        "not",
        "bark",
        ".",
        "where",
        "be",
        "the",
        "woman",
        "'s",
        "old",
        "knife",
        "?",
    ]
    assert parsed.sentence == [0] * 6 + [1] * 8
    assert (parsed.pos[2], parsed.tag[2], parsed.tag[4]) == ("AUX", "VBZ", "VBG")
    assert parsed.dep[9] == "nmod:poss" and parsed.word[parsed.head[9]] == "knives"


@pytest.mark.parametrize(
    ("text", "word", "lemma", "pos"),
    [
        ("a boat full of sliced oranges", "oranges", "orange", "NOUN"),
        ("Leaves are falling from the trees", "Leaves", "leaf", "NOUN"),
        ("A man is riding a bicycle", "riding", "ride", "VERB"),
        ("The bigger elephant stands behind the fence", "bigger", "big", "ADJ"),
        ("Several buses parked near a tall building", "buses", "bus", "NOUN"),
        ("People are sitting on the grass", "sitting", "sit", "VERB"),
        ("We visited London in May", "London", "London", "PROPN"),
    ],
)
def test_lemmas(parse, text, word, lemma, pos):
    parsed = one(parse, text)
    place = parsed.word.index(word)
    assert (parsed.lemma[place], parsed.pos[place]) == (lemma, pos)


def test_white_space_is_no_word(parse):
    parsed = one(parse, "a  cat\n")
    assert (parsed.word, parsed.pos) == (["a", " ", "cat", "\n"], ["DET", "SPACE", "NOUN", "SPACE"])
    assert (parsed.tag[1], parsed.lemma[1], parsed.start) == ("_SP", " ", [0, 2, 3, 6])


def test_empty_texts_have_no_words(parse):
    assert one(parse, "") == Parsed(*([] for _ in Parsed._fields))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=4))
def test_words_give_the_text_back(texts):
    for text, parsed in zip(texts, load_parser("en_quarry")(texts), strict=True):
        assert rebuilt(parsed) == text
        assert all(
            text.startswith(word, start)
            for word, start in zip(parsed.word, parsed.start, strict=True)
        )
        assert len({len(values) for values in parsed}) == 1
        assert all(0 <= head < len(parsed.word) for head in parsed.head)
        assert sorted(parsed.sentence) == parsed.sentence and parsed.sentence[:1] in ([], [0])


def test_long_texts_are_cut(parse):
    text = "a cat and " * 20
    assert rebuilt(next(load_parser("en_quarry", longest=25)([text]))) == text[:25]
    for endless in ("(" * 3000, "a" * 15_000, "-a" * 3000):
        assert rebuilt(one(parse, endless)) == endless


def test_a_parse_does_not_depend_on_its_neighbours(parse):
    whole = list(parse(TEXTS * 3))
    assert whole == [one(parse, text) for text in TEXTS] * 3
    assert list(parse(TEXTS[::-1])) == whole[: len(TEXTS)][::-1]
    assert [rebuilt(parsed) for parsed in whole] == TEXTS * 3


@pytest.mark.parametrize("name", ["en_core_web_smm", "no/such/folder", "en.core.web", "", "pytest"])
def test_unknown_models(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ask in (load_parser, parser_fingerprint):
        with pytest.raises(UserError) as caught:
            ask(name)
        assert (
            "--spacy-model" in str(caught.value)
            and repr(name) in str(caught.value)
            and "en_quarry" in str(caught.value)
        )
        assert "\n" not in str(caught.value)


def test_models_that_cannot_do_it(tmp_path):
    import spacy

    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="gives no POS, TAG, LEMMA, DEP"):
        load_parser(str(tmp_path / "blank"))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.cfg").write_text("[nlp]\nlang =")
    with pytest.raises(UserError, match="spaCy cannot load") as caught:
        load_parser(str(tmp_path / "torn"))
    assert "\n" not in str(caught.value)


def test_a_folder_is_a_model_and_its_bytes_are_in_the_fingerprint(tmp_path, parse):
    copy = tmp_path / "copy"
    shutil.copytree(data_file("en_quarry"), copy)
    assert list(load_parser(str(copy))(TEXTS)) == list(parse(TEXTS))
    name, version, digest = parser_fingerprint("en_quarry").split()
    assert (name, version) == ("en_quarry", "0.1.0")
    assert parser_fingerprint(str(copy)) == f"copy 0.1.0 {digest}"
    (copy / "tokenizer").write_bytes((copy / "tokenizer").read_bytes() + b" ")
    assert parser_fingerprint(str(copy)).split()[2] != digest


def test_auto_takes_an_installed_model_first(tmp_path, monkeypatch):
    import miner.words.parsing

    monkeypatch.setattr(
        miner.words.parsing, "PREFERRED", ("en_core_quarry_md", "en_core_quarry_sm")
    )
    assert parser_fingerprint("auto") == parser_fingerprint("en_quarry")
    package = tmp_path / "en_core_quarry_sm"
    package.mkdir()
    loads = (
        "import spacy\n\n\ndef load(**options):\n    return"
        f" spacy.load({str(data_file('en_quarry'))!r}, **options)\n"
    )
    (package / "__init__.py").write_text(loads)
    (package / "meta.json").write_text("{}")
    (tmp_path / "en_core_quarry_sm-3.8.0.dist-info").mkdir()
    (tmp_path / "en_core_quarry_sm-3.8.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: en-core-quarry-sm\nVersion: 3.8.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert parser_fingerprint("auto").startswith("en_core_quarry_sm 3.8.0 ")
    assert next(load_parser("auto")(["two cats"])).lemma == ["two", "cat"]
    _load_spacy.cache_clear()


def test_what_ships():
    folder = data_file("en_quarry")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    assert not [
        path
        for path in files
        if path.suffix in (".pkl", ".pickle", ".pt", ".bin") and path.name != "lookups.bin"
    ]
    assert not [
        path
        for path in files
        if (data := path.read_bytes())[:1] == b"\x80"
        and data[1:2] in b"\x02\x03\x04\x05"
        and data[-1:] == b"."
    ]
    lookups = json.loads((folder / "vocab" / "vectors.cfg").read_text())
    assert lookups["attr"] == 66  # LOWER: spaCy would look up words as they are written
    assert _load_spacy(str(folder)).vocab["Surfboard".lower()].has_vector


def test_figures_meet_the_targets_and_stand_in_the_readme():
    figures = json.loads((data_file("en_quarry") / "meta.json").read_text("utf-8"))["performance"]
    gold, plain = figures["gold_words"], figures["plain_text"]
    assert gold["upos"] >= 0.95 and gold["lemma"] >= 0.95 and gold["las"] >= 0.80
    readme = (Path(__file__).parents[1] / "data" / "README.md").read_text("utf-8")
    for label, name in (
        ("UPOS", "upos"),
        ("PTB tag", "tag"),
        ("lemma", "lemma"),
        ("UAS", "uas"),
        ("LAS", "las"),
    ):
        assert f"| {label} | {100 * gold[name]:.2f} | {100 * plain[name]:.2f} |" in readme


def test_figures_are_those_of_the_test_part(shared):
    """Counted here again, without the script: parts of speech and lemmas of the treebank's own
    words.
    """
    import spacy
    from spacy.tokens import Doc

    nlp = spacy.load(data_file("en_quarry"))
    right, lemmas, total, rows = 0, 0, 0, list[list[str]]()
    docs, golds = [], []
    for line in (
        (shared / "ud-english-ewt" / "en_ewt-ud-test.conllu").read_text("utf-8").split("\n")
    ):
        if line[:1].isdigit() and line.split("\t")[0].isdigit():
            rows.append(line.split("\t"))
        elif not line and rows:
            docs.append(
                Doc(
                    nlp.vocab,
                    [row[1] for row in rows],
                    ["SpaceAfter=No" not in row[9] for row in rows],
                )
            )
            golds.append(rows)
            rows = []
    for doc, gold in zip(nlp.pipe(docs), golds, strict=True):
        right += sum(token.pos_ == row[3] for token, row in zip(doc, gold, strict=True))
        lemmas += sum(token.lemma_ == row[2] for token, row in zip(doc, gold, strict=True))
        total += len(gold)
    assert total == 25094
    figures = nlp.meta["performance"]["gold_words"]
    assert (right / total, lemmas / total) == pytest.approx(
        (figures["upos"], figures["lemma"]), abs=1e-4
    )
