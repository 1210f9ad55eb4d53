"""`quarry ingest auto`, and refusals that name the likely command."""

import json
import zipfile

import pytest
from ingested import make_beir, refuse, rows, write_jsonl, write_records, write_text

from miner.engine import How
from miner.errors import UserError
from miner.ingest.auto import IngestAuto, guess, ingest_any
from miner.ingest.formats import IngestBeir
from miner.ingest.pairs import IngestCaptions, IngestPairs
from miner.store import Run
from miner.tables import POSITIVES

TABLES = {
    "p.jsonl": (
        '{"question": "a", "answer": "b"}\n',
        "pairs p.jsonl --query question --positive answer",
    ),
    "t.csv": (
        "anchor,positive,negative\na,b,c\n",
        "pairs t.csv --query anchor --negative negative",
    ),
    "s.csv": ("question;answer\na;b\n", "pairs s.csv --query question --positive answer"),
    "t.tsv": ("Query\tPassage\na\tb\n", "pairs t.tsv --query Query --positive Passage"),
    "neg.jsonl": (
        '{"query": "a", "pos": ["b"], "neg": ["c"], "neg_scores": [1]}\n',
        "pairs neg.jsonl --positive pos --negative neg --negative-score neg_scores",
    ),
    "nli.csv": (
        "sentence1,sentence2\na,b\n",
        "pairs nli.csv --query sentence1 --positive sentence2",
    ),
    "c.csv": ("image,caption\n1.jpg,a dog\n", "captions c.csv --group image --image image"),
    "c.txt": ("a dog\n", "captions c.txt"),
    "f.token": ("1.jpg#0\ta dog\n", "captions f.token --group image_id --image file_name"),
    "coco.json": (
        '{"annotations": [{"id": 1, "image_id": 2, "caption": "a dog"}]}',
        "captions coco.json --group image_id",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_taken_for_what_it_is_and_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, command = TABLES[name]
    path = write_text(tmp_path / name, content).relative_to(tmp_path)
    run = Run(tmp_path / "run")
    manifest, *_ = ingest_any(run, IngestAuto(path=path), How())
    assert f"taken for: quarry ingest {command}" in manifest.facts["notes"]
    assert manifest.rows["queries"] == 1
    again, *_ = ingest_any(run, guess(path).kind(**guess(path).options), How())
    assert again.skipped  # the command that was named does the same


def test_parquet_is_known_by_its_columns(tmp_path):
    for kind, row in (
        (IngestPairs, {"query": "a", "positive": "b"}),
        (IngestCaptions, {"caption": "a dog"}),
    ):
        path = write_records(tmp_path / "table.parquet", [row])
        assert guess(path).kind is kind


def test_folders_and_zips(tmp_path):
    folder = make_beir(tmp_path / "beir")
    assert guess(folder).command == f"quarry ingest beir {folder} --split test"
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
        for file in folder.rglob("*.*"):
            packed.write(file, f"beir/{file.relative_to(folder)}")
    assert guess(tmp_path / "b.zip").name == "beir"
    run = Run(tmp_path / "run")
    ingest_any(run, IngestAuto(path=tmp_path / "b.zip"), How())
    assert len(rows(run, POSITIVES)) == 4
    trec = tmp_path / "trec"
    write_text(trec / "collection.tsv", "d1\tone\n")
    write_text(trec / "topics.txt", "q1\ta\n")
    write_text(trec / "qrels.2019.txt", "q1 0 d1 1\n")
    ingest_any(Run(tmp_path / "other"), IngestAuto(path=trec), How())
    assert guess(trec).name == "trec"
    shards = tmp_path / "shards"
    write_jsonl(shards / "a.jsonl", [{"query": "a", "positive": "b"}])
    assert guess(shards).command == f"quarry ingest pairs {shards}"


def test_limits_and_encodings_are_handed_on(tmp_path):
    file = tmp_path / "p.csv"
    file.write_bytes("query,positive\na,t\xe4glich\nb,x\n".encode("latin-1"))
    run = Run(tmp_path / "run")
    ingest_any(run, IngestAuto(path=file, encoding="latin-1", limit=1), How())
    assert len(rows(run, POSITIVES)) == 1


def test_what_is_not_known_is_refused_with_what_was_found(tmp_path):
    run = Run(tmp_path / "run")
    odd = write_jsonl(tmp_path / "odd.jsonl", [{"a": 1, "b": 2}])
    refuse(run, IngestAuto(path=odd), "is nothing that", "columns a, b", "--query COLUMN")
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(run, IngestAuto(path=empty), "found nothing")
    refuse(run, IngestAuto(path=tmp_path / "no"), "no such file or folder")
    refuse(run, IngestAuto(path=write_text(tmp_path / "x.bin", "x")), "a .bin file")


def test_a_refusal_names_the_likely_command(tmp_path):
    run, folder = Run(tmp_path / "run"), make_beir(tmp_path / "beir")
    beir = f"looks like input for: quarry ingest beir {folder} --split test"
    refuse(run, IngestPairs(file=str(folder)), 'missing "query"', beir)
    file = write_text(tmp_path / "p.csv", "anchor,positive\na,b\n")
    pairs = f"looks like input for: quarry ingest pairs {file} --query anchor"
    refuse(run, IngestBeir(folder=file), "missing corpus.jsonl", pairs)
    refuse(run, IngestCaptions(file=str(file)), 'missing "caption"', pairs)
    refuse(run, IngestPairs(file=str(file)), 'missing "query"', pairs)
    with pytest.raises(UserError) as caught:  # nothing to add where the command is the right one
        ingest_any(run, IngestBeir(folder=folder, min_relevance=9), How())
    assert "looks like" not in str(caught.value)


def test_ids_are_never_changed(tmp_path):
    odd = [
        " lead",
        "trail ",
        "a,b",
        'q"uote',
        "sl/ash",
        "tab\tin",
        "new\nline",
        "é" * 255,
        "😀",
        "../up",
    ]
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"id": i, "text": f"text {i}"} for i in odd])
    file = write_jsonl(tmp_path / "p.jsonl", [{"query": i, "qid": i, "pid": i} for i in odd])
    run = Run(tmp_path / "run")
    options = IngestPairs(file=str(file), query_id="qid", positive_id="pid", corpus=str(corpus))
    ingest_any(run, options, How())
    assert sorted(rows(run, POSITIVES)) == sorted((i, i, 1) for i in odd)
    assert json.loads((run.path / "1_tables/_manifest.json").read_text())["drops"] == {}
