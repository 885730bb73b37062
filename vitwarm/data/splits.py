"""Which split a file or a folder belongs to, by the words of its name."""

import re
from collections.abc import Mapping
from typing import TypeVar

from vitwarm.errors import UserError

_WORDS = {
    "train": ("train", "training", "trainset", "trn"),
    "val": ("val", "valid", "validate", "validation", "dev", "eval", "evaluation", "valset", "devset", "evalset"),
    "test": ("test", "testing", "testset", "tst"),
}
_SPLIT = {word: split for split, words in _WORDS.items() for word in words}
T = TypeVar("T")


class NoSplit(UserError):
    """There are several splits, and none of them is the one that is asked for."""


_NEUTRAL = frozenset(("images", "image", "img", "imgs", "set", "data", "split"))


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]


def split_of(name: str) -> str | None:
    """`train`, `val` or `test` where a whole word of a name says so, as in `latest-train-000.tar`.

    Raises:
        UserError: its words say two different things.
    """
    found = sorted({_SPLIT[word] for word in _words(name) if word in _SPLIT})
    if len(found) > 1:
        raise UserError(f"{name}: its name says both {' and '.join(found)}; rename it")
    return found[0] if found else None


def split_folder(name: str) -> str | None:
    """The split of a folder that is named after one and nothing else: `validation`, `train_images`, not `test_tube`."""
    words = _words(name)
    return split_of(name) if all(word in _SPLIT or word in _NEUTRAL for word in words) else None


def choose(splits: Mapping[str, T], split: str | None, where: object, remedy: str) -> T:
    """What stands for the split that is asked for: it, for `val` also `test`, or whatever is there alone.

    Raises:
        NoSplit: none of these.
    """
    for name in (split, "test") if split == "val" else (split,):
        if name is not None and name in splits:
            return splits[name]
    if len(splits) > 1:
        raise NoSplit(f"{where}: has no {split}, only {', '.join(splits)}; {remedy}")
    return next(iter(splits.values()))
