"""The trunk on arbitrary tokens: masks, causality, gradient checkpointing, the final norm, refusals."""

import pytest
import timm
import torch
from families import FAMILIES, tiny
from timm.layers import set_fused_attn
from torch import nn

from vitwarm.config import ModelConfig
from vitwarm.errors import UserError
from vitwarm.transfer import canonical, select
from vitwarm.trunk import Family, Trunk, build_model, family, family_of, merge_causal
from vitwarm.trunk.supported import PLAIN

MASKED = sorted(set(FAMILIES) - {"dynamic size"})


def tokens_of(model):
    """Tokens of an image of the model's own size, prefix tokens included."""
    rows, columns = family_of(model).grid
    return rows * columns + model.num_prefix_tokens


def tokens(trunk, length=9, batch=2):
    return torch.randn(batch, length, trunk.width, generator=torch.Generator().manual_seed(3))


def reference_mask(mask, length):
    """What mask and causality say together, written out place by place."""
    out = mask.clone()
    for query in range(length):
        for key in range(query + 1, length):
            out[..., query, key] = False if mask.dtype == torch.bool else float("-inf")
    return out


@pytest.mark.parametrize("shape", [(9, 9), (2, 1, 9, 9), (2, 3, 9, 9)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_merged_mask_is_mask_and_causal(kind, shape):
    mask = torch.rand(shape) < 0.7 if kind == "bool" else torch.randn(shape)
    before = mask.clone()
    merged = merge_causal(mask, 9)
    assert merged.dtype == mask.dtype and torch.equal(merged, reference_mask(mask, 9))
    assert torch.equal(mask, before)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "label", ["token", "EVA-02", "parallel scaling", "differential", "BEiT", "relpos MLP", "relpos shared"]
)
def test_mask_with_causality_equals_one_mask(label, fused):
    """timm raises on the pair (fused) or forgets the mask (unfused); the trunk does neither."""
    set_fused_attn(fused)
    try:
        trunk = Trunk(tiny(label)).eval()
    finally:
        set_fused_attn(True)
    x = tokens(trunk)
    mask = torch.rand(2, 1, 9, 9) < 0.6
    mask |= torch.eye(9, dtype=torch.bool)  # a row without any key is undefined
    both = trunk(x, attn_mask=mask, is_causal=True)
    torch.testing.assert_close(both, trunk(x, attn_mask=reference_mask(mask, 9)))
    assert not torch.allclose(both, trunk(x, is_causal=True), atol=1e-3)
    assert not torch.allclose(both, trunk(x, attn_mask=mask), atol=1e-3)


@pytest.mark.parametrize("label", MASKED)
def test_causal_prefix(label):
    """Outputs up to a token do not depend on what follows it, and is_causal is the tril mask."""
    trunk = Trunk(tiny(label)).eval()
    x = tokens(trunk)
    full = trunk(x, is_causal=True)
    torch.testing.assert_close(trunk(x[:, :5], is_causal=True), full[:, :5], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trunk(x, attn_mask=torch.ones(9, 9).tril().bool()), full, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(trunk(x)[:, :5], full[:, :5], atol=1e-3)


@pytest.mark.parametrize("label", MASKED)
def test_checkpointing_works_under_masks(label):
    """Recomputed blocks (counted), equal gradients: timm's own loop gives up checkpointing when a mask is set."""
    model = tiny(label, drop_path_rate=0.2, proj_drop_rate=0.1).train()
    calls = []

    def run(checkpointing):
        model.zero_grad()
        calls.clear()
        torch.manual_seed(5)
        trunk = Trunk(model, grad_checkpointing=checkpointing).train()
        hooks = [block.register_forward_pre_hook(lambda *_: calls.append(1)) for block in trunk.blocks]
        mask = torch.rand(9, 9) < 0.7
        trunk(tokens(trunk), attn_mask=mask | torch.eye(9, dtype=torch.bool), is_causal=True).square().sum().backward()
        for hook in hooks:
            hook.remove()
        return len(calls), {n: p.grad.clone() for n, p in trunk.named_parameters()}

    once, expected = run(False)
    twice, grads = run(True)
    assert once == len(model.blocks) and twice == 2 * once
    assert all(torch.equal(grads[n], expected[n]) for n in expected)


@pytest.mark.parametrize("label", sorted(set(FAMILIES) - {"no norm"}))
def test_features_pass_the_real_final_norm(label):
    """With the affine part at its start, each token leaves with mean square 1, whatever the model's pooling."""
    name, arguments = FAMILIES[label]
    model = timm.create_model(name, num_classes=7, **arguments)
    with torch.no_grad():
        for block in model.blocks:
            for p in block.parameters():
                p.add_(torch.randn_like(p), alpha=0.3)  # far from normed inside
    trunk = Trunk(model).eval()
    assert not isinstance(trunk.norm, nn.Identity)
    power = trunk(tokens(trunk)).square().mean(-1)
    torch.testing.assert_close(power, torch.ones_like(power), atol=1e-3, rtol=0)


@pytest.mark.parametrize("label", FAMILIES)
def test_trunk_names_are_the_same_for_every_pooling(label):
    """Only norm_pre, blocks and norm; the tensors are the model's own, not copies."""
    model = tiny(label)
    trunk = Trunk(model)
    assert {n.split(".")[0] for n in trunk.state_dict()} <= {"norm_pre", "blocks", "norm"}
    own = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in own for p in trunk.parameters())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "swin_tiny_patch4_window7_224",
            "no plain sequence of transformer blocks: its stages are 96, 192, 384, 768",
        ),
        ("convnext_atto", "no plain sequence of transformer blocks"),
        ("cait_xxs24_224", "do not take attn_mask"),
        ("xcit_nano_12_p16_224", "do not take attn_mask"),
        ("resnet18", "no plain sequence of transformer blocks"),
    ],
)
def test_other_families_are_refused_with_the_reason_and_the_nearest_that_is_not(name, reason):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    with torch.device("meta"), pytest.raises(UserError, match=reason) as caught:
        build_model(ModelConfig(name=name), "images", seed=0)
    assert "\n" not in str(caught.value)
    with torch.device("meta"):
        assert family_of(timm.create_model(str(caught.value).split()[-1], depth=1)).refusal is None


