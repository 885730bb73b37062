"""Class folders in a zip: read where they lie, by number. Nothing is extracted, so names cannot reach outside."""

import json
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from vitwarm.data.grouping import MOST_BYTES
from vitwarm.data.index_file import load_index
from vitwarm.data.manifest import ClassList
from vitwarm.data.source import (
    DamagedSample,
    ImageSource,
    Index,
    Part,
    check_unchanged,
    content_of,
    packed,
    part_of,
    stamp,
)
from vitwarm.data.tree import Folder, is_image, tree_of_names
from vitwarm.errors import UserError

_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, then lengths of its name and of what is beside it
_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x1
_MOST_TEXT = 1 << 28  # bytes of a list
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
# What zipfile raises on bytes that are not its own.
_HOSTILE = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    RuntimeError,
    struct.error,
    ValueError,
    LookupError,
    OverflowError,
)


@dataclass(frozen=True)
class ZipIndex(Index):
    """The images of a zip; all in its order as it is kept, those of a split in theirs when it is used.

    Attributes:
        offset: (n,) int64, first byte of the header of the member.
        packed: (n,) int64, bytes of its data in the zip.
        deflated: (n,) uint8, whether they are compressed.
        crc: (n,) int64, CRC-32 of the image, as the zip has it.
        bare: (k,) uint8, JSON: the folders without an image directly in them, each with a slash at its end.
    """

    FORMAT: ClassVar[int] = 2
    CONTAINER: ClassVar[str] = "zip"

    offset: np.ndarray
    packed: np.ndarray
    deflated: np.ndarray
    crc: np.ndarray
    bare: np.ndarray
    size: np.ndarray
    label: np.ndarray
    content_crc: np.ndarray
    deep: np.ndarray
    key_bytes: np.ndarray
    key_end: np.ndarray

    def is_there(self, file: int, row: int) -> bool:
        return os.pread(file, len(_SIGNATURE), int(self.offset[row])) == _SIGNATURE

    def rows(self, rows: np.ndarray, labels: Sequence[int]) -> "ZipIndex":
        """The index of some images."""
        names = [self.name(row) for row in rows.tolist()]
        columns = ("offset", "packed", "deflated", "crc", "size", "content_crc", "deep")
        taken = {column: getattr(self, column)[rows] for column in columns}
        return replace(self, label=np.array(labels, dtype=np.int64), **taken, **packed(names))

    def load(self, file: int, row: int) -> bytes:
        """The image of a row.

        Raises:
            DamagedSample: its bytes are not those that were packed.
        """
        size = int(self.size[row])
        if max(size, self.packed[row]) > MOST_BYTES:
            raise DamagedSample(f"{size:,} bytes, more than an image has")
        try:
            head = os.pread(file, _HEADER.size, int(self.offset[row]))
            if len(head) < _HEADER.size or (found := _HEADER.unpack(head))[0] != _SIGNATURE:
                raise DamagedSample("its header in the zip is damaged")
            start = int(self.offset[row]) + _HEADER.size + found[1] + found[2]
            data = os.pread(file, int(self.packed[row]), start)
        except OSError as error:
            raise DamagedSample(f"read error ({error.strerror})") from None
        if self.deflated[row]:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise DamagedSample(f"cannot be decompressed ({error})") from None
        if len(data) != size or zlib.crc32(data) != self.crc[row]:
            raise DamagedSample("its checksum in the zip is wrong")
        return data


def zip_index(path: Path) -> ZipIndex:
    """The index of all images in a zip: read from its file where that fits the zip, else built and written.

    Raises:
        UserError: the zip is missing, damaged or encrypted, or compressed by what is not known here.
    """
    return load_index(path, ZipIndex, _build)


