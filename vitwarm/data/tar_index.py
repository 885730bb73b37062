"""The offset index of one WebDataset tar: where each image lies, its label and key; built once and kept beside the tar.

`grouping` says which members make a sample. Nothing is ever extracted, so member names cannot reach outside.
"""

import hashlib
import json
import logging
import os
import posixpath
import stat
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitwarm.cache import cache_dir
from vitwarm.data.depth import is_deep
from vitwarm.data.grouping import LABEL, MOST_BYTES, extends, parse_label, split_name
from vitwarm.data.tar_reader import BLOCK, DamagedTar, Member, read_tar
from vitwarm.errors import UserError
from vitwarm.files import whole_file

_FORMAT = 3
_TICK = 0.02  # seconds; file systems count time in steps of up to a hundredth
_WHOLE = 1 << 16  # bytes of an image whose content is digested whole; of a larger one its ends are
_END = 4096
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TarIndex:
    """The samples of one tar, in the order of their images.

    Attributes:
        offset: (n,) int64, first byte of the image data.
        size: (n,) int64, bytes of image data.
        label: (n,) int64.
        header_crc: (n,) int64, CRC-32 of the header block that ends at `offset`: each read checks it, so that an index
            which outlived its tar is noticed.
        content_crc: (n,) int64, CRC-32 of the image, of a large one its ends: images that differ in it or in size are
            not equal.
        deep: (n,) uint8, 1 where the image has more than 8 bits a channel and readers disagree on it (`depth`).
        key_bytes: (k,) uint8, the UTF-8 keys end to end.
        key_end: (n,) int64, where each key ends in `key_bytes`.
    """

    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    header_crc: np.ndarray
    content_crc: np.ndarray
    deep: np.ndarray
    key_bytes: np.ndarray
    key_end: np.ndarray

    def __len__(self) -> int:
        return self.offset.size

    def key(self, row: int) -> str:
        start = self.key_end[row - 1] if row else 0
        return self.key_bytes[start : self.key_end[row]].tobytes().decode("utf-8", "backslashreplace")

    def matches(self, file: int) -> bool:
        """Whether headers of the open tar `file` (a descriptor) are still where the index says: a few are looked at."""
        probes = np.unique(np.linspace(0, len(self) - 1, num=min(len(self), 5)).astype(np.int64))
        found = sum(read_header_crc(file, int(self.offset[row])) == self.header_crc[row] for row in probes)
        return 2 * found > probes.size  # one damaged header is a damaged sample, not another tar


def read_header_crc(file: int, offset: int) -> int:
    """CRC-32 of the tar header block before the data at `offset`."""
    return zlib.crc32(os.pread(file, BLOCK, offset - BLOCK))


