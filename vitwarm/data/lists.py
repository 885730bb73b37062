"""Lists that users bring: names of images, their classes, the classes of a set."""

import csv
import json
import re
from pathlib import Path

from vitwarm.errors import UserError

_MOST_BYTES = 1 << 28
# What tables call their columns; of several, the first here.
_NAME = (
    *("path", "filepath", "file_path", "image_path", "filename", "file_name", "file", "image", "img", "image_name"),
    *("imageid", "image_id", "id", "name"),
)
_LABEL = (
    *("label", "labels", "class", "classname", "class_name", "category", "target", "breed", "synset", "wnid"),
    "predictionstring",
)
_WNID = re.compile(r"n\d{8}\b")


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
    """The rows of a list or table; empty ones and a header are left out.

    Columns are separated by tabs, semicolons or commas, whichever the first of these is that stands in every row, else
    by white space; quotes are taken off.

    Raises:
        UserError: not a readable text file.
    """
    return _table(read_text(path, what), f"{what}: {path}")[1]


def parse_labelled(text: str, where: object) -> list[tuple[str, str]]:
    """(name, class) of each row of a table: the columns that its header calls so, else the first two.

    Of Kaggle's tables of ImageNet, which have boxes behind it, the class is the first word.

    Raises:
        UserError: no table, or a row without a name or a class, or with more cells than columns.
    """
    header, rows = _table(text, where)
    name, label = (next((header.index(one) for one in known if one in header), None) for known in (_NAME, _LABEL))
    if label is None and len(header) > 2:  # which of the others it is, nobody knows
        raise UserError(f"{where}: no column of its header is one of classes; call it label")
    if name is None or label is None:
        name, label = 0, 1
    columns = len(header) or max(label + 1, min(map(len, rows), default=0))
    found = []
    for row in rows:
        shown = ", ".join(row)[:60]
        if len(row) <= max(name, label) or not row[name] or not row[label]:
            raise UserError(f"{where}: the row {shown!r} is not a name and a class")
        wnid = _WNID.match(row[label])
        if any(row[columns:]) and not wnid:  # a separator within a cell: what stands behind it would be lost
            raise UserError(
                f"{where}: the row {shown!r} has more than {columns} cells; put names in quotes, or use tabs"
            )
        found.append((row[name], row[label].split()[0] if wnid else row[label]))
    return found


def _table(text: str, where: object) -> tuple[list[str], list[list[str]]]:
    """(cells of the header in lower case, or nothing; rows)."""
    lines = [line for line in text.splitlines() if line.strip()]  # a # is part of a name: files are called so
    try:
        rows = _cells(lines)
    except csv.Error as error:
        raise UserError(f"{where} is no table ({error})") from None
    head = [cell.lower().replace(" ", "_") for cell in rows[0]] if rows else []
    both = not set(head).isdisjoint(_NAME) and not set(head).isdisjoint(_LABEL)
    if head and (both or set(head[:2]) <= {*_NAME, *_LABEL}):
        return head, rows[1:]
    return [], rows


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
            ordered = [row[0] for row in rows] in [list(range(i, i + len(rows))) for i in (0, 1)]
            if len(rows) == len(names) and ordered and len({name for _, name in rows}) == len(rows):
                names = [name for _, name in rows]  # of `stage 1`, `stage 2` the numbers are part of the names
                break
    if not names:
        raise UserError(f"classes: {path} holds no class names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"classes: {path} names {twice!r} twice")
    return names
