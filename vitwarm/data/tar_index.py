"""The offset index of one WebDataset tar: where each image lies, its label and key; built once and kept beside the tar.

WebDataset grouping: the members `a/b.jpg` and `a/b.cls` share the key `a/b` (the path up to the first dot of its last
part) and make one sample. Nothing is ever extracted, so member names cannot reach outside.
"""

import hashlib
import json
import logging
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitwarm.cache import cache_dir
from vitwarm.errors import UserError
from vitwarm.files import whole_file

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "ppm"})
BLOCK = tarfile.BLOCKSIZE  # 512: a member is one header block, then its data padded to whole blocks

_FORMAT = 2
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
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
        key_bytes: (k,) uint8, the UTF-8 keys end to end.
        key_end: (n,) int64, where each key ends in `key_bytes`.
    """

    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    header_crc: np.ndarray
    key_bytes: np.ndarray
    key_end: np.ndarray

    def __len__(self) -> int:
        return self.offset.size

    def key(self, row: int) -> str:
        start = self.key_end[row - 1] if row else 0
        return self.key_bytes[start : self.key_end[row]].tobytes().decode("utf-8", "surrogateescape")

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
        tar_size = os.fstat(file).st_size
        places = _index_places(tar)
        for place in places:
            index = _read(place, tar_size, os.fstat(file).st_mtime_ns)
            if index is not None and index.matches(file):
                return index
            if place.exists():
                _log.warning("%s does not match %s: indexing it again", place, tar.name)
        index = _build(tar, file, tar_size)
    except OSError as error:
        raise UserError(f"{tar}: cannot be read ({error.strerror}); check the disk or copy it again") from None
    finally:
        os.close(file)
    _write(index, tar_size, places)
    _log.info("indexed %s: %d images", tar, len(index))
    return index


def _index_places(tar: Path) -> list[Path]:
    """Beside the tar, or in the cache where that folder may not be written."""
    digest = hashlib.sha256(str(tar.resolve()).encode()).hexdigest()[:16]
    return [Path(f"{tar}.index.safetensors"), cache_dir() / "indices" / f"{digest}-{tar.name}.index.safetensors"]


def _read(place: Path, tar_size: int, tar_time: int) -> TarIndex | None:
    try:
        if os.stat(place).st_mtime_ns < tar_time:  # the tar was written again; labels may differ where headers do not
            return None
        with safe_open(place, framework="numpy") as stored:
            if stored.metadata() != _metadata(tar_size):
                return None
            index = TarIndex(**{field.name: stored.get_tensor(field.name) for field in fields(TarIndex)})
    except (OSError, SafetensorError):  # absent, or damaged: it can be made again
        return None
    return index


def _metadata(tar_size: int) -> dict[str, str]:
    # One entry: safetensors writes several in a random order, and equal tars must have equal indices.
    return {"vitwarm": json.dumps({"format": _FORMAT, "tar_size": tar_size})}


def _write(index: TarIndex, tar_size: int, places: list[Path]) -> None:
    """Keep the index in the first place that can be written to."""
    arrays = {field.name: getattr(index, field.name) for field in fields(TarIndex)}
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place, shared=True) as aside:
                save_file(arrays, aside, metadata=_metadata(tar_size))
            return
        except (OSError, SafetensorError) as error:
            reason = error
    _log.warning("%s could not be kept (%s): the next run will read the whole tar again", places[0], reason)


def _members(tar: Path, file: int, tar_size: int) -> Iterator[tarfile.TarInfo]:
    """The regular members of a tar; damage that Python's tarfile takes for the end of the archive is an error here."""
    if tar_size == 0:
        raise UserError(f"{tar}: is empty (0 bytes); copy or build it again")
    if os.pread(file, 2, 0) == b"\x1f\x8b":
        raise UserError(f"{tar}: is gzip-compressed, which allows no random access; run gunzip on it first")
    try:
        with os.fdopen(os.dup(file), "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                if member.isreg():
                    if member.sparse is not None:
                        raise UserError(f"{tar}: {member.name!r} is a sparse member; write the tar without --sparse")
                    yield member
            stream_end = archive.offset
    except UserError:
        raise
    except Exception as error:  # on hostile bytes tarfile raises many kinds
        raise UserError(f"{tar}: is not a whole tar ({error}); copy or build it again") from None
    tail = os.pread(file, BLOCK, stream_end)
    if len(tail) < BLOCK:
        raise UserError(f"{tar}: is cut short (no end-of-archive mark at byte {stream_end}); copy or build it again")
    if any(tail):
        raise UserError(f"{tar}: has a damaged header at byte {stream_end}; copy or build it again")
    while tail := os.pread(file, 1 << 20, stream_end):
        if any(tail):
            raise UserError(f"{tar}: has data after its end-of-archive mark; join tars with tar -A, not with cat")
        stream_end += len(tail)


def _build(tar: Path, file: int, tar_size: int) -> TarIndex:
    images: dict[str, tuple[int, int, int]] = {}  # key -> offset, size, header CRC; a dict keeps the order of the tar
    labels: dict[str, int] = {}
    others: list[str] = []
    for member in _members(tar, file, tar_size):
        parts = _MEMBER.fullmatch(member.name)
        key, extension = (parts[1], parts[2].lower()) if parts else (member.name, "")
        if extension in IMAGE_EXTENSIONS:
            if key in images:
                raise UserError(f"{tar}: holds two images under the key {key!r}; keys must be unique within a tar")
            images[key] = (member.offset_data, member.size, read_header_crc(file, member.offset_data))
        elif extension == "cls":
            if key in labels:
                raise UserError(f"{tar}: holds two labels under the key {key!r}; keys must be unique within a tar")
            labels[key] = _parse_label(tar, member, os.pread(file, min(member.size, 64), member.offset_data))
        elif len(others) < 3:
            others.append(member.name)
    if not images and not labels:
        seen = f"only {', '.join(map(repr, others))}, ..." if others else "nothing"
        raise UserError(f"{tar}: no images (KEY.jpg with KEY.cls) in it, {seen}")
    for kind, lone in (("label (.cls)", images.keys() - labels.keys()), ("image", labels.keys() - images.keys())):
        if lone:
            named = ", ".join(map(repr, sorted(lone)[:3])) + (", ..." if len(lone) > 3 else "")
            raise UserError(f"{tar}: {len(lone)} samples have no {kind}: {named}")
    keys = [key.encode("utf-8", "surrogateescape") for key in images]
    offset, size, crc = np.array(list(images.values()), dtype=np.int64).T
    return TarIndex(
        offset=np.ascontiguousarray(offset),
        size=np.ascontiguousarray(size),
        label=np.array([labels[key] for key in images], dtype=np.int64),
        header_crc=np.ascontiguousarray(crc),
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_end=np.cumsum([len(key) for key in keys], dtype=np.int64),
    )


def _parse_label(tar: Path, member: tarfile.TarInfo, text: bytes) -> int:
    if re.fullmatch(rb"\s*[0-9]{1,9}\s*", text) is None:
        shown = text[:20].decode("ascii", "backslashreplace")
        raise UserError(f"{tar}: the label {member.name!r} must be a class number in ASCII digits, found {shown!r}")
    return int(text)
