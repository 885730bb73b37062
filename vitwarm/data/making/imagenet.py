"""The original ILSVRC2012 archives, read where they lie: 1,281,167 + 50,000 images without a file unpacked."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from vitwarm.data.making.labels import read_labels
from vitwarm.data.making.samples import Keys, Sample, Source, SourceSplit, class_numbers
from vitwarm.data.tar_reader import DamagedTar, read_tar
from vitwarm.errors import UserError
from vitwarm.parallel import run_in_pool

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
Span = tuple[str, int, int]  # file, first byte, bytes: a tar, perhaps inside another


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        size = min(len(buffer), max(self._size - self._at, 0))
        data = os.pread(self._file.fileno(), size, self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def members(span: Span) -> Iterator[tuple[str, int, int]]:
    """(base name, first byte in the file, bytes) of the files in a tar, which may itself lie inside a file.

    Raises:
        UserError: it is not a whole tar, or holds a link.
    """
    path, start, size = span
    try:
        with open(path, "rb") as file:
            for member in read_tar(io.BufferedReader(_Window(file, start, size))):
                if member.link is not None:
                    raise UserError(f"{path}: {member.name!r} is a link; download it again")
                yield os.path.basename(member.name), start + member.offset, member.size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except DamagedTar as error:
        raise UserError(f"{path}: is not a whole tar ({error}); download it again") from None


def is_train_archive(path: Path) -> bool:
    """Whether a tar begins with a tar named after a WordNet id."""
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
    except (OSError, tarfile.TarError):
        return False
    return first is not None and first.name.endswith(".tar") and first.isreg()


def _list(span: Span) -> list[tuple[str, int, int]]:
    return list(members(span))


def read_archives(folder: Path, labels: Path | None, workers: int) -> Source:
    """The archives in a folder: train (tar of tars), val with its labels, or both; classes in order of WordNet id.

    Args:
        folder: folder with the archives under their original names.
        labels: file with the labels of the validation images; None takes the devkit in the same folder.
        workers: processes that list the class tars.
    """
    train, val = folder / TRAIN, folder / VAL
    if labels is not None and not val.exists():
        raise UserError(f"labels={labels} is for {VAL}, which is not in {folder}")
    found = None
    if val.exists():
        labels = labels or folder / DEVKIT
        if not labels.exists():
            raise UserError(f"{labels}: is missing; the labels of {VAL} are in it (or give labels=FILE)")
        found = read_labels(labels)
    splits, numbers = [], {}
    if train.exists():
        tars = sorted(members((str(train), 0, train.stat().st_size)))
        if not tars or not all(name.endswith(".tar") for name, _, _ in tars):
            raise UserError(f"{train}: is not the archive of one tar a class; download it again")
        numbers = class_numbers(name.removesuffix(".tar") for name, _, _ in tars)
        if len(numbers) < len(tars):
            raise UserError(f"{train}: holds two tars of one class")
        spans = [(str(train), start, size) for _, start, size in tars]
        listed = dict(run_in_pool(_list, spans, workers))
        rows = [(name.removesuffix(".tar"), image) for i, (name, _, _) in enumerate(tars) for image in listed[i]]
        splits.append(_split("train", train, rows, numbers))
    if found is not None:
        images = sorted(members((str(val), 0, val.stat().st_size)))
        classes = found.assign([name for name, _, _ in images])
        numbers = numbers or class_numbers(classes)
        if unknown := sorted(set(classes) - set(numbers)):
            raise UserError(f"{labels}: class {unknown[0]} is not in {TRAIN}")
        splits.append(_split("val", val, list(zip(classes, images, strict=True)), numbers))
    return Source("imagenet", list(numbers), splits, [])


def _split(
    name: str, archive: Path, rows: list[tuple[str, tuple[str, int, int]]], numbers: dict[str, int]
) -> SourceSplit:
    if not rows:
        raise UserError(f"{archive}: holds no images")
    keys = Keys()
    # A validation image keeps its usual name, without the class; those of training images begin with it anyway.
    prefixes = [class_name if name == "train" else "" for class_name, _ in rows]
    samples = [
        Sample(keys.make(prefix, image), numbers[class_name], str(archive), offset, size)
        for prefix, (class_name, (image, offset, size)) in zip(prefixes, rows, strict=True)
    ]
    return SourceSplit(name, samples)
