"""Models from several sources: where each tensor comes from, and what is refused without changing anything."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from test_warm_start import model, state, trunk_file
from torch.optim.swa_utils import AveragedModel

from vitwarm.errors import UserError
from vitwarm.transfer import Part, compose, merge, select
from vitwarm.transfer.groups import head_mask
from vitwarm.trunk import build_decoder
from vitwarm.trunk.history import changes


@pytest.fixture
def sources(tmp_path):
    """Two sources and what they hold."""
    vits = {name: model(seed) for seed, name in enumerate("ab")}
    return {n: trunk_file(tmp_path / f"{n}.safetensors", v) for n, v in vits.items()}, {
        n: state(v) for n, v in vits.items()
    }


def test_each_tensor_comes_from_where_it_was_asked_for(sources):
    files, held = sources
    target = model(2)
    before = state(target)
    report = compose(target, {"attention": files["a"], "mlp layers=last": files["b"]})
    for name, tensor in target.state_dict().items():
        origin = held["a"] if ".attn." in name else held["b"] if name.startswith("blocks.2.mlp") else before
        assert torch.equal(tensor, origin[name]), name
    assert set(report.copied) == {n for n in before if ".attn." in n or n.startswith("blocks.2.mlp")}
    assert sorted([*report.copied, *report.fresh]) == sorted(before)


def test_heads_of_two_sources_make_one_attention(sources):
    files, held = sources
    target = model(2)
    before = state(target)
    compose(target, {"heads=0": files["a"], "heads=1:2": files["b"]})
    qkv = {
        n: s["blocks.1.attn.qkv.weight"].reshape(3, 3, 16, 48)
        for n, s in (*held.items(), ("t", state(target)), ("z", before))
    }
    proj = {
        n: s["blocks.1.attn.proj.weight"].reshape(48, 3, 16)
        for n, s in (*held.items(), ("t", state(target)), ("z", before))
    }
    for head, origin in enumerate("azb"):
        assert torch.equal(qkv["t"][:, head], qkv[origin][:, head])
        assert torch.equal(proj["t"][:, head], proj[origin][:, head])
    assert torch.equal(target.state_dict()["blocks.1.attn.proj.bias"], before["blocks.1.attn.proj.bias"])
    assert torch.equal(target.state_dict()["blocks.0.attn.qkv.bias"][32:48], before["blocks.0.attn.qkv.bias"][32:48])


def test_a_head_works_the_same_after_it_moved(sources):
    """What head 1 writes to the residual stream is that of the source, from timm's own attention."""
    files, held = sources
    target, source = model(2), model(0)
    compose(target, {"heads=1": files["a"]})
    x = torch.randn(2, 5, 48)
    outputs = []
    for vit in (target, source):
        attn = vit.blocks[0].attn
        others = ~head_mask("blocks.0.attn.proj.weight", attn.proj.weight.shape, {1}, 3)
        with torch.no_grad():
            attn.proj.weight[others] = 0.0
            attn.proj.bias.zero_()
            outputs.append(attn(x))
    torch.testing.assert_close(*outputs)


def test_every_tensor_of_a_head_is_found_in_every_layout():
    for name in (
        "deit_tiny_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_dinov3",
        "beit_base_patch16_224",
        "vit_relpos_base_patch16_224",
    ):
        more = {"img_size": 28, "patch_size": 7} if "eva" in name else {}
        vit = model(0, name, **more)
        names = select([n for n, _ in vit.named_parameters()], "heads=0")
        held = [n for n in names if n.startswith("blocks.0.")]
        inputs = sum(
            head_mask(n, p.shape, {0}, 3).sum().item() for n, p in vit.named_parameters() if n in held and p.ndim > 1
        )
        assert inputs == 4 * 48 * 16, (name, held)  # q, k, v and projection: a third of each


def test_controls_apply_to_what_is_given(sources):
    files, held = sources
    target = model(2)
    compose(target, {"attention": files["a"], "mlp": files["b"]}, {"mlp layers=0": "shuffle"}, seed=3)
    now, name = target.state_dict(), "blocks.0.mlp.fc1.weight"
    assert torch.equal(now[name].flatten().sort().values, held["b"][name].flatten().sort().values)
    assert not torch.equal(now[name], held["b"][name])
    assert torch.equal(now["blocks.1.mlp.fc1.weight"], held["b"]["blocks.1.mlp.fc1.weight"])


