"""Exports that are more than a table: a BEIR folder, TREC files, NeMo Automodel's retrieval data,
WebDataset's tar files.
"""

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from ingested import documents, make_beir, write_jsonl
from ingested import rows as table_rows
from test_export import (
    CAPTION_NEGATIVES,
    CAPTIONS,
    FOUND_MADE,
    MADE_TEXTS,
    NEGATIVES,
    TEXTS,
    captioned,
    margin_of,
    promoting,
    rated,
)
from test_trec import candidates
from toy import DOCUMENT_TEXTS, GOLD, HOW, QUERY_TEXTS, toy_run

from miner.engine import How
from miner.errors import UserError
from miner.files import write_table
from miner.ingest.formats import IngestBeir
from miner.ingest.ingest import ingest
from miner.store import Run
from miner.tables import POSITIVES, QUERIES
from scoring.export import export
from scoring.export_folders import FOLDERS
from scoring.export_options import Export
from scoring.recipe import Select
from scoring.select import select

__all__ = ["captioned", "promoting", "rated"]  # fixtures
ODD = ["a b", 'say "x"', '"q"', "a,b", "é\u3000語", "'", "\u2028"]


@pytest.fixture
def run(tmp_path) -> Run:
    run = toy_run(tmp_path / "run", shard_queries=2)
    select(run, Select(name="bm25", sources=("bm25",)), HOW)
    return run


@pytest.fixture
def odd(tmp_path) -> Run:
    """Ids and texts with whatever a BEIR folder can hold; negatives are the user's own run."""
    text = 'two\nlines\t"quoted" \\ \x85 é'
    folder = make_beir(
        tmp_path / "beir",
        docs=[
            {"_id": one, "title": f"title {one}", "text": f"{text} {n}"}
            for n, one in enumerate(ODD)
        ],
        queries=[{"_id": f"query {one}", "text": f"{text} {one}?"} for one in ODD],
        qrels="".join(f"query {one}\t{one}\t2\n" for one in ODD),
    )
    hits = [
        {"query_id": f"query {one}", "doc_id": other, "score": -place}
        for one in ODD
        for place, other in enumerate(ODD)
    ]
    file, run = write_jsonl(tmp_path / "hits.jsonl", hits), Run(tmp_path / "odd")
    options = IngestBeir(folder=folder, run_file=(str(file),), shard_queries=3, shard_documents=4)
    ingest(run, options, HOW)
    select(run, Select(name="s", sources=("hits",)), HOW)
    return run


def set_rows(run: Run, name: str) -> list[tuple]:
    found = [run.read(f"5_sets/{name}", key).to_pylist() for key in run.query_shards()]
    return sorted((r["query_id"], r["rank"], r["doc_id"]) for rows in found for r in rows)


def again(run: Run, folder: Path, **options) -> Run:
    other = Run(run.path.parent / "again")
    ingest(other, IngestBeir(folder=folder, split="train", **options), HOW)
    return other


# --- beir


def test_a_beir_folder_gives_the_same_tables_back_and_its_negatives_as_a_source(odd):
    manifest = export(odd, Export(name="s", format="beir"), HOW)
    folder = odd.path / "8_export/s.beir"
    other = again(odd, folder, run_file=(str(folder / "negatives.tsv"),))
    assert documents(other) == documents(odd) and len(documents(odd)) == 12
    for table in (QUERIES, POSITIVES):
        assert table_rows(other, table) == table_rows(odd, table)
    found = sorted((q, rank, d) for q, d, rank, _ in candidates(other, "negatives"))
    assert found == set_rows(odd, "s") and len(found) == 42
    assert manifest.rows == {"rows": 42 + 11} and manifest.drops == {}
    assert manifest.facts["scores"] == "1 / rank"


def test_made_negatives_are_documents_of_a_beir_folder(rated):
    export(rated, Export(name="s", format="beir"), HOW)
    other = again(rated, rated.path / "8_export/s.beir")
    made = {doc_id: ("", text) for doc_id, text in MADE_TEXTS.items()}
    assert {doc_id: (title, text) for doc_id, title, text in documents(other)} == {
        **DOCUMENT_TEXTS,
        **made,
    }
    lines = (rated.path / "8_export/s.beir/corpus.jsonl").read_text().splitlines()
    assert [json.loads(line)["_id"] for line in lines] == [*DOCUMENT_TEXTS, *MADE_TEXTS]


