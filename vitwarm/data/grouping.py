"""Which members of a tar make a labelled image: one rule for tars on a disk and for streams.

`a/b.jpg` and `a/b.cls` share the key `a/b` and make one sample, as in webdataset. So do `p.000.jpg` and `p.000.cls`,
which webdataset would take for fields of `p`. What has no partner but extends the key of a sample (`b.seg.png`) is
a further field of it. Hidden files, as macOS adds (`._b.jpg`), are none.
"""

import re
from collections.abc import Iterable, Iterator

from vitwarm.data.tar_reader import Member
from vitwarm.errors import UserError

IMAGE_SUFFIXES = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "ppm", "pgm", "pbm", "pnm", "gif", "tif", "tiff", "avif")
)
LABEL = "cls"
MOST_BYTES = 1 << 30  # of an encoded image
_MOST_DIGITS = 64  # bytes of a label
TOOL_FOLDERS = frozenset(("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"))

_NAME = re.compile(r"((?:.*/)?[^./][^/]*)\.([^./]+)", re.DOTALL)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that operating systems and tools add."""
    return name.startswith(".") or name in TOOL_FOLDERS


def split_name(name: str) -> tuple[str, str] | None:
    """(stem, suffix in lower case) of a member that is an image or a label; None for any other."""
    found = _NAME.fullmatch(name)
    if found is None or not TOOL_FOLDERS.isdisjoint(name.split("/")):
        return None
    suffix = found[2].lower()
    return (found[1], suffix) if suffix == LABEL or suffix in IMAGE_SUFFIXES else None


def extends(stem: str, keys: Iterable[str]) -> bool:
    """Whether a stem is a key and more behind a dot: `b.seg` of `b`."""
    folder, slash, name = stem.rpartition("/")
    ends = (found.start() for found in re.finditer(r"\.", name))
    return any(f"{folder}{slash}{name[:end]}" in keys for end in ends)


def parse_label(text: bytes) -> int | None:
    """The class number in a `.cls`; None if it is not one in ASCII digits."""
    return int(text) if len(text) <= _MOST_DIGITS and re.fullmatch(rb"\s*[0-9]{1,9}\s*", text) else None


def stream_samples(members: Iterable[Member], where: str) -> Iterator[tuple[str, bytes, bytes]]:
    """(key, image, text of the label) of a stream, where the parts of a sample must be neighbours.

    Args:
        members: of one tar, in its order.
        where: its name, for messages.

    Raises:
        UserError: an image without its label, or more than one of either.
    """
    group = ""
    parts: dict[str, dict[str, bytes]] = {}  # members that share the key up to the first dot, and have no partner yet
    whole: set[str] = set()
    for member in members:
        if (named := split_name(member.name)) is None:
            continue
        stem, suffix = named
        folder, slash, name = stem.rpartition("/")
        if (own := folder + slash + name.partition(".")[0]) != group:
            _check_left(parts, whole, where)
            group, parts, whole = own, {}, set()
        if extends(stem, whole):
            continue
        kind = LABEL if suffix == LABEL else "image"
        part = parts.setdefault(stem, {})
        if kind in part or stem in whole or member.link is not None or member.size > MOST_BYTES:
            what = "has a link for a part" if member.link is not None else _UNFIT
            raise UserError(f"{where}:{stem}: {what}")
        part[kind] = member.read(_MOST_DIGITS + 1 if kind == LABEL else None)
        if len(part) == 2:
            whole.add(stem)
            del parts[stem]
            yield stem, part["image"], part[LABEL]
    _check_left(parts, whole, where)


_UNFIT = "is not one image with its label (.cls) right beside it, which streaming needs"


def _check_left(parts: dict[str, dict[str, bytes]], whole: set[str], where: str) -> None:
    for stem in parts:
        if not extends(stem, whole):
            raise UserError(f"{where}:{stem}: {_UNFIT}")
