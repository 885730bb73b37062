"""What a transfer copies, leaves fresh and refuses, and what it reads."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from transformers import GPT2Config, GPT2LMHeadModel

import vitwarm
from vitwarm.analysis.inspection import inspect_trunk
from vitwarm.config import Config, ModelConfig
from vitwarm.errors import UserError
from vitwarm.exports import export_model
from vitwarm.exports.gpt2 import as_trunk, from_gpt2
from vitwarm.exports.opening import lineage
from vitwarm.procedural import make_rule
from vitwarm.transfer import canonical, compose, group_of, read_source, require_fit, select, transfer
from vitwarm.transfer.warm_start import require_same_blocks
from vitwarm.trunk import Trunk, build_decoder, family_of, initialise

NAME = "deit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
FACTS = {"recipe_hash": "0" * 12, "start": "a test", "warmed_keys": [], "metrics": {}}


def model(seed, name=NAME, **more):
    """A model whose tensors all differ from those of another seed (fresh norms and biases would not)."""
    torch.manual_seed(seed)
    vit = timm.create_model(name, **{"num_classes": 5, **SMALL, **more})
    with torch.no_grad():
        for p in vit.parameters():
            p.add_(torch.randn_like(p), alpha=0.02)
    return vit


def state(vit):
    return {n: t.clone() for n, t in vit.state_dict().items()}


def trunk_file(path, vit):
    """A file of the trunk alone, with canonical names."""
    save_file({n: t.contiguous() for n, t in Trunk(vit).state_dict().items()}, path)
    return path


def in_trunk(name):
    """Relative positions inside the blocks belong to the image grid."""
    return name.startswith(("blocks.", "norm.", "fc_norm.", "norm_pre.")) and ".rel" not in name


def check_trunk_only(target, before, source):
    """Trunk tensors hold the source's values, all others are untouched bit for bit."""
    theirs = {n.removeprefix("fc_"): t for n, t in source.state_dict().items() if in_trunk(n)}
    for name, tensor in target.state_dict().items():
        expected = theirs[name.removeprefix("fc_")] if in_trunk(name) else before[name]
        assert torch.equal(tensor, expected), name


# What is copied


def test_trunk_moves_and_nothing_else_and_the_report_names_every_tensor(tmp_path):
    source, target = model(0), model(1)
    before = state(target)
    assert not any(torch.equal(t, before[n]) for n, t in source.state_dict().items())
    report = vitwarm.warm_start(target, trunk_file(tmp_path / "trunk.safetensors", source))
    check_trunk_only(target, before, source)
    assert sorted([*report.copied, *report.fresh]) == sorted(before) and not report.refused
    assert set(report.copied) == {n for n in before if in_trunk(n)}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight", "head.bias"} == set(report.fresh) - {
        "patch_embed.proj.bias"
    }
    assert str(tmp_path) in str(report) and "attention: 12 copied" in str(report) and "head: 2 kept" in str(report)


def test_a_gpt2_of_transformers_takes_what_our_decoder_takes(tmp_path):
    """Its own tensors, tied head included, and none of them when the source does not fit."""
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=3, n_head=3, n_embd=192, vocab_size=50, n_positions=40))
    ours = build_decoder("3_3_192", 50, 40, "test", seed=0)
    with as_trunk(theirs) as trunk:
        ours.load_state_dict(trunk.state_dict())
    before = state(theirs)
    with pytest.raises(UserError, match="does not fit the model"):
        vitwarm.warm_start(
            theirs, trunk_file(tmp_path / "wide.safetensors", build_decoder("3_3_96", 9, 9, "test", seed=1))
        )
    assert all(torch.equal(t, before[n]) for n, t in theirs.state_dict().items())
    same = trunk_file(tmp_path / "same.safetensors", build_decoder("3_3_192", 50, 40, "test", seed=1))
    for source in (same, "vitwarm:core"):
        reports = [vitwarm.warm_start(model, source) for model in (torch.nn.DataParallel(theirs), ours)]
        assert reports[0] == reports[1].of_model(theirs) and reports[0].copied
        named = {*reports[0].copied, *reports[0].fresh, *reports[0].reasons}
        assert named <= theirs.state_dict().keys() and named.isdisjoint(ours.state_dict())
        assert str(reports[0]).splitlines()[:5] == str(reports[1]).splitlines()[:5]
        wanted = ours.state_dict()
        found = from_gpt2(theirs.state_dict())
        assert torch.equal(found.pop("head.weight"), wanted["token_embed.weight"])
        assert found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in found)


