"""An export in plain timm: equal logits, true metadata, whole or absent."""

import json
import os

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from vitwarm.config import Config, ImagesConfig, ModelConfig
from vitwarm.errors import UserError
from vitwarm.exports import export_model
from vitwarm.exports.opening import open_model
from vitwarm.trunk import ImageModel, build_model
from vitwarm.validate import validate_export

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
DROPS = {"drop_rate": 0.2, "pos_drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.2,
         "patch_drop_rate": 0.2}  # fmt: skip
FACTS = {
    "recipe": "a_recipe",
    "recipe_hash": "0123456789ab",
    "start": "warm-up of 5 steps on dyck",
    "trained": "images",
    "dataset": "digits",
    "warmed_keys": ["blocks.0.attn.qkv.weight"],
    "metrics": {"top1": 0.5, "count": 10},
}


def made(name="deit_tiny_patch16_224", arguments=SMALL, classes=5):
    config = Config(
        name="a_recipe",
        description="On `x: y`, # and 'quotes'.",
        model=ModelConfig(name=name, num_classes=classes, args=dict(arguments)),
        images=ImagesConfig(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], eval_crop_pct=0.9, interpolation="bilinear"),
    )
    model = build_model(config.model, "images", seed=0).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return config, model


def exported(folder, **made_with):
    config, model = made(**made_with)
    export_model(model, folder, config, FACTS)
    return config, model


def load(folder, **arguments):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deit_tiny_patch16_224", SMALL),
        ("deit_tiny_patch16_224", SMALL | DROPS),
        ("deit_tiny_patch16_224", SMALL | {"global_pool": "avg", "class_token": False}),
        ("deit_tiny_distilled_patch16_224", SMALL),
        ("deit3_small_patch16_224", SMALL),
        ("vit_base_patch16_siglip_224", SMALL),
        ("vit_base_patch16_clip_224", SMALL),
        ("vit_medium_patch16_reg4_gap_256", SMALL),
        ("eva02_tiny_patch14_224", SMALL | {"img_size": 28, "patch_size": 7}),
        ("vit_small_patch16_dinov3", SMALL),
        ("vit_base_patch16_rope_mixed_224", SMALL),
        ("beit_base_patch16_224", SMALL),
        ("beitv2_base_patch16_224", SMALL | {"use_shared_rel_pos_bias": True}),
        ("vit_relpos_base_patch16_224", SMALL | {"rel_pos_type": "bias"}),
        ("vit_srelpos_small_patch16_224", SMALL | {"rel_pos_type": "bias"}),
        ("test_vit", {}),
        ("test_vit", {"dynamic_img_size": True}),
    ],
)
def test_plain_timm_gives_our_logits_bit_for_bit(tmp_path, name, arguments):
    _, model = exported(tmp_path / "export", name=name, arguments=arguments)
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    theirs = load(tmp_path / "export")
    ours = ImageModel(model).eval()(images)
    assert torch.equal(theirs(images), ours)
    drops = [m for m in theirs.modules() if getattr(m, "p", 0) or getattr(m, "drop_prob", 0)]
    assert type(theirs) is type(model) and not drops  # settings of training are not baked in
    assert torch.equal(theirs.train()(images), theirs(images)) and theirs.pretrained_cfg["tag"] == "vitwarm"


def test_an_mlp_of_relative_positions_is_exported_with_the_dropout_that_timm_gives_it(tmp_path):
    _, model = exported(tmp_path / "export", name="vit_relpos_base_patch16_224")
    theirs, images = load(tmp_path / "export"), torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs(images), ImageModel(model).eval()(images))
    assert theirs.blocks[0].attn.rel_pos.mlp.drop1.p == model.blocks[0].attn.rel_pos.mlp.drop1.p == 0.125


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("test_vit", {"img_size": 32, "dynamic_img_size": True}, 64),
        ("test_vit", {}, 64),  # of 160 pixels
        ("test_vit", {"img_size": 32, "dynamic_img_size": True, "dynamic_img_pad": True}, 70),
        ("vit_small_patch16_dinov3", {**SMALL, "patch_size": 16}, 64),
        ("eva02_tiny_patch14_224", SMALL | {"img_size": 28, "patch_size": 7, "dynamic_img_size": True}, 56),
    ],
)
def test_an_export_is_of_the_size_that_was_trained(tmp_path, name, arguments, size):
    """The model keeps its own size, which its positions have; images are prepared in the size of the recipe."""
    config, model = made(name=name, arguments=arguments)
    config.images.size = size
    export_model(model, tmp_path / "export", config, FACTS)
    theirs, images = load(tmp_path / "export"), torch.randn(2, 3, size, size)
    assert tuple(resolve_model_data_config(theirs)["input_size"]) == (3, size, size)
    assert theirs.patch_embed.img_size == model.patch_embed.img_size and torch.equal(theirs(images), model(images))
    again = open_model(str(tmp_path / "export"))
    assert (again.config.images.size, again.model.patch_embed.img_size) == (size, model.patch_embed.img_size)


