"""A wsd run of another length goes on from a kept checkpoint of a longer one as if it had been alone from the start."""

import json

import pytest
import torch
from harness import write_recipe
from safetensors.torch import load_file

from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.run import run

TRUNK_STEP = 10 + 3  # of the warm-up, of the images


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def config_of(tmp_path):
    wsd = {"schedule": "wsd", "cooldown": "2 steps", "lr_warmup": "1 steps"}
    recipe = write_recipe(tmp_path, train=wsd, run={"checkpoint_every": 100, "keep_last": 1})

    def make(name: str, *overrides: str):
        return load_recipe([f"recipe={recipe}", f"run.dir={tmp_path / name}", *overrides])

    return make


@pytest.fixture
def trunk(tmp_path, config_of):
    run(config_of("trunk", f"run.keep_at=[{TRUNK_STEP}]"))
    return tmp_path / "trunk/checkpoints" / f"step-{TRUNK_STEP:08d}"


def log(folder, event):
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(e["stage"], e["step"], e["loss"]) for e in entries if e["event"] == event]


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_a_branch_is_the_run_it_would_have_been_alone(tmp_path, config_of, schedule):
    """Off the steady part of wsd; off the end of the warm-up under any schedule."""
    step = TRUNK_STEP if schedule == "wsd" else 10
    own = [f"train.schedule={schedule}", "train.lr_warmup=20%"] if schedule == "cosine" else []
    run(config_of("trunk", f"run.keep_at=[{step}]", *own))
    trunk = tmp_path / f"trunk/checkpoints/step-{step:08d}"
    own.append("images.epochs=0.11")  # 5 steps, of which 2 cool down under wsd
    alone = run(config_of("alone", *own))
    branch = run(config_of("branch", *own, f"resume_from={trunk}"))
    assert branch["stages"]["images"]["steps"] == 5
    assert branch["recipe_hash"] == alone["recipe_hash"]
    assert branch["metrics"] == alone["metrics"]
    found, expected = (load_file(tmp_path / name / "export/model.safetensors") for name in ("branch", "alone"))
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    for event in ("train", "eval"):
        assert log(tmp_path / "branch", event) == log(tmp_path / "alone", event)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["images.epochs=0.06"], "is steady for 1 steps only"),  # 3 steps
        (["images.epochs=0.11", "train.lr=1e-4"], "in which train.lr was "),
        (["images.epochs=0.11", "train.schedule=cosine"], 'in which train.schedule was "wsd", now "cosine"'),
        (["images.epochs=0.11", "seed=1"], "in which seed was 0, now 1"),
    ],
)
def test_what_cannot_branch_is_refused(tmp_path, trunk, config_of, overrides, why):
    with pytest.raises(UserError, match=why):
        run(config_of("branch", f"resume_from={trunk}", *overrides))
    assert not (tmp_path / "branch/checkpoints").exists()


def test_a_schedule_that_has_begun_to_fall_is_no_trunk(tmp_path, config_of):
    run(config_of("trunk", "run.keep_at=[18]"))  # the first step of the cooldown
    trunk = tmp_path / "trunk/checkpoints/step-00000018"
    with pytest.raises(UserError, match="steady part of train.schedule=wsd"):
        run(config_of("branch", f"resume_from={trunk}", "images.epochs=0.4"))


def test_a_schedule_in_shares_is_no_trunk(config_of, tmp_path):
    run(config_of("trunk", f"run.keep_at=[{TRUNK_STEP}]", "train.lr_warmup=20%"))
    trunk = tmp_path / "trunk/checkpoints" / f"step-{TRUNK_STEP:08d}"
    with pytest.raises(UserError, match="train.lr_warmup must not be a share"):
        run(config_of("branch", f"resume_from={trunk}", "images.epochs=0.11", "train.lr_warmup=20%"))