def test_a_gpt2_of_several_types_keeps_every_tensor_that_is_not_chosen():
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=1, n_embd=16, vocab_size=20, n_positions=20)).double()
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor.normal_()
    theirs.transformer.h[0].ln_1.float()
    before = state(theirs)
    vitwarm.warm_up(theirs, rule="identity", steps=1, global_batch=2, length=12, groups="attention layers=last:1")
    after = theirs.state_dict()
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    changed = {n for n, t in after.items() if not torch.equal(t, before[n])}
    assert changed == {f"transformer.h.1.attn.{n}.{k}" for n in ("c_attn", "c_proj") for k in ("weight", "bias")}


@pytest.mark.parametrize(("pool_from", "pool_to"), [("token", "avg"), ("avg", "token"), ("avg", "avg")])
def test_final_norm_finds_its_place_under_any_pooling(tmp_path, pool_from, pool_to):
    source, target = model(0, global_pool=pool_from), model(1, global_pool=pool_to)
    before = state(target)
    report = vitwarm.warm_start(target, trunk_file(tmp_path / "t.safetensors", source))
    check_trunk_only(target, before, source)
    assert ("fc_norm.weight" if pool_to == "avg" else "norm.weight") in report.copied


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_base_patch16_clip_224", {}),
        ("vit_base_patch16_siglip_224", {}),
        ("vit_medium_patch16_reg4_gap_256", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_small_patch16_18x2_224", {}),
        ("vit_base_patch16_xp_224", {}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "patch_size": 7}),
        ("vit_small_patch16_dinov3", {}),
        ("vit_base_patch16_rope_mixed_224", {}),
        ("beit_base_patch16_224", {}),
        ("beitv2_base_patch16_224", {"use_shared_rel_pos_bias": True}),
        ("vit_relpos_base_patch16_224", {}),
        ("vit_srelpos_small_patch16_224", {}),
        ("vit_relpos_small_patch16_rpn_224", {}),
    ],
)
def test_every_family_moves_its_trunk_and_only_that(tmp_path, name, more):
    source, target = model(0, name, **more), model(1, name, **more)
    before = state(target)
    vitwarm.warm_start(target, trunk_file(tmp_path / "t.safetensors", source))
    check_trunk_only(target, before, source)


@pytest.mark.parametrize(
    ("group", "pieces"),
    [
        ("attention", (".attn.",)),
        ("mlp", (".mlp.",)),
        ("norm", (".norm1.", ".norm2.", "norm.")),
        ("norm1", (".norm1.",)),
        ("attention norm2", (".attn.", ".norm2.")),
        ("embedding", ("cls_token", "pos_embed", "patch_embed.")),
        ("head", ("head.",)),
    ],
)
def test_a_group_moves_alone(group, pieces):
    source, target = model(0), model(1)
    before = state(target)
    report = transfer(target, state(source), source="it", groups=[group])
    expected = {n for n in before if any(n.startswith(p) or (p[0] == "." and p in n) for p in pieces)}
    assert set(report.copied) == expected
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name] if name in expected else before[name])


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_relpos_base_patch16_cls_224"])
def test_relative_positions_go_with_the_embedding(name):
    source, target = model(0, name), model(1, name)
    before = state(target)
    report = transfer(target, state(source), source="it", groups=["embedding"])
    relative = {n for n in before if ".rel" in n}
    assert relative and set(report.copied) == relative | {n for n in before if n.startswith(("cls_", "patch_embed."))}
    for other, groups in ((model(2, name, img_size=48), ["embedding"]), (model(2, name, img_size=48), ["trunk"])):
        refused = transfer(other, state(source), source="it", groups=groups).refused
        assert bool(refused) == (name.startswith("beit") and groups == ["embedding"])  # the table has the grid's size


def test_layer_scale_goes_with_what_it_scales():
    names = list(model(0, "deit3_small_patch16_224").state_dict())
    assert {n for n in select(names, ["attention"]) if ".ls" in n} == {n for n in names if ".ls1." in n} != set()
    assert group_of("blocks.0.gamma_1") == "attention" and group_of("blocks.11.gamma_2") == "mlp"
    assert group_of("blocks.0.mlp.norm.weight") == "mlp" and group_of("blocks.0.attn.q_norm.weight") == "attention"
    assert group_of("blocks.0.in_proj.weight") == "trunk"  # attention and MLP in one tensor: only the whole carries it
    assert select(["blocks.0.in_proj.weight"], ["attention", "mlp", "norm"]) == []


