"""Ingest of pairs and captions."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import documents, refuse, rejects, rows, write_jsonl, write_records, write_text

from miner.engine import How
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestCaptions, IngestPairs
from miner.ingest.rows import hash_id
from miner.store import Run
from miner.tables import IMAGES, POSITIVES, QUERIES


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run")


# --- pairs

PAIRS = [
    {"query": "what covers a house", "positive": "straw roof"},
    {"query": "what is a roof made of", "positive": 'tile, "red"'},
    {"query": "green roof", "positive": "turf"},
    {"query": "what is a roof made of", "positive": "slaté"},
]


def expected_pairs() -> tuple[list, list, list]:
    docs = sorted((hash_id("d", pair["positive"]), "", pair["positive"]) for pair in PAIRS)
    queries = sorted({(hash_id("q", pair["query"]), pair["query"]) for pair in PAIRS})
    positives = sorted(
        (hash_id("q", pair["query"]), hash_id("d", pair["positive"]), 1) for pair in PAIRS
    )
    return docs, queries, positives


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz"])
def test_every_kind_of_pairs_file_gives_the_same_tables(tmp_path, run, kind):
    file = write_records(tmp_path / f"pairs.{kind.removesuffix('.gz')}", PAIRS)
    if kind.endswith(".gz"):
        packed = tmp_path / f"pairs.{kind}"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        file = packed
    ingest(run, IngestPairs(file=str(file)), How())
    assert (documents(run), rows(run, QUERIES), rows(run, POSITIVES)) == expected_pairs()
    assert rejects(run) == []


def test_pairs_of_a_data_set(tmp_path, run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    lists = [{"query": pair["query"], "positive": [pair["positive"]], "other": 1} for pair in PAIRS]
    pq.write_table(pa.Table.from_pylist(lists), folder / "train-00000.parquet")
    given = f"hf:{folder}"
    ingest(run, IngestPairs(file=given), How())
    assert (documents(run), rows(run, QUERIES), rows(run, POSITIVES)) == expected_pairs()
    assert ingest(run, IngestPairs(file=given), How())[0].skipped
    other = Run(tmp_path / "other")
    refuse(
        other,
        IngestPairs(file=given, query="question"),
        'missing "question" (found query, positive, other); name it with --query',
    )
    refuse(other, IngestPairs(file=given, split="test"), given, "train")
    refuse(other, IngestPairs(file=f"hf:{tmp_path / 'nothing'}"), "hf:")


def test_a_string_is_one_positive_and_a_list_is_several(tmp_path, run):
    file = write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"query": "a b", "positive": "tile"},
            {"query": "c d", "positive": ["slate", " ", "turf", None]},
        ],
    )
    manifest, *_ = ingest(run, IngestPairs(file=str(file)), How())
    a, c = hash_id("q", "a b"), hash_id("q", "c d")
    assert rows(run, POSITIVES) == sorted(
        [(a, hash_id("d", "tile"), 1), (c, hash_id("d", "slate"), 1), (c, hash_id("d", "turf"), 1)]
    )
    assert [text for _, _, text in documents(run)] == [
        text for _, text in sorted((hash_id("d", t), t) for t in ("tile", "slate", "turf"))
    ]
    assert manifest.drops == {"empty_member": 2}


def test_given_ids_as_text_number_or_list(tmp_path, run):
    file = write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"query": "a b", "positive": "tile", "qid": 1, "pid": "77"},
            {"query": "c d", "positive": ["slate", "turf"], "qid": 2, "pid": [8, "9"]},
            {"query": "e f", "positive": ["slate", "turf"], "qid": 3, "pid": ["8"]},
            {"query": "g h", "positive": "tile", "qid": None, "pid": "77"},
            {"query": "i j", "positive": "tile", "qid": 4, "pid": "77"},
            {"query": "other words", "positive": "turf", "qid": 4, "pid": 9},
            {"query": "i j", "positive": "other tile", "qid": 4, "pid": 8},
        ],
    )
    ingest(run, IngestPairs(file=str(file), query_id="qid", positive_id="pid"), How())
    assert documents(run) == [("77", "", "tile"), ("8", "", "slate"), ("9", "", "turf")]
    assert rows(run, QUERIES) == [("1", "a b"), ("2", "c d"), ("4", "i j")]
    assert rows(run, POSITIVES) == [
        ("1", "77", 1),
        ("2", "8", 1),
        ("2", "9", 1),
        ("4", "77", 1),
        ("4", "8", 1),
        ("4", "9", 1),
    ]
    assert rejects(run) == [
        ("p.jsonl:3", "queries", "query_without_positive"),
        ("p.jsonl:3", "queries", "unequal_lists"),
        ("p.jsonl:4", "queries", "missing_qid"),
        # an id says what a thing is: the second text is refused, its positive is not
        ("p.jsonl:6", "queries", "duplicate_id"),
        ("p.jsonl:7", "documents", "duplicate_id"),
    ]


def test_a_corpus_wins_over_the_positives_texts(tmp_path, run):
    corpus = write_jsonl(
        tmp_path / "corpus.jsonl",
        [
            {"id": "c1", "title": "T", "text": "tile"},
            {"id": "c2", "text": "slate"},
            {"id": "c3", "text": "slate"},
            {"id": "c1", "text": "turf"},
        ],
    )
    file = write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"query": "by text", "positive": "slate"},
            {"query": "by new text", "positive": "turf"},
            {"query": "several", "positive": ["tile", "turf"]},
        ],
    )
    ingest(run, IngestPairs(file=str(file), corpus=str(corpus)), How())
    turf = hash_id("d", "turf")
    assert documents(run) == [
        ("c1", "T", "tile"),
        ("c2", "", "slate"),
        ("c3", "", "slate"),
        (turf, "", "turf"),
    ]
    by_text, by_new, several = (
        hash_id("q", text) for text in ("by text", "by new text", "several")
    )
    assert rows(run, POSITIVES) == sorted(
        [(by_text, "c2", 1), (by_new, turf, 1), (several, "c1", 1), (several, turf, 1)]
    )
    assert rejects(run) == [("corpus.jsonl:4", "documents", "duplicate_id")]


def test_positives_by_id_need_no_text_where_a_corpus_has_it(tmp_path, run):
    corpus = write_jsonl(
        tmp_path / "c.jsonl", [{"no": 1, "body": "tile"}, {"no": 2, "body": "slate"}]
    )
    file = write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"query": "a b", "pid": 1},
            {"query": "c d", "pid": "p7", "positive": "slate"},  # the corpus has this text as 2
            {"query": "e f", "pid": "p7"},
            {"query": "g h", "pid": [1, "none"]},
        ],
    )
    options = IngestPairs(
        file=str(file), positive_id="pid", corpus=str(corpus), corpus_text="body", corpus_id="no"
    )
    ingest(run, options, How())
    assert documents(run) == [("1", "", "tile"), ("2", "", "slate")]
    a, c, e, g = (hash_id("q", text) for text in ("a b", "c d", "e f", "g h"))
    assert rows(run, POSITIVES) == sorted([(a, "1", 1), (c, "2", 1), (e, "2", 1), (g, "1", 1)])
    assert rejects(run) == [("p.jsonl:4", "positives", "unknown_document")]


def test_a_corpus_without_ids_merges_equal_texts_silently(tmp_path, run):
    corpus = write_text(tmp_path / "c.csv", "text\ntile\nslate\ntile\n")
    file = write_jsonl(tmp_path / "p.jsonl", [{"query": "a b", "positive": "tile"}])
    manifest, *_ = ingest(run, IngestPairs(file=str(file), corpus=str(corpus)), How())
    assert documents(run) == sorted((hash_id("d", text), "", text) for text in ("tile", "slate"))
    assert manifest.drops == {}


def test_rows_of_a_table_that_have_too_few_cells(tmp_path, run):
    file = write_text(tmp_path / "p.csv", 'query,positive\n"a\nb",x\nlonely\n\n"c, d","y ""z"""\n')
    ingest(run, IngestPairs(file=str(file)), How())
    assert {text for _, text in rows(run, QUERIES)} == {"a\nb", "c, d"}
    assert rejects(run) == [("p.csv:4", "queries", "bad_columns")]


