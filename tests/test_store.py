import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pytest

from cli.status import states
from miner.engine import How, map_shards
from miner.errors import UserError
from miner.files import atomic, write_json, write_table
from miner.stages import Shard, Stage, run_stage
from miner.store import MANIFEST, PLAN, Run, shard_keys

KEYS = shard_keys(4)
STAGE = Stage("3_candidates/toy", "candidates", {"k": 3, "seed": 7}, {"1_tables": "aa"}, model="m1")


def square(calls, key):
    with open(calls, "a") as file:
        file.write(f"{key}\n")
    number = int(key)
    table = pa.table({"number": [number, number * number]})
    side = pa.table({"number": pa.array([], pa.int64()) if number % 2 else [number]})
    return Shard({f"_odd/{key}": side, key: table}, {"odd": number % 2})


def fail_on_two(key):
    if key == "00002":
        raise ZeroDivisionError("shard two")
    return square(os.devnull, key)


def die_on_two(key):
    if key == "00002":
        os._exit(9)
    return square(os.devnull, key)


def go(run, stage=STAGE, task=None, calls=os.devnull, **how):
    return run_stage(run, stage, lambda: task or partial(square, calls), KEYS, How(**how))


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.parquet")}


def test_a_stage_counts_what_it_did(tmp_path):
    manifest = go(Run(tmp_path))
    assert manifest.rows == {"candidates": 8, "odd": 2}
    assert manifest.drops == {"odd": 2}
    assert (manifest.seed, manifest.model, manifest.shards, manifest.resumed_shards) == (
        7,
        "m1",
        4,
        0,
    )
    assert manifest.seconds > 0 and manifest.peak_memory_mb > 10
    assert Run(tmp_path).read("3_candidates/toy", "00003")["number"].to_pylist() == [3, 9]


def test_the_same_fingerprint_is_skipped(tmp_path):
    first, calls = go(Run(tmp_path)), tmp_path / "calls"
    again = go(Run(tmp_path), calls=calls)
    assert again.skipped and not calls.exists()
    assert again.model_copy(update={"skipped": False}) == first


@pytest.mark.parametrize("workers", [1, 2])
def test_a_half_done_stage_goes_on_at_the_missing_shard(tmp_path, workers):
    whole = Run(tmp_path / "whole")
    go(whole)
    run, calls = Run(tmp_path / "run"), tmp_path / "calls"
    with pytest.raises(ZeroDivisionError, match="shard two"):
        go(run, task=fail_on_two)
    folder = run.path / STAGE.folder
    assert (folder / PLAN).exists() and not (folder / MANIFEST).exists()
    (folder / ".00002.parquet.123.tmp").write_bytes(b"torn")
    manifest = go(run, calls=calls, workers=workers)
    assert sorted(calls.read_text().split()) == ["00002", "00003"]
    assert (
        manifest.resumed_shards == 2
        and manifest.rows == {"candidates": 8, "odd": 2}
        and manifest.drops == {"odd": 2}
    )
    assert files(folder) == files(whole.path / STAGE.folder) and not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"k": 4, "seed": 7}}, "was made with k=3, now 4"),
        ({"options": {"k": 3, "seed": 7, "name": "x"}}, "was made with name=None, now 'x'"),
        ({"model": "m2"}, "another model"),
        ({"inputs": {"1_tables": "bb"}}, "other inputs .1_tables is changed"),
        ({"inputs": {"1_tables": "aa", "2_index/bm25": "cc"}}, "other inputs .2_index/bm25 is new"),
        ({"inputs": {}}, "other inputs .1_tables is gone"),
    ],
)
def test_another_stage_is_refused_by_name_and_nothing_is_lost(tmp_path, change, message):
    run = Run(tmp_path)
    go(run)
    before = files(tmp_path)
    other = Stage(
        **{
            "folder": STAGE.folder,
            "table": STAGE.table,
            "options": STAGE.options,
            "inputs": STAGE.inputs,
            "model": "m1",
        }
        | change
    )
    with pytest.raises(UserError, match=message) as caught:
        go(run, other)
    assert "--force" in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) == before
    assert go(run, other, force=True).fingerprint == other.fingerprint


