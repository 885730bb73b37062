"""A user's mistake is one line on stderr and exit code 2, and nothing is left half-written."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from harness import ROOT, Command, log, weights, write_recipe


def refused(recipe, tmp_path, *more, folder=None, **options):
    """The one line; checks the exit code, and that no run folder was begun."""
    folder = tmp_path / "run" if folder is None else folder
    command = Command([f"recipe={recipe}", f"run.dir={folder}", *more], tmp_path, **options)
    assert command.wait() == 2, command.out + command.err
    said = [line for line in command.err.splitlines() if not line.startswith("vitwarm: warning")]
    assert len(said) == 1, command.err
    assert said[0].startswith("vitwarm: error: ")
    assert not os.path.lexists(folder)
    return said[0]


MISTAKES = {
    "typo in a key": (["train.lrr=1"], "did you mean train.lr?"),
    "typo in a rule's parameter": (["warmup.rule.kk=4"], "kk"),
    "wrong type": (["train.lr=fast"], "train.lr"),
    "impossible value": (["warmup.mask_prob=1.5"], "warmup.mask_prob"),
    "impossible budget": (["warmup.budget=200%"], "warmup.budget"),
    "budget beyond all time": (["warmup.budget=1e99B"], "warmup.budget: '1e99B' is more than"),
    "budget that is no amount": (["warmup.budget=lots"], "warmup.budget"),
    "nothing to do": (["warmup.budget=0", "images.epochs=0"], "nothing to train: images.epochs is 0"),
    "schedule longer than the stage": (["warmup.lr_warmup=11 steps"], "do not fit"),
    "unknown model": (["model.name=vit_tinny_patch16_224"], "vit_tiny_patch16_224"),
    "unknown model argument": (["model.args.colour=red"], "colour"),
    "missing shards": (["images.train=/nowhere/x-*.tar"], "images.train: /nowhere/x-*.tar: no such file; give"),
    "missing validation shards": (["images.val=/nowhere"], "images.val: /nowhere: no such file"),
    "share of no image stage": (["warmup.budget=1%", "images.epochs=0"], "warmup.budget is a share of the main stage"),
    "label out of range": (["model.num_classes=5"], "model.num_classes"),
    "device batch that does not divide": (["run.device_batch=5"], "run.device_batch"),
    "odd device batch under mixup": (["train.global_batch=7", "run.device_batch=null"], "even"),
    "init_from nothing": (["init_from=/nowhere"], "/nowhere"),
    "resume_from nothing": (["resume_from=/nowhere"], "resume_from"),
    "tracker that is not installed": (["run.wandb=project"], "pip install 'vitwarm[wandb]'"),
}


@pytest.mark.parametrize(("arguments", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_in_the_recipe(tmp_path, recipe, arguments, says):
    if "run.wandb=project" in arguments:
        try:
            import wandb  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("Weights & Biases is installed")
    assert says in refused(recipe, tmp_path, *arguments)


@pytest.mark.parametrize("model", ["resnet18", "swin_tiny_patch4_window7_224", "cait_xxs24_224"])
def test_families_without_a_usable_trunk(tmp_path, model):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{name: {model}}}\nwarmup: {{budget: 10 steps, lr_warmup: 1 steps}}\n")
    assert "cannot be warmed up" in refused(recipe, tmp_path)


def empty(path):
    path.write_bytes(b"\0" * 10240)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_label(path):
    subprocess.run(["tar", "--delete", "-f", str(path), "s003.cls"], check=True)


@pytest.mark.parametrize("spoil", [empty, cut, without_label, lambda p: p.write_bytes(b"")])
def test_shards_that_are_no_shards(tmp_path, recipe, tars_of, spoil):
    tar = tars_of(12)
    spoil(tar)
    assert str(tar.name) in refused(recipe, tmp_path, f"images.train={tar}", f"images.val={tar}")


def damaged_tars(tmp_path, tars_of, **changes):
    """24 training images of which two are damaged, and 12 for validation of which one is."""
    spoil = {3: lambda data: data[:100], 7: lambda data: b"not an image", 103: lambda data: b""}
    train, val = tars_of(24, name="train.tar", spoil=spoil), tars_of(12, first=100, name="val.tar", spoil=spoil)
    images = {"train": str(train), "val": str(val), "epochs": 2, "eval_every": 1} | changes
    return write_recipe(
        tmp_path, images=images, warmup={"budget": "0"}, train={"global_batch": 8}, run={"device_batch": None}
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_counted_and_named_once(tmp_path, tars_of, workers):
    recipe, run = damaged_tars(tmp_path, tars_of, max_damaged=0.1), tmp_path / "run"
    command = Command([f"recipe={recipe}", f"run.dir={run}", f"run.workers={workers}"], tmp_path)
    assert command.wait() == 0, command.err
    found = log(run, "damaged")
    assert sorted(e["sample"] for e in found) == ["train train.tar:s003", "train train.tar:s007", "val val.tar:s103"]
    assert all(e["reason"] for e in found)
    assert [e["count"] for e in log(run, "eval")] == [11, 11]
    assert json.loads((run / "result.json").read_text())["stages"]["images"]["damaged_samples"] == 3
    for name in ("train train.tar:s003", "val val.tar:s103"):
        assert command.err.count(f"warning: damaged sample {name}: ") == 1


@pytest.mark.parametrize("world", [1, 2])
def test_too_many_damaged_images_stop_the_run(tmp_path, tars_of, world):
    recipe, run = damaged_tars(tmp_path, tars_of, max_damaged=0.05), tmp_path / "run"
    command = Command([f"recipe={recipe}", f"run.dir={run}"], tmp_path, world=world)
    assert command.wait() == 2, command.err
    assert [p.exitcode for p in command.processes] == [2] * world
    said = [line for line in command.err.splitlines() if "vitwarm: error: " in line]
    assert len(said) == 1
    assert "2 of 24 images of images.train cannot be read" in said[0]
    assert len(log(run, "damaged")) >= 2
    assert not (run / "export").exists()


def test_a_checkpoint_of_another_model(tmp_path, undisturbed):
    wider = write_recipe(tmp_path, model={"args": {"embed_dim": 48}})
    assert "does not fit the model" in refused(wider, tmp_path, f"init_from={undisturbed}")


def test_a_checkpoint_of_another_recipe(tmp_path, recipe, undisturbed):
    said = refused(recipe, tmp_path, f"resume_from={undisturbed}", "train.lr=0.5")
    assert "another recipe" in said
    assert "init_from" in said


def test_a_damaged_file_of_weights(tmp_path, recipe, undisturbed):
    file = tmp_path / "weights.safetensors"
    file.write_bytes((undisturbed / "export" / "model.safetensors").read_bytes()[:-5])
    assert str(file) in refused(recipe, tmp_path, f"init_from={file}")


def test_a_folder_of_something_else(tmp_path, recipe):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    command = Command([f"recipe={recipe}", f"run.dir={tmp_path / 'thesis'}"], tmp_path)
    assert command.wait() == 2
    assert "is not a run folder" in command.err
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_run_folder_below_a_file(tmp_path, recipe):
    (tmp_path / "file").write_text("")
    said = refused(recipe, tmp_path, folder=tmp_path / "file" / "run")
    assert "cannot write" in said


def test_a_run_folder_that_cannot_be_made(tmp_path, recipe):
    (tmp_path / "disk").symlink_to(tmp_path / "not-mounted")
    assert "run.dir: cannot make" in refused(recipe, tmp_path, folder=tmp_path / "disk" / "run")
    assert "run.dir: ~nobody-at-all/run: " in refused(recipe, tmp_path, folder="~nobody-at-all/run")


def test_no_write_permission(tmp_path, recipe):
    """Root passes every permission bit, so the folder is on a file system that is mounted read-only."""
    place = tmp_path / "closed"
    place.mkdir()
    if os.geteuid():
        place.chmod(0o500)
        assert "cannot write" in refused(recipe, tmp_path, folder=place / "run")
        return
    with mounted(place, "ro"):
        assert "cannot write" in refused(recipe, tmp_path, folder=place / "run")


class mounted:
    """A small file system in memory; skips where mounting is not allowed."""

    def __init__(self, place, options):
        self.place, self.options = place, options

    def __enter__(self):
        command = ["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", str(self.place)], check=True)


def limit(size: int) -> str:
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


@pytest.mark.parametrize("size", [1_000, 4_000, 60_000, 150_000])
def test_files_that_may_not_grow(tmp_path, recipe, undisturbed, size):
    """The limit strikes in the recipe, in the log, in a checkpoint's weights, or in its optimiser state."""
    run = tmp_path / "run"
    command = Command([f"recipe={recipe}", f"run.dir={run}", "run.keep_last=9"], tmp_path, before=limit(size))
    assert command.wait() == 2, command.out + command.err
    said = [line for line in command.err.splitlines() if "warning" not in line]
    assert len(said) == 1
    assert said[0].startswith("vitwarm: error: cannot write")
    assert not list(run.rglob(".*.tmp"))
    command = Command([f"recipe={recipe}", f"run.dir={run}"], tmp_path)
    assert command.wait() == 0, command.err
    assert weights(run) == weights(undisturbed)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kilobytes", [4, 40, 400, 800])
def test_a_full_disk(tmp_path, recipe, kilobytes, world):
    """Out of room in the log, in a checkpoint, in the model folders; every process ends, and nothing half is left."""
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, f"size={kilobytes}k"):
        run = place / "run"
        command = Command([f"recipe={recipe}", f"run.dir={run}"], tmp_path, world=world)
        assert command.wait() == 2, command.out + command.err
        assert [p.exitcode for p in command.processes] == [2] * world
        said = [line for line in command.err.splitlines() if "vitwarm: error: " in line]
        assert len(said) == 1, command.err
        assert "cannot write" in said[0]
        assert "Traceback" not in command.err
        assert not list(run.rglob(".*.tmp"))


def test_the_real_command_says_one_line_and_exits_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train.py"), "recipe=digits_porc"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "digits_proc" in done.stderr
