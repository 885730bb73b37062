"""`vitwarm.export`: a model that somebody has, in a folder that gives its logits in plain timm or transformers."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, GPT2Config, GPT2LMHeadModel

import vitwarm
from vitwarm.errors import UserError
from vitwarm.exports import export_gpt2
from vitwarm.exports.opening import lineage
from vitwarm.transfer import compose
from vitwarm.trunk import build_decoder

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
DROP = 0.2
DROPS = {"drop_rate": DROP, "drop_path_rate": DROP, "patch_drop_rate": DROP}
VIT = "vit_tiny_patch16_224"


def made(name=VIT, **arguments):
    model = timm.create_model(name, **{**SMALL, **arguments}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


def timm_model(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def images_for(model):
    return torch.randn(2, model.in_chans, *getattr(getattr(model, "patch_embed", None), "img_size", None) or (32, 32))


def reads(folder, model):
    """The model of a folder, whose logits are those of the given one to the bit."""
    theirs, images = timm_model(folder).eval(), images_for(model)
    model = model.to(memory_format=torch.contiguous_format)  # in another, processors may add up in another order
    assert torch.equal(theirs(images), model(images))
    assert not [m for m in theirs.modules() if DROP in (getattr(m, "p", 0), getattr(m, "drop_prob", 0))]
    return theirs


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded by timm", "read off the model"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (VIT, {"in_chans": 1, "num_classes": 7, **DROPS}),
        (VIT, {"in_chans": 4, "global_pool": "avg", "class_token": False, "img_size": (32, 16)}),
        (VIT, {"reg_tokens": 3, "no_embed_class": True, "init_values": 1e-5, "qk_norm": True, "num_classes": 0}),
        (VIT, {"dynamic_img_size": True, "qkv_bias": False, "mlp_ratio": 2, "pos_embed": "none"}),
        (VIT, {"act_layer": nn.ReLU, "norm_layer": "rmsnorm", "global_pool": "map"}),
        ("deit_tiny_distilled_patch16_224", {"num_classes": 4}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "patch_size": 7, "num_classes": 4}),
        ("vit_small_patch16_dinov3", {"num_classes": 10}),
        ("beit_base_patch16_224", {"num_classes": 10}),
        ("vit_relpos_base_patch16_224", {"num_classes": 10}),
        ("naflexvit_base_patch16_gap", {"img_size": None, "reg_tokens": 0, "in_chans": 1}),
    ],
)
def test_arguments_are_those_that_make_the_model(tmp_path, name, arguments, recorded):
    model = made(name, **arguments)
    if not recorded:
        model._model_args = {}
    vitwarm.export(model, tmp_path / "out")
    reads(tmp_path / "out", model)


def _head(model):
    model.head = nn.Linear(48, 9)


CHANGES = {
    "another head": _head,
    "classifier and pooling": lambda model: model.reset_classifier(5, "avg"),
    "other input": lambda model: model.set_input_size((64, 32), patch_size=16),
    "fewer blocks": lambda model: model.prune_intermediate_layers([0]),
    "torch's own norm": lambda model: setattr(model, "norm", nn.LayerNorm(48, eps=1e-6)),
    "layout": lambda model: model.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_since_the_model_was_made_are_seen(tmp_path, change):
    model = made()
    CHANGES[change](model)
    vitwarm.export(model, tmp_path / "out")
    theirs = reads(tmp_path / "out", model)
    described = json.loads((tmp_path / "out/config.json").read_text())
    wanted = {"another head": 9, "classifier and pooling": 5, "fewer blocks": 0}.get(change, 1000)
    assert described["num_classes"] == described["pretrained_cfg"]["num_classes"] == theirs.num_classes == wanted


@pytest.mark.parametrize("wrap", [ModelEmaV3, AveragedModel, torch.compile, nn.DataParallel])
def test_what_is_around_a_model_is_looked_through(tmp_path, wrap):
    model = made(num_classes=3)
    vitwarm.export(wrap(model), tmp_path / "out")
    reads(tmp_path / "out", model)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    images = images_for(model)
    assert torch.equal(theirs(pixel_values=images).logits, model(images))
    vitwarm.export(theirs, tmp_path / "again")  # timm's model within transformers' wrapper
    reads(tmp_path / "again", model)


def test_what_may_compute_something_around_a_model_is_refused(tmp_path):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = made()

        def forward(self, x):
            return self.module(x).log_softmax(-1)

    hooked = nn.DataParallel(made())
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    for model, says in ((Normalised(), "a Normalised may compute"), (hooked, "the DataParallel has a forward hook")):
        with pytest.raises(UserError, match=says):
            vitwarm.export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_preprocessing_and_licence_are_the_models_own(tmp_path):
    """Those of the weights that it began with, not of the architecture's default ones, also read and exported again."""
    own = {"mean": [0.1, 0.2, 0.3], "crop_mode": "squash", "crop_pct": 0.8, "license": "mit"}
    first = made("vit_base_patch16_224.mae", num_classes=3)
    read = (timm_model, AutoModelForImageClassification.from_pretrained)
    second = made(pretrained_cfg_overlay=own)
    for model, wanted in ((first, {k: first.pretrained_cfg[k] for k in ("license", "crop_pct")}), (second, own)):
        assert wanted != {k: timm.create_model(VIT).pretrained_cfg.get(k) for k in wanted}
        vitwarm.export(model, tmp_path / "0")
        for number, again in enumerate(read, 1):
            vitwarm.export(again(tmp_path / "0"), tmp_path / f"{number}")
        for folder in "012":
            described = json.loads((tmp_path / folder / "config.json").read_text())["pretrained_cfg"]
            assert {k: described[k] for k in wanted} == wanted


