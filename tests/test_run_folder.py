"""Whose a run folder is, what may be in it, and what a run takes from another one: no training here."""

import contextlib
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from vitwarm.checks import named_differences
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe, recipe_hash
from vitwarm.run_folder import check_folder, newest_checkpoint, open_folder, read_result, record_data
from vitwarm.training.checkpoint import Checkpoints, State

CONFIG = load_recipe(["recipe=haystack_default"])


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def begun(folder, config=CONFIG, steps=(2, 4)):
    with contextlib.ExitStack() as held:
        open_folder(folder, config, held, 0)
    for step in steps:
        state = State("algorithmic", step, step, recipe_hash(config))
        Checkpoints(folder / "checkpoints", 9).save(state, {"model": {"w": torch.zeros(1)}})
    (folder / "log.jsonl").write_text('{"event": "train"}\n')
    return folder


def test_logs_of_a_launcher_may_be_there_before_the_run(tmp_path):
    for name in ("slurm-12.out", "job.err", "train.log", ".nfs0001"):
        (tmp_path / name).touch()
    check_folder(tmp_path, CONFIG)
    for name in ("thesis.tex", "a.out.txt"):
        (tmp_path / name).touch()
        assert "is not a run folder" in refusal(check_folder, tmp_path, CONFIG)
        (tmp_path / name).unlink()
    (tmp_path / "folder.log").mkdir()
    assert "is not a run folder" in refusal(check_folder, tmp_path, CONFIG)


def test_hidden_files_of_others_stay(tmp_path):
    """Only what a killed run left of its own files is removed."""
    for name in (".profile.old", ".vimrc.tmp", ".recipe.yaml.tmp"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".export.old").mkdir()
    begun(tmp_path, steps=())
    assert {p.name for p in tmp_path.iterdir()} == {".profile.old", ".vimrc.tmp", ".lock", "recipe.yaml", "log.jsonl"}


def test_files_of_others_in_the_export_are_told_before_training(tmp_path):
    """Not at its end, when the export is replaced; a finished run replaces nothing."""
    begun(tmp_path)
    (tmp_path / "export").mkdir()
    check_folder(tmp_path, CONFIG)
    (tmp_path / "export" / "vitwarm.json").write_text("{}")
    check_folder(tmp_path, CONFIG)
    (tmp_path / "export" / "model.onnx").touch()
    assert "export holds model.onnx, which is no part of an export" in refusal(check_folder, tmp_path, CONFIG)
    (tmp_path / "result.json").write_text("{}")
    check_folder(tmp_path, CONFIG)


def test_another_recipe_is_named_by_what_differs(tmp_path):
    """Old and new values, of rules their parameters; of many keys the first."""
    words = ["warmup.budget=9 steps", "warmup.lr_warmup=0", "init_from=null"]
    config = load_recipe(["recipe=haystack_dyck", *words])
    begun(tmp_path, config)

    def said(*changed: str) -> str:
        error = refusal(check_folder, tmp_path, load_recipe(["recipe=haystack_dyck", *words, *changed]))
        before, _, more = error.partition(": ")
        assert before == f"{tmp_path} holds a run of another recipe"
        return more.removesuffix("; choose another run.dir, or remove that folder to start over")

    assert said("seed=4") == "seed was 0, now 4"
    rate = config.train.lr
    assert (
        said("train.lr=0.5", "train.ema=0.9", "run.log_every=7")
        == f"train.lr was {rate}, now 0.5; train.ema was null, now 0.9"
    )
    assert said("warmup.rule.k=8", "warmup.rule.p_open=0.5").startswith("warmup.rule.k was 16, now 8")
    assert said("warmup.rule.name=set").startswith('warmup.rule.name was "dyck", now "set"; warmup.rule.k was ')
    many = said(
        *(f"train.{name}=0.25" for name in ("lr", "start_lr", "min_lr", "weight_decay", "eps", "clip_grad", "ema"))
    )
    assert many.count(" was ") == 6 and many.endswith("; and 1 more")


def test_long_and_secret_texts_are_named_where_they_differ():
    def of(train: str):
        return load_recipe(["recipe=digits_default", f"images.train={train}"])

    long = "/data/" + "x" * 200
    assert named_differences(of(f"{long}/a.tar"), of(f"{long}/b.tar")) == (
        f'images.train was ...{"x" * 29}/a.tar", now ...{"x" * 29}/b.tar"'
    )
    assert named_differences(of("https://...@host/a.tar"), of("https://me:pw@host/a.tar")) == ""


