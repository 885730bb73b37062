"""What a run reads: said before its first step, compared between the splits, and what an independent reader finds."""

import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sourcemaking import jpeg, pixels, quiet, tree
from tarmaking import encode, samples, write_tar

from vitwarm.data.making import Options
from vitwarm.data.manifest import ClassList
from vitwarm.data.shards import ShardSet, expand
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.stages.images import ImagesStage
from vitwarm.stages.registry import Setup
from vitwarm.validate import _labelled


def stage(train, val="", *more) -> ImagesStage:
    keys = [f"images.train={train}", f"images.val={val}", "images.resident=false", "train.global_batch=4"]
    return ImagesStage(load_recipe(["recipe=digits_default", *keys, "run.workers=0", *more]), Setup())


def shards_of(folder: Path, classes: str, first: int, **more) -> Path:
    """Shards of a tree of classes, two different images each."""
    for c, name in enumerate(classes):
        (folder / "tree" / name).mkdir(parents=True)
        for i in range(2):
            (folder / "tree" / name / f"{i}.jpg").write_bytes(jpeg(first + 10 * c + i))
    quiet(folder / "tree", folder / "shards", **more)
    return folder / "shards"


def by_tarfile(paths) -> tuple[Counter, int]:
    """(label, pixels) of each image, and the bytes of the tars; tarfile, PIL and NumPy alone."""
    found = Counter()
    for path in paths:
        with tarfile.open(path) as archive:
            data = {member.name: archive.extractfile(member).read() for member in archive if member.isreg()}
        for name, content in data.items():
            stem, _, extension = name.rpartition(".")
            if extension != "cls":
                image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
                found[int(data[f"{stem}.cls"]), image.tobytes()] += 1
    return found, sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("subset", [None, "50%"])
def test_a_run_trains_on_what_an_independent_reader_finds(tmp_path, subset):
    rows = [(row % 3, encode(pixels(row, 8))) for row in range(24)]
    tars = []
    for number in range(3):
        part = rows[8 * number : 8 * number + 8]
        members = [m for i, (c, image) in enumerate(part) for m in ((f"{i}.png", image), (f"{i}.cls", b"%d" % c))]
        tars.append(write_tar(tmp_path / f"train-{number}.tar", members))
    val = write_tar(tmp_path / "val-0.tar", samples(6, classes=3, first=500))
    keys = ["images.size=8", "images.crop=none", "images.hflip=0", "images.epochs=1", "train.lr_warmup=0"]
    keys += [f"images.subset={subset or 'null'}", "model.name=test_vit", "model.args={img_size: 8, patch_size: 4}"]
    run = stage(tmp_path, val, *keys)
    run.bind(run.fresh_model())
    shown = Counter()
    for batch in run.batches(0, 0, 1, 4):
        for label, image in zip(batch.labels.tolist(), batch.images, strict=True):
            shown[label, image.permute(1, 2, 0).numpy().tobytes()] += 1
    truth, size = by_tarfile(tars)
    found = run.facts()["data"]
    used = sum(shown.values())
    assert (used, max(shown.values())) == (12 if subset else 24, 1)
    assert shown == truth if subset is None else all(truth[one] for one in shown)
    assert found["train"] | {"used": used} == found["train"]
    assert (found["train"]["images"], found["train"]["files"], found["train"]["bytes"]) == (truth.total(), 3, size)
    assert found["train"]["classes"] == len({label for label, _ in truth})
    truth, size = by_tarfile([val])
    assert (found["val"]["images"], found["val"]["bytes"]) == (truth.total(), size)
    assert json.loads(json.dumps(found)) == found
    part = "12 of 24" if subset else "24"
    assert run.data_line() == (
        f"images: train {part} images of 3 classes (0 ... 2) in 3 tars, {found['train']['bytes'] / 1e3:.1f} kB; "
        f"val 6 images of 3 classes (0 ... 2) in 1 tar, {size / 1e3:.1f} kB"
    )