def test_parameters_that_share_memory_are_written_apart(tmp_path):
    model = made()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    model.blocks[1].attn = model.blocks[0].attn
    vitwarm.export(model, tmp_path / "out")
    reads(tmp_path / "out", model)


def test_a_model_made_for_inference_is_exported(tmp_path):
    with torch.inference_mode():
        model = made()
    vitwarm.export(model, tmp_path / "out")
    with torch.inference_mode():
        reads(tmp_path / "out", model)


def test_a_link_stays_a_link(tmp_path):
    vitwarm.export(made(), tmp_path / "there")
    (tmp_path / "link").symlink_to("there")
    model = made()
    vitwarm.export(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    reads(tmp_path / "there", model)


def gpt2(**more):
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0, **more
        )
    ).eval()


def _cut(model):
    model.transformer.h = model.transformer.h[:1]


def _relu(model):
    model.transformer.h[1].mlp.act = nn.ReLU()


def _biased(model):
    model.lm_head = nn.Linear(16, 50)


@pytest.mark.parametrize("change", [_cut, _relu, _biased])
def test_a_gpt2_that_its_configuration_does_not_describe_is_refused(tmp_path, change):
    model = gpt2()
    vitwarm.export(model, tmp_path / "source")
    change(model)
    uses = (
        lambda: vitwarm.export(model, tmp_path / "out"),
        lambda: vitwarm.warm_start(model, tmp_path / "source"),
        lambda: vitwarm.warm_up(model, steps=1, global_batch=2, length=8),
    )
    for use in uses:
        with pytest.raises(UserError, match="is not what its configuration makes"):
            use()


def test_a_gpt2_with_more_tokens_or_checkpointed_gradients_is_what_it_was(tmp_path):
    model = gpt2()
    model.resize_token_embeddings(60, mean_resizing=False)
    model.gradient_checkpointing_enable()
    vitwarm.export(model, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(44, 60)[None]
    assert torch.equal(theirs(tokens).logits, model(tokens).logits)


def test_a_model_around_another_is_no_wrapper():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.adapter = made(), nn.Linear(10, 2)

    with pytest.raises(UserError, match="Adapted"):
        vitwarm.export(Adapted(), "nowhere")


def _eps(model):
    model.norm.eps = 1e-2


def _nan(model):
    model.head.weight.data[0, 0] = float("nan")


def _packed(model):
    """Quantised layers keep scales and packed weights like this."""
    model.head.__class__ = type("Linear", (nn.Linear,), {"get_extra_state": lambda self: {"scale": 0.5}})


def _adapted(model):
    """A layer of the same name and tensors that computes something else."""
    model.head.__class__ = type("Linear", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})


