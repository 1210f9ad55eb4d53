import json
import re
from html.parser import HTMLParser

import pytest
from toy import COSINES, DOCUMENT_TEXTS, GOLD, HOW, QUERY_TEXTS, rows, toy_run

from miner.engine import How
from miner.errors import UserError
from miner.store import Run
from scoring.figures import figures
from scoring.findings import findings, matched_size
from scoring.metrics import Lead, Score
from scoring.page import render_page
from scoring.recipe import Select
from scoring.report import Report, collect, recipe, report
from scoring.score import score
from scoring.select import select
from scoring.show import describe

HOSTILE = "<script>alert(1)</script> </script><!-- {{7*7}} ' \" & \\u003c"
VOID = {"meta", "link", "br", "img", "input", "hr"}
FETCHING = {
    "src",
    "href",
    "srcset",
    "poster",
    "action",
    "formaction",
    "data",
    "ping",
    "background",
    "xlink:href",
}


class Page(HTMLParser):
    """Every element, every attribute that could fetch, and the text outside scripts; fails on
    elements that do not close.
    """

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetches: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetches += [value for name, value in attrs if name in FETCHING]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag):
        while self.open.pop() != tag:  # <p> and the like may stay open
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data


def made(path, scoring: Score | None = None, **changes) -> Run:
    """The toy with two sets: everything that bm25 found, and two safe negatives a query of the
    mixture.
    """
    run = toy_run(path, **changes)
    select(run, Select(name="bm25", sources=("bm25",)), HOW)
    select(
        run,
        Select(name="bm25+dense", sources=("bm25", "dense:3"), percent_margin=0.95, negatives=2),
        HOW,
    )
    score(run, scoring or Score(resamples=50), HOW)
    return run


