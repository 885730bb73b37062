"""Opens images wherever they lie.

| the path | what is read | order |
|---|---|---|
| a folder of tars or parquet files | these | see below |
| any other folder | a folder for each class, as torchvision's ImageFolder | class by class, by name |
| `.zip` | a folder for each class in it | class by class, by name |
| `.parquet` | rows with an image and a label, as Hugging Face `datasets` writes them | that of the rows |
| `.csv`, `.tsv`, `.txt` | a table of images and their classes | that of the table |
| anything else | WebDataset tars | that of the tars |

A folder or zip with several splits in it stands for the one that is asked for.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitwarm.data.class_folders import ANNOTATIONS, labelled, place_of_split
from vitwarm.data.listed import ListSource, annotated
from vitwarm.data.lists import read_text
from vitwarm.data.loose_files import FolderSource
from vitwarm.data.parquet import ParquetPart, ParquetSource
from vitwarm.data.patterns import find_paths
from vitwarm.data.shards import ShardSet, expand
from vitwarm.data.source import ImageSource, Part
from vitwarm.data.splits import split_folder
from vitwarm.data.tree import list_tree
from vitwarm.data.zipped import ZipPart, ZipSource, text_in_zip, tree_of_zip, zip_index
from vitwarm.errors import UserError

TAR, PARQUET, ZIP, LIST, FOLDER = "tar", "parquet", "zip", "list", "folder"
_SUFFIXES = {".parquet": PARQUET, ".zip": ZIP, ".csv": LIST, ".tsv": LIST, ".txt": LIST}


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
    kinds: dict[str, Path] = {}
    for path in paths:
        kinds.setdefault(kind_of(path), path)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise UserError(f"{first} is of kind {one}, {second} of kind {other}; give images of one kind")
    kind = next(iter(kinds), TAR)
    if kind == TAR:
        return ShardSet(expand(specs, split))
    if kind == PARQUET:
        return ParquetSource(expand([_with_parquet(path) for path in paths], split, ".parquet"))
    if len(paths) > 1:
        raise UserError(f"{paths[1]}: is a second set of images; give one, or make shards of all (vitwarm make-shards)")
    return {LIST: _open_list, ZIP: _open_zip, FOLDER: _open_folder}[kind](paths[0], split)


def open_part(path: Path) -> Part | None:
    """A zip or a parquet file, with all its images; None for any other file."""
    if path.suffix.lower() == ".zip":
        return ZipPart(path, zip_index(path))
    return ParquetPart(path) if path.suffix.lower() == ".parquet" else None


def kind_of(path: Path) -> str:
    """What a path holds: `tar`, `parquet`, `zip`, `list` or `folder`, that is a folder for each class."""
    if not path.is_dir():
        return _SUFFIXES.get(path.suffix.lower(), TAR)
    try:
        if _holds(path, ".tar"):
            return TAR
        return PARQUET if _holds(_with_parquet(path), ".parquet") else FOLDER
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _holds(folder: Path, suffix: str) -> bool:
    places = [folder, *(one for one in folder.iterdir() if split_folder(one.name) and one.is_dir())]
    return any(any(place.glob(f"*{suffix}")) for place in places)


def _with_parquet(path: Path) -> Path:
    """The folder of parquet files: it, or `data` in it, as in repositories of the Hub."""
    inner = path / "data"
    return inner if inner.is_dir() and not _holds(path, ".parquet") and _holds(inner, ".parquet") else path


def _open_list(path: Path, split: str | None) -> ImageSource:
    if path.name == ANNOTATIONS:  # whose images lie in a folder beside it
        path = path.parent
        return _open_folder(path, split)
    return ListSource(path)


def _open_folder(path: Path, split: str | None) -> ImageSource:
    root = list_tree(os.fspath(path), Counter())
    place = root if (path / ANNOTATIONS).is_file() else place_of_split(root, split)
    table = Path(place.path) / ANNOTATIONS
    found = annotated(read_text(table, "list"), table, place.below) if table.is_file() else labelled(place)
    return FolderSource(Path(place.path), *found)


def _open_zip(path: Path, split: str | None) -> ImageSource:
    index = zip_index(path)
    place = place_of_split(tree_of_zip(path, index), split)
    table = f"{place.path}/{ANNOTATIONS}"
    text = text_in_zip(path, table[len(str(path)) + 1 :]) if place.images or len(place.folders) == 1 else None
    found = annotated(text, table, place.below) if text is not None else labelled(place)
    return ZipSource(path, index, *found)
