"""A run of a decoder, killed in either stage, ends with the same bits; two processes see what one sees."""

import os
import signal

import pytest
import yaml
from harness import Command, log, weights

TINY = {
    "description": "tiny",
    "model": {"decoder": {"size": "2_2_8", "dropout": 0.1}},
    "warmup": {
        "objective": "next_token",
        "rule": {"name": "set", "symbols": 9},
        "length": 14,
        "budget": "10 steps",
        "global_batch": 16,
        "lr_warmup": "2 steps",
        "ema": 0.9,
        "val_rows": 9,
    },
    "algorithmic": {"task": "addition", "size": 2, "budget": "10 steps", "val_rows": 9, "eval_every": 4},
    "train": {"global_batch": 16, "lr_warmup": "2 steps", "clip_grad": 1.0},
    "run": {"log_every": 1, "checkpoint_every": 4, "device_batch": 4},
}
STATES = {"objective": "next_state", "rule": {"name": "eca", "width": 8}, "length": 5}


@pytest.fixture(scope="module", params=["next_token", "next_state"])
def recipe(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tiny.yaml"
    warmup = {**TINY["warmup"], **(STATES if request.param == "next_state" else {})}
    path.write_text(yaml.safe_dump({**TINY, "warmup": warmup}))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, recipe):
    scratch = tmp_path_factory.mktemp("undisturbed")
    command = Command([f"recipe={recipe}", f"run.dir={scratch / 'run'}"], scratch)
    assert command.wait() == 0, command.err
    return scratch / "run"


@pytest.mark.parametrize("stage", ["warmup", "algorithmic"])
def test_killed_and_started_again(tmp_path, recipe, undisturbed, stage):
    arguments = [f"recipe={recipe}", f"run.dir={tmp_path / 'run'}"]
    slow = (
        "import time; from torch.optim import AdamW; s = AdamW.step; AdamW.step = lambda *a: (time.sleep(.05), s(*a))"
    )
    command = Command(arguments, tmp_path, before=slow)
    command.wait_for(lambda: len(log(tmp_path / "run", stage=stage)) >= 6)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert Command(arguments, tmp_path).wait() == 0
    assert weights(tmp_path / "run") == weights(undisturbed)
    losses = [[(e["stage"], e["step"], e["loss"]) for e in log(f)] for f in (tmp_path / "run", undisturbed)]
    assert losses[0] == losses[1] and len(losses[0]) == 20


def test_one_process_or_two(tmp_path, recipe):
    runs = []
    for world in (1, 2):
        runs.append(tmp_path / str(world))
        still = ["model.decoder.dropout=0.0"]  # its draws are each process's own
        command = Command([f"recipe={recipe}", f"run.dir={runs[-1]}", *still], tmp_path, world=world)
        assert command.wait() == 0, command.err
    for stage in ("warmup", "algorithmic"):
        for event in ("train", "eval"):
            one, two = (log(run, event, stage) for run in runs)
            assert len(one) == len(two) > 0
            for a, b in zip(one, two, strict=True):
                assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
                assert a.get("count") == b.get("count")
                assert b["accuracy"] == pytest.approx(a["accuracy"], abs=1e-6)
    losses = [e["loss"] for e in log(runs[0], stage="algorithmic")]
    assert min(losses) < losses[0]
