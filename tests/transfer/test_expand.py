"""A core in models that store a block in another way than a plain one: what they compute, and what stays fresh."""

import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from families import FAMILIES
from test_warm_start import SMALL, model, state
from timm.models.vitamin import GeGluMlp
from torch import nn

import vitwarm
from vitwarm.errors import UserError
from vitwarm.transfer import canonical, group_of, read_source, resize, transfer
from vitwarm.transfer.expand import every
from vitwarm.transfer.perturb import perturb
from vitwarm.trunk import Trunk

CORE = {"embed_dim": 48, "depth": 3, "num_heads": 3}
EVA = {"img_size": 32, "patch_size": 8, "depth": 4, "num_classes": 5}


@pytest.fixture
def noiseless(monkeypatch):
    monkeypatch.setattr(sys.modules["vitwarm.transfer.expand"], "NOISE", 0.0)


def built(name, **more):
    torch.manual_seed(1)
    return timm.create_model(name, **{**SMALL, "num_classes": 5, **more}).eval()


def receive(target, core, heads=3):
    """The target with the core in it, its layer scales at 1, and the report."""
    report = transfer(target, resize(state(core), target, "expand", heads=heads, seed=0), source="it")
    assert not report.refused
    with torch.no_grad():
        for name, tensor in target.named_parameters():
            if name.endswith(("gamma", "gamma_1", "gamma_2")):
                tensor.fill_(1)
    return target, report


def branches(block, x):
    """What attention and MLP of a plain block say about the same tokens."""
    return block.attn(block.norm1(x)), block.mlp(block.norm2(x))


# What is the same


@pytest.mark.parametrize(("name", "apart"), [
    ("eva02_tiny_patch14_224", {"qkv_fused": False}),
    ("eva02_small_patch14_224", {"swiglu_align_to": 8}),  # the gate's matrix apart from the values'
])  # fmt: skip
def test_parts_that_stand_apart_compute_what_stacked_ones_do(name, apart):
    """Also where tiles carry noise: it is that of the stacked tensor."""
    size = EVA | {"embed_dim": 96, "num_heads": 6, "mlp_ratio": 4}
    stacked, parted = built(name, **size), built(name, **size | apart)
    core = model(0, **CORE)
    own = state(stacked)
    for key, tensor in parted.state_dict().items():  # what is fresh is equal in both
        if key in own:
            tensor.copy_(own[key])
        elif "fc1_" in key:
            half = own[key.replace("fc1_g", "fc1").replace("fc1_x", "fc1")].chunk(2)
            tensor.copy_(half["gx".index(key.split(".")[-2][-1])])
    (stacked, _), (parted, _) = receive(stacked, core), receive(parted, core)
    assert set(parted.state_dict()) != set(own)
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(parted(image), stacked(image), rtol=1e-5, atol=1e-5)
    x = torch.randn(2, 9, 96)
    torch.testing.assert_close(Trunk(parted)(x, is_causal=True), Trunk(stacked)(x, is_causal=True))


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_patch16_dinov3_qkvb"])
def test_no_bias_of_keys_changes_nothing_on_symbols(name):
    """It adds the same to all logits of a query."""
    core = model(0, **CORE)
    target, report = receive(built(name, **CORE), core)
    x = torch.randn(2, 9, 48)
    with torch.no_grad():
        target.get_submodule("norm" if isinstance(target.fc_norm, nn.Identity) else "fc_norm").eps = core.norm.eps
        torch.testing.assert_close(Trunk(target)(x), Trunk(core.eval())(x), rtol=1e-4, atol=1e-5)
    assert report.unused == {"blocks.*.attn.k.bias": "the model has no such tensor"}


@torch.no_grad()
def test_a_block_with_one_norm_computes_both_branches():
    core = model(0, **CORE).eval()
    target, _ = receive(built("vit_pwee_patch16_reg1_gap_256", **CORE, mlp_ratio=4), core)
    x = torch.randn(2, 9, 48)
    for own, block in zip(target.blocks, core.blocks, strict=True):
        torch.testing.assert_close(own(x), x + sum(branches(block, x)), rtol=1e-4, atol=1e-5)


