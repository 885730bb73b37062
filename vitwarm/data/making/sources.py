"""Detects the kind of a source from the files in it."""

import os
from pathlib import Path

from vitwarm.data.grouping import is_hidden
from vitwarm.data.making.binaries import read_cifar10, read_cifar100, read_stl10
from vitwarm.data.making.folders import read_class_folders, read_food101, read_tiny_imagenet
from vitwarm.data.making.imagenet import TRAIN, VAL, is_train_archive, read_archives
from vitwarm.data.making.packed import read_packed
from vitwarm.data.making.samples import Source
from vitwarm.data.sources import LIST, PARQUET, ZIP, kind_of
from vitwarm.errors import UserError

# kind -> (what to look for, the folder's usual name). The first that fits, in the folder or in one of that name in it.
_MARKS = {
    "imagenet": ((TRAIN, VAL), ""),
    "cifar10": (("data_batch_1.bin",), "cifar-10-batches-bin"),
    "cifar100": (("fine_label_names.txt",), "cifar-100-binary"),
    "stl10": (("train_X.bin",), "stl10_binary"),
    "food101": (("meta/train.txt",), "food-101"),
    "tiny-imagenet": (("val/val_annotations.txt",), "tiny-imagenet-200"),
}
TARS = "tars"
_PACKED = (ZIP, PARQUET, LIST, TARS)
KINDS = (*_MARKS, "folders", *_PACKED)

# torchvision unpickles these, which is not safe.
_PICKLED = {
    ("cifar-10-batches-py", "batches.meta"): "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    ("cifar-100-python", "meta"): "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
}


def find(source: Path, kind: str | None) -> tuple[str, Path]:
    """Find the kind of a source and the folder in which it lies.

    Raises:
        UserError: there is nothing, or no known kind of source.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"kind={kind} is not one of {', '.join(KINDS)}")
    if not source.exists():
        raise UserError(f"{source}: there is nothing")
    if source.is_file():
        if source.name in (TRAIN, VAL) or is_train_archive(source):
            raise UserError(
                f"{source}: give the folder of the archives, {TRAIN} and {VAL} under these names, as source="
            )
        if (found := kind_of(source)) in _PACKED and kind in (None, found):
            return found, source
        raise UserError(
            f"{source}: is a file; unpack it, and give its folder as source= (of WebDataset tars, the one they lie in)"
        )
    for name, (marks, usual) in _MARKS.items():
        if kind not in (None, name):
            continue
        for folder in (source, source / usual):
            if any((folder / mark).exists() for mark in marks):
                return name, folder
    if kind in _MARKS:
        raise UserError(f"{source}: is not {kind}; it has no {' or '.join(_MARKS[kind][0])}")
    for (usual, mark), url in _PICKLED.items():
        for folder in (source, source / usual):
            if kind is None and (folder / mark).exists() and folder.name == usual:
                raise UserError(
                    f"{folder}: is the pickled version, which is not safe to read; download and unpack {url}"
                )
    if kind is not None:
        return kind, source
    if kind_of(source) == PARQUET:
        return PARQUET, source
    tars, folders = [], []
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        if entry.name.endswith(".tar") and entry.is_file() and not is_hidden(entry.name):
            tars.append(entry.name)
        elif entry.is_dir() and not is_hidden(entry.name):
            folders.append(entry.name)
    if tars and folders:
        raise UserError(
            f"{source}: holds tars ({tars[0]}, ...) and folders ({folders[0]}, ...): say kind=tars or kind=folders"
        )
    if tars:
        return TARS, source
    if folders:
        return "folders", source
    raise UserError(f"{source}: holds no data set that is known here; kind= is one of {', '.join(KINDS)}")


def read_source(
    kind: str, folder: Path, labels: Path | None, split: str | None, workers: int, classes: list[str] | None = None
) -> Source:
    """List a source of any kind.

    Args:
        kind, folder: result of `find`.
        labels: file with the labels of validation images (`imagenet`, `folders`).
        split: name for the one split of a tree of class folders.
        workers: processes to read with.
        classes: names in the order of their numbers; None is the source's own order.
    """
    source = _read(kind, folder, labels, split, workers, classes)
    return source if classes is None else source.renumbered(classes)


def _read(
    kind: str, folder: Path, labels: Path | None, split: str | None, workers: int, classes: list[str] | None
) -> Source:
    if labels is not None and kind not in ("imagenet", "folders"):
        raise UserError(f"labels= is for imagenet and folders; {kind} has its own labels")
    if split is not None and kind not in ("folders", *_PACKED):
        raise UserError(f"split= is for folders; {kind} has its own splits")
    if kind in _PACKED:
        return read_packed(kind, folder, split, classes)
    if kind == "imagenet":
        return read_archives(folder, labels, workers)
    if kind == "folders":
        return read_class_folders(folder, labels, split, classes)
    readers = {
        "cifar10": read_cifar10,
        "cifar100": read_cifar100,
        "stl10": read_stl10,
        "food101": read_food101,
        "tiny-imagenet": read_tiny_imagenet,
    }
    return readers[kind](folder)
