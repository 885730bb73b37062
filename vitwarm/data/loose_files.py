"""Images that are files of their own: trees of class folders, and lists that name files and their classes."""

import logging
import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
from safetensors import SafetensorError

from vitwarm.data.grouping import MOST_BYTES
from vitwarm.data.index_file import TICK, index_in_cache, read_arrays, save_arrays
from vitwarm.data.manifest import ClassList
from vitwarm.data.source import DamagedSample, ImageSource, Index, Part, content_of, has_changed, packed
from vitwarm.errors import UserError
from vitwarm.files import whole_file

_THREADS = 16  # they wait for a disk or a network folder
_CHUNK = 1000  # files that a thread looks at in one go
_UNREADABLE = -1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilesIndex(Index):
    """Files in the order of their numbers.

    Attributes:
        written: (n,) int64, time at which the content was written, in ns; -1 of a file that cannot be read.
        changed: (n,) int64, time at which its inode was changed, which nobody can set.
    """

    FORMAT: ClassVar[int] = 1

    size: np.ndarray
    label: np.ndarray
    content_crc: np.ndarray
    deep: np.ndarray
    written: np.ndarray
    changed: np.ndarray
    key_bytes: np.ndarray
    key_end: np.ndarray


class FilesPart(Part):
    """Files below a folder.

    Args:
        path: who names them: their folder, or a list.
        folder: what their names start from.
        names: their paths, from that folder on; bytes as the file system has them.
        labels: (n,) class of each.
    """

    index: FilesIndex

    def __init__(self, path: Path, folder: Path, names: Sequence[bytes], labels: Sequence[int]):
        self.path, self.folder = path, os.fsencode(folder)
        self.index = replace(_indexed(path, self.folder, names), label=np.array(labels, dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        return int(self.index.size.sum())

    @property
    def unreadable(self) -> list[int]:
        """The files that could not be read when they were listed."""
        return np.flatnonzero(self.index.written == _UNREADABLE).tolist()

    def place(self, row: int) -> tuple[str, int]:
        return os.fsdecode(os.path.join(self.folder, self.index.name(row))), 0

    def read(self, row: int) -> bytes:
        path = os.path.join(self.folder, self.index.name(row))
        size, written = int(self.index.size[row]), int(self.index.written[row])
        if size > MOST_BYTES:
            raise DamagedSample(f"{size:,} bytes, more than an image has")
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # should it have become a pipe
            try:
                status, data = os.fstat(file), os.pread(file, size, 0)
            finally:
                os.close(file)
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) and written != _UNREADABLE:
                raise UserError(f"{os.fsdecode(path)}: is gone since it was listed; restore it, start again") from None
            raise DamagedSample(f"cannot be read ({error.strerror})") from None
        if (status.st_size, status.st_mtime_ns) != (size, written) or len(data) < size:
            raise has_changed(Path(os.fsdecode(path)))
        return data


class FolderSource(ImageSource):
    """Images in a folder for each class.

    Args:
        folder: whose folders are the classes.
        classes: names of the folders, by number.
        images: (class number, path) of each image, in their order.
    """

    kind = "folder"

    def __init__(self, folder: Path, classes: Sequence[str], images: Sequence[tuple[int, str]]):
        start = len(os.fsencode(folder)) + 1
        names = [os.fsencode(path)[start:] for _, path in images]
        part = FilesPart(folder, folder, names, [label for label, _ in images])
        super().__init__([part], ClassList(list(classes), str(folder)))


def _indexed(path: Path, folder: bytes, names: Sequence[bytes]) -> FilesIndex:
    """The index of files; what an earlier one says of a file that has not changed since is taken from it.

    It is kept in the cache, so that the content of files is looked at once.
    """
    place = index_in_cache(path)
    kept: FilesIndex | None = read_arrays(place, FilesIndex, {"folder": os.fsdecode(folder)})
    known: dict[bytes, int] = {}
    if kept is not None:
        made = place.stat().st_mtime_ns
        # A file that was written just before may have been written again in the same tick of the clock.
        settled = (kept.written != _UNREADABLE) & (kept.changed < made - TICK * 1e9)
        known = {kept.name(row): row for row in np.flatnonzero(settled).tolist()}
    began = time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:

        def by_thread(look: Callable[[bytes], tuple[int, ...]], rows: Sequence[int]) -> np.ndarray:
            chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
            looked = pool.map(lambda chunk: [look(os.path.join(folder, names[row])) for row in chunk], chunks)
            return np.array(list(chain.from_iterable(looked)), dtype=np.int64)

        size, written, changed = by_thread(_stat, range(len(names))).T
        content_crc, deep = np.zeros((2, len(names)), dtype=np.int64)
        if kept is not None:
            rows = np.array([known.get(name, -1) for name in names], dtype=np.int64)
            rows[(kept.size[rows] != size) | (kept.changed[rows] != changed)] = -1
            content_crc[rows >= 0], deep[rows >= 0] = kept.content_crc[rows[rows >= 0]], kept.deep[rows[rows >= 0]]
            new = np.flatnonzero((rows < 0) & (written != _UNREADABLE))
        else:
            new = np.flatnonzero(written != _UNREADABLE)
        if new.size:
            content_crc[new], deep[new], readable = by_thread(_content, new.tolist()).T
            written[new[readable == 0]] = _UNREADABLE
    size, written, changed = (np.ascontiguousarray(column) for column in (size, written, changed))
    label = np.zeros(len(names), dtype=np.int64)
    index = FilesIndex(size, label, content_crc, deep.astype(np.uint8), written, changed, **packed(names))
    if kept is None or not _equal(index, kept):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place, shared=True) as aside:
                save_arrays(index, aside, {"folder": os.fsdecode(folder)})
        except (OSError, SafetensorError) as error:
            _log.warning("%s could not be kept (%s): the next run will look at all files again", place, error)
        _log.info("indexed %s: %d images in %.0f s", path, len(names), time.monotonic() - began)
    return index


def _stat(path: bytes) -> tuple[int, ...]:
    """(size, written, changed) of a file; one that cannot be read is counted and named when it is."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, _UNREADABLE, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _content(path: bytes) -> tuple[int, ...]:
    """(content_crc, deep, whether it can be read) of a file."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            return 0, 0, 1
        with open(path, "rb", buffering=0) as file:
            content_crc, deep = content_of(status.st_size, lambda count, offset: os.pread(file.fileno(), count, offset))
        return content_crc, int(deep), 1
    except OSError:
        return 0, 0, 0


def _equal(one: FilesIndex, other: FilesIndex) -> bool:
    columns = ("size", "content_crc", "written", "changed", "key_bytes", "key_end")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)
