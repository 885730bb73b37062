"""Rival initialisations: what the model computes with them, what they leave alone, and what they refuse."""

from typing import get_args

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vitwarm.assembly import assemble
from vitwarm.config import Init, ModelConfig
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.transfer import group_of
from vitwarm.trunk import build_decoder, build_model, initialise
from vitwarm.trunk.initialisations import list_initialisations, rewrite

RIVALS = list_initialisations()[1:]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
TINY = {"img_size": 32, "patch_size": 4, "depth": 2}  # width 192, 3 heads of 64


def made(init, seed=0, name="vit_tiny_patch16_224", **arguments):
    config = ModelConfig(name=name, num_classes=5, args=arguments or dict(SMALL))
    return initialise(build_model(config, "images", seed=seed), init, seed=seed)


def output_map(attn: nn.Module) -> torch.Tensor:
    """x -> value -> projection as one (D, D) matrix, from timm's own layers run on the unit vectors.

    A single token attends to itself alone, so attention passes its value on.
    """
    width = attn.proj.in_features
    with torch.no_grad():
        return attn(torch.eye(width)[:, None]).squeeze(1)


def logit_maps(attn: nn.Module) -> torch.Tensor:
    """(H, D, D): x A y^T is the logit between x and y before the scale, from timm's own fused layer."""
    width, heads = attn.proj.in_features, attn.num_heads
    with torch.no_grad():
        query, key, _ = attn.qkv(torch.eye(width)).reshape(width, 3, heads, -1).unbind(1)
    return torch.einsum("ihk,jhk->hij", query, key)


# Mimetic


def test_mimetic_output_is_minus_the_identity_and_noise():
    for block in made("mimetic", **TINY).blocks:
        product = output_map(block.attn)
        diagonal = product.diagonal()
        assert diagonal.mean().item() == pytest.approx(-0.40, abs=0.01)
        assert diagonal.std().item() == pytest.approx(0.4 / 192**0.5, rel=0.2)
        noise = product + 0.4 * torch.eye(192)  # the formula has nothing else: N(0, 0.4^2 / D), no structure
        assert noise.std().item() == pytest.approx(0.4 / 192**0.5, rel=0.02)
        singular = torch.linalg.svdvals(noise)
        assert singular[0].item() == pytest.approx(0.8, rel=0.1)  # Bai and Yin's edge, 2 sd sqrt(D)


@pytest.mark.parametrize(("init", "mean"), [("mimetic", 0.40), ("mimetic_as_published", 0.23)])
def test_mimetic_logits_keep_the_identity_at_rank_64(init, mean):
    for block in made(init, **TINY).blocks:
        for product in logit_maps(block.attn):
            assert product.diagonal().mean().item() == pytest.approx(mean, abs=0.02)
            assert torch.linalg.matrix_rank(product) == 64
            off = product - torch.diag(product.diagonal())
            assert abs(off.mean().item()) < 0.002


def test_the_published_mimetic_multiplies_the_factors_the_other_way():
    attn = made("mimetic_as_published", **TINY).blocks[0].attn
    product = output_map(attn)
    _, _, left = attn.qkv.weight.detach().chunk(3)
    intended = left @ attn.proj.weight.detach()
    assert intended.diagonal().std().item() == pytest.approx(0.03, abs=0.005)
    assert product.diagonal().mean().item() == pytest.approx(-0.40, abs=0.01)
    assert product.diagonal().std().item() == pytest.approx(0.24, abs=0.03)
    assert np.corrcoef(product.flatten(), intended.flatten())[0, 1] == pytest.approx(0.53, abs=0.03)
    right_way = output_map(made("mimetic", **TINY).blocks[0].attn)
    torch.testing.assert_close(right_way, intended.clone(), atol=1e-5, rtol=0)  # both variants share their Z


# Conditioned


def test_conditioned_value_is_the_identity_and_query_and_key_are_semi_orthogonal():
    fresh, model = made("default"), made("conditioned")
    for before, block in zip(fresh.blocks, model.blocks, strict=True):
        attn = block.attn
        query, key, value = attn.qkv.weight.detach().reshape(3, 3, 16, 48)  # each (H, k, D)
        for weight in (query, key):
            gram = weight @ weight.transpose(-1, -2)
            torch.testing.assert_close(gram, torch.eye(16).expand(3, 16, 16), atol=1e-5, rtol=0)
        for head in range(3):
            assert torch.equal(value[head], torch.eye(48)[16 * head : 16 * (head + 1)])
        assert torch.equal(output_map(attn), before.attn.proj.weight.T)  # the projection is the default arm's


# Impulse