def test_decoders_compose_as_well(tmp_path):
    a, b, target = (build_decoder("2_4_16", 11, 8, "x", seed=seed) for seed in range(3))
    for name, decoder in (("a", a), ("b", b)):
        save_file(decoder.state_dict(), tmp_path / f"{name}.safetensors")
    compose(target, {"attention embedding": tmp_path / "a.safetensors", "mlp": tmp_path / "b.safetensors"})
    assert torch.equal(target.token_embed.weight, a.token_embed.weight)
    assert torch.equal(target.blocks[1].mlp.fc1.weight, b.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize(("wanted", "says"), [
    ({"attention": "a", "layers=0": "b"}, "both give blocks.0.attn"),
    ({"heads=0": "a", "attention": "b"}, "both give blocks.0.attn"),
    ({"attention": "a", "mlp": "wide"}, "does not fit"),
    ({"attention": "a", "mlp": "deep"}, "does not fit"),
    ({"attention": "a", "layers=3": "b"}, "the model has 3 blocks"),
    ({"heads=3": "a"}, "the model has 3 heads"),
    ({"heads=1:0+99:0": "a"}, "heads=99:...: the model has 3 blocks"),
    ({"layers=0 heads=0:0+2:1": "a"}, "heads=2:... is not among layers=0"),
    ({"attention": "a", "mlp": "absent"}, "no weights at"),
    ({"attention": "five"}, "source is 5"),
    ({}, "give selections with a path each"),
    ({("attention",): "a"}, "give selections with a path each"),
])  # fmt: skip
def test_impossible_mixes_change_nothing(sources, tmp_path, wanted, says):
    files = dict(sources[0], absent=tmp_path / "absent", five=5)
    files["wide"] = trunk_file(tmp_path / "wide.safetensors", model(1, embed_dim=96))
    files["deep"] = trunk_file(tmp_path / "deep.safetensors", model(1, depth=4))
    target = model(2)
    before = state(target)
    with pytest.raises(UserError, match=says) as caught:
        compose(target, {groups: files[name] for groups, name in wanted.items()})
    assert "\n" not in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())


def test_it_looks_through_what_is_around_a_model_and_takes_any_whole_seed(sources, tmp_path):
    """Its history is the model's own, and JSON can hold it."""
    target = model(2)
    compose(AveragedModel(target, use_buffers=True), {"attention": sources[0]["a"]})
    assert not changes(target)  # averages are of a copy
    compose(torch.nn.DataParallel(target), {"attention": sources[0]["a"]}, {"attention": "shuffle"}, seed=np.int64(3))
    (change,) = changes(target)
    assert change.text.startswith("composed: attention of") and type(change.seed) is int
    for seed in (-1, 1.5):
        with pytest.raises(UserError, match="whole number from 0 on"):
            compose(target, {"attention": sources[0]["a"]}, seed=seed)


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("vit_small_patch16_18x2_224", {"embed_dim": 48, "num_heads": 3}, "several attentions side by side"),
        ("vit_base_patch16_sapiens2", {"embed_dim": 64, "num_heads": 4, "num_kv_heads": 2}, "share keys and values"),
        ("vit_tiny_patch16_224", {}, None),
    ],
)
def test_a_part_of_the_heads_is_taken_where_each_has_its_own(tmp_path, name, more, says):
    vit = timm.create_model(name, img_size=32, patch_size=8, depth=3, **more)
    source = trunk_file(tmp_path / "source.safetensors", vit)
    if says is None:
        assert compose(vit, {"heads=0": source}).copied
        return
    with pytest.raises(UserError, match=says):
        compose(vit, {"heads=0": source})


@pytest.mark.parametrize("wrong", ["shuffle", ["shuffle"]])
def test_controls_are_a_mapping(sources, wrong):
    with pytest.raises(UserError, match="controls is"):
        compose(model(2), {"attention": sources[0]["a"]}, wrong)


def test_an_idle_control_is_refused():
    vit = model(0)
    with pytest.raises(UserError, match="no source gives anything"):
        merge(vit, [Part(["mlp"], state(model(1)), "it")], {"attention": "shuffle"})