def test_one_projection_out_of_both_branches_is_both_projections():
    core = model(0, **CORE)
    target, report = receive(built("vit_dpwee_patch16_reg1_gap_256", **CORE, mlp_ratio=4), core)
    block, own = core.blocks[1], target.blocks[1]
    assert torch.equal(own.out_proj.weight, torch.cat([block.attn.proj.weight, block.mlp.fc2.weight], 1))
    assert torch.equal(own.out_proj.bias, block.attn.proj.bias + block.mlp.fc2.bias)
    assert {"blocks.0.lambda_q1", "blocks.2.sub_norm.weight"} <= set(report.reasons)


@torch.no_grad()
def test_blocks_side_by_side_say_together_what_one_says(noiseless):
    core = model(0, **CORE).eval()
    target, _ = receive(built("vit_small_patch16_18x2_224", **CORE), core)
    x = torch.randn(2, 9, 48)
    for own, block in zip(target.blocks, core.blocks, strict=True):
        torch.testing.assert_close(own(x), block(x), rtol=1e-4, atol=1e-5)


def test_norms_behind_attention_and_mlp_stay_the_model_s():
    """Those of the core stand in front: they go into the matrices, and are no norms of outputs."""
    core = model(0, **CORE)
    target, report = receive(built("vit_relpos_small_patch16_rpn_224", **CORE), core)
    block, own = core.blocks[1], target.blocks[1]
    torch.testing.assert_close(own.attn.qkv.weight, block.attn.qkv.weight * block.norm1.weight)
    torch.testing.assert_close(own.mlp.fc1.bias, block.mlp.fc1.bias + block.mlp.fc1.weight @ block.norm2.bias)
    torch.testing.assert_close(own.mlp.fc1.weight, block.mlp.fc1.weight * block.norm2.weight)
    assert {"blocks.1.norm1.weight", "blocks.1.norm2.bias"} <= set(
        report.reasons
    ) and "blocks.1.norm1.weight" in report.fresh


def test_blocks_side_by_side_do_not_stay_equal():
    first, second = receive(built("vit_small_patch16_18x2_224", **CORE), model(0, **CORE))[0].blocks[0].attns
    assert not torch.equal(first.attn.qkv.weight, second.attn.qkv.weight)
    torch.testing.assert_close(first.attn.qkv.weight, second.attn.qkv.weight, rtol=0, atol=0.1)