def page(run: Run) -> Page:
    return Page((run.path / "7_report/report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    run = made(tmp_path_factory.mktemp("report"))
    report(run, Report(), HOW)
    return run


@pytest.fixture(scope="module")
def data(run) -> dict:
    return json.loads(
        (run.path / "7_report/report.json").read_text("utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )


def entry(value, low=None, high=None, k=None) -> dict:
    return {"value": value, "low": low, "high": high, "k": k, "n": 9}


def a_set(name: str, sizes: dict[int, tuple] | None = None, unsafe: float = 0.0) -> dict:
    """A set as `collect` gives it, with ECI@m at some sizes."""
    measures = {f"eci_v1@{m}": entry(*values, k=m) for m, values in (sizes or {}).items()}
    return {
        "name": name,
        "measures": measures | {"eci_v1": entry(1.0), "unsafe_share": entry(unsafe)},
    }


def test_report_needs_a_scored_set(tmp_path):
    run = toy_run(tmp_path)
    select(run, Select(name="bm25", sources=("bm25",)), HOW)
    with pytest.raises(UserError, match="has no scored set; run `quarry score` first"):
        report(run, Report(), HOW)
    assert not (tmp_path / "7_report").exists()


def test_the_page_fetches_nothing_and_forbids_itself_to(run):
    text = (run.path / "7_report/report.html").read_text("utf-8")
    found = Page(text)
    assert [value for value in found.fetches if not value.startswith(("#", "data:"))] == []
    assert found.handlers == []
    assert not {"iframe", "object", "embed", "base", "img", "video", "audio", "form"} & set(
        found.tags
    )
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import|@font-face", style)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none';")
    assert "http" not in policy[1]
    assert text.count("plotly.js v") == 1  # its banner: inlined once


def test_plotly_understands_every_figure(data):
    import plotly.graph_objects as go

    found = figures(data)
    assert sorted(found) == [
        "curve",
        "histogram-bm25",
        "histogram-bm25+dense",
        "parts",
        "plane",
        "worth",
    ]
    for figure in found.values():
        go.Figure(figure)  # raises on any property that plotly does not know
    assert all(trace["meta"]["colour"] for figure in found.values() for trace in figure["data"])


def test_numbers_of_the_page_are_the_metrics(run, data):
    from scoring.score import metrics

    stored = {(row["set_name"], row["measure"]): row["value"] for row in metrics(run).to_pylist()}
    shown = {
        (row["name"], name): entry["value"]
        for part in ("sets", "sources")
        for row in data[part]
        for name, entry in row["measures"].items()
    }
    assert shown == stored
    text = page(run).text
    for row in data["sets"]:
        for measure in (
            "signal",
            "margin",
            "efficiency",
            "capacity",
            "eci_v1",
            f"eci_v1@{data['matched']}",
        ):
            assert f"{row['measures'][measure]['value']:.3f}" in text


def test_sets_are_compared_at_the_largest_size_that_all_reach(data):
    # bm25 has 13 negatives for 5 queries: it reaches 3; the mixture has two at most a query: it
    # reaches 1.
    assert data["matched"] == 1
    assert {row["name"]: row["rows"] for row in data["sets"]} == {"bm25": 13, "bm25+dense": 8}
    eci = [row["measures"]["eci_v1@1"]["value"] for row in data["sets"]]
    assert eci == sorted(eci, reverse=True)


def test_histograms_add_up_over_shards(data):
    counts = {
        name: {quantity: sum(bins["count"]) for quantity, bins in found.items()}
        for name, found in data["histograms"].items()
    }
    # 13 negatives; 8 positives; 4 x 1 + 3 x 2 + 2 x 1 + 4 x 3 margins
    assert counts["bm25"] == {"s_n": 13, "s_p": 8, "margin": 24}
    for trace in figures(data)["histogram-bm25"]["data"][:2]:
        assert sum(trace["y"]) == pytest.approx(1)
    safe, unsafe = figures(data)["histogram-bm25"]["data"][2:]
    assert sum(safe["y"]) + sum(unsafe["y"]) == pytest.approx(1)
    assert max(unsafe["x"]) < 0 < min(safe["x"])


def test_drops_are_those_of_the_sets(run, data):
    drops = {row["name"]: row["drops"] for row in data["sets"]}
    assert drops["bm25"] == {"positive": 6}
    assert drops["bm25+dense"] == run.find("5_sets/bm25+dense").drops
    assert "percent margin" in page(run).text


def test_examples_say_what_is_unsafe_and_measure_from_the_lowest_positive(data):
    examples = {row["query_id"]: row for row in data["examples"]}
    assert sorted(examples) == sorted(QUERY_TEXTS)  # five queries, ten asked for
    q2 = examples["q2"]
    assert [(row["doc_id"], row["s_p"]) for row in q2["positives"]] == [
        ("d02", 0.875),
        ("d03", 0.5),
    ]
    negatives = [
        (row["doc_id"], row["rank"], row["s_n"], row["margin"], row["unsafe"])
        for row in q2["sets"]["bm25"]["negatives"]
    ]
    assert negatives == [
        ("d08", 1, 0.75, -0.25, True),
        ("d09", 2, 0.4375, 0.0625, False),
        ("d10", 3, 0.125, 0.375, False),
    ]
    assert q2["sets"]["bm25"]["negatives"][0]["sources"] == [
        {"source": "bm25", "rank": 2, "score": 8.0}
    ]
    assert examples["q4"]["sets"]["bm25"]["count"] == 4
    assert len(examples["q4"]["sets"]["bm25"]["negatives"]) == 3
    assert examples["q2"]["sets"]["bm25"]["rejected"] == {"positive": 2}
    assert examples["q5"]["sets"] == {
        name: {"count": 0, "rejected": {}, "negatives": []} for name in examples["q5"]["sets"]
    }


def test_examples_depend_on_seed_and_ids_alone(tmp_path):
    runs = [made(tmp_path / str(size), Score(resamples=0), shard_queries=size) for size in (1, 5)]
    chosen = [
        [
            [row["query_id"] for row in collect(run, Report(examples=3, seed=seed))["examples"]]
            for seed in range(4)
        ]
        for run in runs
    ]
    assert chosen[0] == chosen[1]
    assert len({tuple(ids) for ids in chosen[0]}) > 1
    assert collect(runs[0], Report(examples=0))["examples"] == []


def test_stages_stand_in_flow_order(data):
    assert [stage["stage"] for stage in data["stages"]] == [
        "1_tables",
        "3_candidates/bm25",
        "3_candidates/dense",
        "4_judgments/similarity",
        "5_sets/bm25",
        "5_sets/bm25+dense",
        "6_metrics/_in_common",
        "6_metrics/_per_query/bm25",
        "6_metrics/_per_query/bm25+dense",
        "6_metrics/_sources/bm25",
        "6_metrics/_sources/dense",
    ]
    assert data["warnings"] == [
        "3_candidates/bm25: 1 of 5 queries have no candidate: take another source beside it, or a"
        " larger -k.",
        "3_candidates/dense: 1 of 5 queries have no candidate: take another source beside it, or a"
        " larger -k.",
        "5_sets/bm25: 1 of 5 queries have no negative: take another source beside it, or a larger"
        " -k.",
        "5_sets/bm25+dense: 1 of 5 queries have no negative: most candidates are left out as"
        " percent_margin (7): loosen that rule, or add a source.",
    ]


def test_the_report_is_always_made_anew_and_the_same(tmp_path):
    run = made(tmp_path)
    manifest = report(run, Report(), HOW)
    assert manifest.inputs["5_sets/bm25"] == run.find("5_sets/bm25").fingerprint
    assert manifest.rows == {"sets": 2, "sources": 2, "examples": 5}
    before = {
        name: (tmp_path / "7_report" / name).read_bytes() for name in ("report.html", "report.json")
    }
    assert not report(run, Report(), HOW).skipped
    assert {name: (tmp_path / "7_report" / name).read_bytes() for name in before} == before
    report(run, Report(examples=1), HOW)  # other options need no --force: nothing is lost
    assert run.find("7_report").options["examples"] == 1


def test_hostile_texts_are_shown_as_text(tmp_path):
    documents = DOCUMENT_TEXTS | {"d08": (HOSTILE, f"{HOSTILE}\n\tcode"), "d01": ("", HOSTILE)}
    run = made(tmp_path, documents=documents, queries=QUERY_TEXTS | {"q1": HOSTILE})
    report(run, Report(), HOW)
    found = page(run)
    assert len(found.scripts) == 3  # plotly, the figures, ours
    assert found.text.count(HOSTILE) >= 4  # query, positive, title and text of a negative
    assert not any("alert(1)" in script for script in found.scripts)


def test_hostile_names_cannot_leave_the_script_of_the_figures(data):
    name = f"{HOSTILE}<b>"
    changed = json.loads(json.dumps(data).replace('"bm25+dense"', json.dumps(name)))
    found = Page(render_page(changed))
    assert len(found.scripts) == 3
    embedded = json.loads(found.scripts[1])
    assert f"histogram-{name}" in embedded
    # plotly reads tags in names
    assert not re.search(
        r"<(?!/?sub>)", json.dumps([trace["y"] for trace in embedded["worth"]["data"]])
    )
    assert name in found.text


def test_long_texts_are_cut_and_the_page_says_so(tmp_path):
    run = made(
        tmp_path, documents=DOCUMENT_TEXTS | {"d08": ("", "word " * 2000), "d01": ("", "x" * 301)}
    )
    report(run, Report(), HOW)
    text = page(run).text
    assert "9,701 more characters" in text  # 10,000 less 299
    assert "the page holds the first 5,000 of 10,000 characters" in text
    assert "1 more characters" in text
    assert max(len(run_of_words) for run_of_words in re.findall(r"(?:word ?)+", text)) < 5001


def test_one_set_twelve_sets_and_no_intervals(tmp_path):
    run = toy_run(tmp_path)
    select(run, Select(name="s0", sources=("bm25",)), HOW)
    score(run, Score(resamples=0), HOW)
    report(run, Report(), HOW)
    assert "nothing to compare it with" in page(run).text
    for number in range(1, 13):
        select(run, Select(name=f"s{number}", sources=("bm25",), negatives=1 + number % 3), HOW)
    score(run, Score(resamples=0), HOW)
    report(run, Report(), HOW)
    text = page(run).text
    assert all(f"s{number}" in text for number in range(13))
    assert "there are no intervals" in text
    assert "No intervals were asked for" in text


def test_an_empty_set_shows_as_empty_and_does_not_stop_the_comparison(tmp_path):
    run = made(tmp_path)
    select(run, Select(name="none", sources=("bm25",), min_score=0.99), HOW)
    score(run, Score(resamples=50), HOW)
    report(run, Report(), HOW)
    data = json.loads((tmp_path / "7_report/report.json").read_text("utf-8"))
    assert data["matched"] == 1
    assert data["sets"][-1]["name"] == "none"
    assert data["findings"][-1] == "Not compared, with less than one negative a query: none."
    assert data["sets"][-1]["measures"]["signal"]["value"] is None


def test_without_a_size_in_common_no_set_is_best(data):
    sets = [
        row
        | {
            "measures": {
                n: e for n, e in row["measures"].items() if "@" not in n or n.endswith(f"@{k}")
            }
        }
        for row, k in zip(data["sets"], (1, 3), strict=True)
    ]
    sets[1]["measures"]["eci_v1@3"] = entry(0.5, k=3)
    assert matched_size(sets) is None
    changed = data | {"sets": sets, "matched": None, "findings": findings(sets, None, None)}
    text = Page(render_page(changed)).text
    assert "The sets have no |N| in common" in text
    assert "highest at |N|" not in text


def test_warnings_name_what_is_stale_unscored_half_done_or_incomparable(tmp_path):
    run = made(tmp_path)
    select(run, Select(name="later", sources=("bm25",)), HOW)
    select(run, Select(name="bm25", sources=("bm25",), max_rank=3), How(force=True))
    score(run, Score(sets=("bm25+dense",), unsafe="none", resamples=50), How(force=True))
    (run.path / "4_judgments/half").mkdir()
    (run.path / "4_judgments/half/_plan.json").write_text("{}")
    report(run, Report(), HOW)
    warnings = json.loads((tmp_path / "7_report/report.json").read_text("utf-8"))["warnings"]
    assert all(warning in page(run).text for warning in warnings)
    assert [warning for warning in warnings if "queries have no" not in warning] == [
        "bm25 rests on 5_sets/bm25, changed since it was scored.",
        "Not scored, so not on this page: later.",
        (
            "The sets were scored with different options (see the stages below): they cannot be"
            " compared."
        ),
        "Half done: 4_judgments/half.",
    ]


def test_a_scored_set_that_was_removed_does_not_stop_the_report(tmp_path):
    import shutil

    run = made(tmp_path)
    shutil.rmtree(tmp_path / "5_sets/bm25")
    report(run, Report(), HOW)
    data = json.loads((tmp_path / "7_report/report.json").read_text("utf-8"))
    assert data["warnings"][0] == "bm25 rests on 5_sets/bm25, changed since it was scored."
    assert list(data["examples"][0]["sets"]) == ["bm25+dense"]


def test_matched_size_is_the_largest_in_common():
    assert (
        matched_size([a_set("a", {1: (1,), 10: (1,), 25: (1,)}), a_set("b", {1: (1,), 10: (1,)})])
        == 10
    )
    assert matched_size([a_set("a", {1: (1,), 3: (1,)}), a_set("b", {1: (1,), 3: (None,)})]) == 1
    assert matched_size([a_set("a", {3: (1,)}), a_set("b", {1: (1,)})]) is None
    assert matched_size([a_set("a"), a_set("b", {1: (1,)})]) == 1
    assert matched_size([a_set("a")]) is None


def test_findings_say_plainly_when_intervals_overlap():
    best, near, far = (
        a_set("a", {5: (0.5, 0.4, 0.6)}, 0.08),
        a_set("b", {5: (0.45, 0.41, 0.49)}),
        a_set("c", {5: (0.2, 0.1, 0.3)}, 0.01),
    )
    overlap = (
        "At the matched |N| of 5, a has the highest ECI, 0.500 (0.400 to 0.600), but its interval"
        " overlaps that of b"
    )
    risk = "8.0 % of its triples are unsafe, against 0.0 % to 1.0 % in the other sets."
    assert findings([best, near, far], 5, None) == [
        f"{overlap}: this run does not tell them apart.",
        risk,
    ]
    ahead = (
        "Query by query it is 0.050 (0.010 to 0.090) ahead of the next, b: a difference that this"
        " run supports."
    )
    assert findings([best, near, far], 5, Lead(0.05, 0.01, 0.09)) == [f"{overlap}.", ahead, risk]
    level = (
        "Query by query it is 0.050 (-0.010 to 0.110) ahead of the next, b: zero is possible, so"
        " this run does not tell the two apart."
    )
    assert findings([best, near, far], 5, Lead(0.05, -0.01, 0.11)) == [f"{overlap}.", level, risk]
    assert findings([best, far], 5, None)[0].endswith(
        "its interval lies above that of every other set."
    )


def test_recipe_names_every_rule_that_is_not_at_its_default():
    options = Select(
        name="s", sources=("bm25:5", "dense"), percent_margin=0.95, sampler="random", negatives=7
    ).record()
    assert recipe(options) == "bm25:5 + dense; percent margin 0.95; sampler random; negatives 7"
    assert recipe(Select(name="s", sources=("bm25",)).record()) == "bm25"
    options = Select(
        name="s",
        sources=("bm25",),
        max_score=("0.5", "ce=0.9"),
        min_score="ce=-1",
        agree="any",
        promote=("ce=0.9", "llm"),
        near_positive=0.9,
        drop_other_positives=True,
        percentile_margin=40,
    )
    assert (
        recipe(options.record())
        == "bm25; agree any; percentile margin 40; min score -1 by ce; max score 0.5 and 0.9 by ce;"
        " near positive 0.9; drop other positives; promote 0.9 by ce and llm"
    )
    # of an older set
    assert recipe({"name": "s", "sources": ["bm25"], "max_rank": 3}) == "bm25; max rank 3"
    assert recipe({}) == ""


def test_describe_tells_all_of_one_query(run):
    found = describe(run, "q2", "bm25")
    assert found["text"] == QUERY_TEXTS["q2"]
    similarity = {"score": 0.875, "verdict": None, "reason": None}
    title, text = DOCUMENT_TEXTS["d02"]
    sources = [
        {"source": "bm25", "rank": 1, "score": 9.0},
        {"source": "dense", "rank": 1, "score": 9.0},
    ]
    assert found["positives"][0] == {
        "doc_id": "d02",
        "relevance": 1,
        "title": title,
        "text": text,
        "judgments": {"similarity": similarity},
        "sources": sources,
    }
    assert list(found["sets"]) == ["bm25"]
    negatives, rejected = found["sets"]["bm25"]["negatives"], found["sets"]["bm25"]["rejected"]
    assert [
        (row["doc_id"], row["rank"], row["score"], row["positive_score"]) for row in negatives
    ] == [("d08", 1, 0.75, 0.5), ("d09", 2, 0.4375, 0.5), ("d10", 3, 0.125, 0.5)]
    assert negatives[0]["judgments"]["similarity.positive"]["score"] == 0.9375
    assert [(row["doc_id"], row["reason"], row["text"]) for row in rejected] == [
        (doc_id, "positive", DOCUMENT_TEXTS[doc_id][1]) for doc_id in ("d02", "d03")
    ]
    assert sorted(describe(run, "q2")["sets"]) == ["bm25", "bm25+dense"]
    assert json.loads(json.dumps(found)) == found


def test_describe_gives_verdicts_and_thresholds(tmp_path):
    from scoring.judge.duplicates import JudgeDuplicates, judge_duplicates

    run = toy_run(tmp_path, documents=DOCUMENT_TEXTS | {"d08": DOCUMENT_TEXTS["d01"]})
    judge_duplicates(run, JudgeDuplicates(), HOW)
    select(run, Select(name="s", sources=("bm25",), max_score=0.5), HOW)
    rejected = {row["doc_id"]: row for row in describe(run, "q1", "s")["sets"]["s"]["rejected"]}
    assert rejected["d08"]["reason"] == "same_text"
    assert rejected["d08"]["judgments"]["duplicates"] == {
        "score": 1.0,
        "verdict": "drop",
        "reason": "same_text",
    }
    assert [rejected["d09"][name] for name in ("reason", "value", "threshold")] == [
        "max_score",
        0.625,
        0.5,
    ]


def test_describe_names_the_nearest_query_and_the_sets(run):
    with pytest.raises(UserError, match=r"has no query 'q22'; the nearest are q2"):
        describe(run, "q22")
    with pytest.raises(UserError, match=r"has no query 'zzzz'; the nearest are q1, q4"):
        describe(run, "zzzz")
    with pytest.raises(UserError, match=r"no set 'dense' \(found bm25, bm25\+dense\)"):
        describe(run, "q1", "dense")


def test_only_shards_with_chosen_queries_are_read_for_examples(tmp_path, monkeypatch):
    run = made(tmp_path, shard_queries=1)
    read, before = [], Run.read
    monkeypatch.setattr(
        Run,
        "read",
        lambda self, folder, key: (read.append((folder, key)), before(self, folder, key))[1],
    )
    collect(run, Report(examples=1, suspects=0))
    assert len({key for folder, key in read if folder.startswith(("5_sets", "4_judgments"))}) == 1


def test_suspects_are_the_negatives_that_exceed_their_positive_by_most(run, data):
    excess = {
        (query_id, doc_id): COSINES[query_id][doc_id]
        - min(COSINES[query_id][p] for p in GOLD[query_id])
        for query_id, doc_id in rows(run, "5_sets/bm25", "query_id", "doc_id")
    }
    worst = sorted((pair for pair in excess if excess[pair] >= 0), key=lambda pair: -excess[pair])
    shown = [(one["query_id"], one["negative"]["doc_id"]) for one in data["suspects"]]
    assert shown == worst[:8] and len(shown) > 1
    first = data["suspects"][0]
    assert first["negative"]["margin"] == pytest.approx(-excess[worst[0]])
    assert first["positive"]["doc_id"] in GOLD[worst[0][0]] and "bm25" in first["sets"]
    assert "The worst suspects" in page(run).text
