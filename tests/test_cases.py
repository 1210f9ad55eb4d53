"""Inputs as users' bug reports describe them, each with the right outcome: small, whole flows."""

import bz2
import csv
import gzip
import io
import json
import math
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from ingested import documents, refuse, rejects, rows, write_jsonl, write_records, write_text

from miner.engine import How
from miner.ingest.formats import IngestBeir
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestCaptions, IngestPairs
from miner.ingest.rows import hash_id
from miner.ingest.trec import IngestTrec
from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
from miner.search.tokens import IndexBm25
from miner.store import Run
from miner.tables import POSITIVES, QUERIES
from scoring.metrics import Score
from scoring.recipe import Select
from scoring.retrieval import score_source
from scoring.score import metrics
from scoring.select import select

HOW = How()


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run")


def texts(run: Run) -> list[str]:
    return sorted(text for _, _, text in documents(run))


def trec(folder, topics: str, name: str = "topics.tsv", corpus: str = "d1\tone\nd2\ttwo\n"):
    return IngestTrec(
        corpus=write_text(folder / "corpus.tsv", corpus),
        topics=write_text(folder / name, topics),
        qrels=write_text(folder / "qrels.txt", "q1 0 d1 1\nq2 0 d2 1\n"),
    )


def beir(folder, corpus: list, queries: list, qrels: str):
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", queries)
    write_text(folder / "qrels/test.tsv", qrels)
    return IngestBeir(folder=folder)


# ---- texts


def test_a_tab_in_a_topic_or_a_passage_is_part_of_its_text(tmp_path, run):
    corpus = "d1\ta left\tand a right part\nd2\ttwo\n"
    ingest(run, trec(tmp_path, "q1\thow to indent with\ttabs\nq2\twhy\n", corpus=corpus), HOW)
    assert rows(run, QUERIES) == [("q1", "how to indent with\ttabs"), ("q2", "why")]
    assert texts(run) == ["a left\tand a right part", "two"]


def test_three_columns_of_documents_are_id_title_and_text(tmp_path, run):
    corpus = "d1\tT\tone\nd2\t\ttwo\twith a tab\nd3\tlonely\n"
    ingest(run, trec(tmp_path, "q1\ta\nq2\tb\n", corpus=corpus), HOW)
    assert documents(run) == [("d1", "T", "one"), ("d2", "", "two\twith a tab")]
    assert rejects(run) == [("corpus.tsv:3", "documents", "bad_columns")]


PANDAS = (
    'query\tpositive\nwho said no\t"He said ""no"" twice."\nwhat is below\t"line one\nline two"\n'
    'plain\t"Quoted from start" but not to the end\nlast\tbare\n'
)


def test_a_tsv_that_pandas_wrote_is_read_as_pandas_meant_it(tmp_path, run):
    file = write_text(tmp_path / "pairs.tsv", PANDAS)
    manifest, *_ = ingest(run, IngestPairs(file=str(file)), HOW)
    assert texts(run) == sorted(
        [
            'He said "no" twice.',
            "line one\nline two",
            '"Quoted from start" but not to the end',
            "bare",
        ]
    )
    assert manifest.drops == {} and "quoted" in manifest.facts["notes"][0]
    raw = Run(tmp_path / "raw")
    ingest(raw, IngestPairs(file=str(file), quoting="raw"), HOW)
    assert '"He said ""no"" twice."' in texts(raw)
    assert rejects(raw) == [("pairs.tsv:4", "queries", "bad_columns")]


@pytest.mark.parametrize("quoting", ["minimal", "all", "nonnumeric"])
def test_what_pandas_writes_comes_back(tmp_path, run, quoting):
    told = ['a "b" c', "one\ntwo", "tab\there", '"all"', '"', '""', "plain", "x\n\n", 'end"']
    file = tmp_path / "pairs.tsv"
    with file.open("w", newline="", encoding="utf-8") as out:
        how = getattr(csv, f"QUOTE_{quoting.upper()}")
        writer = csv.writer(out, delimiter="\t", quoting=how, lineterminator="\n")
        writer.writerow(["query", "positive", "number"])
        writer.writerows([f"q {place}", text, place] for place, text in enumerate(told))
    ingest(run, IngestPairs(file=str(file)), HOW)
    assert texts(run) == sorted(told)


