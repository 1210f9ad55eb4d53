"""mine substitute: made documents, and how the rest of the flow reads them. IngestCaptions here are
made up.
"""

import pyarrow.parquet as pq
import pytest
from toy import rows

from miner.corpus import Documents, made_documents
from miner.engine import How
from miner.errors import UserError
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestCaptions
from miner.llm.prompts import fill_in, load_prompt
from miner.made import made_id
from miner.search.bm25 import index_bm25
from miner.search.tokens import IndexBm25
from miner.store import Run
from miner.words.parsing import load_parser
from miner.words.substitute import mine_substitute, substitute_tasks
from miner.words.swap import swap
from miner.words.vocabulary import MineSubstitute
from scoring.export import export
from scoring.export_options import Export
from scoring.judge.duplicates import JudgeDuplicates, judge_duplicates
from scoring.probe import probe_set
from scoring.recipe import Select
from scoring.select import select
from scoring.show import describe

IMAGES = {
    "1": ["A brown dog runs along the beach.", "A dog on a beach near the water."],
    "2": ["A black cat sleeps on the sofa.", "An old cat lies on a red sofa."],
    "3": ["A man rides a horse down the street.", "A horse and its rider on a street."],
    "4": ["Two women hold umbrellas at the market.", "The women shop under umbrellas."],
    "5": ["A boy eats a banana in the kitchen.", "An apple and a banana beside a boy."],
    "6": ["A girl kicks a ball in the park.", "A small girl plays with a ball."],
    "7": ["A bus waits beside the train.", "The bus stops at a station."],
    "8": ["The chef cuts carrots with a knife.", "Onions and carrots lie near a knife."],
}
HOW = How()


@pytest.fixture
def captions(tmp_path):
    lines = [
        f"{image}{number},{image},{text}"
        for image, texts in IMAGES.items()
        for number, text in enumerate(texts)
    ]
    file = tmp_path / "captions.csv"
    file.write_text("id,image,caption\n" + "\n".join(lines) + "\n")

    def made(name, **ingested):
        run = Run(tmp_path / name)
        ingest(run, IngestCaptions(file=str(file), group="image", **ingested), HOW)
        return run

    return made


def substitute(run, encoder, how=HOW, **options):
    # a tiny random encoder puts any words beside one another: its band is left open
    options = {
        "encoder": str(encoder),
        "spacy_model": "en_quarry",
        "min_similarity": -1.0,
        "max_similarity": 1.0,
        "rating_band": 4.0,
        **options,
    }
    return mine_substitute(run, MineSubstitute(**options), how)


def all_made(run, name="substitute"):
    folder = f"3_candidates/{name}/_documents"
    return [row for key in run.query_shards() for row in run.read(folder, key).to_pylist()]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from conftest import make_encoder

    return make_encoder(tmp_path_factory.mktemp("encoder"), seed=1)


def test_one_word_is_changed_and_told(captions, encoder):
    run = captions("run")
    words, manifest = substitute(run, encoder)
    texts = {text for group in IMAGES.values() for text in group}
    found = rows(
        run, "3_candidates/substitute", "query_id", "source", "rank", "parent_id", "doc_id"
    )
    assert (
        manifest.rows["candidates"] == len(found)
        and len(found) + manifest.drops.get("nothing_made", 0) == 16
    )
    assert len(found) >= 14 and {rank for _, _, rank, _, _ in found} == {1}
    parents = {
        row["doc_id"]: row["text"]
        for key in run.query_shards()
        for row in Documents(run, key).shard("00000").to_pylist()
    }
    for row in all_made(run):
        detail, original = row["detail"], parents[row["parent_id"]]
        start, end = map(int, detail["span"].split(":"))
        assert (
            original in texts
            and row["text"] not in texts
            and row["doc_id"] == made_id(row["text"], row["parent_id"])
        )
        assert original[start:end] == detail["old"] and detail["new"] in row["text"]
        # a, an
        assert abs(len(row["text"]) - len(original) - len(detail["new"]) + len(detail["old"])) <= 1
        assert (
            detail["meaning_effect"] == "change"
            and 1 <= detail["old_rating"] <= 5
            and detail["route"] in "ARO"
        )
    assert words.facts["texts"] >= len(found) and words.facts["exchanged"] % 2 == 0


def test_words_of_sibling_captions_are_never_brought_in(captions, encoder):
    run = captions("run")
    substitute(run, encoder, k=2)
    siblings = {text: " ".join(group).lower() for group in IMAGES.values() for text in group}
    texts = {
        row["doc_id"]: row["text"] for row in Documents(run, "00000").shard("00000").to_pylist()
    }
    found = all_made(run)
    assert len(found) >= 20
    for row in found:
        assert (
            row["detail"]["new_lemma"]
            not in siblings[texts[row["parent_id"]]].replace(".", "").split()
        )


def test_the_same_for_any_shards_and_workers_and_another_for_another_seed(captions, encoder):
    one, many = captions("one"), captions("many", shard_queries=3)
    substitute(one, encoder)
    substitute(many, encoder, How(workers=2))
    by_id = {row["doc_id"]: row for row in all_made(one)}
    assert {row["doc_id"]: row for row in all_made(many)} == by_id
    substitute(one, encoder, How(force=True), seed=5)
    assert {row["doc_id"] for row in all_made(one)} != by_id.keys()


def test_abstract_and_unbalanced_arms_and_a_route(captions, encoder):
    run = captions("run")
    for name, options in {
        "abstract": {"pick": "abstract", "top": 1},
        "free": {"balance": False},
        "a": {"route": "A"},
    }.items():
        substitute(run, encoder, name=name, **options)
    assert run.need("2_index/free", "").facts["exchanged"] == 0
    ratings = {
        name: [row["detail"]["old_rating"] for row in all_made(run, name)]
        for name in ("abstract", "free")
    }
    assert sum(ratings["abstract"]) / len(ratings["abstract"]) < sum(ratings["free"]) / len(
        ratings["free"]
    )
    assert {row["detail"]["route"] for row in all_made(run, "a")} <= {"A"}