def test_what_the_source_lacks_stays_fresh():
    """A layer scale is the target's own; the tensors around it are copied."""
    source, target = model(0), model(1, "deit3_small_patch16_224")
    before = state(target)
    report = transfer(target, state(source), source="it")
    require_fit(report, ["trunk"])
    scales = [n for n in before if ".ls" in n]
    assert len(scales) == 6 and set(scales) < set(report.fresh)
    for name, tensor in target.state_dict().items():
        own = not in_trunk(name) or name in scales
        assert torch.equal(tensor, before[name] if own else source.state_dict()[name]), name


def test_other_image_size_patch_size_and_classes_do_not_matter(tmp_path):
    source, target = model(0), model(1, img_size=48, patch_size=4, num_classes=11)
    before = state(target)
    vitwarm.warm_start(target, trunk_file(tmp_path / "t.safetensors", source))
    check_trunk_only(target, before, source)


def test_half_precision_targets_keep_their_type():
    source, target = model(0), model(1).to(torch.bfloat16)
    transfer(target, state(source), source="it")
    weight = target.blocks[0].attn.qkv.weight
    assert weight.dtype == torch.bfloat16 and torch.equal(weight, source.blocks[0].attn.qkv.weight.to(torch.bfloat16))


def test_canonical_names():
    assert canonical(["fc_norm.bias", "head.bias"]) == {"fc_norm.bias": "norm.bias", "head.bias": "head.bias"}
    both = ["norm.weight", "fc_norm.weight"]  # the first closes the trunk, the second belongs to the head
    assert canonical(both) == {n: n for n in both} and group_of("fc_norm.weight") == "head"


# What is refused


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"embed_dim": 96}, r"source \(48,\), target \(96,\)"),
        ({"depth": 2}, "the target has no such tensor"),
        ({"depth": 4}, "the source has 3 blocks"),
        ({"mlp_ratio": 2}, r"blocks.0.mlp.fc1.bias \(source \(192,\), target \(96,\)\)"),
        ({"name": "eva02_tiny_patch14_224", "img_size": 28, "patch_size": 7}, "the target has no such tensor"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(tmp_path, more, reason):
    target = model(1, **more)
    before = state(target)
    with pytest.raises(UserError, match=reason) as caught:
        vitwarm.warm_start(target, trunk_file(tmp_path / "t.safetensors", model(0)))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())


def test_a_refused_report_claims_no_copy():
    target = model(1, depth=4)
    report = transfer(target, state(model(0)), source="it")
    assert report.copied == [] and len(report.refused) == 12
    assert sorted([*report.fresh, *report.refused]) == sorted(target.state_dict())
    assert "attention: 12 kept, 4 refused" in str(report) and "refused blocks.3." in str(report)


def test_nothing_to_copy_is_refused(tmp_path):
    save_file({"norm_of_something.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds no tensor of the groups trunk"):
        vitwarm.warm_start(model(0), tmp_path / "other.safetensors")


def test_no_name_is_no_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"blocks.0.attn.qkv.weight": torch.zeros(1)}, "model.safetensors")
    with pytest.raises(UserError, match="source is ''; give a run"):
        vitwarm.warm_start(model(0), "")


def test_unknown_fit_is_refused():
    with pytest.raises(UserError, match="fit must be exact, select or expand, not 'tile'"):
        vitwarm.warm_start(model(0), fit="tile")
    with pytest.raises(UserError, match="fit=select takes a part of a larger source"):
        vitwarm.warm_start(model(0), "vitwarm:core", fit="select")


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "eva02_small_patch14_224", "vit_base_patch16_18x2_224"])
def test_without_a_source_it_is_the_core_in_the_package(name):
    """Also where the formulas of conditioned attention do not fit, as in the last of these."""
    given, expected = (model(0, name, embed_dim=384, num_heads=6, depth=3) for _ in range(2))
    report, same = vitwarm.warm_start(given, seed=5), vitwarm.warm_start(expected, "vitwarm:core", seed=5)
    assert all(torch.equal(t, expected.state_dict()[n]) for n, t in given.state_dict().items())
    assert report == same and report.source == "vitwarm:core" and report.copied
    assert str(report).startswith("transfer from vitwarm:core\n")


