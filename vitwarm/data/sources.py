"""Opens images wherever they lie: tars, or a tree with a folder for each class.

| the path is | what is read | order |
|---|---|---|
| a folder, in which no tars are | a folder for each class (torchvision's ImageFolder) | class by class, by name |
| anything else | WebDataset tars | that of the tars |

A folder with several splits in it stands for the one that is asked for.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitwarm.data.class_folders import labelled, place_of_split
from vitwarm.data.loose_files import FolderSource
from vitwarm.data.patterns import find_paths
from vitwarm.data.shards import ShardSet, expand
from vitwarm.data.source import ImageSource
from vitwarm.data.splits import split_folder
from vitwarm.data.tree import list_tree
from vitwarm.errors import UserError

TARS, FOLDER = "tars", "class folders"


def open_images(spec: str | os.PathLike | Sequence[str | os.PathLike], split: str | None = None) -> ImageSource:
    """Open the images that a specification names.

    Args:
        spec: a path, a glob, a brace pattern, several with `::` between them, or a list of these.
        split: `train` or `val`: what a path with several splits in it stands for.

    Raises:
        UserError: nothing there, or no labelled images.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    names = [os.fspath(one) for one in specs if os.fspath(one)]
    local = [name for name in names if "://" not in name and not name.startswith("pipe:")]
    paths = [Path(path) for name in local for path in find_paths(name)]
    kinds = {_kind(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise UserError(f"{first} is {one}, {second} is {other}; give images of one kind")
    kind = next(iter(kinds), TARS)
    if kind == TARS:
        return ShardSet(expand(specs, split))
    if len(paths) > 1:
        raise UserError(
            f"{paths[1]}: is a second set of {kind}; give one, or make shards of each (vitwarm make-shards)"
        )
    place = place_of_split(list_tree(os.fspath(paths[0]), Counter()), split)
    return FolderSource(Path(place.path), *labelled(place))


def _kind(path: Path) -> str:
    if path.is_dir():
        folders = [path, *(one for one in path.iterdir() if split_folder(one.name) and one.is_dir())]
        return TARS if any(any(folder.glob("*.tar")) for folder in folders) else FOLDER
    return TARS
