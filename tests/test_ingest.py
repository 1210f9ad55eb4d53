"""Ingest of BEIR folders: the tables, what is wrong with rows and files, and the stage itself."""

import gzip
import json
import resource
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ingested import (
    IN_ORDER,
    documents,
    make_beir,
    refuse,
    rejects,
    rows,
    tree,
    write_jsonl,
    write_records,
    write_text,
)

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.ingest import ingest as ingest_module
from miner.ingest import sorting, staging
from miner.ingest.formats import IngestBeir
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestPairs
from miner.ingest.rows import hash_id
from miner.store import Run
from miner.tables import POSITIVES, QUERIES


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run")


# --- BEIR and the tables


def test_beir_tables_are_exact_and_in_order_of_bytes(tmp_path, run):
    manifest, *_ = ingest(run, IngestBeir(folder=make_beir(tmp_path / "beir")), How())
    assert documents(run) == [
        ("Z", "", "turf"),
        ("a", "", "no one asks for this"),
        ("d10", "Roofs", "slate"),
        ("d9", "", "tile"),
        ("é", "", "straw roof"),
    ]
    assert rows(run, QUERIES) == [
        ("q1", "green roof"),
        ("q10", "what covers a house"),
        ("q2", "what is a roof made of"),
    ]
    assert rows(run, POSITIVES) == [
        ("q1", "Z", 1),
        ("q10", "é", 1),
        ("q2", "d10", 2),
        ("q2", "d9", 1),
    ]
    assert rejects(run) == []
    assert (manifest.rows, manifest.drops) == ({"documents": 5, "queries": 3, "positives": 4}, {})
    assert manifest.facts == {
        "format": "beir",
        "documents": 5,
        "document_shards": 1,
        "shard_documents": 16384,
        "queries": 3,
        "query_shards": 1,
        "shard_queries": 2048,
    }
    assert set(manifest.inputs) == {"corpus.jsonl", "queries.jsonl", "qrels/test.tsv"}


def test_corpus_reads_what_ingest_wrote(tmp_path, run):
    ingest(run, IngestBeir(folder=make_beir(tmp_path / "beir"), shard_documents=2), How())
    corpus = Corpus(run)
    assert (len(corpus), corpus.keys) == (5, ["00000", "00001", "00002"])
    assert corpus.rows(["é", "Z", "d1", "d10", None]).tolist() == [4, 0, -1, 2, -1]
    assert corpus.texts(np.array([2, 4, 2])) == ["Roofs slate", "straw roof", "Roofs slate"]


def test_shards_have_exact_sizes_and_positives_stay_with_their_queries(tmp_path, run):
    folder = make_beir(tmp_path / "beir")
    ingest(run, IngestBeir(folder=folder, shard_documents=2, shard_queries=2), How())
    assert [len(Corpus(run).shard(key)) for key in ("00000", "00001", "00002")] == [2, 2, 1]
    assert [doc[0] for doc in documents(run)] == IN_ORDER
    assert run.read("1_tables/queries", "00000")["query_id"].to_pylist() == ["q1", "q10"]
    assert run.read("1_tables/positives", "00000")["query_id"].to_pylist() == ["q1", "q10"]
    assert run.read("1_tables/positives", "00001").to_pydict() == {
        "query_id": ["q2"] * 2,
        "doc_id": ["d10", "d9"],
        "relevance": [2, 1],
    }
    ids = np.load(run.path / "1_tables" / "_doc_ids.npy")
    assert (ids.dtype, ids.tolist()) == (np.dtype("S3"), [doc_id.encode() for doc_id in IN_ORDER])


def test_batches_and_passes_change_nothing(tmp_path, monkeypatch):
    # ids in disorder, 49 of them twice
    docs = [{"_id": f"x{n * 7919 % 101}", "text": f"text {n}"} for n in range(150)]
    folder = make_beir(tmp_path / "beir", docs)
    once, again = Run(tmp_path / "once"), Run(tmp_path / "again")
    ingest(once, IngestBeir(folder=folder, shard_documents=7), How())
    monkeypatch.setattr(staging, "BATCH_ROWS", 3)
    monkeypatch.setattr(sorting, "FAN_OUT", 2)
    ingest(again, IngestBeir(folder=folder, shard_documents=7), How())
    expected = {f"x{n * 7919 % 101}": f"text {n}" for n in range(100, -1, -1)}
    assert {
        doc_id: text for doc_id, _, text in documents(again) if doc_id.startswith("x")
    } == expected
    assert [doc[0].encode() for doc in documents(again)] == sorted(
        doc[0].encode() for doc in documents(again)
    )
    assert tree(once) == tree(again)


