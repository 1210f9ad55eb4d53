"""How long a text may be, what is made of one that was cut off, and copies of the prompt."""

import json

import pytest

from miner.llm.generate import MineGenerate
from miner.llm.prompts import load_prompt
from miner.llm.requests import Answer
from miner.llm.verify import REMEDIES, Guard, fault, read_text, room_for
from miner.llm.writing import Task, request_of, write

PROMPT = load_prompt("hard-negative")
ORIGINAL = " ".join(["Copper carries heat better than most of the other metals."] * 10)
TEXT = "Tin is a soft metal. It was mixed with other metals long ago. " * 3 + "It shines."
OPTIONS = MineGenerate(server="http://127.0.0.1:9")


def guard(words=0, original=ORIGINAL):
    return Guard(original, "which metal", [], words)


def test_room_follows_from_the_prompt_and_from_what_is_shown():
    room = room_for(PROMPT, guard(), None, False)
    least, most = (share * len(ORIGINAL) for share in PROMPT.length)
    assert room.words == 150 and least <= room.characters[0] < 1.42 * least
    assert 0.7 * most < room.characters[1] <= most
    shown = room_for(PROMPT, guard(words=20), None, False)
    assert 29 <= shown.words <= 31 and shown.tokens < room.tokens / 3
    assert room_for(load_prompt("pseudo-query"), guard(), None, False).characters[1] <= 160


def test_every_text_that_is_asked_for_fits_its_tokens():
    for most in (80, 160, None):
        room = room_for(PROMPT, guard(), most, False)
        if room is None:
            assert most == 80  # a third of 100 words is more than 80 tokens are sure to hold
        else:
            assert room.tokens <= (most or 10**6) and room.words * 5.8 / 2.5 <= room.tokens
            text = " ".join((TEXT.split() * 4)[: room.words])
            assert fault(text, guard(), PROMPT) is None


def test_a_text_that_was_too_long_is_asked_for_shorter_and_told_so():
    task = Task("q1", "d1", 0, {"query": "which metal", "positive": ORIGINAL}, guard())
    first, again = (request_of(PROMPT, task, 0, OPTIONS, why) for why in ("", "truncated"))
    assert "at most 150 words" in first.user and "at most 75 words" in again.user
    assert again.user.endswith(REMEDIES["truncated"]) and again.max_tokens < first.max_tokens
    longest = [json.loads(one.schema)["properties"]["text"]["maxLength"] for one in (first, again)]
    assert longest[1] < longest[0]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('{"text": "Tin is soft. It melts at 232 °C! And th', "Tin is soft. It melts at 232 °C!"),
        ('{"text": "Tin is \\"soft.\\" It m', 'Tin is "soft."'),
        ('{"text": "Tin is soft.\\nIt m\\u00', "Tin is soft."),
        ('{"text": "锡很软。它在', "锡很软。"),
        ('{"text": "Tin costs 3.50 dol', None),
        ('{"te', None),
    ],
)
def test_a_text_that_was_cut_off_ends_at_its_last_sentence(raw, text):
    found = read_text(Answer(raw, "length"), PROMPT)
    assert (found.text, found.reason, found.closed) == (
        (text, None, True) if text else (raw, "truncated", False)
    )
    assert read_text(Answer(raw, "stop"), PROMPT).reason == "not_schema"
    assert read_text(Answer(raw, "length"), load_prompt("contradict")).reason == "truncated"


@pytest.mark.parametrize(("most", "closed"), [(37, False), (38, True), (39, False)])
def test_a_text_that_the_schema_ended_ends_at_a_sentence(most, closed):
    answer = Answer(json.dumps({"text": "Tin is soft. It melts at two hundred a"}))
    found = read_text(answer, PROMPT, PROMPT.schema_text(0, most))
    assert (found.text == "Tin is soft.", found.closed, found.reason) == (closed, closed, None)
    assert not read_text(answer, load_prompt("contradict"), PROMPT.schema_text(0, most)).closed


def test_a_copy_of_the_example_or_of_the_instructions_is_a_fault_of_its_own():
    example = json.loads(PROMPT.examples[0]["answer"])["text"]
    told = "Write another passage: same topic, same words where possible, same style and length."
    tower = guard(original=PROMPT.examples[0]["positive"])
    about = "The Eiffel Tower in Paris is seen from afar, and visitors climb it by 1,710 steps."
    for text in (example, f"Tin is soft. {example}", told):
        assert fault(text, guard(original="tin " * 25), PROMPT) == "copy_of_prompt"
    assert fault(about, tower, PROMPT) is None  # the words are its own original's too
    assert fault("Tin is a soft metal in the fourteenth group.", guard(words=20), PROMPT) is None


class Model:
    """Answers with what was ordered, in turn, and keeps what it was asked."""

    name = "ordered"

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def ask(self, requests, label):
        answers = [Answer(self.texts.pop(0), "stop", (10, 50)) for _ in requests]
        assert all(label(place, answer) for place, answer in enumerate(answers))
        self.asked += requests
        return answers


def test_a_retry_names_what_was_wrong():
    texts = ["no JSON", json.dumps({"text": TEXT})]
    model, fields = Model(*texts), {"query": "which metal", "positive": ORIGINAL}
    made, failures = write(model, PROMPT, [Task("q1", "d1", 0, fields, guard())], OPTIONS)
    assert [one.text for one in made] == [TEXT]
    assert [row[4] for row in failures] == ["not_schema"]
    assert [one.user.endswith(REMEDIES["not_schema"]) for one in model.asked] == [False, True]


@pytest.mark.parametrize(("most", "asked"), [(None, 3), (51, 2), (50, 1)])
def test_a_query_that_cost_too_much_is_not_asked_for_again(most, asked):
    options = OPTIONS.model_copy(update={"tokens_per_negative": most})
    model, fields = Model(*["no JSON"] * 3), {"query": "which metal", "positive": ORIGINAL}
    made, failures = write(model, PROMPT, [Task("q1", "d1", 0, fields, guard())], options)
    assert not made and len(failures) == len(model.asked) == asked


def test_a_text_that_no_answer_can_hold_is_not_asked_for():
    options = OPTIONS.model_copy(update={"max_tokens": 80})
    model, fields = Model(), {"query": "which metal", "positive": ORIGINAL}
    made, failures = write(model, PROMPT, [Task("q1", "d1", 0, fields, guard())], options)
    assert not made and not model.asked
    assert [row[4] for row in failures] == ["no_room"]
