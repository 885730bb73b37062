"""The image stage: each key of training against a law or an independent loop over the same batches."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from sourcemaking import jpeg, quiet
from tarmaking import encode, samples, write_tar
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from vitwarm.assembly import assemble
from vitwarm.config import Config, ImagesConfig, TrainConfig
from vitwarm.data.making import Options
from vitwarm.data.subset import balanced
from vitwarm.errors import UserError
from vitwarm.exports import export as export_model_of_ones_own
from vitwarm.exports import export_model
from vitwarm.recipe import list_recipes, load_recipe
from vitwarm.run import run
from vitwarm.stages.images import ImagesStage, image_lengths
from vitwarm.stages.registry import Setup
from vitwarm.trunk import build_model
from vitwarm.validate import validate_export

TINY = [
    "recipe=digits_default", "model.name=test_vit", "model.args={img_size: 8, patch_size: 4}",
    "train.global_batch=12", "train.lr_warmup=0", "images.epochs=0.03", "run.workers=0",
    "images.mixup=0.8", "images.cutmix=1.0", "images.label_smoothing=0.0", "images.random_erasing=0.3",
    "train.eps=1e-4",  # else Adam would blow up the rounding noise of gradients that are zero, as of the keys' biases
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def recipe(tmp_path, *overrides: str):
    return load_recipe([*TINY, f"run.dir={tmp_path / 'run'}", *overrides])


def stage_of(config) -> ImagesStage:
    stage = ImagesStage(config, Setup())
    stage.bind(stage.fresh_model())
    return stage


def test_a_source_of_images_prepared_otherwise_is_said(tmp_path):
    own = ["model.args={img_size: 16, patch_size: 4}", "images.mean=[0.5,0.5,0.5]", "images.eval_crop_pct=0.9"]
    source = assemble(recipe(tmp_path, *own), 1)
    facts = {"recipe_hash": "0" * 12, "start": "a test", "warmed_keys": []}
    for name, trained in (("trained", "images"), ("warmed", "warmup")):
        export_model(source.model, tmp_path / name, source.config, facts | {"trained": trained})
    found = assemble(recipe(tmp_path, f"init_from={tmp_path / 'trained'}"), 1).warnings
    assert (
        len(found) == 1
        and found[0].startswith(str(tmp_path / "trained"))
        and found[0].endswith(
            "was trained on images with mean [0.5, 0.5, 0.5], eval_crop_pct 0.9, size 16; "
            "the recipe has mean [0.305, 0.305, 0.305], eval_crop_pct 1.0, size 8"
        )
    )
    assert assemble(recipe(tmp_path, f"init_from={tmp_path / 'trained'}", *own), 1).warnings == []
    assert assemble(recipe(tmp_path, f"init_from={tmp_path / 'warmed'}"), 1).warnings == []  # it saw no images


def layers_above(name: str, depth: int) -> int:
    """0 for the head, 1 for the last block and the norm behind it, depth + 1 for the stem."""
    if name.startswith("blocks."):
        return depth - int(name.split(".")[1])
    return {"head": 0, "norm": 1}.get(name.split(".")[0], depth + 1)


def bare_loop(config) -> dict[str, torch.Tensor]:
    """The stage's batches and mixing, but timm's own forward, timm's losses and one AdamW a tensor."""
    stage = stage_of(config)
    vit, optim = stage.vit.train(), config.train
    criterion = SoftTargetCrossEntropy()
    if config.images.loss == "bce":
        criterion = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0)
    depth, adamw = len(vit.blocks), []
    for name, p in vit.named_parameters():
        scale = (optim.layer_decay or 1.0) ** layers_above(name, depth)
        free = p.ndim <= 1 or name in ("pos_embed", "cls_token", "reg_token")
        adamw.append((torch.optim.AdamW([p], eps=optim.eps, weight_decay=0.0 if free else optim.weight_decay), scale))
    for step, batch in enumerate(stage.batches(0, 0, 1, optim.global_batch)):
        images = stage.normalise(batch.images)
        images, targets, _ = stage.mixer(stage.erasing(images, step, 0), batch.labels, batch.valid, step)
        loss = criterion(vit(images), targets)
        vit.zero_grad()
        loss.backward()
        for one, scale in adamw:
            one.param_groups[0]["lr"] = scale * (
                optim.min_lr + 0.5 * (optim.lr - optim.min_lr) * (1 + np.cos(np.pi * step / stage.steps))
            )
            one.step()
    assert step + 1 == stage.steps > 2
    return vit.state_dict()