@pytest.mark.parametrize("narrow", [{}, {"embed_dim": 192, "num_heads": 3, "depth": 2}])
def test_without_a_source_a_smaller_model_gets_conditioned_attention(narrow):
    given, expected = model(0, **narrow), initialise(model(0, **narrow), "conditioned", seed=5)
    report = vitwarm.warm_start(given, seed=5)
    assert all(torch.equal(t, expected.state_dict()[n]) for n, t in given.state_dict().items())
    assert report.source.startswith("conditioned attention") and not report.refused
    assert {group_of(n) for n in report.copied} == {"attention"} and len(report.copied) >= len(given.blocks)
    assert sorted([*report.copied, *report.fresh]) == sorted(given.state_dict())
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=5, n_positions=4))
    for decoder in (gpt2, build_decoder("1_2_8", 5, 4, "x", seed=0)):
        with pytest.raises(UserError, match="known to help a decoder; give a source"):
            vitwarm.warm_start(decoder)
    for wrong in ({"groups": "mlp"}, {"fit": "expand"}, {"fit": "select"}):
        with pytest.raises(UserError, match="leave groups and fit out; or give a source, say 'vitwarm:core'"):
            vitwarm.warm_start(given, **wrong)
    with pytest.raises(UserError, match="has no single attention; give a source"):
        vitwarm.warm_start(timm.create_model("vit_dpwee_patch16_reg1_gap_256", depth=1))


def test_unknown_group_is_refused():
    with pytest.raises(UserError, match="unknown tensor group 'atention'; known: trunk"):
        transfer(model(0), {}, source="it", groups=["atention"])


def test_a_family_without_trunk_is_refused(tmp_path):
    with pytest.raises(UserError, match="no plain sequence"):
        vitwarm.warm_start(timm.create_model("test_resnet"), trunk_file(tmp_path / "t.safetensors", model(0)))


def test_heads_of_attentions_side_by_side_are_compared(tmp_path):
    name = "vit_small_patch16_18x2_224"
    vitwarm.export(model(0, name, num_heads=3), tmp_path / "export")
    with pytest.raises(UserError, match="its trunk has heads 3, the model's 4"):
        vitwarm.warm_start(model(1, name, num_heads=4), tmp_path / "export")
    record = tmp_path / "export/vitwarm.json"
    record.write_text(record.read_text().replace('"heads": 3', '"heads": null'))  # as it was written before
    assert vitwarm.warm_start(model(1, name, num_heads=3), tmp_path / "export").copied


def test_a_selection_is_of_blocks_of_the_same_kind(tmp_path):
    vitwarm.export(model(0), tmp_path / "export")
    with pytest.raises(UserError, match="its trunk has block Block, the model's ResPostBlock; these must be equal"):
        vitwarm.warm_start(model(1, "vit_base_patch16_rpn_224"), tmp_path / "export", fit="select")


@pytest.mark.parametrize("damage", [{"base_models": 3}, {"base_models": "abc"}, {"license": ["mit"]}])
def test_a_damaged_record_of_licences_counts_as_none(tmp_path, damage):
    vitwarm.export(model(0), tmp_path / "export", license="mit")
    record = tmp_path / "export/vitwarm.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | damage))
    assert lineage([str(tmp_path / "export/model.safetensors")]) == {"base_models": [], "license": "unknown"}
    assert vitwarm.warm_start(model(1), tmp_path / "export").copied


def test_equal_shapes_of_other_blocks_are_refused_when_the_export_tells(tmp_path):
    config = Config(model=ModelConfig(name=NAME, num_classes=5, args=SMALL))
    export_model(model(0), tmp_path / "export", config, FACTS)
    target = model(1, num_heads=4)  # the same shapes, another function
    before = state(target)
    with pytest.raises(UserError, match="its trunk has heads 3, the model's 4"):
        vitwarm.warm_start(target, tmp_path / "export")
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())


# What is read


