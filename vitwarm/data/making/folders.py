"""Images as files: a folder for each class, Food-101's lists, Tiny-ImageNet's layout, a flat folder with labels."""

import os
from collections import Counter
from pathlib import Path

from vitwarm.data.making.labels import read_labels
from vitwarm.data.making.samples import Keys, Sample, Source, SourceSplit, class_numbers
from vitwarm.errors import UserError

IMAGE_SUFFIXES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "pbm", "pnm", "gif", "tif", "tiff"))
SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


def read_class_folders(folder: Path, labels: Path | None = None, split: str | None = None) -> Source:
    """A tree with a folder for each class, or such trees under `train`, `val`, `test`; classes in sorted order.

    A `val` or `test` without class folders (ImageNet as Kaggle has it) takes its labels from the file `labels`.
    """
    present = [] if split else [name for name in _folders(folder) if name in SPLIT_FOLDERS]
    places = {SPLIT_FOLDERS[name]: folder / name for name in present} or {split or "train": folder}
    if present and len(places) < len(present):
        raise UserError(f"{folder}: has {', '.join(present)}, two of them for one split; remove one")
    table = read_labels(labels) if labels is not None else None
    classes = {name: _folders(place) for name, place in places.items()}
    first = "train" if "train" in places else next(iter(places))  # its classes are the set's
    numbers = class_numbers(classes[first] or (table.classes if table and first != "train" else ()))
    if not numbers:
        raise UserError(f"{places[first]}: has no class folders in it")
    splits, table_used = [], False
    ignored: Counter[str] = Counter()
    for name in (name for name in ("train", "val", "test", split) if name in places):
        place = places.pop(name)
        if classes[name]:
            files = [(one, path) for one in classes[name] for path in _files(place / one, ignored)]
        elif table is not None:
            paths, table_used = _files(place, ignored), True
            files = list(zip(table.assign([os.path.basename(path) for path in paths]), paths, strict=True))
        elif name == "test":  # ImageNet's comes without labels
            ignored["test folder without labels"] += 1
            continue
        else:
            raise UserError(f"{place}: has no class folders; give labels=FILE (the devkit, LOC_val_solution.csv, ...)")
        if unknown := sorted({one for one, _ in files} - set(numbers)):
            raise UserError(f"{place}: class {unknown[0]!r} is not one of {first}")
        if name == first and files and (empty := sorted(set(classes[name]) - {one for one, _ in files})):
            raise UserError(f"{place / empty[0]}: a class without an image; fill the folder, or remove it")
        splits.append(_split(name, files, numbers, place))
    if table is not None and not table_used:
        raise UserError(f"labels={labels} is not needed: every split has class folders; leave it out")
    return Source("folders", list(numbers), splits, [f"{count} {what}" for what, count in sorted(ignored.items())])


def read_food101(folder: Path) -> Source:
    """`food-101`: images/CLASS/ID.jpg, the splits listed in meta/train.txt and meta/test.txt."""
    lists = {"train": folder / "meta/train.txt", "val": folder / "meta/test.txt"}
    entries = {}
    for name, path in lists.items():
        entries[name] = [line.strip().partition("/")[::2] for line in read_text(path).splitlines() if line.strip()]
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
    ignored: Counter = Counter()
    numbers = class_numbers(_folders(folder / "train"))
    train = [(name, path) for name in numbers for path in _files(folder / "train" / name, ignored)]
    annotations = folder / "val/val_annotations.txt"
    rows = [line.split("\t") for line in read_text(annotations).splitlines() if line.strip()]
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
    ignored_text += ["test (no labels)"] if (folder / "test").is_dir() else []
    return Source("tiny-imagenet", list(numbers), splits, ignored_text)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: is missing or is not text") from None


def _folders(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _files(folder: Path, ignored: Counter) -> list[str]:
    """The images below a folder, in an order that does not depend on the file system."""
    found = []
    for place, below, names in os.walk(folder):
        below.sort()
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix[1:] in IMAGE_SUFFIXES:
                found.append(os.path.join(place, name))
            else:
                ignored[f"{suffix or 'nameless'} files"] += 1
    return found


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
