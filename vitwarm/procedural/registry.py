"""Rules by name."""

import difflib
from dataclasses import fields
from typing import Any, TypeVar

from vitwarm.procedural.rule import Rule

__all__ = ["list_rules", "make_rule", "register", "rule_class"]

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
    """The names of all rules, sorted."""
    return sorted(_RULES)


def rule_class(name: str) -> type[Rule]:
    """The dataclass behind `name`; its fields are the rule's parameters, `metadata["help"]` describes each.

    Raises:
        ValueError: when there is no such rule.
    """
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


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known) or 'none'}"
