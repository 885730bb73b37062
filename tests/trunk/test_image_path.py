"""The image path of every family against timm's own forward, bit for bit."""

import pytest
import timm
import torch
from families import FAMILIES, tiny

from vitwarm.trunk import ImageModel, family_of

DROPS = {"drop_rate": 0.1, "pos_drop_rate": 0.1, "patch_drop_rate": 0.5, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1,
         "drop_path_rate": 0.3}  # fmt: skip


def drops(label):
    """What the family has of all dropouts."""
    lacks = {"BEiT": {"patch_drop_rate"}, "relpos": {"patch_drop_rate", "pos_drop_rate"}}
    missing = next((names for family, names in lacks.items() if label.startswith(family)), set())
    return {name: rate for name, rate in DROPS.items() if name not in missing}


def images(model):
    rows, columns = family_of(model).input_size
    return torch.randn(3, 3, rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("label", FAMILIES)
def test_eval_logits_are_timms_own(label):
    model = tiny(label).eval()
    x = images(model)
    expected = model(x)
    assert expected.std() > 1e-3  # not a head of zeros
    assert torch.equal(ImageModel(model).eval()(x), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("label", FAMILIES)
def test_train_logits_and_gradients_are_timms_own_under_every_dropout(label, checkpointing):
    """Same draws of dropout, patch dropout and stochastic depth, and the same again when blocks are recomputed."""
    model = tiny(label, **drops(label)).train()
    x = images(model)

    def run(forward):
        model.zero_grad()
        torch.manual_seed(5)
        logits = forward(x)
        logits.square().sum().backward()
        return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, expected_grads = run(model)
    again, _ = run(lambda x: model(x) + torch.rand(()) * 0)
    assert torch.equal(expected, again)  # the comparison below rests on this
    logits, grads = run(ImageModel(model, grad_checkpointing=checkpointing).train())
    assert torch.equal(logits, expected)
    assert grads.keys() == expected_grads.keys()
    assert all(torch.equal(grads[n], expected_grads[n]) for n in grads)
    model.eval()
    assert not torch.equal(model(x), expected)  # the dropouts did something


@pytest.mark.parametrize("label", ["token", "rope mixed"])
def test_a_block_is_recomputed_only_when_gradients_are_wanted(label):
    model = tiny(label)
    calls = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    image_model = ImageModel(model, grad_checkpointing=True)
    image_model(images(model)).sum().backward()
    assert len(calls) == 2 * len(model.blocks)
    calls.clear()
    with torch.inference_mode():
        logits = image_model.eval()(images(model))
    assert len(calls) == len(model.blocks)
    assert torch.equal(logits, model.eval()(images(model)))


def test_dynamic_size_takes_other_images():
    model = tiny("dynamic size").eval()
    x = torch.randn(2, 3, 48, 64)
    assert torch.equal(ImageModel(model).eval()(x), model(x))


def test_tensor_names_are_timms_behind_one_prefix():
    model = tiny("token")
    assert list(ImageModel(model).state_dict()) == [f"vit.{n}" for n in model.state_dict()]


def test_grid_is_rows_then_columns():
    assert family_of(tiny("token")).grid == (2, 2)
    assert family_of(timm.create_model("test_vit", img_size=(32, 64))).grid == (2, 4)