def load_index(tar: Path) -> TarIndex:
    """The index of a tar: read from its file where that fits the tar, else built and written.

    Raises:
        UserError: the tar is missing, unreadable, cut short, not a tar, or not a set of labelled images.
    """
    try:
        if not stat.S_ISREG(os.stat(tar).st_mode):  # opening a pipe would wait forever
            raise UserError(f"{tar}: is not a file; shards must be tars on a disk")
        file = os.open(tar, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{tar}: cannot be opened ({error.strerror})") from None
    try:
        status = os.fstat(file)
        places = _index_places(tar)
        for place in places:
            index = _read(place, status)
            if index is not None and index.matches(file):
                return index
            if place.exists():
                _log.warning("%s does not match %s: indexing it again", place, tar.name)
        index = _build(tar, file, status.st_size)
    except DamagedTar as error:
        raise UserError(f"{tar}: is not a whole tar ({error}); copy or build it again") from None
    except OSError as error:
        raise UserError(f"{tar}: cannot be read ({error.strerror}); check the disk or copy it again") from None
    finally:
        os.close(file)
    _write(index, status, places)
    _log.info("indexed %s: %d images", tar, len(index))
    return index


def index_beside(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.index.safetensors")


def _index_places(tar: Path) -> list[Path]:
    """Beside the tar, or in the cache where that folder may not be written."""
    digest = hashlib.sha256(os.fsencode(tar.resolve())).hexdigest()[:16]
    return [index_beside(tar), cache_dir() / "indices" / f"{digest}-{tar.name}.index.safetensors"]


def _read(place: Path, tar: os.stat_result) -> TarIndex | None:
    try:
        own = os.stat(place)
        # An index bears the time of its tar, whatever the clocks say. A tar of the same size and time that was written
        # after its index shows it in the time of its inode, which nobody can set.
        if own.st_mtime_ns != tar.st_mtime_ns or own.st_ctime_ns <= tar.st_ctime_ns:
            return None
        with safe_open(place, framework="numpy") as stored:
            index = TarIndex(**{field.name: stored.get_tensor(field.name) for field in fields(TarIndex)})
            return index if stored.metadata() == _metadata(index, tar.st_size) else None
    except (OSError, SafetensorError):  # absent, or damaged: it can be made again
        return None


def _metadata(index: TarIndex, tar_size: int) -> dict[str, str]:
    digest = hashlib.sha256()
    for field in fields(TarIndex):
        array = getattr(index, field.name)
        digest.update(f"{field.name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    # One entry: safetensors writes several in a random order, and equal tars must have equal indices.
    return {"vitwarm": json.dumps({"format": _FORMAT, "tar_size": tar_size, "sha256": digest.hexdigest()})}


def _write(index: TarIndex, tar: os.stat_result, places: list[Path]) -> None:
    """Keep the index in the first place that can be written to."""
    arrays = {field.name: getattr(index, field.name) for field in fields(TarIndex)}
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place, shared=True) as aside:
                save_file(arrays, aside, metadata=_metadata(index, tar.st_size))
                os.utime(aside, ns=(tar.st_atime_ns, tar.st_mtime_ns))
                if os.stat(aside).st_ctime_ns <= tar.st_ctime_ns:
                    time.sleep(_TICK)  # the renaming sets the inode's time again
            return
        except (OSError, SafetensorError) as error:
            reason = error
    _log.warning("%s could not be kept (%s): the next run will read the whole tar again", places[0], reason)


def _members(tar: Path, file: int, tar_size: int) -> Iterator[Member]:
    if tar_size == 0:
        raise UserError(f"{tar}: is empty (0 bytes); copy or build it again")
    if os.pread(file, 2, 0) == b"\x1f\x8b":
        raise UserError(f"{tar}: is gzip-compressed, which allows no random access; run gunzip on it first")
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(0)
        yield from read_tar(stream)


def _build(tar: Path, file: int, tar_size: int) -> TarIndex:
    images: dict[str, tuple[int, ...]] = {}  # key -> what a row holds; a dict keeps the order of the tar
    labels: dict[str, int | str] = {}  # a text says what is wrong with a label, should a sample have it
    links: list[tuple[str, str, str, str]] = []
    values: dict[tuple[bool, str], Any] = {}  # (whether it is a label, name of the member)
    others: list[str] = []

    def place(kind: str, key: str, value: Any) -> None:
        found, name = (labels, "labels") if kind == LABEL else (images, "images")
        if key in found:
            raise UserError(f"{tar}: holds two {name} under the key {key!r}; keys must be unique within a tar")
        found[key] = value

    for member in _members(tar, file, tar_size):
        named = split_name(member.name)
        if named is None:
            if len(others) < 3:
                others.append(member.name)
            continue
        key, kind = named
        if member.size > MOST_BYTES:
            raise UserError(f"{tar}: {member.name!r} has {member.size:,} bytes, more than an image has")
        if member.link is not None:
            links.append((member.name, key, kind, member.link))
        else:
            value = _label(member) if kind == LABEL else _row(file, member)
            values[kind == LABEL, posixpath.normpath(member.name)] = value
            place(kind, key, value)
    for name, key, kind, link in links:
        place(kind, key, _target(tar, name, link, kind == LABEL, values))
    if not images and not labels:
        seen = f"only {', '.join(map(repr, others))}, ..." if others else "nothing"
        raise UserError(f"{tar}: no images (KEY.jpg with KEY.cls) in it, {seen}")
    samples = images.keys() & labels.keys()
    for what, found in (("label (.cls)", images), ("image", labels)):
        if lone := [key for key in found if key not in samples and not extends(key, samples)]:
            first = ", ".join(map(repr, sorted(lone)[:3])) + (", ..." if len(lone) > 3 else "")
            beside = f"; not read: {', '.join(map(repr, others))}, ..." if others else ""
            raise UserError(f"{tar}: {len(lone)} samples have no {what}: {first}{beside}")
    keys = [key for key in images if key in samples]
    if wrong := next((label for key in keys if isinstance(label := labels[key], str)), None):
        raise UserError(f"{tar}: {wrong}")
    offset, size, header_crc, content_crc, deep = np.array([images[key] for key in keys], dtype=np.int64).T
    encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
    return TarIndex(
        offset=np.ascontiguousarray(offset),
        size=np.ascontiguousarray(size),
        label=np.array([labels[key] for key in keys], dtype=np.int64),
        header_crc=np.ascontiguousarray(header_crc),
        content_crc=np.ascontiguousarray(content_crc),
        deep=deep.astype(np.uint8),
        key_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        key_end=np.cumsum([len(key) for key in encoded], dtype=np.int64),
    )


def _target(tar: Path, name: str, link: str, is_label: bool, values: dict[tuple[bool, str], Any]) -> Any:
    """What the member that a link points to has given."""
    # A hard link names a member as it is; a symbolic one starts from its own folder.
    for way in (link, posixpath.normpath(posixpath.join(posixpath.dirname(name), link))):
        if (known := (is_label, posixpath.normpath(way))) in values:
            return values[known]
    raise UserError(f"{tar}: {name!r} is a link to {link!r}, which is not in it; write it with tar --dereference")


def _row(file: int, member: Member) -> tuple[int, ...]:
    if member.size <= _WHOLE:
        content = os.pread(file, member.size, member.offset)
    else:
        content = os.pread(file, _END, member.offset) + os.pread(file, _END, member.offset + member.size - _END)
    deep = is_deep(member.read(64), member.read)
    return member.offset, member.size, zlib.crc32(member.header), zlib.crc32(content), int(deep)


def _label(member: Member) -> int | str:
    text = member.read(65)
    if (label := parse_label(text)) is not None:
        return label
    shown = text[:20].decode("ascii", "backslashreplace")
    hint = "; labels by name: unpack the images into a folder for each class, and run vitwarm make-shards"
    return f"the label {member.name!r} must be a class number in ASCII digits, found {shown!r}{hint}"
