"""Images as files: a folder for each class, Food-101's lists, Tiny-ImageNet's layout, a flat folder with labels."""

import os
from collections import Counter
from pathlib import Path

from vitwarm.data.class_folders import check_level, find_splits
from vitwarm.data.lists import read_text
from vitwarm.data.making.labels import read_labels
from vitwarm.data.making.samples import Keys, Sample, Source, SourceSplit, class_numbers
from vitwarm.data.tree import list_tree
from vitwarm.errors import UserError

_SPLIT = ", and split= is for a tree without any; for a class, name all classes by classes=FILE"
_CLASS = "give as source= the folder whose folders are the classes, or name the classes by classes=FILE"


def read_class_folders(
    folder: Path, labels: Path | None = None, split: str | None = None, known: list[str] | None = None
) -> Source:
    """A tree with a folder for each class, or such trees under `train`, `val`, `test`; classes in sorted order.

    A `val` or `test` without class folders (ImageNet as Kaggle has it) takes its labels from the file `labels`. Folders
    that hold nothing but one other with images are passed through.

    Args:
        folder: the tree.
        labels: labels of images without class folders.
        split: name of the one split that the tree is; None is `train`, or what its folders are named after.
        known: names of all classes, which may look like splits or like sets of their own.

    Raises:
        UserError: no classes there, or folders that are perhaps none.
    """
    ignored: Counter[str] = Counter()
    root = list_tree(os.fspath(folder), ignored)
    places = find_splits(root, split, known, ignored, _SPLIT)
    table = read_labels(labels) if labels is not None else None
    first = next(name for name in ("train", *places) if name in places)  # its classes are the set's
    folders = places[first].folders
    numbers = class_numbers([one.name for one in folders] or (table.classes if table else ()))
    if not numbers:
        raise UserError(f"{places[first].path}: has no class folders in it")
    if folders and known is None:
        check_level(places[first], _CLASS)
    splits, table_used = [], False
    for name in sorted(places, key=["train", "val", "test", split].index):
        place = places[name]
        if place.filled or (place.folders and not place.images):
            files = [(one.name, path) for one in place.folders for path in one.below]
            if place.images:
                ignored[f"images of {name} outside of class folders"] += len(place.images)
        elif table is not None and (name != "test" or table.knows(place.images)):
            table_used = True
            files = list(
                zip(table.assign([os.path.basename(path) for path in place.images]), place.images, strict=True)
            )
        elif name == "test":  # ImageNet's comes without labels
            ignored["test folder without labels"] += 1
            continue
        else:
            raise UserError(
                f"{place.path}: has no class folders; give labels=FILE (the devkit, LOC_val_solution.csv, ...)"
            )
        if unknown := sorted({one for one, _ in files} - set(numbers)):
            hint = f", which are named {next(iter(numbers))!r} and so on" if unknown[0].isdigit() else ""
            raise UserError(f"{place.path}: class {unknown[0]!r} is not one of {first}{hint}")
        if name == first and files and (empty := [one for one in place.folders if not one.below]):
            raise UserError(f"{empty[0].path}: a class without an image; fill the folder, or remove it")
        splits.append(_split(name, files, numbers, Path(place.path)))
    if table is not None and not table_used:
        raise UserError(f"labels={labels} is not needed: every split has class folders; leave it out")
    return Source("folders", list(numbers), splits, [f"{count} {what}" for what, count in sorted(ignored.items())])


def read_food101(folder: Path) -> Source:
    """`food-101`: images/CLASS/ID.jpg, the splits listed in meta/train.txt and meta/test.txt."""
    lists = {"train": folder / "meta/train.txt", "val": folder / "meta/test.txt"}
    entries = {}
    for name, path in lists.items():
        entries[name] = [
            line.strip().partition("/")[::2] for line in read_text(path, "source").splitlines() if line.strip()
        ]
        for class_name, stem in entries[name]:
            if not stem or "/" in stem or class_name.startswith(".") or stem.startswith("."):
                raise UserError(f"{path}: {class_name + '/' + stem!r} is not CLASS/IMAGE; download the set again")
    numbers = class_numbers(class_name for class_name, _ in entries["train"])
    splits = []
    for name, listed in entries.items():
        files = [(class_name, str(folder / "images" / class_name / f"{stem}.jpg")) for class_name, stem in listed]
        if unknown := sorted({class_name for class_name, _ in listed} - set(numbers)):
            raise UserError(f"{lists[name]}: class {unknown[0]!r} is not one of meta/train.txt")
        splits.append(_split(name, files, numbers, lists[name]))
    return Source("food101", list(numbers), splits, [])


def read_tiny_imagenet(folder: Path) -> Source:
    """`tiny-imagenet-200`: train/WNID/images/*, val/images/* with val_annotations.txt; the test set has no labels."""
    annotations = folder / "val/val_annotations.txt"
    rows = [line.split("\t") for line in read_text(annotations, "source").splitlines() if line.strip()]
    if not (folder / "val/images").is_dir():  # sorted into class folders by its user
        return read_class_folders(folder)
    ignored: Counter[str] = Counter()
    classes = list_tree(os.fspath(folder / "train"), ignored).folders
    if empty := [one for one in classes if not one.below]:
        raise UserError(f"{empty[0].path}: a class without an image; fill the folder, or remove it")
    numbers = class_numbers(one.name for one in classes)
    train = [(one.name, path) for one in classes for path in one.below]
    wrong = [row for row in rows if len(row) < 2 or os.path.basename(row[0]) != row[0] or row[1] not in numbers]
    if wrong:
        raise UserError(f"{annotations}: {'  '.join(wrong[0])[:60]!r} names no image and class of train")
    val = [(row[1], str(folder / "val/images" / row[0])) for row in rows]
    boxes = ignored.pop(".txt files", 0)  # bounding boxes, one list a class
    splits = [
        _split("train", train, numbers, folder / "train"),
        _split("val", val, numbers, annotations),
    ]
    ignored_text = [f"{boxes} box lists"] if boxes else []
    ignored_text += [f"{count} {what}" for what, count in sorted(ignored.items())]
    ignored_text += ["test (no labels)"] if (folder / "test").is_dir() else []
    return Source("tiny-imagenet", list(numbers), splits, ignored_text)


def _split(name: str, files: list[tuple[str, str]], numbers: dict[str, int], where: Path) -> SourceSplit:
    if not files:
        raise UserError(f"{where}: no images there")
    keys, samples = Keys(), []
    for class_name, path in files:
        try:
            size = os.stat(path).st_size
        except OSError:
            size = 0  # a broken link: reading it fails, and it is counted as damaged
        samples.append(Sample(keys.make(class_name, os.path.basename(path)), numbers[class_name], path, 0, size))
    return SourceSplit(name, samples)