@pytest.mark.parametrize("arguments", [{}, {"class_token": False, "global_pool": "avg"}, {"no_embed_class": True}])
def test_impulse_heads_attend_to_one_neighbour(arguments):
    """P+ P projects onto k of the directions of the positions; what it lets through of the target is the optimum."""
    grid, width = 8, 192
    model = made("impulse", img_size=32, patch_size=4, depth=1, embed_dim=width, num_heads=3, **arguments)
    positions = model.pos_embed.detach()[0, -(grid**2) :]
    pe = torch.nn.functional.layer_norm(positions, (width,)).double()
    expected = {0: (0, 0), 1: (-1, 0), 2: (0, 1)}
    for head, product in enumerate(logit_maps(model.blocks[0].attn).double()):
        logits = pe @ product @ pe.T  # N = 64 = k, so that P+ P is whole
        down, right = expected[head]
        for row in range(grid):
            for column in range(grid):
                there = (row + down, column + right)
                if all(0 <= at < grid for at in there):
                    assert logits[row * grid + column].argmax() == there[0] * grid + there[1]
    rows = model.blocks[0].attn.qkv.weight.detach().reshape(3, 3, 64, width)
    torch.testing.assert_close(rows[:2].norm(dim=(-1, -2)), torch.full((2, 3), 7.0))
    assert output_map(model.blocks[0].attn).diagonal().mean().item() == pytest.approx(-0.40, abs=0.01)


@pytest.mark.parametrize("decoder", [False, True])
def test_mimetic_value_is_the_written_formula(decoder):
    if decoder:
        before, model = (build_decoder("2_4_192", 11, 8, "x", seed=0) for _ in range(2))
        initialise(model, "mimetic_value", seed=0)
    else:
        before, model = (made(init, **TINY) for init in ("default", "mimetic_value"))
    eye, beta = torch.eye(192), 0.05
    for old, block in zip(before.blocks, model.blocks, strict=True):
        query, key, value = block.attn.qkv.weight.detach().chunk(3)
        assert torch.equal(torch.cat([query, key]), old.attn.qkv.weight[: 2 * 192])
        for weight, sign in ((value, 1), (block.attn.proj.weight.detach(), -1)):
            noise = weight - sign * beta**0.5 * eye
            assert noise.std().item() == pytest.approx(0.01, rel=0.03) and abs(noise.mean().item()) < 3e-4
        diagonal = output_map(block.attn).diagonal()
        assert diagonal.mean().item() == pytest.approx(-beta, abs=0.002)


def test_impulse_enlarges_the_positions_and_nothing_else_of_the_stem():
    before, after = (made(init, depth=1, img_size=32, patch_size=4).state_dict() for init in ("default", "impulse"))
    assert torch.equal(after["pos_embed"], 18 * before["pos_embed"])
    same = [n for n in before if ".attn." not in n and n != "pos_embed"]
    assert all(torch.equal(before[n], after[n]) for n in same)


# What is left alone, and determinism


@pytest.mark.parametrize("init", [name for name in RIVALS if name != "impulse"])
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit3_small_patch16_224",
        "eva02_tiny_patch14_224",
        "beit_base_patch16_224",
        "vit_relpos_base_patch16_224",
    ],
)
def test_arms_of_a_seed_differ_in_attention_alone(init, name):
    arguments = SMALL | ({"img_size": 28, "patch_size": 7} if "eva" in name else {})
    before, after = (made(arm, name=name, **arguments).state_dict() for arm in ("default", init))
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and all(".attn." in n and group_of(n) == "attention" for n in changed)
    assert {f"blocks.{i}.attn.qkv.weight" for i in range(2)} <= changed
    assert all(not t.any() for n, t in after.items() if n in changed and n.endswith("bias"))
    biases = [n for n in after if group_of(n) == "attention" and n.endswith("bias")]
    assert biases and all(not after[n].any() for n in biases)


@pytest.mark.parametrize("init", RIVALS)
def test_seeded_by_block_and_by_nothing_else(init):
    arguments = {"img_size": 32, "patch_size": 4, "depth": 2}
    torch.manual_seed(1)
    one = made(init, seed=3, **arguments)
    torch.manual_seed(2)
    drawn = torch.get_rng_state()
    two, other = made(init, seed=3, **arguments), made(init, seed=4, **arguments)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    weights = [block.attn.qkv.weight for model in (one, other) for block in model.blocks]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_separate_projections_equal_the_fused_ones():
    arguments = SMALL | {"img_size": 28, "patch_size": 7}
    fused, apart = (
        made("mimetic", name="eva02_tiny_patch14_224", **arguments, qkv_fused=together) for together in (True, False)
    )
    for a, b in zip(fused.blocks, apart.blocks, strict=True):
        weights = [b.attn.q_proj.weight, b.attn.k_proj.weight, b.attn.v_proj.weight]
        assert torch.equal(a.attn.qkv.weight, torch.cat(weights))
        assert torch.equal(a.attn.proj.weight, b.attn.proj.weight)


