"""Selects the images of a subset of a training set, and names each one, so that others can select the same."""

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np

from vitwarm.amounts import Amount
from vitwarm.data.grouping import IMAGE_SUFFIXES
from vitwarm.data.lists import read_rows, read_text
from vitwarm.data.making.samples import Keys
from vitwarm.data.source import ImageSource
from vitwarm.errors import UserError
from vitwarm.files import expanded
from vitwarm.keys import keyed_rng

SUBSET = "subset.txt"  # file of a run folder


@dataclass(frozen=True)
class Subset:
    """A part of a shard set.

    Attributes:
        ids: (k,) int64, the images, ascending.
        names: (k,) `shard.tar:key`, likewise; a file of them, one a line, selects the same images again.
    """

    ids: np.ndarray
    names: list[str]

    @property
    def text(self) -> str:
        """The content of the file of names."""
        return "".join(f"{name}\n" for name in self.names)

    @property
    def sha256(self) -> str:
        """SHA-256 of `text`; two runs with the same hash trained on the same images."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def select_subset(shards: ImageSource, spec: str, seed: int) -> Subset:
    """Select the images that a recipe's `images.subset` names.

    Args:
        shards: the full set.
        spec: a share ('10%') or a number ('1300 samples') of images, drawn with equal counts a class; or a file of
            names, one a line: file names as in SimCLR's `1percent.txt`, keys of samples, or what `Subset.text` holds.
        seed: seed of the draw; unused by a file.

    Raises:
        UserError: more images than there are, or names that are not in the set.
    """
    if is_list(spec):
        ids = _named(shards, expanded(spec))
    else:
        ids = balanced(shards.labels, subset_size(spec, len(shards)), seed)
    return Subset(ids, [shards.key(int(sample)) for sample in ids])


def balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw equally many images of each class at random; classes that are too small give all they have.

    The images of a class come in a fixed random order, and so do the classes, of which the first ones give one image
    more when `count` does not divide: a larger subset of the same seed contains every smaller one.

    Args:
        labels: (n,) class of each image.
        count: images to draw, at most n.
        seed: seed of the draw.

    Returns:
        (count,) int64, ascending.
    """
    rng = keyed_rng(seed, "images", "subset")
    order = rng.permutation(labels.size)
    _, classes = np.unique(labels, return_inverse=True)
    by_class = order[np.argsort(classes[order], kind="stable")]  # class after class, each in random order
    sizes = np.bincount(classes)
    round_ = np.arange(labels.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = rng.permutation(sizes.size)[classes[by_class]]
    return np.sort(by_class[np.lexsort((turn, round_))[:count]])  # in each round every class gives its next image


def subset_size(spec: str, num_samples: int) -> int:
    """Number of images that a share of `num_samples`, or a number, stands for.

    Raises:
        UserError: it is neither, or more than there are.
    """
    try:
        amount = Amount.parse(spec, "images.subset")
    except UserError as error:
        raise UserError(f"{error}; a file of names has a / in it, or ends in .txt") from None
    if amount.unit not in ("%", "samples"):
        raise UserError(f"images.subset: cannot use {spec!r}; write a share '10%', '1300 samples', or a .txt of names")
    exact = amount.value / 100 * num_samples if amount.unit == "%" else amount.value
    count = math.floor(exact + Fraction(1, 2))
    if not 0 < count <= num_samples:
        raise UserError(f"images.subset: {spec} makes {count} images; the set has {num_samples}, and one is the least")
    return count


def read_names(path: Path) -> list[str]:
    """The first column of a list of names; see `lists.read_rows`.

    Raises:
        UserError: not a readable list.
    """
    names = [row[0] for row in read_rows(path, "images.subset") if row[0]]
    if not names:
        raise UserError(f"images.subset: {path} holds no names")
    return names


def is_list(spec: str) -> bool:
    """Whether `images.subset` names a file."""
    return spec.endswith(".txt") or "/" in spec


def _named(shards: ImageSource, path: Path) -> np.ndarray:
    samples: dict[str, list[int]] = defaultdict(list)
    for sample in range(len(shards)):
        name = shards.key(sample)
        for alias in {name, name.partition(":")[2], _stem(name)}:
            samples[alias].append(sample)
    lines = [line.strip() for line in read_text(path, "images.subset").splitlines() if line.strip()]
    wanted = (
        lines if lines and all(line in samples for line in lines) else read_names(path)
    )  # names may hold spaces and commas
    # The full name first, so that a list of ours is exact; after another sharding the keys still match.
    found = [samples.get(name) or samples.get(_stem(name)) or samples.get(_made(name), []) for name in wanted]
    for name, matches in zip(wanted, found, strict=True):
        if not matches:
            raise UserError(
                f"images.subset: {path}: {sum(not m for m in found)} of {len(wanted)} names are not in images.train, "
                f"first {name}; lines are file names such as n01440764_10026.JPEG, or keys"
            )
        if len(matches) > 1:
            raise UserError(f"images.subset: {path}: {name} is {len(matches)} images; write TAR:KEY, as in subset.txt")
    ids = np.unique([matches[0] for matches in found])
    if ids.size < len(found):
        raise UserError(f"images.subset: {path} names {len(found) - ids.size} images twice; each counts once")
    return ids


def _stem(name: str) -> str:
    """'train-000.tar:n01/n01_5', 'n01/n01_5.JPEG' and 'n01_5.JPEG' are one image: n01_5."""
    base = PurePosixPath(name.rpartition(":")[2]).name
    stem, _, suffix = base.rpartition(".")
    return stem if suffix.lower() in IMAGE_SUFFIXES else base


def _made(name: str) -> str:
    """The key that `vitwarm make-shards` gives to 'ant/5.jpg': ant_5."""
    path = PurePosixPath(name)
    return Keys().make(path.parent.name, path.name if path.suffix else f"{path.name}.jpg")
