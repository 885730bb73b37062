"""Killed or stopped anywhere and started again, a run ends with the same bits and has logged each step once."""

import os
import random
import shutil
import signal
import time

import pytest
from harness import IMAGE_STEPS, WARMUP_STEPS, Command, assert_complete, log, weights

from vitwarm.training.checkpoint import read_state


def start(recipe, tmp_path, *more, **options):
    return Command([f"recipe={recipe}", f"run.dir={tmp_path / 'run'}", *more], tmp_path, **options)


def finish(recipe, tmp_path, undisturbed, *more, **options):
    command = start(recipe, tmp_path, *more, **options)
    assert command.wait() == 0, command.err
    assert_complete(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(undisturbed)
    losses = [[(e["stage"], e["step"], e["loss"]) for e in log(f)] for f in (tmp_path / "run", undisturbed)]
    assert losses[0] == losses[1]
    return command


@pytest.mark.parametrize(("stage", "step"), [("warmup", 2), ("warmup", 6), ("images", 2), ("images", 7)])
def test_kill_in_a_stage(tmp_path, recipe, undisturbed, stage, step):
    command = start(recipe, tmp_path)
    command.wait_for(lambda: len(log(tmp_path / "run", stage=stage)) >= step)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists()
    finish(recipe, tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("file", "left"),
    [
        ("/.recipe.yaml.tmp", ".recipe.yaml.tmp"),
        ("/.step-00000004.tmp/model.", "checkpoints/.step-00000004.tmp"),  # the first checkpoint
        ("/.step-00000010.tmp/state.json", "checkpoints/.step-00000010.tmp"),  # the last one of the warm-up
        ("/.warmup.tmp/", ".warmup.tmp"),  # the transferred model
        ("/.step-00000014.tmp/ema.", "checkpoints/.step-00000014.tmp"),
        ("/.export.tmp/model.", ".export.tmp"),
        ("/.result.json.tmp", ".result.json.tmp"),
    ],
)
def test_kill_while_something_is_written(tmp_path, recipe, undisturbed, file, left):
    assert start(recipe, tmp_path, die=file).wait() == -signal.SIGKILL
    assert (tmp_path / "run" / left).exists()
    assert not (tmp_path / "run" / "result.json").exists()
    finish(recipe, tmp_path, undisturbed)


def test_kill_with_workers_leaves_none_behind_that_would_block_the_restart(tmp_path, recipe, undisturbed):
    command = start(recipe, tmp_path, "run.workers=2")
    command.wait_for(lambda: len(log(tmp_path / "run", stage="images")) >= 5)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    finish(recipe, tmp_path, undisturbed, "run.workers=1")


def test_killed_again_and_again(tmp_path, recipe, undisturbed):
    """Each restart gets a step further at least, however little time it is given."""
    for step in (5, 9, WARMUP_STEPS + 3, WARMUP_STEPS + 5):
        command = start(recipe, tmp_path)
        command.wait_for(lambda step=step: len(log(tmp_path / "run")) >= step)
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
    finish(recipe, tmp_path, undisturbed)


@pytest.mark.long
def test_kill_at_random_moments(tmp_path, recipe, undisturbed):
    rng = random.Random(time.time_ns())
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        for _ in range(rng.randint(1, 3)):
            command = start(recipe, folder)
            time.sleep(rng.uniform(0, 3))
            command.processes[0].kill()
            command.wait()
        finish(recipe, folder, undisturbed)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, recipe, undisturbed):
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    newest, older = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[::-1][:2]
    with open(newest / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    command = finish(recipe, tmp_path, undisturbed)
    assert f"{newest} is damaged (model.safetensors differs from its checksum); using the one before" in command.err
    assert f"resuming from {older}" in command.out


SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]  # SIGUSR1: test_requeue


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("stage", "workers"), [("warmup", 0), ("images", 2)])
def test_a_signal_ends_the_step_and_the_same_command_goes_on(tmp_path, recipe, undisturbed, number, stage, workers):
    slow = "import time, torch; s = torch.optim.AdamW.step; torch.optim.AdamW.step = lambda *a: (time.sleep(.1), s(*a))"
    command = start(recipe, tmp_path, f"run.workers={workers}", "run.checkpoint_every=1000", before=slow)
    command.wait_for(lambda: len(log(tmp_path / "run", stage=stage)) >= 3)
    os.kill(command.pid, number)
    seen = len(log(tmp_path / "run", stage=stage))
    assert command.wait() == 75, command.err
    assert "Traceback" not in command.err
    said = [line for line in command.err.splitlines() if "warning" not in line]
    assert len(said) == 1
    assert said[0].endswith("run the same command to resume")
    newest = read_state(sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1])
    assert newest.stage == stage
    assert seen <= newest.step <= seen + 2  # the step in progress, and the one that saw the signal
    finish(recipe, tmp_path, undisturbed)


def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_run(tmp_path, recipe, undisturbed):
    """What a terminal does on Ctrl-C, and Slurm before it kills."""
    slow = (
        "import os, time, torch; os.setsid(); s = torch.optim.AdamW.step\n"
        "torch.optim.AdamW.step = lambda *a: (time.sleep(.1), s(*a))"
    )
    command = start(recipe, tmp_path, "run.workers=2", before=slow)
    command.wait_for(lambda: len(log(tmp_path / "run", stage="images")) >= 2)
    os.killpg(command.pid, signal.SIGTERM)
    assert command.wait() == 75, command.err
    assert "Traceback" not in command.err
    finish(recipe, tmp_path, undisturbed)


def test_a_signal_during_start_up_is_not_lost(tmp_path, recipe, undisturbed):
    """It comes while the stages are built, before the first step."""
    early = (
        "import os, signal, vitwarm.run as r; b = r.assemble\n"
        "r.assemble = lambda *a, **k: (os.kill(os.getpid(), signal.SIGTERM), b(*a, **k))[1]"
    )
    assert start(recipe, tmp_path, before=early).wait() == 75
    finish(recipe, tmp_path, undisturbed)


def test_a_signal_to_one_of_two_processes_stops_both(tmp_path, recipe):
    undisturbed = tmp_path / "whole"
    undisturbed.mkdir()
    assert start(recipe, undisturbed, world=2).wait() == 0
    command = start(recipe, tmp_path, world=2)
    command.wait_for(lambda: len(log(tmp_path / "run", stage="images")) >= 2)
    os.kill(command.processes[1].pid, signal.SIGTERM)
    command.wait()
    assert [p.exitcode for p in command.processes] == [75, 75], command.err
    assert command.err.count("run the same command to resume") == 1
    finish(recipe, tmp_path, undisturbed / "run", world=2)


def test_two_commands_in_one_folder(tmp_path, recipe, undisturbed):
    first = start(recipe, tmp_path)
    first.wait_for(lambda: len(log(tmp_path / "run")) >= 1)
    second = start(recipe, tmp_path)
    assert second.wait() == 2
    assert second.err.startswith("vitwarm: error: another process is carrying out the run in")
    assert first.wait() == 0
    assert weights(tmp_path / "run") == weights(undisturbed)
    assert len(log(tmp_path / "run")) == WARMUP_STEPS + IMAGE_STEPS