def test_a_raw_tsv_keeps_its_quotes(tmp_path, run):
    told = ['"A title"', 'He said "no"', '"begins', 'ends"', "it's 5\" wide", '"a" and "b"']
    lines = "".join(f"q {place}\t{text}\n" for place, text in enumerate(told))
    file = write_text(tmp_path / "pairs.tsv", f"query\tpositive\n{lines}")
    manifest, *_ = ingest(run, IngestPairs(file=str(file)), HOW)
    assert texts(run) == sorted(told) and "notes" not in manifest.facts


def test_a_csv_of_another_delimiter(tmp_path, run):
    file = write_text(tmp_path / "p.csv", 'query;positive\na;"tile; red"\n')
    ingest(run, IngestPairs(file=str(file)), HOW)
    assert texts(run) == ["tile; red"]


def test_topics_as_trec_has_them_since_2014(tmp_path):
    number = (
        "<topics>\n<topic>\n<number>q1</number>\n<query>ankle pain</query>\n<description>\nx\n"
        "</description>\n</topic><topic><number> q2 </number><query>vitamin &amp; cold</query>"
        "</topic>\n</topics>"
    )
    attribute = '<topics task="ct">\n<topic number="q1">\nankle pain\n</topic>\n'
    attribute += (
        '<topic type="x" number="q2"><summary>vitamin &amp; cold</summary></topic></topics>'
    )
    for name, topics in (("a", number), ("b", attribute)):
        run = Run(tmp_path / name)
        ingest(run, trec(tmp_path / f"{name}-in", topics, "topics.xml"), HOW)
        assert rows(run, QUERIES) == [("q1", "ankle pain"), ("q2", "vitamin & cold")]


# ---- numbers


def test_integers_written_as_floats_are_those_integers(tmp_path, run):
    options = beir(
        tmp_path / "beir",
        [{"_id": 3, "text": "three"}, {"_id": 4.0, "text": "four"}, {"_id": "5.0", "text": "five"}],
        [{"_id": 7.0, "text": "seven"}, {"_id": "8", "text": "eight"}],
        "query-id\tcorpus-id\tscore\n7.0\t3.0\t1.0\n8.0\t4\t2.\n7\t5\t1\n8\t3\t0.5\n",
    )
    ingest(run, options, HOW)
    assert [doc_id for doc_id, _, _ in documents(run)] == ["3", "4", "5.0"]
    assert rows(run, POSITIVES) == [("7", "3", 1), ("7", "5.0", 1), ("8", "4", 2)]
    assert rejects(run) == [("qrels/test.tsv:5", "positives", "bad_relevance")]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_float_ids_in_every_kind_of_file(tmp_path, run, kind):
    corpus = write_records(
        tmp_path / f"c.{kind}", [{"id": 1.0, "text": "tile"}, {"id": 2.0, "text": "slate"}]
    )
    pairs = write_records(
        tmp_path / f"p.{kind}", [{"query": "a", "pid": 1}, {"query": "b", "pid": 2}]
    )
    options = IngestPairs(file=str(pairs), corpus=str(corpus), positive_id="pid")
    ingest(run, options, HOW)
    assert len(rows(run, POSITIVES)) == 2


def test_an_id_that_may_mean_two_is_refused_by_name(tmp_path, run):
    options = beir(
        tmp_path / "beir",
        [
            {"_id": "3.0", "text": "three"},
            {"_id": "3.00", "text": "other"},
            {"_id": "4", "text": "x"},
        ],
        [{"_id": "q", "text": "seven"}],
        "q\t3\t1\nq\t4\t1\n",
    )
    ingest(run, options, HOW)
    assert rows(run, POSITIVES) == [("q", "4", 1)]
    assert rejects(run) == [("qrels/test.tsv:1", "positives", "ambiguous_id")]