def test_a_run_starts_both_stages_alike_and_builds_the_same_again():
    recipe = [
        "recipe=digits_proc", "model.init=mimetic", "run.workers=0", "seed=5", "model.name=vit_tiny_patch16_224",
        "model.args={img_size: 32, patch_size: 8, embed_dim: 48, depth: 2, num_heads: 3}", "images.size=32",
    ]  # fmt: skip
    parts, again = (assemble(load_recipe(recipe), 1) for _ in range(2))
    default = assemble(load_recipe([*recipe, "model.init=default"]), 1)
    for mine, block in zip(parts.model.blocks, parts.warmup.vit.blocks, strict=True):
        assert torch.equal(mine.attn.qkv.weight, block.attn.qkv.weight)
        assert torch.equal(mine.attn.proj.weight, block.attn.proj.weight)
    for name, tensor in parts.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
        assert torch.equal(tensor, default.model.state_dict()[name]) == (".attn." not in name or "bias" in name), name
    assert all(
        torch.equal(a, b) for a, b in zip(parts.warmup.model.parameters(), again.warmup.model.parameters(), strict=True)
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_base_patch16_xp_224", {}),
        ("vit_pwee_patch16_reg1_gap_256", {}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "scale_attn_norm": True}),
    ],
)
def test_conditioned_attention_beside_an_mlp_and_between_norms(name, more):
    """Of a projection that the MLP shares only the rows of the attention change; norms stay as they are."""
    torch.manual_seed(0)
    vit = timm.create_model(name, num_classes=5, **SMALL | more)
    block = vit.blocks[1]
    before = {n: t.clone() for n, t in block.state_dict().items()}
    initialise(vit, "conditioned", seed=0)
    parallel = not hasattr(block, "attn")
    weight = block.in_proj.weight if parallel else block.attn.qkv.weight
    width = weight.shape[1]
    for matrix in weight[-3 * width : -width].chunk(2):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(width), atol=1e-5, rtol=0)
    assert torch.equal(weight[-width:], torch.eye(width))
    name_of = "in_proj." if parallel else "attn.qkv."
    assert torch.equal(weight[: -3 * width], before[f"{name_of}weight"][: -3 * width])
    assert all(torch.equal(t, before[n]) for n, t in block.state_dict().items() if "bias" not in n and name_of not in n)
    assert vit(torch.randn(2, 3, 32, 32)).isfinite().all()


# Refusals


@pytest.mark.parametrize(
    ("init", "name", "more", "says"),
    [
        ("mimetic", "vit_tiny_patch16_224", {"qk_norm": True}, r"more than query, key.*q_norm\.weight"),
        ("mimetic", "vit_dpwee_patch16_reg1_gap_256", {}, "no single attention"),
        ("conditioned", "vit_small_patch16_18x2_224", {}, "no single attention"),
        ("conditioned", "vit_dpwee_patch16_reg1_gap_256", {}, "no single attention"),
        ("impulse", "vit_small_patch16_dinov3", {}, "no learned position"),
        ("impulse", "beit_base_patch16_224", {}, "no learned position"),
        ("impulse", "vit_relpos_base_patch16_224", {}, "no learned position"),
        ("mimetic", "vit_relpos_base_patch16_224", {"qk_norm": True}, r"more than query, key.*q_norm\.weight"),
        ("impulse", "vit_tiny_patch16_224", {"num_heads": 1}, "16 positions do not span the 48 channels"),
    ],
)
def test_what_the_formulas_do_not_cover_is_refused_and_left_alone(init, name, more, says):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **SMALL | more)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(UserError, match=says) as caught:
        initialise(model, init, seed=0)
    assert "\n" not in str(caught.value) and f"model.init={init}" in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="unknown initialisation 'mimetik'; known: default, conditioned"):
        initialise(nn.Identity(), "mimetik", seed=0)


def test_a_recipe_can_name_what_is_registered():
    assert sorted(get_args(Init)) == sorted(list_initialisations())


def test_what_is_empty_or_no_number_counts_as_unchanged():
    vit = timm.create_model("vit_tiny_patch16_224", **SMALL)
    vit.empty = nn.Parameter(torch.zeros(0, 3))
    vit.register_buffer("unknown", torch.full((2,), float("nan")))
    change, replaced = rewrite(vit, "mimetic", seed=0)
    assert change.tensors and not {"empty", "unknown"} & {*change.tensors, *replaced}