def test_csv_fields_longer_than_pythons_limit(tmp_path, run):
    text = "slate " * 40_000
    ingest(
        run,
        IngestPairs(file=str(write_text(tmp_path / "p.csv", f"query,positive\na,{text}\n"))),
        How(),
    )
    assert documents(run) == [(hash_id("d", text), "", text)]


# --- captions


def test_coco_captions(tmp_path, run):
    annotations = [
        {"id": 10, "image_id": 1, "caption": "a red house"},
        {"id": 9, "image_id": 1, "caption": "a house"},
        {"id": 3, "image_id": 2, "caption": "a dog"},
        {"id": 4, "image_id": 2, "caption": " "},
        {"id": 9, "image_id": 2, "caption": "a cat"},
    ]
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"images": [], "annotations": annotations}))
    ingest(run, IngestCaptions(file=str(file)), How())
    assert documents(run) == [("10", "", "a red house"), ("3", "", "a dog"), ("9", "", "a house")]
    assert rows(run, POSITIVES) == [("10", "10", 1), ("3", "3", 1), ("9", "9", 1)]
    assert rejects(run) == [
        ("captions.json:4", "captions", "empty_text"),
        ("captions.json:5", "captions", "duplicate_id"),
    ]
    grouped = Run(tmp_path / "grouped")
    ingest(grouped, IngestCaptions(file=str(file), group="image_id"), How())
    assert rows(grouped, QUERIES) == [("10", "a red house"), ("3", "a dog"), ("9", "a house")]
    assert rows(grouped, POSITIVES) == [
        ("10", "10", 1),
        ("10", "9", 1),
        ("3", "3", 1),
        ("9", "10", 1),
        ("9", "9", 1),
    ]