@pytest.mark.parametrize(
    ("model", "change", "arguments", "reason"),
    [
        (made, _eps, {}, r"is another model: norm.eps is 0.01 in the model, 1e-06 there; give model_args"),
        (
            lambda: made(block_fn=ParallelScalingBlock),
            None,
            {},
            "type of blocks.0 is ParallelScalingBlock in the model, Block there",
        ),
        (made, None, {"model_args": {"depth": 3}}, "type of blocks.2 is absent in the model, Block there"),
        (made, None, {"model_args": {"dept": 3}}, "timm cannot build .* check model_args"),
        (made, None, {"model_args": {"act_layer": nn.ReLU}}, "model_args: act_layer is .*, which no file can hold"),
        (made, _nan, {}, "head.weight has values that are not finite"),
        (lambda: made().to("meta"), None, {}, "on the device meta"),
        (lambda: GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=4, n_head=2)).to("meta"), None, {}, "on the device meta"),
        (lambda: VisionTransformer(img_size=32), None, {}, "make it with timm.create_model"),
        (lambda: timm.create_model("resnet18"), None, {}, "ResNet cannot be warmed up"),
        (lambda: "vit", None, {}, "'vit' is no model"),
        (made, lambda m: m.blocks[0].register_forward_hook(print), {}, r"blocks.0 has a forward hook \(print\)"),
        (made, lambda m: m.register_forward_pre_hook(print), {}, r"the model has a forward hook \(print\)"),
        (made, lambda m: weight_norm(m.blocks[1].mlp.fc1), {}, "blocks.1.mlp.fc1 is parametrized"),
        (made, lambda m: setattr(m.blocks[0], "forward", print), {}, "blocks.0 has a forward that is not its class's"),
        (made, lambda m: setattr(m, "forward_head", print), {}, "the model has a forward_head that is not its class's"),
        (made, _adapted, {}, r"type of head is .*\.Linear in the model, Linear there"),
        (made, _packed, {}, "head._extra_state of the model is no tensor: it was quantised"),
        (made, None, {"push": 3}, "push is 3; give a text that is not empty"),
        (made, None, {"license": ""}, "license is ''; give a text that is not empty"),
        (made, None, {"model_args": "gelu"}, "model_args is 'gelu'; give a mapping"),
    ],
)
def test_what_cannot_be_told_is_refused_in_one_line(tmp_path, model, change, arguments, reason):
    model = model()
    if change:
        change(model)
    with pytest.raises(UserError, match=reason) as caught:
        vitwarm.export(model, tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "call", [lambda place: vitwarm.export(made(), place), lambda place: vitwarm.warm_start(made(), place)]
)
def test_the_home_of_nobody_is_named(call):
    with pytest.raises(UserError, match="~nobody-there/x: Could not determine home directory"):
        call("~nobody-there/x")


def test_only_an_older_export_is_replaced(tmp_path, monkeypatch):
    """Anything else that stands there would be lost."""
    model, thesis, mine = made(), tmp_path / "thesis", tmp_path / "mine"
    mine.mkdir()
    for _ in range(2):
        vitwarm.export(model, mine)
    (mine / "optimizer.pt").write_text("of the same model")
    with pytest.raises(UserError, match="mine holds optimizer.pt, which is no part of an export; move that away"):
        vitwarm.export(model, mine)
    (mine / "optimizer.pt").unlink()
    (mine / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in (thesis, thesis / "chapter.txt", thesis / "chapter.txt/new", mine, ".", "..", "missing/../thesis"):
        thesis.mkdir(exist_ok=True)
        (thesis / "chapter.txt").write_text("mine")
        with pytest.raises(UserError, match="give (a folder to make|another folder)"):
            vitwarm.export(model, place)
    with pytest.raises(UserError, match="thesis holds chapter.txt, which is no part of an export"):
        export_gpt2(build_decoder("1_1_4", 8, 8, "x", seed=0), "missing/../thesis")
    assert (thesis / "chapter.txt").read_text() == "mine" and sorted(tmp_path.iterdir()) == [mine, thesis]
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(UserError, match="cannot export to"):
        vitwarm.export(model, empty)  # the current folder would be moved away


def test_numbers_of_numpy_are_numbers(tmp_path):
    labels = np.array([0, 4, 6])
    model = made(num_classes=labels.max() + 1, reg_tokens=np.int64(2), img_size=(np.int64(32),) * 2)
    vitwarm.export(model, tmp_path / "out", model_args={"depth": np.int64(2)})
    assert reads(tmp_path / "out", model).num_classes == 7
    model.reset_classifier(np.int64(5))
    vitwarm.export(model, tmp_path / "out")
    assert reads(tmp_path / "out", model).num_classes == 5


def test_arguments_that_are_given_are_used(tmp_path):
    model = made(mlp_ratio=2)
    model._model_args = {}
    vitwarm.export(model, tmp_path / "out", model_args={**SMALL, "mlp_ratio": 2})
    assert reads(tmp_path / "out", model).blocks[0].mlp.fc1.out_features == 96


def test_preprocessing_and_licence_are_those_of_the_model(tmp_path):
    model = made("vit_small_patch16_dinov3", num_classes=3)
    for given, named in ((None, "dinov3-license"), ("mit", "mit")):
        vitwarm.export(model, tmp_path / "out", license=given)
        weights = json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]
        assert (weights["license"], weights["tag"]) == (named, "vitwarm")
        assert (weights["mean"], weights["input_size"]) == (list(model.pretrained_cfg["mean"]), [3, 32, 32])
    assert ModelCard.load(tmp_path / "out/README.md").data.license == "mit"


