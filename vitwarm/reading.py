"""Text, JSON and YAML that anyone may have written, read within bounds; what cannot be used is one line.

YAML readers disagree on plain scalars: 010 is 8 or 10, 1:30 is 90 or text, no is false or text. Here a number is
decimal, a truth value is true or false, and what another reader would take otherwise is refused, so that a file means
the same to all of them. What `dump_yaml` writes reads back as it was.
"""

import copy
import functools
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from vitwarm.errors import UserError

MOST_BYTES = 2**28  # of a file that is read whole
_MOST_YAML = 2**21  # bytes of a YAML file: its reader takes a minute for ten times as many
_MOST_NODES, _DEEPEST = 200_000, 32  # of a YAML tree with its aliases written out, and of any tree


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a regular file, in UTF-8; a byte order mark is left out.

    Raises:
        UserError: it is missing, no regular file, larger than `most` bytes, closed to us, or no UTF-8.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for its writer
        with open(file, "rb") as handle:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path}: not a regular file")
            if found.st_size > most:
                raise UserError(f"{path}: {found.st_size:,} bytes, more than the {most:,} that such a file may have")
            return handle.read(most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def control_character(text: str, allowed: str = "") -> bool:
    """Whether a text holds a character that no name has: a control character, a line separator, a lone surrogate."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in set(text) - set(allowed))


# JSON


def parse_json(text: str | bytes, where: object, **keys: type | tuple[type, ...]) -> dict[str, Any]:
    """Read one JSON object.

    Args:
        text: the object.
        where: what to name in an error, such as the file.
        keys: keys that it must have, and the types of their values.

    Raises:
        UserError: not JSON, no object, nested too deeply, or a key is missing or of another type.
    """
    try:
        tree = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{where}: not readable as JSON ({_one_line(error) if text else 'it is empty'})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{where}: not a JSON object")
    _check_size(tree, where, most=None)
    for key, types in keys.items():
        wanted = types if isinstance(types, tuple) else (types,)
        if key not in tree:
            raise UserError(f"{where}: {key} is missing")
        if type(tree[key]) not in wanted:
            names = " or ".join(kind.__name__ for kind in wanted)
            raise UserError(f"{where}: {key} is {type(tree[key]).__name__}, not {names}")
    return tree


def read_json(path: Path, most: int = MOST_BYTES, **keys: type | tuple[type, ...]) -> dict[str, Any]:
    """Read a file that holds one JSON object; see `read_text` and `parse_json`."""
    return parse_json(read_text(path, most), path, **keys)


def read_json_lines(path: Path, most: int = MOST_BYTES) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line; see `read_text` and `parse_json`."""
    lines = read_text(path, most).split("\n")
    return [parse_json(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line]


def _check_size(tree: Any, where: object, most: int | None) -> None:
    """Refuse a tree that is too deep, or has too many nodes once its aliases are written out."""
    level: list[Any] = [tree]
    nodes = 0
    for _ in range(_DEEPEST):
        nodes += len(level)
        if most is not None and nodes > most:
            raise UserError(f"{where}: more than {most:,} values")
        level = [part for value in level for part in _parts(value)]
        if not level:
            return
    raise UserError(f"{where}: nested too deeply")


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


# YAML

_SCALARS = {  # how a plain scalar is read: by the first pattern that it matches as a whole, else as text
    "null": r"~ | null | Null | NULL | ",
    "bool": r"true | True | TRUE | false | False | FALSE",
    "refused": r"""
        [Yy]es | YES | [Nn]o | NO | [Oo]n | ON | [Oo]ff | OFF       # truth values of YAML 1.1
        | [-+]?0[0-9]+ | [-+]?0[box][0-9a-fA-F_]+                   # octal, hexadecimal, binary
        | [-+]?\.?[0-9][0-9.]*_[0-9_.]*(?:[eE][-+]?[0-9_]+)?        # digits with underscores
        | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?          # base 60
        | [-+]?[0-9]{41,}""",
    "int": r"[-+]?[0-9]+",
    "float": r"""
        [-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,9})?
        | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN)""",
    "merge": "<<",
}
_TAG = "tag:yaml.org,2002:"
_PATTERNS = {_TAG + kind: re.compile(rf"(?:{pattern})\Z", re.VERBOSE) for kind, pattern in _SCALARS.items()}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {None: list(_PATTERNS.items())}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _Wrong(None, None, "a mapping was tagged that is none", node.start_mark)
        seen = set()
        for part, _ in node.value:
            if part.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(part, deep=True)
            if not isinstance(part, yaml.ScalarNode):
                raise _Wrong(None, None, f"the key {key} is no plain value", part.start_mark)
            if key in seen:
                raise _Wrong(None, None, f"the key {key} is there twice", part.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def _scalar(self, node: Any) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if _PATTERNS[f"{_TAG}refused"].match(text) or not _PATTERNS[node.tag].match(text):
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            how = "write a plain decimal number, true or false, or put text in quotes"
            raise _Wrong(None, None, f"{shown} is not the same to all readers of YAML; {how}", node.start_mark)
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text)
        value = float(re.sub(r"\.(?=[inIN])", "", text))
        if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
            raise _Wrong(None, None, f"{text[:40]} is so small that it would be read as 0; write 0", node.start_mark)
        return value


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {None: list(_PATTERNS.items())}

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Wrong(yaml.constructor.ConstructorError):
    """A value that is not read."""


for _kind in ("bool", "refused", "int", "float"):
    _Loader.add_constructor(_TAG + _kind, _Loader._scalar)


def parse_yaml(text: str, where: object) -> Any:
    """Read one YAML document as plain nested values.

    Args:
        text: the document.
        where: what to name in an error, such as the file.

    Raises:
        UserError: not YAML, a key that comes twice, a scalar that YAML readers disagree on, nested too deeply.
    """
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        what = "" if isinstance(error, _Wrong) else "not readable as YAML: "
        raise UserError(f"{where}{line}: {what}{_one_line(error.problem or error.context)}") from error
    except (yaml.YAMLError, ValueError, AttributeError) as error:  # the last two: a date that is none, tagged as one
        raise UserError(f"{where}: not readable as YAML: {_one_line(error)}") from error
    _check_size(tree, where, _MOST_NODES)
    return tree


def read_yaml(path: Path) -> dict[Any, Any]:
    """A YAML file that holds a mapping; see `read_text` and `parse_yaml`. An empty file is an empty mapping."""
    tree = copy.deepcopy(_parsed(read_text(path, _MOST_YAML), path))
    if not isinstance(tree, dict | None):
        raise UserError(f"{path}: holds a {type(tree).__name__}, not a mapping of keys to values")
    return tree or {}


@functools.lru_cache(maxsize=256)
def _parsed(text: str, path: Path) -> Any:
    """Of many recipes with the same ancestors, those are parsed once; by text, so that a changed file is read anew."""
    return parse_yaml(text, path)


def dump_yaml(tree: Any) -> str:
    """Plain nested values as YAML, in their order; `parse_yaml` gives them back."""
    return yaml.dump(tree, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def _one_line(error: object) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