# ---- the same text, the query itself

CORPUS = [
    {"_id": "p", "text": "Reset the router by holding the button"},
    {"_id": "copy", "text": "reset the router, by holding the BUTTON!"},
    {"_id": "a", "text": "the router button is red"},
    {"_id": "b", "text": "The router button is red."},
    {"_id": "c", "text": "a button of the router"},
    {"_id": "q", "text": "which router button"},
    {"_id": "other", "text": "Which router button?"},
    *({"_id": f"x{number}", "text": f"nothing of it {number}"} for number in range(9)),
]


def flow(run, options, **recipe):
    ingest(run, options, HOW)
    index_bm25(run, IndexBm25(), HOW)
    mine_bm25(run, MineBm25(k=20), HOW)
    return select(run, Select(name="s", sources=("bm25",), **recipe), HOW)


@pytest.fixture
def router(tmp_path):
    asked = [{"_id": "q", "text": "which router button"}, {"_id": "z", "text": "nothing 3"}]
    return beir(tmp_path / "beir", CORPUS, asked, "q\tp\t1\nz\tx3\t1\n")


def test_copies_and_the_query_itself_are_no_negatives_without_any_judge(run, router):
    manifest = flow(run, router)
    kept = [doc_id for query, doc_id in ids_of(run, "s") if query == "q"]
    assert sorted(kept) == ["a", "c"]
    assert {name: count for name, count in manifest.drops.items() if name != "positive"} == {
        "same_text": 1,
        "self": 1,
        "equals_query": 1,
        "repeated_text": 1,
    }
    assert manifest.facts["protected_by"] == "ids, text"


def ids_of(run, name):
    return [
        (row["query_id"], row["doc_id"])
        for key in run.query_shards()
        for row in run.read(f"5_sets/{name}", key).to_pylist()
    ]


def test_self_keeps_the_query_itself(run, router):
    flow(run, router, keep_self=True)
    kept = [doc_id for query, doc_id in ids_of(run, "s") if query == "q"]
    assert {"a", "c"} < {*kept}
    assert len({"q", "other"} & {*kept}) == 1  # still one of equal texts


def test_the_query_itself_does_not_count_in_retrieval(run, router):
    flow(run, router)
    score_source(run, "bm25", Score(resamples=0), HOW)
    found = {row["measure"]: row["value"] for row in metrics(run).to_pylist()}
    ranks = {
        (row["query_id"], row["doc_id"]): row["rank"]
        for row in run.read("3_candidates/bm25", "00000").to_pylist()
    }
    assert ranks["q", "q"] < ranks["q", "p"]
    gains = [
        1 / math.log2(ranks["q", "p"]),  # one rank better than with the query itself before it
        1 / math.log2(ranks["z", "x3"] + 1),
    ]
    assert found["ndcg@10"] == pytest.approx(sum(gains) / 2)


def test_distinct_leaves_near_copies_among_negatives_out(tmp_path, run):
    base = "the button of the router is found on the left side of the case near the power plug"
    near = [
        {"_id": "n1", "text": base},
        {"_id": "n2", "text": f"{base} too"},
        {"_id": "n3", "text": f"{base} also"},
        {"_id": "far", "text": "a red router with one button and two lamps"},
    ]
    options = beir(
        tmp_path / "near",
        [*CORPUS, *near],
        [{"_id": "z", "text": "button router case"}],
        "z\tp\t1\n",
    )
    flow(run, options)
    assert {"n1", "n2", "n3", "far"} <= {doc_id for _, doc_id in ids_of(run, "s")}
    manifest = select(run, Select(name="d", sources=("bm25",), distinct=0.8), HOW)
    kept = [doc_id for _, doc_id in ids_of(run, "d")]
    assert len({"n1", "n2", "n3"} & {*kept}) == 1 and "far" in kept
    assert manifest.drops["near_repeat"] == 2
    # the best-ranked one stays
    before = [doc_id for _, doc_id in ids_of(run, "s") if doc_id in ("n1", "n2", "n3")]
    assert before[0] in kept
    why = run.read("5_sets/d/_rejected", "00000").to_pylist()
    values = {row["value"] for row in why if row["reason"] == "near_repeat"}
    assert all(0.8 <= value < 1 for value in values)


