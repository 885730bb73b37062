"""How far a cell is, from its folder alone: finished, begun, crashed, or not to be used."""

import json
import os

import pytest
from test_grid import cell, grid

from vitwarm.budget.cells import (
    BEGUN,
    CRASHED,
    DONE,
    FOREIGN,
    RUNNING,
    WAITING,
    Folders,
    Status,
    folder_of,
    require_whole,
)
from vitwarm.errors import UserError
from vitwarm.recipe import freeze


@pytest.fixture
def study(tmp_path):
    return grid(tmp_path, seeds=[0], budgets=["50%", "100%"]), Folders(tmp_path / "cells", tmp_path)


def finish(one, folder=None, config=None, **changes):
    folder = folder or one.folder
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(freeze(config or one.config))
    stages = {"images": {"flops": 1.0, "samples": round(64_000 * one.main), "seconds": 1.0}}
    result = {"recipe_hash": one.hash, "seed": one.seed, "metrics": {"top1": 0.5}, "stages": stages}
    result |= {"processes": 1, "versions": {}}
    (folder / "result.json").write_text(json.dumps(result | changes))


def state(study, one):
    return study[1].statuses(study[0])[one.hash]


def test_a_finished_cell_is_known_by_its_recipe_whatever_its_folder_is_called(study, tmp_path):
    one = cell(study[0], "warmed", 1.0)
    assert state(study, one).state == WAITING
    finish(one, tmp_path / "cells/renamed")
    found = state(study, one)
    assert found.state == DONE and found.run.result["metrics"]["top1"] == 0.5


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"metrics": {"top1": float("nan")}}, "no finite top1"),
        ({"metrics": {}}, "no finite top1"),
        ({"stages": {"warmup": {"flops": 1.0, "samples": 1, "seconds": 1.0}}}, "no stage images"),
        ({"stages": {"images": {"flops": 1.0, "samples": 1}}}, "stages.images.seconds is no finite number"),
        (
            {"stages": {"images": {"flops": 1.0, "samples": 6400, "seconds": 1.0}}},
            "was trained on 6,400 images, the plan counts on 64,000; set train_images as they are",
        ),
        ({"seed": 5}, "is of seed 5, recipe.yaml of 0"),
        ({"recipe_hash": "0123456789ab"}, "belongs to another recipe"),
    ],
)
def test_a_result_that_cannot_be_used_is_marked(study, changes, note):
    one = cell(study[0], "warmed", 1.0)
    finish(one, **changes)
    found = state(study, one)
    assert found.state == FOREIGN and found.run is None and note in found.note


def test_a_study_with_a_failed_run_is_no_success(study):
    statuses = study[1].statuses(study[0])
    require_whole(study[0].cells, statuses)
    one = cell(study[0], "warmed", 1.0)
    statuses[one.hash] = Status(CRASHED, note="the disk is full")
    with pytest.raises(UserError, match="1 run failed, first .*warmed.*: the disk is full; the same command tries"):
        require_whole(study[0].cells, statuses)
    statuses[one.hash] = Status(FOREIGN, note="x holds a run of another recipe")
    with pytest.raises(UserError, match="of another recipe; remove or move its folder, and the same command"):
        require_whole(study[0].cells, statuses)


def test_another_recipe_in_the_folder_is_marked(study):
    one, other = cell(study[0], "warmed", 1.0), cell(study[0], "default", 1.0)
    finish(one, config=other.config)
    assert state(study, one).state == FOREIGN and other.hash in state(study, one).note


def test_runs_on_data_that_were_changed_since_are_marked(study):
    cells = study[0].cells
    for at, one in enumerate(cells):
        finish(one)
        (one.folder / "data.json").write_text(json.dumps({"images.val": "9 images, a" if at < 2 else "9 images, b"}))
        os.utime(one.folder / "result.json", (at, at))
    found = [state(study, one) for one in cells]
    assert [s.state for s in found] == [FOREIGN] * 2 + [DONE] * (len(cells) - 2)
    assert f"{cells[0].folder} read other data than {cells[-1].folder} (images.val: 9 images, a" in found[0].note


@pytest.mark.parametrize("spoil", ["result.json", "recipe.yaml"])
def test_a_folder_of_another_version_is_marked(study, spoil):
    one = cell(study[0], "warmed", 1.0)
    finish(one)
    (one.folder / spoil).write_text('{"recipe_hash": "x"}' if spoil == "result.json" else "no_such_key: 1\n")
    assert state(study, one).state == FOREIGN


def test_a_crash_is_remembered_until_the_run_is_done(study):
    one = cell(study[0], "warmed", 1.0)
    study[1].failures_file.write_text(json.dumps({one.hash: "the loss is not finite"}))
    assert (state(study, one).state, state(study, one).note) == (CRASHED, "the loss is not finite")
    finish(one)
    assert state(study, one).state == DONE


@pytest.mark.parametrize("text", ["{", "[1]", '{"x": 3}', None])
def test_damaged_notes_of_failures_are_none(study, text):
    if text is None:
        study[1].failures_file.mkdir()
    else:
        study[1].failures_file.write_text(text)
    assert study[1].failures() == {}


def test_files_where_folders_should_be_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for runs, out, key in (("file", "out", "runs"), ("runs", "file", "out")):
        with pytest.raises(UserError, match=f"file is a file; give a folder as {key}"):
            Folders(tmp_path / runs, tmp_path / out)


def test_a_recipe_that_is_no_text_is_marked_and_hides_nothing(study, tmp_path):
    one = cell(study[0], "warmed", 1.0)
    finish(one)
    (one.folder / "recipe.yaml").write_bytes(b"\xff\xfe")
    assert state(study, one).state == FOREIGN
    end = one.folder.name.partition("-seed")[0]
    assert folder_of(one.folder.parent, end, one.seed, one.hash) == one.folder  # under its own name, if not by its hash


def test_a_folder_at_work_is_running_and_one_left_is_begun(study):
    import subprocess
    import sys

    one = cell(study[0], "warmed", 1.0)
    one.folder.mkdir(parents=True)
    (one.folder / "recipe.yaml").write_text(freeze(one.config))
    hold = (
        f"import fcntl, time; f = open({str(one.folder / '.lock')!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    process.stdout.readline()
    try:
        assert state(study, one).state == RUNNING
    finally:
        process.kill()
        process.wait()
    assert state(study, one).state == BEGUN


def test_the_table_has_a_mark_for_each_seed(study):
    finish(cell(study[0], "warmed", 1.0))
    table = study[0].progress(study[1].statuses(study[0]))
    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert lines["warmed"] == [".", "#"] and lines["default"] == [".", "."]
    assert "1 done (#), 3 waiting (.)" in table
