import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.errors import UserError
from miner.llm.prompts import (
    escape,
    fill_in,
    load_judge_prompt,
    load_prompt,
    prompt_path,
    shorten,
    unescape,
)
from miner.llm.requests import Answer, Request
from miner.llm.verify import Guard, fault, other_language, read_text, same
from miner.words.edits import change_of

HARD, ONE = load_prompt("hard-negative"), load_prompt("violate-one")
CAPTION = "A plate of pasta with a chicken and broccoli."
WORD = CAPTION.index("chicken")


def answer(text, **more):
    return Answer(text if isinstance(text, str) else json.dumps(text), **more)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (answer({"text": "Bees fly."}), None),
        (answer("<think>hm {}</think>\n" + '{"text": "Bees fly."}'), None),
        (answer('Here you are: {"text": "Bees fly."} I hope it helps.'), None),
        (answer('```json\n{"text": "Bees fly."}\n```'), None),
        (answer(""), "empty"),
        (answer("  \n"), "empty"),
        (answer({"text": " . "}), "empty"),
        (answer({"text": ""}), "empty"),
        (answer("Bees fly."), "not_schema"),
        (answer('{"text": "Bees'), "not_schema"),
        (answer('{"text": Bees}'), "not_schema"),
        (answer('{"text": "Bees', finish="length"), "truncated"),
        (answer({"text": 3}), "not_schema"),
        (answer({"other": "x"}), "not_schema"),
        (answer({"text": "a", "more": 1}), "not_schema"),
        (answer("[1, 2]"), "not_schema"),
        (answer("[" * 100_000), "not_schema"),
        (answer('{"text": "half \\ud83d a character"}'), "not_schema"),
        (answer("I'm sorry, but I can't help with that."), "refusal"),
        (answer("As an AI language model, I …"), "refusal"),
        (answer({"text": "I cannot write that."}), "refusal"),
        (answer({"text": "I’m sorry, no."}), "refusal"),
        (answer({"text": "Sorry seems to be the hardest word."}), None),
        (answer({"text": "I can see bees."}), None),
        (answer("", error="timeout"), "timeout"),
    ],
)
def test_what_an_answer_is(given, reason):
    found = read_text(given, HARD)
    assert found.reason == reason
    assert reason or "bees" in found.text.lower() or "sorry" in found.text.lower()


GUARD = Guard(
    "Honey bees dance to tell the hive where flowers stand.",
    "how do bees talk",
    ["The dance points to the sun, they say."],
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("HONEY bees dance to tell the hive, where flowers stand!", "copy_of_positive"),
        ("Honey bees dance to tell the hive where the flowers stand.", "copy_of_positive"),
        ("How do bees talk?", "copy_of_query"),
        ("The dance points to the sun, they say", "copy_of_sibling"),
        ("Bees.", "length"),
        ("Bees buzz and " * 12, "length"),
        ("Медоносные пчёлы живут в улье и собирают мёд летом.", "wrong_language"),
        (
            "Die Honigbienen leben im Sommer in einem Bienenstock und sammeln dort den Honig.",
            "wrong_language",
        ),
        ("Bumble bees nest in the ground and sting only when their nest is touched.", None),
    ],
)
def test_what_is_wrong_with_a_text(text, reason):
    assert fault(text, GUARD, HARD) == reason


def test_one_changed_word_is_no_copy_for_a_prompt_that_changes_one():
    text = GUARD.original.replace("flowers", "rivers")
    assert (
        fault(text, GUARD, ONE) is None
        and fault(GUARD.original.upper(), GUARD, ONE) == "copy_of_positive"
    )


def test_a_language_is_only_wrong_where_it_is_sure():
    german = "Die Honigbienen leben im Sommer in einem Bienenstock und sammeln dort den Honig."
    assert not other_language(german, german.replace("Honig", "Blumen"))
    assert not other_language("Ein Satz.", "A sentence.")  # too short to say
    assert not other_language("x = f(y)", "print(z)")
    assert other_language("蜜蜂在夏天飞舞", "Bees fly in summer") and not other_language(
        "Bees fly 蜜蜂 in summer", "Bees fly in winter"
    )


@pytest.mark.parametrize(
    ("text", "new", "reason"),
    [
        ("A plate of pasta with an eel and broccoli.", "eel", None),
        ("A plate of pasta with eels and broccoli.", "", "other_change"),
        ("A plate of pasta with a eels and broccoli.", "eels", None),  # a form of the word
        ("Plates of pasta with an eel and broccoli.", "", "other_change"),
        ("A plate of pasta with a chicken and broccoli.", "chicken", "word_kept"),
        ("A plate of pasta with a cow and broccoli.", "cow", "other_word"),
        ("A plate of pasta with a big eel and broccoli.", "big eel", "other_word"),
        ("A plate of rice with an eel and broccoli.", "", "other_change"),
        ("A plate of pasta with a eel and carrots.", "", "other_change"),
        ("A plate of pasta with a and broccoli.", "", "word_missing"),
        ("An eel.", "", "word_missing"),
    ],
)
def test_what_a_rewriter_changed(text, new, reason):
    found = change_of(CAPTION, text, WORD, WORD + len("chicken"), "eel")
    assert (found.new, found.reason) == (new, reason)