# ---- what finds nothing says so

CHINESE = [
    {"query": "怎么重置路由器", "positive": "重置路由器需要长按按钮十秒钟"},
    {"query": "猫什么时候睡觉", "positive": "猫喜欢在下午睡觉"},
    {"query": "路由器密码", "positive": "路由器密码可以在网页中修改"},
    {"query": "火车几点离开", "positive": "火车九点钟从北站离开"},
]


def test_text_without_spaces_is_found_by_pairs_of_characters(tmp_path, run):
    file = tmp_path / "zh.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in CHINESE), "utf-8")
    ingest(run, IngestPairs(file=str(file)), HOW)
    index_bm25(run, IndexBm25(), HOW)
    found = mine_bm25(run, MineBm25(k=3), HOW)
    first = {
        row["query_id"]: row["doc_id"]
        for row in run.read("3_candidates/bm25", "00000").to_pylist()
        if row["rank"] == 1
    }
    assert first == {hash_id("q", row["query"]): hash_id("d", row["positive"]) for row in CHINESE}
    assert "warnings" not in found.facts
    index_bm25(run, IndexBm25(name="plain", bigrams=False), HOW)
    found = mine_bm25(run, MineBm25(name="plain", k=3), HOW)
    assert found.rows == {"candidates": 0}
    (said,) = found.facts["warnings"]
    assert said.startswith("4 of 4 queries have no candidate: none of their words") and (
        "--bigrams" in said
    )
    made = select(run, Select(name="none", sources=("plain",)), HOW)
    assert made.facts["warnings"][0].startswith("4 of 4 queries have no negative")


def test_words_that_half_of_the_documents_have_are_told(tmp_path, run):
    pairs = [
        ("windy London", "It is quite windy in London"),
        ("windy Athens", "It is windy in Athens"),
        ("good morning", "Hello there good man"),
        ("weather today", "How is the weather today"),
    ]
    file = write_jsonl(
        tmp_path / "two.jsonl", [{"query": query, "positive": text} for query, text in pairs]
    )
    ingest(run, IngestPairs(file=str(file)), HOW)
    index_bm25(run, IndexBm25(), HOW)
    (said,) = mine_bm25(run, MineBm25(k=5), HOW).facts["notes"]
    assert said.startswith("2 queries have words that weigh nothing") and "--variant plus" in said
    plus = mine_bm25(run, MineBm25(name="plus", index="bm25", variant="plus", k=5), HOW)
    assert "notes" not in plus.facts and plus.rows == {"candidates": 6}


# ---- own negatives

FLAG = [
    {"query": "women walk", "pos": "Some women walk", "neg": ["People swim", "Nobody is here"]},
    {"query": "a girl reads", "pos": ["A girl reads a book", "A child"], "neg": ["A girl cooks"]},
    {"query": "ein Mann singt", "pos": [], "neg": ["Ein Mann kocht"]},
    {"query": "deux chiens", "pos": ["Deux chiens courent", None, ""], "neg": [" ", "People swim"]},
]


