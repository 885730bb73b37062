"""Frozen groups keep their weights to the bit; factors reach the optimiser; the rest trains as before."""

import pytest
import torch
from test_warm_start import model, state

from vitwarm.assembly import assemble
from vitwarm.config import TrainConfig
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.stages.images import ImagesStage
from vitwarm.training.param_groups import freeze, with_rates
from vitwarm.transfer import group_of
from vitwarm.transfer.groups import block_of
from vitwarm.trunk import build_decoder


def config(**train):
    c = load_recipe(["recipe=digits_default"])
    for name, value in train.items():
        setattr(c.train, name, value)
    return c


def one_step(c):
    """The raw model before and after a step of the image stage, and the optimiser's groups."""
    parts = assemble(c, 1)
    stage = parts.main
    assert isinstance(stage, ImagesStage)
    before = state(parts.model)
    groups = stage.parameter_groups()
    optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * group.get("lr_scale", 1.0)
    batch = next(stage.batches(0, 0, 1, 8))
    stage.losses(stage.model, batch, 0).loss.backward()
    optimizer.step()
    return parts.model, before, groups


def test_what_is_frozen_stays_and_the_rest_moves():
    vit, before, groups = one_step(config(freeze=["attention", "norm"]))
    for name, tensor in vit.state_dict().items():
        assert torch.equal(tensor, before[name]) == (group_of(name) in ("attention", "norm")), name
    trained = sum(len(g["params"]) for g in groups)
    assert trained == sum(group_of(n) not in ("attention", "norm") for n in before)


def test_layers_freeze():
    vit, before, _ = one_step(config(freeze=["layers=first"]))
    assert {block_of(n) for n, p in vit.named_parameters() if not p.requires_grad} == {0, 1}
    assert not torch.equal(vit.head.weight, before["head.weight"])


def test_a_factor_scales_the_first_step():
    """AdamW's first step without decay is lr x sign, so the factor shows in the size of the change."""
    c = config(lr_factors={"attention": 0.1, "layers=0": 0.5}, weight_decay=0.0)
    vit, before, groups = one_step(c)
    for name, tensor in vit.state_dict().items():
        factor = (0.1 if group_of(name) == "attention" else 1.0) * (0.5 if block_of(name) == 0 else 1.0)
        moved = (tensor - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-2 * factor, rel=2e-2), name
    everyone = [p for g in groups for p in g["params"]]
    assert len(everyone) == len(set(everyone)) == len(before)


def test_factors_multiply_layer_decay_and_keep_the_decay_of_each_group():
    plain, scaled = (one_step(config(layer_decay=0.5, lr_factors=f))[2] for f in ({}, {"mlp": 3.0}))
    assert {(g["weight_decay"], g["lr_scale"]) for g in plain} < {(g["weight_decay"], g["lr_scale"]) for g in scaled}
    assert max(g["lr_scale"] for g in scaled) > max(g["lr_scale"] for g in plain)


def test_refusals():
    vit = model(0)
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(vit, TrainConfig(freeze=["trunk", "embedding", "head"]))
    with pytest.raises(UserError, match="the model has 3 blocks"):
        with_rates([], vit, TrainConfig(lr_factors={"layers=3": 0.5}))
    tied = build_decoder("1_2_8", 11, 8, "x", seed=0, tied=True)
    with pytest.raises(UserError, match="train.freeze: the model has no head of its own"):
        freeze(tied, TrainConfig(freeze=["head"]))
    with pytest.raises(UserError, match="train.lr_factors: the model has no head of its own"):
        with_rates([], tied, TrainConfig(lr_factors={"mlp head": 0.5}))
    for override, says in [
        ("train.freeze=[heads=0]", "share their tensors"),
        ("train.freeze=[atention]", "unknown tensor group"),
        ("train.lr_factors={mlp: 0}", "number above 0"),
        ("train.lr_factors={x: 1}", "unknown tensor group"),
        ("transfer.controls={mlp: shuffle}", "no source to perturb"),
        ("transfer.sources={mlp: 3}", "expected a folder"),
    ]:
        with pytest.raises(UserError, match=says):
            load_recipe(["recipe=digits_default", override])
    with pytest.raises(UserError, match="takes the place of init_from"):
        load_recipe(["recipe=digits_default", "init_from=x", "transfer.sources.mlp=y"])
