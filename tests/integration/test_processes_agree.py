"""One process or several: the same global batches at every step, the same losses, the same validation."""

import json
import os
import subprocess
import sys
from collections import defaultdict

import pytest
from harness import ROOT, Command, free_port, log, write_recipe
from safetensors.torch import load_file

STEPS = 50
LONG = {
    "model": {"args": {"drop_path_rate": 0.0}},  # its draws are each process's own
    "warmup": {"budget": f"{STEPS} steps", "lr_warmup": "5 steps", "ema": None},
    "images": {"epochs": 1.1, "mix_prob": 0.9},  # 50 steps, across the end of an epoch
    "train": {"lr": 3e-3, "lr_warmup": "5 steps", "ema": None},
    "run": {"checkpoint_every": 1000},
}


def by_step(folder, stage, world):
    """step -> rows, ids and targets of the global batch, the processes' shares in the order of their ranks."""
    batches: dict[int, list] = defaultdict(lambda: [[], [], []])
    for rank in range(world):
        for line in (folder / f"{stage}-{world}-{rank}.jsonl").read_text().splitlines():
            entry = json.loads(line)
            for part, name in zip(batches[entry["step"]], ("rows", "ids", "targets"), strict=True):
                part += entry[name] or []
    return batches


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """Folder of records and the run folders; two processes come from a real `accelerate launch` and accumulate."""
    scratch = tmp_path_factory.mktemp("agree")
    recipe = write_recipe(scratch, **LONG)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={free_port()}"]
    script = [str(ROOT / "tests" / "integration" / "recorded_train.py"), str(scratch), f"recipe={recipe}"]
    runs = []
    for world, command, device_batch in ((1, [sys.executable], "null"), (2, launch, 8)):
        runs.append(scratch / f"run{world}")
        arguments = [*script, f"run.dir={runs[-1]}", f"run.device_batch={device_batch}"]
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert json.loads((runs[-1] / "result.json").read_text())["processes"] == world
    return scratch, *runs


@pytest.mark.parametrize(("stage", "size"), [("warmup", 16), ("images", 32)])
def test_global_batches_are_identical_at_every_step(one_and_two, stage, size):
    folder = one_and_two[0]
    one, two = (by_step(folder, stage, world) for world in (1, 2))
    assert sorted(one) == list(range(STEPS))
    assert one == two
    assert all(len(rows) == size for rows, _, _ in one.values())
    assert len({row for rows, _, _ in one.values() for row in rows}) > 40 * size  # the batches are not all alike


@pytest.mark.parametrize("stage", ["warmup", "images"])
def test_losses_are_equal_to_float_tolerance(one_and_two, stage):
    _, one, two = one_and_two
    losses = [[e["loss"] for e in log(run, stage=stage)] for run in (one, two)]
    assert len(losses[0]) == STEPS
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    norms = [[e["grad_norm"] for e in log(run, stage=stage)] for run in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_evaluations_are_equal(one_and_two):
    _, one, two = one_and_two
    for stage in ("warmup", "images"):
        for a, b in zip(log(one, "eval", stage), log(two, "eval", stage), strict=True):
            assert a["count"] == b["count"]
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_both_stages_moved_the_weights(one_and_two):
    """So that the equalities above are not those of models that stand still."""
    run = one_and_two[1]
    losses = [e["loss"] for e in log(run, stage="warmup")]
    assert losses[-1] < 0.9 * losses[0]
    before, after = (load_file(run / folder / "model.safetensors") for folder in ("warmup", "export"))
    for name in before:
        assert (before[name] - after[name]).abs().max() > 1e-3, name


def test_every_validation_image_counts_once_over_any_number_of_processes(tmp_path, tars_of):
    train, val = tars_of(48, classes=4), tars_of(37, classes=4, first=100)
    found = []
    for world in (1, 2, 3):
        recipe = write_recipe(
            tmp_path,
            model=LONG["model"],
            warmup={"budget": "0"},
            images={"train": str(train), "val": str(val), "epochs": 1},
            train={"global_batch": 48, "lr_warmup": "0", "ema": None},
            run={"device_batch": None},
        )
        command = Command([f"recipe={recipe}", f"run.dir={tmp_path / str(world)}"], tmp_path, world=world)
        assert command.wait() == 0, command.err
        found.append(log(tmp_path / str(world), "eval")[-1])
    assert [e["count"] for e in found] == [37, 37, 37]
    for entry in found[1:]:
        assert entry["top1"] == found[0]["top1"]
        assert entry["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)


def test_a_global_batch_that_does_not_divide_is_refused_by_all(tmp_path, recipe):
    command = Command([f"recipe={recipe}", f"run.dir={tmp_path / 'run'}"], tmp_path, world=3)
    assert command.wait() == 2
    assert [p.exitcode for p in command.processes] == [2, 2, 2]
    assert "does not divide over 3 processes" in command.err
    assert command.err.count("vitwarm: error") == 1
    assert not (tmp_path / "run").exists()