def test_sources_of_every_kind_give_the_same_trunk(tmp_path):
    """Run folder, export folder, warm-up checkpoint, image checkpoint, file with timm's names, file of the trunk."""
    source = model(0, global_pool="avg")
    config = Config(model=ModelConfig(name=NAME, num_classes=5, args=SMALL | {"global_pool": "avg"}))
    run = tmp_path / "run"
    run.mkdir()
    export_model(source, run / "warmup", config, FACTS)
    export_model(model(7, global_pool="avg"), run / "export", config, FACTS)
    shutil.copytree(run / "warmup", tmp_path / "only" / "export")
    save_file(source.state_dict(), tmp_path / "timm.safetensors")
    for name, prefix, tensors in (
        ("warm", "trunk.", Trunk(source).state_dict()),
        ("images", "vit.", source.state_dict()),
    ):
        (tmp_path / name).mkdir()
        others = {"stem.prefix": torch.ones(1, 1, 48), "head.weight": torch.ones(9, 48)} if name == "warm" else {}
        prefixed = {prefix + n: t.contiguous() for n, t in tensors.items()}
        save_file(prefixed | others, tmp_path / name / "model.safetensors")
    trunk = trunk_file(tmp_path / "trunk.safetensors", source)
    paths = [run, run / "warmup", tmp_path / "only", tmp_path / "timm.safetensors", tmp_path / "warm",
             tmp_path / "images", trunk, str(trunk)]  # fmt: skip
    for path in paths:
        target = model(1, global_pool="avg")
        before = state(target)
        vitwarm.warm_start(target, path)
        check_trunk_only(target, before, source)
    assert "head.weight" not in read_source(tmp_path / "warm")[0]


@pytest.mark.parametrize(("trained", "taken"), [("warmup", 0), (None, 1), ("absent", 0)])
def test_a_run_stands_for_its_warm_up_if_it_had_one_else_for_what_it_trained(tmp_path, trained, taken):
    """A run that began with given weights keeps those in the same folder."""
    for seed, place in enumerate(("warmup", "export")):
        (tmp_path / place).mkdir()
        save_file(state(model(seed)), tmp_path / place / "model.safetensors")
    if trained != "absent":
        (tmp_path / "warmup/vitwarm.json").write_text(json.dumps({"trained": trained}))
    found, file = read_source(tmp_path)
    assert file == str(tmp_path / ("warmup", "export")[taken] / "model.safetensors")
    assert torch.equal(found["blocks.0.mlp.fc1.weight"], model(taken).blocks[0].mlp.fc1.weight)
    shutil.rmtree(tmp_path / "export")
    if trained is None:
        with pytest.raises(UserError, match="began with given weights and is not finished"):
            read_source(tmp_path)
    assert read_source(tmp_path / "warmup")[1] == str(tmp_path / "warmup/model.safetensors")


def in_transformers(vit):
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    given = {"architecture": NAME, "num_classes": 5, "model_args": dict(SMALL)}
    wrapper = TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(given))
    wrapper.timm_model = vit
    return wrapper


@pytest.mark.parametrize(
    "wrap",
    [torch.nn.DataParallel, torch.compile, ModelEmaV3, torch.optim.swa_utils.AveragedModel, in_transformers,
     lambda m: torch.nn.DataParallel(torch.compile(m))],
)  # fmt: skip
def test_a_model_within_another_is_looked_through(tmp_path, wrap):
    source, target = model(0), wrap(model(1))
    inner = family_of(target).model
    before = state(inner)
    vitwarm.warm_start(target, trunk_file(tmp_path / "t.safetensors", source))
    check_trunk_only(inner, before, source)


def test_a_model_within_a_module_of_ones_own_is_named(tmp_path):
    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.classifier = model(1), torch.nn.Linear(5, 2)

    with pytest.raises(UserError, match=r"Mine holds a model with a trunk in \.backbone; give that one"):
        vitwarm.warm_start(Mine(), trunk_file(tmp_path / "t.safetensors", model(0)))


@pytest.mark.parametrize(("given", "says"), [
    ("vit_small_patch16_dinov3", r"'vit_small_patch16_dinov3' is no model.*create_model\('vit_small_patch16_dinov3'\)"),
    (None, "an object of type NoneType is no model"),
    ({}, "an object of type dict is no model"),
])  # fmt: skip
def test_what_is_no_model_is_refused(given, says):
    with pytest.raises(UserError, match=says):
        vitwarm.warm_start(given)