def test_promoted_documents_are_qrels(promoting):
    export(promoting, Export(name="up", format="beir", promoted=True), HOW)
    other = again(promoting, promoting.path / "8_export/up.beir")
    gold = {(query, doc_id) for query, ids in GOLD.items() for doc_id in ids}
    found = {(query, doc_id) for query, doc_id, _ in table_rows(other, POSITIVES)}
    assert found == gold | {("q1", "d08"), ("q2", "d08")}


def test_an_id_with_a_tab_is_named(tmp_path):
    docs = {**DOCUMENT_TEXTS, "a\tb": ("", "x")}
    run = toy_run(tmp_path / "run", documents=docs, candidates={"s": {"q1": ["a\tb"]}})
    select(run, Select(name="s", sources=("s",)), HOW)
    with pytest.raises(UserError, match=r"^id 'a\\tb' holds a tab or a line end, which beir cann"):
        export(run, Export(name="s", format="beir"), HOW)
    assert not (run.path / "8_export").exists()


# --- trec


def test_ir_measures_read_qrels_and_run(run):
    import ir_measures

    manifest = export(run, Export(name="bm25", format="trec"), HOW)
    folder = run.path / "8_export/bm25.trec"
    qrels = list(ir_measures.read_trec_qrels(str(folder / "qrels.trec")))
    found = list(ir_measures.read_trec_run(str(folder / "run.trec")))
    gold = [(query, doc_id, 1) for query, ids in GOLD.items() for doc_id in ids]
    assert [(one.query_id, one.doc_id, one.relevance) for one in qrels] == gold
    for query, ids in NEGATIVES.items():
        mine = sorted((one for one in found if one.query_id == query), key=lambda one: -one.score)
        assert [one.doc_id for one in mine] == ids
        assert [one.score for one in mine] == [1 / rank for rank in range(1, len(ids) + 1)]
        assert len({one.score for one in mine}) == len(ids)
    measured = ir_measures.calc_aggregate([ir_measures.RR, ir_measures.Judged @ 1], qrels, found)
    assert set(measured.values()) == {0}  # no negative is a positive
    # as qrels the negatives themselves: all are found, in the order of their grades
    as_qrels = [ir_measures.Qrel(one.query_id, one.doc_id, round(60 * one.score)) for one in found]
    assert ir_measures.calc_aggregate([ir_measures.nDCG], as_qrels, found) == {ir_measures.nDCG: 1}
    lines = (folder / "run.trec").read_text().splitlines()
    assert lines[0] == f"q1 Q0 {NEGATIVES['q1'][0]} 1 1.0 bm25"
    assert manifest.facts["scores"] == "1 / rank"


def test_scores_are_the_judges_where_they_fall_with_the_rank(tmp_path):
    found = {"q1": ["d08", "d09", "d10"], "q4": ["d08", "d12", "d11"]}
    run = toy_run(tmp_path / "run", candidates={"s": found}, shard_queries=1)
    select(run, Select(name="s", sources=("s",), judge="similarity"), HOW)
    manifest = export(run, Export(name="s", format="trec", negatives=2), HOW)
    lines = (run.path / "8_export/s.trec/run.trec").read_text().splitlines()
    assert lines == [
        "q1 Q0 d08 1 0.875 s",
        "q1 Q0 d09 2 0.625 s",
        "q4 Q0 d08 1 0.5 s",
        "q4 Q0 d12 2 0.25 s",
    ]
    assert manifest.facts["scores"] == "the judge's"


@pytest.mark.parametrize("space", [" ", "\t", "\u3000", "\x1f", "\x85", "\xa0", "\v", "\u2028"])
def test_an_id_with_white_space_is_named_and_beir_said(tmp_path, space):
    name = f"a{space}b"
    assert len(name.split()) == 2
    docs = {**DOCUMENT_TEXTS, name: ("", "x")}
    run = toy_run(tmp_path / "run", documents=docs, candidates={"s": {"q1": [name]}})
    select(run, Select(name="s", sources=("s",)), HOW)
    with pytest.raises(UserError) as caught:
        export(run, Export(name="s", format="trec"), HOW)
    said = f"id {name!r} holds white space, which trec cannot; take --format beir"
    assert str(caught.value) == said and not (run.path / "8_export").exists()


# --- nemo


