"""Tar shards as one random-access sequence of labelled images."""

import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitwarm.data import manifest as manifests
from vitwarm.data.patterns import find_paths
from vitwarm.data.splits import split_folder, split_of
from vitwarm.data.tar_index import load_index
from vitwarm.data.tar_reader import BLOCK
from vitwarm.errors import UserError

_OPEN_FILES = 128  # a rank and its workers hold this many tars open each; common limits are 1,024 a process


class DamagedSample(Exception):
    """One sample cannot be read; the message is the reason. It is counted and logged; training continues."""


def expand(spec: str | os.PathLike | Sequence[str | os.PathLike], split: str | None = None) -> list[Path]:
    """List the tars that a specification names, in a fixed order.

    Args:
        spec: a tar, a folder (its `*.tar`), a glob (`train-*.tar`), a brace pattern (`train-{000..004}.tar`), or a list
            of these.
        split: `train` or `val`: what a folder with several splits in it stands for; None takes all of its tars.

    Raises:
        UserError: something matches nothing, a tar is missing or is named twice, or a folder has not that split.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    if not any(os.fspath(one) for one in specs):
        raise UserError("no shards given: name a folder of tars, a glob or a brace pattern")
    paths = [path for one in specs for path in _expand_one(os.fspath(one), split)]
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path in resolved if resolved.count(path) > 1)
        raise UserError(f"{twice}: is named twice by the shards {spec}; each tar must count once")
    return paths


def _expand_one(spec: str, split: str | None) -> list[Path]:
    if "://" in spec or spec.startswith("pipe:"):
        raise UserError(f"{spec}: shards must be local files; copy them to a disk first")
    found = map(Path, find_paths(spec))
    return [tar for path in found for tar in (_in_folder(path, split) if path.is_dir() else [path])]


def _in_folder(folder: Path, split: str | None) -> list[Path]:
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if split is None and tars:
        return tars
    places = tars
    if not tars:  # a folder for each split
        places = sorted(path for path in folder.iterdir() if split_folder(path.name) and any(path.glob("*.tar")))
        if not places or split is None:
            hint = f"; its folders {', '.join(path.name for path in places)} have some" if places else ""
            raise UserError(f"{folder}: no *.tar in this folder{hint}")
    known = manifests.beside(folder) if tars else None
    if known is not None:
        splits = {name: [folder / shard.name for shard in one.shards] for name, one in known.splits.items()}
        if odd := sorted(set(tars) - {tar for listed in splits.values() for tar in listed}):
            raise UserError(f"{odd[0]}: is not in {folder / manifests.NAME}; move it away, or make the manifest again")
    else:
        splits = {}
        for path in places:
            splits.setdefault(split_of(path.name) or "", []).append(path)
        if len(splits) > 1 and "" in splits:
            raise UserError(f"{splits[''][0]}: its name says no split, others' beside it do; give the tars by a glob")
        splits = {name or "train": paths for name, paths in splits.items()}
    wanted = [name for name in (split, "test" if split == "val" else None) if name in splits]
    if not wanted and len(splits) > 1:
        raise UserError(f"{folder}: has no {split}, only {', '.join(splits)}; name its tars by a glob")
    found = splits[wanted[0]] if wanted else next(iter(splits.values()))  # a single split is what a folder stands for
    return found if tars else [tar for place in found for tar in _in_folder(place, split)]


class ShardSet:
    """Labelled images in tars, addressed by number across all of them.

    Reads go through `os.pread` on descriptors that stay open, so forked loader workers share a set safely; threads
    of one process may not.

    Args:
        paths: the tars, as from `expand`.

    Attributes:
        labels: (n,) int64.
        starts: (tars + 1,) the first sample of each tar, then n.
        classes: the class names of the manifests beside the tars; None where there are none.

    Raises:
        UserError: a tar is missing, damaged or not a set of labelled images, or manifests contradict it or each other.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = [Path(path) for path in paths]
        indices = [load_index(path) for path in self.paths]
        self.starts = np.cumsum([0] + [len(index) for index in indices])
        self.classes = manifests.class_list(self.paths)
        self._indices = indices
        self.labels: np.ndarray = np.concatenate([index.label for index in indices])
        self._files: OrderedDict[int, int] = OrderedDict()
        if self.classes is not None and self.labels.max() >= len(self.classes.names):
            raise UserError(f"{self.paths[0]}: label {self.labels.max()} has no name in {self.classes.where}")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": OrderedDict()}  # descriptors do not travel to a spawned process

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    @property
    def files(self) -> int:
        return len(self.paths)

    @property
    def num_bytes(self) -> int:
        """Size of all tars."""
        return sum(path.stat().st_size for path in self.paths)

    @property
    def deep(self) -> int:
        """How many images have more than 8 bits a channel, which plain timm would clip."""
        return sum(int(index.deep.sum()) for index in self._indices)

    @property
    def marks(self) -> np.ndarray:
        """(n,) int64; images that differ in it are not equal."""
        return np.concatenate([index.size << 32 | index.content_crc for index in self._indices])

    @property
    def identity(self) -> str:
        """Which images these are, in which order: how many, and a digest of labels, sizes, tar headers, contents."""
        digest = hashlib.sha256()
        for index in self._indices:
            for array in (index.label, index.size, index.header_crc, index.content_crc):
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
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return shard, int(sample - self.starts[shard])

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
