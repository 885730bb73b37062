"""Which files and folders a specification in a recipe names."""

import glob
import itertools
import math
import os
import re

import braceexpand

from vitwarm.errors import UserError

_MOST = 100_000  # names that the braces of a specification may stand for
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")


def find_paths(spec: str) -> list[str]:
    """The files and folders that a specification names, in its order and each pattern's in that of names.

    Args:
        spec: a path as it is; or paths, globs (`**` for all folders below) and brace patterns with `::` between them,
            in which `~` and `$VAR` are replaced. The folders in front of a glob may have brackets in their names.

    Raises:
        UserError: something names nothing, or the braces do not balance or stand for too many names.
    """
    if os.path.exists(spec):
        return [spec]
    patterns = [name for part in spec.split("::") for name in expand_braces(os.path.expandvars(part))]
    return [path for pattern in patterns for path in _matching(os.path.expanduser(pattern))]


def expand_braces(pattern: str) -> list[str]:
    """The names that the braces of a pattern stand for; a path that is there stands for itself.

    Raises:
        UserError: they do not balance, or stand for too many names.
    """
    sizes = [abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(pattern)]
    try:
        names = [pattern] if os.path.exists(pattern) or math.prod(sizes) > _MOST else braceexpand.braceexpand(pattern)
        found = list(itertools.islice(names, _MOST + 1))
    except braceexpand.UnbalancedBracesError:
        raise UserError(f"{pattern}: the braces of this pattern do not balance") from None
    if math.prod(sizes) > _MOST or len(found) > _MOST:
        raise UserError(f"{pattern}: its braces stand for more than {_MOST:,} names; give a folder or a glob")
    return found


def _matching(pattern: str) -> list[str]:
    if os.path.exists(pattern):
        return [pattern]
    literal, _, rest = pattern.rpartition("/")
    while literal and not os.path.isdir(literal):
        literal, _, more = literal.rpartition("/")
        rest = f"{more}/{rest}"
    start = f"{glob.escape(literal)}/" if literal or pattern.startswith("/") else ""
    found = sorted(path for path in glob.glob(start + rest, recursive=True) if not os.path.isdir(path))
    if not found:
        raise UserError(f"{pattern}: no such file; give a file, a folder, a glob or a brace pattern")
    return found
