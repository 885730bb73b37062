"""Selecting from a larger trunk and expanding a core: the written formulas, and what the results compute."""

import sys
from functools import partial

import numpy as np
import pytest
import timm
import torch
from test_warm_start import model, state
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import ParallelScalingBlock

from vitwarm.errors import UserError
from vitwarm.transfer import group_of, resize, transfer
from vitwarm.transfer.expand import every
from vitwarm.trunk import Trunk, build_decoder

CORE = {"embed_dim": 48, "depth": 3, "num_heads": 3}


def noiseless(monkeypatch):
    monkeypatch.setattr(sys.modules["vitwarm.transfer.expand"], "NOISE", 0.0)


# Weight selection


def test_every_takes_a_stride_where_it_divides_and_spreads_where_it_does_not():
    assert every(8, 4).tolist() == [0, 2, 4, 6] and every(6, 6).tolist() == list(range(6))
    assert every(7, 3).tolist() == [0, 3, 6] and every(10, 4).tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("width", [24, 36])
def test_selection_is_the_written_formula(width):
    source, target = model(0, depth=4), model(1, embed_dim=width, depth=2, num_heads=3)
    made = resize(state(source), target, "select", heads=None, seed=0)
    taken, hidden = every(48, width), every(192, 4 * width)
    for block in range(2):
        own = {
            n.removeprefix(f"blocks.{block}."): t.numpy() for n, t in state(source).items() if f"blocks.{block}." in n
        }
        got = {
            n.removeprefix(f"blocks.{block}."): t.numpy() for n, t in made.items() if n.startswith(f"blocks.{block}.")
        }
        qkv = own["attn.qkv.weight"].reshape(3, 48, 48)[:, taken][:, :, taken].reshape(3 * width, width)
        np.testing.assert_array_equal(got["attn.qkv.weight"], qkv)
        np.testing.assert_array_equal(got["mlp.fc1.weight"], own["mlp.fc1.weight"][np.ix_(hidden, taken)])
        np.testing.assert_array_equal(got["mlp.fc2.weight"], own["mlp.fc2.weight"][np.ix_(taken, hidden)])
        np.testing.assert_array_equal(got["norm2.weight"], own["norm2.weight"][taken])
    report = transfer(target, made, source="it")
    assert set(report.copied) == {n for n in state(target) if group_of(n) in ("attention", "mlp", "norm")}


def test_selecting_from_a_smaller_trunk_is_refused():
    with pytest.raises(UserError, match="takes a part of larger weights"):
        resize(state(model(0)), model(1, embed_dim=96), "select", heads=None, seed=0)
    with pytest.raises(UserError, match="too few to take"):
        resize(state(model(0)), model(1, depth=4), "select", heads=None, seed=0)


def test_selection_does_not_mix_what_a_tensor_stacks():
    """Each piece is selected alone, where widths do not divide too: halves of a gated MLP, and of parallel blocks."""
    gated = {"mlp_layer": SwiGLUPacked, "mlp_ratio": 3}
    parallel = {"block_fn": partial(ParallelScalingBlock, fuse_out_proj=True), "qkv_bias": True}
    for args in (gated, parallel):
        source, target = model(0, embed_dim=60, num_heads=3, **args), model(1, embed_dim=42, num_heads=3, **args)
        own, got = state(source), resize(state(source), target, "select", heads=None, seed=0)
        taken = torch.from_numpy(every(60, 42))
        if args is gated:
            units, few = own["blocks.1.mlp.fc2.weight"].shape[1], target.blocks[1].mlp.fc2.in_features
            rows = torch.from_numpy(every(units, few))
            assert torch.equal(got["blocks.1.mlp.fc2.weight"], own["blocks.1.mlp.fc2.weight"][taken][:, rows])
            for name in ("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias"):
                for old, new in zip(own[name].chunk(2), got[name].chunk(2), strict=True):
                    assert torch.equal(new, old[rows][:, taken] if old.ndim == 2 else old[rows])
        else:
            rows = torch.from_numpy(every(240, 168))
            for name in ("blocks.1.in_proj.weight", "blocks.1.in_proj.bias"):
                old, new = own[name].split([240, 60, 60, 60]), got[name].split([168, 42, 42, 42])
                for piece, (a, b) in zip((rows, taken, taken, taken), zip(old, new, strict=True), strict=True):
                    assert torch.equal(b, a[piece][:, taken] if a.ndim == 2 else a[piece])
            old = own["blocks.1.out_proj.weight"].split([60, 240], 1)
            new = got["blocks.1.out_proj.weight"].split([42, 168], 1)
            assert torch.equal(new[0], old[0][taken][:, taken]) and torch.equal(new[1], old[1][taken][:, rows])
            assert torch.equal(got["blocks.1.out_proj.bias"], own["blocks.1.out_proj.bias"][taken])
        assert got.keys() == {n for n in state(target) if group_of(n) not in ("embedding", "head")}


