"""Controls: what each keeps of a tensor, what it destroys, and that the seed decides all of it."""

import numpy as np
import pytest
import timm
import torch

from vitwarm.errors import UserError
from vitwarm.transfer import perturb
from vitwarm.trunk import trunk_facts

DEPTH, HEADS, WIDTH = 2, 3, 96


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    for i, p in enumerate(vit.parameters()):
        p.data = torch.randn_like(p) * (1 + i) + i
    return {n: t for n, t in vit.state_dict().items() if n.startswith(("blocks.", "norm."))}


def under(source, seed=0, **controls):
    return perturb(source, controls, depth=DEPTH, heads=HEADS, seed=seed)


def head_pieces(tensor):
    """q, k, v of each head by hand."""
    return tensor.reshape(3, HEADS, WIDTH // HEADS, -1).flatten(2).flatten(0, 1)


def test_a_shuffle_keeps_the_values_of_each_tensor_and_head_and_nothing_of_their_order(source):
    made = under(source, trunk="shuffle")
    for name, tensor in source.items():
        assert made[name].shape == tensor.shape and not torch.equal(made[name], tensor)
        before, after = (t.flatten()[None] for t in (tensor, made[name]))
        if ".qkv." in name:
            before, after = head_pieces(tensor), head_pieces(made[name])
        assert torch.equal(before.sort(-1).values, after.sort(-1).values), name
    big = source["blocks.0.mlp.fc1.weight"]
    assert abs(np.corrcoef(big.flatten(), made["blocks.0.mlp.fc1.weight"].flatten())[0, 1]) < 0.03


def test_heads_of_attentions_side_by_side_are_perturbed_one_by_one():
    vit = timm.create_model("vit_small_patch16_18x2_224", img_size=32, embed_dim=48, num_heads=3, depth=2)
    name = "blocks.0.attns.0.attn.qkv.weight"
    tensor = torch.arange(3 * 48 * 48.0).reshape(3 * 48, 48)
    facts = trunk_facts(vit)
    made = perturb({name: tensor}, {"attention": "shuffle"}, depth=2, heads=facts["heads"], seed=0)[name]
    for before, after in zip(tensor.split(16), made.split(16), strict=True):
        assert not torch.equal(before, after) and torch.equal(before.flatten(), after.flatten().sort().values)


def test_gaussian_keeps_mean_and_deviation_of_each_head(source):
    made = under(source, trunk="gaussian")
    name = "blocks.1.attn.qkv.weight"
    pieces, wanted = head_pieces(made[name]), head_pieces(source[name])
    count = pieces.shape[1]
    assert ((pieces.mean(1) - wanted.mean(1)).abs() < 5 * wanted.std(1) / count**0.5).all()
    torch.testing.assert_close(pieces.std(1), wanted.std(1), rtol=5 / (2 * count) ** 0.5, atol=0)
    kurtosis = ((pieces - pieces.mean()) / pieces.std()).pow(4).mean().item()
    assert kurtosis == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_noise_is_relative_to_the_size_of_the_entries(source, sigma):
    made = under(source, mlp=f"noise:{sigma}")
    name = "blocks.0.mlp.fc2.weight"
    noise = made[name] - source[name]
    assert (noise.pow(2).mean() / source[name].pow(2).mean()).sqrt().item() == pytest.approx(sigma, rel=0.03)
    assert all(made[n] is t for n, t in source.items() if ".mlp." not in n)


def test_scaling(source):
    made = under(source, attention="scale:0.5")
    assert torch.equal(made["blocks.0.attn.qkv.weight"], 0.5 * source["blocks.0.attn.qkv.weight"])
    assert torch.equal(made["norm.weight"], source["norm.weight"])


def test_the_seed_and_the_name_decide(source):
    first, again, other = (
        under(source, trunk="shuffle"),
        under(source, trunk="shuffle"),
        under(source, 1, trunk="shuffle"),
    )
    alone = under({n: source[n] for n in reversed(source)}, attention="shuffle")
    name = "blocks.0.attn.proj.weight"
    assert torch.equal(first[name], again[name]) and torch.equal(first[name], alone[name])
    assert not torch.equal(first[name], other[name])


def test_keys_that_heads_share_are_perturbed_in_as_many_pieces_as_there_are():
    """8 heads of 4 channels, with 2 of keys and values: each piece keeps its own mean."""
    tensors = {f"blocks.0.attn.{letter}_proj.weight": torch.randn(rows, 5) for letter, rows in (("q", 32), ("k", 8))}
    tensors["blocks.0.attn.k_proj.weight"][:4] += 100
    made = perturb(tensors, {"attention": "shuffle"}, depth=1, heads=8, seed=0)
    own = [t["blocks.0.attn.k_proj.weight"].reshape(2, 20) for t in (made, tensors)]
    assert not torch.equal(*own)
    assert torch.equal(*(pieces.sort().values for pieces in own))
    rows = made["blocks.0.attn.k_proj.weight"]
    assert not torch.equal(rows[0].sort().values, tensors["blocks.0.attn.k_proj.weight"][0].sort().values)


def test_heads_and_layers_narrow_a_control(source):
    made = perturb(source, {"heads=1:2": "scale:0"}, depth=DEPTH, heads=HEADS, seed=0)
    weight = made["blocks.1.attn.qkv.weight"].reshape(3, HEADS, WIDTH // HEADS, WIDTH)
    own = source["blocks.1.attn.qkv.weight"].reshape(3, HEADS, WIDTH // HEADS, WIDTH)
    assert not weight[:, 2].any() and torch.equal(weight[:, :2], own[:, :2])
    assert torch.equal(made["blocks.0.attn.qkv.weight"], source["blocks.0.attn.qkv.weight"])


def test_refusals(source):
    for controls, says in [
        ({"trunk": "shuffle", "mlp": "gaussian"}, "two controls meet in"),
        ({"head": "shuffle"}, "no such tensor"),
        ({"trunk": "blur"}, "write shuffle"),
        ({"heads=3": "shuffle"}, "the model has 3 heads"),
        ({"mlp": "scale:1e39"}, "becomes infinite; give a smaller number"),
        ({"attention": "noise:1e39"}, "becomes infinite; give a smaller number"),
    ]:
        with pytest.raises(UserError, match=says):
            perturb(source, controls, depth=DEPTH, heads=HEADS, seed=0)


def test_a_single_number_is_a_tensor_too():
    tensors = {"blocks.0.attn.lambda_a": torch.tensor(0.5), "blocks.1.attn.lambda_a": torch.tensor(-2.0)}
    assert under(tensors, attention="shuffle") == tensors
    assert under(tensors, attention="scale:0.5")["blocks.1.attn.lambda_a"] == -1
