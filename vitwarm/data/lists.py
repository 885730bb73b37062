"""Lists that users bring: names of images, their classes, the classes of a set."""

import csv
import json
import re
from pathlib import Path

from vitwarm.errors import UserError

_MOST_BYTES = 1 << 28
_HEADER = frozenset(
    ("id", "image", "imageid", "image_id", "image_name", "img", "file", "filename", "file_name", "path", "filepath")
    + ("name", "label", "labels", "class", "classname", "class_name", "category", "target", "breed", "synset", "wnid")
    + ("predictionstring",)
)


def read_text(path: Path, what: str) -> str:
    """The text of a list, without the byte order mark that spreadsheets write.

    Args:
        path: the file.
        what: the option that names it, for messages.

    Raises:
        UserError: not a readable text file.
    """
    try:
        if not path.is_file():  # opening a pipe would wait forever
            raise UserError(f"{what}: {path} is {'not a file' if path.exists() else 'missing'}")
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{what}: {path} is larger than {_MOST_BYTES >> 20} MiB, too large for a list")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{what}: cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{what}: {path} is not text in UTF-8") from None


def read_rows(path: Path, what: str) -> list[list[str]]:
    """The rows of a list or table; empty ones, comments (#) and a header are left out.

    Columns are separated by tabs, semicolons or commas, whichever the first of these is that stands in every row, else
    by white space; quotes are taken off.

    Raises:
        UserError: not a readable text file.
    """
    lines = [line for line in read_text(path, what).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    try:
        rows = _cells(lines)
    except csv.Error as error:
        raise UserError(f"{what}: {path} is no table ({error})") from None
    if rows and {cell.lower().replace(" ", "_") for cell in rows[0][:2]} <= _HEADER:
        del rows[0]
    return rows


def _cells(lines: list[str]) -> list[list[str]]:
    separator = next((one for one in "\t;," if all(one in line for line in lines)), None)
    if separator is None and not any('"' in line for line in lines):
        return [line.split() for line in lines]
    rows = csv.reader(lines, delimiter=separator or " ", skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows]


def read_classes(path: Path) -> list[str]:
    """Class names in the order of their numbers: a name, `0 NAME` or `NAME 0` a line, or another set's manifest.json.

    Raises:
        UserError: not such a list, or a name stands in it twice.
    """
    text = read_text(path, "classes")
    if text.lstrip()[:1] in ("{", "["):
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError(f"classes: {path} is damaged JSON") from None
        names = tree.get("classes") if isinstance(tree, dict) else tree
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"classes: {path} has no list of class names; give a manifest.json, or a name a line")
    else:
        names = [line.strip().strip('"') for line in text.splitlines() if line.strip()]
        for form, number in ((r"(\d+)[\s,;:]+(.+)", 1), (r"(.+?)[\s,;:]+(\d+)", 2)):
            found = [match for name in names if (match := re.fullmatch(form, name))]
            rows = sorted((int(match[number]), match[3 - number].strip('"')) for match in found)
            if len(rows) == len(names) and [row[0] for row in rows] in [list(range(i, i + len(rows))) for i in (0, 1)]:
                names = [name for _, name in rows]
                break
    if not names:
        raise UserError(f"classes: {path} holds no class names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"classes: {path} names {twice!r} twice")
    return names