def test_captions_without_ids_are_one_query_however_often_they_come(tmp_path, run):
    file = write_text(tmp_path / "c.csv", "caption,image\na dog,1\na cat,1\na dog,2\na hen,2\n")
    manifest, *_ = ingest(run, IngestCaptions(file=str(file), group="image"), How())
    dog, cat, hen = (hash_id("q", text) for text in ("a dog", "a cat", "a hen"))
    pairs = [(dog, dog), (cat, cat), (hen, hen), (dog, cat), (cat, dog), (dog, hen), (hen, dog)]
    assert rows(run, POSITIVES) == sorted((a, b, 1) for a, b in pairs)
    assert manifest.drops == {}


COCO = [
    {"id": 10, "image_id": 1, "caption": "a red house"},
    {"id": 9, "image_id": 1, "caption": "a house"},
    {"id": 3, "image_id": 22, "caption": "a dog"},
    {"id": 4, "image_id": 5, "caption": "a hen"},
]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (
            [{"id": 1, "file_name": "one.jpg"}, {"id": 22, "file_name": "b/22.png"}, {"id": 7}],
            ["one.jpg", "one.jpg", "b/22.png", None],
        ),
        ([], ["000000000001.jpg", "000000000001.jpg", "000000000022.jpg", "000000000005.jpg"]),
        (None, ["000000000001.jpg", "000000000001.jpg", "000000000022.jpg", "000000000005.jpg"]),
    ],
)
def test_coco_images_are_those_that_the_file_lists_or_else_named_by_number(
    tmp_path, run, images, expected
):
    file = tmp_path / "captions.json"
    file.write_text(
        json.dumps({"annotations": COCO} | ({} if images is None else {"images": images}))
    )
    manifest, *_ = ingest(
        run,
        IngestCaptions(file=str(file), group="image_id", image="file_name", shard_queries=2),
        How(),
    )
    found = [(str(row["id"]), image) for row, image in zip(COCO, expected, strict=True) if image]
    assert rows(run, IMAGES) == sorted(found)
    assert manifest.rows == {"documents": 4, "queries": 4, "positives": 6, "images": len(found)}
    assert manifest.drops == {}  # a caption without an image is still a caption


def test_images_of_captions_without_ids_are_those_of_their_first_line(tmp_path, run):
    file = write_text(
        tmp_path / "c.csv", "caption,path\na dog,1.jpg\na cat, \na dog,2.jpg\na hen, a/é.png \n"
    )
    manifest, *_ = ingest(run, IngestCaptions(file=str(file), image="path", limit=2), How())
    images = {hash_id("q", "a dog"): "1.jpg", hash_id("q", "a hen"): "a/é.png"}
    kept = {query_id for query_id, _ in rows(run, QUERIES)}
    assert rows(run, IMAGES) == sorted(
        (query_id, image) for query_id, image in images.items() if query_id in kept
    )
    assert manifest.rows["queries"] == 2
    refuse(
        Run(tmp_path / "other"),
        IngestCaptions(file=str(file), image="file_name"),
        'missing "file_name" (found caption, path); name it with --image',
    )


def test_no_image_table_without_image(tmp_path, run):
    manifest, *_ = ingest(
        run,
        IngestCaptions(file=str(write_text(tmp_path / "c.csv", "caption,path\na dog,1.jpg\n"))),
        How(),
    )
    assert "images" not in manifest.rows and not (run.path / "1_tables/images").exists()


def test_coco_captions_of_one_image_are_each_others_positives(run, shared):
    manifest, *_ = ingest(
        run,
        IngestCaptions(
            file=str(shared / "coco-captions" / "captions_val2017.json"),
            group="image_id",
            image="file_name",
        ),
        How(),
    )
    assert manifest.rows == {
        "documents": 25014,
        "queries": 25014,
        "positives": 125156,
        "images": 25014,
    }