@pytest.mark.parametrize(
    "overrides",
    [[], ["train.layer_decay=0.6"], ["images.loss=bce"], ["images.repeats=5", "train.layer_decay=0.9"]],
    ids=["ce", "layer_decay", "bce", "repeats"],
)
def test_a_run_is_the_bare_loop(tmp_path, overrides):
    config = recipe(tmp_path, *overrides)
    run(config)
    trained = timm.create_model(f"local-dir:{tmp_path / 'run/export'}", pretrained=True).state_dict()
    expected = bare_loop(config)
    start = build_model(config.model, "images", seed=config.seed).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert not torch.equal(start[name], tensor)


def test_the_names_of_classes_travel_from_the_source_to_timm_and_back(tmp_path, capsys):
    """Said and logged before the first step, in the result and the export, and compared in validation.

    They say how many classes the head has, where the recipe does not.
    """
    for split, first in (("train", 0), ("val", 500)):
        for c, name in enumerate(("newt", "ant", "bee")):
            (tmp_path / "in" / split / name).mkdir(parents=True)
            for i in range(4):
                (tmp_path / "in" / split / name / f"{i}.jpg").write_bytes(jpeg(first + 10 * c + i))
    quiet(tmp_path / "in", tmp_path / "out")
    quiet(tmp_path / "in/val", tmp_path / "alone", split="val", classes=tmp_path / "out/manifest.json")
    data = [f"images.train={tmp_path / 'out'}", f"images.val={tmp_path / 'alone'}", "model.num_classes=null"]
    data += ["images.epochs=1", "images.resident=false"]
    result = run(recipe(tmp_path, *data))
    said = capsys.readouterr().out.splitlines()
    line = "images: train 12 images of 3 classes (ant ... newt) in 1 tar"
    assert [line in one for one in said[:5]] == [False] * 4 + [True]  # before the first step
    entry = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert entry["event"] == "data" and entry["train"] == result["data"]["train"] and entry["val"]["images"] == 12
    assert json.loads((tmp_path / "run/data.json").read_text())["model.num_classes"] == "3"
    set_alike = run(recipe(tmp_path, *data, "model.num_classes=3", f"run.dir={tmp_path / 'alike'}"))
    assert set_alike["metrics"] == result["metrics"] and set_alike["recipe_hash"] != result["recipe_hash"]
    export = tmp_path / "run/export"
    opened = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert opened.num_classes == 3 and opened.pretrained_cfg["label_names"] == ["ant", "bee", "newt"]
    assert validate_export(str(export), str(tmp_path / "out"), workers=0)["count"] == 12, "a folder stands for its val"
    grey = encode(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    deep = write_tar(tmp_path / "deep.tar", [*samples(3, 3), ("deep.png", grey), ("deep.cls", b"1")])
    assert validate_export(str(export), str(deep), workers=0)["clipped_by_timm"] == 1
    quiet(tmp_path / "in/val", tmp_path / "small", split="val", options=Options(max_side=6))
    assert validate_export(str(export), str(tmp_path / "small"), workers=0)["max_side"] == 6
    quiet(tmp_path / "in/val", tmp_path / "else", split="val", classes=_list(tmp_path, "bee", "ant", "newt"))
    export_model_of_ones_own(opened, tmp_path / "export of it")
    for place in (export, tmp_path / "export of it"):
        with pytest.raises(UserError, match="class 0 is 'bee' in .*else/manifest.json, but 'ant' in .*export"):
            validate_export(str(place), str(tmp_path / "else"), workers=0)


def _list(folder, *names):
    (folder / "list.txt").write_text("\n".join(names))
    return folder / "list.txt"


def test_layer_decay_slows_the_early_layers(tmp_path):
    stage = stage_of(recipe(tmp_path, "train.layer_decay=0.5"))
    names = {id(p): n for n, p in stage.vit.named_parameters()}
    scale = {names[id(p)]: g["lr_scale"] for g in stage.parameter_groups() for p in g["params"]}
    assert set(scale) == set(names.values())
    depth = len(stage.vit.blocks)
    assert scale == {name: 0.5 ** layers_above(name, depth) for name in names.values()}
    assert len(set(scale.values())) == depth + 2


def test_decay_all_reaches_every_tensor_with_and_without_layer_decay(tmp_path):
    for more in ([], ["train.layer_decay=0.7"]):
        for overrides, rates in ([], {0.0, 0.05}), (["train.decay_all=true"], {0.05}):
            groups = stage_of(recipe(tmp_path, *overrides, *more)).parameter_groups()
            assert {g["weight_decay"] for g in groups} == rates


def test_drop_path_and_layer_scale_arrive_and_act(tmp_path):
    config = recipe(tmp_path, "model.args.drop_path_rate=0.4", "model.args.init_values=1e-4")
    vit = stage_of(config).vit
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.4, len(vit.blocks)), rtol=1e-6)
    for block in vit.blocks:
        torch.testing.assert_close(block.ls1.gamma, torch.full_like(block.ls1.gamma, 1e-4), rtol=0, atol=0)
    for block in vit.blocks:  # at 1e-4 what a path adds, dropped or not, would hardly show
        nn.init.ones_(block.ls1.gamma)
    images = torch.randn(4, 3, 8, 8)
    features = [vit.train().forward_features(images) for _ in range(2)]
    assert not torch.equal(*features)
    assert torch.equal(*(vit.eval().forward_features(images) for _ in range(2)))