def test_names_of_classes_stay_with_the_head(tmp_path):
    names = ["ant", "bee", "cat"]

    def exported(model):
        vitwarm.export(model, tmp_path / "out")
        return timm_model(tmp_path / "out")

    def named():
        return made(num_classes=3, pretrained_cfg_overlay={"label_names": names})

    vitwarm.export(made(num_classes=3), tmp_path / "other")
    model, other_head, trunk_alone = exported(exported(named())), named(), named()
    assert model.pretrained_cfg["label_names"] == names
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert theirs.config.id2label == dict(enumerate(names))
    assert exported(theirs).pretrained_cfg["label_names"] == names
    nameless = AutoModelForImageClassification.from_pretrained(tmp_path / "other")
    assert "label_names" not in exported(nameless).pretrained_cfg
    vitwarm.warm_start(trunk_alone, tmp_path / "other")
    assert exported(trunk_alone).pretrained_cfg["label_names"] == names
    vitwarm.warm_start(other_head, tmp_path / "other", ["trunk", "head"])
    model.reset_classifier(4)
    for without in (other_head, model):
        assert "label_names" not in exported(without).pretrained_cfg


def test_licence_and_base_models_follow_the_sources(tmp_path):
    """Weights of others without a record have a licence that nobody knows."""
    model = made()
    vitwarm.export(model, tmp_path / "mine", license="mit")
    (tmp_path / "alone").mkdir()
    dinov3, mine, alone = "timm:vit_small_patch16_dinov3", tmp_path / "mine/model.safetensors", tmp_path / "alone/x"
    base = ["timm/vit_small_patch16_dinov3.lvd1689m"]
    for sources, wanted in (
        ([], {"base_models": [], "license": "apache-2.0"}),
        ([dinov3], {"base_models": base, "license": "dinov3-license"}),
        ([str(mine)], {"base_models": [], "license": "mit"}),
        ([dinov3, str(mine)], {"base_models": base, "license": "unknown"}),
        ([str(alone)], {"base_models": [], "license": "unknown"}),
    ):
        assert lineage(sources) == wanted


WARM_UP = {"global_batch": 4, "val_rows": 8, "progress": False}


def told(folder, model):
    """Provenance and card of the model's export."""
    vitwarm.export(model, folder)
    return json.loads((folder / "vitwarm.json").read_text()), (folder / "README.md").read_text()


def test_the_card_of_a_warmed_model_says_no_more_than_is_known(tmp_path):
    model = made(num_classes=3)
    report = vitwarm.warm_up(model, {"name": "dyck", "k": 4}, steps=2, **WARM_UP)
    record, text = told(tmp_path / "out", model)
    reads(tmp_path / "out", model)
    assert record["start"] == "warm-up of 2 steps on dyck" and record["warmed_keys"] == report.transfer.copied
    assert sorted(record["fresh_keys"]) == sorted(report.transfer.fresh)
    assert (
        "warm-up of 2 steps on dyck; what was done to its weights elsewhere, if anything, is not recorded here." in text
    )
    assert "trained on images" not in text and "model-index" not in text