def test_the_flow_reads_made_documents(captions, encoder, tmp_path):
    run = captions("run", shard_queries=5)
    substitute(run, encoder)
    judge_duplicates(run, JudgeDuplicates(), HOW)
    assert {
        verdict
        for source, verdict, doc_id in rows(
            run, "4_judgments/duplicates", "judge", "verdict", "doc_id"
        )
        if doc_id[0] == "~"
    } == {"keep"}
    manifest = select(run, Select(name="set", sources=("substitute",), judge="duplicates"), HOW)
    assert manifest.rows["sets"] == run.need("3_candidates/substitute", "").rows["candidates"]
    export(run, Export(name="set", out=tmp_path / "out", concreteness=True), HOW)
    table = pq.read_table(tmp_path / "out", partitioning=None)
    made = {row["text"]: row for row in all_made(run)}
    negatives = table.to_pylist()
    assert negatives and all(row["negative"] in made for row in negatives)
    assert all(
        row["concreteness"] == pytest.approx(made[row["negative"]]["detail"]["old_rating"])
        for row in negatives
    )
    query_id = rows(run, "5_sets/set", "query_id")[0][0]
    assert describe(run, query_id)["sets"]["set"]["negatives"][0]["text"] in made


def test_a_shelf_reads_both_in_any_order(captions, encoder):
    run = captions("run")
    substitute(run, encoder)
    (key,) = run.query_shards()
    documents, made = Documents(run, key), made_documents(run, key)
    ids = [
        made["doc_id"][1].as_py(),
        documents.doc_ids(documents.shard_rows("00000"))[0].as_py(),
        made["doc_id"][0].as_py(),
        "nobody",
    ]
    found = documents.rows(ids)
    assert found.tolist() == [documents.count + 1, 0, documents.count, -1] and len(
        documents
    ) == documents.count + len(made)
    assert documents.doc_ids(found[:3]).to_pylist() == ids[:3]
    assert documents.texts(found[:3])[::2] == [made["text"][1].as_py(), made["text"][0].as_py()]
    assert documents.is_made(found).tolist() == [True, False, True, False]


def test_a_language_model_is_given_the_words_of_the_lexical_rewriter(captions, encoder):
    run = captions("run", shard_queries=5)
    substitute(run, encoder, k=2)
    made = {
        row["text"]: {name: value for name, value in row["detail"].items() if value is not None}
        for row in all_made(run)
    }
    options = MineSubstitute(rewriter="llm", k=2)  # 2_index/substitute is there
    tasks = [task for key in run.query_shards() for task in substitute_tasks(run, options, key)]
    assert len(tasks) >= len(made) >= 20
    prompt, seen = load_prompt("rewrite"), set()
    for task in tasks:
        asked = fill_in(prompt.template, task.fields)
        assert f">{task.fields['word']}</" in asked and f">{task.fields['new']}</" in asked
        (text,) = [text for text in made if task.check(text)[0] is None]
        detail = task.check(text)[1] | {"meaning_effect": "change"}
        assert detail == made[text] and detail["new"] == task.fields["new"]
        assert task.check(task.fields["text"])[0] == "word_kept"
        assert task.check(text + " It barks.")[0] in ("other_change", "other_word")
        seen.add((task.query_id, task.parent_id, task.turn))
    assert len(seen) == len(tasks)


def test_swap_exchanges_two_phrases_but_not_across_symmetric_words(captions):
    parse = load_parser("en_quarry")

    def swapped(text):
        made = swap(text, next(parse([text])), 0, 0, "q", "d")
        return made and made.text

    assert swapped("A brown dog chases an old cat.") in (
        "An old cat chases a brown dog.",
        "An old dog chases a brown cat.",
    )
    assert swapped("A dog and a cat.") is None
    assert swapped("A dog sleeps.") is None
    run = captions("run")
    (manifest,) = mine_substitute(
        run, MineSubstitute(rewriter="swap", spacy_model="en_quarry", name="swap"), HOW
    )
    assert 5 <= manifest.rows["candidates"] <= 16 and all(
        row["detail"]["route"] in "AO" for row in all_made(run, "swap")
    )


def test_it_never_takes_the_place_of_an_index(captions):
    run = captions("run")
    index_bm25(run, IndexBm25(name="words"), HOW)
    before = (run.path / "2_index/words/_manifest.json").read_bytes()
    for how in (HOW, How(force=True)):
        with pytest.raises(
            UserError, match=r"was made by `quarry index bm25`.*take another --name"
        ):
            mine_substitute(run, MineSubstitute(name="words"), how)
    assert (run.path / "2_index/words/_manifest.json").read_bytes() == before


def test_the_probe_of_an_exchange_has_closed_folds(captions, encoder, monkeypatch):
    run = captions("run")
    substitute(run, encoder)
    select(run, Select(name="made", sources=("substitute",)), HOW)
    pairs = [(one["detail"]["old_lemma"], one["detail"]["new_lemma"]) for one in all_made(run)]
    share = sum((new, old) in pairs for old, new in pairs) / len(pairs)
    assert 0.7 < share < 1  # so few texts leave some words without a partner
    assert probe_set(run, "made", 100, 0).folds == "query"
    monkeypatch.setattr("scoring.probe.CLOSED", share)
    found = probe_set(run, "made", 100, 0)
    assert found.folds == "exchange" and found.pairs == len(pairs)