@pytest.mark.parametrize(("name", "near"), [
    ("resnet18", "vit_small_patch16_224"), ("mobilenetv3_small_050", "vit_tiny_patch16_224"),
    ("convnext_base", "vit_base_patch16_224"), ("swin_large_patch4_window12_384", "vit_large_patch16_384"),
    ("maxvit_tiny_tf_224", "deit3_medium_patch16_224"), ("vit_base_resnet50d_224", "vit_base_patch16_224"),
    ("vit_tiny_r_s16_p8_384", "vit_tiny_patch16_384"), ("vit_base_mci_224", "vit_base_patch16_224"),
])  # fmt: skip
def test_the_nearest_has_about_as_many_parameters_and_the_image_size(name, near):
    """A convolutional network in front of a ViT makes a hybrid, which is refused as well."""
    with torch.device("meta"), pytest.raises(UserError, match=f"the nearest that can is timm's {near}$") as caught:
        family_of(timm.create_model(name))
    assert ("it is a hybrid" in str(caught.value)) == name.startswith("vit_")


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_vits_are_as_large_as_is_said(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == PLAIN[name]
    assert family_of(model).input_size == (int(name[-3:]),) * 2


@pytest.mark.parametrize("label", [n for n in FAMILIES if n.startswith(("BEiT", "relpos"))])
def test_symbols_meet_no_bias_of_the_image_grid(label):
    """timm's own blocks with every bias at zero; the model keeps its biases, and the trunk has no tensor of them."""
    model = tiny(label).eval()
    trunk = Trunk(model).eval()
    x = tokens(trunk, length=tokens_of(model))
    found = trunk(x)
    biases = [n for n in model.state_dict() if "rel_pos" in n or "relative_position" in n]
    assert biases and not set(biases) & set(trunk.state_dict())
    image = torch.randn(1, 3, *model.patch_embed.img_size)
    before = model(image)
    with torch.no_grad():
        for name in biases:
            model.state_dict()[name].zero_()
        expected = x
        for block in model.blocks:
            expected = block(expected)
    torch.testing.assert_close(found, trunk.norm(expected))
    assert not torch.allclose(model(image), before, atol=1e-4)
    assert trunk(x[:, :7]).shape[1] == 7  # whatever the length


@pytest.mark.parametrize("label", FAMILIES)
def test_groups_hold_every_tensor_once(label):
    """The trunk's group is what a trunk holds; in front of it is the embedding, behind it the head."""
    model = tiny(label)
    names = canonical(model.state_dict()).values()
    groups = {g: set(select(names, [g])) for g in ("trunk", "embedding", "head", "attention", "mlp", "norm")}
    assert groups["trunk"] == set(Trunk(model).state_dict())
    assert sorted([*groups["trunk"], *groups["embedding"], *groups["head"]]) == sorted(names)
    parts = [n for g in ("attention", "mlp", "norm") for n in groups[g]]
    assert len(parts) == len(set(parts)) and set(parts) <= groups["trunk"]
    model.eval().forward_head(model.norm(torch.randn(2, tokens_of(model), model.embed_dim))).sum().backward()
    behind = canonical(model.state_dict())
    behind = {behind[n] for n, p in model.named_parameters() if p.grad is not None}
    assert behind - groups["trunk"] <= groups["head"] and behind & groups["head"]


def test_families_do_not_contradict_each_other():
    with pytest.raises(ValueError, match="blocks.attn is mlp here, attention in another family"):

        @family(nn.Identity)
        class Wrong(Family):
            tensors = {"blocks.attn": "mlp"}

    with pytest.raises(UserError, match="no plain sequence"):
        family_of(nn.Identity())


def test_an_adapter_serves_subclasses_of_its_model():
    class Mine(type(tiny("EVA-02"))):
        pass

    model = tiny("EVA-02")
    expected = type(family_of(model))
    model.__class__ = Mine
    assert type(family_of(model)) is expected is not Family
    assert type(family_of(tiny("DeiT distilled"))) is Family


def test_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="vit_tiny_patch16_224") as caught:
        build_model(ModelConfig(name="vit_tiny_patch16_225"), "images", seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [{"img_sise": 32}, {"img_size": "big"}, {"depth": -1}, {"patch_size": 0},
                  {"embed_dim": 50, "num_heads": 3}, {"global_pool": "best"}],
)  # fmt: skip
def test_arguments_that_timm_cannot_use_end_in_one_line(arguments):
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig(name="test_vit", args=arguments), "images", seed=0)
    assert "\n" not in str(caught.value) and "test_vit" in str(caught.value)


def test_fresh_weights_depend_on_seed_and_key_alone():
    config = ModelConfig(name="test_vit", args={"img_size": 32})

    def weights(key, seed):
        return build_model(config, key, seed=seed).blocks[0].attn.qkv.weight

    before = torch.random.get_rng_state()
    first = weights("images", 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(weights("images", 0), first)
    assert not torch.equal(weights("images", 1), first) and not torch.equal(weights("warmup", 0), first)


@pytest.mark.parametrize("label", ["DeiT-III", "BEiT"])
def test_compiled_blocks_keep_their_names_and_values(label):
    model = tiny(label)
    trunk = Trunk(model, grad_checkpointing=True).train()
    names = list(model.state_dict())
    x = tokens(trunk)
    expected = trunk(x, is_causal=True)
    for block in trunk.blocks:
        block.compile(backend="aot_eager")
    compiled = trunk(x, is_causal=True)
    compiled.square().sum().backward()
    torch.testing.assert_close(compiled, expected)
    assert list(model.state_dict()) == names and list(trunk.state_dict())[0].startswith(("norm_pre", "blocks.0."))
    assert all(p.grad is not None for p in trunk.parameters())
