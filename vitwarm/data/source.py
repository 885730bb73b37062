"""Image sources: numbered, labelled, encoded images, wherever they lie.

A source is a sequence of parts. A part is what is listed at once: a tar, a zip, a parquet file, a tree of folders. Its
index says what is in it; it reads its images by row. All else is the same for every source: numbers across the parts,
open files, identity, the comparison with other sources.
"""

import contextlib
import hashlib
import os
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitwarm.data.depth import is_deep
from vitwarm.data.manifest import ClassList
from vitwarm.errors import UserError

_OPEN_FILES = 128  # a rank and its workers hold this many files open each; common limits are 1,024 a process
_WHOLE = 1 << 16  # bytes of an image whose content is digested whole; of a larger one its ends are
_END = 4096


class DamagedSample(Exception):
    """One sample cannot be read; the message is the reason. It is counted and logged; training continues."""


class Index:
    """What is known of the images of a part without reading them, as columns.

    Attributes:
        size: (n,) int64, bytes of image data.
        label: (n,) int64.
        content_crc: (n,) int64, CRC-32 of the image, of a large one its ends: images that differ in it or in size are
            not equal.
        deep: (n,) uint8, 1 where the image has more than 8 bits a channel and readers disagree on it (`depth`).
        key_bytes: (k,) uint8, the names of the images end to end.
        key_end: (n,) int64, where each name ends in `key_bytes`.
    """

    size: np.ndarray
    label: np.ndarray
    content_crc: np.ndarray
    deep: np.ndarray
    key_bytes: np.ndarray
    key_end: np.ndarray

    def __len__(self) -> int:
        return self.size.size

    def name(self, row: int) -> bytes:
        start = self.key_end[row - 1] if row else 0
        return self.key_bytes[start : self.key_end[row]].tobytes()

    def key(self, row: int) -> str:
        return self.name(row).decode("utf-8", "backslashreplace")

    def matches(self, file: int) -> bool:
        """Whether an open file (a descriptor) is the one that was indexed: a few rows are looked at.

        Most of them count, not all: a row that is not where it was may be damaged, in the same file.
        """
        probes = np.unique(np.linspace(0, len(self) - 1, num=min(len(self), 5)).astype(np.int64)).tolist()
        return 2 * sum(self.is_there(file, row) for row in probes) > len(probes)

    def is_there(self, file: int, row: int) -> bool:
        """Whether a row is where the index says; true where nothing in the file tells."""
        return True


def packed(names: Iterable[bytes]) -> dict[str, np.ndarray]:
    """The columns `key_bytes` and `key_end` of an index."""
    names = list(names)
    lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
    return {"key_bytes": np.frombuffer(b"".join(names), dtype=np.uint8), "key_end": np.cumsum(lengths)}


def content_of(size: int, read: Callable[[int, int], bytes]) -> tuple[int, bool]:
    """The columns `content_crc` and `deep` of an image.

    Args:
        size: its bytes.
        read: (count, offset) -> that many bytes from there.
    """
    if size <= _WHOLE:
        content = head = read(size, 0)
    else:
        head = read(_END, 0)
        content = head + read(_END, size - _END)
    return zlib.crc32(content), is_deep(head[:64], lambda: read(size, 0))


def part_of(image: memoryview, count: int, offset: int) -> bytes:
    """What `content_of` reads of an image in memory."""
    return bytes(image[offset : offset + count])


class Part(ABC):
    """Images that are listed together.

    Attributes:
        path: the file or folder that holds them, for messages.
        index: what is in it.
    """

    path: Path
    index: Index
    _file = -1

    @property
    def num_bytes(self) -> int:
        """Size of what holds the images."""
        return self.path.stat().st_size

    @property
    def digested(self) -> tuple[np.ndarray, ...]:
        """The columns that make its identity."""
        return self.index.label, self.index.size, self.index.content_crc

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded image of a row.

        Raises:
            DamagedSample: this image cannot be read, but others can.
            UserError: the part is missing, or has changed since it was indexed.
        """

    def place(self, row: int) -> tuple[str, int]:
        """(file, number of the image in it): what `make-shards` hands to its workers."""
        return str(self.path), row

    def descriptor(self) -> int:
        """The open file; `os.pread` of it is safe in forked processes."""
        if self._file < 0:
            try:
                self._file = os.open(self.path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self.path}: cannot be opened any more ({error.strerror})") from None
        return self._file

    def close(self) -> None:
        """Close the file until the next read."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": -1}  # descriptors do not travel to a spawned process


