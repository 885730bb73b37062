"""One set of images in every container: equal samples, equal runs; and what a source refuses."""

import csv
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sourcemaking import jpeg, quiet
from tarmaking import encode, write_tar

from vitwarm.data import parquet as parquet_images
from vitwarm.data.images import EvalTransform
from vitwarm.data.lists import parse_labelled, read_classes
from vitwarm.data.loading import ImageDataset, eval_loader
from vitwarm.data.making import Options
from vitwarm.data.source import DamagedSample, ImageSource
from vitwarm.data.sources import open_images
from vitwarm.data.subset import select_subset
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.stages.images import ImagesStage
from vitwarm.stages.registry import Setup
from vitwarm.validate import validate_export

CLASSES = ("ant", "bee", "newt")
Row = tuple[str, str, bytes]  # class, file name, image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def rows(per_class: int = 6, first: int = 0) -> list[Row]:
    """By class and name, as every container shall number them; one is no image, one is grey of 16 bits."""
    made = [(name, f"{i}.jpg", jpeg(first + 100 * c + i)) for c, name in enumerate(CLASSES) for i in range(per_class)]
    made[1] = ("ant", "1.jpg", b"\xff\xd8 no image %d" % first)
    made[-1] = ("newt", f"{per_class - 1}.png", encode(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000 + first))
    return made


def as_tar(found: list[Row], path: Path) -> Path:
    names = [(f"{c}_{os.path.splitext(name)[0]}", name, c, data) for c, name, data in found]
    members = [
        one
        for key, name, c, data in names
        for one in ((f"{key}{name[-4:]}", data), (f"{key}.cls", b"%d" % CLASSES.index(c)))
    ]
    return write_tar(path.with_suffix(".tar"), members)


def as_folder(found: list[Row], path: Path) -> Path:
    for c, name, data in reversed(found):  # the order of writing must not tell
        (path / c).mkdir(parents=True, exist_ok=True)
        (path / c / name).write_bytes(data)
    (path / "ant/.hidden.jpg").write_bytes(b"x")
    (path / "ant/notes.txt").write_text("x")
    return path


def as_zip(found: list[Row], path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", method) as archive:
        for c, name, data in found[::-1]:
            archive.writestr(f"set/{c}/{name}", data)
        archive.writestr("__MACOSX/set/ant/._0.jpg", b"x")
    return path.with_suffix(".zip")


def as_stored_zip(found: list[Row], path: Path) -> Path:
    return as_zip(found, path.with_name("stored"), zipfile.ZIP_STORED)


def as_list(found: list[Row], path: Path) -> Path:
    as_folder(found, path.with_name("pictures"))
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("", "path", "label")] + [(i, f"{c}/{n}", c) for i, (c, n, _) in enumerate(found)])
    return path.with_suffix(".csv")


