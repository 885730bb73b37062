"""CIFAR-10, CIFAR-100 and STL-10 in their binary versions: bare pixels, nothing pickled."""

from pathlib import Path

import numpy as np

from vitwarm.data.making.samples import Keys, Pixels, Sample, Source, SourceSplit
from vitwarm.errors import UserError


def read_cifar10(folder: Path) -> Source:
    """`cifar-10-batches-bin`: records of a label byte and 3,072 pixel bytes, classes in the set's own order."""
    classes = _names(folder / "batches.meta.txt")
    files = {"train": [folder / f"data_batch_{i}.bin" for i in range(1, 6)], "val": [folder / "test_batch.bin"]}
    return _source("cifar10", classes, files, label_bytes=1)


def read_cifar100(folder: Path) -> Source:
    """`cifar-100-binary`: records of a coarse label, a fine label and 3,072 pixel bytes; the fine one is used."""
    classes = _names(folder / "fine_label_names.txt")
    files = {"train": [folder / "train.bin"], "val": [folder / "test.bin"]}
    return _source("cifar100", classes, files, label_bytes=2)


def _source(kind: str, classes: list[str], files: dict[str, list[Path]], label_bytes: int) -> Source:
    pixels, splits = Pixels(32), []
    record = label_bytes + pixels.bytes
    for name, paths in files.items():
        samples, keys = [], Keys()
        for path in paths:
            data = _bytes(path)
            if data.size == 0 or data.size % record:
                raise UserError(f"{path}: is not a whole number of records of {record} bytes; download it again")
            labels = data[label_bytes - 1 :: record]
            for row, label in enumerate(_checked(path, labels, len(classes)).tolist()):
                key = keys.make(classes[label], f"{path.stem}_{row:05d}")
                samples.append(Sample(key, label, str(path), row * record + label_bytes, pixels.bytes))
        splits.append(SourceSplit(name, samples, pixels))
    return Source(kind, classes, splits, [])


def read_stl10(folder: Path) -> Source:
    """`stl10_binary`: 96x96 pixels down the columns; labels from 1, in files of their own. No unlabelled ones."""
    classes, pixels, splits = _names(folder / "class_names.txt"), Pixels(96, by_column=True), []
    for name, part in (("train", "train"), ("val", "test")):
        images, labels, keys = folder / f"{part}_X.bin", _bytes(folder / f"{part}_y.bin"), Keys()
        if not labels.size or _bytes(images).size != labels.size * pixels.bytes:
            raise UserError(f"{images}: does not hold an image for each of {labels.size} labels; download it again")
        numbers = _checked(folder / f"{part}_y.bin", labels.astype(np.int64) - 1, len(classes)).tolist()
        samples = [
            Sample(keys.make(classes[label], f"{part}_{row:05d}"), label, str(images), row * pixels.bytes, pixels.bytes)
            for row, label in enumerate(numbers)
        ]
        splits.append(SourceSplit(name, samples, pixels))
    return Source("stl10", classes, splits, ["unlabeled_X.bin"] if (folder / "unlabeled_X.bin").exists() else [])


def _names(path: Path) -> list[str]:
    try:
        names = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: the class names are missing or unreadable; download the set again") from None
    if not names:
        raise UserError(f"{path}: holds no class names; download the set again")
    return names


def _bytes(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); download the set again") from None


def _checked(path: Path, labels: np.ndarray, num_classes: int) -> np.ndarray:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"{path}: has labels outside of its {num_classes} classes; download it again")
    return labels
