"""Rules by name: those of this package, and those that installed packages offer as entry points."""

import difflib
import warnings
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from vitwarm.procedural.rule import Rule

__all__ = ["ENTRY_POINTS", "list_rules", "make_rule", "register", "rule_class"]

ENTRY_POINTS = "vitwarm.rules"
"""Group of the entry points by which an installed package offers rules: the rule's name, and `module:Class`."""

_RULES: dict[str, type[Rule]] = {}
_R = TypeVar("_R", bound=type[Rule])


def register(cls: _R) -> _R:
    """Class decorator: makes a rule reachable by its `name`.

    Raises:
        ValueError: when the name is taken.
    """
    if cls.name in _RULES:
        raise ValueError(f"a rule named {cls.name!r} is registered already")
    _RULES[cls.name] = cls
    return cls


def list_rules() -> list[str]:
    """The names of all rules, sorted, those of installed packages included.

    A package whose rule cannot be loaded is named in a warning, and the rule is left out.
    """
    for name in _offered():
        if refusal := _load(name):
            warnings.warn(refusal, stacklevel=2)
    return sorted(_RULES)


def rule_class(name: str) -> type[Rule]:
    """The dataclass behind `name`; its fields are the rule's parameters, `metadata["help"]` describes each.

    Entry points are looked up only for a name that no registered rule has, so that no package can replace a rule.

    Raises:
        ValueError: when there is no such rule, or the package that offers it cannot be loaded.
    """
    if isinstance(name, str) and name not in _RULES and name in _offered() and (refusal := _load(name)):
        raise ValueError(refusal)
    if not isinstance(name, str) or name not in _RULES:
        raise ValueError(f"there is no rule {name!r}{_nearest(name, list_rules())}")
    return _RULES[name]


def make_rule(name: str, **parameters: Any) -> Rule:
    """The rule `name` with the given parameters, the rest at their defaults.

    Raises:
        ValueError: when the rule or a parameter is unknown, or a value is not allowed.
    """
    cls = rule_class(name)
    known = [f.name for f in fields(cls)]
    for given in parameters:
        if given not in known:
            raise ValueError(f"{name} has no parameter {given!r}{_nearest(given, known)}")
    required = [f.name for f in fields(cls) if f.default is f.default_factory]  # both MISSING
    for missing in required:
        if missing not in parameters:
            raise ValueError(f"{name} needs the parameter {missing!r}")
    return cls(**parameters)


@cache
def _offered() -> dict[str, list[EntryPoint]]:
    """The entry points of installed packages by the name of the rule, looked up once a process."""
    offered: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        offered.setdefault(entry.name, []).append(entry)
    return offered


@cache
def _load(name: str) -> str | None:
    """Registers the rule that an installed package offers as `name`.

    Returns:
        None, or one line that names the package and says why its rule cannot be had; nothing is registered then.
    """
    offers = _offered()[name]
    packages = " and ".join(repr(entry.dist.name if entry.dist else entry.value) for entry in offers)
    if len(offers) > 1:
        return f"rule {name!r} is offered by the packages {packages}; uninstall all but one"
    before = dict(_RULES)
    try:
        cls = offers[0].load()
        if not (isinstance(cls, type) and issubclass(cls, Rule) and getattr(cls, "name", None) == name):
            raise TypeError(f"{offers[0].value} is not a rule named {name!r}")
        if _RULES.get(name) is not cls:  # a class without the decorator
            register(cls)
    except Exception as error:  # a package may fail in any way; the other rules must not
        _RULES.clear()
        _RULES.update(before)
        reason = " ".join(str(error).split())
        return f"rule {name!r} of the package {packages} cannot be loaded: {type(error).__name__}: {reason}"
    return None


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known) or 'none'}"
