"""Ready runs: what another retriever found, as Parquet, JSON lines, CSV and TSV."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import make_beir, refuse, write_jsonl, write_records, write_text
from test_trec import candidates, trec

from miner.engine import How
from miner.errors import UserError
from miner.ingest import trec_runs
from miner.ingest.formats import IngestBeir
from miner.ingest.ingest import ingest
from miner.store import Run

HITS = [  # no order; two hits of 301 have one score, d9 stands twice
    {"qid": "301", "docno": "d9", "score": 1.5},
    {"qid": "301", "docno": "d10", "score": 2.5},
    {"qid": "302", "docno": "d9", "score": -1.0},
    {"qid": "301", "docno": "d9", "score": 2.5},
    {"qid": "302", "docno": "gone", "score": 3.0},
    {"qid": "303", "docno": "d9", "score": 3.0},
]
FOUND = [("301", "d10", 1, 2.5), ("301", "d9", 2, 2.5), ("302", "d9", 1, -1.0)]


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run")


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "csv", "tsv"])
def test_ranks_follow_from_scores_ties_by_doc_id(tmp_path, run, kind, monkeypatch):
    monkeypatch.setattr(trec_runs, "BATCH", 2)
    file = write_records(tmp_path / f"mine.{kind}", HITS)
    ingest(run, trec(tmp_path, run_file=(str(file),), shard_queries=1), How(workers=2))
    assert candidates(run, "mine") == FOUND
    manifest = run.find("3_candidates/mine")
    assert manifest.drops == {"duplicate_candidate": 1, "unknown_document": 1, "unknown_query": 1}
    assert (manifest.made_by, manifest.options["format"]) == ("ingest trec", "table")


def test_a_rank_that_is_given_stays(tmp_path, run):
    rows = [
        {"query-id": "301", "corpus-id": "d9", "rank": 4.0, "score": 1},
        {"query-id": "301", "corpus-id": "d10", "rank": 7.0, "score": 2},
        {"query-id": "302", "corpus-id": "d9", "rank": None, "score": 2},
        {"query-id": "302", "corpus-id": "d9", "rank": 1.5, "score": 2},
        {"query-id": "302", "corpus-id": "d9", "rank": 1.0, "score": None},
        {"query-id": "302", "corpus-id": None, "rank": 1.0, "score": 1},
    ]
    file = write_records(tmp_path / "r.parquet", rows)
    ingest(run, trec(tmp_path, run_file=(f"x={file}",)), How())
    assert candidates(run, "x") == [("301", "d9", 4, 1.0), ("301", "d10", 7, 2.0)]
    assert run.find("3_candidates/x").drops == {
        "bad_number": 1,
        "missing_corpus-id": 1,
        "missing_rank": 1,
        "missing_score": 1,
    }


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_a_row_may_hold_a_list_of_hits(tmp_path, run, kind):
    rows = [
        {"query_id": 302, "hits": []},
        {"query_id": 301, "hits": [{"docid": "d9", "score": 1.0}, {"docid": "d10", "score": 2.0}]},
        {"query_id": 302, "hits": [{"docid": "d9", "score": 1.0}]},
    ]
    file = tmp_path / f"nested.{kind}"
    if kind == "jsonl.gz":
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        write_records(file, rows)
    ingest(run, trec(tmp_path, run_file=(str(file),)), How())
    expected = [("301", "d10", 1, 2.0), ("301", "d9", 2, 1.0), ("302", "d9", 1, 1.0)]
    assert candidates(run, "nested") == expected


ODD = ["a b", 'say "x"', '"q"', "a,b", "é\u3000語", "7", "8.0", "'", "a\tb"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv"])
def test_beir_takes_runs_and_odd_ids_meet(tmp_path, run, kind):
    odd = ODD[:-1] if kind == "tsv" else ODD
    folder = make_beir(
        tmp_path / "beir",
        docs=[{"_id": one, "title": "", "text": f"text {one}"} for one in odd],
        queries=[{"_id": "my query, 1", "text": "what"}],
        qrels="my query, 1\tZ\t1\n",
    )
    asked = [{"qid": "my query, 1", "pid": one, "score": -n} for n, one in enumerate(odd)]
    file = write_records(tmp_path / f"odd.{kind}", asked)
    ingest(run, IngestBeir(folder=folder, run_file=(str(file),)), How())
    found = [(q, d, rank) for q, d, rank, _ in candidates(run, "odd")]
    assert found == [("my query, 1", one, n) for n, one in enumerate(odd, 1)]
    assert run.find("3_candidates/odd").made_by == "ingest beir"


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.large_string(), pa.uint32()])
def test_integers_meet_the_strings_of_the_corpus(tmp_path, run, kind):
    folder = make_beir(
        tmp_path / "beir",
        docs=[{"_id": "7", "text": "a"}, {"_id": "8.0", "text": "b"}],
        queries=[{"_id": "12", "text": "x"}, {"_id": "13.0", "text": "y"}],
        qrels="12\tZ\t1\n13.0\tZ\t1\n",
    )
    table = {
        "qid": pa.array([12, 12, 13], pa.int64()).cast(kind),
        "docid": pa.array([7, 8, 8], pa.int64()).cast(kind),
        "score": pa.array([1.0, 2.0, 3.0], pa.float32()),
    }
    pq.write_table(pa.table(table), tmp_path / "ints.parquet")
    ingest(run, IngestBeir(folder=folder, run_file=(str(tmp_path / "ints.parquet"),)), How())
    expected = [("12", "8.0", 1, 2.0), ("12", "7", 2, 1.0), ("13.0", "8.0", 1, 3.0)]
    assert candidates(run, "ints") == expected


def test_a_folder_of_parts_is_one_run(tmp_path, run):
    (tmp_path / "parts").mkdir()
    write_records(tmp_path / "parts/a.parquet", HITS[:2])
    write_records(tmp_path / "parts/b.parquet", HITS[2:])
    ingest(run, trec(tmp_path, run_file=(str(tmp_path / "parts"),)), How())
    assert candidates(run, "parts") == FOUND


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "301", "docid": "d9", "score": 1}, "missing the query's id (found query, docid"),
        ({"qid": "301", "doc": "d9", "score": 1}, "missing the document's id (found qid, doc, sc"),
        ({"qid": "301", "docid": "d9"}, "missing the score (found qid, docid; expected a column"),
        ({f"q{n}": 1 for n in range(12)}, "q9, …; expected a column query_id or query-id or qid)"),
    ],
)
def test_a_missing_column_is_one_line(tmp_path, run, row, said):
    for kind in ("parquet", "jsonl", "csv", "tsv"):
        file = write_records(tmp_path / f"r.{kind}", [row])
        with pytest.raises(UserError) as caught:
            ingest(run, trec(tmp_path, run_file=(str(file),)), How())
        assert said in str(caught.value) and "\n" not in str(caught.value)
        assert not (run.path / "3_candidates/r").exists()


def test_runs_in_which_nothing_is_known(tmp_path, run):
    pq.write_table(pa.table({"qid": pa.array([], pa.string())}), tmp_path / "e.parquet")
    bad = write_jsonl(tmp_path / "b.jsonl", ["{", "[]"])
    for file, said in ((tmp_path / "e.parquet", "it is empty"), (bad, "not_json 2")):
        with pytest.raises(UserError, match=rf"no line names a query and a document.*\({said}\)"):
            ingest(run, trec(tmp_path, run_file=(str(file),)), How())
    torn = write_text(tmp_path / "t.parquet", "PAR1 no")
    with pytest.raises(UserError, match=r"t\.parquet: cannot be read as Parquet"):
        ingest(run, trec(tmp_path, run_file=(str(torn),)), How())
    refuse(Run(tmp_path / "n"), trec(tmp_path, run_file=("no.parquet",)), "no such file")


def test_a_tsv_of_six_fields_is_a_trec_run_as_before(tmp_path, run):
    file = write_text(tmp_path / "six.tsv", "301\tQ0\td9\t3\t1.5\ttag\nbad\n")
    ingest(run, trec(tmp_path, run_file=(str(file),)), How())
    assert candidates(run, "six") == [("301", "d9", 3, 1.5)]
    manifest = run.find("3_candidates/six")
    assert manifest.options["format"] == "trec" and manifest.drops == {"bad_columns": 1}