def test_the_warm_up_goes_without_drop_path_and_the_images_have_it(tmp_path):
    config = recipe(tmp_path, "model.args.drop_path_rate=0.4", "warmup.budget=1 steps", "warmup.lr_warmup=0")
    parts = assemble(config, 1)
    assert parts.warmup.vit.blocks[-1].drop_path1 is not parts.model.blocks[-1].drop_path1
    assert isinstance(parts.warmup.vit.blocks[-1].drop_path1, nn.Identity)
    assert parts.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.4)


def test_bce_is_timms_and_counts_mixed_classes_fully(tmp_path):
    stage = stage_of(recipe(tmp_path, "images.loss=bce", "images.mix_switch_prob=0.0", "images.random_erasing=0.0"))
    batch = next(stage.batches(0, 0, 1, 12))
    batch.valid[3] = False
    share, _ = stage.mixer.draw(0, 8, 8)
    assert 0 < share < 1
    logits = torch.randn(12, 10)
    theirs = torch.zeros(12, 10)
    for row, label in enumerate(batch.labels.tolist()):
        theirs[row, label] = 1
        if row not in (2, 3):  # the damaged one and its partner are not mixed
            theirs[row, batch.labels[row ^ 1]] = 1
    criterion = BinaryCrossEntropy(smoothing=0.0, reduction="none")
    kept = [row for row in range(12) if row != 3]
    expected = criterion(logits, theirs).mean(1)[kept].sum()
    torch.testing.assert_close(stage.losses(lambda images: logits, batch, 0).loss, expected)
    with pytest.raises(UserError, match="label_smoothing"):
        recipe(tmp_path, "images.loss=bce", "images.label_smoothing=0.1")


def counted(stage) -> Counter:
    epochs, samples = map(np.concatenate, zip(*(stage.order.batch(s) for s in range(stage.steps)), strict=True))
    return Counter(samples.tolist())


def test_epochs_pass_over_the_subset_or_last_as_long_as_the_full_set(tmp_path):
    part = ["images.subset=10%", "images.epochs=4", "train.lr_warmup=1 epochs", "images.eval_every=2"]
    short, long = (stage_of(recipe(tmp_path, *part, f"images.epochs_of={of}")) for of in ("subset", "full"))
    full = stage_of(recipe(tmp_path, *part[1:]))
    ids = balanced(full.shards.labels, 144, seed=0).tolist()
    assert short.order.epoch_size == long.order.epoch_size == 144 and full.order.epoch_size == 1437
    assert short.steps == 4 * 144 // 12 == 48 and long.steps == full.steps == 479
    assert short.schedule_lengths[0] == 12 and long.schedule_lengths[0] == full.schedule_lengths[0] == 120
    assert short.eval_every == 24 and long.eval_every == full.eval_every == 240
    assert counted(short) == Counter(dict.fromkeys(ids, 4))
    shown = counted(long)
    assert set(shown) == set(ids) and sum(shown.values()) == 479 * 12 and set(shown.values()) == {39, 40}
    with pytest.raises(UserError, match="epochs_of=full is about a subset"):
        recipe(tmp_path, "images.epochs_of=full")


@pytest.mark.parametrize(("epochs", "steps"), [(1.1, 55), (2.2, 110), (0.07, 4), (0.1, 5), (300, 15_000)])
def test_steps_are_those_of_the_written_number_of_epochs(epochs, steps):
    """In binary 1.1 x 50,000 is a bit more than 55,000."""
    config = Config(images=ImagesConfig(epochs=epochs), train=TrainConfig(global_batch=1000, lr_warmup="0"))
    assert image_lengths(config, 50_000, 50_000)[0] == steps