@pytest.mark.parametrize(
    ("name", "args", "kept"),
    [
        ("vit_small_patch16_18x2_224", {"depth": 2}, "blocks.0.attns.0"),
        ("beit_base_patch16_224", {"depth": 2}, "blocks.0.attn.q_bias"),
    ],
)
def test_selecting_for_blocks_that_store_their_weights_otherwise_is_refused(name, args, kept):
    target = timm.create_model(name, img_size=32, embed_dim=48, num_heads=3, **args)
    with pytest.raises(UserError, match=f"keeps {kept}.*, which the source has not, or in another form"):
        resize(state(model(0, embed_dim=96, depth=4)), target, "select", heads=None, seed=0)


# Compact core


@pytest.mark.parametrize("depth", [3, 4, 7])
def test_at_its_own_width_a_core_is_copied_to_first_middle_and_last(depth):
    core, target = model(0, **CORE), model(1, **CORE | {"depth": depth})
    made = resize(state(core), target, "expand", heads=3, seed=0)
    for i in range(depth):
        origin = 0 if i == 0 else 2 if i == depth - 1 else 1
        for name, tensor in core.blocks[origin].state_dict().items():
            assert torch.equal(made[f"blocks.{i}.{name}"], tensor), (i, name)
    assert torch.equal(made["norm.weight"], core.norm.weight)


@pytest.mark.parametrize("copies", [2, 3])
@torch.no_grad()
def test_copies_side_by_side_compute_what_each_does(copies):
    core, target = model(0, **CORE).eval(), model(1, embed_dim=48 * copies, depth=3, num_heads=3 * copies).eval()
    target.load_state_dict(state(target) | resize(state(core), target, "expand", heads=3, seed=0), strict=True)
    x = torch.randn(copies, 2, 7, 48)
    for own, block in zip(target.blocks, core.blocks, strict=True):
        for name in ("attn", "mlp"):
            each = torch.cat([block.get_submodule(name)(one) for one in x], -1)
            torch.testing.assert_close(own.get_submodule(name)(torch.cat([*x], -1)), each, rtol=1e-4, atol=1e-5)
    first, second = target.blocks[1].mlp.fc1.weight[:, :48], target.blocks[1].mlp.fc1.weight[:, 48:96]
    assert not first[192:].any() and not second[:192].any() and torch.equal(first[:192], second[192:384])


def test_a_part_of_a_copy_reads_and_writes_as_much():
    """80 channels are a copy and two thirds of one, whose two heads and hidden units read what is there."""
    core, target = model(0, **CORE), model(1, embed_dim=80, depth=3, num_heads=5)
    made = resize(state(core), target, "expand", heads=3, seed=0)
    fc1, own = made["blocks.0.mlp.fc1.weight"], state(core)["blocks.0.mlp.fc1.weight"]
    assert torch.equal(fc1[:192, :48], own) and not fc1[:192, 48:].any() and not fc1[192:, :48].any()
    torch.testing.assert_close(fc1[192:, 48:], own[:128, :32] * 1.5**0.5)
    qkv, theirs = made["blocks.0.attn.qkv.weight"][:80], state(core)["blocks.0.attn.qkv.weight"][:32, :32]
    torch.testing.assert_close(qkv[48:, 48:], theirs * 1.5**0.5)
    torch.testing.assert_close(
        made["blocks.0.attn.proj.weight"][48:, 48:], state(core)["blocks.0.attn.proj.weight"][:32, :32] * 1.5**0.5
    )


@pytest.mark.parametrize("width", [48, 96, 144])
def test_what_a_block_adds_to_independent_tokens_is_as_large_at_every_width(width):
    core, target = model(0, **CORE), model(1, embed_dim=width, depth=3, num_heads=width // 16)
    target.load_state_dict(state(target) | resize(state(core), target, "expand", heads=3, seed=0))
    sizes = []
    for vit in (core, target):
        x = torch.randn(8, 20, vit.embed_dim)
        with torch.no_grad():
            sizes.append([(part(norm(x)).square().mean().sqrt()).item() for b in vit.blocks
                          for part, norm in ((b.attn, b.norm1), (b.mlp, b.norm2))])  # fmt: skip
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.15)


