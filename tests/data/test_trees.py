"""Trees of folders as people have them: what is a class, a split, a set of its own, and what is no image at all."""

import os
from pathlib import Path

import pytest
from sourcemaking import jpeg, quiet, tree
from tarmaking import samples, write_tar

from vitwarm.data.making import make_shards
from vitwarm.data.splits import split_folder, split_of
from vitwarm.errors import UserError

THREE = ("ant", "bee", "cat")


def lay(folder: Path, layout: dict[str, int]) -> None:
    """Folder -> how many images lie directly in it; all differ."""
    for at, (name, count) in enumerate(layout.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / name / f"{at}_{i}.jpg").write_bytes(jpeg(1000 * at + i))


def within(place: str, count: int, classes=THREE) -> dict[str, int]:
    return {f"{place}/{name}": count for name in classes}


READ = {  # layout -> classes, images of each split, what is named as not used
    "a lone folder": (within("images", 2), THREE, {"train": 6}, ""),
    "two lone folders": (within("data/images", 2), THREE, {"train": 6}, ""),
    "the parent of a set": (within("set/train", 2) | within("set/val", 1), THREE, {"train": 6, "val": 3}, ""),
    "beside annotations": (within("images", 2) | {"annotations": 0}, THREE, {"train": 6}, "1 folder annotations"),
    "training and validation": (within("training", 2) | within("validation", 1), THREE, {"train": 6, "val": 3}, ""),
    "train and dev": (within("train", 2) | within("dev", 1), THREE, {"train": 6, "val": 3}, ""),
    "capitals": (within("Train", 2) | within("VAL", 1), THREE, {"train": 6, "val": 3}, ""),
    "years": (within("train2017", 2) | within("val2017", 1), THREE, {"train": 6, "val": 3}, ""),
    "sets": (within("train_set", 2) | within("test_images", 1), THREE, {"train": 6, "test": 3}, ""),
    "an unknown split": (within("train", 2) | within("holdout", 1), THREE, {"train": 6}, "1 folder holdout"),
    "hidden": (within(".", 2) | {".ipynb_checkpoints": 2, "ant/.cache": 1}, THREE, {"train": 6}, "2 hidden folders"),
    "of tools": (within(".", 2) | {"__MACOSX/ant": 2, "ant/@eaDir": 1}, THREE, {"train": 6}, "2 hidden folders"),
    "a folder in each class": ({f"{c}/images": 2 for c in THREE}, THREE, {"train": 6}, ""),
    "stray images": (
        within("train", 2) | {"train": 1},
        THREE,
        {"train": 6},
        "1 images of train outside of class folders",
    ),
    "not a split": (within(".", 2, ("bullet_train", "test_tube")), ("bullet_train", "test_tube"), {"train": 4}, ""),
    "a test set without labels": (
        within("train", 2) | within("val", 1) | {"test": 2},
        THREE,
        {"train": 6, "val": 3},
        "1 test folder without labels",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_classes_and_splits_are_found(tmp_path, name):
    layout, classes, splits, unused = READ[name]
    lay(tmp_path / "in", layout)
    said = []
    made = make_shards(tmp_path / "in", tmp_path / "out", say=said.append)
    assert made.classes == list(classes) and {n: s.samples for n, s in made.splits.items()} == splits
    assert f"({classes[0]} ... {classes[-1]})" in said[0]
    assert [line for line in said if "not used" in line] == ([f"not used: {unused}"] if unused else [])


REFUSED = {
    "one class": ({"ant": 3}, "one class alone, 'ant'"),
    "one class of a split": ({"train/ant": 3, "val/ant": 1}, "one class alone, 'ant'"),
    "domains": (within("art", 1) | within("photo", 1), "in/art: is it a class?.*ant, bee, cat"),
    "one domain too many": (within("art", 1) | within("photo", 1) | {"ant": 2}, "in/art: is it a class?"),
    "two sets": (within("cars", 1, ("bmw", "vw")) | within("pets", 1, ("cat", "dog")), "in/cars: is it a class?"),
    "splits in classes": ({f"{c}/{s}": 1 for c in THREE for s in ("train", "test")}, "is it a class?.*test, train"),
    "a split or a class": (within(".", 1, ("bus", "car", "train")), "in/train: is it a split or a class?"),
    "two of one split": (within("val", 1) | within("dev", 1) | within("train", 1), "two of them for one split"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_perhaps_no_class_is_refused(tmp_path, name):
    layout, message = REFUSED[name]
    lay(tmp_path / "in", layout)
    with pytest.raises(UserError, match=message) as caught:
        quiet(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out.partial").exists()


def test_whoever_names_the_classes_may_have_any(tmp_path):
    lay(tmp_path / "in", within(".", 2, ("bus", "car", "train")))
    (tmp_path / "names.txt").write_text("train\nplane\nbus\ncar\n")
    made = quiet(tmp_path / "in", tmp_path / "out", classes=tmp_path / "names.txt")
    assert made.classes == ["train", "plane", "bus", "car"]
    assert made.splits["train"].class_counts == [2, 0, 2, 2]
    with pytest.raises(UserError, match="split= is for a tree without any"):
        quiet(tmp_path / "in", tmp_path / "other", split="val")


def test_links_are_followed_once(tmp_path):
    lay(tmp_path, within("in", 2) | {"far": 3})
    (tmp_path / "in/ant/more").symlink_to(tmp_path / "far")
    (tmp_path / "in/bee/round").symlink_to(tmp_path / "in")
    (tmp_path / "in/bee/a").symlink_to(tmp_path / "in/bee/b")
    (tmp_path / "in/bee/b").symlink_to(tmp_path / "in/bee/a")
    said = []
    made = make_shards(tmp_path / "in", tmp_path / "out", say=said.append)
    assert made.splits["train"].class_counts == [5, 2, 2]
    assert "not used: 1 links to folders that are read elsewhere, 2 nameless files" in said
    (tmp_path / "in/ant/0").symlink_to(tmp_path / "in/bee/deep")
    lay(tmp_path / "in", {"bee/deep": 2})
    assert quiet(tmp_path / "in", tmp_path / "again").splits["train"].class_counts == [5, 4, 2], "real folders first"
    (tmp_path / "in/dog").symlink_to(tmp_path / "in/ant")
    with pytest.raises(UserError, match="in/dog: a class without an image"):
        quiet(tmp_path / "in", tmp_path / "other")


def test_a_pipe_is_no_image(tmp_path):
    lay(tmp_path / "in", within(".", 2))
    os.mkfifo(tmp_path / "in/ant/p.jpg")
    said = []
    assert make_shards(tmp_path / "in", tmp_path / "out", say=said.append).splits["train"].samples == 6
    assert "not used: 1 pipes and devices" in said


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    lay(tmp_path / "in", within(".", 2))
    real = os.scandir

    def scandir(path):
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"in/bee: cannot be read \(Permission denied\)"):
        quiet(tmp_path / "in", tmp_path / "out", kind="folders")


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"\x1b[2J"])
def test_class_names_that_are_no_text_are_refused_in_the_listing(tmp_path, name):
    lay(tmp_path / "in", within(".", 2))
    os.rename(tmp_path / "in/ant", os.fsencode(tmp_path / "in") + b"/" + name)
    with pytest.raises(UserError, match="its name is not readable text in UTF-8") as caught:
        quiet(tmp_path / "in", tmp_path / "out")
    assert str(caught.value).isprintable() and not (tmp_path / "out.partial").exists()


def test_file_names_in_any_bytes_do_no_harm(tmp_path):
    lay(tmp_path / "in", within(".", 2))
    os.rename(tmp_path / "in/ant/0_0.jpg", os.fsencode(tmp_path / "in/ant") + b"/\xe9.jpg")
    (Path(os.fsdecode(os.fsencode(tmp_path / "in/ant") + b"/x.\xe9"))).write_bytes(b"x")
    said = []
    assert make_shards(tmp_path / "in", tmp_path / "out", say=said.append).splits["train"].samples == 6
    assert "not used: 1 oddly named files" in said


@pytest.mark.parametrize("out", ["in/shards", "link/shards", "in/ant", "in/ant/x/y"])
def test_what_is_made_does_not_lie_in_its_source(tmp_path, out):
    lay(tmp_path / "in", within(".", 2))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match="lies within .*in, whose folders are read as classes"):
        quiet(tmp_path / "in", tmp_path / out)


def test_class_folders_beside_a_stray_archive(tmp_path):
    lay(tmp_path / "in", within(".", 2))
    write_tar(tmp_path / "in/backup.tar", samples(2))
    with pytest.raises(UserError, match=r"holds tars \(backup.tar, ...\) and folders \(ant, ...\): say kind="):
        quiet(tmp_path / "in", tmp_path / "out")
    said = []
    assert make_shards(tmp_path / "in", tmp_path / "out", "folders", say=said.append).splits["train"].samples == 6
    assert "not used: 1 .tar files" in said
    assert quiet(tmp_path / "in", kind="tars").splits["train"].samples == 2


def test_kaggles_imagenet(tmp_path):
    """A test split without labels beside train and val, and one table for val."""
    wnids = ("n01000000", "n02000000")
    lay(tmp_path / "in", within("train", 2, wnids) | {"val": 3, "test": 3})
    rows = "".join(f'"{path.stem}","{wnids[1]} 85 1 499 272"\n' for path in (tmp_path / "in/val").iterdir())
    (tmp_path / "LOC.csv").write_text(f"ImageId,PredictionString\n{rows}", encoding="utf-8-sig")
    said = []
    made = make_shards(tmp_path / "in", tmp_path / "out", labels=tmp_path / "LOC.csv", say=said.append)
    assert {n: s.class_counts for n, s in made.splits.items()} == {"train": [2, 2], "val": [0, 3]}
    assert "not used: 1 test folder without labels" in said
    (tmp_path / "LOC.csv").write_text(f"{rows}3_0.jpg,{wnids[0]}\n")
    (tmp_path / "in/test/3_0.jpg").write_bytes(jpeg(1))
    with pytest.raises(UserError, match="has no label for .*2 such images"):
        quiet(tmp_path / "in", tmp_path / "other", labels=tmp_path / "LOC.csv")


TABLES = {
    "a path first": "val/0.jpg,red fox\nval/1.jpg,wolf\n",
    "tabs and a header": "filename\tlabel\n0.jpg\tred fox\n1.jpg\twolf\n",
    "quotes and semicolons": '"0.jpg";"red fox"\n"1.jpg";"wolf"\n',
    "a byte order mark": "\ufeffimage,class\n0,red fox\n1,wolf\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_labels_as_people_write_them(tmp_path, name):
    tree(tmp_path / "in/train", 2, ("red fox", "wolf"))
    lay(tmp_path / "in", {"val": 0})
    for i in range(2):
        (tmp_path / f"in/val/{i}.jpg").write_bytes(jpeg(900 + i))
    (tmp_path / "labels").write_text(TABLES[name])
    made = quiet(tmp_path / "in", tmp_path / "out", labels=tmp_path / "labels")
    assert made.splits["val"].class_counts == [1, 1]


def test_numbers_are_no_class_names(tmp_path):
    lay(tmp_path / "in", within("train", 2) | {"val": 1})
    (tmp_path / "labels").write_text("3_0.jpg 7\n")
    with pytest.raises(UserError, match="class '7' is not one of train, which are named 'ant' and so on"):
        quiet(tmp_path / "in", tmp_path / "out", labels=tmp_path / "labels")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a file"):
        quiet(tmp_path / "in", tmp_path / "out", labels=tmp_path / "pipe")


LISTS = {
    "names": "bee\nant\ncat\n",
    "numbered": "0 bee\n1 ant\n2 cat\n",
    "numbered from one, in any order": "ant 2\ncat 3\nbee 1\n",
    "a manifest": '{"classes": ["bee", "ant", "cat"]}',
    "a JSON array": '["bee", "ant", "cat"]',
    "from a spreadsheet": '\ufeff"bee"\r\n"ant"\r\n"cat"\r\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_a_lone_set_is_numbered_like_another(tmp_path, name):
    lay(tmp_path / "in", {"ant": 2, "bee": 1})
    (tmp_path / "list").write_text(LISTS[name])
    made = quiet(tmp_path / "in", tmp_path / "out", split="val", classes=tmp_path / "list")
    assert made.classes == ["bee", "ant", "cat"] and made.splits["val"].class_counts == [1, 2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\n", "'bee' of the source is not in the list .1 such"),
        ("ant\nbee\nant\n", "names 'ant' twice"),
        ("", "holds no class names"),
        ('{"a": 1}', "has no list of class names"),
        ("[" * 100_000, "damaged JSON"),
    ],
)
def test_lists_of_classes_that_cannot_be_right(tmp_path, text, message):
    lay(tmp_path / "in", {"ant": 1, "bee": 1})
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=message):
        quiet(tmp_path / "in", tmp_path / "out", classes=tmp_path / "list")


def test_tiny_imagenets_val_sorted_into_class_folders(tmp_path):
    layout = within("train", 2) | within("val", 1)
    lay(tmp_path / "in", layout)
    (tmp_path / "in/val/val_annotations.txt").write_text("val_0.JPEG\tant\t0\t0\t1\t1\n")
    assert {n: s.samples for n, s in quiet(tmp_path / "in", tmp_path / "out").splits.items()} == {"train": 6, "val": 3}


def test_splits_are_told_by_whole_words():
    for name, split in {
        "latest-train-000.tar": "train",
        "contest-000.tar": None,
        "myval-000.tar": None,
        "protest.tar": None,
        "imagenet1k-validation-07.tar": "val",
        "ValImages_3.tar": "val",
        "dev.tar": "val",
        "devset-0.tar": "val",
        "test2017.tar": "test",
    }.items():
        assert split_of(name) == split, name
    with pytest.raises(UserError, match="both train and val"):
        split_of("train-val-000.tar")
    assert [split_folder(name) for name in ("val_images", "TRAIN", "steam train", "test_tube")] == [
        "val",
        "train",
        None,
        None,
    ]