def test_empty_members_of_a_list_are_dropped_and_own_negatives_become_a_source(tmp_path, run):
    for row in FLAG:
        row["scores"] = [0.5 - place / 10 for place in range(len(row["neg"]))]
    file = write_jsonl(tmp_path / "flag.jsonl", FLAG)
    options = IngestPairs(
        file=str(file), positive="pos", negative="neg", negative_score="scores", shard_queries=1
    )
    manifest, own = ingest(run, options, HOW)
    assert manifest.drops == {"empty_member": 3, "missing_pos": 1, "query_without_positive": 1}
    assert manifest.rows["negatives"] == own.rows["candidates"] == 4
    found = [
        (row["query_id"], row["doc_id"], row["rank"], round(row["score"], 3))
        for key in run.query_shards()
        for row in run.read("3_candidates/own", key).to_pylist()
    ]
    asked = [
        ("women walk", "People swim", 1, 0.5),
        ("women walk", "Nobody is here", 2, 0.4),
        ("a girl reads", "A girl cooks", 1, 0.5),
        ("deux chiens", "People swim", 1, 0.4),
    ]
    expected = [(hash_id("q", q), hash_id("d", d), rank, value) for q, d, rank, value in asked]
    assert sorted(found) == sorted(expected)
    select(run, Select(name="theirs", sources=("own",)), HOW)
    assert {(q, d) for q, d, _, _ in expected} == {*ids_of(run, "theirs")}
    again = ingest(run, options, HOW)
    assert [one.skipped for one in again] == [True, True]


def test_own_negatives_that_the_corpus_has_are_its_documents(tmp_path, run):
    corpus = write_jsonl(
        tmp_path / "c.jsonl", [{"id": "c1", "text": "tile"}, {"id": "c2", "text": "x"}]
    )
    file = write_jsonl(
        tmp_path / "p.jsonl", [{"query": "a b", "positive": "x", "neg": ["tile", "tile", "new"]}]
    )
    ingest(run, IngestPairs(file=str(file), corpus=str(corpus), negative="neg"), HOW)
    found = run.read("3_candidates/own", "00000").to_pylist()
    assert [(row["doc_id"], row["rank"]) for row in found] == [("c1", 1), (hash_id("d", "new"), 2)]


# ---- packed, encoded, in folders

PAIRS = [{"query": f"asks {number}", "positive": f"täglich {number}"} for number in range(5)]