def read_as_nemo(file: Path) -> tuple[list[dict], dict[str, dict[str, str]]]:
    """Read it as `load_datasets` and `TextQADataset` of NeMo Automodel do (see scoring/nemo.py)."""
    from datasets import load_dataset

    data, corpora = json.loads(file.read_bytes().decode("ascii")), {}
    for info in data["corpus"]:
        path = file.parent / info["path"]
        metadata = json.loads((path / "merlin_metadata.json").read_text())
        assert metadata["class"] == "TextQADataset" and metadata["corpus_id"] not in corpora
        loaded = load_dataset(str(path))["train"]
        corpora[metadata["corpus_id"]] = {
            "": metadata["query_instruction"],
            **{str(row["id"]): row["text"] for row in loaded},
        }
    for item in data["data"]:
        assert {"question_id", "question", "corpus_id", "pos_doc", "neg_doc"} <= item.keys()
        assert item["pos_doc"] and item["neg_doc"]  # the transform refuses a query without
    return data["data"], corpora


def test_nemo_automodel_finds_the_texts(run):
    manifest = export(run, Export(name="bm25", format="nemo", prompt="query: "), HOW)
    data, corpora = read_as_nemo(run.path / "8_export/bm25.nemo/train.json")
    (corpus_id,) = corpora
    told = {(item["question_id"], item["question"], item["corpus_id"]) for item in data}
    assert told == {(query, QUERY_TEXTS[query], corpus_id) for query in NEGATIVES}
    for item in data:
        assert [doc["id"] for doc in item["pos_doc"]] == sorted(GOLD[item["question_id"]])
        assert [doc["id"] for doc in item["neg_doc"]] == NEGATIVES[item["question_id"]]
        for doc in [*item["pos_doc"], *item["neg_doc"]]:
            assert corpora[corpus_id][doc["id"]] == TEXTS[doc["id"]]
    assert corpora[corpus_id][""] == "query: " and manifest.drops == {"no_negatives": 1}
    export(run, Export(name="bm25", format="nemo", out=run.path.parent / "o"), HOW)
    _, other = read_as_nemo(run.path.parent / "o/train.json")
    assert [*other] != [corpus_id]  # two corpora of one id are refused


def test_nemo_has_made_documents_and_at_most_so_many_negatives(rated):
    export(rated, Export(name="s", format="nemo", negatives=2), HOW)
    data, corpora = read_as_nemo(rated.path / "8_export/s.nemo/train.json")
    found = {item["question_id"]: [doc["id"] for doc in item["neg_doc"]] for item in data}
    assert found == {query: ids[:2] for query, ids in FOUND_MADE.items()}
    (corpus,) = corpora.values()
    assert corpus["~a"] == MADE_TEXTS["~a"] and "~e" not in corpus


# --- webdataset


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    for name in ("a.jpg", "b/é.jpg"):
        (folder / name).write_bytes(f"bytes of {name}".encode())
    return folder


def read_tar(file: Path) -> dict[str, dict[str, bytes]]:
    """Group members as WebDataset does: the key ends at the first dot, members of one are
    neighbours.
    """
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(file) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            assert key not in samples or key == [*samples][-1]
            assert (member.mtime, member.uid, member.uname) == (0, 0, "")
            samples.setdefault(key, {})[kind] = tar.extractfile(member).read()
    return samples


def test_tar_files_hold_images_captions_and_negatives(captioned, images):
    options = Export(name="s", format="webdataset", image_folder=images, concreteness=True)
    manifest = export(captioned, options, How(workers=2))
    folder = captioned.path / "8_export/s.webdataset"
    found = {key: read_tar(folder / f"{key}.tar") for key in captioned.query_shards()}
    assert {key: [*one] for key, one in found.items()} == {
        "00000": ["00000_000000", "00000_000001"],
        "00001": ["00001_000000"],
        "00002": [],
    }
    text = {query: caption for query, (_, caption) in CAPTIONS.items()} | MADE_TEXTS
    samples = [sample for shard in found.values() for sample in shard.values()]
    for query, sample in zip(("c1", "c2", "c3"), samples, strict=True):
        assert sample["jpg"] == f"bytes of {CAPTIONS[query][0]}".encode()
        assert sample["txt"].decode() == text[query]
        beside = json.loads(sample["json"])
        assert beside["query_id"] == query
        assert beside["negative_ids"] == CAPTION_NEGATIVES[query]
        assert beside["neg_caption"] == [text[one] for one in CAPTION_NEGATIVES[query]]
    beside = json.loads(samples[0]["json"])
    assert beside["concreteness"] == [None, 4.87, None]
    assert beside["margin"] == [0, pytest.approx(margin_of("~a")), 0]
    assert manifest.rows == {"rows": 3}
    assert manifest.drops == {"no_image": 1, "no_image_file": 1, "no_negatives": 1}


