"""What a user sees: exit codes, one line for a mistake, JSON, quarry.toml, status, doctor."""

import json
import sys

import pytest
from toy import COSINES, DOCUMENT_TEXTS, Toy, rows, toy_run, write_judge, write_source

import cli.main
from cli.flags import build_options, own_section, section
from cli.flow import make_plan
from miner.engine import How
from miner.errors import UserError
from miner.ingest.formats import IngestBeir
from miner.search.bm25 import MineBm25
from miner.search.tokens import IndexBm25
from scoring.recipe import Select


@pytest.fixture
def quarry(monkeypatch, capsys, tmp_path):
    """Run the command in this process: quarry("mine", "bm25") -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["quarry", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine", "bm25"], "there is no run folder run; begin with `quarry ingest`"),
        (["ingest", "beir"], "ingest beir: FOLDER is missing"),
        (["ingest", "beir", "nowhere"], "nowhere"),
        (
            ["mine", "bm25", "-k", "0"],
            "mine bm25: --k is 0; input should be greater than or equal to 1",
        ),
        (["mine", "bm25", "-k", "many"], "--k"),
        (["mine", "bm26"], "bm26"),
        (["mine", "dense", "--enigne", "x"], "--enigne"),
        (["select", "a/b", "--from", "bm25"], "select: NAME is 'a/b'"),
        (["select", "a"], "select: --from is missing"),
        (["run"], "no quarry.toml here"),
        (["--config", "nowhere.toml", "run"], "nowhere.toml does not exist"),
        (["show", "q1"], "there is no run folder run"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_2(quarry, words, message):
    code, out, err = quarry(*words)
    assert code == 2 and out == ""
    assert message in err and err.startswith("quarry: ") and err.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback(quarry, monkeypatch, tmp_path):
    toy_run(tmp_path / "run")

    def broken(run, options: IndexBm25, how):
        return 1 / 0

    monkeypatch.setattr("miner.search.bm25.index_bm25", broken)
    monkeypatch.setattr(sys, "argv", ["quarry", "index", "bm25"])
    with pytest.raises(ZeroDivisionError):  # Python prints it and exits with 1
        cli.main.main()


def test_a_full_disk_is_one_line_and_nothing_is_lost(quarry, monkeypatch, tmp_path):
    run = toy_run(tmp_path / "run")
    before = rows(run, "3_candidates/bm25", "query_id", "doc_id")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("miner.files.pq.ParquetWriter.write_table", full)
    code, _, err = quarry("mine", "random")
    assert (
        code == 2
        and "No space left on device" in err
        and "what was finished is kept" in err
        and err.count("\n") == 1
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert quarry("mine", "random")[0] == 0
    assert rows(run, "3_candidates/bm25", "query_id", "doc_id") == before


def test_json_is_one_object_and_the_line_is_for_people(quarry, tmp_path):
    toy_run(tmp_path / "run")
    code, out, err = quarry("mine", "random", "-k", 2, "--json")
    assert code == 0 and err == ""
    summary = json.loads(out)
    assert (summary["stage"], summary["rows"], summary["skipped"]) == (
        "3_candidates/random",
        {"candidates": 11},
        False,
    )
    code, out, _ = quarry("mine", "random", "-k", 2)
    assert out == "3_candidates/random: 11 candidates (already done)\n"
    code, _, err = quarry("mine", "random", "-k", 3)
    assert code == 2 and "was made with k=2, now 3" in err
    assert quarry("mine", "random", "-k", 3, "--force")[0] == 0


def test_flags_win_over_quarry_toml_and_environment_names_the_run(quarry, tmp_path, monkeypatch):
    toy_run(tmp_path / "elsewhere")
    monkeypatch.setenv("QUARRY_RUN", "elsewhere")
    (tmp_path / "quarry.toml").write_text(
        "[mine.random]\nk = 2\nseed = 5\n[select.five]\nfrom = 'bm25:2'\nmax-rank = 4\n"
    )
    assert json.loads(quarry("mine", "random", "--json")[1])["options"] == {"k": 2, "seed": 5}
    assert json.loads(quarry("mine", "random", "-k", "1", "--json", "--force")[1])["options"] == {
        "k": 1,
        "seed": 5,
    }
    options = json.loads(quarry("select", "five", "--json")[1])["options"]
    assert (options["sources"], options["max_rank"], options["name"]) == (["bm25:2"], 4, "five")


def test_run_dry_run_says_what_is_done(quarry, tmp_path):
    toy_run(tmp_path / "run")
    (tmp_path / "quarry.toml").write_text(
        "[mine.random]\nk = 2\n[mine.bm25]\nk = 9\n[select.five]\nfrom = 'bm25:2'\n"
    )
    before = sorted(tmp_path.rglob("*"))
    plan = {
        step["step"]: step["state"]
        for step in json.loads(quarry("run", "--dry-run", "--json")[1])["plan"]
    }
    assert plan == {
        "index bm25": "to do",
        "mine bm25": "was made with another k",
        "mine random": "to do",
        "judge similarity": "done",
        "judge duplicates": "to do",
        "select": "to do",
        "score": "as needed",
        "report": "as needed",
    }
    assert sorted(tmp_path.rglob("*")) == before
    quarry("mine", "random")
    assert "mine random        done       k=2" in quarry("run", "--dry-run")[1]


def test_select_dry_run_writes_nothing(quarry, tmp_path):
    toy_run(tmp_path / "run")
    code, out, _ = quarry("select", "five", "--from", "bm25:2", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["rows"]["sets"] > 0
    assert not (tmp_path / "run/5_sets").exists()


def test_status_says_what_is_stale_and_why(quarry, tmp_path):
    toy_run(tmp_path / "run")
    quarry("select", "five", "--from", "bm25:2")
    quarry("mine", "random", "-k", "1")
    states = {
        stage["stage"]: stage["state"]
        for stage in json.loads(quarry("status", "--json")[1])["stages"]
    }
    assert set(states.values()) == {"up to date"}
    toy_run(tmp_path / "other", k=6)
    import shutil

    shutil.rmtree(tmp_path / "run/3_candidates/bm25")
    shutil.copytree(tmp_path / "other/3_candidates/bm25", tmp_path / "run/3_candidates/bm25")
    (tmp_path / "run/3_candidates/random/_manifest.json").unlink()
    states = {
        stage["stage"]: stage["state"]
        for stage in json.loads(quarry("status", "--json")[1])["stages"]
    }
    assert states["4_judgments/similarity"] == "stale: 3_candidates/bm25 has changed"
    assert states["5_sets/five"] == "stale: 3_candidates/bm25 has changed"
    assert states["3_candidates/random"].startswith("half done")
    assert states["1_tables"] == states["3_candidates/dense"] == "up to date"
    assert "stale" in quarry("status")[1]


def test_show_reads_one_query(quarry, tmp_path):
    toy_run(tmp_path / "run")
    quarry("select", "five", "--from", "bm25:2", "--from", "dense:2")
    code, out, _ = quarry("show", "q2", "--set", "five")
    assert code == 0 and "how do bees talk" in out and "d02" in out and "d08" in out
    shown = json.loads(quarry("show", "q2", "--json")[1])
    assert shown["query_id"] == "q2"
    code, _, err = quarry("show", "q22")
    assert code == 2 and "q2" in err and err.count("\n") == 1


def case_file(tmp_path):
    """A run with a judge that has verdicts, and a set that keeps, promotes and drops for several
    reasons.
    """
    run = toy_run(tmp_path / "run", documents=DOCUMENT_TEXTS | {"d09": ("Wax", "moths " * 60)})
    said = {
        "d08": (None, "drop", "answers"),
        "d09": (0.25, "keep", None),
        "d10": (0.75, "promote", "relevant"),
        "d11": (None, None, "over_budget"),
    }
    every = {
        query_id: dict.fromkeys(found, (None, "keep", None)) for query_id, found in COSINES.items()
    }
    write_judge(run, "llm", every | {"q2": every["q2"] | said})
    return run


def test_show_is_a_case_file_of_every_candidate(quarry, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "130")
    case_file(tmp_path)
    quarry("select", "five", "--from", "bm25", "--promote", "llm", "--min-score", "0.1")
    lines = quarry("show", "q2")[1].splitlines()
    assert [line.rstrip() for line in lines[:7]] == [
        "query q2: how do bees talk",
        "",
        "2 positives",
        "  doc_id  bm25   dense  llm   similarity",
        " positives",
        (
            "  d02     1 (9)  1 (9)  keep  0.875       Honey bees dance to tell the hive where"
            " flowers stand"
        ),
        (
            "  d03     4 (6)  2 (8)  keep  0.500       a bee that returns runs in a figure of eight"
            " on the comb"
        ),
    ]
    assert (
        lines[8]
        == "set five: 1 kept, 1 promote:llm, 1 dropped: answers:llm, 2 dropped: positive, 1 of no"
        " source of the recipe"
    )
    below = "\n".join(lines[9:])
    order = [
        " kept",
        "  1  d09 ",
        " promote:llm",
        "d10 ",
        " dropped: answers:llm",
        "d08 ",
        " dropped: positive",
        "d02 ",
        "d03 ",
        " of no source of the recipe",
        "d11 ",
    ]
    places = [below.index(part) for part in order]
    assert places == sorted(places)
    d10 = next(line for line in lines[9:] if "d10" in line)
    assert "5 (5)" in d10 and "0.750 promote relevant" in d10 and "0.125" in d10
    assert "over_budget" in next(line for line in lines[9:] if "d11" in line)
    assert max(map(len, lines)) <= 130
    assert "Wax moths moths" in below and "moths " * 60 not in below


def test_show_says_what_was_compared(quarry, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "130")
    case_file(tmp_path)
    quarry("select", "five", "--from", "bm25:1", "--max-score", "0.5", "--min-score", "llm=0.5")
    out = quarry("show", "q4", "--set", "five")[1]
    assert " dropped: no_score:llm" in out and "0 negatives" not in out
    quarry("select", "six", "--from", "bm25:1", "--max-score", "0.5")
    out = quarry("show", "q2", "--set", "six")[1]
    assert "0.750 against 0.500" in next(line for line in out.splitlines() if " d08 " in line)
    assert "2 against 1" in next(line for line in out.splitlines() if " d10 " in line)
    assert "set five" not in out


def test_show_without_a_set_lists_all_candidates_by_their_best_rank(quarry, tmp_path):
    toy_run(tmp_path / "run")
    out = quarry("show", "q2")[1]
    below = out[out.index("no set yet: 6 candidates") :]
    places = [below.index(doc_id) for doc_id in ("d02", "d03", "d08", "d09", "d11", "d10")]
    assert places == sorted(places)
    assert "no set yet: 0 candidates" in quarry("show", "q5")[1]


def test_show_keeps_to_the_width_of_the_terminal(quarry, tmp_path, monkeypatch):
    case_file(tmp_path)
    quarry(
        "select",
        "five",
        "--from",
        "bm25:2",
        "--from",
        "dense",
        "--promote",
        "llm",
        "--max-score",
        "0.5",
    )
    for width in (40, 60, 80, 100, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        out = quarry("show", "q2")[1]
        assert max(map(len, out.splitlines())) <= width, width
        words = " ".join(out.split())
        assert all(
            part in words
            for part in ("d08", "0.750 promote", "0.875", "over_budget", "5 (5)", "d11")
        ), width


def test_show_gives_the_same_as_data(quarry, tmp_path):
    case_file(tmp_path)
    quarry("select", "five", "--from", "bm25", "--promote", "llm", "--min-score", "0.1")
    shown = json.loads(quarry("show", "q2", "--json")[1])
    assert [row["doc_id"] for row in shown["candidates"]] == [
        "d02",
        "d03",
        "d08",
        "d09",
        "d11",
        "d10",
    ]
    assert shown["candidates"][3]["sources"] == [
        {"source": "bm25", "rank": 3, "score": 7.0},
        {"source": "dense", "rank": 4, "score": 6.0},
    ]
    parts = shown["sets"]["five"]
    assert {
        part: [(row["doc_id"], row["verdict"]) for row in found] for part, found in parts.items()
    } == {
        "negatives": [("d09", "keep")],
        "promoted": [("d10", "promote")],
        "rejected": [("d08", "drop"), ("d02", "drop"), ("d03", "drop")],
        "unseen": [("d11", None)],
    }
    (row,) = parts["promoted"]
    assert (row["reason"], row["value"], row["threshold"]) == ("promote:llm", 0.75, None)
    assert row["judgments"]["llm"] == {"score": 0.75, "verdict": "promote", "reason": "relevant"}
    assert (
        row["sources"] == [{"source": "bm25", "rank": 5, "score": 5.0}]
        and row["title"] == "Obsidian"
    )
    assert parts["unseen"][0]["reason"] == "not_asked"


def test_show_tells_candidates_that_a_set_has_not_seen_yet(quarry, tmp_path):
    run = toy_run(tmp_path / "run")
    quarry("select", "five", "--from", "bm25")
    write_source(run, Toy(candidates={"bm25": {"q2": ["d12", "d08"]}}), "bm25", How(force=True))
    unseen = json.loads(quarry("show", "q2", "--json")[1])["sets"]["five"]["unseen"]
    assert [(row["doc_id"], row["reason"]) for row in unseen] == [
        ("d12", "found_since"),
        ("d11", "not_asked"),
    ]
    assert "found since the set was made" in quarry("show", "q2")[1]


def test_select_dry_run_prints_the_funnel(quarry, tmp_path):
    case_file(tmp_path)
    words = (
        "select",
        "five",
        "--from",
        "bm25:1",
        "--from",
        "dense",
        "--min-rank",
        "2",
        "--promote",
        "llm",
        "--dry-run",
    )
    code, out, err = quarry(*words)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "dry run of set five; positives are kept out by ids, text, vectors",
        "                            bm25  dense",
        "  candidates                  19     17",
        "  positive                     6      7",
        "  promote:llm                  1      0",
        "  answers:llm                  1      0",
        "  quota                        4      0",
        "  kept from another source     3      0",
        "  kept                         4     10",
        "set five: 12 negatives, 12 rejected, 1 promoted; 4 queries have negatives",
    ]
    funnel = json.loads(quarry(*words, "--json")[1])["funnel"]
    assert list(funnel) == ["bm25", "dense"] and list(funnel["bm25"])[:2] == [
        "candidates",
        "positive",
    ]
    assert not (tmp_path / "run/5_sets").exists()


def test_a_set_says_what_else_there_is_to_know_of_it(quarry, tmp_path):
    run = toy_run(tmp_path / "run")
    write_source(run, Toy(candidates={"far": {"q1": ["d02", "d08"]}}), "far")
    out = quarry("select", "five", "--from", "far")[1]
    assert (
        "1 of the negatives are positives of other queries; --drop-other-positives leaves them out"
        in out
    )
    assert "positives of other queries" not in quarry("select", "six", "--from", "bm25")[1]


def test_doctor_names_the_encoder_and_what_is_missing(quarry):
    code, out, _ = quarry("doctor")
    assert code == 0 and "all-MiniLM-L6-v2" in out and "python" in out
    assert set(json.loads(quarry("doctor", "--json")[1])) >= {
        "python",
        "torch",
        "gpu",
        "faiss",
        "encoder",
        "spacy model",
        "vllm",
    }


def test_a_plan_adds_what_its_steps_need_in_flow_order():
    config = {
        "mine": {"dense": {}, "bm25": {"k": 7}},
        "select": {"a": {"from": "bm25"}},
        "ingest": {"beir": {"folder": "x"}},
    }
    plan = make_plan(config, None, None)
    assert [planned.step.title for planned in plan] == [
        "ingest beir",
        "index bm25",
        "index dense",
        "mine bm25",
        "mine dense",
        "judge similarity",
        "judge duplicates",
        "select",
        "score",
        "report",
    ]
    assert plan[3].options == MineBm25(k=7) and plan[7].options == Select(
        name="a", sources=("bm25",)
    )
    assert [planned.step.title for planned in make_plan(config, "select", "score")] == [
        "select",
        "score",
    ]


def test_a_plan_holds_several_parts_of_one_kind_by_their_names():
    config = {
        "index": {"bge": {"kind": "dense", "truncate-dim": 8}},
        "mine": {
            "cross-encoder": {"from": ["bm25-soft"]},
            "bm25-soft": {"kind": "bm25", "index": "bm25", "k1": 0.9},
            "bge": {"kind": "dense"},
            "bm25": {},
        },
        "judge": {"strong": {"kind": "cross-encoder", "reranker": "here"}, "duplicates": {}},
        "select": {"my-set": {"from": ["bm25-soft:3"], "judge": "strong"}},
    }
    plan = make_plan(config, None, "select")
    names = [(one.step.title, getattr(one.options, "name", None)) for one in plan]
    assert names == [
        ("index bm25", "bm25"),
        ("index dense", "bge"),
        ("mine bm25", "bm25-soft"),
        ("mine bm25", "bm25"),
        ("mine dense", "bge"),
        ("mine cross-encoder", "cross-encoder"),
        ("judge similarity", None),
        ("judge cross-encoder", "strong"),
        ("judge duplicates", None),
        ("select", "my-set"),
    ]
    assert plan[2].options == MineBm25(name="bm25-soft", index="bm25", k1=0.9)
    step = plan[2].step  # the command of such a part reads its section
    assert own_section(config, step, "bm25-soft") == {"index": "bm25", "k1": 0.9}
    assert own_section(config, step, None) == own_section(config, step, "bge") == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"judge": {"twins": {"kind": "duplicates"}}},
            r"\[judge.twins\] is a second duplicates, of which there can be but one",
        ),
        (
            {"mine": {"soft": {"kind": "bm26"}}},
            r"unknown section \[mine.soft\]; expected one of bm25",
        ),
        ({"mines": {}}, r"unknown section \[mines\]"),
        (
            {"mine": {"bm26": {}}},
            r"unknown section \[mine.bm26\]; expected one of bm25, dense, random",
        ),
        (
            {"mine": {"bm25": {"kk": 1}}},
            r"\[mine.bm25\]: unknown option 'kk'; expected one of k, name",
        ),
        ({"mine": {"bm25": 3}}, r"\[mine.bm25\] is 3; expected a section"),
        ({"ingest": {"beir": {}}}, "FOLDER is missing"),
    ],
)
def test_a_mistake_in_quarry_toml_is_named(config, message):
    with pytest.raises(UserError, match=message):
        make_plan(config, None, None)


def test_options_are_read_as_they_are_written_on_the_command_line_or_in_python():
    written = {"select": {"a": {"from": ["bm25:3"], "max-rank": 9, "percent_margin": 0.9}}}
    assert build_options(Select, {"name": "a"} | section(written, "select", "a"), "here") == Select(
        name="a", sources=("bm25:3",), max_rank=9, percent_margin=0.9
    )
    with pytest.raises(UserError, match="--min-relevance is 'x'"):
        build_options(IngestBeir, {"folder": "x", "min_relevance": "x"}, "here")