def test_a_half_done_stage_with_other_options_is_refused_too(tmp_path):
    with pytest.raises(ZeroDivisionError):
        go(Run(tmp_path), task=fail_on_two)
    with pytest.raises(UserError, match="k=3, now 4"):
        go(Run(tmp_path), Stage(STAGE.folder, STAGE.table, {"k": 4, "seed": 7}, STAGE.inputs, "m1"))


@pytest.mark.parametrize("task", [fail_on_two, die_on_two])
def test_a_failing_worker_fails_the_run_and_never_hangs_it(tmp_path, task):
    with pytest.raises(Exception, match=r"shard two|terminated abruptly"):
        go(Run(tmp_path), task=task, workers=2)
    assert Run(tmp_path).find(STAGE.folder) is None


def test_workers_write_the_same_bytes(tmp_path):
    go(Run(tmp_path / "one"))
    go(Run(tmp_path / "two"), workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_map_shards_yields_each_key_once(tmp_path):
    task = partial(square, tmp_path / "calls")
    assert Counter(map_shards(task, KEYS, 2)) == Counter(KEYS) == Counter(map_shards(task, KEYS, 1))


def test_the_lock_keeps_a_second_process_out_and_dies_with_its_owner(tmp_path):
    code = (
        f"from miner.store import Run; import time\nwith Run({str(tmp_path)!r}).lock():\n"
        " print('in', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "in\n"
    with pytest.raises(UserError, match="in use by another quarry process"), Run(tmp_path).lock():
        pass
    owner.kill()
    owner.wait()
    with Run(tmp_path).lock():
        pass


def test_a_failed_write_leaves_neither_the_file_nor_a_temporary_one(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(OSError, match="full"), atomic(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise OSError("full")
    assert json.loads((tmp_path / "a.json").read_text()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.parquet", pa.table({"x": [1, 2, 3]}))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_stage_that_is_not_there_names_the_command(tmp_path):
    with pytest.raises(UserError, match="does not exist; run `quarry index bm25` first"):
        Run(tmp_path).need("2_index/bm25", "index bm25")


GROWING = Stage(
    "4_judgments/toy",
    "judgments",
    {"k": 3},
    {"1_tables": "aa", "3_candidates/a": "a1"},
    grows="3_candidates/",
)
CHEAP = Stage(
    "5_sets/toy", "sets", {"k": 3}, {"1_tables": "aa", "4_judgments/toy": "j1"}, cheap=True
)


def grown(run, inputs, key):
    """What a shard held before, and one row for the state of the inputs."""
    before = run.read_before("4_judgments/toy", key)
    return Shard(
        {key: pa.table({"seen": [*(before["seen"].to_pylist() if before else []), inputs]})}
    )


def grow(run, state, fail=False, **changes):
    stage = replace(GROWING, inputs=GROWING.inputs | {"3_candidates/a": state}, **changes)
    task = fail_on_two if fail else partial(grown, run, state)
    return run_stage(run, stage, lambda: task, KEYS, How())


def seen(run):
    return [run.read("4_judgments/toy", key)["seen"].to_pylist() for key in KEYS]


def test_a_stage_that_grows_finds_what_it_held_before(tmp_path):
    run = Run(tmp_path)
    grow(run, "a1")
    manifest = grow(run, "a2")
    assert (
        seen(run) == [["a1", "a2"]] * 4
        and manifest.inputs["3_candidates/a"] == "a2"
        and manifest.rows == {"judgments": 8}
    )
    assert run.read_before("4_judgments/toy", "00000") is None
    assert grow(run, "a2").skipped


def test_growth_that_stops_half_way_goes_on_from_what_is_finished(tmp_path):
    run = Run(tmp_path)
    grow(run, "a1")
    with pytest.raises(ZeroDivisionError):
        run_stage(
            run,
            replace(GROWING, inputs=GROWING.inputs | {"3_candidates/a": "a2"}),
            lambda: partial(stop_at_two, run, "a2"),
            KEYS,
            How(),
        )
    assert run.find("4_judgments/toy") is None and run.read_before("4_judgments/toy", "00002")[
        "seen"
    ].to_pylist() == ["a1"]
    manifest = grow(run, "a2")
    assert seen(run) == [["a1", "a2"]] * 4 and manifest.resumed_shards == 2


def test_inputs_that_change_again_before_growth_is_done(tmp_path):
    run = Run(tmp_path)
    grow(run, "a1")
    with pytest.raises(ZeroDivisionError):
        run_stage(
            run,
            replace(GROWING, inputs=GROWING.inputs | {"3_candidates/a": "a2"}),
            lambda: partial(stop_at_two, run, "a2"),
            KEYS,
            How(),
        )
    manifest = grow(run, "a3")
    assert (
        seen(run) == [["a1", "a2", "a3"]] * 2 + [["a1", "a3"]] * 2 and manifest.resumed_shards == 0
    )


def stop_at_two(run, state, key):
    if key == "00002":
        raise ZeroDivisionError("shard two")
    return grown(run, state, key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"k": 4}}, "k=3, now 4"),
        ({"model": "m2"}, "another model"),
        ({"inputs": {"1_tables": "bb", "3_candidates/a": "a1"}}, "1_tables is changed"),
        ({"inputs": {"1_tables": "aa", "3_candidates/a": "a1", "links": "l1"}}, "links is new"),
    ],
)
def test_what_may_not_change_is_refused_though_the_stage_grows(tmp_path, change, message):
    run = Run(tmp_path)
    grow(run, "a1")
    before = files(tmp_path)
    with pytest.raises(UserError, match=message):
        run_stage(run, replace(GROWING, **change), lambda: partial(grown, run, "x"), KEYS, How())
    assert files(tmp_path) == before and run.find("4_judgments/toy") is not None


def test_a_source_may_come_or_go(tmp_path):
    run = Run(tmp_path)
    grow(run, "a1")
    for inputs in (
        {"1_tables": "aa", "3_candidates/a": "a1", "3_candidates/b": "b1"},
        {"1_tables": "aa"},
    ):
        run_stage(
            run, replace(GROWING, inputs=inputs), lambda: partial(grown, run, "again"), KEYS, How()
        )
    assert seen(run) == [["a1", "again", "again"]] * 4


def test_a_cheap_stage_is_made_afresh_when_its_inputs_alone_have_changed(tmp_path):
    run = Run(tmp_path)
    go(run, CHEAP)
    (tmp_path / "5_sets/toy/_odd/00009.parquet").write_bytes(
        (tmp_path / "5_sets/toy/_odd/00001.parquet").read_bytes()
    )  # of more shards once
    manifest = go(run, replace(CHEAP, inputs={"1_tables": "bb"}))
    assert (
        not manifest.skipped
        and manifest.resumed_shards == 0
        and manifest.inputs == {"1_tables": "bb"}
    )
    assert not (tmp_path / "5_sets/toy/_odd/00009.parquet").exists()
    with pytest.raises(UserError, match="k=3, now 4"):
        go(run, replace(CHEAP, options={"k": 4}, inputs={"1_tables": "bb"}))
    with pytest.raises(UserError, match="k=3, now 4"):
        go(run, replace(CHEAP, options={"k": 4}))  # other inputs too


def test_no_other_command_makes_a_stage_afresh_even_with_force(tmp_path):
    run, mine = Run(tmp_path), replace(STAGE, made_by="mine bm25")
    go(run, mine)
    before = files(tmp_path)
    for force in (False, True):
        with pytest.raises(UserError, match="was made by `quarry mine bm25`, so `quarry mine toy`"):
            go(run, replace(STAGE, made_by="mine toy"), force=force)
    assert files(tmp_path) == before and go(run, mine).skipped
    assert not go(run, mine, force=True).skipped


def test_results_of_another_algorithm_are_not_current(tmp_path):
    run = Run(tmp_path)
    go(run)
    with pytest.raises(UserError, match="was made by another version of quarry"):
        go(run, replace(STAGE, algorithm=2))
    assert not go(run, replace(STAGE, algorithm=2), force=True).skipped


def test_a_manifest_and_a_plan_of_another_version_are_one_line(tmp_path):
    run = Run(tmp_path)
    go(run)
    folder = tmp_path / STAGE.folder
    manifest, plan = (json.loads((folder / name).read_text()) for name in (MANIFEST, PLAN))
    del manifest["shards"], plan["algorithm"]
    write_json(folder / MANIFEST, manifest)
    with pytest.raises(UserError, match="was written by another version of quarry"):
        go(run)
    assert states(run) == [{"stage": STAGE.folder, "state": "written by another version of quarry"}]
    write_json(folder / PLAN, plan)
    with pytest.raises(UserError, match="was made by another version of quarry"):
        go(run)
    assert go(run, force=True).rows["candidates"] == 8