def test_the_seed_of_a_subset_is_its_own(tmp_path):
    def names(*more):
        return stage_of(recipe(tmp_path, "images.subset=50 samples", *more)).subset.names

    assert names("seed=0") == names("seed=7") != names("images.subset_seed=7")


def test_a_run_writes_its_images_down_and_refuses_others(tmp_path):
    listed = tmp_path / "mine.txt"
    first = stage_of(recipe(tmp_path, "images.subset=24 samples")).subset
    listed.write_text(first.text)
    config = recipe(tmp_path, f"images.subset={listed}", "images.epochs=1")
    result = run(config)
    folder = tmp_path / "run"
    assert (folder / "subset.txt").read_text() == first.text
    assert json.loads((folder / "result.json").read_text())["subset"] == {"images": 24, "sha256": first.sha256}
    assert result["stages"]["images"]["samples"] == 24
    (folder / "result.json").unlink()
    listed.write_text("".join(first.text.splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="no longer those of"):
        run(config)


def test_padding_that_leaves_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"images\.pad=32 leaves nothing of images of \d+ pixels"):
        stage_of(recipe(tmp_path, "images.crop=pad", "images.pad=32"))


def test_repeats_show_an_image_several_times_augmented_anew(tmp_path):
    stage = stage_of(recipe(tmp_path, "images.repeats=3", "images.crop=pad", "images.pad=3"))
    batch = next(stage.batches(0, 0, 1, 12))
    assert set(Counter(batch.sample.tolist()).values()) == {3}
    for sample in set(batch.sample.tolist()):
        copies = batch.images[batch.sample == sample]
        assert len({copy.numpy().tobytes() for copy in copies}) == 3
    halves = [next(stage.batches(0, rank, 2, 6)) for rank in range(2)]
    for name in ("images", "sample", "labels"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(batch, name))


def test_damage_is_measured_against_the_images_in_use(tmp_path):
    stage = stage_of(recipe(tmp_path, "images.subset=100 samples", "images.max_damaged=0.01"))
    stage.check_events(["train a"])
    with pytest.raises(UserError, match="2 of 100 images"):
        stage.check_events(["train a", "train b"])


def test_compile_precision_and_checkpointing_reach_the_blocks(tmp_path, monkeypatch):
    seen = {"dtype": set(), "calls": 0}

    def watched(config, world, **more):
        parts = assemble(config, world, **more)
        block = parts.model.blocks[0]
        block.mlp.fc1.register_forward_hook(lambda m, i, out: seen["dtype"].add(out.dtype) if m.training else None)
        block.norm1.register_forward_hook(lambda m, i, o: seen.__setitem__("calls", seen["calls"] + m.training))
        seen["model"] = parts.model
        return parts

    monkeypatch.setattr("vitwarm.run.assemble", watched)
    on = recipe(tmp_path, "train.compile=true", "train.precision=bf16", "model.grad_checkpointing=true")
    with torch.compiler.set_stance("force_eager"):  # the wiring, without the minutes of a compiler
        run(on)
    steps = stage_of(on).steps
    assert seen["dtype"] == {torch.bfloat16}
    assert seen["calls"] == 2 * steps  # forward, and once more in the backward pass
    assert all(block._compiled_call_impl is not None for block in seen["model"].blocks)
    seen.update(dtype=set(), calls=0)
    run(replace(recipe(tmp_path), run=replace(on.run, dir=str(tmp_path / "off"))))
    assert seen["dtype"] == {torch.float32} and seen["calls"] == steps
    assert all(block._compiled_call_impl is None for block in seen["model"].blocks)


OF_IMAGES = [name for name, _, _ in list_recipes() if not load_recipe([f"recipe={name}"]).model.decoder.size]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_shipped_recipe_builds_on_eight_processes(name):
    """With a tiny model and the digits, but its own batch, repeats, mixing, loss and rule."""
    data = ["images.train=digits", "images.val=digits", "images.subset=null", "model.num_classes=10"]
    data += ["init_from=null", "transfer.fit=exact"]
    model = ["model.name=test_vit", "model.args.img_size=64", "model.args.patch_size=16", "train.lr_warmup=1 steps"]
    own = load_recipe([f"recipe={name}"]).model.args
    model += [f"model.args.{key}={test}" for key, test in (("embed_dim", 96), ("num_heads", 6)) if key in own]
    world = 8 if load_recipe([f"recipe={name}"]).train.global_batch % 16 == 0 else 1
    parts = assemble(load_recipe([f"recipe={name}", *data, *model]), world)
    epochs, samples = parts.main.order.batch(0)
    assert epochs.shape == samples.shape == (parts.main.optim.global_batch,)