@pytest.mark.parametrize(("width", "heads"), [(48, 1), (96, 3), (96, 2), (144, 3)])
def test_logits_of_a_wider_head_are_the_mean_of_those_of_its_copies(width, heads, monkeypatch):
    """The first head's logit between x and y, by hand: channels come in whole copies of 16, each on its own part."""
    noiseless(monkeypatch)
    core, target = model(0, **CORE), model(1, embed_dim=width, depth=3, num_heads=heads)
    made = resize(state(core), target, "expand", heads=3, seed=0)
    channels, x, y = width // heads, torch.randn(width), torch.randn(width)
    own_q, own_k = (core.blocks[0].attn.qkv.weight.detach()[i * 48 : i * 48 + 16] for i in (0, 1))
    q, k = (made["blocks.0.attn.qkv.weight"][i * width : i * width + channels] for i in (0, 1))
    each = [(own_q @ one) @ (own_k @ other) for one, other in zip(x.reshape(-1, 48), y.reshape(-1, 48), strict=True)]
    expected = np.mean([each[copy % len(each)].item() for copy in range(channels // 16)]) / 16**0.5
    assert ((q @ x) @ (k @ y) / channels**0.5).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_units_that_are_repeated_do_not_stay_equal():
    core = model(0, **CORE)
    target = model(1, embed_dim=48, depth=3, num_heads=3, mlp_ratio=8)  # twice the hidden units on the same channels
    made = [resize(state(core), target, "expand", heads=3, seed=s)["blocks.0.mlp.fc1.weight"] for s in (0, 0, 1)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    first, copy = made[0][:192], made[0][192:]
    ratio = ((first - copy).square().mean() / (2 * first.square().mean())).sqrt().item()
    assert ratio == pytest.approx(0.1, rel=0.1)
    apart = model(1, embed_dim=96, depth=3, num_heads=6, mlp_ratio=8)
    fc1 = resize(state(core), apart, "expand", heads=3, seed=0)["blocks.0.mlp.fc1.weight"]
    assert not fc1[:192, 48:].any() and not torch.equal(fc1[:192, :48], fc1[384:576, :48])  # noise within a copy alone
    wider = resize(state(core), model(1, embed_dim=96, depth=3, num_heads=6), "expand", heads=3, seed=0)
    again = resize(state(core), model(1, embed_dim=96, depth=3, num_heads=6), "expand", heads=3, seed=1)
    assert all(torch.equal(tensor, again[name]) for name, tensor in wider.items())  # no two equal units, no noise


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_clip_224"])
def test_any_plain_vit_takes_a_core(name):
    target = model(1, name, embed_dim=96, depth=4, num_heads=6)
    made = resize(state(model(0, **CORE)), target, "expand", heads=3, seed=0)
    report = transfer(target, made, source="it")
    assert not report.refused and all(
        ".ls" in n or group_of(n) in ("embedding", "head") or "norm_pre" in n for n in report.fresh
    )
    assert Trunk(target)(torch.randn(1, 4, 96)).isfinite().all()


def test_what_a_core_does_not_fit():
    core = state(model(0, **CORE))
    eva_core = model(1, "eva02_base_patch14_224", img_size=28, patch_size=7)
    for tensors, target, heads, says in [
        (core, model(1, embed_dim=24), 3, "it cannot shrink"),
        (core, model(1, depth=2), 3, "three blocks or more"),
        (state(eva_core), model(1), 3, "has no place for attn.k_proj.weight"),
        (core, model(1), None, "with the heads"),
        (state(model(0, depth=4)), model(1), 3, "takes a core: three blocks"),
    ]:
        with pytest.raises(UserError, match=says):
            resize(tensors, target, "expand", heads=heads, seed=0)


def test_queries_and_keys_that_stand_apart_shrink_like_fused_ones(monkeypatch):
    noiseless(monkeypatch)
    eva = {"img_size": 32, "patch_size": 8, "depth": 3, "qkv_fused": False, "pretrained": False}
    core = timm.create_model("eva02_tiny_patch14_224", embed_dim=48, num_heads=3, **eva)
    wide = timm.create_model("eva02_tiny_patch14_224", embed_dim=96, num_heads=3, **eva)
    own = core.state_dict()
    for part in "qkv":
        own[f"blocks.0.attn.{part}_proj.weight"] = own["blocks.0.attn.q_proj.weight"]
    made = resize(own, wide, "expand", heads=3, seed=0)
    q, k, v = (made[f"blocks.0.attn.{part}_proj.weight"] for part in "qkv")
    torch.testing.assert_close(q, v * 0.5**0.25)
    assert torch.equal(q, k)


def test_decoders_take_a_core_of_decoders():
    core, target = build_decoder("3_2_16", 5, 4, "x", seed=0), build_decoder("5_4_32", 5, 4, "x", seed=1)
    made = resize(core.state_dict(), target, "expand", heads=2, seed=0)
    assert made["blocks.3.attn.qkv.weight"].shape == (96, 32)


def test_timm_agrees_that_the_shapes_fit():
    vit = timm.create_model("vit_small_patch16_224", img_size=32, patch_size=8, depth=4)
    core = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3)
    made = resize(core.state_dict(), vit, "expand", heads=3, seed=0)
    missing, unexpected = vit.load_state_dict(made, strict=False)
    assert not unexpected
    assert all(group_of(n) in ("embedding", "head") for n in missing)


def test_what_a_selection_has_no_place_for_is_named():
    source = model(0, embed_dim=96, depth=4, init_values=0.1)
    report = transfer(target := model(1), resize(state(source), target, "select", heads=3, seed=0), source="a test")
    assert set(report.unused) == {"blocks.*.ls1.gamma", "blocks.*.ls2.gamma"}  # the fourth block is no loss
