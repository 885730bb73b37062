"""The start order: own checkpoint, resume_from, init_from, warm-up, fresh weights; and what a finished run does."""

import hashlib
import json
import os
import shutil

import pytest
import timm
import torch
from harness import Command, assert_complete, log, weights, write_recipe
from safetensors.torch import load_file

from vitwarm.training.checkpoint import relabel


def run(recipe, tmp_path, *more, name="run", **options):
    command = Command([f"recipe={recipe}", f"run.dir={tmp_path / name}", *more], tmp_path, **options)
    code = command.wait()
    return code, command


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_finished_run_is_left_as_it_is(tmp_path, recipe, undisturbed):
    before = snapshot(undisturbed)
    command = Command([f"recipe={recipe}", f"run.dir={undisturbed}"], tmp_path)
    assert command.wait() == 0
    assert "top-1 accuracy" in command.out
    assert snapshot(undisturbed) == before


def test_the_export_is_the_moving_average_and_plain_timm_loads_it(undisturbed):
    newest = sorted((undisturbed / "checkpoints").glob("step-*"))[-1]
    average = load_file(newest / "ema.safetensors")
    model = timm.create_model(f"local-dir:{undisturbed / 'export'}", pretrained=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, average[f"vit.{name}"])


def test_result_json_says_what_it_cost(undisturbed):
    result = json.loads((undisturbed / "result.json").read_text())
    warmup, images = result["stages"]["warmup"], result["stages"]["images"]
    assert (warmup["samples"], images["samples"]) == (160, 288)
    assert (warmup["tokens"], images["tokens"]) == (160 * 17, 288 * 17)
    assert result["metrics"] == images["metrics"]
    assert result["metrics"]["count"] == 360
    width, depth, tokens = 32, 2, 17
    block = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
    others = 2 * 16 * 12 * width + 2 * width * 10  # patch embedding and classifier
    assert images["flops"] == 288 * 3 * (depth * block + others)
    assert result["warmup_share_of_samples"] == pytest.approx(160 / 288)


def test_another_recipe_in_the_folder_is_refused_and_nothing_touched(tmp_path, recipe, undisturbed):
    before = snapshot(undisturbed)
    command = Command([f"recipe={recipe}", f"run.dir={undisturbed}", "train.lr=0.5"], tmp_path)
    assert command.wait() == 2
    assert "another recipe" in command.err
    assert snapshot(undisturbed) == before


