"""Images in parquet files, as Hugging Face `datasets` writes them: `image: {bytes, path}`, `label`.

Rows are packed and compressed in groups, of a hundred images as `datasets` writes them: to read one image is to read
its group. Groups stay in memory up to a bound, so small sets and reading in order cost little, and a random order over
a large set costs a group an image. `vitwarm make-shards` turns such a set into tars.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitwarm.data.grouping import MOST_BYTES
from vitwarm.data.index_file import load_index
from vitwarm.data.listed import numbered
from vitwarm.data.manifest import MOST_CLASSES, ClassList
from vitwarm.data.source import (
    DamagedSample,
    ImageSource,
    Index,
    Part,
    check_unchanged,
    content_of,
    packed,
    part_of,
    stamp,
)
from vitwarm.errors import UserError

MOST_KEPT = 128 << 20  # bytes of images that a process keeps decompressed
_SLOW = 1 << 20  # bytes of a group above which a random order is slow
_IMAGES, _LABELS = ("image", "img", "jpg", "jpeg", "png", "bytes"), ("label", "labels", "fine_label", "cls", "class")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParquetIndex(Index):
    """The rows of a parquet file, in its order.

    Attributes:
        group: (n,) int64, group of each row.
        place: (n,) int64, its place in the group.
        names: (m,) uint8, JSON: the class names in the order of their numbers, or null; and whether the file tells them
            in its metadata, not by its labels alone.
    """

    FORMAT: ClassVar[int] = 1
    CONTAINER: ClassVar[str] = "parquet file"

    group: np.ndarray
    place: np.ndarray
    size: np.ndarray
    label: np.ndarray
    content_crc: np.ndarray
    deep: np.ndarray
    names: np.ndarray
    key_bytes: np.ndarray
    key_end: np.ndarray

    @property
    def classes(self) -> tuple[list[str] | None, bool]:
        """(names, whether the metadata tell them)."""
        names, told = json.loads(self.names.tobytes())
        return names, told


@dataclass
class _Groups:
    """The groups that were read last, over all files of a source; values are the images of a group."""

    kept: OrderedDict[tuple[Path, int], Any] = field(default_factory=OrderedDict)
    size: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"kept": OrderedDict(), "size": 0}

    def add(self, key: tuple[Path, int], images: Any) -> None:
        self.kept[key] = images
        self.size += images.nbytes
        while self.size > MOST_KEPT and len(self.kept) > 1:
            self.size -= self.kept.popitem(last=False)[1].nbytes


class ParquetPart(Part):
    """The rows of a parquet file.

    Args:
        path: the file.
        groups: where decompressed images are kept.
    """

    index: ParquetIndex

    def __init__(self, path: Path, groups: _Groups | None = None):
        self.path, self.index = path, load_index(path, ParquetIndex, _build)
        self._groups, self._stamp = groups or _Groups(), stamp(path)

    def read(self, row: int) -> bytes:
        if not self.index.size[row]:
            raise DamagedSample("the row has no image bytes")
        if self.index.size[row] > MOST_BYTES:
            raise DamagedSample(f"{self.index.size[row]:,} bytes, more than an image has")
        key = (self.path, int(self.index.group[row]))
        if key in self._groups.kept:
            self._groups.kept.move_to_end(key)
        else:
            arrow = _arrow(self.path)
            try:
                with open(self.path, "rb") as file:  # for this process alone: Arrow moves its position
                    check_unchanged(self.path, file.fileno(), self._stamp)
                    self._groups.add(key, _Table(arrow, file, self.path).images(key[1]))
            except FileNotFoundError as error:
                raise UserError(f"{self.path}: cannot be opened any more ({error.strerror})") from None
            except (OSError, arrow.ArrowException) as error:
                raise DamagedSample(f"its group of rows cannot be read ({_one_line(error)})") from None
        return self._groups.kept[key][int(self.index.place[row])].as_py()


class ParquetSource(ImageSource):
    """Images in the rows of parquet files, in their order.

    Args:
        paths: the files, as from `expand`.

    Raises:
        UserError: a file is missing, damaged or has no labelled images, or the files number their classes differently.
    """

    kind = "parquet file"

    def __init__(self, paths: Sequence[Path]):
        groups = _Groups()
        parts = [ParquetPart(path, groups) for path in paths]
        found = [part.index.classes for part in parts]
        if all(names is not None and not told for names, told in found):  # each file shows those that it has
            classes = sorted({name for names, _ in found for name in names or ()})
            for part, (names, _) in zip(parts, found, strict=True):
                numbers = np.searchsorted(classes, names or [])
                part.index = replace(part.index, label=numbers[part.index.label])
            found = [(classes, False)]
        for path, one in zip(paths, found, strict=False):
            if one != found[0]:
                raise UserError(f"{path}: names other classes than {paths[0]}; give files of one data set")
        names = found[0][0]
        super().__init__(parts, ClassList(names, str(paths[0])) if names is not None else None)
        mean = self.num_bytes / sum(int(part.index.group[-1]) + 1 for part in parts)
        if self.num_bytes > MOST_KEPT and mean > _SLOW:
            _log.warning(
                "%s: in a random order each image costs reading %.0f MB, its group of rows; make tars of the files, "
                "which do not: vitwarm make-shards",
                paths[0],
                mean / 1e6,
            )


def _arrow(path: Path) -> Any:
    try:
        for part in ("compute", "parquet"):
            import_module(f"pyarrow.{part}")
        return import_module("pyarrow")
    except ImportError:
        raise UserError(f"{path}: parquet needs pyarrow: pip install vitwarm[parquet]") from None


class _Table:
    """A parquet file with a column of images and one of labels.

    Raises:
        UserError: it has no such columns.
    """

    def __init__(self, arrow: Any, file: Any, path: Path):
        self._arrow, self._file = arrow, arrow.parquet.ParquetFile(file)
        schema = self._file.schema_arrow
        features = _features((schema.metadata or {}).get(b"huggingface", b""))
        columns = ", ".join(f"{one.name} ({str(one.type)[:40]})" for one in schema)
        holds = arrow.types.is_binary, arrow.types.is_large_binary
        plain = {one.name for one in schema if any(is_(one.type) for is_ in holds)}
        nested = {
            one.name
            for one in schema
            if arrow.types.is_struct(one.type) and any(part.name == "bytes" for part in one.type)
        }
        image = _one_of(plain | nested, _IMAGES, _typed(features, "Image") & (plain | nested))
        if image is None:
            raise UserError(f"{path}: has no column of images (image: bytes), only {columns}; name it image")
        self.image = image
        self.inner = f"{self.image}.bytes" if self.image in nested else self.image
        kinds = arrow.types.is_integer, arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_dictionary
        fit = {one.name for one in schema if any(is_(one.type) for is_ in kinds)}
        label = _one_of(fit, _LABELS, _typed(features, "ClassLabel") & fit)
        if label is None:
            raise UserError(f"{path}: has no column of labels, only {columns}; name it label, of integers or text")
        self.label = label
        self.classes = features.get(self.label, {}).get("names")
        self.groups = self._file.num_row_groups
        self.with_path = self.image in nested and any(
            part.name == "path" and arrow.types.is_string(part.type) for part in schema.field(self.image).type
        )

    def images(self, group: int) -> Any:
        """(rows,) the bytes of a group, as Arrow has them."""
        found = self._read(group, [self.inner]).column(0)
        return self._arrow.compute.struct_field(found, "bytes") if self.inner != self.image else found

    def rows(self, group: int) -> tuple[Any, list[Any], list[str | None]]:
        """(images, labels, paths) of a group."""
        columns = [self.inner, self.label, *([f"{self.image}.path"] if self.with_path else [])]
        table = self._read(group, columns)
        images = table.column(self.image)
        paths: list[str | None] = [None] * len(table)
        if self.inner != self.image:
            field = self._arrow.compute.struct_field
            paths = field(images, "path").to_pylist() if self.with_path else paths
            images = field(images, "bytes")
        return images, table.column(self.label).to_pylist(), paths

    def _read(self, group: int, columns: list[str]) -> Any:
        # Threads of Arrow do not survive the fork of loader workers.
        return self._file.read_row_group(group, columns=columns, use_threads=False)


def _features(text: bytes) -> dict[str, Any]:
    """Column -> what `datasets` says of it, in the metadata of the schema."""
    try:
        found = json.loads(text)["info"]["features"]
        return found if all(isinstance(one, dict) for one in found.values()) else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _typed(features: dict[str, Any], kind: str) -> set[str]:
    return {name for name, feature in features.items() if feature.get("_type") == kind}


def _one_of(fit: set[str], usual: Sequence[str], told: set[str]) -> str | None:
    """The column that is told, or has a usual name; None where that does not single out one."""
    for named in (told, fit):
        if found := [name for name in usual if name in named]:
            return found[0]
        if len(told) == 1 and named is told:
            return next(iter(told))
    return None


def _build(path: Path, file: int, size: int) -> ParquetIndex:
    arrow = _arrow(path)
    try:
        with open(file, "rb", closefd=False) as stream:
            table = _Table(arrow, stream, path)
            rows = list(_rows(table))
    except arrow.ArrowException as error:
        raise UserError(f"{path}: is not a whole parquet file ({_one_line(error)}); copy or build it again") from None
    if not rows:
        raise UserError(f"{path}: holds no rows; leave it out")
    group, place, sizes, crc, deep = np.array([row[:5] for row in rows], dtype=np.int64).T
    if not sizes.any():
        raise UserError(f"{path}: has no image bytes in any row, but paths at most; write it with the images in it")
    labels, paths = [row[5] for row in rows], [row[6] for row in rows]
    for row, label in enumerate(labels):
        if label in (None, "") or (isinstance(label, int) and not 0 <= label < MOST_CLASSES):
            raise UserError(
                f"{path}: row {row} has no label ({table.label}: {label!r}); leave the file out, or mend it"
            )
    numbers, classes = numbered(labels, path) if isinstance(labels[0], str) else (labels, table.classes)
    names = paths if len(set(paths)) == len(paths) and None not in paths else [str(row) for row in range(len(rows))]
    return ParquetIndex(
        **{"group": group.copy(), "place": place.copy(), "size": sizes.copy(), "content_crc": crc.copy()},
        label=np.array(numbers, dtype=np.int64),
        deep=deep.astype(np.uint8),
        names=np.frombuffer(json.dumps([classes, table.classes is not None]).encode(), dtype=np.uint8),
        **packed(str(name).encode("utf-8", "surrogateescape") for name in names),
    )


def _rows(table: _Table) -> Iterator[tuple[Any, ...]]:
    """(group, place, size, content_crc, deep, label, path) of each row."""
    for group in range(table.groups):
        for place, (image, label, path) in enumerate(zip(*table.rows(group), strict=True)):
            data = memoryview(image.as_buffer()) if image.is_valid else memoryview(b"")
            crc, deep = content_of(len(data), partial(part_of, data)) if len(data) <= MOST_BYTES else (0, False)
            yield group, place, len(data), crc, int(deep), label, path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