def test_ids_longer_than_all_of_the_corpus_are_unknown_and_its_ids_are_not_copied(tmp_path, run):
    ingest(run, IngestBeir(folder=make_beir(tmp_path / "beir")), How())
    corpus, longer = Corpus(run), "~" + "0" * 40
    known = corpus.doc_ids(np.arange(len(corpus))).to_pylist()
    assert corpus.rows([longer, known[0], None, known[-1], longer]).tolist() == [
        -1,
        0,
        -1,
        len(corpus) - 1,
        -1,
    ]
    assert corpus.rows([]).tolist() == []
    rng = np.arange(400_000)
    corpus.count, corpus._ids = len(rng), np.char.mod("%06d", rng).astype(bytes)
    tracemalloc.start()
    assert corpus.rows([longer, "000007"]).tolist() == [-1, 7]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < corpus._ids.nbytes / 10


def test_more_than_2_gib_of_text_in_one_read(tmp_path, run):
    large = {"_id": "large", "text": "x" * (3 << 20)}
    ingest(run, IngestBeir(folder=make_beir(tmp_path / "beir", [large])), How())
    corpus = Corpus(run)
    one, other = corpus.rows(["large", "a"])
    found = corpus.documents(np.repeat([one, other], [700, 1]))  # 2.05 GiB
    assert pc.sum(pc.binary_length(found["text"])).as_py() == 700 * (3 << 20) + len(
        found["text"][700].as_py()
    )
    assert found["doc_id"][699:].to_pylist() == ["large", "a"]


def test_documents_are_served_without_being_read_into_memory(tmp_path, run):
    docs = [{"_id": f"x{n}", "text": "slate " * 5000} for n in range(200)]
    ingest(run, IngestBeir(folder=make_beir(tmp_path / "beir", docs)), How())
    before = pa.total_allocated_bytes()
    shard = Corpus(run).shard("00000")
    assert shard.nbytes > 5_000_000
    assert pa.total_allocated_bytes() - before < 100_000


def test_limit_keeps_the_first_queries_by_id_and_all_documents(tmp_path, run):
    manifest, *_ = ingest(run, IngestBeir(folder=make_beir(tmp_path / "beir"), limit=2), How())
    assert [query[0] for query in rows(run, QUERIES)] == ["q1", "q10"]
    assert rows(run, POSITIVES) == [("q1", "Z", 1), ("q10", "é", 1)]
    assert (manifest.rows["documents"], manifest.drops) == (5, {"over_limit": 1})


# --- class labels


def test_labels_of_positives_are_kept_beside_the_tables(tmp_path, run):
    corpus = write_jsonl(
        tmp_path / "c.jsonl", [{"id": "c1", "text": "slate"}, {"id": "c2", "text": "turf"}]
    )
    file = write_jsonl(
        tmp_path / "p.jsonl",
        [
            # one for both; the corpus has slate as c1
            {"query": "a", "positive": ["tile", "slate"], "class": "roof"},
            {"query": "b", "positive": ["slate", "straw"], "class": ["stone", None]},
            {"query": "c", "positive": "tile", "class": 7},
            {"query": "d", "positive": "tile", "class": "roof"},  # again
            {"query": "e", "positive": "glass", "class": " "},
            {"query": "f", "positive": "lead", "class": None},
            {"query": "g", "positive": "reed"},
            {"query": "h", "positive": " ", "class": "nothing"},  # no positive, so no label
            {"query": "i", "positive": ["x", "y"], "class": ["only one"]},
        ],
    )
    manifest, *_ = ingest(
        run, IngestPairs(file=str(file), corpus=str(corpus), label="class"), How()
    )
    kept = pq.read_table(run.path / "1_tables" / "labels")
    assert kept.schema.names == ["doc_id", "label"]
    tile = hash_id("d", "tile")
    assert [tuple(row.values()) for row in kept.to_pylist()] == sorted(
        [("c1", "roof"), ("c1", "stone"), (tile, "7"), (tile, "roof")]
    )
    assert manifest.rows["labels"] == 4
    assert rejects(run)[0] == ("p.jsonl:8", "queries", "query_without_positive")
    assert ("p.jsonl:9", "queries", "unequal_lists") in rejects(run)


def test_without_a_label_column_there_is_no_table_of_labels(tmp_path, run):
    file = write_jsonl(tmp_path / "p.jsonl", [{"query": "a", "positive": "tile", "class": "roof"}])
    refuse(
        run,
        IngestPairs(file=str(file), label="kind"),
        'p.jsonl: missing "kind"',
        "name it with --label",
    )
    manifest, *_ = ingest(run, IngestPairs(file=str(file)), How())
    assert "labels" not in manifest.rows
    assert not (run.path / "1_tables" / "labels").exists()


