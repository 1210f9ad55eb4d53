"""Guards of the judge of duplicates: links, co-citations and class labels."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import HOW, rows, toy_run

from miner.engine import How
from miner.errors import UserError
from miner.files import write_table
from scoring.judge import links as module
from scoring.judge.duplicates import JudgeDuplicates, judge_duplicates

IDS = [f"d{number:02d}" for number in range(1, 13)]
ALL = {
    "candidates": {
        "x": {query_id: IDS for query_id in ("q1", "q2", "q3", "q4", "q5")},
        "random": {},
    },
    "similarity": None,
}
# positives: q1 d01; q2 d02, d03; q3 d04; q4 d05, d06, d07; q5 d12
LINKS = [
    ("d01", "d08"),
    ("d09", "d01"),
    ("d10", "d03"),
    ("d10", "d11"),
    ("out", "d04"),
    ("out", "d12"),
    ("d08", "gone"),
    ("d01", "d08"),
]
TIED = {
    ("q1", "d08"): "linked",
    ("q1", "d09"): "linked",
    ("q2", "d10"): "linked",
    ("q2", "d11"): "co_cited",  # d10 links to it and to d03, the second of two positives
    ("q3", "d12"): "co_cited",  # by a document that the corpus does not have
    ("q5", "d04"): "co_cited",
}


def judge(run, how=HOW, **options):
    manifest = judge_duplicates(run, JudgeDuplicates(**options), how)
    found = rows(run, "4_judgments/duplicates", "query_id", "doc_id", "reason")
    return manifest, {
        (query, doc): why for query, doc, why in found if why not in (None, "positive")
    }


def write(path, pairs, names=("from", "to")):
    """Write pairs as what the name says; text files have a header."""
    kind = path.name.removesuffix(".gz").partition(".")[2]
    if kind == "parquet":
        pq.write_table(
            pa.Table.from_pylist([dict(zip(names, pair, strict=True)) for pair in pairs]), path
        )
        return path
    if kind == "jsonl":
        lines = [
            json.dumps(dict(zip(names, pair, strict=True)), ensure_ascii=False) for pair in pairs
        ]
    else:
        quoted = [
            [json.dumps(str(cell), ensure_ascii=False).replace('\\"', '""') for cell in pair]
            for pair in pairs
        ]
        lines = (
            [",".join(pair) for pair in [names, *quoted]]
            if kind == "csv"
            else ["\t".join(map(str, pair)) for pair in [names, *pairs]]
        )
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.gz", "jsonl.gz"])
def test_linked_and_co_cited(tmp_path, kind):
    run = toy_run(tmp_path / "run", **ALL)
    manifest, found = judge(run, links=write(tmp_path / f"[links].{kind}", LINKS))
    assert found == TIED
    header = kind[:3] in ("csv", "tsv")
    # one link stands there twice
    assert manifest.facts == {"links": 6, "links_to_unknown_ids": 1 + header}
    assert set(manifest.inputs) == {"1_tables", "3_candidates/x", "3_candidates/random", "links"}
    scores = {
        row[:2]: row[2:]
        for row in rows(run, "4_judgments/duplicates", "query_id", "doc_id", "score", "verdict")
    }
    assert all(scores[pair] == (None, "drop") for pair in TIED)


def test_files_without_a_header_and_with_more_columns(tmp_path):
    run, lines = toy_run(tmp_path / "run", **ALL), [f"{one}\t{two}\t1" for one, two in LINKS]
    (tmp_path / "links.tsv").write_text("\n".join(lines))
    assert judge(run, links=tmp_path / "links.tsv")[1] == TIED


def test_ids_are_text_whatever_they_look_like(tmp_path):
    ids = ["007", "7", "2020-01-01T10:00:00Z", 'a "quoted", one', "#é"]
    documents = {i: ("", f"text {number}") for number, i in enumerate(ids)}
    toy = {
        "documents": documents,
        "queries": {"q": "x"},
        "positives": {"q": ["007"]},
        "candidates": {"x": {"q": ids}},
        "similarity": None,
    }
    for kind in ("csv", "tsv", "jsonl", "parquet"):
        run = toy_run(tmp_path / kind, **toy)
        links = write(tmp_path / f"l.{kind}", [(ids[2], "007"), (ids[3], ids[0]), ("007", "#é")])
        assert judge(run, links=links)[1] == {
            ("q", doc_id): "linked" for doc_id in (ids[2], ids[3], "#é")
        }, kind
    run = toy_run(tmp_path / "number", **(toy | {"positives": {"q": ["7"]}}))
    assert judge(run, links=write(tmp_path / "n.jsonl", [(7, "#é")]))[1] == {("q", "#é"): "linked"}


def test_labels_of_several_kinds_and_of_none(tmp_path):
    run = toy_run(tmp_path / "run", **ALL)
    labels = [
        ("d01", "metal"),
        ("d01", "wire"),
        ("d08", "metal"),
        ("d10", "wire"),
        ("d10", "stone"),
        ("d04", "stone"),
        ("d02", ""),
        ("d09", ""),
        ("gone", "metal"),
        ("d03", "bee"),
        ("d12", "lamp"),
    ]
    expected = {
        ("q1", "d08"): "same_label",
        ("q1", "d10"): "same_label",
        ("q3", "d10"): "same_label",
    }
    manifest, found = judge(run, labels=write(tmp_path / "l.csv", labels))
    assert found == expected
    assert manifest.facts == {"labels": 8, "labels_of_unknown_ids": 2}  # the header is one
    numbers = [
        ("d01", 1.0),
        ("d08", 1.0),
        ("d09", None),
        ("d02", None),
        ("d10", float("nan")),
        ("d04", float("nan")),
    ]
    _, found = judge(run, How(force=True), labels=write(tmp_path / "l.parquet", numbers))
    assert found == {("q1", "d08"): "same_label"}


def test_labels_that_ingest_kept_are_used_unasked_and_beside_a_file(tmp_path):
    run = toy_run(tmp_path / "run", **ALL)
    write_table(
        run.path / "1_tables" / "labels" / "00000.parquet",
        pa.table({"doc_id": ["d01", "d08", "d09"], "label": ["a", "a", "b"]}),
    )
    manifest, found = judge(run)
    assert found == {("q1", "d08"): "same_label"}
    assert manifest.facts == {"labels": 3, "labels_of_unknown_ids": 0}
    _, found = judge(run, How(force=True), labels=write(tmp_path / "l.tsv", [("d01", "b")]))
    assert found == {("q1", "d08"): "same_label", ("q1", "d09"): "same_label"}


def test_the_first_reason_that_holds_is_given(tmp_path):
    run = toy_run(
        tmp_path / "run",
        **(ALL | {"queries": {"q1": "Copper conducts", "q2": "", "q3": "", "q4": "", "q5": ""}}),
    )
    tied = [
        ("d01", "d08"),
        ("d09", "d08"),
        ("d09", "d01"),
        ("d11", "d01"),
        ("d11", "d10"),
        ("d11", "d12"),
    ]
    links = write(tmp_path / "k.csv", tied)
    labels = write(
        tmp_path / "l.csv",
        [(doc_id, "same") for doc_id in ("d01", "d08", "d09", "d10", "d12", "d07")],
    )
    _, found = judge(run, links=links, labels=labels)
    assert {doc_id: why for (query_id, doc_id), why in found.items() if query_id == "q1"} == {
        "d07": "same_label",
        "d08": "linked",
        "d09": "linked",
        "d10": "co_cited",
        "d11": "linked",
        "d12": "co_cited",
    }
    documents = {
        "p": ("", "lamps were lit at dusk"),
        "e": ("", "Lit lamps"),
        "s": ("", "LAMPS were lit at dusk!"),
    }
    toy = {
        "documents": documents,
        "queries": {"q": "lit lamps"},
        "positives": {"q": ["p"]},
        "candidates": {"x": {"q": ["p", "e", "s"]}},
    }
    other = toy_run(tmp_path / "other", **toy, similarity=None)
    _, found = judge(other, links=write(tmp_path / "o.csv", [("p", "e"), ("p", "s"), ("p", "p")]))
    assert found == {("q", "e"): "equals_query", ("q", "s"): "same_text"}


def test_a_hub_ties_what_it_links_to_unless_it_links_to_too_many(tmp_path):
    run = toy_run(tmp_path / "run", **ALL)
    links = write(
        tmp_path / "l.csv",
        [("d11", doc_id) for doc_id in ("d01", "d08", "d09")] + [("d10", "d04"), ("d10", "d08")],
    )
    everything = {
        ("q1", "d11"): "linked",
        ("q1", "d08"): "co_cited",
        ("q1", "d09"): "co_cited",
        ("q3", "d10"): "linked",
        ("q3", "d08"): "co_cited",
    }
    assert judge(run, links=links, hub=3)[1] == everything
    assert judge(run, How(force=True), links=links)[1] == everything
    fewer = {("q1", "d11"): "linked", ("q3", "d10"): "linked", ("q3", "d08"): "co_cited"}
    assert judge(run, How(force=True), links=links, hub=2)[1] == fewer


identifiers = st.sampled_from([*IDS, "out", "far"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return toy_run(tmp_path_factory.mktemp("links") / "run", **ALL)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(identifiers, identifiers), max_size=40),
    st.lists(st.tuples(identifiers, st.sampled_from("abc")), max_size=12),
)
def test_links_are_those_of_a_plain_reference(whole, links, labels):
    links, labels = [("d01", "d02"), *links], [("d12", "z"), *labels]
    folder, mine = whole.path / "given", ["d03", "d05"]
    folder.mkdir(exist_ok=True)
    files = write(folder / "l.tsv", links), write(folder / "k.tsv", labels)
    module.write_links(whole, *files, None, folder)

    def linked(doc_id):
        return any((doc_id, positive) in links or (positive, doc_id) in links for positive in mine)

    def co_cited(doc_id):
        return any(
            (one, doc_id) in links and (one, positive) in links
            for positive in mine
            for one in [*IDS, "out", "far"]
        )

    def same_label(doc_id):
        return bool(
            {label for one, label in labels if one == doc_id}
            & {label for one, label in labels if one in mine}
        )

    pairs, positives = (
        (np.zeros(12, np.int64), np.arange(12)),
        (np.array([0, 0, 1]), np.array([2, 4, 7])),
    )
    found = {
        tied.reason: module.linked(tied, pairs, positives).tolist()
        for tied in module.open_links(folder)
    }
    others = [place for place, doc_id in enumerate(IDS) if doc_id not in mine]
    for plain in (linked, co_cited, same_label):
        assert [found[plain.__name__][place] for place in others] == [
            plain(IDS[place]) for place in others
        ]


def test_neither_shards_nor_workers_nor_the_order_of_lines_change_a_byte(tmp_path, monkeypatch):
    labels = write(tmp_path / "k.csv", [("d01", "x"), ("d12", "x"), ("d09", "y"), ("d05", "y")])
    found = []
    for number, (how, queries, documents, links) in enumerate(
        [(HOW, 10, 20, LINKS), (How(workers=2), 2, 5, LINKS), (HOW, 1, 3, LINKS[::-1])]
    ):
        monkeypatch.setattr(module, "CHUNK", documents)
        run = toy_run(
            tmp_path / str(number), **ALL, shard_queries=queries, shard_documents=documents
        )
        judge(run, how, links=write(tmp_path / "l.csv", links), labels=labels)
        found.append(
            rows(run, "4_judgments/duplicates", "query_id", "doc_id", "score", "verdict", "reason")
        )
    assert found[0] == found[1] == found[2]


def test_many_links_of_hubs_cost_little(tmp_path):
    """Two documents that 200,000 others link to, each the other's candidate; to write the pairs
    of documents down would be 10^10.
    """
    hubs = np.array([f"out{number}" for number in range(200_000)])
    links = pa.table(
        {
            "from": np.concatenate([hubs, hubs, hubs]),
            "to": np.repeat(["d01", "d08", "d09"], len(hubs)),
        }
    )
    pq.write_table(links.slice(0, 399_999), tmp_path / "l.parquet")
    run = toy_run(tmp_path / "run", **ALL)
    assert judge(run, links=tmp_path / "l.parquet")[1] == {("q1", "d08"): "co_cited"}


def test_a_second_run_is_skipped_and_a_changed_file_is_noticed(tmp_path):
    run, links = toy_run(tmp_path / "run", **ALL), write(tmp_path / "l.csv", LINKS)
    judge(run, links=links)
    assert judge(run, links=links)[0].skipped
    write(links, LINKS[:2])
    with pytest.raises(UserError, match=r"made from other inputs \(links is changed\)"):
        judge(run, links=links)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "l.csv",
            "from,to\na,b\n",
            "none of its 2 pairs is a document of the corpus; found such as 'a' and 'b', expected",
        ),
        ("l.csv", "", "one column"),
        ("l.csv", "d01\nd02\n", "has one column; --links expects two"),
        ("l.csv", 'd01,d02\nd03,"d0\n', "cannot be read as csv"),
        ("l.jsonl", "d01,d02\n", "cannot be read as jsonl"),
        ("l.jsonl", '{"a": "d01", "b": "d02"}\n[1, 2\n', "cannot be read as jsonl"),
        ("l.parquet", "d01,d02\n", "cannot be read as parquet"),
        ("l.txt", "d01 d02\n", "unknown kind of file; --links expects .csv"),
    ],
)
def test_files_that_say_nothing_are_refused_in_one_line_and_leave_nothing(
    tmp_path, name, content, message
):
    run = toy_run(tmp_path / "run", **ALL)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        judge(run, links=tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run.path / "4_judgments" / "duplicates").exists()
    judge(run, links=write(tmp_path / "good.csv", LINKS))


def test_missing_files_and_labels_of_nothing(tmp_path):
    run = toy_run(tmp_path / "run", **ALL)
    with pytest.raises(UserError, match="no such file"):
        judge(run, links=tmp_path / "none.csv")
    with pytest.raises(
        UserError,
        match=(
            "the first column of none of its 1 pairs is a document of the corpus; found such as 'a'"
            " and 'd01'"
        ),
    ):
        judge(run, labels=write(tmp_path / "l.jsonl", [("a", "d01")]))