def test_class_names_and_16_bit_images_are_in_the_data_line(tmp_path):
    train = shards_of(tmp_path, ["zebra", "ant", "bee"], 0)
    deep = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(deep, "PNG")
    val = write_tar(tmp_path / "v.tar", [*samples(2, first=90), ("x.png", deep.getvalue()), ("x.cls", b"1")])
    said = stage(train, val).data_line()
    assert "train 6 images of 3 classes (ant ... zebra) in 1 tar" in said
    assert said.endswith("(1 of 16 bits, scaled to 8; plain timm would clip them)")


def test_the_data_say_how_many_classes_there_are(tmp_path):
    train = write_tar(tmp_path / "train.tar", samples(6, classes=3))
    named = shards_of(tmp_path, ["ant", "bee", "cat", "dog"], 70)
    val = write_tar(tmp_path / "val.tar", samples(5, classes=5, first=500))
    for given, data, count in (("null", (train, ""), 3), ("null", (train, named), 4), ("7", (train, val), 7)):
        main = stage(*data, f"model.num_classes={given}", "model.name=test_vit", "model.args={img_size: 8}")
        assert (main.num_classes, main.fresh_model().num_classes, main.mixer.num_classes) == (count,) * 3
        assert main.data_read().get("model.num_classes") == (None if given == "7" else str(count))
        large = "model.num_classes=7, but the training images have 3 classes; leave it out, "
        assert [line[: len(large)] for line in main.warnings] == ([large] if given == "7" else [])
    with pytest.raises(UserError, match=r"val.tar:.*label 3 is not below model.num_classes=3 .* to at least 5"):
        stage(train, val, "model.num_classes=null")
    few = shards_of(tmp_path / "few", ["ant", "bee"], 90)
    with pytest.raises(UserError, match=r"label 2 is not below the 2 classes of .*number both alike, .* at least 3"):
        stage(train, few, "model.num_classes=null")


def test_smaller_images_are_said_in_the_data_line(tmp_path):
    tree(tmp_path / "in")
    quiet(tmp_path / "in", tmp_path / "small", options=Options(max_side=9))
    quiet(tmp_path / "in", tmp_path / "full", split="val")
    run = stage(tmp_path / "small", tmp_path / "full")
    assert [run.facts()["data"][split]["max_side"] for split in ("train", "val")] == [9, None]
    assert "(larger ones were made smaller: shorter side 9); val" in run.data_line()


def same(path: Path, to: Path) -> None:
    shutil.copy(path, to)


def repacked(path: Path, to: Path) -> None:
    with tarfile.open(path) as archive:
        members = [(f"z/{member.name}", archive.extractfile(member).read()) for member in archive]
    write_tar(to, members[::-1], tarfile.PAX_FORMAT)


def a_part(path: Path, to: Path) -> None:
    write_tar(to, samples(3) + samples(9, first=100))


@pytest.mark.parametrize("make", [same, repacked, a_part, lambda a, b: b.symlink_to(a), lambda a, b: b.hardlink_to(a)])
def test_images_of_train_are_no_validation_images(tmp_path, make):
    train, val = write_tar(tmp_path / "train.tar", samples(8)), tmp_path / "other.tar"
    make(train, val)
    with pytest.raises(UserError, match="images.val: .* are in images.train too, such as other.tar:.*, which is train"):
        stage(train, val)
    with pytest.raises(UserError, match="are in images.train too"):
        stage(f"{tmp_path}/{{train,other}}.tar" if make is a_part else train, train)


def test_few_shared_images_are_counted_and_like_ones_are_not_shared(tmp_path):
    """Large bitmaps that differ in the middle: equal in size and at both ends, but not equal."""
    images = np.zeros((60, 160, 160, 3), np.uint8)
    images[:, 80:85] = np.random.default_rng(0).integers(0, 256, (60, 5, 160, 3))
    row = [[(f"{i}.bmp", encode(images[i], "BMP")), (f"{i}.cls", b"0")] for i in range(60)]
    train = write_tar(tmp_path / "train.tar", [m for i in range(30) for m in row[i]])
    val = write_tar(tmp_path / "val.tar", [m for i in range(29, 60) for m in row[i]])
    assert len(set(ShardSet([train]).marks.tolist())) == 1, "the quick comparison cannot tell them"
    said = stage(train, val).data_line()
    assert said.endswith("(1 are training images too: val.tar:29, which is train.tar:29)")


