"""Indices of files with images in them: built once, kept beside the file, and made again when they do not fit it."""

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitwarm.cache import cache_dir
from vitwarm.errors import UserError
from vitwarm.files import whole_file

TICK = 0.02  # seconds; file systems count time in steps of up to a hundredth
_log = logging.getLogger(__name__)


class FileIndex(Protocol):
    """The index of a file: a dataclass of arrays.

    Attributes:
        FORMAT: version; an index of another one is made again.
        CONTAINER: what the file is, in a word.
    """

    FORMAT: ClassVar[int]
    CONTAINER: ClassVar[str]

    def __len__(self) -> int: ...

    def matches(self, file: int) -> bool:
        """Whether the open file (a descriptor) is still what the index says: a few places are looked at."""
        ...


IndexT = TypeVar("IndexT", bound=FileIndex)


def load_index(path: Path, kind: type[IndexT], build: Callable[[Path, int, int], IndexT]) -> IndexT:
    """The index of a file: read from its own file where that fits, else built and written.

    Args:
        path: the file with the images.
        kind: class of the index.
        build: (path, descriptor, bytes) -> index.

    Raises:
        UserError: the file is missing or unreadable, or what `build` raises.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait forever
            raise UserError(f"{path}: is not a file; shards must be {kind.CONTAINER}s on a disk")
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from None
    try:
        status = os.fstat(file)
        places = _places(path)
        for place in places:
            index = _read(place, kind, status)
            if index is not None and index.matches(file):
                return index
            if place.exists():
                _log.warning("%s does not match %s: indexing it again", place, path.name)
        if status.st_size == 0:
            raise UserError(f"{path}: is empty (0 bytes); copy or build it again")
        index = build(path, file, status.st_size)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); check the disk or copy it again"
        ) from None
    finally:
        os.close(file)
    _write(index, status, places)
    _log.info("indexed %s: %d images", path, len(index))
    return index


def index_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.safetensors")


def index_in_cache(path: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return cache_dir() / "indices" / f"{digest}-{path.name}.index.safetensors"


def _places(path: Path) -> list[Path]:
    """Beside the file, or in the cache where that folder may not be written."""
    return [index_beside(path), index_in_cache(path)]


def _read(place: Path, kind: type[IndexT], file: os.stat_result) -> IndexT | None:
    try:
        own = os.stat(place)
        # An index bears the time of its file, whatever the clocks say. A file of the same size and time that was
        # written after its index shows it in the time of its inode, which nobody can set.
        if own.st_mtime_ns != file.st_mtime_ns or own.st_ctime_ns <= file.st_ctime_ns:
            return None
    except OSError:
        return None
    return read_arrays(place, kind, {f"{kind.CONTAINER}_size": file.st_size})


def read_arrays(place: Path, kind: type[Any], more: dict[str, Any]) -> Any:
    """An index as it was written by `save_arrays` with the same `more`; None where it is absent or damaged."""
    try:
        with safe_open(place, framework="numpy") as stored:
            index = kind(**{field.name: stored.get_tensor(field.name) for field in fields(kind)})
            return index if stored.metadata() == _metadata(index, more) else None
    except (OSError, SafetensorError):  # it can be made again
        return None


def save_arrays(index: Any, place: Path, more: dict[str, Any]) -> None:
    """Write the arrays of an index, with a digest of them.

    Raises:
        OSError, SafetensorError: the place cannot be written to.
    """
    arrays: dict[str, np.ndarray] = {field.name: getattr(index, field.name) for field in fields(index)}
    save_file(arrays, place, metadata=_metadata(index, more))


def _metadata(index: Any, more: dict[str, Any]) -> dict[str, str]:
    digest = hashlib.sha256()
    for field in fields(index):
        array = getattr(index, field.name)
        digest.update(f"{field.name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    # One entry: safetensors writes several in a random order, and equal files must have equal indices.
    return {"vitwarm": json.dumps({"format": index.FORMAT} | more | {"sha256": digest.hexdigest()})}


def _write(index: FileIndex, file: os.stat_result, places: list[Path]) -> None:
    """Keep the index in the first place that can be written to."""
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place, shared=True) as aside:
                save_arrays(index, aside, {f"{index.CONTAINER}_size": file.st_size})
                os.utime(aside, ns=(file.st_atime_ns, file.st_mtime_ns))
                if os.stat(aside).st_ctime_ns <= file.st_ctime_ns:
                    time.sleep(TICK)  # the renaming sets the inode's time again
            return
        except (OSError, SafetensorError) as error:
            reason = error
    _log.warning("%s could not be kept (%s): the next run will read the whole file again", places[0], reason)