def text_in_zip(path: Path, name: str) -> str | None:
    """The text of a small member; None where there is none of the name.

    Raises:
        UserError: it is damaged, too large, or no text in UTF-8.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if name not in archive.NameToInfo:
                return None
            with archive.open(name) as file:
                return file.read(_MOST_TEXT).decode("utf-8-sig")
    except (OSError, zlib.error, *_HOSTILE) as error:
        raise UserError(f"{path}: {name!r} in it cannot be read ({error}); zip the images again") from None


def tree_of_zip(path: Path, index: ZipIndex) -> Folder:
    """The folders in a zip, whose images have their names in it as paths, below that of the zip."""
    names = [index.name(row).decode() for row in range(len(index))]
    return tree_of_names(str(path), [*names, *json.loads(index.bare.tobytes())], Counter())


class ZipSource(ImageSource):
    """Images in a zip, in a folder for each class.

    Args:
        path: the zip.
        index: all images in it.
        classes: names of the folders, by number.
        images: (class number, path as in `tree_of_zip`) of each image, in their order.
    """

    kind = "zip"

    def __init__(self, path: Path, index: ZipIndex, classes: Sequence[str], images: Sequence[tuple[int, str]]):
        known = {index.name(row).decode(): row for row in range(len(index))}
        start = len(str(path)) + 1
        rows = np.array([known[name[start:]] for _, name in images], dtype=np.int64)
        part = ZipPart(path, index.rows(rows, [label for label, _ in images]), rows)
        super().__init__([part], ClassList(list(classes), str(path)))


class ZipPart(Part):
    """Images of a zip.

    Args:
        path: the zip.
        index: of the images that count.
        rows: (n,) which they are of all images in it; None are all.
    """

    index: ZipIndex

    def __init__(self, path: Path, index: ZipIndex, rows: np.ndarray | None = None):
        self.path, self.index, self._rows = path, index, rows
        self._stamp = stamp(path)

    def place(self, row: int) -> tuple[str, int]:
        return str(self.path), row if self._rows is None else int(self._rows[row])

    def read(self, row: int) -> bytes:
        check_unchanged(self.path, self.descriptor(), self._stamp)
        return self.index.load(self.descriptor(), row)


def _build(path: Path, file: int, size: int) -> ZipIndex:
    members, seen, folders = [], set(), set()
    try:
        with os.fdopen(os.dup(file), "rb") as stream, zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                folder, slash, _ = member.filename.rpartition("/")
                folders.add(folder + slash)
                if member.is_dir() or not is_image(member.filename):
                    continue
                if member.flag_bits & _ENCRYPTED:
                    raise UserError(f"{path}: is encrypted ({member.filename!r}); zip the images without a password")
                if member.compress_type not in (_STORED, _DEFLATED):
                    raise UserError(f"{path}: {member.filename!r} is neither stored nor deflated; zip the images again")
                if member.filename in seen:
                    raise UserError(f"{path}: holds {member.filename!r} twice; zip the images again")
                seen.add(member.filename)
                members.append(member)
    except _HOSTILE as error:
        raise UserError(f"{path}: is not a whole zip ({str(error) or type(error).__name__}); copy it again") from None
    if not members:
        raise UserError(f"{path}: holds no images; they lie in a folder for each class")
    count = len(members)
    facts = [(m.header_offset, m.compress_size, m.compress_type == _DEFLATED, m.CRC, m.file_size) for m in members]
    offset, packed_, deflated, crc, sizes = (np.ascontiguousarray(c) for c in np.array(facts, dtype=np.int64).T)
    bare = sorted(folders - {name.rpartition("/")[0] + "/" for name in seen} - {""})
    index = ZipIndex(
        **{"offset": offset, "packed": packed_, "deflated": deflated.astype(np.uint8), "crc": crc, "size": sizes},
        bare=np.frombuffer(json.dumps(bare).encode(), dtype=np.uint8),
        label=np.zeros(count, dtype=np.int64),
        content_crc=np.zeros(count, dtype=np.int64),
        deep=np.zeros(count, dtype=np.uint8),
        **packed(member.filename.encode() for member in members),
    )
    for row in range(count):
        try:
            image = memoryview(index.load(file, row))
        except DamagedSample:  # counted and named when it is read
            continue
        index.content_crc[row], index.deep[row] = content_of(len(image), partial(part_of, image))
    return index
