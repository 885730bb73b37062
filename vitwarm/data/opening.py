"""Opens the images of a recipe, or counts them for an estimate."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vitwarm.config import Config, ImagesConfig
from vitwarm.data.digits import digits_shards
from vitwarm.data.download import DownloadCache
from vitwarm.data.manifest import check_classes
from vitwarm.data.overlap import shared_images
from vitwarm.data.remote import is_url
from vitwarm.data.source import ImageSource, check_labels
from vitwarm.data.sources import open_images
from vitwarm.data.streaming import Stream, open_stream
from vitwarm.data.subset import is_list, read_names, subset_size
from vitwarm.data.web import shown
from vitwarm.errors import UserError
from vitwarm.files import expanded

Split = Literal["train", "val"]

IMAGENET_CLASSES = 1000
IMAGENET: dict[Split, int] = {"train": 1_281_167, "val": 50_000}
IMAGENET_BYTES: dict[Split, int] = {
    "train": 147_897_477_120,
    "val": 6_744_924_160,
}  # ILSVRC2012's archives; shards keep their JPEGs


def is_streamed(images: ImagesConfig) -> bool:
    """Whether the training images are read from elsewhere as they come."""
    return is_url(images.train) and images.cache is None


def open_source(spec: str, split: Split, key: str, cache: str | None = None) -> ImageSource:
    """Open the images of a specification; `digits` is scikit-learn's digits, written to the cache on first use.

    Args:
        spec: see `sources.open_images`, or `digits`; or URLs, which are downloaded to `cache`.
        split: what a folder with several splits stands for.
        key: the recipe key of the specification, which starts every error message.
        cache: `images.cache`.

    Raises:
        UserError: nothing there, or not a set of labelled images.
    """
    try:
        if is_url(spec):
            if cache is None:
                raise UserError(f"{shown(spec)}: is not on a disk; a run with images.cache=DIR downloads it")
            spec = DownloadCache(cache).local(spec, split)
        return open_images(digits_shards("test" if split == "val" else split) if spec == "digits" else spec, split)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def open_training(config: Config) -> ImageSource | Stream:
    """Open the training images of a recipe, on a disk or streamed.

    Raises:
        UserError: nothing there, not a set of labelled images, or keys that a stream cannot use.
    """
    images = config.images
    if not is_streamed(images):
        if images.train_samples is not None:
            raise UserError("images.train_samples is for streamed tars (URLs); these are counted: leave it out")
        return open_source(images.train, "train", "images.train", images.cache)
    for key, default in (("subset", None), ("repeats", 1)):
        if getattr(images, key) != default:
            raise UserError(f"images.{key} needs random access, which a stream does not have; set images.cache=DIR")
    return open_stream(images.train, images.train_samples, config.model.num_classes)


def open_validation(config: Config, train: ImageSource | Stream) -> ImageSource | None:
    """Open the validation images of a recipe, with labels that mean what those of training mean; None without any.

    Raises:
        UserError: nothing there, not a set of labelled images, or classes that are numbered otherwise.
    """
    if not config.images.val:
        return None
    val = open_source(config.images.val, "val", "images.val", config.images.cache)
    check_classes(train.classes, val.classes, "images.train", "images.val")
    return val


def count_classes(given: int | None, train: ImageSource | Stream, val: ImageSource | None) -> int:
    """How many classes the head has: those that are given, or as many as the data name, or number from 0 on.

    Raises:
        UserError: an image of another class.
    """
    named = train.classes or (val.classes if val is not None else None)
    if isinstance(train, Stream):
        count = train.num_classes
    else:
        count = given or (len(named.names) if named is not None else int(train.labels.max()) + 1)
    if named is None or given:
        limit, remedy = f"model.num_classes={count}", "set model.num_classes to at least {}"
    else:
        limit = f"the {count} classes of {named.where}"
        remedy = "number both alike, from 0 on, or, if that list lacks some, set model.num_classes to at least {}"
    for source in (train, val):
        if isinstance(source, ImageSource):
            check_labels(source, count, limit, remedy.format(source.labels.max() + 1))
    return count


def describe(train: ImageSource | Stream, used: int, val: ImageSource | None) -> dict[str, Any]:
    """What a run reads, by split: images, classes, files and bytes. JSON-able.

    Args:
        train: training images.
        used: how many of them are trained on.
        val: validation images.

    Raises:
        UserError: images that are validated on are trained on.
    """
    found: dict[str, Any] = {"train": _describe(train) | {"used": used}}
    if val is not None:
        found["val"] = _describe(val) | {"in_train": 0}
        if isinstance(train, Stream):
            train.check_disjoint(val.paths)
        else:
            found["val"]["in_train"], found["val"]["example"] = shared_images(train, val)
    return found


def _describe(shards: ImageSource | Stream) -> dict[str, Any]:
    names = shards.classes.names if shards.classes is not None else None
    found = {"images": len(shards), "kind": shards.kind, "files": shards.files, "bytes": shards.num_bytes}
    if isinstance(shards, Stream):
        found["max_side"] = shards.max_side
        return found | ({"classes": len(names), "first": names[0], "last": names[-1]} if names else {})
    first, last = int(shards.labels.min()), int(shards.labels.max())
    return found | {
        "classes": int(np.unique(shards.labels).size),
        "first": names[first] if names else first,
        "last": names[last] if names else last,
        "deep": shards.deep,
        "max_side": shards.max_side,
    }


def data_line(found: dict[str, Any]) -> str:
    """What `describe` found, in words."""
    parts = []
    for split, facts in found.items():
        images = f"{facts['images']:,} images"
        if facts.get("used", facts["images"]) < facts["images"]:
            images = f"{facts['used']:,} of {images}"
        ends = " ... ".join(_shown(facts[end]) for end in ("first", "last") if end in facts)
        classes = f" of {facts['classes']:,} classes ({ends})" if ends else ""
        size = f", {_size(facts['bytes'])}" if facts["bytes"] is not None else ""
        parts.append(f"{split} {images}{classes} in {counted(facts['files'], facts['kind'])}{size}")
        if facts.get("deep"):
            parts[-1] += f" ({facts['deep']:,} of 16 bits, scaled to 8; plain timm would clip them)"
        if facts.get("max_side"):
            parts[-1] += f" (larger ones were made smaller: shorter side {facts['max_side']})"
        if facts.get("in_train"):
            parts[-1] += f" ({facts['in_train']:,} are training images too: {facts['example']})"
    return f"images: {'; '.join(parts)}"


def counted(count: int, what: str) -> str:
    """`2 tars`, `1 folder`."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _shown(name: str | int) -> str:
    return str(name) if str(name).isprintable() else repr(name)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