def as_parquet(found: list[Row], path: Path, group: int = 4, files: int = 2, **write) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (path / "data").mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for number in range(files):
        part = found[number * len(found) // files : (number + 1) * len(found) // files]
        table = pyarrow.table(
            {
                "image": pyarrow.array([{"bytes": data, "path": name} for _, name, data in part], image),
                "label": pyarrow.array([CLASSES.index(c) for c, _, _ in part], pyarrow.int64()),
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        place = path / f"data/train-{number:05d}-of-{files:05d}.parquet"
        parquet.write_table(table, place, row_group_size=group, **write)
    return path


CONTAINERS = {
    "tar": as_tar,
    "folder": as_folder,
    "zip": as_zip,
    "stored zip": as_stored_zip,
    "list": as_list,
    "parquet": as_parquet,
}


def told(source: ImageSource) -> list[tuple[int, bytes]]:
    return [(int(source.labels[i]), source.read(i)) for i in range(len(source))]


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_samples(tmp_path, name, monkeypatch):
    found = rows()
    path = CONTAINERS[name](found, tmp_path / "set")
    expected = [(CLASSES.index(c), data) for c, _, data in found]
    for _ in range(2):  # without an index, then with one
        source = open_images(path)
        assert told(source) == expected and len(source) == len(found) and source.deep == 1
        assert source.classes is None if name == "tar" else source.classes.names == list(CLASSES)
    tar = open_images(as_tar(found, tmp_path / "other"))
    assert np.array_equal(source.marks, tar.marks), "which overlap compares"
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity == source.identity and told(copy) == expected
    assert source.num_bytes > 0 and source.files == (2 if name == "parquet" else 1)
    assert len({source.key(i) for i in range(len(source))}) == len(found) or name == "parquet"
    monkeypatch.setattr("vitwarm.data.source._OPEN_FILES", 1)
    monkeypatch.setattr(parquet_images, "MOST_KEPT", 1)
    order = np.random.default_rng(0).permutation(len(found)).tolist()
    assert [source.read(i) for i in order] == [expected[i][1] for i in order]
    with pytest.raises(IndexError):
        source.read(len(source))
    names = tmp_path / "names.txt"
    drawn = select_subset(source, "5 samples", 3)
    names.write_text("\n".join(drawn.names[:3]))
    if name != "parquet":  # whose names come again in each class
        assert (
            select_subset(source, str(names), 0).ids.tolist() == select_subset(source, "5 samples", 3).ids[:3].tolist()
        )


@pytest.mark.parametrize("name", ["folder", "zip", "parquet"])
def test_loader_workers_share_a_source(tmp_path, name, monkeypatch):
    monkeypatch.setattr(parquet_images, "MOST_KEPT", 1)
    dataset = ImageDataset(open_images(CONTAINERS[name](rows(), tmp_path / "set")), EvalTransform(8))
    dataset[0, 3]
    one, two = (list(eval_loader(dataset, batch=2, workers=workers)) for workers in (0, 2))
    assert all(
        torch.equal(a["image"], b["image"]) and a["damage"] == b["damage"] for a, b in zip(one, two, strict=True)
    )
    assert sum(len(batch["damage"]) for batch in one) == 1


TINY = (
    *("recipe=digits_default", "model.name=test_vit", "model.args={img_size: 8, patch_size: 4}", "run.workers=0"),
    *("model.num_classes=3", "train.global_batch=6", "train.lr_warmup=0", "images.epochs=2", "images.max_damaged=0.2"),
    *("images.subset=15 samples", "images.resident=false", "images.eval_every=2"),
)


def trained(tmp_path: Path, train: Path, val: Path, *more: str):
    folder = tmp_path / f"run-{train.name}"
    keys = [*TINY, f"images.train={train}", f"images.val={val}", f"run.dir={folder}"]
    return run(load_recipe([*keys, *more])), load_file(folder / "export/model.safetensors"), folder


def test_equal_bytes_in_different_containers_give_equal_runs(tmp_path, capsys):
    """The same weights, metrics and damage, bit for bit; and the export of one is validated on all."""
    val = as_folder(rows(2, first=500), tmp_path / "val")
    runs = {}
    for name in CONTAINERS.keys() - {"stored zip"}:
        try:
            (tmp_path / name).mkdir()
            path = CONTAINERS[name](rows(), tmp_path / name / f"as_{name}")
        except pytest.skip.Exception:
            continue
        runs[name] = trained(tmp_path, path, val)
    result, weights, folder = runs["tar"]
    assert result["stages"]["images"]["damaged_samples"] == 2 and result["data"]["train"]["used"] == 15
    for name, (other, own, where) in runs.items():
        assert own.keys() == weights.keys() and all(torch.equal(own[key], weights[key]) for key in weights), name
        assert other["metrics"] == result["metrics"] and other["stages"]["images"]["damaged_samples"] == 2
        names = json.loads((where / "export/config.json").read_text()).get("label_names")
        assert names == (None if name == "tar" else list(CLASSES))
    lines = [line for line in capsys.readouterr().out.splitlines() if "images: train" in line]
    assert any("of 3 classes (ant ... newt) in 1 folder, " in line for line in lines)
    found = [validate_export(str(folder / "export"), str(path), workers=0) for path in (val, as_tar_of(val, tmp_path))]
    assert (found[0]["count"], found[0]["damaged"]) == (5, 1) and all(
        found[0][key] == found[1][key] for key in ("top1", "loss", "count")
    )


def as_tar_of(folder: Path, tmp_path: Path) -> Path:
    return as_tar([(p.parent.name, p.name, p.read_bytes()) for p in sorted(folder.glob("*/[0-9]*"))], tmp_path / "val")


def stage(train: Path, val: Path | str = "", *more: str) -> ImagesStage:
    return ImagesStage(load_recipe([*TINY, f"images.train={train}", f"images.val={val}", *more]), Setup())


def test_classes_and_images_of_train_and_val_are_compared_across_containers(tmp_path):
    train = as_folder(rows(), tmp_path / "train")
    stage(train, as_zip(rows(2, first=500), tmp_path / "val"))
    with pytest.raises(UserError, match=r"images.val: .* are in images.train too"):
        stage(train, as_zip(rows(2), tmp_path / "same"))
    few = as_folder([("ant", "0.jpg", jpeg(1)), ("newt", "0.jpg", jpeg(2))], tmp_path / "few")
    with pytest.raises(UserError, match="class 1 is 'newt' in .*few, but 'bee' in .*train.*make-shards classes=FILE"):
        stage(train, few)
    for number in range(11):
        (tmp_path / f"numbers/{number}").mkdir(parents=True)
        (tmp_path / f"numbers/{number}/x.jpg").write_bytes(jpeg(number))
    with pytest.raises(UserError, match="class 2 is '10' in .*numbers, which is sorted by name, but images.val has"):
        stage(tmp_path / "numbers", as_tar(rows(2, first=500), tmp_path / "bare"), "model.num_classes=11")


def test_a_folder_or_zip_stands_for_the_split_that_is_asked_for(tmp_path):
    for split, first in (("train", 0), ("validation", 500)):
        as_folder(rows(2, first), tmp_path / "all" / split)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "all").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    for path in (tmp_path / "all", tmp_path / "all.zip"):
        images = [told(open_images(path, split)) for split in ("train", "val")]
        assert images == [[(CLASSES.index(c), data) for c, _, data in rows(2, first)] for first in (0, 500)]


def test_files_are_opened_once_and_again_when_they_change(tmp_path, monkeypatch):
    path = as_folder(rows(), tmp_path / "set")
    opened = []
    looked = (
        open_images.__globals__["FolderSource"].__init__.__globals__["FilesPart"].__init__.__globals__["content_of"]
    )
    monkeypatch.setattr("vitwarm.data.loose_files.content_of", lambda *a: opened.append(1) or looked(*a))
    monkeypatch.setattr("vitwarm.data.loose_files.TICK", -1)
    first = open_images(path).identity
    assert len(opened) == 18
    assert open_images(path).identity == first and len(opened) == 18
    (path / "bee/2.jpg").write_bytes(jpeg(777))
    (path / "bee/20.jpg").write_bytes(jpeg(778))
    changed = open_images(path)
    assert len(opened) == 20 and changed.identity != first and changed.read(9) == jpeg(778)
    (tmp_path / "cache/indices").chmod(0o500)
    place = next((tmp_path / "cache/indices").glob("*set*"))
    place.write_bytes(place.read_bytes()[:-1])
    assert open_images(path).identity == changed.identity, "a damaged index is made again"


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 10)


@pytest.mark.parametrize("name", ["folder", "zip", "list", "parquet"])
@pytest.mark.parametrize("change", [rewrite, Path.unlink])
def test_a_source_that_changes_during_a_run_ends_it_in_one_line(tmp_path, name, change, monkeypatch):
    monkeypatch.setattr(parquet_images, "MOST_KEPT", 1)
    path = CONTAINERS[name](rows(), tmp_path / "set")
    source = open_images(path)
    file = {"zip": path, "list": tmp_path / "pictures/ant/0.jpg", "folder": path / "ant/0.jpg"}.get(name)
    change(file or path / "data/train-00000-of-00002.parquet")
    with pytest.raises(UserError, match=r"(has changed|is gone) since it was|cannot be opened any more") as caught:
        source.read(0)
    if change is rewrite:
        assert str(caught.value).endswith("restore it and start again, or use it as it is in another run.dir")
    assert str(file or path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_read_is_damaged_and_counted(tmp_path, caplog):
    path = as_folder(rows(), tmp_path / "set")
    (path / "ant/00.jpg").symlink_to(tmp_path / "nowhere")
    source = open_images(path)
    with pytest.raises(DamagedSample, match="No such file"):
        source.read(1)
    packed = as_stored_zip(rows(), tmp_path / "x")
    data = packed.read_bytes()
    at = data.index(rows()[2][2])
    packed.write_bytes(data[: at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6 :])
    source = open_images(packed)
    with pytest.raises(DamagedSample, match="its checksum in the zip is wrong"):
        source.read(2)
    assert source.read(3) == rows()[3][2]
    packed.write_bytes(data.replace(b"PK\x03\x04", b"PK\x03\x05", 1))  # of newt/5.png, written first
    for _ in range(2):  # the index is made, then kept: one damaged header is a damaged image, not another zip
        source = open_images(packed)
        assert caplog.text.count("indexing it again") == 1
        with pytest.raises(DamagedSample, match="its header in the zip is damaged"):
            source.read(17)
        assert source.read(16) == rows()[16][2]


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    """The class folders were added to between two calls: refused, with the checkpoints where they are."""
    train = as_folder(rows(), tmp_path / "set")
    keys = [*TINY, f"images.train={train}", f"run.dir={tmp_path / 'run'}"]
    run(load_recipe([*keys, "images.val="]))
    (tmp_path / "run/result.json").unlink()
    kept = sorted((tmp_path / "run").rglob("*"))
    (train / "ant/7.jpg").write_bytes(jpeg(7))
    with pytest.raises(UserError, match="images.train was 18 images, .*now 19 images.*restore the data"):
        run(load_recipe([*keys, "images.val="]))
    assert sorted((tmp_path / "run").rglob("*")) == kept


def lay(folder: Path, names: str) -> Path:
    for i, name in enumerate(names.split()):
        place = folder / name.rpartition("/")[0]
        place.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (folder / name).write_bytes(jpeg(i))
    folder.mkdir(exist_ok=True)
    return folder


FOLDERS = {
    "nothing": ("", "in: holds no images; they lie in a folder for each class, in tars or parquet files"),
    "no images": ("a/x.txt b/y.md", "in: holds no images"),
    "loose images": ("1.jpg 2.jpg", r"has no class folders, but images, first 1.jpg \(2 such.*give the list of their"),
    "both": (
        "a/1.jpg b/1.jpg x.jpg",
        r"has class folders \(a, ...\) and images outside.*x.jpg \(1 such images\); move",
    ),
    "one class": ("a/1.jpg a/2.jpg", "has one class alone, 'a'; give the folder whose folders are the classes"),
    "an empty class": ("a/1.jpg b/1.jpg c/x.txt", "in/c: a class without an image; fill the folder, or remove it"),
    "a bare class": ("a/1.jpg b/1.jpg bare/", "in/bare: a class without an image; fill the folder, or remove it"),
    "a level too high": ("x/a/1.jpg x/b/1.jpg y/a/1.jpg y/b/1.jpg", "in/x: is it a class?.*give the folder whose"),
    "splits and classes": ("train/1.jpg bus/1.jpg car/1.jpg", "in/train: is it a split or a class?"),
    "no val": ("train/a/1.jpg train/b/1.jpg dev/1.jpg test/1.jpg", "in/dev: has no class folders, but images"),
    "flat val": ("train/a/1.jpg train/b/1.jpg val/1.jpg", "in/val: has no class folders, but images, first 1.jpg"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_no_set_of_classes_are_refused(tmp_path, name, packed):
    layout, message = FOLDERS[name]
    folder = lay(tmp_path / "in", layout)
    if packed:
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            for path in sorted(folder.rglob("*.*")):  # files alone
                archive.write(path, path.relative_to(folder))
            for path in folder.rglob("bare"):
                archive.write(path, path.relative_to(folder))
        message = re.sub("^in", "in.zip", message).partition("; they lie")[0]
    with pytest.raises(UserError, match=message) as caught:
        open_images(tmp_path / "in.zip" if packed else folder, "val")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_kinds_are_not_mixed(tmp_path):
    folder, tar = as_folder(rows(), tmp_path / "a"), as_tar(rows(), tmp_path / "b")
    with pytest.raises(UserError, match="of kind folder, .* of kind tar; give images of one kind"):
        open_images(f"{folder}::{tar}")
    with pytest.raises(UserError, match="is a second set of images; give one, or make shards of all"):
        open_images([folder, as_folder(rows(), tmp_path / "c")])


LISTS = {
    "empty": ("path,label\n", "names no images; a row is a path and a class"),
    "no label": ("pictures/ant/0.jpg,ant\npictures/bee/0.jpg,\n", "the row 'pictures/bee/0.jpg, ' is not a name and a"),
    "one column": ("pictures/ant/0.jpg\n", "is not a name and a class"),
    "mixed": ("pictures/ant/0.jpg,ant\npictures/bee/0.jpg,1\n", r"has class numbers \(1\) and class names \('ant'\)"),
    "twice": ("pictures/ant/0.jpg,ant\n" * 2, "names pictures/ant/0.jpg twice"),
    "twice, written differently": (
        "pictures/ant/0.jpg,ant\n./pictures/ant/0.jpg,bee\n",
        "names pictures/ant/0.jpg twice",
    ),
    "-1": ("pictures/ant/0.jpg,-1\npictures/bee/0.jpg,-1\n", "'-1' is not the number of a class"),
    "floats": ("pictures/ant/0.jpg,0\npictures/bee/0.jpg,10.0\n", "'10.0' is not the number of a class"),
    "a billion": ("pictures/ant/0.jpg,0\npictures/bee/0.jpg,1000000000\n", "'1000000000' is not the number of a class"),
    "comma in a class": (
        "path,label\npictures/ant/0.jpg,crane, bird\n",
        "'pictures/ant/0.jpg, crane, bird' has more than",
    ),
    "blank in a class": (
        "pictures/ant/0.jpg red ant\npictures/bee/0.jpg bee\n",
        "jpg, red, ant' has more than 2 cells",
    ),
    "missing": ("pictures/ant/0.jpg,ant\npictures/ant/99.jpg,ant\n", "1 of its 2 images are not there, first pict.*99"),
    "elsewhere": ("nowhere/0.jpg,ant\n", "its image nowhere/0.jpg is neither beside it nor in a folder beside it"),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_that_are_refused(tmp_path, name):
    text, message = LISTS[name]
    as_list(rows(), tmp_path / "set")
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(UserError, match=f"set.csv: .*{message}") as caught:
        open_images(tmp_path / "set.csv")
    assert "\n" not in str(caught.value)


def test_kaggles_imagenet(tmp_path):
    """Train in class folders; val flat, its labels in a table of names without endings, with boxes behind the class."""
    root, wnids = tmp_path / "imagenet", ("n01440764", "n01443537", "n02102040")
    images = {f"ILSVRC2012_val_{i:08d}": (wnids[i % 3], jpeg(i)) for i in range(1, 7)}
    lay(root / "ILSVRC/Data/CLS-LOC/train", " ".join(f"{w}/{w}_{i}.JPEG" for w in wnids for i in range(2)))
    lay(root / "ILSVRC/Data/CLS-LOC/test", "ILSVRC2012_test_00000001.JPEG")
    (root / "ILSVRC/Data/CLS-LOC/val").mkdir()
    for name, (_, data) in images.items():
        (root / f"ILSVRC/Data/CLS-LOC/val/{name}.JPEG").write_bytes(data)
    text = "".join(f"{name},{wnid} 111 108 441 193 {wnid} 5 6 7 8\n" for name, (wnid, _) in reversed(images.items()))
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{text}")
    train, val = open_images(root / "ILSVRC/Data/CLS-LOC/train"), open_images(root / "LOC_val_solution.csv", "val")
    assert train.classes.names == val.classes.names == list(wnids)
    assert told(val) == [(wnids.index(wnid), data) for wnid, data in reversed(images.values())]
    assert val.key(0) == "LOC_val_solution.csv:ILSVRC2012_val_00000006.JPEG"
    with pytest.raises(UserError, match="LOC_val_solution.csv"):
        open_images(root / "ILSVRC/Data/CLS-LOC", "val")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_tiny_imagenet(tmp_path, packed):
    root, wnids = tmp_path / "tiny-imagenet-200", ("n01443537", "n02102040")
    lay(root / "train", " ".join(f"{w}/images/{w}_{i}.JPEG" for w in wnids for i in range(3)))
    lay(root / "val/images", "val_0.JPEG val_1.JPEG val_2.JPEG val_10.JPEG")
    lay(root / "test/images", "test_0.JPEG")
    labels = {"val_0.JPEG": 1, "val_1.JPEG": 0, "val_2.JPEG": 1, "val_10.JPEG": 0}
    lines = "".join(f"{name}\t{wnids[label]}\t0\t1\t2\t3\n" for name, label in labels.items())
    (root / "val/val_annotations.txt").write_text(lines)
    images = {path.name: path.read_bytes() for path in root.rglob("*.JPEG")}
    path = root
    if packed:
        path = tmp_path / "tiny.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for one in sorted(root.rglob("*.*")):
                archive.write(one, one.relative_to(tmp_path))
    train = open_images(path, "train")
    assert told(train) == [(c, images[f"{w}_{i}.JPEG"]) for c, w in enumerate(wnids) for i in range(3)]
    expected = [(labels[name], images[name]) for name in ("val_1.JPEG", "val_10.JPEG", "val_0.JPEG", "val_2.JPEG")]
    for place in [path] if packed else [path, root / "val", root / "val/val_annotations.txt"]:
        val = open_images(place, "val")
        assert told(val) == expected and val.classes.names == train.classes.names == list(wnids)


def test_columns_of_a_table_are_found_by_their_names():
    assert parse_labelled("label;x;filename\ncat;1;a b.jpg\n", "t") == [("a b.jpg", "cat")]
    assert parse_labelled("id,breed\nabc,pug\n", "t") == [("abc", "pug")]
    assert parse_labelled("a.jpg cat\nb.jpg dog\n", "t") == [("a.jpg", "cat"), ("b.jpg", "dog")]
    assert parse_labelled("id,image_path,class\n1,a.jpg,cat\n", "t") == [("a.jpg", "cat")]
    assert parse_labelled("Image,Id\na.jpg,w_1\n", "t") == [("a.jpg", "w_1")]
    with pytest.raises(UserError, match="t: no column of its header is one of classes; call it label"):
        parse_labelled("image_id,filename,dx\n1,a.jpg,nv\n", "t")


@pytest.mark.parametrize("head", ["", "path,label\n"])
def test_a_name_may_begin_with_any_character(head):
    rows = [("#1.jpg", "cat"), ("# 2.jpg", "dog"), ("%3.jpg", "#fish"), ("//4.jpg", "cat")]
    assert parse_labelled(head + "".join(f"{name},{label}\n" for name, label in rows), "t") == rows
    comment = "# of the second day\na.jpg,cat\n"
    with pytest.raises(UserError, match="t: the row '#, of, the, second, day' has more"):
        parse_labelled(comment, "t")


def no_labels(table):
    return table.drop_columns(["label"])


def no_images(table):
    return table.drop_columns(["image"])


def of_a_test_set(table):
    return table.set_column(1, "label", [[-1] * len(table)])


def with_floats(table):
    return table.set_column(1, "label", [[float(label) for label in table.column("label").to_pylist()]])


def with_a_nameless_class(table):
    return table.set_column(1, "label", [["", *["ant"] * (len(table) - 1)]])


def with_paths_alone(table):
    return table.set_column(0, "image", [[one | {"bytes": None} for one in table.column("image").to_pylist()]])


def with_a_hole(table):
    return table.set_column(1, "label", [[None, *table.column("label").to_pylist()[1:]]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_labels, r"has no column of labels, only image \(struct<.*\); name it label, of integers or text"),
        (no_images, r"has no column of images .*, only label \(int64\); name it image"),
        (with_floats, r"has no column of labels, only image .*, label \(double\); name it label, of integers or text"),
        (with_a_nameless_class, r"row 0 has no label \(label: ''\)"),
        (with_paths_alone, "has no image bytes in any row"),
        (of_a_test_set, r"row 0 has no label \(label: -1\)"),
        (with_a_hole, r"row 0 has no label \(label: None\)"),
    ],
)
def test_parquet_without_what_it_needs(tmp_path, change, message):
    path = as_parquet(rows(), tmp_path / "set", files=1) / "data/train-00000-of-00001.parquet"
    from pyarrow import parquet

    parquet.write_table(change(parquet.read_table(path)), path)
    with pytest.raises(UserError, match=f"train-00000-of-00001.parquet: {message}") as caught:
        open_images(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is not a whole parquet file"):
        open_images(path)


def test_parquet_as_others_write_it(tmp_path):
    """Plain bytes; labels as text, of which each file has some; columns under other names, told by the metadata."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number, names in enumerate((["newt", "ant"], ["bee", "ant"])):
        table = pyarrow.table({"jpg": [jpeg(10 * number + i) for i in range(2)], "class": names})
        parquet.write_table(table, tmp_path / f"{number}.parquet")
    source = open_images(tmp_path)
    assert source.classes.names == list(CLASSES)
    assert told(source) == [(2, jpeg(0)), (0, jpeg(1)), (1, jpeg(10)), (0, jpeg(11))]
    features = {"photo": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["a", "b"]}}
    table = pyarrow.table({"n": [5, 6], "photo": [{"bytes": jpeg(1)}, None], "kind": [1, 0], "label": [7, 7]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "other.pq.parquet")
    source = open_images(tmp_path / "other.pq.parquet")
    assert source.labels.tolist() == [1, 0] and source.classes.names == ["a", "b"] and source.read(0) == jpeg(1)
    with pytest.raises(DamagedSample, match="the row has no image bytes"):
        source.read(1)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"x.parquet: parquet needs pyarrow: pip install vitwarm\[parquet\]"):
        open_images(tmp_path / "x.parquet")


@pytest.mark.parametrize("spoil", [lambda b: b[:-30], lambda b: b"PK" + b[2:60], lambda b: b"", lambda b: b"\0" * 99])
def test_zips_that_are_none(tmp_path, spoil):
    path = as_zip(rows(), tmp_path / "set")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=r"set.zip: is (not a whole zip|empty)") as caught:
        open_images(path)
    assert "\n" not in str(caught.value)


def test_names_in_a_zip_reach_nothing_outside(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("./a/1.jpg", "b/1.jpg", "../up/2.jpg", "/root/3.jpg", "a/../b/4.jpg"):
            archive.writestr(name, jpeg(1))
    source = open_images(tmp_path / "x.zip")
    assert [source.key(i) for i in range(len(source))] == ["x.zip:./a/1.jpg", "x.zip:b/1.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip", "x.zip.index.safetensors"]
    with zipfile.ZipFile(tmp_path / "y.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a/1.jpg", jpeg(1))
    with pytest.raises(UserError, match="y.zip: 'a/1.jpg' is neither stored nor deflated; zip the images again"):
        open_images(tmp_path / "y.zip")


def test_make_shards_makes_the_same_tars_of_every_container(tmp_path):
    made = {}
    for name in CONTAINERS.keys() - {"tar"}:
        (tmp_path / name).mkdir()
        try:
            path = CONTAINERS[name](rows(), tmp_path / name / "set")
        except pytest.skip.Exception:
            continue
        found = quiet(path, tmp_path / f"out_{name}", options=Options(max_damaged=0.1))
        assert (found.classes, [key for key, _ in found.splits["train"].damaged]) == (list(CLASSES), ["ant_1"])
        made[name] = found.splits["train"].shards[0].sha256
    if "parquet" in made:  # in which the names of these images come again, so that rows are numbered
        assert made.pop("parquet") not in made.values()
    assert len(made) == 4 and len(set(made.values())) == 1


def test_make_shards_reads_each_split_and_numbers_as_told(tmp_path):
    for split, first in (("train", 0), ("validation", 500)):
        as_folder(rows(2, first), tmp_path / "all" / split)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "all").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    cut = Options(max_damaged=0.5)
    made = quiet(tmp_path / "all.zip", tmp_path / "out", options=cut)
    assert {name: split.samples for name, split in made.splits.items()} == {"train": 5, "val": 5}
    (tmp_path / "val.csv").write_text("".join(f"all/train/{c}/0.jpg,{i}\n" for i, c in enumerate(CLASSES)))
    with pytest.raises(UserError, match="val.csv: has class numbers without names; give these"):
        quiet(tmp_path / "val.csv", tmp_path / "other")
    made = quiet(tmp_path / "val.csv", tmp_path / "other", classes=tmp_path / "out/manifest.json")
    assert made.classes == list(CLASSES) and made.splits["val"].class_counts == [1, 1, 1]
    (tmp_path / "lone.csv").write_text("all/train/bee/0.jpg,bee\nall/train/newt/0.jpg,newt\n")
    made = quiet(tmp_path / "lone.csv", tmp_path / "third", classes=tmp_path / "out/manifest.json", split="val")
    assert made.splits["val"].class_counts == [0, 1, 1]


def test_numbers_that_tell_classes_apart_are_part_of_their_names(tmp_path):
    for text, names in (
        ("stage 1\nstage 2\n", ["stage 1", "stage 2"]),
        ("1 ant\n0 bee\n", ["bee", "ant"]),
        ("ant 1\nbee 0\n", ["bee", "ant"]),
    ):
        (tmp_path / "classes.txt").write_text(text)
        assert read_classes(tmp_path / "classes.txt") == names
