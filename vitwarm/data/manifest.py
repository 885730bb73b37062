"""manifest.json, which describes the shards beside it: classes, splits, counts, bytes, SHA-256."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vitwarm.errors import UserError
from vitwarm.reading import parse_json

NAME = "manifest.json"
VERSION = 1


@dataclass
class Shard:
    """One tar.

    Attributes:
        name: file name.
        samples: labelled images in it.
        bytes: size of the file.
        sha256: hash of the file, hexadecimal.
    """

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass
class SplitManifest:
    """One part of a data set.

    Attributes:
        samples: labelled images.
        bytes: size of all tars.
        class_counts: images of each class number.
        shuffle_seed: seed of the order; None where the source's own order was kept, or is unknown.
        shards: the tars, in order.
        max_side: larger images were made smaller until their shorter side was this, in pixels; None where none was.
        quality: of the JPEGs that these are; None where it is not known.
        notes: peculiarity -> how many images have it.
        stored_as_png: key and reason of each image whose bytes are not the source's own.
        damaged: key and reason of each image of the source that was left out.
    """

    samples: int
    bytes: int
    class_counts: list[int]
    shuffle_seed: int | None
    shards: list[Shard]
    max_side: int | None = None
    quality: int | None = None
    notes: dict[str, int] = field(default_factory=dict)
    stored_as_png: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class ShardManifest:
    """The content of manifest.json; it does not depend on the machine, the time or the number of workers.

    Attributes:
        kind: kind of the source.
        classes: name of each class number; None where tars were not made here.
        splits: `train`, `val`, ...
        plan: SHA-256 of the list of samples and the options; None where tars were not made here.
        format_version: version of this format.
    """

    kind: str
    classes: list[str] | None
    splits: dict[str, SplitManifest]
    plan: str | None = None
    format_version: int = VERSION

    def dump(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def shards(self) -> dict[str, Shard]:
        """File name -> tar, over all splits."""
        return {shard.name: shard for split in self.splits.values() for shard in split.shards}

    def max_side(self, names: Sequence[str]) -> int | None:
        """The shorter side, in pixels, to which larger images of these tars were brought; None where none was."""
        wanted = set(names)
        splits = (one for one in self.splits.values() if wanted & {shard.name for shard in one.shards})
        return min((split.max_side for split in splits if split.max_side is not None), default=None)


def load(text: str | bytes, where: object) -> ShardManifest:
    """Read a manifest.

    Args:
        text: content of the file.
        where: its place, for messages.

    Raises:
        UserError: it is damaged, or of another format version.
    """
    try:
        tree = parse_json(text, where)
        version = tree["format_version"]
        if version == VERSION:
            splits = {
                name: SplitManifest(**split | {"shards": [Shard(**shard) for shard in split["shards"]]})
                for name, split in tree.pop("splits").items()
            }
            manifest = ShardManifest(splits=splits, **tree)
            names = [] if manifest.classes is None else manifest.classes
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("its classes are no list of names")
            for shard in manifest.shards().values():
                counts = isinstance(shard.samples, int) and isinstance(shard.bytes, int)
                if shard.name != PurePosixPath(shard.name).name or not counts:
                    raise ValueError(f"{shard.name!r} is not a file name, or its count is not a number")
            return manifest
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{where}: is not a manifest of shards; make it again with vitwarm make-shards") from None
    raise UserError(f"{where}: has format version {version!r}, known is {VERSION}; make it again or update vitwarm")


def beside(folder: Path) -> ShardManifest | None:
    """The manifest in a folder of tars; None where there is none.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    place = folder / NAME
    try:
        return load(place.read_bytes(), place) if place.is_file() else None
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror})") from None


MOST_CLASSES = 1_000_000  # a manifest counts the images of each


class ClassList(NamedTuple):
    """Class names in the order of their numbers.

    Attributes:
        names: the names.
        where: who says so, for messages.
    """

    names: list[str]
    where: str

    def check(self, other: "ClassList") -> None:
        """Refuse another list that gives a number another name, or has more classes.

        Raises:
            UserError: names the first difference.
        """
        for number, name in enumerate(other.names):
            own = self.names[number] if number < len(self.names) else None
            if own != name:
                ours = f"{own!r} in {self.where}" if own is not None else f"beyond the classes of {self.where}"
                raise UserError(
                    f"class {number} is {name!r} in {other.where}, but {ours}; number both alike: make-shards "
                    "classes=FILE takes the names, or the other's manifest.json"
                )


def check_classes(one: ClassList | None, other: ClassList | None, one_where: str, other_where: str) -> None:
    """Refuse sets that number their classes differently, as far as their names tell.

    Where one has numbers alone, names that are numbers must be their own: sorted by name, 10 comes before 2.

    Args:
        one, other: class names of two sets; None where they are not known.
        one_where, other_where: the sets, for messages.

    Raises:
        UserError: names the first difference.
    """
    if one is not None and other is not None:
        one.check(other)
    elif (known := one or other) is not None and all(name.isascii() and name.isdigit() for name in known.names):
        for number, name in enumerate(known.names):
            if int(name) != number:
                bare = other_where if known is one else one_where
                raise UserError(
                    f"class {number} is {name!r} in {known.where}, which is sorted by name, but {bare} has numbers; "
                    "number both alike (vitwarm make-shards classes=FILE)"
                )


def class_list(tars: Sequence[Path]) -> ClassList | None:
    """The class names in the manifests beside some tars; None where no manifest has any.

    Raises:
        UserError: two manifests do not agree, or one is damaged or does not describe its tar.
    """
    found: ClassList | None = None
    for folder in dict.fromkeys(tar.parent for tar in tars):
        if (manifest := beside(folder)) is None:
            continue
        listed = manifest.shards()
        own = [tar for tar in tars if tar.parent == folder and tar.name in listed]
        for tar in own:
            if tar.is_file() and tar.stat().st_size != listed[tar.name].bytes:
                raise UserError(f"{tar}: is not the tar that {folder / NAME} describes; copy both again")
        if not manifest.classes or not own:
            continue
        names = ClassList(manifest.classes, str(folder / NAME))
        shorter, found = sorted([names, found or names], key=lambda one: len(one.names))
        found.check(shorter)
    return found


def max_side(tars: Sequence[Path]) -> int | None:
    """As `ShardManifest.max_side`, of tars with manifests beside them; None where none says so.

    Raises:
        UserError: a manifest is damaged.
    """
    found = {folder: beside(folder) for folder in {tar.parent for tar in tars}}
    sides = [known.max_side([t.name for t in tars if t.parent == folder]) for folder, known in found.items() if known]
    return min((side for side in sides if side is not None), default=None)
