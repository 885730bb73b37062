"""Zips, parquet files, lists and tars, which training reads too: opened by the same function, one source a split."""

import os
from pathlib import Path

from vitwarm.data.making.samples import Keys, Sample, Source, SourceSplit
from vitwarm.data.source import ImageSource
from vitwarm.data.sources import ZIP, open_images
from vitwarm.data.splits import NoSplit, split_folder, split_of
from vitwarm.errors import UserError


def read_packed(kind: str, path: Path, split: str | None, known: list[str] | None) -> Source:
    """The splits of a zip, of parquet files, of a list or of tars; classes as they number them.

    Args:
        kind: what it is.
        path: a file, or a folder of parquet files or tars.
        split: name of the one split that it is; None goes by the names in it, of a single one else by its own.
        known: names of all classes, in the order of their numbers, for a source that has numbers alone.

    Raises:
        UserError: no labelled images, no class names, or splits that name their classes differently.
    """
    if split is not None:
        sources, ignored = {split: open_images(path, split)}, list[str]()
    else:
        sources, ignored = _splits(path)
    first = next(iter(sources.values()))
    classes = first.classes.names if first.classes is not None else known
    if classes is None:
        raise UserError(f"{path}: has class numbers without names; give these, in their order, by classes=FILE")
    if classes is known and first.labels.max() >= len(classes):
        raise UserError(f"classes: has {len(classes)} names, and {path} the class number {first.labels.max()}")
    splits = [
        SourceSplit(name, _samples(source, classes), max_side=source.max_side) for name, source in sources.items()
    ]
    return Source(kind, classes, splits, ignored)


def _splits(path: Path) -> tuple[dict[str, ImageSource], list[str]]:
    """The splits, each under the first name that it stands for, and in words what is there and not used."""
    sources = {name: open_images(path, name) for name in ("train", "val")}
    ignored = []
    try:
        sources["test"] = open_images(path, "test")
    except NoSplit:
        pass
    except UserError as error:  # that of a benchmark has no labels
        ignored.append(f"test ({error})")
    found: dict[str, ImageSource] = {}
    for name, source in sources.items():
        if all(source.identity != other.identity for other in found.values()):
            found[name] = source
    if len(found) == 1:
        (source,) = found.values()
        own = split_of(path.stem) if path.is_file() else None
        found = {_split_named(source, path) or own or "train": source}
    return found, ignored


def _split_named(source: ImageSource, root: Path) -> str | None:
    """The split that the folders within a source, or the names of its tars and parquet files, say that it is."""
    if source.kind == ZIP:  # its keys are paths: folders, class, image
        folders = source.parts[0].index.key(0).split("/")[:-2]
        words = {split_folder(folder) for folder in folders}
    else:
        paths = [part.path for part in source.parts if part.path != root]
        inner = [path.parent.name if path.parent != root else "" for path in paths]
        words = {split_of(path.stem) or split_folder(name) for path, name in zip(paths, inner, strict=True)}
    known = words - {None}
    return known.pop() if len(known) == 1 else None


def _samples(source: ImageSource, classes: list[str]) -> list[Sample]:
    labels = source.labels.tolist()
    if source.classes is not None:  # its own numbers, by their names
        numbers = {name: number for number, name in enumerate(classes)}
        if unknown := sorted(set(source.classes.names) - set(numbers)):
            raise UserError(f"{source.paths[0]}: class {unknown[0]!r} is not one of the first split's")
        labels = [numbers[source.classes.names[label]] for label in labels]
    keys, samples = Keys(), []
    for part, start in zip(source.parts, source.starts.tolist(), strict=False):
        for row in range(len(part.index)):
            label = labels[start + row]
            name = os.path.basename(part.index.key(row))
            file, place = part.place(row)
            samples.append(Sample(keys.make(classes[label], name), label, file, place, int(part.index.size[row])))
    return samples
