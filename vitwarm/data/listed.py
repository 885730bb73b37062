"""Lists that name images and their classes: tables of paths, Kaggle's of ImageNet, Tiny-ImageNet's annotations."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitwarm.data.grouping import is_hidden
from vitwarm.data.lists import parse_labelled, read_text
from vitwarm.data.loose_files import FilesPart
from vitwarm.data.manifest import MOST_CLASSES, ClassList
from vitwarm.data.source import ImageSource
from vitwarm.data.tree import is_image
from vitwarm.errors import UserError

_IMAGENET = "ILSVRC/Data/CLS-LOC"  # where Kaggle's archive has the images of the lists beside it
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?|nan", re.IGNORECASE)


class ListSource(ImageSource):
    """Images that a table names, one a row, in its order; see `lists.parse_labelled`.

    Names are paths from the folder of the table on, or from one folder in it that holds them all. One without the
    ending of an image is that of a file with any. Classes are numbered by name; if all of them are numbers, they are
    the numbers.

    Args:
        path: the table.

    Raises:
        UserError: no such table, an image that is not there or is named twice, or numbers and names mixed.
    """

    kind = "list"

    def __init__(self, path: Path):
        rows = parse_labelled(read_text(path, "list"), path)
        if not rows:
            raise UserError(f"{path}: names no images; a row is a path and a class")
        labels, classes = numbered([name for _, name in rows], path)
        folder, names = _found(path, [name for name, _ in rows])
        part = FilesPart(path, folder, [os.fsencode(name) for name in names], labels)
        missing = [names[row] for row in part.unreadable if not os.path.lexists(folder / names[row])]
        if missing:
            raise UserError(f"{path}: {len(missing):,} of its {len(names):,} images are not there, first {missing[0]}")
        super().__init__([part], ClassList(classes, str(path)) if classes is not None else None)


def numbered(names: Sequence[str], where: object) -> tuple[list[int], list[str] | None]:
    """Class numbers of class names, in sorted order, and the classes; numbers stay as they are, and have no names.

    Raises:
        UserError: some are numbers and some are not, or they are such as no class has (-1, 1.0, a billion).
    """
    numbers = [name.isascii() and name.isdigit() and int(name[:10]) < MOST_CLASSES for name in names]
    if all(numbers):
        return [int(name) for name in names], None
    if all(map(_NUMBER.fullmatch, names)):
        odd = names[numbers.index(False)]
        raise UserError(f"{where}: {odd!r} is not the number of a class; number them 0, 1, 2, ..., or name them")
    if any(numbers):
        number, other = names[numbers.index(True)], names[numbers.index(False)]
        raise UserError(f"{where}: has class numbers ({number}) and class names ({other!r}); give one of them for all")
    classes = sorted(set(names))
    own = {name: number for number, name in enumerate(classes)}
    return [own[name] for name in names], classes


def annotated(text: str, where: object, images: Sequence[str]) -> tuple[list[str], list[tuple[int, str]]]:
    """The classes, and (class number, path) of the images in a folder that a table beside it names: class by class.

    Args:
        text: the table, such as Tiny-ImageNet's `val_annotations.txt`.
        where: its place, for messages.
        images: paths of the images there.

    Raises:
        UserError: an image is not there, or has no label.
    """
    rows = parse_labelled(text, where)
    known = {os.path.basename(image): image for image in images}
    if lost := sorted({name for name, _ in rows} ^ known.keys()):
        what = "is not there" if lost[0] not in known else "is not in it"
        raise UserError(f"{where}: the image {lost[0]} {what} ({len(lost)} such names); copy the folder again")
    labels, classes = numbered([name for _, name in rows], where)
    if classes is None:
        raise UserError(f"{where}: has numbers for classes; it must name them")
    return classes, sorted((label, known[name]) for label, (name, _) in zip(labels, rows, strict=True))


def _found(path: Path, names: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder from which the names start, and the names with their endings."""
    places = Counter(os.path.normpath(path.parent / name) for name in names)
    if len(places) < len(names):
        twice = next(name for name in names if places[os.path.normpath(path.parent / name)] > 1)
        raise UserError(f"{path}: names {twice} twice; each image counts once")
    inner = [path.parent, path.parent / _IMAGENET]
    folders = [one for folder in inner if folder.is_dir() for one in sorted(folder.iterdir()) if one.is_dir()]
    inside = [folder for folder in folders if not is_hidden(folder.name)]
    endings: dict[str, dict[str, str]] = {}

    def whole(folder: Path, name: str) -> str | None:
        """The name with its ending; None where no such file is."""
        if is_image(name):
            return name if os.path.lexists(folder / name) else None
        parent, base = os.path.split(name)
        at = os.path.join(folder, parent)
        if at not in endings:
            there = sorted(os.listdir(at), reverse=True) if os.path.isdir(at) else []
            endings[at] = {os.path.splitext(one)[0]: one for one in there if is_image(one)}
        return os.path.join(parent, endings[at][base]) if base in endings[at] else None

    having = [path.parent] if whole(path.parent, names[0]) is not None else []
    having = having or [folder for folder in inside if whole(folder, names[0]) is not None]
    if not having:
        raise UserError(f"{path}: its image {names[0]} is neither beside it nor in a folder beside it; move the list")
    if len(having) > 1:
        both = " and ".join(str(folder) for folder in having[:2])
        raise UserError(f"{path}: its image {names[0]} is in {both}; write the folder in front of the names")
    return having[0], [whole(having[0], name) or name for name in names]
