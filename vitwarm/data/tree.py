"""Folders of images, listed once: what is hidden or no image is counted, links are followed, names are checked."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from vitwarm.data.grouping import IMAGE_SUFFIXES, is_hidden
from vitwarm.errors import UserError

_DEEPEST = 100


@dataclass(frozen=True)
class Folder:
    """A folder and what lies below it, by name.

    Attributes:
        path: its path.
        folders: the folders in it.
        images: paths of the images directly in it.
    """

    path: str
    folders: list["Folder"]
    images: list[str]

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @cached_property
    def below(self) -> list[str]:
        """Paths of all images in it and below it."""
        return self.images + [image for folder in self.folders for image in folder.below]

    @property
    def filled(self) -> list["Folder"]:
        """The folders in it that have images in them or below."""
        return [folder for folder in self.folders if folder.below]


def list_tree(path: str, ignored: Counter[str]) -> Folder:
    """List a folder to its leaves, in an order that does not depend on the file system.

    Args:
        path: the folder.
        ignored: gets how many files and folders are left out, by what they are.

    Raises:
        UserError: a folder cannot be read, lies too deep, or has a name that is no text.
    """
    listing = _Listing(ignored)
    root = listing.list(path, 0)
    while listing.links:  # after all real folders, which are read where they are
        parent, link, depth = listing.links.pop(0)
        parent.folders.append(listing.list(link, depth))
        parent.folders.sort(key=lambda folder: folder.name)
    return root


class _Listing:
    def __init__(self, ignored: Counter[str]):
        self.ignored, self.seen = ignored, set[tuple[int, int]]()
        self.links: list[tuple[Folder, str, int]] = []

    def list(self, path: str, depth: int) -> Folder:
        folder = Folder(path, [], [])
        if depth > _DEEPEST:
            raise UserError(f"{path}: lies more than {_DEEPEST} folders deep")
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in self.seen:
                self.ignored["links to folders that are read elsewhere"] += 1
                return folder
            self.seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            kind = _kind(entry)
            if is_hidden(entry.name):
                self.ignored[f"hidden {'folders' if kind == 'folder' else 'files'}"] += 1
            elif kind == "folder":
                if not entry.name.isprintable():
                    raise UserError(f"{os.fsencode(entry.path)!r}: its name is not readable text in UTF-8; rename it")
                if entry.is_symlink():
                    self.links.append((folder, entry.path, depth + 1))
                else:
                    folder.folders.append(self.list(entry.path, depth + 1))
            elif not is_image(entry.name):
                shown = suffix if suffix.isprintable() else "oddly named"
                self.ignored[f"{shown or 'nameless'} files"] += 1
            elif kind == "other":
                self.ignored["pipes and devices"] += 1
            else:
                folder.images.append(entry.path)
        return folder


def tree_of_names(path: str, names: Iterable[str], ignored: Counter[str]) -> Folder:
    """The tree of an archive, as `list_tree` would list it once extracted.

    Args:
        path: the archive, with which all paths start.
        names: of the images in it, with slashes between the folders; one that ends in a slash is a folder.
        ignored: gets how many files are left out, by what they are.

    Raises:
        UserError: a folder has a name that is no text.
    """
    root = Folder(path, [], [])
    folders = {"": root}
    for name in sorted(names, key=lambda name: name.split("/")):
        *above, own = [part for part in name.split("/") if part != "."]
        if is_hidden(own) or any(is_hidden(part) or not part for part in above):
            ignored["hidden files" if own else "hidden folders"] += 1
            continue
        for depth in range(1, len(above) + 1):
            if (place := "/".join(above[:depth])) not in folders:
                if not above[depth - 1].isprintable():
                    raise UserError(f"{path}: {place!r} in it is not readable text in UTF-8; rename it")
                folders[place] = Folder(f"{path}/{place}", [], [])
                folders["/".join(above[: depth - 1])].folders.append(folders[place])
        if own:
            folders["/".join(above)].images.append(f"{path}/{name}")
    return root


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1][1:].lower() in IMAGE_SUFFIXES


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        # A link that leads nowhere is an image that cannot be read, which is counted where images are read.
        return "file" if entry.is_file() or not os.path.exists(entry.path) else "other"
    except OSError:  # links in a circle
        return "file"
