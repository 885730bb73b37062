"""The recipes that start from images seen before, whole and tiny: formula images for a warm-up, and fine-tuning."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.transfer.groups import group_of

ROOT = Path(__file__).parents[2]
TINY = [
    "model.name=test_vit", "model.args={img_size: 16, patch_size: 4}", "run.workers=0",
    "train.global_batch=8", "train.lr_warmup=1 steps", "images.epochs=0.02", "images.eval_every=100",
]  # fmt: skip
DIGITS = ["images.train=digits", "images.val=digits", "model.num_classes=10", "images.size=16"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


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
    """Group -> whether its tensors are equal, where the shapes are."""
    found: dict[str, set[bool]] = {}
    for name in a:
        group = group_of(name)
        group = "trunk" if group in ("attention", "mlp", "norm") else group
        found.setdefault(group, set()).add(a[name].shape == b[name].shape and torch.equal(a[name], b[name]))
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
    assert found["trunk"] == {True} and True not in found["stem"] | found["head"]
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
    assert found == {"trunk": {True}, "stem": {True}, "head": {False}}
    moved = {n: (t - start[n]).abs().max().item() for n, t in tensors(tmp_path / "tuned/export").items()}
    assert moved["patch_embed.proj.weight"] < moved["blocks.5.attn.qkv.weight"]  # layer decay
