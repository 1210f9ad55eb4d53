"""Exports for trainers that nest, and the card by which a folder loads as it is."""

import json
from typing import get_args

import pytest
from test_export import NEGATIVES, TEXTS, rows
from toy import COSINES, DOCUMENT_TEXTS, GOLD, HOW, QUERY_TEXTS, toy_run

from miner.engine import How
from miner.errors import UserError
from scoring.export import export
from scoring.export_options import Export, Format
from scoring.metrics import Score
from scoring.recipe import Select
from scoring.score import score
from scoring.select import select
from scoring.trainers import TRAINERS


@pytest.fixture
def run(tmp_path):
    run = toy_run(tmp_path / "run", shard_queries=2)
    select(run, Select(name="bm25", sources=("bm25",)), HOW)
    return run


def lines(run, folder):
    files = [run.path / folder / f"{key}.jsonl" for key in run.query_shards()]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def whole(doc_ids):
    return [TEXTS[doc_id] for doc_id in doc_ids]


def gold(query):
    return sorted(GOLD[query])


def test_every_trainer_is_a_format():
    assert {*TRAINERS} < {*get_args(Format)}


def test_flag_embedding(run):
    manifest = export(run, Export(name="bm25", format="flag-embedding", prompt="p: "), HOW)
    found = lines(run, "8_export/bm25.flag-embedding")
    assert [row["query"] for row in found] == [QUERY_TEXTS[query] for query in NEGATIVES]
    for query, row in zip(NEGATIVES, found, strict=True):
        assert row["pos"] == whole(gold(query)) and row["neg"] == whole(NEGATIVES[query])
        assert row["pos_scores"] == pytest.approx([COSINES[query][one] for one in gold(query)])
        expected = [COSINES[query][one] for one in NEGATIVES[query]]
        assert row["neg_scores"] == pytest.approx(expected)
        assert (row["prompt"], row["query_prompt"], row["type"]) == ("p: ", "p: ", "normal")
    assert manifest.drops == {"no_negatives": 1} and manifest.rows["rows"] == 4


def test_flag_embedding_without_scores_has_no_columns_of_scores(tmp_path):
    run = toy_run(tmp_path / "run", similarity=None)
    select(run, Select(name="s", sources=("bm25",)), HOW)
    export(run, Export(name="s", format="flag-embedding", negatives=2), HOW)
    found = lines(run, "8_export/s.flag-embedding")
    assert list(found[0]) == ["query", "pos", "neg", "type"]
    assert [row["neg"] for row in found] == [whole(ids[:2]) for ids in NEGATIVES.values()]
    with pytest.raises(UserError, match="no scores of negatives and positives, which pylate needs"):
        export(run, Export(name="s", format="pylate"), HOW)


def test_tevatron(run):
    export(run, Export(name="bm25", format="tevatron"), HOW)
    for query, row in zip(NEGATIVES, lines(run, "8_export/bm25.tevatron"), strict=True):
        assert (row["query_id"], row["query"]) == (query, QUERY_TEXTS[query])
        for part, ids in (("positive", gold(query)), ("negative", NEGATIVES[query])):
            told = [(one["docid"], one["title"], one["text"]) for one in row[f"{part}_passages"]]
            assert told == [(doc_id, *DOCUMENT_TEXTS[doc_id]) for doc_id in ids]


def test_pylate_loads_as_three_tables(run):
    from datasets import load_dataset

    manifest = export(run, Export(name="bm25", format="pylate"), HOW)
    folder = str(run.path / "8_export/bm25.pylate")
    train, queries, documents = (
        load_dataset(folder, name, split="train") for name in ("train", "queries", "documents")
    )
    texts = dict(zip(documents["document_id"], documents["text"], strict=True))
    asked = dict(zip(queries["query_id"], queries["text"], strict=True))
    assert manifest.rows["rows"] == len(train) == 4
    for row in train:
        ids = [*gold(row["query_id"]), *NEGATIVES[row["query_id"]]]
        assert row["document_ids"] == ids and asked[row["query_id"]]
        assert row["scores"] == pytest.approx([COSINES[row["query_id"]][one] for one in ids])
        assert [texts[one] for one in ids] == whole(ids)


@pytest.mark.parametrize(("name", "role"), [("embedding", "user"), ("reranker", "assistant")])
def test_swift(run, name, role):
    export(run, Export(name="bm25", format=f"swift-{name}", prompt="s"), HOW)
    for query, row in zip(NEGATIVES, lines(run, f"8_export/bm25.swift-{name}"), strict=True):
        assert row["messages"] == [
            {"role": "system", "content": "s"},
            {"role": "user", "content": QUERY_TEXTS[query]},
        ]
        expected = [[{"role": role, "content": text}] for text in whole(NEGATIVES[query])]
        assert row["negative_messages"] == expected
        assert len(row["positive_messages"]) == len(GOLD[query])


def test_preference(run):
    export(run, Export(name="bm25", format="preference", negatives=1, prompt="Q: "), HOW)
    assert rows(run, "8_export/bm25.preference") == [
        {
            "prompt": f"Q: {QUERY_TEXTS[query]}",
            "chosen": TEXTS[positive],
            "rejected": TEXTS[NEGATIVES[query][0]],
        }
        for query in NEGATIVES
        for positive in gold(query)
    ]


@pytest.mark.parametrize("form", ["triplet", "flag-embedding", "tevatron", "labeled-list"])
def test_a_folder_loads_as_it_is(run, form):
    from datasets import load_dataset

    score(run, Score(resamples=0), HOW)
    manifest = export(run, Export(name="bm25", format=form, card=True), HOW)
    folder = run.path / f"8_export/bm25.{form}"
    loaded = load_dataset(str(folder), split="train")
    assert len(loaded) == manifest.rows["rows"]
    card = (folder / "README.md").read_text()
    assert "13 negatives of 5 queries over 12 documents" in card and "Scored: ECI" in card
    assert str(run.path) not in card


def test_options_that_do_not_fit_are_refused(run):
    for options, said in (
        ({"format": "triplet", "prompt": "x"}, "--prompt is not for triplet"),
        ({"format": "tevatron", "concreteness": True}, "--concreteness is not for tevatron"),
        ({"format": "tevatron", "ids": True}, "--ids is not for tevatron"),
    ):
        with pytest.raises(UserError, match=said):
            export(run, Export(name="bm25", **options), HOW)


def test_shards_give_the_same_rows(tmp_path):
    found = []
    for size in (1, 5):
        run = toy_run(tmp_path / str(size), shard_queries=size)
        select(run, Select(name="bm25", sources=("bm25",)), HOW)
        export(run, Export(name="bm25", format="tevatron"), HOW)
        found.append(lines(run, "8_export/bm25.tevatron"))
    assert found[0] == found[1]


def test_an_export_made_anew_is_not_taken_from_the_cache_of_the_one_before(run, tmp_path):
    datasets = pytest.importorskip("datasets")
    seen = []
    for negatives, scores in ((2, False), (2, True), (3, True)):
        asked = Export(name="bm25", format="n-tuple", card=True, negatives=negatives, scores=scores)
        export(run, asked, How(force=True))
        folder = str(run.path / "8_export/bm25.n-tuple")
        loaded = datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path / "cache"))
        seen.append(loaded.column_names)
    texts = ["anchor", "positive", "negative_1", "negative_2"]
    assert seen == [texts, [*texts, "label"], [*texts, "negative_3", "label"]]