def packed_as(kind: str, content: bytes) -> bytes:
    if kind == "gz":
        return gzip.compress(content)
    if kind == "bz2":
        return bz2.compress(content)
    if kind == "zip":
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as file:
            file.writestr("__MACOSX/._p.jsonl", b"x")
            file.writestr("in/p.jsonl", content)
        return held.getvalue()
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", ["gz", "bz2", "zst", "zip"])
def test_packed_files(tmp_path, run, kind):
    content = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
    packed = packed_as(kind, content)
    file = tmp_path / f"p.jsonl.{kind}"
    file.write_bytes(packed)
    ingest(run, IngestPairs(file=str(file)), HOW)
    assert texts(run) == sorted(row["positive"] for row in PAIRS)
    file.write_bytes(packed[: len(packed) // 2])
    refuse(Run(tmp_path / "torn"), IngestPairs(file=str(file)), f"p.jsonl.{kind}")
    file.write_bytes(content)
    refuse(Run(tmp_path / "plain"), IngestPairs(file=str(file)), "it does not begin as such a file")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-8-sig"])
def test_encodings(tmp_path, run, kind, encoding):
    if kind == "jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in PAIRS)
    else:
        mark = "," if kind == "csv" else "\t"
        lines = [mark.join(PAIRS[0]), *(mark.join(row.values()) for row in PAIRS)]
        content = "\r\n".join(lines) + "\r\n"
    file = tmp_path / f"p.{kind}"
    file.write_bytes(content.encode(encoding))
    given = None if encoding == "utf-8-sig" else encoding
    ingest(run, IngestPairs(file=str(file), encoding=given), HOW)
    assert texts(run) == sorted(row["positive"] for row in PAIRS)
    other = Run(tmp_path / "other")
    if encoding.startswith("utf-16"):
        refuse(other, IngestPairs(file=str(file)), "pass --encoding utf-16")
    elif encoding == "latin-1":
        refuse(other, IngestPairs(file=str(file)), "not_utf8")
    refuse(other, IngestPairs(file=str(file), encoding="klingon"), "no such encoding")


def test_rows_that_are_not_utf8_name_the_flag_that_helps(tmp_path, run):
    good = json.dumps({"query": "a", "positive": "b"}).encode()
    file = tmp_path / "p.jsonl"
    file.write_bytes(good + b'\n{"query": "x", "positive": "t\xe4glich"}\n')
    manifest, *_ = ingest(run, IngestPairs(file=str(file)), HOW)
    assert manifest.drops == {"not_utf8": 1} and "--encoding latin-1" in manifest.facts["notes"][0]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_folder_of_shards(tmp_path, run, kind):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in (0, 1):
        write_records(folder / f"part-{number}.{kind}", PAIRS[number::2])
    write_text(folder / "README.md", "what this is")
    options = IngestPairs(file=str(folder))
    ingest(run, options, HOW)
    assert texts(run) == sorted(row["positive"] for row in PAIRS)
    assert ingest(run, options, HOW)[0].skipped
    write_records(folder / f"part-2.{kind}", [{"query": "more", "positive": " "}])
    other = Run(tmp_path / "other")
    ingest(other, options, HOW)
    assert rejects(other)[0][0].startswith(f"shards/part-2.{kind}:")


def test_a_data_set_that_was_saved_to_disk(tmp_path, run):
    from datasets import Dataset, DatasetDict

    Dataset.from_list(PAIRS).save_to_disk(tmp_path / "one")
    ingest(run, IngestPairs(file=str(tmp_path / "one")), HOW)
    assert texts(run) == sorted(row["positive"] for row in PAIRS)
    DatasetDict({"dev": Dataset.from_list(PAIRS[:2])}).save_to_disk(tmp_path / "two")
    other = Run(tmp_path / "other")
    refuse(other, IngestPairs(file=str(tmp_path / "two")), 'missing split "train" (found dev)')
    ingest(other, IngestPairs(file=str(tmp_path / "two"), split="dev"), HOW)
    assert texts(other) == sorted(row["positive"] for row in PAIRS[:2])


@pytest.mark.parametrize("stream", [False, True])
def test_an_arrow_file(tmp_path, run, stream):
    table = pa.Table.from_pylist(PAIRS)
    write = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(tmp_path / "p.arrow"), "wb") as sink, write(sink, table.schema) as writer:
        writer.write_table(table)
    ingest(run, IngestPairs(file=str(tmp_path / "p.arrow")), HOW)
    assert texts(run) == sorted(row["positive"] for row in PAIRS)


def test_parquet_of_every_kind_of_text(tmp_path, run):
    told = [row["positive"] for row in PAIRS]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table(
            {"query": [row["query"] for row in PAIRS], "positive": pa.array(told, kind)}
        )
        pq.write_table(table, tmp_path / "p.parquet")
        ingest(run, IngestPairs(file=str(tmp_path / "p.parquet")), How(force=True))
        assert texts(run) == sorted(told)


def test_a_beir_zip_as_it_is_downloaded(tmp_path, run):
    options = beir(
        tmp_path / "toy", [{"_id": "d", "text": "tile"}], [{"_id": "q", "text": "x"}], "q\td\t1\n"
    )
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as packed:
        for file in sorted(options.folder.rglob("*.*")):
            packed.write(file, f"toy/{file.relative_to(options.folder)}")
    ingest(run, IngestBeir(folder=tmp_path / "toy.zip"), HOW)
    assert rows(run, POSITIVES) == [("q", "d", 1)]
    other = Run(tmp_path / "other")
    refuse(other, IngestBeir(folder=tmp_path / "toy.zip", split="dev"), "found test")


def test_spreadsheets_are_refused_with_what_helps(tmp_path, run):
    with zipfile.ZipFile(tmp_path / "p.xlsx", "w") as file:
        file.writestr("xl/workbook.xml", "<x/>")
    refuse(run, IngestPairs(file=str(tmp_path / "p.xlsx")), "is a spreadsheet", "save it as CSV")


# ---- captions


def test_flickr_captions(tmp_path, run):
    lines = "1.jpg#0\tA dog runs .\n1.jpg#1\tA brown dog .\n2.jpg#0\tA cat\tsleeps .\n"
    file = write_text(tmp_path / "Flickr8k.token.txt", lines)
    options = IngestCaptions(file=str(file), group="image_id", image="file_name")
    ingest(run, options, HOW)
    assert rows(run, QUERIES) == [
        ("1.jpg#0", "A dog runs ."),
        ("1.jpg#1", "A brown dog ."),
        ("2.jpg#0", "A cat\tsleeps ."),
    ]
    assert len(rows(run, POSITIVES)) == 5


def test_captions_one_a_line_and_with_a_header(tmp_path, run):
    ingest(run, IngestCaptions(file=str(write_text(tmp_path / "c.txt", "a dog\n\na cat\n"))), HOW)
    assert texts(run) == ["a cat", "a dog"]
    other = Run(tmp_path / "other")
    file = write_text(tmp_path / "captions.txt", 'image,caption\n1.jpg,"a dog, a cat"\n')
    ingest(other, IngestCaptions(file=str(file), group="image"), HOW)
    assert texts(other) == ["a dog, a cat"]


# ---- odd texts

ODD = {
    "marks": "e\u0301te\u0301",
    "composed": "\u00e9t\u00e9",
    "rtl": "\u05e9\u05dc\u05d5\u05dd <b>&amp;",
    "zero width": "a\u200bb\u200d",
    "nul": "before\0after",
    "spaces": "  kept as they are \n\n",
    "emoji": "\U0001f600 \U0001f9d1\u200d\U0001f4bb",
}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "json"])
def test_texts_are_kept_as_they_are_in_every_format(tmp_path, run, kind):
    told = dict(ODD) if kind in ("jsonl", "json", "parquet") else dict(ODD, spaces=" kept ")
    rows_ = [{"query": f"q {name}", "positive": text} for name, text in told.items()]
    file = write_records(tmp_path / f"p.{kind}", rows_)
    ingest(run, IngestPairs(file=str(file)), HOW)
    assert texts(run) == sorted(told.values())