@pytest.mark.parametrize("which", ["run folder", "checkpoint of the warm-up", "checkpoint of the images"])
def test_resume_from_ends_with_the_same_bits(tmp_path, recipe, undisturbed, which):
    source = tmp_path / "source"
    code, _ = run(recipe, tmp_path, "run.keep_last=99", name="source", die="/.export.tmp/")
    assert code == -9
    checkpoints = source / "checkpoints"
    chosen = {
        "run folder": source,
        "checkpoint of the warm-up": checkpoints / "step-00000004",
        "checkpoint of the images": checkpoints / "step-00000014",
    }[which]
    code, command = run(recipe, tmp_path, f"resume_from={chosen}")
    assert code == 0, command.err
    assert_complete(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(undisturbed)
    steps = [e["run_step"] for e in log(tmp_path / "run")]
    assert steps == sorted(set(steps))


def test_a_run_of_another_version_goes_on(tmp_path, recipe, undisturbed):
    """A version that knows more keys gives the same recipe another hash; the recipe beside the checkpoints tells."""
    assert run(recipe, tmp_path, die="/.export.tmp/")[0] == -9
    checkpoint = max((tmp_path / "run").glob("checkpoints/step-*"))
    frozen = tmp_path / "run" / "recipe.yaml"
    bears, other = json.loads((checkpoint / "state.json").read_text())["recipe_hash"], "0123456789ab"
    relabel(checkpoint, other)
    code, command = run(recipe, tmp_path)
    assert code == 2
    assert "another recipe" in command.err
    frozen.write_text(frozen.read_text().replace(bears, other))
    code, command = run(recipe, tmp_path)
    assert code == 0, command.err
    assert "resuming from" in command.out
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_the_own_checkpoint_comes_before_resume_from(tmp_path, recipe, undisturbed):
    assert run(recipe, tmp_path, name="source", die="/.export.tmp/")[0] == -9
    assert run(recipe, tmp_path, die="/.step-00000010.tmp/")[0] == -9
    code, command = run(recipe, tmp_path, f"resume_from={tmp_path / 'source'}")
    assert code == 0
    assert "(warmup step 8)" in command.out or "(warmup step 6)" in command.out
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_a_kill_while_resume_from_is_brought_in(tmp_path, recipe, undisturbed):
    assert run(recipe, tmp_path, name="source", die="/.export.tmp/")[0] == -9
    half = """
import os
from vitwarm import run_folder
copy_plain = run_folder.copy_plain
def cut(source, target):
    copy_plain(source, target)
    if 'step-' in str(target):
        os.kill(os.getpid(), 9)
run_folder.copy_plain = cut
"""
    assert run(recipe, tmp_path, f"resume_from={tmp_path / 'source'}", before=half)[0] == -9
    assert list((tmp_path / "run" / "checkpoints").glob(".step-*.tmp"))
    assert run(recipe, tmp_path, f"resume_from={tmp_path / 'source'}")[0] == 0
    assert_complete(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_init_from_skips_the_warm_up_and_takes_the_trunk(tmp_path, recipe, undisturbed):
    code, command = run(recipe, tmp_path, f"init_from={undisturbed}")
    assert code == 0, command.err
    assert log(tmp_path / "run", stage="warmup") == []
    (transfer,) = log(tmp_path / "run", "transfer")
    assert "blocks.0.attn.qkv.weight" in transfer["copied"]
    assert "patch_embed.proj.weight" in transfer["fresh"]
    started, source = (load_file(f / "warmup" / "model.safetensors") for f in (tmp_path / "run", undisturbed))
    assert torch.equal(started["blocks.1.mlp.fc1.weight"], source["blocks.1.mlp.fc1.weight"])
    # The same seed gives the same fresh stem, so the image stage repeats that of the run that warmed up itself.
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_a_run_that_went_on_needs_its_init_from_no_more(tmp_path, recipe, undisturbed):
    source = tmp_path / "source"
    shutil.copytree(undisturbed, source)
    digest = hashlib.sha256((source / "warmup/model.safetensors").read_bytes()).hexdigest()
    assert run(recipe, tmp_path, f"init_from={source}", die="/.step-00000008.tmp/")[0] == -9
    shutil.rmtree(source)
    killed = tmp_path / "run"
    code, command = run(recipe, tmp_path, f"init_from={source}", f"resume_from={killed}", name="onward")
    assert code == 0, command.err
    assert weights(tmp_path / "onward") == weights(undisturbed)
    for name in ("result.json", "warmup/vitwarm.json", "export/vitwarm.json"):
        record = json.loads((tmp_path / "onward" / name).read_text())
        assert record["start"] == f"weights of {source}" and record["source_sha256"] == {str(source): digest}
    shutil.rmtree(killed / "warmup")  # which has the record of the start
    code, command = run(recipe, tmp_path, f"init_from={source}")
    assert code == 0, command.err
    assert weights(killed) == weights(undisturbed)
    record = json.loads((killed / "export/vitwarm.json").read_text())
    assert record["start"] == f"unknown, since {killed / 'warmup/vitwarm.json'} is gone"
    assert "source_sha256" not in record
    assert record["license"] == "unknown"


def test_without_images_the_run_ends_with_the_warmed_model(tmp_path):
    recipe = write_recipe(tmp_path, images={"train": "", "val": ""})
    code, command = run(recipe, tmp_path)
    assert code == 0, command.err
    warmed, exported = (load_file(tmp_path / "run" / f / "model.safetensors") for f in ("warmup", "export"))
    assert all(torch.equal(warmed[n], exported[n]) for n in warmed)
    assert "loss" in json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]


def test_without_validation_data_the_run_ends_all_the_same(tmp_path):
    recipe = write_recipe(tmp_path, images={"val": ""}, warmup={"budget": "0"})
    code, command = run(recipe, tmp_path)
    assert code == 0, command.err
    assert os.path.isfile(tmp_path / "run" / "export" / "config.json")
