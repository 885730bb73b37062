"""The offset index of one WebDataset tar: where each image lies, its label and key; built once and kept beside the tar.

`grouping` says which members make a sample. Nothing is ever extracted, so member names cannot reach outside.
"""

import os
import posixpath
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitwarm.data.grouping import LABEL, MOST_BYTES, extends, parse_label, split_name
from vitwarm.data.index_file import load_index
from vitwarm.data.source import Index, content_of, packed
from vitwarm.data.tar_reader import BLOCK, DamagedTar, Member, read_tar
from vitwarm.errors import UserError


@dataclass(frozen=True)
class TarIndex(Index):
    """The samples of one tar, in the order of their images.

    Attributes:
        offset: (n,) int64, first byte of the image data.
        header_crc: (n,) int64, CRC-32 of the header block that ends at `offset`: each read checks it, so that an index
            which outlived its tar is noticed.
    """

    FORMAT: ClassVar[int] = 3
    CONTAINER: ClassVar[str] = "tar"

    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    header_crc: np.ndarray
    content_crc: np.ndarray
    deep: np.ndarray
    key_bytes: np.ndarray
    key_end: np.ndarray

    def is_there(self, file: int, row: int) -> bool:
        return zlib.crc32(os.pread(file, BLOCK, int(self.offset[row]) - BLOCK)) == self.header_crc[row]


def tar_index(tar: Path) -> TarIndex:
    """The index of a tar: read from its file where that fits the tar, else built and written.

    Raises:
        UserError: the tar is missing, unreadable, cut short, not a tar, or not a set of labelled images.
    """
    try:
        return load_index(tar, TarIndex, _build)
    except DamagedTar as error:
        raise UserError(f"{tar}: is not a whole tar ({error}); copy or build it again") from None


def _members(tar: Path, file: int) -> Iterator[Member]:
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

    for member in _members(tar, file):
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
    return TarIndex(
        offset=np.ascontiguousarray(offset),
        size=np.ascontiguousarray(size),
        label=np.array([labels[key] for key in keys], dtype=np.int64),
        header_crc=np.ascontiguousarray(header_crc),
        content_crc=np.ascontiguousarray(content_crc),
        deep=deep.astype(np.uint8),
        **packed(key.encode("utf-8", "surrogateescape") for key in keys),
    )


def _target(tar: Path, name: str, link: str, is_label: bool, values: dict[tuple[bool, str], Any]) -> Any:
    """What the member that a link points to has given."""
    # A hard link names a member as it is; a symbolic one starts from its own folder.
    for way in (link, posixpath.normpath(posixpath.join(posixpath.dirname(name), link))):
        if (known := (is_label, posixpath.normpath(way))) in values:
            return values[known]
    raise UserError(f"{tar}: {name!r} is a link to {link!r}, which is not in it; write it with tar --dereference")


def _row(file: int, member: Member) -> tuple[int, ...]:
    content_crc, deep = content_of(member.size, lambda count, offset: os.pread(file, count, member.offset + offset))
    return member.offset, member.size, zlib.crc32(member.header), content_crc, int(deep)


def _label(member: Member) -> int | str:
    text = member.read(65)
    if (label := parse_label(text)) is not None:
        return label
    shown = text[:20].decode("ascii", "backslashreplace")
    hint = "; labels by name: unpack the images into a folder for each class, and run vitwarm make-shards"
    return f"the label {member.name!r} must be a class number in ASCII digits, found {shown!r}{hint}"
