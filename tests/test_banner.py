"""What a run says before its first step."""

import re

import pytest
import torch

from vitwarm.assembly import assemble
from vitwarm.banner import Banner
from vitwarm.cost import estimate
from vitwarm.recipe import load_recipe, recipe_hash
from vitwarm.training.processes import Processes

SMALL = ["model.decoder.size=2_2_8", "warmup.global_batch=4", "warmup.budget=100 steps", "warmup.lr_warmup=0"]


class Two(Processes):
    """Two processes, of which the other one is not there."""

    def __init__(self, device: str):
        self.rank, self.world, self.device = 0, 2, torch.device(device)


def rows(banner: Banner) -> dict[str, str]:
    """Label -> text, as the terminal shows them."""
    return dict(line.split(maxsplit=1) for line in str(banner).splitlines())


def banner_of(config, at):
    experiment = assemble(config, at.world)
    return Banner.of(experiment, experiment.stages, [config.seed], "runs/x", at, "fresh weights")


def test_device_model_data_and_stages_are_said():
    config = load_recipe(["recipe=haystack_dyck", *SMALL, "algorithmic.budget=12 steps", "train.lr_warmup=0", "seed=7"])
    said = rows(banner_of(config, Two("cpu")))
    weights = sum(p.numel() for p in assemble(config, 1).model.parameters())
    assert said.pop("device").endswith(", 2 processes")
    assert said == {
        "recipe": f"haystack_dyck (hash {recipe_hash(config)}), seed 7",
        "folder": "runs/x",
        "model": f"decoder 2_2_8, {weights:,} parameters",
        "warmup": f"100 steps of 4 samples of {config.warmup.length - 1} tokens, fp32; the next token of dyck "
        f"(k {config.warmup.rule['k']}, p_open {config.warmup.rule['p_open']:g})",
        "algorithmic": f"12 steps of {config.train.global_batch:,} samples of 62 tokens, fp32; haystack of size 30, "
        "computed as it goes",
        "time": "said after the first 20 steps of warmup",  # the other one is over before
        "start": "fresh weights",
    }


def test_the_time_is_that_of_the_estimate_where_the_device_is_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    config = load_recipe(["recipe=lm_set_12_12_768", "model.decoder.size=2_4_64", "warmup.budget=100M steps"])
    said = rows(banner_of(config, Two("cuda")))
    hours = estimate(config, gpus=2, device="h100").lines[0].seconds / 3600
    assert hours > 1 and "time" not in said
    found = re.search(r"about (?:\d+ days? )?(\d+) h (\d+) min if the device reaches 40 % of its peak", said["warmup"])
    assert int(found[1]) + int(found[2]) / 60 == pytest.approx(hours, abs=0.02)
