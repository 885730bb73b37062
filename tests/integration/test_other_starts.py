"""The recipes that start from what was seen before, whole and tiny: formula images, fine-tuning, the other modality."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vitwarm.assembly import assemble
from vitwarm.errors import UserError
from vitwarm.reading import read_json
from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.transfer import read_source
from vitwarm.transfer.groups import group_of
from vitwarm.trunk import build_model

ROOT = Path(__file__).parents[2]
TINY = [
    "model.name=test_vit", "model.args={img_size: 16, patch_size: 4}", "run.workers=0",
    "train.global_batch=8", "train.lr_warmup=1 steps", "images.epochs=0.02", "images.eval_every=100",
]  # fmt: skip
DIGITS = ["images.train=digits", "images.val=digits", "model.num_classes=10", "images.size=16"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_a_part_of_a_larger_timm_model_which_keeps_its_own_shape(monkeypatch):
    drawn = {}

    def stand_in(model, *args, pretrained=False, **more):  # fresh weights in place of those that are fetched
        built = build_model(model, *args, **more)
        return drawn.setdefault("source", built) if pretrained else built

    monkeypatch.setattr("vitwarm.assembly.build_model", stand_in)
    shape = "model.args={img_size: 16, patch_size: 4, embed_dim: 48, depth: 2, num_heads: 3}"
    given = ["init_from=timm:vit_tiny_patch16_224", "transfer.fit=select", "model.name=vit_tiny_patch16_224", shape]
    parts = assemble(load_recipe(["recipe=digits_default", *DIGITS, *given]), 1)
    taken = parts.model.state_dict()["blocks.1.norm1.bias"], parts.model.state_dict()["blocks.1.mlp.fc1.weight"]
    source = drawn["source"].state_dict()
    assert len(drawn["source"].blocks) == 12
    assert torch.equal(taken[0], source["blocks.1.norm1.bias"][::4])
    assert torch.equal(taken[1], source["blocks.1.mlp.fc1.weight"][::4, ::4])
    with pytest.raises(UserError, match="transfer.fit=select resizes the trunk alone; leave out embedding"):
        assemble(load_recipe(["recipe=digits_default", *DIGITS, *given, "transfer.groups=[trunk, embedding]"]), 1)


def attractor(rng: np.random.Generator, points: int = 2000, side: int = 20) -> Image.Image:
    """An image of an iterated function system, as the formula-driven sets are made of."""
    maps, point, picture = rng.uniform(-0.7, 0.7, (3, 2, 3)), np.zeros(3), np.zeros((side, side), np.uint8)
    point[2] = 1
    for choice in rng.integers(3, size=points):
        point[:2] = maps[choice] @ point
        column, row = np.clip((np.tanh(point[:2]) + 1) / 2 * side, 0, side - 1).astype(int)
        picture[row, column] = 200
    return Image.fromarray(picture).convert("RGB")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_by_group(a: dict, b: dict) -> dict[str, set[bool]]:
    """Group -> whether a's tensors are b's as well."""
    found: dict[str, set[bool]] = {}
    for name in a:
        group = group_of(name)
        group = "trunk" if group in ("attention", "mlp", "norm") else group
        found.setdefault(group, set()).add(name in b and torch.equal(a[name], b[name]))
    return found


def test_formula_images_become_a_trunk(tmp_path):
    for number in range(4):
        folder = tmp_path / "rendered" / f"{number:05d}"
        folder.mkdir(parents=True)
        for instance in range(6):
            attractor(np.random.default_rng([number, instance // 3])).save(folder / f"{instance}.png")
    command = [sys.executable, "tools/make_shards.py", f"source={tmp_path / 'rendered'}", f"out={tmp_path / 'shards'}"]
    made = subprocess.run([*command, "workers=1"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    formula = load_recipe(
        ["recipe=formula_vit_b", *TINY, f"images.train={tmp_path / 'shards'}", "model.num_classes=4",
         "images.epochs=1", f"run.dir={tmp_path / 'formula'}"]
    )  # fmt: skip
    assert run(formula)["stages"]["images"]["samples"] == 24
    images = load_recipe(
        ["recipe=formula_vit_b_imagenet", *TINY, *DIGITS, f"init_from={tmp_path / 'formula/export'}",
         f"run.dir={tmp_path / 'images'}"]
    )  # fmt: skip
    result = run(images)
    assert "warmup" not in result["stages"] and result["start"].startswith("weights of")
    start = tensors(tmp_path / "images/warmup")
    found = same_by_group(start, tensors(tmp_path / "formula/export"))
    assert found["trunk"] == {True} and True not in found["embedding"] | found["head"]
    assert not all(torch.equal(start[n], t) for n, t in tensors(tmp_path / "images/export").items())  # and trained on


def test_fine_tuning_keeps_the_stem_and_replaces_the_classifier(tmp_path):
    source = load_recipe(["recipe=vit_b_default", *TINY, *DIGITS, f"run.dir={tmp_path / 'source'}"])
    run(source)
    tuned = load_recipe(
        ["recipe=finetune_vit_b_cifar100", *TINY, *DIGITS, "model.num_classes=12", f"run.dir={tmp_path / 'tuned'}",
         f"init_from={tmp_path / 'source/export'}"]
    )  # fmt: skip
    run(tuned)
    start = tensors(tmp_path / "tuned/warmup")
    found = same_by_group(start, tensors(tmp_path / "source/export"))
    assert found == {"trunk": {True}, "embedding": {True}, "head": {False}}
    moved = {n: (t - start[n]).abs().max().item() for n, t in tensors(tmp_path / "tuned/export").items()}
    assert moved["patch_embed.proj.weight"] < moved["blocks.5.attn.qkv.weight"]  # layer decay


NARROW_VIT = [
    "recipe=crossmodal_vit", "model.args.embed_dim=24", "model.args.depth=2", "model.args.img_size=16", *DIGITS,
    "images.subset=40 samples", "train.global_batch=8", "run.workers=0",
]  # fmt: skip
NARROW_DECODER = ["recipe=crossmodal_decoder", "model.decoder.size=2_3_24", "run.workers=1"]
NARROW_DECODER += ["text.length=16", "text.budget=3 steps", "train.lr_warmup=1 steps"]
RULE_ALONE = ["warmup.budget=3 steps", "warmup.lr_warmup=1 steps", "warmup.length=16", "warmup.val_rows=4"]


@pytest.fixture
def books(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text(f"{json.dumps({'text': f'so {split} goes ' * 40})}\n" * 3)
    return [f"text.train={tmp_path / 'train.jsonl'}", f"text.val={tmp_path / 'val.jsonl'}"]


def ours(folder: Path) -> dict[str, torch.Tensor]:
    return read_source(folder / "model.safetensors")[0]


@pytest.mark.parametrize("source", ["text", "rule"])
def test_a_run_of_a_decoder_starts_a_vit(tmp_path, books, source):
    """The trunk is the decoder's, all else that of the run without it; and the run trains on."""
    data = books if source == "text" else ["text.train=", "text.val=", *RULE_ALONE]
    run(load_recipe([*NARROW_DECODER, *data, f"run.dir={tmp_path / 'source'}"]))
    done = run(load_recipe([*NARROW_VIT, f"init_from={tmp_path / 'source'}", f"run.dir={tmp_path / 'vit'}"]))
    assert done["start"].startswith("weights of") and done["metrics"]["count"] > 0
    start = ours(tmp_path / "vit/warmup")
    assert same_by_group(start, ours(tmp_path / "source/export"))["trunk"] == {True}
    fresh = assemble(load_recipe([*NARROW_VIT]), 1).model.state_dict()
    found = same_by_group(start, fresh)
    assert found["embedding"] == found["head"] == {True} and False in found["trunk"]