def test_transformers_reads_an_export(tmp_path):
    transformers = pytest.importorskip("transformers")
    _, model = exported(tmp_path / "export")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "export").eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs(pixel_values=images).logits, model(images)) and theirs.config.num_labels == 5


def test_other_image_size_and_classes(tmp_path):
    """Positions are resized as timm resizes them; all other tensors are ours."""
    _, model = exported(tmp_path / "export")
    other = load(tmp_path / "export", img_size=48, num_classes=3)
    ours, theirs = model.state_dict(), other.state_dict()
    expected = timm.layers.resample_abs_pos_embed(ours["pos_embed"], [6, 6], num_prefix_tokens=1)
    assert torch.equal(theirs["pos_embed"], expected)
    same = set(ours) - {"pos_embed", "head.weight", "head.bias"}
    assert all(torch.equal(theirs[n], ours[n]) for n in same)
    assert other(torch.randn(2, 3, 48, 48)).shape == (2, 3)
    assert load(tmp_path / "export", num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 48)


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "deit3_small_patch16_224", "vit_small_patch16_dinov3"])
def test_metadata_is_ours_and_nothing_of_timms_weights(tmp_path, name):
    """1000 classes as timm's own weights have, so that nothing but the exporter keeps their labels away."""
    config, model = exported(tmp_path / "export", name=name, classes=1000)
    text = (tmp_path / "export" / "config.json").read_text()
    cfg = json.loads(text)
    assert cfg["architecture"] == name and cfg["num_classes"] == 1000
    weights = cfg["pretrained_cfg"]
    assert (weights["tag"], weights["license"]) == ("vitwarm", "apache-2.0")
    for word in ("augreg", "imagenet", "label_", "url", "fb_in", "lvd", "hf_hub_id", "dinov3-license", "notes"):
        assert word not in text.lower(), word
    loaded = load(tmp_path / "export")
    for use_test_size in (False, True):
        data = resolve_model_data_config(loaded, use_test_size=use_test_size)
        assert tuple(data["mean"]) == (0.1, 0.2, 0.3) and tuple(data["std"]) == (0.4, 0.5, 0.6)
        assert tuple(data["input_size"]) == (3, 32, 32)
        assert (data["crop_pct"], data["interpolation"], data["crop_mode"]) == (0.9, "bilinear", "center")


def test_folder_is_complete_and_without_pickle(tmp_path):
    exported(tmp_path / "export")
    names = {p.name for p in (tmp_path / "export").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md", "vitwarm.json"}
    facts = json.loads((tmp_path / "export" / "vitwarm.json").read_text())
    assert facts == FACTS | {"trunk": {"block": "Block", "width": 48, "depth": 2, "heads": 3}}
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_an_older_export_is_replaced_as_a_whole(tmp_path):
    exported(tmp_path / "export")
    (tmp_path / "export" / "merges.txt").write_text("of a tokenizer that the new export does not have")
    (tmp_path / ".export.tmp").mkdir()
    (tmp_path / ".export.tmp" / "half").write_text("of a run that was killed")
    _, model = exported(tmp_path / "export", classes=9)
    assert load(tmp_path / "export").num_classes == 9
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    assert not (tmp_path / "export" / "merges.txt").exists() and not (tmp_path / "export" / "half").exists()


@pytest.mark.parametrize("broken", ["exports.timm_folder.save_for_hf", "exports.timm_folder.model_card", "files.flush"])
def test_a_full_disk_leaves_the_older_export(tmp_path, monkeypatch, broken):
    _, model = exported(tmp_path / "export")
    before = {p.name: p.read_bytes() for p in (tmp_path / "export").iterdir()}

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    config, other = made(classes=9)
    monkeypatch.setattr(f"vitwarm.{broken}", full)
    with pytest.raises(OSError, match="No space"):
        export_model(other, tmp_path / "export", config, FACTS)
    assert {p.name: p.read_bytes() for p in (tmp_path / "export").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_a_kill_between_the_renames_is_mended_by_the_next_export(tmp_path):
    exported(tmp_path / "export")
    os.rename(tmp_path / "export", tmp_path / ".export.old")
    exported(tmp_path / "export")
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "hf-hub:timm/vit_tiny_patch16_224"}, "timm has no architecture 'hf-hub"),
        ({"architecture": "local-dir:/elsewhere"}, "timm has no architecture 'local-dir"),
        ({"model_args": {**SMALL, "checkpoint_path": "/elsewhere"}}, "checkpoint_path"),
        ({"model_args": {**SMALL, "pretrained": True}}, "pretrained"),
    ],
)
def test_a_configuration_leads_nowhere_else(tmp_path, change, says):
    exported(tmp_path / "export")
    file = tmp_path / "export/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=says):
        open_model(str(tmp_path / "export"))


def test_other_images_than_rgb_are_not_validated(tmp_path):
    exported(tmp_path / "export", arguments=SMALL | {"in_chans": 1})
    with pytest.raises(UserError, match="only images in RGB can be validated"):
        validate_export(str(tmp_path / "export"), "digits", workers=0)