@pytest.mark.parametrize(
    "name", ["log.jsonl", "recipe.yaml", "result.json", "checkpoints", "warmup", "export", ".lock"]
)
def test_links_in_a_run_folder_are_refused(tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    for target in (tmp_path / "mine", tmp_path / "nowhere"):
        (tmp_path / "run" / name).symlink_to(target)
        assert f"{name} is a link or no plain file" in refusal(check_folder, tmp_path / "run", CONFIG)
        (tmp_path / "run" / name).unlink()
    os.mkfifo(tmp_path / "run" / name)  # opening it would wait for ever
    assert f"{name} is a link or no plain file" in refusal(check_folder, tmp_path / "run", CONFIG)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with contextlib.ExitStack() as held, pytest.raises(OSError, match="symbolic links"):
        open_folder(tmp_path / "run", CONFIG, held, 0)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_checkpoint_is_resumed_with_its_run_or_not_at_all(tmp_path, monkeypatch):
    """The run's warm-up and log tell where its weights are from."""
    step = begun(tmp_path / "theirs") / "checkpoints/step-00000004"
    monkeypatch.chdir(step.parent)
    check_folder(tmp_path / "ours", replace(CONFIG, resume_from=step.name))
    shutil.copytree(step, tmp_path / "copied" / step.name)
    said = refusal(check_folder, tmp_path / "ours", replace(CONFIG, resume_from=str(tmp_path / "copied" / step.name)))
    assert "lies outside of its run" in said


@pytest.mark.parametrize("name", ["checkpoints/step-00000004/model.safetensors", "log.jsonl", "warmup/weights"])
def test_no_links_are_copied_from_another_run(tmp_path, name):
    theirs = begun(tmp_path / "theirs")
    (theirs / "warmup").mkdir()
    (theirs / "warmup" / "weights").touch()
    (theirs / name).rename(tmp_path / "elsewhere")
    (theirs / name).symlink_to(tmp_path / "elsewhere")
    ours = replace(CONFIG, resume_from=str(theirs))
    check_folder(tmp_path / "ours", ours)
    with contextlib.ExitStack() as held:
        assert "is a link or no plain file" in refusal(open_folder, tmp_path / "ours", ours, held, 0)
    assert not list((tmp_path / "ours").rglob("step-*"))
    (theirs / name).unlink()
    (tmp_path / "elsewhere").rename(theirs / name)
    with contextlib.ExitStack() as held:
        open_folder(tmp_path / "ours", ours, held, 0)
    assert newest_checkpoint(tmp_path / "ours", ours, pytest.fail)[0].step == 4
    assert (tmp_path / "ours" / "warmup" / "weights").is_file()


def test_damaged_checkpoints_are_set_aside_once(tmp_path):
    folder, said = begun(tmp_path / "run", steps=(2, 4, 6)), []
    for step in (4, 6):
        (folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors").write_bytes(b"")
    assert newest_checkpoint(folder, CONFIG, said.append)[0].step == 2
    assert len(said) == 2
    assert newest_checkpoint(folder, CONFIG, pytest.fail)[0].step == 2
    names = ["damaged-step-00000004", "damaged-step-00000006", "step-00000002"]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == names


READ = {"text.train": "sha256 aa", "text.val": "sha256 bb"}


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"text.train": "sha256 aa", "text.val": "sha256 cc"}, "text.val was sha256 bb, now sha256 cc"),
        ({"text.train": "sha256 aa"}, "text.val was sha256 bb, now none"),
        (READ | {"text.more": "sha256 dd"}, "text.more was none, now sha256 dd"),
        ({}, "text.train was sha256 aa, now none"),
    ],
)
def test_other_data_than_those_that_a_run_began_with(tmp_path, now, says):
    record_data(tmp_path, READ, {"subset.txt": "a\n"})
    record_data(tmp_path, READ, {"subset.txt": "a\n"})
    assert json.loads((tmp_path / "data.json").read_text()) == READ
    assert says in refusal(record_data, tmp_path, now, {"subset.txt": "a\n"})
    assert "subset.txt, with which this run began" in refusal(record_data, tmp_path, READ, {"subset.txt": "b\n"})


def test_stages_on_computed_data_leave_no_record(tmp_path):
    record_data(tmp_path, {}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 3000, '{"recipe": 3}'])
def test_a_damaged_result_says_what_to_do(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    said = refusal(read_result, tmp_path)
    assert said.startswith(str(tmp_path / "result.json")) and "remove the file, and the same command" in said
