"""The estimate of a decoder's run is what the run then takes."""

import pytest

from vitwarm.cost import estimate
from vitwarm.recipe import load_recipe
from vitwarm.run import run

TINY = ["model.decoder.size=2_2_8", "warmup.budget=3 steps", "warmup.lr_warmup=1 steps", "warmup.global_batch=4"]
TASK = ["algorithmic.budget=5 steps", "train.global_batch=4", "train.lr_warmup=1 steps", "algorithmic.val_rows=3"]


@pytest.mark.parametrize("recipe", ["addition_set", "addition_eca", "lm_set_12_12_768"])
def test_samples_tokens_and_flops_are_those_of_the_run(tmp_path, recipe):
    overrides = [*TINY, *(TASK if recipe != "lm_set_12_12_768" else ["warmup.lr_warmup=0", "warmup.val_rows=3"])]
    config = load_recipe([f"recipe={recipe}", *overrides, f"run.dir={tmp_path / 'run'}"])
    lines = {line.name: line for line in estimate(config, gpus=1, device="h100").lines}
    stages = run(config)["stages"]
    assert set(stages) == set(lines) - {"evaluation"}
    for name, stage in stages.items():
        line = lines[name]
        assert (line.steps, line.samples, line.tokens) == (stage["steps"], stage["samples"], stage["tokens"])
        assert line.flops == pytest.approx(stage["flops"], rel=0.1)  # how many positions are predicted differs by row


def test_an_initialisation_before_a_warm_up_costs_nothing():
    default, conditioned = (
        estimate(load_recipe(["recipe=digits_proc", f"model.init={init}"]), gpus=1, device="h100").lines
        for init in ("default", "conditioned")
    )
    assert default == conditioned