def test_a_model_without_values_is_refused_and_nothing_is_reported(tmp_path):
    file = trunk_file(tmp_path / "t.safetensors", model(0))
    with torch.device("meta"):
        whole = timm.create_model(NAME, num_classes=5, **SMALL)
    partly = model(1)
    partly.blocks[1].to("meta")
    before = state(partly)
    for target, name in ((whole, "cls_token"), (partly, "blocks.1.norm1.weight")):
        for act in (
            lambda m: vitwarm.warm_start(m, file),
            lambda m: vitwarm.warm_start(m),
            lambda m: compose(m, {"attention": file, "mlp": file}),
            lambda m: initialise(m, "mimetic", seed=0),
            lambda m: inspect_trunk(m, make_rule("dyck"), length=8),
        ):
            with pytest.raises(UserError, match=f"{name} of the model is on the device meta"):
                act(target)
    assert all(torch.equal(t, before[n]) for n, t in partly.state_dict().items() if not t.is_meta)


def test_values_that_would_be_others_in_the_model_are_refused():
    source, target = model(0), model(1)
    large, whole = state(source), {n: t.int() for n, t in state(source).items()}
    large["blocks.1.attn.qkv.weight"][2, 3] = 1e6
    for own, given, reason in (
        (model(1).half(), large, "blocks.1.attn.qkv.weight has values that torch.float16 cannot hold"),
        (target, whole, "is torch.int32, the model's torch.float32"),
    ):
        before = state(own)
        with pytest.raises(UserError, match=reason):
            transfer(own, given, source="it")
        assert all(torch.equal(t, before[n]) for n, t in own.state_dict().items())
    half = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8, n_positions=8)).half()
    tensors = from_gpt2({n: t.float() for n, t in half.state_dict().items()})
    tensors["blocks.0.mlp.fc1.weight"][0, 0] = 1e6
    with pytest.raises(UserError, match="torch.float16 cannot hold"), as_trunk(half) as trunk:
        transfer(trunk, tensors, source="it")
    part = {n: t for n, t in state(source).items() if n != "blocks.1.attn.qkv.weight"}
    assert "in other blocks alone" in transfer(target, part, source="it").refused["blocks.1.attn.qkv.weight"]
    with pytest.raises(UserError, match="blocks.0.attn.qkv.weight has values that are not finite"):
        diverged = model(0)
        diverged.blocks[0].attn.qkv.weight.data.fill_(float("nan"))
        inspect_trunk(diverged, make_rule("dyck"), length=8)


@pytest.mark.parametrize(
    ("tokens", "rows", "padded"),
    [
        (50257, 50304, True),
        (50257, 50258, False),
        (257, 320, True),
        (100, 128, False),  # too many for padding
        (64, 128, False),
        (320, 257, False),
    ],
)
def test_rows_that_pad_a_vocabulary_are_left_out(tokens, rows, padded):
    source, target = (build_decoder("1_1_4", n, 8, str(n), seed=0, tied=False) for n in (rows, tokens))
    assert not transfer(target, source.state_dict(), source="it").notes  # the trunk has none of these rows
    report = transfer(target, source.state_dict(), source="it", groups=["embedding", "head"])
    if not padded:
        assert {"token_embed.weight", "head.weight"} <= report.refused.keys() and not report.notes
        return
    assert torch.equal(target.token_embed.weight, source.token_embed.weight[:tokens])
    assert torch.equal(target.head.weight, source.head.weight[:tokens])
    assert f"last {rows - tokens} of {rows} tokens were taken for padding" in str(report) and report.to_dict()["notes"]


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    trunk_file(tmp_path / "t.safetensors", model(0))
    assert read_source("~/t.safetensors")[1] == str(tmp_path / "t.safetensors")