@dataclass(frozen=True)
class ImageCounts:
    """Numbers of images for an estimate.

    Attributes:
        full: training images.
        used: those of them that are trained on.
        val: validation images.
        classes: of the training images.
        facts: label -> where the numbers are from, in words.
    """

    full: int
    used: int
    val: int
    classes: int
    facts: dict[str, str]


def count_images(config: Config, given: int | None) -> ImageCounts:
    """Count the images of a recipe, or take ImageNet-1k's numbers where its shards are not here.

    Args:
        config: the recipe.
        given: size of the training set, for where it cannot be counted.

    Raises:
        UserError: an unknown number of images, or another one than is given.
    """
    images = config.images
    imagenet = config.model.num_classes in (None, IMAGENET_CLASSES)
    counts: dict[Split, int] = {}
    classes = IMAGENET_CLASSES
    sources = []
    specs: list[tuple[Split, str]] = [("train", images.train), ("val", images.val)]
    for split, spec in specs:
        told = (given or images.train_samples) if split == "train" else None
        if not spec:
            counts[split], source = (told, "as told") if told else (0, "none")
        else:
            try:
                if is_url(spec) and not (images.cache and DownloadCache(images.cache).holds(spec, split)):
                    raise UserError(f"images.{split}: {shown(spec)} is not downloaded yet")
                shards = open_source(spec, split, f"images.{split}", images.cache)
                size = shards.num_bytes / 1e9
                if split == "train":
                    classes = count_classes(None, shards, None)
                counts[split], source = len(shards), f"in {counted(shards.files, shards.kind)}, {size:.1f} GB"
            except UserError as error:
                if split == "train" and not (imagenet or told):
                    raise UserError(f"{error}; or say train_images=N") from error
                counts[split] = told or (IMAGENET[split] if imagenet else 0)
                size = IMAGENET_BYTES[split] / 1e9
                source = f"ImageNet-1k, {size:.1f} GB; its shards are not here" if imagenet else "not here: not counted"
                source = "as told" if told else source
            else:
                if told not in (None, counts[split]):
                    raise UserError(
                        f"images.train holds {counts[split]:,} images, not {told:,}: leave train_images and "
                        "images.train_samples out, or say the right number"
                    )
        sources.append(f"{counts[split]:,} {split} ({source})")
    full, facts = counts["train"], {"images": ", ".join(sources)}
    used = full
    if subset := images.subset:
        used = len(read_names(expanded(subset))) if is_list(subset) else subset_size(subset, full)
    if used < full:
        facts["subset"] = f"{used:,} of them (images.subset={subset})"
    return ImageCounts(full, used, counts["val"], classes, facts)