@pytest.mark.parametrize("source", ["images", "rule"])
def test_a_run_of_a_vit_starts_a_decoder(tmp_path, books, source):
    data = [] if source == "images" else ["images.train=", "images.val=", *RULE_ALONE]
    run(load_recipe([*NARROW_VIT, *data, f"run.dir={tmp_path / 'source'}"]))
    decoder = [*NARROW_DECODER, *books]
    done = run(load_recipe([*decoder, f"init_from={tmp_path / 'source'}", f"run.dir={tmp_path / 'decoder'}"]))
    assert done["start"].startswith("weights of") and done["metrics"]["perplexity"] > 1
    records = [read_json(tmp_path / f / "vitwarm.json") for f in ("source/export", "decoder/warmup", "decoder/export")]
    assert [record["trained"] for record in records] == ["images" if source == "images" else "warmup", None, "text"]
    assert records[2]["dataset"] and {record["license"] for record in records} == {"apache-2.0"}
    start = ours(tmp_path / "decoder/warmup")
    assert same_by_group(start, ours(tmp_path / "source/export"))["trunk"] == {True}
    fresh = assemble(load_recipe(decoder), 1).model.state_dict()
    found = same_by_group(start, fresh)
    assert found["embedding"] == {True} and False in found["trunk"]


def test_another_width_depth_or_number_of_heads_is_refused(tmp_path, books):
    run(load_recipe([*NARROW_DECODER, *books, f"run.dir={tmp_path / 'source'}"]))
    for change in ("embed_dim=48", "depth=3", "num_heads=2"):
        config = load_recipe([*NARROW_VIT, f"model.args.{change}", f"init_from={tmp_path / 'source'}"])
        with pytest.raises(UserError, match="width, depth"):
            run(config)