def test_bad_sources_end_in_one_line(tmp_path):
    whole = trunk_file(tmp_path / "whole.safetensors", model(0))
    content = whole.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    torch.save(model(0).state_dict(), tmp_path / "model.pth")
    for name, reason in [
        ("cut.safetensors", "damaged"),
        ("junk.safetensors", "damaged"),
        ("empty.safetensors", "damaged"),
        ("empty", "no weights at"),
        ("absent", "no weights at"),
        ("model.pth", "not a .safetensors file"),
    ]:
        with pytest.raises(UserError, match=reason) as caught:
            read_source(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    assert load_file(whole)


def test_weights_by_name_take_no_facts_from_the_folder_one_stands_in(tmp_path, monkeypatch):
    target = model(0)
    export_model(model(1, num_heads=1), tmp_path / "other", Config(model=ModelConfig(name=NAME, num_classes=5)), FACTS)
    monkeypatch.chdir(tmp_path / "other")
    require_same_blocks(target, "timm:deit_tiny_patch16_224")
    with pytest.raises(UserError, match="heads"):
        require_same_blocks(target, tmp_path / "other" / "model.safetensors")


def test_blocks_that_are_one_take_no_two(tmp_path):
    source, target = trunk_file(tmp_path / "source.safetensors", model(0)), model(1)
    target.blocks[2].mlp = target.blocks[1].mlp
    before = state(target)
    with pytest.raises(UserError, match=r"blocks\.2\.mlp.* \(one tensor with blocks\.1\.mlp.*, two in the source\)"):
        vitwarm.warm_start(target, source)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())
    tied = vitwarm.export(target, tmp_path / "tied")
    target = model(2)
    target.blocks[2].mlp = target.blocks[1].mlp
    vitwarm.warm_start(target, tied)
    assert torch.equal(target.blocks[2].mlp.fc1.weight, before["blocks.1.mlp.fc1.weight"])


def test_weights_for_inference_alone_are_not_changed(tmp_path):
    source = trunk_file(tmp_path / "source.safetensors", model(0))
    with torch.inference_mode():
        target = model(1)
    for use in (
        lambda: vitwarm.warm_start(target, source),
        lambda: vitwarm.warm_start(target),
        lambda: compose(target, {"attention": source, "mlp": source}),
    ):
        with pytest.raises(UserError, match="was made under torch.inference_mode"):
            use()
        with torch.inference_mode():
            use()


def test_a_model_that_cannot_be_copied_is_refused(tmp_path):
    source, target = trunk_file(tmp_path / "source.safetensors", model(0)), model(1)
    target.kept = 2 * target.head.weight
    for use in (
        lambda: compose(target, {"attention": source, "mlp": source}),
        lambda: inspect_trunk(target, "dyck"),
        lambda: vitwarm.warm_up(target, steps=1, global_batch=2),
    ):
        with pytest.raises(UserError, match="cannot be copied"):
            use()


def test_blocks_that_are_compiled_one_by_one_are_refused_and_their_weights_read(tmp_path):
    """Each is then within a module of torch's, whose name is in those of the tensors."""
    compiled, target = model(0), model(1)
    compiled.blocks[1] = torch.compile(compiled.blocks[1])
    for use in (vitwarm.warm_start, lambda m: vitwarm.warm_up(m, steps=1, global_batch=2, groups="attention")):
        with pytest.raises(UserError, match=r"blocks.1 is wrapped by torch.compile.*call its .compile\(\) instead"):
            use(compiled)
    save_file(compiled.state_dict(), tmp_path / "compiled.safetensors")
    vitwarm.warm_start(target, tmp_path / "compiled.safetensors")
    assert torch.equal(target.blocks[1].mlp.fc1.weight, compiled.blocks[1].mlp.fc1.weight)
    compiled = model(0)
    compiled.blocks[1].compile()
    assert vitwarm.warm_start(compiled).copied


@pytest.mark.parametrize(
    ("groups", "more", "demand"),
    [
        ("trunk head", {"num_classes": 3}, "the classes, or the vocabulary, must be the source's"),
        ("trunk embedding", {"img_size": 64}, "size of images and of patches, or vocabulary"),
        ("trunk", {"mlp_ratio": 2}, "width, depth and block type must be equal"),
    ],
)
def test_a_refusal_names_what_must_be_equal(tmp_path, groups, more, demand):
    source = tmp_path / "source.safetensors"
    save_file(model(0).state_dict(), source)
    with pytest.raises(UserError, match=demand):
        vitwarm.warm_start(model(1, **more), source, groups)


def test_the_folder_of_an_unfinished_warm_up_names_its_checkpoint(tmp_path):
    vitwarm.warm_up(model(0), steps=2, global_batch=2, dir=tmp_path / "warm", progress=False)
    with pytest.raises(UserError, match="holds no weights but its checkpoints'; give .*step-00000002"):
        vitwarm.warm_start(model(1), tmp_path / "warm")
    assert vitwarm.warm_start(model(1), tmp_path / "warm/checkpoints/step-00000002").copied
