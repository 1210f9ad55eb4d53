"""Exports in an order of their own: batches without false negatives, tasks, splits, filled rows."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_export import NEGATIVES, rows
from toy import DOCUMENT_TEXTS, GOLD, HOW, QUERY_TEXTS, toy_run

from miner.engine import How
from miner.errors import UserError
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestCaptions, IngestPairs
from miner.search.random_documents import MineRandom, mine_random
from miner.store import Run
from scoring.batching import BatchRows, batches_of, false_negatives
from scoring.export import export
from scoring.export_options import Export
from scoring.recipe import Select
from scoring.select import select


def random_rows(seed, queries=60, per_query=3, texts=90):
    """Rows of a positive and a negative each, and one more text that is relevant to the query."""
    draw = np.random.default_rng(seed)
    query = np.repeat(np.arange(queries), per_query)
    held = np.stack([query, draw.integers(0, texts, len(query))], axis=1)
    relevant = np.stack([np.arange(queries), draw.integers(0, texts, queries)], axis=1)
    ends = 2 * np.arange(len(query) + 1)
    wanted = 2 * np.arange(queries + 1), relevant.ravel()
    return BatchRows(query, ends, held.ravel(), *wanted)


def meets(rows, one, other):
    """The rule itself, for two rows."""
    relevant = [
        {*rows.relevant[slice(*rows.relevant_ends[rows.query[row] :][:2])].tolist()}
        for row in (one, other)
    ]
    texts = [{*rows.texts[slice(*rows.ends[row:][:2])].tolist()} for row in (one, other)]
    return bool(relevant[0] & texts[1] or relevant[1] & texts[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [3, 8, 90])
def test_no_two_rows_of_a_batch_meet(seed, size):
    rows = random_rows(seed)
    count = len(rows.query)
    room = np.full(-(-count // size), size)
    found = batches_of(rows, np.arange(count), room, seed)
    assert (np.bincount(found[found >= 0]) <= size).all()
    for batch in range(len(room)):
        here = np.flatnonzero(found == batch).tolist()
        assert not any(meets(rows, a, b) for a in here for b in here if a < b)
    placed = np.count_nonzero(found >= 0)
    assert placed > 0.97 * count if size == 3 else placed >= len(room) * min(size, 6)


def test_false_negatives_are_told_as_the_rule_has_them():
    rows, size = random_rows(9), 12
    order = np.random.default_rng(1).permutation(len(rows.query))
    told = false_negatives(rows, order, size)
    for place, row in enumerate(order):
        start = place - place % size
        others = [other for other in order[start : start + size] if other != row]
        wanted = {*rows.relevant[slice(*rows.relevant_ends[rows.query[row] :][:2])].tolist()}
        there = {text for o in others for text in rows.texts[slice(*rows.ends[o:][:2])].tolist()}
        assert told[place] == bool(wanted & there)
    assert 0 < told.mean() < 1


def twins(path, queries=40, shard_queries=7):
    """A run in which every two queries share a positive, by id or by text."""
    texts = {f"d{number:02}": ("", f"text {number // 4}") for number in range(queries)}
    texts |= {f"x{number}": ("", f"other {number}") for number in range(6)}
    gold = {f"q{number:02}": [f"d{number - number % 2:02}"] for number in range(queries)}
    asked = {query: f"what is {query}" for query in gold}
    found = {"bm25": {query: [f"x{n}" for n in range(6)] for query in gold}}
    run = toy_run(
        path / "run",
        documents=texts,
        queries=asked,
        positives=gold,
        candidates=found,
        similarity={query: {doc: 0.5 for doc in texts} for query in gold},
        shard_queries=shard_queries,
    )
    select(run, Select(name="s", sources=("bm25:3",)), HOW)
    return run


@pytest.mark.parametrize("form", ["n-tuple", "flag-embedding", "tevatron"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_has_no_positive_of_another_row(tmp_path, form, workers):
    run = twins(tmp_path)
    options = {"negatives": 3} if form == "n-tuple" else {}
    made = export(
        run,
        Export(name="s", format=form, batch=8, file_type="parquet", seed=3, **options),
        How(workers=workers),
    )
    table = pq.read_table(run.path / f"8_export/s.{form}/00000.parquet")
    name = {"n-tuple": "positive", "flag-embedding": "pos", "tevatron": "positive_passages"}[form]
    positives = [json.dumps(one).replace("d0", "").strip() for one in table[name].to_pylist()]
    if form == "tevatron":
        positives = [one[0]["text"] for one in table[name].to_pylist()]
    assert len(positives) == 40 and made.rows["rows"] == 40 and "no_batch" not in made.drops
    for start in range(0, 40, 8):  # ten texts, four queries each
        assert len({*positives[start : start + 8]}) == 8
    met = made.facts["in_batch"]
    assert met["false_negatives"] == 0 and met["at_random"] > 0.3
    assert "do not shuffle" in made.facts["notes"][0]


def test_the_same_rows_come_out_whatever_the_order(tmp_path):
    run = twins(tmp_path)
    plain = Export(name="s", negatives=3, format="n-tuple", ids=True)
    export(run, plain, HOW)
    before = rows(run, "8_export/s.n-tuple")
    export(run, plain.model_copy(update={"batch": 8, "out": tmp_path / "mixed"}), HOW)
    export(run, plain.model_copy(update={"batch": 8, "out": tmp_path / "again"}), How(workers=2))
    after = pq.read_table(tmp_path / "mixed" / "00000.parquet").to_pylist()
    assert before != after
    assert sorted(before, key=str) == sorted(after, key=str)
    one, two = ((tmp_path / name / "00000.parquet").read_bytes() for name in ("mixed", "again"))
    assert one == two
    other = plain.model_copy(update={"batch": 8, "seed": 1, "out": tmp_path / "other"})
    export(run, other, HOW)
    assert (tmp_path / "other" / "00000.parquet").read_bytes() != one


def test_windows_hold_some_shards_and_pass_on_what_fills_no_batch(tmp_path):
    run = twins(tmp_path, queries=60, shard_queries=3)  # twenty shards, three windows
    options = Export(name="s", format="n-tuple", negatives=2, batch=7, ids=True)
    made = export(run, options, HOW)
    files = sorted((run.path / "8_export/s.n-tuple").glob("*.parquet"))
    sizes = [pq.read_metadata(file).num_rows for file in files]
    assert len(sizes) == 3 and sum(sizes) + made.drops.get("no_batch", 0) == 60
    assert (
        not any(size % 7 for size in sizes[:-1]) and made.facts["in_batch"]["false_negatives"] == 0
    )


def test_rows_that_can_stand_in_no_batch_are_left_out_and_counted(tmp_path):
    run = twins(tmp_path, queries=4)  # all of them have one text
    made = export(run, Export(name="s", format="n-tuple", negatives=2, batch=2), HOW)
    assert made.rows["rows"] == 1 and made.drops == {"no_batch": 3}


def test_what_the_recipe_left_out_as_a_likely_positive_is_kept_apart(tmp_path):
    documents = {f"d{n}": ("", f"text {n}") for n in range(4)} | {"x": ("", "other")}
    gold = {f"q{n}": [f"d{n}"] for n in range(4)}
    found = {"q0": ["d1", "x"], "q1": ["d0", "x"], "q2": ["d3", "x"], "q3": ["d2", "x"]}
    scores = {
        query: {doc: 0.9 if doc.startswith("d") else 0.1 for doc in documents} for query in gold
    }
    run = toy_run(
        tmp_path / "run",
        documents=documents,
        queries={query: f"ask {query}" for query in gold},
        positives=gold,
        candidates={"bm25": found},
        similarity=scores,
    )
    select(run, Select(name="s", sources=("bm25",), percent_margin=0.95), HOW)
    made = export(run, Export(name="s", batch=2, ids=True), HOW)
    table = pq.read_table(run.path / "8_export/s.triplet/00000.parquet")
    pairs = [{*table["query_id"].to_pylist()[start : start + 2]} for start in (0, 2)]
    assert {"q0", "q1"} not in pairs and {"q2", "q3"} not in pairs
    assert made.rows["rows"] == 4


def test_dev_has_its_share_and_no_positive_of_train(tmp_path):
    run = twins(tmp_path, queries=80)
    made = export(run, Export(name="s", dev=0.25, ids=True, card=True), HOW)
    home = run.path / "8_export/s.triplet"
    sides = {}
    for split in ("train", "dev"):
        files = sorted((home / split).glob("*.parquet"))
        sides[split] = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert made.rows == {"rows": 240, "train": 180, "dev": 60}
    texts = {split: {row["positive"] for row in side} for split, side in sides.items()}
    assert not texts["train"] & texts["dev"]
    assert len({row["query_id"] for row in sides["dev"]}) == 20
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(home))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 180, "dev": 60}


def test_a_group_that_is_larger_than_dev_stays_in_train(tmp_path):
    run = toy_run(tmp_path)  # no two queries share a positive
    select(run, Select(name="s", sources=("bm25",)), HOW)
    made = export(run, Export(name="s", dev=0.01, format="labeled-list", file_type="jsonl"), HOW)
    assert made.rows == {"rows": 4, "train": 4}
    assert [file.stat().st_size for file in (run.path / "8_export").rglob("dev/*.jsonl")] == [0, 0]


def test_captions_of_one_image_stand_in_different_batches(tmp_path):
    lines = [
        {"id": f"c{n}", "caption": f"a caption number {n}", "image": f"{n // 5}.jpg"}
        for n in range(40)
    ]
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = Run(tmp_path / "run")
    ingest(
        run, IngestCaptions(file=str(file), caption="caption", caption_id="id", image="image"), HOW
    )
    mine_random(run, MineRandom(k=3), HOW)
    select(run, Select(name="s", sources=("random",), negatives=1), HOW)
    made = export(run, Export(name="s", format="open-clip", batch=4), HOW)
    images = pq.read_table(run.path / "8_export/s.open-clip/00000.parquet")["filepath"].to_pylist()
    assert made.facts["in_batch"]["at_random"] > 0.2
    assert len(images) >= 36
    for start in range(0, len(images), 4):
        assert len({*images[start : start + 4]}) == len(images[start : start + 4])


def test_each_batch_holds_one_task(tmp_path):
    lines = [
        {"id": f"q{n}", "q": f"question {n}", "text": f"answer {n}", "kind": "ab"[n % 2]}
        for n in range(30)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = Run(tmp_path / "run")
    ingest(run, IngestPairs(file=str(file), query="q", positive="text", label="kind"), HOW)
    mine_random(run, MineRandom(k=8), HOW)
    select(run, Select(name="s", sources=("random",), negatives=1), HOW)
    made = export(run, Export(name="s", batch=4, task_labels=True, ids=True), HOW)
    found = pq.read_table(run.path / "8_export/s.triplet/00000.parquet")
    tasks = found["task"].to_pylist()
    assert len(tasks) == 24 and made.drops["no_batch"] == 6
    assert {*tasks} == {"a", "b"}
    for start in range(0, 24, 4):
        assert len({*tasks[start : start + 4]}) == 1
    anchors = [int(text.split()[1]) for text in found["anchor"].to_pylist()]
    assert tasks == ["ab"[number % 2] for number in anchors]
    export(run, Export(name="s", task="answers", format="labeled-pair"), HOW)
    assert {row["task"] for row in rows(run, "8_export/s.labeled-pair")} == {"answers"}


@pytest.fixture
def run(tmp_path):
    run = toy_run(tmp_path / "run")
    select(run, Select(name="bm25", sources=("bm25",)), HOW)
    return run


@pytest.mark.parametrize("fill", ["repeat", "resample"])
def test_short_rows_are_filled(run, fill):
    options = {"negatives": 4, "ids": True, "scores": True, "weights": "softmax"}
    made = export(run, Export(name="bm25", format="n-tuple", fill=fill, **options), HOW)
    found = {row["query_id"]: row for row in rows(run, "8_export/bm25.n-tuple")}
    assert {*found} == {*NEGATIVES} and made.drops == {"too_few_negatives": 1}
    for query, row in found.items():
        own, given = NEGATIVES[query], row["negative_ids"]
        assert given[: len(own)] == own and {*given} == {*own} and len(given) == 4
        assert len(row["label"]) == 5 and len(row["weights"]) == 4
        scores = dict(zip(given, row["label"][1:], strict=True))
        assert row["label"][1:] == [scores[one] for one in given]
        shares = dict(zip(given, row["weights"], strict=True))
        assert sum(shares.values()) == pytest.approx(1)
    if fill == "repeat":
        assert found["q3"]["negative_ids"] == ["d09", "d10", "d09", "d10"]


def test_scores_are_the_label_that_distillation_takes(run):
    from toy import COSINES

    export(run, Export(name="bm25", scores=True, ids=True), HOW)
    for row in rows(run, "8_export/bm25.triplet"):
        scores = COSINES[row["query_id"]]
        assert row["label"] == [scores[row["positive_id"]], scores[row["negative_id"]]]
    export(run, Export(name="bm25", weights="score", format="labeled-list", ids=True), HOW)
    for row in rows(run, "8_export/bm25.labeled-list"):
        scores = COSINES[row["query_id"]]
        expected = [
            1.0 if label else scores[doc_id]
            for doc_id, label in zip(row["doc_ids"], row["labels"], strict=True)
        ]
        assert row["weights"] == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 4, "format": "labeled-pair"}, "--batch is not for labeled-pair"),
        ({"fill": "repeat"}, "--fill is not for triplet"),
        ({"scores": True, "format": "tevatron"}, "--scores is not for tevatron"),
        ({"dev": 0.5, "format": "pylate"}, "--dev is not for pylate"),
        ({"task_labels": True}, "has no class labels"),
        ({"task": "a", "task_labels": True}, "both given"),
    ],
)
def test_what_does_not_go_together_is_refused(run, options, said):
    with pytest.raises(UserError, match=said):
        export(run, Export(name="bm25", **options), HOW)


def test_scores_need_a_judge(tmp_path):
    run = toy_run(tmp_path, similarity=None)
    select(run, Select(name="s", sources=("bm25",)), HOW)
    with pytest.raises(UserError, match="no scores of negatives and positives, which --scores"):
        export(run, Export(name="s", scores=True), HOW)


def test_the_toy_is_what_these_tests_take_it_for():
    assert {*GOLD} == {*QUERY_TEXTS} and len(DOCUMENT_TEXTS) == 12