def test_the_card_says_how_often_the_middle_block_ran(tmp_path):
    """Which the tensors do not tell."""
    model = made(num_classes=3, depth=3)
    vitwarm.warm_up(model, {"name": "dyck", "k": 4}, steps=2, middle_runs=2, **WARM_UP)
    record, text = told(tmp_path / "out", model)
    assert record["start"] == "warm-up of 2 steps on dyck, the middle block run 2 times" and record["start"] in text


def test_the_card_tells_what_was_done_in_order_as_far_as_it_is_left(tmp_path):
    """A warm-up goes on from what was there; other weights, and another start of the attention, take its place."""
    model, source = made(), tmp_path / "source"
    trunk = {name for name in model.state_dict() if name.startswith(("blocks.", "norm."))}
    matrices = {n for n in trunk if ".attn." in n}
    vitwarm.export(model, source, license="mit")
    dyck, other, copied = "warm-up of 1 steps on dyck", "warm-up of 1 steps on set", f"weights of {source}"

    parts, composed = {"attention": source, "mlp": source}, f"composed: attention of {source}, mlp of {source}"

    def mimetic():
        vitwarm.initialise(model, "mimetic", seed=0)

    def warm_up(rule="dyck", seed=0):
        vitwarm.warm_up(model, rule, steps=1, seed=seed, **WARM_UP)

    def warm_start(groups="trunk"):
        vitwarm.warm_start(model, source, groups)

    for act, start, seed, warmed in (
        (mimetic, "initialised as mimetic", 0, set()),
        (warm_up, f"initialised as mimetic; then {dyck}", 0, trunk),
        (warm_start, copied, None, trunk),
        (warm_up, f"{copied}; then {dyck}", 0, trunk),
        (lambda: warm_up("set", 3), f"{copied}; then {dyck} (seed 0); then {other} (seed 3)", None, trunk),
        (lambda: warm_start("attention mlp norm"), f"attention mlp norm of {source}", None, trunk),
        (mimetic, f"attention mlp norm of {source}; then initialised as mimetic", 0, trunk - matrices),
        (lambda: compose(model, parts), f"attention mlp norm of {source}; then {composed}", None, trunk),
        (mimetic, f"attention mlp norm of {source}; then {composed}; then initialised as mimetic", 0, trunk - matrices),
    ):
        act()
        record, text = told(tmp_path / "out", copy.deepcopy(model))
        assert record["start"] == start and f", {start}; what was done to its weights elsewhere" in text
        assert record.get("seed") == seed
        assert set(record["warmed_keys"]) == warmed and set(record["fresh_keys"]) == set(model.state_dict()) - warmed
        assert record["license"] == ("mit" if str(source) in start else "apache-2.0")
    model.prune_intermediate_layers([0])
    assert set(told(tmp_path / "out", model)[0]["warmed_keys"]) == (trunk - matrices) & set(model.state_dict())


def test_decoders_become_folders_of_transformers(tmp_path):
    ours = build_decoder("2_2_32", 50, 40, "test", seed=0).eval()
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=40, bos_token_id=1, eos_token_id=2)
    theirs = GPT2LMHeadModel(config).eval()
    tokens = torch.randint(50, (2, 40))
    for model, logits in ((ours, ours(tokens)), (theirs, theirs(tokens).logits)):
        vitwarm.export(model, tmp_path / "out")
        read = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        torch.testing.assert_close(read(tokens).logits, logits, atol=1e-5, rtol=1e-5)
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {"config.json", "generation_config.json", "model.safetensors", "vitwarm.json", "README.md"}
        trunk = json.loads((tmp_path / "out/vitwarm.json").read_text())["trunk"]
        assert trunk == {"block": "Block", "width": 32, "depth": 2, "heads": 2}
        assert ModelCard.load(tmp_path / "out/README.md").data.library_name == "transformers"
    assert (read.config.bos_token_id, read.config.eos_token_id) == (1, 2)
    assert vitwarm.warm_start(ours, tmp_path / "out").copied


def test_a_gpt2_that_transformers_does_not_save_is_refused_in_one_line(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8, n_positions=8))
    model.generation_config.temperature = 0.5  # of sampling, which is off
    with pytest.raises(UserError, match="transformers does not save the GPT2LMHeadModel: .*temperature") as caught:
        vitwarm.export(model, tmp_path / "out")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
