"""Tar shards as one random-access sequence of labelled images."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitwarm.data import manifest as manifests
from vitwarm.data.patterns import find_paths
from vitwarm.data.source import DamagedSample, ImageSource, Part, has_changed
from vitwarm.data.splits import choose, split_folder, split_of
from vitwarm.data.tar_index import TarIndex, tar_index
from vitwarm.data.tar_reader import BLOCK
from vitwarm.errors import UserError


def expand(
    spec: str | os.PathLike | Sequence[str | os.PathLike], split: str | None = None, suffix: str = ".tar"
) -> list[Path]:
    """List the tars, or files of another kind, that a specification names, in a fixed order.

    Args:
        spec: a tar, a folder (its `*.tar`), a glob (`train-*.tar`), a brace pattern (`train-{000..004}.tar`), or a list
            of these.
        split: `train` or `val`: what a folder with several splits in it stands for; None takes all of its tars.
        suffix: of the files that a folder stands for.

    Raises:
        UserError: something matches nothing, a tar is missing or is named twice, or a folder has not that split.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    if not any(os.fspath(one) for one in specs):
        raise UserError("no shards given: name a folder of tars, a glob or a brace pattern")
    paths = [path for one in specs for path in _expand_one(os.fspath(one), split, suffix)]
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path in resolved if resolved.count(path) > 1)
        raise UserError(f"{twice}: is named twice by the shards {spec}; each tar must count once")
    return paths


def _expand_one(spec: str, split: str | None, suffix: str) -> list[Path]:
    if "://" in spec or spec.startswith("pipe:"):
        raise UserError(f"{spec}: shards must be local files; copy them to a disk first")
    found = map(Path, find_paths(spec))
    return [tar for path in found for tar in (_in_folder(path, split, suffix) if path.is_dir() else [path])]


def _in_folder(folder: Path, split: str | None, suffix: str) -> list[Path]:
    tars = sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))
    if split is None and tars:
        return tars
    places = tars
    if not tars:  # a folder for each split
        places = sorted(path for path in folder.iterdir() if split_folder(path.name) and any(path.glob(f"*{suffix}")))
        if not places or split is None:
            hint = f"; its folders {', '.join(path.name for path in places)} have some" if places else ""
            raise UserError(f"{folder}: no *{suffix} in this folder{hint}")
    known = manifests.beside(folder) if tars and suffix == ".tar" else None
    if known is not None:
        splits = {name: [folder / shard.name for shard in one.shards] for name, one in known.splits.items()}
        if odd := sorted(set(tars) - {tar for listed in splits.values() for tar in listed}):
            raise UserError(f"{odd[0]}: is not in {folder / manifests.NAME}; move it away, or make the manifest again")
    else:
        splits = {}
        for path in places:
            splits.setdefault(split_of(path.name) or "", []).append(path)
        if len(splits) > 1 and "" in splits:
            raise UserError(f"{splits[''][0]}: its name says no split, others' beside it do; give them by a glob")
        splits = {name or "train": paths for name, paths in splits.items()}
    found = choose(splits, split, folder, f"name its {suffix[1:]}s by a glob")
    return found if tars else [tar for place in found for tar in _in_folder(place, split, suffix)]


class _Tar(Part):
    index: TarIndex

    def __init__(self, path: Path):
        self.path, self.index = path, tar_index(path)

    @property
    def digested(self) -> tuple[np.ndarray, ...]:
        index = self.index
        return index.label, index.size, index.header_crc, index.content_crc

    def place(self, row: int) -> tuple[str, int]:
        return str(self.path), int(self.index.offset[row])

    def read(self, row: int) -> bytes:
        index, file = self.index, self.descriptor()
        offset, size = int(index.offset[row]), int(index.size[row])
        try:
            block = os.pread(file, BLOCK + size, offset - BLOCK)
        except OSError as error:
            raise DamagedSample(f"read error ({error.strerror})") from None
        header, data = block[:BLOCK], block[BLOCK:]
        if len(data) < size:
            raise UserError(f"{self.path}: has become shorter since it was indexed; restore it and start again")
        if zlib.crc32(header) != index.header_crc[row]:
            if index.matches(file):
                raise DamagedSample("its tar header is damaged")
            raise has_changed(self.path)
        return data


class ShardSet(ImageSource):
    """Labelled images in tars; the class names are those of the manifests beside them.

    Args:
        paths: the tars, as from `expand`.

    Raises:
        UserError: a tar is missing, damaged or not a set of labelled images, or manifests contradict it or each other.
    """

    kind = "tar"

    def __init__(self, paths: Sequence[Path]):
        paths = [Path(path) for path in paths]
        super().__init__([_Tar(path) for path in paths], manifests.class_list(paths))

    @property
    def max_side(self) -> int | None:
        return manifests.max_side(self.paths)
