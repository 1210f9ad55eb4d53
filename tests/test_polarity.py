"""Captions negated, and their placebo."""

import json

import pytest

from miner.corpus import made_documents
from miner.engine import How
from miner.errors import UserError
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestCaptions, IngestPairs
from miner.store import Run
from miner.words.polarity import MinePolarity, mine_polarity, turn

HOW = How()


@pytest.mark.parametrize(
    ("text", "negated", "placebo"),
    [
        (
            "A dog is on the grass.",
            "A dog is not on the grass.",
            "A dog is certainly on the grass.",
        ),
        ("There is a cat.", "There is no cat.", "There is certainly a cat."),
        ("a man riding a horse", "no man riding a horse", "a certain man riding a horse"),
        ("The men wait", "No men wait", "The certain men wait"),
        ("It is not red", "It is red", "It is certainly not red"),
        ("They can not see any birds", "They can see any birds", None),
        ("It isn't red", "It is red", "It is certainly not red"),
        ("There are no birds", "There are some birds", "There are certainly no birds"),
        ("No birds fly", "Some birds fly", "Certainly no birds fly"),
        ("Two dogs run", None, None),
        ("An island nation", "No island nation", "A certain island nation"),
        ("This isthmus", None, None),
    ],
)
def test_each_rule(text, negated, placebo):
    found = turn(text)
    assert (found and found.text) == negated
    if placebo:
        assert turn(text, "placebo").text == placebo


def captions(tmp_path, texts):
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(json.dumps({"caption": text}) for text in texts))
    run = Run(tmp_path / "run")
    ingest(run, IngestCaptions(file=str(file)), HOW)
    return run


def test_negations_are_made_documents_with_what_was_changed(tmp_path):
    texts = ["A dog is on the grass.", "Two dogs run", "There is a cat."]
    run = captions(tmp_path, texts)
    made = mine_polarity(run, MinePolarity(), HOW)
    assert made.rows["candidates"] == 2 and made.drops == {"nothing_made": 1}
    for row in made_documents(run, "00000").to_pylist():
        start, end = map(int, row["detail"]["span"].split(":"))
        assert row["text"][start:end].strip() == row["detail"]["new"]
        assert (row["detail"]["route"], row["detail"]["meaning_effect"]) == ("negation", "negation")
    mine_polarity(run, MinePolarity(name="placebo", edit="placebo"), HOW)
    rows = run.read("3_candidates/placebo", "00000")
    assert len(rows) == 2
    effects = {
        row["detail"]["meaning_effect"]
        for row in made_documents(run, "00000").to_pylist()
        if row["detail"]["route"] == "placebo"
    }
    assert effects == {"none"}


def test_retrieval_data_are_refused_unless_it_is_asked_for(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"query": "is it red", "positive": "The roof is red."}))
    run = Run(tmp_path / "run")
    ingest(run, IngestPairs(file=str(file)), HOW)
    with pytest.raises(UserError, match=r"ingested as pairs, where .* pass --retrieval"):
        mine_polarity(run, MinePolarity(), HOW)
    mine_polarity(run, MinePolarity(retrieval=True), HOW)
    texts = made_documents(run, "00000")["text"].to_pylist()
    assert texts == ["The roof is not red."]


def test_a_caption_that_ends_in_a_space_is_the_one_that_is_changed(tmp_path):
    """As 3,541 of COCO's 25,014 do; the other captions of its image are positives as well."""
    file = tmp_path / "captions.jsonl"
    texts = ["A dog is on the grass. ", "There is a dog. ", "A dog stands outside."]
    file.write_text("\n".join(json.dumps({"image": "one", "caption": text}) for text in texts))
    run = Run(tmp_path / "run")
    ingest(run, IngestCaptions(file=str(file), group="image"), HOW)
    mine_polarity(run, MinePolarity(), HOW)
    queries = run.read("1_tables/queries", "00000")
    asked = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    rows = {row["doc_id"]: row["text"] for row in made_documents(run, "00000").to_pylist()}
    candidates = run.read("3_candidates/polarity", "00000").to_pylist()
    found = {asked[row["query_id"]].strip(): rows[row["doc_id"]].strip() for row in candidates}
    assert found == {text.strip(): turn(text.strip()).text for text in texts}
