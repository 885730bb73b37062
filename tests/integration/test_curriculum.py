"""A warm-up whose rows grow with mastery: exact after a kill, and the same on two processes."""

import os
import signal

import pytest
from harness import Command, log, weights, write_recipe

CURRICULUM = "warmup.rule={name: curriculum, rule: {name: dyck, k: 2}, threshold: 0.45}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(
        tmp_path_factory.mktemp("recipe"),
        model={"args": {"drop_path_rate": 0.0}},
        warmup={"budget": "24 steps", "lr": 5e-3, "eval_every": 2, "ema": None},
        images={"train": "", "val": ""},
        run={"checkpoint_every": 5, "device_batch": None},
    )


def start(recipe, scratch, **options):
    return Command([f"recipe={recipe}", CURRICULUM, f"run.dir={scratch / 'run'}"], scratch, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, recipe):
    scratch = tmp_path_factory.mktemp("whole")
    command = start(recipe, scratch)
    assert command.wait() == 0, command.err
    return scratch / "run"


def levels(folder):
    return [(e["step"], e["level"], e["chance"]) for e in log(folder, "eval")]


def test_levels_follow_the_accuracies_of_the_log(whole):
    evals = log(whole, "eval")
    level = 0
    for entry in evals:
        level = min(level + (entry["accuracy"] >= 0.45), 7)  # 2 + 2 * 7 brackets fill the 16 tokens
        assert entry["level"] == level
    assert level > 0 and len({e["level"] for e in evals}) < len(evals)  # some were mastered, some were not
    assert len({e["count"] for e in evals}) > 1  # the validation rows grow as well


@pytest.mark.parametrize("step", [6, 13, 19])
def test_killed_it_goes_on_at_its_level_with_the_same_rows(tmp_path, recipe, whole, step):
    command = start(recipe, tmp_path)
    command.wait_for(lambda: len(log(tmp_path / "run")) >= step)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    assert not (tmp_path / "run" / "result.json").exists()
    command = start(recipe, tmp_path)
    assert command.wait() == 0, command.err
    assert "resuming from" in command.out
    assert levels(tmp_path / "run") == levels(whole)
    assert [e["loss"] for e in log(tmp_path / "run")] == [e["loss"] for e in log(whole)]
    assert weights(tmp_path / "run") == weights(whole)


def test_two_processes_move_on_together(tmp_path, recipe, whole):
    command = start(recipe, tmp_path, world=2)
    assert command.wait() == 0, command.err
    assert levels(tmp_path / "run") == levels(whole)
    losses = [[e["loss"] for e in log(folder)] for folder in (tmp_path / "run", whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