def test_a_folder_stands_for_the_split_that_is_asked_for(tmp_path):
    folder = tmp_path / "named"
    folder.mkdir()
    paths = [write_tar(folder / name, samples(2, first=9 * i)) for i, name in enumerate(("train-0.tar", "test-0.tar"))]
    assert (expand(folder, "train"), expand(folder, "val"), expand(folder)) == ([paths[0]], [paths[1]], paths[::-1])
    val = write_tar(folder / "val-0.tar", samples(2, first=90))
    assert expand(folder, "val") == [val]
    (folder / "._val-0.tar").write_bytes(b"apple")
    assert expand(folder, "val") == [val]
    lone = tmp_path / "lone"
    lone.mkdir()
    write_tar(lone / "val-0.tar", samples(2))
    assert expand(lone, "train") == [lone / "val-0.tar"], "a single split is what a folder stands for"
    write_tar(lone / "test-0.tar", samples(2))
    with pytest.raises(UserError, match="lone: has no train, only test, val; name its tars by a glob"):
        expand(lone, "train")
    apart = tmp_path / "apart"
    for split, name in (("train", "train"), ("val", "validation")):
        (apart / name).mkdir(parents=True)
        made = write_tar(apart / name / "0.tar", samples(2))
        assert expand(apart, split) == [made]


def test_a_manifest_tells_the_splits_of_its_folder(tmp_path):
    train = shards_of(tmp_path, ["ant", "bee"], 0, split="test")
    assert [path.name for path in expand(train, "val")] == ["test-00000.tar"]
    extra = write_tar(train / "more.tar", samples(2))
    with pytest.raises(UserError, match="more.tar: is not in .*manifest.json; move it away"):
        expand(train, "val")
    assert expand(str(extra), "val") == [extra]
    tar = train / "test-00000.tar"
    tar.write_bytes(tar.read_bytes() + bytes(512))
    with pytest.raises(UserError, match="is not the tar that .*manifest.json describes"):
        ShardSet([tar])


CLASSES = {
    "one is missing": ("abc", "bc", "class 0 is 'b' in .*v/shards/manifest.json, but 'a' in .*t/shards/manifest.json"),
    "one is another": ("ab", "ac", "class 1 is 'c' .*, but 'b'"),
    "one is more": ("ab", "abc", "class 2 is 'c' .*, but beyond the classes of"),
    "the last one is missing": ("abc", "ab", None),
}


@pytest.mark.parametrize("name", CLASSES)
def test_class_lists_are_compared(tmp_path, name):
    ours, theirs, message = CLASSES[name]
    train, val = shards_of(tmp_path / "t", ours, 0), shards_of(tmp_path / "v", theirs, 500, split="val")
    model = SimpleNamespace(num_classes=10, pretrained_cfg={"label_names": list(ours)})
    if message is None:
        assert stage(train, val).class_names is None, "the classifier has more outputs than there are names"
        assert stage(train, val, f"model.num_classes={len(ours)}").class_names == list(ours)
        assert len(_labelled(str(val), model, "export")) == 2 * len(theirs)
        return
    with pytest.raises(UserError, match=f"{message}.*make-shards classes=FILE"):
        stage(train, val)
    with pytest.raises(UserError, match=f"class . is '{theirs[int(message[6])]}' in .*, but .*export"):
        _labelled(str(val), model, "export")
    if name != "one is more":
        with pytest.raises(UserError, match="images.train: class . is"):
            stage(f"{tmp_path}/{{t,v}}/shards/*.tar")


def test_a_label_without_a_name_contradicts_its_manifest(tmp_path):
    shards = shards_of(tmp_path, "ab", 0)
    place = shards / "manifest.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"classes": ["a"]}))
    with pytest.raises(UserError, match="label 1 has no name in .*manifest.json"):
        stage(shards)


def test_the_first_difference_is_named():
    ClassList(["a", "b"], "here").check(ClassList(["a"], "there"))
    with pytest.raises(UserError, match="class 1 is 'c' in there, but 'b' in here"):
        ClassList(["a", "b"], "here").check(ClassList(["a", "c", "d"], "there"))