# --- what is wrong with a row


def test_every_reject_has_its_place_table_and_reason(tmp_path, run):
    docs = [
        "{torn",
        "[1, 2]",
        {"_id": "m"},
        {"title": "t", "text": "no id"},
        {"_id": "e", "title": " ", "text": "\n"},
        {"_id": "n\u0000ul", "text": "x"},
        {"_id": "d9", "text": "another tile"},
        {"_id": "d9", "text": "tile"},
        {"_id": "", "text": "x"},
        {"_id": "x" * 513, "text": "x"},
        {"_id": ["l"], "text": "x"},
        {"_id": "t", "text": {"a": 1}},
        '{"_id": "s", "text": "\\ud83d half"}',
        {"_id": 7, "text": 3.5},
        {"_id": "title only", "title": "T", "text": ""},
    ]
    queries = [
        {"_id": "blank", "text": "\t"},
        {"_id": "q1", "text": "again"},
        {"_id": "lonely", "text": "no one answers"},
    ]
    qrels = (
        "q1\td9\t0\nq9\td9\t1\nq1\tm\t1\nq2\td9\t3\nq1\td9\thigh\nq1"
        " d9\nblank\td9\t1\nq1\td10\t99999999999\n"
    )
    manifest, *_ = ingest(
        run, IngestBeir(folder=make_beir(tmp_path / "beir", docs, queries, qrels)), How()
    )
    assert rejects(run) == [
        ("corpus.jsonl:6", "documents", "not_json"),
        ("corpus.jsonl:7", "documents", "not_json"),
        ("corpus.jsonl:8", "documents", "missing_text"),
        ("corpus.jsonl:9", "documents", "missing__id"),
        ("corpus.jsonl:10", "documents", "empty_text"),
        ("corpus.jsonl:11", "documents", "bad_id"),
        ("corpus.jsonl:12", "documents", "duplicate_id"),
        ("corpus.jsonl:13", "documents", "duplicate_id"),
        ("corpus.jsonl:14", "documents", "bad_id"),
        ("corpus.jsonl:15", "documents", "bad_id"),
        ("corpus.jsonl:16", "documents", "bad_id"),
        ("corpus.jsonl:17", "documents", "bad_text"),
        ("corpus.jsonl:18", "documents", "not_utf8"),
        ("queries.jsonl:4", "queries", "empty_text"),
        ("queries.jsonl:5", "queries", "duplicate_id"),
        ("queries.jsonl:6", "queries", "query_without_positive"),
        ("qrels/test.tsv:6", "positives", "low_relevance"),
        ("qrels/test.tsv:7", "positives", "unknown_query"),
        ("qrels/test.tsv:8", "positives", "unknown_document"),
        ("qrels/test.tsv:9", "positives", "duplicate_positive"),
        ("qrels/test.tsv:10", "positives", "bad_relevance"),
        ("qrels/test.tsv:11", "positives", "bad_columns"),
        ("qrels/test.tsv:12", "positives", "unknown_query"),
        ("qrels/test.tsv:13", "positives", "bad_relevance"),
    ]
    assert manifest.drops == {
        "bad_columns": 1,
        "bad_id": 4,
        "bad_relevance": 2,
        "bad_text": 1,
        "duplicate_id": 3,
        "duplicate_positive": 1,
        "empty_text": 2,
        "low_relevance": 1,
        "missing__id": 1,
        "missing_text": 1,
        "not_json": 2,
        "not_utf8": 1,
        "query_without_positive": 1,
        "unknown_document": 1,
        "unknown_query": 2,
    }
    kept = {doc_id: (title, text) for doc_id, title, text in documents(run)}
    assert (kept["d9"], kept["7"], kept["title only"]) == (("", "tile"), ("", "3.5"), ("T", ""))
    assert ("q2", "d9", 1) in rows(run, POSITIVES)  # the first judgment wins


def test_rejects_keep_the_raw_row_cut(tmp_path, run):
    ingest(
        run,
        IngestBeir(
            folder=make_beir(tmp_path / "beir", ["{" + "x" * 600, {"_id": "d9", "text": "second"}])
        ),
        How(),
    )
    raw = [
        json.loads(line)["row"]
        for line in (run.path / "1_tables" / "_rejects.jsonl").read_text().splitlines()
    ]
    assert raw == ["{" + "x" * 499, "d9\t second"]


