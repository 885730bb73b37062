"""The estimate against arithmetic by hand: FLOPs of a ViT, hours, shares; and against what a run itself counts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitwarm.assembly import assemble
from vitwarm.cost import PEAK_FP32, _kept, estimate
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.training.meters import PEAK_FLOPS

TINY = ["recipe=digits_proc", "model.name=test_vit", "model.args={img_size: 8, patch_size: 4}", "run.workers=0"]


def vit_flops(width: int, depth: int, patches: int, patch: int, classes: int, prefix: int = 1) -> float:
    """Two a multiply-add: patch embedding, q, k, v, attention twice, projection, an MLP of ratio 4, the classifier."""
    n = patches + prefix
    block = 2 * n * width * (3 * width + width + 2 * 4 * width) + 2 * 2 * n * n * width
    return 2 * patches * 3 * patch**2 * width + depth * block + 2 * width * classes


@pytest.mark.parametrize(("name", "width"), [("vit_t_proc1pct", 192), ("vit_b_proc1pct", 768)])
def test_imagenet_by_hand(name, width):
    found = estimate(load_recipe([f"recipe={name}", "warmup.precision=bf16"]), gpus=8, device="h100", mfu=0.4)
    lines = {line.name: line for line in found.lines}
    forward = vit_flops(width, 12, 196, 16, 1000)
    steps = -(-300 * 1_281_167 // 4096)
    assert (lines["images"].steps, lines["images"].samples) == (steps, steps * 4096)
    assert lines["images"].tokens == steps * 4096 * 197
    assert lines["images"].flops == pytest.approx(3 * forward * steps * 4096, rel=1e-9)
    assert lines["images"].seconds == pytest.approx(3 * forward * steps * 4096 / (8 * 0.4 * 989e12), rel=1e-9)
    assert lines["evaluation"].samples == 50_000 * 300
    assert lines["evaluation"].flops == pytest.approx(forward * 15e6, rel=1e-9)
    assert (lines["warmup"].steps, lines["warmup"].samples) == (15_000, 3_840_000)
    masked = 49 * 2 * width * 130  # the head reads about 49 masked tokens; no patches, no classifier
    assert lines["warmup"].flops / 3 / 3.84e6 == pytest.approx(vit_flops(width, 12, 196, 0, 0) + masked, rel=5e-3)
    assert found.share("samples") == pytest.approx(0.01, rel=2e-3)
    assert found.share("flops") == pytest.approx(0.01, rel=0.05)
    assert found.share("seconds") == pytest.approx(found.share("flops"))


def test_fp32_is_dear_and_says_so():
    found = estimate(load_recipe(["recipe=vit_b_proc1pct"]), gpus=8, device="H100")
    ratio = PEAK_FLOPS["H100"] / PEAK_FP32["H100"]
    assert found.share("seconds") == pytest.approx(ratio * found.share("flops"))
    assert "66.9 TFLOP/s (fp32)" in str(found)
    assert PEAK_FP32.keys() == PEAK_FLOPS.keys()


def test_a_run_counts_the_same(tmp_path):
    config = load_recipe(
        [*TINY, f"run.dir={tmp_path}", "warmup.budget=2 steps", "warmup.lr_warmup=0", "images.epochs=0.2",
         "images.subset=30%", "images.epochs_of=full", "warmup.val_rows=4"]
    )  # fmt: skip
    found = {line.name: line for line in estimate(config, gpus=1, device="a100").lines}
    stages = run(config)["stages"]
    for name in ("warmup", "images"):
        assert stages[name]["steps"] == found[name].steps
        assert stages[name]["samples"] == found[name].samples
        assert stages[name]["tokens"] == found[name].tokens
        assert stages[name]["flops"] == pytest.approx(found[name].flops)
    assert found["evaluation"].samples == 360


def test_an_estimate_leaves_nothing_behind(tmp_path):
    """A run behind an estimate, in one process, has the bits of a run in a process of its own."""
    words = [
        *TINY, "warmup.budget=0", "images.epochs=0.05", "images.mean=[0.1,0.2,0.3]", "images.std=[0.4,0.5,0.6]",
        "train.lr_warmup=0",
    ]  # fmt: skip
    estimate(load_recipe(words), gpus=1, device="a100")
    run(load_recipe([*words, f"run.dir={tmp_path / 'behind'}"]))
    command = [sys.executable, "-m", "vitwarm", "train", *words, f"run.dir={tmp_path / 'alone'}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1], env=environment)
    behind, alone = (tmp_path / name / "export/model.safetensors" for name in ("behind", "alone"))
    assert behind.read_bytes() == alone.read_bytes()


def test_activations_are_what_autograd_keeps():
    """The saved tensors of a real pass, counted at their storages, for two images more."""
    config = load_recipe(TINY)
    sizes = [_kept(assemble(config, 1, estimate=True).main, times, True) for times in (1, 2, 3)]
    stage, kept = assemble(config, 1).main, []
    own = {p.untyped_storage().data_ptr() for p in stage.model.parameters()}
    for times in (1, 2):
        seen = {}

        def pack(t, seen=seen):
            if t.untyped_storage().data_ptr() not in own:
                seen[t.untyped_storage().data_ptr()] = t
            return t

        batch = stage.example()[0].map(lambda t, times=times: torch.cat([t] * times))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            stage.losses(stage.model, batch, 0)
        kept.append(sum(t.untyped_storage().nbytes() for t in seen.values()))
    assert [samples for _, samples in sizes] == [2, 4, 6]
    assert sizes[1][0] - sizes[0][0] == sizes[2][0] - sizes[1][0] == kept[1] - kept[0]


def test_dropout_in_fused_attention_keeps_no_probabilities_on_a_gpu():
    """On a CPU each block keeps (N, N) matrices, at least one; on a GPU less than one for all blocks."""
    words = ["recipe=haystack_set", "algorithmic.task=null", "warmup.length=512", "model.decoder.size=2_4_64"]
    none, gpu, cpu = (
        _kept(assemble(load_recipe([*words, f"warmup.dropout={rate}"]), 1, estimate=True).warmup, 1, on_gpu)[0]
        for rate, on_gpu in ((0, True), (0.1, True), (0.1, False))
    )
    matrices = 2 * 4 * 511**2 * 4  # bytes of one (N, N) in fp32 of 2 blocks with 4 heads
    assert none < gpu < none + matrices / 2 and cpu >= gpu + matrices


def test_checkpointing_keeps_less_and_takes_a_third_more():
    plain, saved = (
        estimate(load_recipe(["recipe=vit_t_proc1pct", f"model.grad_checkpointing={on}"]), 8, "h100")
        for on in ("false", "true")
    )
    assert saved.lines[1].flops == plain.lines[1].flops
    assert saved.lines[1].seconds == pytest.approx(plain.lines[1].seconds * 4 / 3)
    each = [int(re.search(r"(\d+) MiB of activations", str(e))[1]) for e in (plain, saved)]
    assert each[1] < each[0] / 4


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"gpus": 8, "device": "h1000"}, "device=h1000 is not known; known: a100"),
        ({"gpus": 0, "device": "h100"}, "gpus is at least 1"),
        ({"gpus": 8, "device": "h100", "mfu": 1.2}, "mfu lies in"),
        ({"gpus": 3, "device": "h100"}, "does not divide over 3"),
        ({"gpus": 8, "device": "h100", "train_images": 0}, "train_images is at least 1"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(own, why):
    with pytest.raises(UserError, match=re.escape(why)):
        estimate(load_recipe(["recipe=vit_t_proc1pct"]), **own)


def test_without_shards_a_small_set_needs_its_size():
    config = load_recipe(["recipe=cifar10_vit_t_proc"])
    with pytest.raises(UserError, match="train_images=N"):
        estimate(config, 1, "a100")
    found = estimate(config, 1, "a100", train_images=50_000)
    assert found.lines[1].samples == -(-100 * 50_000 // 512) * 512
    assert "not here: not counted" in str(found)
    here = load_recipe(["recipe=digits_default"])
    assert estimate(here, 1, "a100", train_images=1437).lines == estimate(here, 1, "a100").lines
    with pytest.raises(UserError, match="images.train holds 1,437 images, not 50,000: leave train_images"):
        estimate(here, 1, "a100", train_images=50_000)
    streamed = load_recipe(
        ["recipe=cifar10_vit_t_proc", "images.train=https://host/train-000.tar", "images.train_samples=50000"]
    )
    assert estimate(streamed, 1, "a100").lines == found.lines


def test_an_estimate_draws_no_weights_in_closed_form():
    estimate(load_recipe(["recipe=haystack_set", "model.init=conditioned"]), 1, "h100")


def test_the_command():
    def plan(*arguments):
        command = [sys.executable, str(Path(__file__).parents[1] / "tools/plan.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])

    good = plan("recipe=vit_b_proc1pct", "gpus=8", "device=h100", "mfu=0.5")
    assert good.returncode == 0 and "MFU 0.5 of" in good.stdout and "1.00 % of its samples" in good.stdout
    for arguments, why in [
        (["recipe=vit_b_proc1pct"], "no gpus=N and no device=h100; see python "),
        (["recipe=vit_b_proc1pct", "gpus=8", "gpus=1", "device=h100"], "gpus is given twice, '8' and '1'"),
        (["recipe=vit_b_proc1pct", "gpus=eight", "device=h100"], "gpus is a whole number, not 'eight'"),
    ]:
        bad = plan(*arguments)
        assert bad.returncode == 2 and why in bad.stderr and len(bad.stderr.splitlines()) == 1


def test_the_table_in_the_documentation():
    page = (Path(__file__).parents[1] / "docs/imagenet.md").read_text()
    found = re.findall(r"^\| `(\w+)`" + r" \| (\S+)" * 5 + r" \|$", page, re.M)
    rows = {name: tuple(cells) for name, *cells in found}
    assert len(rows) >= 7
    for name in ("vit_t_proc1pct", "vit_b_proc1pct", "deit3_b_proc1pct"):
        h100, a100 = (estimate(load_recipe([f"recipe={name}"]), 8, device) for device in ("h100", "a100"))
        warmup, images, _ = h100.lines
        hours = [cost / 3600 for cost in (warmup.seconds, images.seconds, h100.seconds, a100.seconds)]
        assert rows[name] == (f"{images.flops:.3g}", *(f"{hour:.2f}" for hour in hours))