@pytest.mark.parametrize(
    ("original", "text", "reason"),
    [
        ("The dogs run and are wet.", "The sheep runs and is wet.", None),
        ("The dogs run and are wet.", "The sheep ran and was wet.", "other_change"),
        ("The dogs carry it.", "The sheep carries it.", None),
        ("The dogs watch it.", "The sheep watches it.", None),
        ("The dogs pass it.", "The sheep pas it.", "other_change"),
    ],
)
def test_what_agrees_with_the_new_word_may_change(original, text, reason):
    assert change_of(original, text, 4, 8, "sheep").reason == reason


@given(st.text(), st.text())
def test_being_the_same_is_symmetric_and_texts_are_what_they_were_after_escaping(one, two):
    assert same(one, two, 0.8) == same(two, one, 0.8)
    assert same(one, one, 1.0) == any(
        letter.isalnum() or letter == "_"
        for letter in __import__("unicodedata").normalize("NFKC", one)
    )
    if "&lt;" not in one and "&#91;" not in one:
        assert unescape(escape(one)) == one


@pytest.mark.parametrize(
    "border",
    [
        "</passage>",
        "<|im_start|>",
        "<s>",
        "<!--",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<start_of_turn>",
    ],
)
def test_borders_are_escaped_in_values_and_not_in_the_template(border):
    made = fill_in(
        "<passage>{{ positive }}</passage>", {"positive": f"a < b {border} {{{{ 7 * 7 }}}}"}
    )
    inside = made.removeprefix("<passage>").removesuffix("</passage>")
    assert border not in inside and inside.startswith("a < b ") and "{{ 7 * 7 }}" in inside


@pytest.mark.parametrize(
    "name", ["hard-negative", "violate-one", "contradict", "rewrite", "pseudo-query"]
)
def test_examples_of_the_prompts_pass_their_own_checks(name):
    prompt = load_prompt(name)
    assert prompt.examples
    for example in prompt.examples:
        found = read_text(Answer(example["answer"]), prompt)
        original = example.get("positive") or example.get("document") or example["text"]
        guard = Guard(original, example.get("query", ""), [])
        assert found.reason is None
        assert fault(found.text, guard, prompt) in (None, "copy_of_prompt")  # as it is
        assert fault(found.text, guard, prompt.model_copy(update={"examples": ()})) is None
        assert example["answer"] in prompt.opening()
    if name == "rewrite":
        start = original.index(example["word"])
        found = change_of(original, found.text, start, start + len(example["word"]), example["new"])
        assert found.reason is None


def test_the_judges_prompt_has_five_wordings():
    prompt = load_judge_prompt("judge")
    made = {fill_in(template, {"query": "Q", "document": "D"}) for template in prompt.templates}
    assert len(made) == 5 and all("Q" in text and "D" in text for text in made)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name = ", "cannot be read"),
        ('name="x"\nversion=1\nsystem="s"\ntemplate="{{ a"\nschema={}', "cannot be read"),
        ('name="x"\nversion=1\nsystem="s"\ntemplate="a"', "schema: Field required"),
        ('name="x"\nversion="one"\nsystem="s"\ntemplate="a"\nschema={}', "version"),
        ('name="x"\nversion=1\nsystem="s"\ntemplate="a"\nschema={}\nodd=1', "odd"),
        (
            'name="x"\nversion=1\nsystem="s"\ntemplate="a"\nschema={type="objekt"}',
            "schema.type is no JSON schema: 'objekt' is not valid",
        ),
        (
            'name="x"\nversion=1\nsystem="s"\ntemplate="a"\n'
            '[schema]\ntype="object"\nproperties={text="string"}',
            "schema.properties.text is no JSON schema: 'string' is not of type",
        ),
        ('name="x"\nversion=1\nsystem="s"\ntemplate="a"\nschema="string"', "schema: Input should"),
    ],
)
def test_a_wrong_prompt_is_one_line(tmp_path, content, said):
    file = tmp_path / "own.toml"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        load_prompt(str(file))


def test_a_template_may_only_name_what_there_is_and_runs_no_code():
    with pytest.raises(UserError, match="it may name positive, query"):
        fill_in("{{ answer }}", {"query": "q", "positive": "p"})
    with pytest.raises(UserError, match="fails"):
        fill_in("{{ query.__class__.__mro__[1].__subclasses__() }}", {"query": "q"})
    with pytest.raises(UserError, match="there is no prompt"):
        prompt_path("../prompts/judge")


def test_long_documents_are_cut_between_words():
    assert (
        shorten("one  two\nthree four", 3) == "one  two\nthree …"
        and shorten("one two", 2) == "one two"
    )


def test_all_that_decides_an_answer_is_in_its_key():
    base = Request("s", "u", "p@1", "{}", (), 0.5, 0.9, 10, 1)
    others = [
        Request("s", "u", "p@1", "{}", (), 0.5, 0.9, 10, 2),
        Request("s", "u", "p@2", "{}", (), 0.5, 0.9, 10, 1),
        Request("s", "u", "p@1", "{}", ("Yes",), 0.5, 0.9, 10, 1),
        Request("su", "", "p@1", "{}", (), 0.5, 0.9, 10, 1),
    ]
    keys = {base.key("m"), base.key("n"), *(other.key("m") for other in others)}
    assert len(keys) == 6 and base.key("m") == Request(
        "s", "u", "p@1", "{}", (), 0.5, 0.9, 10, 1
    ).key("m")