@torch.no_grad()
def test_queries_that_share_keys_attend_as_one_head_of_the_core_does(noiseless):
    if not timm.is_model("vit_base_patch16_sapiens2"):
        pytest.skip("in this timm no queries share keys")
    core = model(0, **CORE).eval()
    more = {"embed_dim": 96, "num_heads": 6, "depth": 3, "num_kv_heads": 3, "img_size": 32}
    target, _ = receive(built("vit_base_patch16_sapiens2", **more), core)
    x = torch.randn(7, 48)
    plain, own = core.blocks[1].attn, target.blocks[1].attn
    q, k, v = F.linear(x, plain.qkv.weight).reshape(7, 3, 3, 16).permute(1, 2, 0, 3)  # (heads, tokens, channels)
    wide = torch.cat([x, x], -1) / 2**0.5  # copies that agree add up
    queries, keys, values = (F.linear(wide, p.weight).reshape(7, -1, 16).transpose(0, 1)
                             for p in (own.q_proj, own.k_proj, own.v_proj))  # fmt: skip
    for head in range(6):
        torch.testing.assert_close(queries[head] @ keys[head // 2].T, q[head // 2] @ k[head // 2].T)
        torch.testing.assert_close(values[head // 2], v[head // 2])


# What is fresh


@pytest.mark.parametrize(("name", "gate", "values"), [
    ("eva02_base_patch14_224", "fc1_g", "fc1_x"),
    ("deit_tiny_patch16_224", "w0", "w1"),
    ("eva02_tiny_patch14_224", 0, 1),
])  # fmt: skip
@torch.no_grad()
def test_the_side_of_the_activation_is_the_cores_and_the_values_are_timms(name, gate, values):
    """With values of 1 a gated MLP is the core's, but for its activation."""
    more = {"mlp_layer": GeGluMlp} if gate == "w0" else {}  # ViTamin's
    target = built(name, embed_dim=192, depth=3, num_heads=3, mlp_ratio=4, **more)
    before = state(target)
    report = vitwarm.warm_start(target, "vitwarm:core")
    core = {n: t.float() for n, t in read_source("vitwarm:core")[0].items()}
    mlp, x = target.blocks[1].mlp, torch.randn(5, 192)
    for key, tensor in before.items():
        if isinstance(gate, int) and ".mlp.fc1." in key:
            (_, own), (_, theirs) = target.state_dict()[key].chunk(2), tensor.chunk(2)
            assert torch.equal(own, theirs) and "the gate multiplies" in report.reasons[key]
            own.fill_(float(key.endswith("bias")))
        elif f".mlp.{values}." in key:
            assert torch.equal(target.state_dict()[key], tensor) and report.reasons[key].startswith("the source has no")
            target.state_dict()[key].fill_(float(key.endswith("bias")))
    mlp.norm = nn.Identity()
    fc1, fc2 = ([core[f"blocks.1.mlp.{layer}.{kind}"] for kind in ("weight", "bias")] for layer in ("fc1", "fc2"))
    torch.testing.assert_close(mlp(x), F.linear(mlp.act(F.linear(x, *fc1)), *fc2), rtol=1e-4, atol=1e-4)


def test_fewer_hidden_units_are_evenly_spread_ones(noiseless):
    core = model(0, **CORE)
    target, _ = receive(built("deit_tiny_patch16_224", **CORE, mlp_ratio=3), core)
    mlp, own, chosen = core.blocks[1].mlp, target.blocks[1].mlp, every(192, 144)
    assert torch.equal(own.fc1.weight, mlp.fc1.weight[chosen]) and torch.equal(own.fc1.bias, mlp.fc1.bias[chosen])
    torch.testing.assert_close(own.fc2.weight, mlp.fc2.weight[:, chosen] / 0.75**0.5)


@pytest.mark.parametrize("label", FAMILIES)
def test_every_family_takes_a_core_and_names_what_stays(label):
    name, arguments = FAMILIES[label]
    torch.manual_seed(1)
    target = timm.create_model(name, num_classes=7, **arguments | {"depth": 4})
    before = state(target)
    report = transfer(target, resize(state(model(0, **CORE)), target, "expand", heads=3, seed=0), source="it")
    names = canonical(before)
    trunk = {n for n, c in names.items() if group_of(c) not in ("embedding", "head")}
    assert not report.refused and {*report.copied, *report.fresh} == set(before)
    assert set(report.reasons) == {n for n in trunk if n in report.fresh} | {
        n for n in report.copied if n in report.reasons
    }
    assert all(torch.equal(target.state_dict()[n], before[n]) for n in report.fresh)
    matrices = {n for n in report.fresh if n in trunk and before[n].ndim == 2}
    assert all("fc1_x" in n or "lambda" in n for n in matrices)
    assert Trunk(target)(torch.randn(1, 5, target.embed_dim)).isfinite().all()


def test_the_report_says_what_has_no_counterpart():
    target = built("eva02_tiny_patch14_224", embed_dim=192, depth=3, num_heads=3)
    text = str(vitwarm.warm_start(target, "vitwarm:core"))
    assert "partly kept blocks.*.mlp.fc1.weight: the half that the gate multiplies" in text
    assert "unused blocks.*.attn.k.bias: the model has no such tensor" in text
    tensors, _ = read_source("vitwarm:core")
    tensors = resize(tensors, target, "expand", heads=3, seed=0)
    halved = perturb(tensors, {"mlp": "scale:0.5"}, depth=3, heads=3, seed=0)
    assert (halved.partly, halved.unused) == (tensors.partly, tensors.unused) != ({}, {})
    report = vitwarm.warm_start(built("deit3_small_patch16_224", embed_dim=192, depth=3, num_heads=3), "vitwarm:core")
    assert report.to_dict()["reasons"] == dict.fromkeys(
        [f"blocks.{i}.ls{k}.gamma" for i in range(3) for k in (1, 2)], "the source has no such tensor"
    )


@pytest.mark.parametrize(("core", "absent", "target", "says"), [
    ("eva02_base_patch14_224", "-", "deit_tiny_patch16_224", "no place for attn.k_proj.weight"),
    ("vit_giant_patch14_dinov2", ".ls", "deit_tiny_patch16_224", "the core's MLPs are gated"),
    ("deit3_small_patch16_224", "-", "deit_tiny_patch16_224", "no place for ls1.gamma"),
])  # fmt: skip
def test_a_core_that_computes_more_than_the_model_is_refused(core, absent, target, says):
    with pytest.raises(UserError, match=says):
        resize(
            {n: t for n, t in state(built(core, **CORE)).items() if absent not in n},
            built(target, **CORE),
            "expand",
            heads=3,
            seed=0,
        )