def test_half_a_character_is_a_counted_reject(tmp_path, run):
    good = json.dumps({"query": "a", "positive": "b"})
    bad = '{"query": "c", "positive": "\\ud83d"}'
    ingest(run, IngestPairs(file=str(write_text(tmp_path / "p.jsonl", f"{good}\n{bad}\n"))), HOW)
    assert rejects(run) == [("p.jsonl:2", "queries", "not_utf8")]


def test_composed_and_decomposed_letters_are_one_text(tmp_path, run):
    asked = [{"_id": "q", "text": "ete"}]
    corpus = [{"_id": "p", "text": ODD["marks"]}, {"_id": "n", "text": ODD["composed"]}]
    options = beir(
        tmp_path / "beir", [*corpus, {"_id": "x", "text": "ete ete"}], asked, "q\tp\t1\n"
    )
    ingest(run, options, HOW)
    hashes = np.load(run.path / "1_tables/_text_hashes.npy")
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_text_of_50_mb_is_a_text(tmp_path, run):
    long = "word " * 10_000_000
    file = write_jsonl(tmp_path / "p.jsonl", [{"query": "a", "positive": long}])
    ingest(run, IngestPairs(file=str(file)), HOW)
    assert len(texts(run)[0]) == len(long)


def test_run_files_keep_spaces_in_ids_and_read_integers_as_floats(tmp_path, run):
    options = IngestTrec(
        corpus=write_jsonl(
            tmp_path / "c.jsonl", [{"docid": "d 1", "text": "one"}, {"docid": 2, "text": "two"}]
        ),
        topics=write_jsonl(tmp_path / "t.jsonl", [{"qid": 7, "text": "a"}]),
        qrels=write_text(tmp_path / "qrels.txt", "7\t0\td 1\t1.0\n"),
        run_file=(
            str(write_text(tmp_path / "x.txt", "7.0\tQ0\td 1\t1\t2.0\tt\n7\tQ0\t2.0\t2\t1.0\tt\n")),
        ),
    )
    ingest(run, options, HOW)
    found = run.read("3_candidates/x", "00000").to_pylist()
    assert [(row["query_id"], row["doc_id"]) for row in found] == [("7", "d 1"), ("7", "2")]