def check_unchanged(path: Path, file: int, stamp: tuple[int, int]) -> None:
    """Refuse an open file that is no longer the one that was indexed.

    Raises:
        UserError: its size or its time is another.
    """
    status = os.fstat(file)
    if (status.st_size, status.st_mtime_ns) != stamp:
        raise has_changed(path)


def has_changed(path: Path) -> UserError:
    """What to say of a file that is not the one that was indexed; a run goes on only with the images it began with."""
    return UserError(
        f"{path}: has changed since it was indexed; restore it and start again, or use it as it is in another run.dir"
    )


def stamp(path: Path) -> tuple[int, int]:
    """(bytes, time in ns) of a file; see `check_unchanged`.

    Raises:
        UserError: it is gone.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from None
    return status.st_size, status.st_mtime_ns


class ImageSource:
    """Labelled, encoded images, addressed by number across all parts.

    Reads go through `os.pread` on descriptors that stay open, so forked loader workers share a source safely; threads
    of one process may not.

    Args:
        parts: in the order of the numbers.
        classes: the class names, where they are known.

    Attributes:
        kind: what a part is, in a word.
        labels: (n,) int64.
        starts: (parts + 1,) the first sample of each part, then n.
        classes: as given.

    Raises:
        UserError: a label has no name.
    """

    kind: ClassVar[str]

    def __init__(self, parts: Sequence[Part], classes: ClassList | None):
        self.parts, self.classes = list(parts), classes
        self.starts = np.cumsum([0] + [len(part.index) for part in parts])
        self.labels: np.ndarray = np.concatenate([part.index.label for part in parts])
        self._open: OrderedDict[int, None] = OrderedDict()
        if classes is not None and self.labels.max() >= len(classes.names):
            raise UserError(f"{self.paths[0]}: label {self.labels.max()} has no name in {classes.where}")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def paths(self) -> list[Path]:
        return [part.path for part in self.parts]

    @property
    def files(self) -> int:
        return len(self.parts)

    @property
    def num_bytes(self) -> int:
        """Size of all parts."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def deep(self) -> int:
        """How many images have more than 8 bits a channel, which plain timm would clip."""
        return sum(int(part.index.deep.sum()) for part in self.parts)

    @property
    def max_side(self) -> int | None:
        """The shorter side, in pixels, to which larger images were brought when tars were made; None where none was."""
        return None

    @property
    def marks(self) -> np.ndarray:
        """(n,) int64; images that differ in it are not equal."""
        return np.concatenate([part.index.size << 32 | part.index.content_crc for part in self.parts])

    @property
    def identity(self) -> str:
        """Which images these are, in which order: how many, and a digest of labels, sizes, contents."""
        digest = hashlib.sha256()
        for part in self.parts:
            for array in part.digested:
                digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return f"{len(self):,} images, {digest.hexdigest()[:16]}"

    def key(self, sample: int) -> str:
        """`shard.tar:key`, `train:n01440764/n01440764_10026.JPEG`: names a sample to a reader."""
        number, row = self._locate(sample)
        return f"{self.parts[number].path.name}:{self.parts[number].index.key(row)}"

    def read(self, sample: int) -> bytes:
        """The encoded image of a sample.

        Raises:
            DamagedSample: this sample cannot be read, but others can.
            UserError: a part is missing, or has changed since it was indexed.
        """
        number, row = self._locate(sample)
        self._open[number] = None
        self._open.move_to_end(number)
        if len(self._open) > _OPEN_FILES:
            self.parts[self._open.popitem(last=False)[0]].close()
        return self.parts[number].read(row)

    def _locate(self, sample: int) -> tuple[int, int]:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not in [0, {len(self)})")
        number = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return number, int(sample - self.starts[number])


def check_labels(source: ImageSource, num_classes: int, limit: str, remedy: str) -> None:
    """Refuse a source whose labels do not fit the classifier.

    Args:
        source: the images.
        num_classes: outputs of the classifier.
        limit: who says how many, for the message.
        remedy: ends the message.

    Raises:
        UserError: a label is not below `num_classes`.
    """
    wrong = np.flatnonzero(source.labels >= num_classes)
    if wrong.size:
        first = int(wrong[0])
        label = f"label {source.labels[first]} is not below {limit} ({wrong.size} such samples)"
        raise UserError(f"{source.key(first)}: {label}; {remedy}")
