"""The sources of shards: labelled byte ranges of files, listed before any image is read."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from vitwarm.data.grouping import MOST_BYTES
from vitwarm.data.source import DamagedSample, Part
from vitwarm.data.sources import open_part
from vitwarm.errors import UserError

_KEY_LENGTH = 80  # KEY.webp and a number must fit into the 100 bytes of a ustar name


class Sample(NamedTuple):
    """One image of a source.

    Attributes:
        key: WebDataset key, unique within the split; safe characters only.
        label: class number.
        file: path of the file that holds it.
        offset: its first byte in that file; of a zip or a parquet file the number of the image in it.
        size: bytes.
    """

    key: str
    label: int
    file: str
    offset: int
    size: int


@dataclass(frozen=True)
class Pixels:
    """Images that are bare bytes: square RGB, one colour plane after the other.

    Attributes:
        side: side of the image, in pixels.
        by_column: each plane runs down the columns (STL-10), not along the rows (CIFAR).
    """

    side: int
    by_column: bool = False

    @property
    def bytes(self) -> int:
        return 3 * self.side**2


@dataclass(frozen=True)
class SourceSplit:
    """One part of a data set, in the source's own order, which must not depend on how a file system lists it.

    Attributes:
        name: `train`, `val` or `test`; the tars are named after it.
        samples: all images.
        pixels: how to read bare pixels; None for encoded images.
        max_side: the shorter side, in pixels, to which larger images were brought before; None where none was.
    """

    name: str
    samples: list[Sample]
    pixels: Pixels | None = None
    max_side: int | None = None


@dataclass(frozen=True)
class Source:
    """A source of labelled images.

    Attributes:
        kind: one of `vitwarm.data.making.sources.KINDS`.
        classes: name of each class number.
        splits: what to make.
        ignored: files that are there and not used, in words.
    """

    kind: str
    classes: list[str]
    splits: list[SourceSplit]
    ignored: list[str]

    def renumbered(self, classes: list[str]) -> "Source":
        """The same with the classes numbered as in a list, which may name more.

        Raises:
            UserError: a class is not in the list.
        """
        numbers = {name: number for number, name in enumerate(classes)}
        if unknown := [name for name in self.classes if name not in numbers]:
            raise UserError(f"classes: {unknown[0]!r} of the source is not in the list ({len(unknown)} such classes)")
        own = [numbers[name] for name in self.classes]
        splits = [
            replace(split, samples=[sample._replace(label=own[sample.label]) for sample in split.samples])
            for split in self.splits
        ]
        return replace(self, classes=classes, splits=splits)


class Keys:
    """Names of images as keys: class and stem in `[A-Za-z0-9_-]`, numbered where two would be the same."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def make(self, class_name: str, file_name: str) -> str:
        """`n01440764/n01440764_10026.JPEG` is `n01440764_10026`, `cat/7.jpg` is `cat_7`."""
        stem = os.path.splitext(file_name)[0]
        name = stem if not class_name or stem.startswith(f"{class_name}_") else f"{class_name}_{stem}"
        key = re.sub(r"[^A-Za-z0-9_-]", "_", name)[-_KEY_LENGTH:]
        # Numbers are taken from the key itself, so a made-up key can equal a real one: try again until it is free.
        while key in self._seen:
            self._seen[key] += 1
            key = f"{key}-{self._seen[key]}"
        self._seen[key] = 1
        return key


def class_numbers(names: Iterable[str]) -> dict[str, int]:
    """Class name -> number, in sorted order: for ImageNet the usual order, sorted WordNet ids."""
    return {name: number for number, name in enumerate(sorted(set(names)))}


class Reader:
    """Reads samples; the last file stays open, since an archive holds them all."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._file = -1
        self._part: Part | None = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def read(self, sample: Sample) -> bytes:
        """The bytes of a sample.

        Raises:
            DamagedSample: they cannot be read.
            UserError: the file has become shorter since it was listed.
        """
        if sample.size > MOST_BYTES:
            raise DamagedSample(f"{sample.size:,} bytes, more than an image has")
        if sample.file != self._path:
            self._close()
            self._part, self._path = open_part(Path(sample.file)), sample.file
        if self._part is not None:
            return self._part.read(sample.offset)
        try:
            if self._file < 0:
                self._file = os.open(sample.file, os.O_RDONLY)
            data = os.pread(self._file, sample.size, sample.offset)
        except OSError as error:
            raise DamagedSample(f"cannot be read ({error.strerror})") from None
        if len(data) < sample.size:
            raise UserError(f"{sample.file}: has become shorter since it was listed; restore it and start again")
        return data

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._path = -1, None