def test_a_torn_last_line_is_a_reject(tmp_path, run):
    folder = make_beir(tmp_path / "beir")
    with open(folder / "corpus.jsonl", "a") as file:
        file.write('{"_id": "torn", "text": "half a')
    ingest(run, IngestBeir(folder=folder), How())
    assert rejects(run) == [("corpus.jsonl:6", "documents", "not_json")]


def test_a_line_that_is_not_utf8_is_a_reject(tmp_path, run):
    folder = make_beir(tmp_path / "beir")
    with open(folder / "corpus.jsonl", "ab") as file:
        file.write('{"_id": "latin", "text": "é"}\n'.encode("latin-1"))
    ingest(run, IngestBeir(folder=folder), How())
    assert rejects(run) == [("corpus.jsonl:6", "documents", "not_utf8")]


def test_text_with_nul_and_astral_characters_comes_through(tmp_path, run):
    ingest(
        run,
        IngestBeir(folder=make_beir(tmp_path / "beir", [{"_id": "x", "text": "a\u0000b 😀"}])),
        How(),
    )
    assert ("x", "", "a\u0000b 😀") in documents(run)


def test_bom_gzip_blank_lines_and_headerless_qrels_change_nothing(tmp_path):
    plain, odd = make_beir(tmp_path / "plain"), make_beir(tmp_path / "odd")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        content = (odd / name).read_bytes()
        if name == "qrels/test.tsv":
            content = content.split(b"\n", 1)[1]
        (odd / f"{name}.gz").write_bytes(
            gzip.compress(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n") + b"\n")
        )
        (odd / name).unlink()
    runs = Run(tmp_path / "a"), Run(tmp_path / "b")
    for run, folder in zip(runs, (plain, odd), strict=True):
        ingest(run, IngestBeir(folder=folder), How())
    assert tree(runs[0]) == tree(runs[1])


# --- what is wrong with a file: one line each


def test_missing_files_and_splits_are_named(tmp_path, run):
    folder = make_beir(tmp_path / "beir")
    refuse(
        run,
        IngestBeir(folder=folder, split="dev"),
        'missing split "dev" (found test); name one with --split',
    )
    (folder / "queries.jsonl").unlink()
    refuse(
        run,
        IngestBeir(folder=folder),
        "missing queries.jsonl, packed or not (found corpus.jsonl, qrels)",
    )
    refuse(run, IngestBeir(folder=tmp_path / "nowhere"), "no such folder")
    refuse(run, IngestPairs(file=str(tmp_path / "no.jsonl")), "no.jsonl: no such file")
    refuse(run, IngestPairs(file=str(folder)), 'beir/corpus.jsonl: missing "query"')
    refuse(
        run, IngestPairs(file=str(tmp_path)), "is a folder; expected a file, or a folder of files"
    )
    refuse(
        run,
        IngestPairs(file=str(write_text(tmp_path / "pairs.xls", "x"))),
        "pairs.xls: is a spreadsheet",
        "save it as CSV",
    )
    refuse(
        run,
        IngestPairs(file=str(write_text(tmp_path / "pairs.doc", "x"))),
        "pairs.doc: unknown kind of file",
        ".parquet",
    )


def test_utf16_and_damaged_files_are_refused(tmp_path, run):
    folder = make_beir(tmp_path / "beir")
    good = (folder / "corpus.jsonl").read_text("utf-8")
    for encoding in ("utf-16", "utf-16-le"):
        (folder / "corpus.jsonl").write_text(good, encoding)
        refuse(run, IngestBeir(folder=folder), "corpus.jsonl: is UTF-16 or binary, expected UTF-8")
    (folder / "corpus.jsonl").unlink()
    packed = gzip.compress(good.encode() * 50)
    for content in (packed[:-20], packed[:60] + b"garbage" + packed[67:], b"not gzip at all"):
        (folder / "corpus.jsonl.gz").write_bytes(content)
        refuse(run, IngestBeir(folder=folder), "corpus.jsonl.gz: truncated or corrupt packed file")
    refuse(
        run,
        IngestPairs(file=str(write_text(tmp_path / "bad.parquet", "PAR1 no"))),
        "bad.parquet: cannot be read as Parquet",
    )
    refuse(
        run,
        IngestPairs(file=str(write_text(tmp_path / "bad.json", '[{"query": 1'))),
        "bad.json: not valid JSON",
    )
    unclosed = write_text(tmp_path / "bad.csv", 'query,positive\na,"b\nc,d\n')
    refuse(run, IngestPairs(file=str(unclosed)), "bad.csv:2", "quotes that are closed")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_a_column_that_the_whole_file_lacks(tmp_path, run, kind):
    file = write_records(
        tmp_path / f"pairs.{kind}",
        [{"id": "1", "query": "a b", "text": "x"}, {"id": "2", "query": "c d", "text": "y"}],
    )
    message = f'pairs.{kind}: missing "question" (found id, query, text); name it with --query'
    refuse(run, IngestPairs(file=str(file), query="question", positive="text"), message)
    refuse(
        run,
        IngestPairs(file=str(file), positive="answer"),
        'missing "answer"',
        "name it with --positive",
    )
    # the failures above do not ask for --force
    ingest(run, IngestPairs(file=str(file), positive="text"), How())


def test_beir_without_its_columns_names_no_flag(tmp_path, run):
    folder = make_beir(tmp_path / "beir")
    write_jsonl(folder / "corpus.jsonl", [{"id": "d9", "text": "x"}])
    refuse(run, IngestBeir(folder=folder), 'corpus.jsonl: missing "_id" (found id, text)')


def test_nothing_left_names_the_reason_and_an_example(tmp_path, run):
    folder = make_beir(tmp_path / "beir")
    refuse(
        run,
        IngestBeir(folder=folder, min_relevance=3),
        "no query with a positive is left",
        "low_relevance (4)",
        "qrels/test.tsv:2: q2 d9 1",
    )
    write_text(folder / "qrels" / "test.tsv", "1\td9\t1\n2\td9\t1\n")
    refuse(run, IngestBeir(folder=folder), "unknown_query (2), such as qrels/test.tsv:1: 1 d9 1")
    refuse(
        run, IngestPairs(file=str(write_text(tmp_path / "empty.jsonl", ""))), "empty.jsonl: no rows"
    )


# --- the stage


def test_a_repeat_is_skipped_and_a_difference_refused(tmp_path, run):
    folder = make_beir(tmp_path / "beir")
    assert not ingest(run, IngestBeir(folder=folder), How())[0].skipped
    before = tree(run)
    assert ingest(run, IngestBeir(folder=folder), How())[0].skipped
    with pytest.raises(UserError, match="was made with limit=None, now 1; pass --force"):
        ingest(run, IngestBeir(folder=folder, limit=1), How())
    make_beir(folder, docs=[{"_id": "new", "text": "one more"}])
    with pytest.raises(UserError, match=r"was made from other inputs \(corpus.jsonl is changed\)"):
        ingest(run, IngestBeir(folder=folder), How())
    assert tree(run) == before
    assert ingest(run, IngestBeir(folder=folder), How(force=True))[0].rows["documents"] == 6


@pytest.mark.parametrize("step", ["_write_documents", "_write_queries", "_write_rejects", "finish"])
def test_killed_and_started_again_gives_the_same_bytes(tmp_path, monkeypatch, step):
    folder = make_beir(tmp_path / "beir", docs=["{torn"])
    options = IngestBeir(folder=folder, shard_documents=2, shard_queries=1)
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    ingest(whole, options, How())

    def kill(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, step, kill)
        with pytest.raises(KeyboardInterrupt):
            ingest(killed, options, How())
    for leftover in (
        "_staging/texts.arrow",
        "_staging/staging.duckdb",
        "documents/.00001.arrow.1.tmp",
        ".x.tmp",
        "documents/00009.arrow",
    ):
        write_text(killed.path / "1_tables" / leftover, "left by a kill")
    manifest, *_ = ingest(killed, options, How())
    assert not manifest.skipped
    assert tree(killed) == tree(whole)


def test_progress_counts_the_shards(tmp_path, run):
    seen = []

    @contextmanager
    def progress(label: str, total: int):
        seen.append((label, total))
        yield lambda *read: seen.append(read or "step")

    ingest(
        run,
        IngestBeir(folder=make_beir(tmp_path / "beir"), shard_documents=2, shard_queries=2),
        How(progress=progress),
    )
    read = seen[1]
    assert seen[0] == ("1_tables, reading", 0) and read[0] == 12 and read[1] > 50
    assert seen[2:] == [("1_tables", 5), *["step"] * 5]


def test_a_full_disk_stops_the_ingest_and_can_be_got_over(tmp_path, run):
    docs = [{"_id": f"x{n}", "text": f"slate {n} " * 40} for n in range(2000)]
    options = IngestBeir(folder=make_beir(tmp_path / "beir", docs))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (20_000, 200_000):  # the database does not fit, the texts do not
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                ingest(run, options, How())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ingest(run, options, How())[0].rows["documents"] == 2005
