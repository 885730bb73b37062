"""Tar shards as one random-access sequence of labelled images."""

import glob
import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import braceexpand
import numpy as np

from vitwarm.data.tar_index import BLOCK, load_index
from vitwarm.errors import UserError

_OPEN_FILES = 128  # a rank and its workers hold this many tars open each; common limits are 1,024 a process


class DamagedSample(Exception):
    """One sample cannot be read; the message is the reason. It is counted and logged; training continues."""


def expand(spec: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """List the tars that a specification names, in a fixed order.

    Args:
        spec: a tar, a folder (its `*.tar`), a glob (`train-*.tar`), a brace pattern (`train-{000..004}.tar`), or a list
            of these.

    Raises:
        UserError: something matches nothing, a tar is missing or is named twice.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    if not any(os.fspath(one) for one in specs):
        raise UserError("no shards given: name a folder of tars, a glob or a brace pattern")
    paths = [path for one in specs for path in _expand_one(os.fspath(one))]
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path in resolved if resolved.count(path) > 1)
        raise UserError(f"{twice}: is named twice by the shards {spec}; each tar must count once")
    return paths


def _expand_one(spec: str) -> list[Path]:
    if "://" in spec or spec.startswith("pipe:"):
        raise UserError(f"{spec}: shards must be local files; copy them to a disk first")
    try:
        patterns = list(braceexpand.braceexpand(spec))
    except braceexpand.UnbalancedBracesError:
        raise UserError(f"{spec}: the braces of this pattern do not balance") from None
    paths = []
    for pattern in map(os.path.expanduser, patterns):
        if os.path.isdir(pattern):
            found = sorted(Path(pattern).glob("*.tar"))
            if not found:
                raise UserError(f"{pattern}: no *.tar in this folder")
        elif os.path.exists(pattern):
            found = [Path(pattern)]
        else:
            found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
            if not found:
                raise UserError(f"{pattern}: no such tar; give a tar, a folder of tars, a glob or a brace pattern")
        paths += found
    return paths


class ShardSet:
    """Labelled images in tars, addressed by number across all of them.

    Reads go through `os.pread` on descriptors that stay open, so forked loader workers share a set safely; threads
    of one process may not.

    Args:
        paths: the tars, as from `expand`.

    Raises:
        UserError: a tar is missing, damaged or not a set of labelled images.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = [Path(path) for path in paths]
        indices = [load_index(path) for path in self.paths]
        self._starts = np.cumsum([0] + [len(index) for index in indices])
        self._indices = indices
        self.labels: np.ndarray = np.concatenate([index.label for index in indices])
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": OrderedDict()}  # descriptors do not travel to a spawned process

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    @property
    def identity(self) -> str:
        """Which images these are, in which order: how many, and a digest of their labels, sizes and tar headers."""
        digest = hashlib.sha256()
        for index in self._indices:
            for array in (index.label, index.size, index.header_crc):
                digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return f"{len(self):,} images, {digest.hexdigest()[:16]}"

    def key(self, sample: int) -> str:
        """`shard.tar:key`, to name a sample to a reader."""
        shard, row = self._locate(sample)
        return f"{self.paths[shard].name}:{self._indices[shard].key(row)}"

    def read(self, sample: int) -> bytes:
        """The encoded image of a sample.

        Raises:
            DamagedSample: this sample cannot be read, but others of its tar can.
            UserError: the tar is missing, or has changed since it was indexed.
        """
        shard, row = self._locate(sample)
        index = self._indices[shard]
        offset, size = int(index.offset[row]), int(index.size[row])
        file = self._open(shard)
        try:
            block = os.pread(file, BLOCK + size, offset - BLOCK)
        except OSError as error:
            raise DamagedSample(f"read error ({error.strerror})") from None
        header, data = block[:BLOCK], block[BLOCK:]
        if len(data) < size:
            raise UserError(f"{self.paths[shard]}: has become shorter since it was indexed; restore it and start again")
        if zlib.crc32(header) != index.header_crc[row]:
            if index.matches(file):
                raise DamagedSample("its tar header is damaged")
            raise UserError(f"{self.paths[shard]}: has changed since it was indexed; start again to index it again")
        return data

    def _locate(self, sample: int) -> tuple[int, int]:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not in [0, {len(self)})")
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return shard, int(sample - self._starts[shard])

    def _open(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        try:
            file = os.open(self.paths[shard], os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.paths[shard]}: cannot be opened any more ({error.strerror})") from None
        self._files[shard] = file
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return file


def check_labels(shards: ShardSet, num_classes: int) -> None:
    """Refuse a set whose labels do not fit the classifier.

    Raises:
        UserError: a label is not below `num_classes`.
    """
    wrong = np.flatnonzero(shards.labels >= num_classes)
    if wrong.size:
        first = int(wrong[0])
        raise UserError(
            f"{shards.key(first)}: label {shards.labels[first]} is not below model.num_classes={num_classes}"
            f" ({wrong.size} such samples); set model.num_classes to at least {shards.labels.max() + 1}"
        )