def test_tar_files_are_the_same_bytes_and_made_again_when_images_change(captioned, images):
    options = Export(name="s", format="webdataset", image_folder=images)
    folder = captioned.path / "8_export/s.webdataset"
    found = []
    for workers in (1, 2):
        export(captioned, options, How(workers=workers, force=True))
        found.append([(folder / f"{key}.tar").read_bytes() for key in captioned.query_shards()])
    assert found[0] == found[1]
    assert export(captioned, options, HOW).skipped
    (images / "d.jpg").write_bytes(b"new")
    with pytest.raises(UserError, match=r"images is changed\); pass --force"):
        export(captioned, options, HOW)
    assert export(captioned, options, How(force=True)).drops == {"no_image": 1, "no_negatives": 1}
    (folder / "00001.parquet").unlink()
    (folder / "00001.tar").unlink()
    (folder / "_manifest.json").unlink()
    assert export(captioned, options, HOW).resumed_shards == 2
    assert (folder / "00001.tar").read_bytes() == found[0][1]


def test_webdataset_reads_them(captioned, images):
    wds = pytest.importorskip("webdataset")
    export(captioned, Export(name="s", format="webdataset", image_folder=images), HOW)
    folder = captioned.path / "8_export/s.webdataset"
    urls = [str(folder / f"{key}.tar") for key in captioned.query_shards()]
    data = wds.WebDataset(urls, shardshuffle=False, empty_check=False)
    found = [(sample["txt"].decode(), json.loads(sample["json"])["query_id"]) for sample in data]
    assert found == [(CAPTIONS[query][1], query) for query in ("c1", "c2", "c3")]


# --- all


@pytest.mark.parametrize("form", ["beir", "trec", "nemo"])
def test_workers_and_a_kill_change_no_byte(run, form):
    options, folder = Export(name="bm25", format=form), run.path / f"8_export/bm25.{form}"

    def tree() -> dict[str, bytes]:
        files = (file for file in folder.rglob("*") if file.is_file())
        return {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in files
            if file.name != "_manifest.json"
        }

    first = export(run, options, HOW)
    before = tree()
    export(run, options, How(workers=2, force=True))
    assert tree() == before
    (folder / "_manifest.json").unlink()
    (folder / "00001.parquet").unlink()
    second = export(run, options, HOW)
    assert tree() == before and (second.rows, second.drops) == (first.rows, first.drops)
    assert export(run, options, HOW).skipped


def test_what_a_format_does_not_take_is_one_line(run, captioned, tmp_path):
    for form, options, flag in (
        ("beir", {"ids": True}, "--ids"),
        ("trec", {"card": True}, "--card"),
        ("beir", {"prompt": "x"}, "--prompt"),
        ("nemo", {"concreteness": True}, "--concreteness"),
        ("trec", {"batch": 4}, "--batch"),
        ("beir", {"dev": 0.5}, "--dev"),
        ("nemo", {"file_type": "jsonl"}, "--file-type"),
        ("webdataset", {"negatives": 3}, "--negatives"),
        ("beir", {"image_folder": tmp_path}, "--image-folder"),
    ):
        with pytest.raises(UserError, match=f"^{flag} is not for {form}; leave it out"):
            export(run, Export(name="bm25", format=form, **options), HOW)
    for folder in (None, tmp_path / "none"):
        with pytest.raises(UserError, match=r"with --image-folder \(found (none|.*/none)\)"):
            export(captioned, Export(name="s", format="webdataset", image_folder=folder), HOW)
    with pytest.raises(UserError, match="has no images, which webdataset needs"):
        export(run, Export(name="bm25", format="webdataset", image_folder=tmp_path), HOW)
    assert not (run.path / "8_export").exists() and len(FOLDERS) == 4


@pytest.mark.parametrize("form", ["beir", "nemo"])
def test_a_document_that_the_corpus_lacks_is_named(tmp_path, form):
    run = toy_run(tmp_path / "run", candidates={"s": {"q1": ["d07"]}}, similarity=None)
    select(run, Select(name="s", sources=("s",)), HOW)
    made = run.read("5_sets/s", "00000")
    wrong = made.set_column(1, "doc_id", pa.array(["gone"]))
    write_table(run.path / "5_sets/s/00000.parquet", wrong)
    with pytest.raises(UserError, match="document 'gone' is not in the corpus; make the set anew"):
        export(run, Export(name="s", format=form), HOW)
