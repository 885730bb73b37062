"""Base class of the rules: a frozen dataclass of parameters that samples token sequences and solves masked ones."""

import json
import operator
import types
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, get_args, get_type_hints

import numpy as np

__all__ = ["Rule", "Sequences", "Vocab", "parameter"]


@dataclass(frozen=True)
class Vocab:
    """The symbols of a rule. A token id is an index into `names`; PAD is always 0 and MASK always 1.

    The other special symbols exist where the rule uses them, else their id is None.
    """

    names: tuple[str, ...]
    pad: ClassVar[int] = 0
    mask: ClassVar[int] = 1

    @classmethod
    def of(cls, specials: Iterable[str], symbols: Iterable[str]) -> "Vocab":
        """PAD, MASK, the given specials, then the content symbols."""
        return cls(("PAD", "MASK", *specials, *symbols))

    @property
    def size(self) -> int:
        return len(self.names)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token id of each name."""
        return {name: index for index, name in enumerate(self.names)}

    @property
    def sep(self) -> int | None:
        """Stands between the inputs and the output."""
        return self.ids.get("SEP")

    @property
    def end(self) -> int | None:
        """Closes the output."""
        return self.ids.get("END")

    @property
    def pop(self) -> int | None:
        """The operation that takes the top off a stack."""
        return self.ids.get("POP")


@dataclass(frozen=True)
class Sequences:
    """Sequences written by a rule.

    Attributes:
        tokens: (B, N) int64 token ids.
        scored: (B, N) bool, the eligible positions: an objective may mask them, or take a loss at them.
        determined: (B, N) bool, eligible positions whose token follows with certainty from the rest of the sequence,
            whichever of the eligible positions are hidden together with it.
    """

    tokens: np.ndarray
    scored: np.ndarray
    determined: np.ndarray


def parameter(default: Any = MISSING, help: str = "", *, low=None, high=None, choices=None) -> Any:
    """A dataclass field for a rule's parameter, with its help line and the values it allows (bounds inclusive)."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Rule(ABC):
    """An algorithm that writes sequences of symbols. Subclasses are frozen dataclasses whose fields are its parameters.

    A subclass declares its parameters with `parameter(...)` and defines `vocab`, `draw` and `solve`.

    Raises:
        ValueError: on construction, when a parameter has the wrong type or a value that is not allowed.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = _checked(f"{self.name}.{f.name}", getattr(self, f.name), hints[f.name], f)
            object.__setattr__(self, f.name, value)

    @property
    @abstractmethod
    def vocab(self) -> Vocab:
        """The symbols that `sample` writes."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int, length: int) -> Sequences:
        """`sample` after its arguments were checked. Draw all randomness from `rng`, in whole arrays."""

    @abstractmethod
    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        """The oracle: fills in the masked positions from the visible ones.

        Args:
            tokens: (B, N) token ids; those at masked positions are ignored.
            masked: (B, N) bool, a subset of the eligible positions.

        Returns:
            (B, N) int64: the sequence with its masked positions answered. Where the rule determines the answer it is
            the right one; elsewhere it is a guess, or MASK.
        """

    def check_length(self, length: int) -> None:  # noqa: B027 (most rules accept any length that is positive)
        """Raises ValueError when sequences of `length` tokens are impossible for this rule."""

    def length_of(self, size: int) -> int:
        """Tokens in a sequence whose content has `size` symbols: what a curriculum counts in. By default the same."""
        return size

    def partners(self, row: np.ndarray) -> list[tuple[int, int]]:
        """Pairs of positions that belong together, earlier one first: a figure joins them by arcs. None by default.

        Args:
            row: (N,) token ids, a sequence that the rule has written.
        """
        return []

    def sample(self, rng: np.random.Generator, count: int, length: int) -> Sequences:
        """Draws `count` independent sequences of `length` tokens.

        Raises:
            ValueError: when count is negative or sequences of that length are impossible.
        """
        if count < 0:
            raise ValueError(f"{self.name}: count must be at least 0, got {count}")
        if length < 1:
            raise ValueError(f"{self.name}: length must be at least 1, got {length}")
        self.check_length(length)
        return self.draw(rng, count, length)

    def spec(self) -> dict[str, Any]:
        """The rule as plain data, `{"name": ..., parameter: value}`; `make_rule(**rule.spec())` is the same rule."""
        return {"name": self.name} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @cached_property
    def identity(self) -> str:
        """Names the rule's random stream: its name and every parameter that is not at its default.

        A parameter added to a rule later therefore leaves the existing streams as they are.
        """
        return json.dumps(_identity(self), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Rule):
        return value.spec()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _identity(value: Any) -> Any:
    if isinstance(value, Rule):
        changed = {
            f.name: _identity(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default
        }
        return {"name": value.name} | changed
    return [_identity(item) for item in value] if isinstance(value, tuple) else value


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def _checked(label: str, value: Any, hint: Any, f: Field) -> Any:
    """`value` as the type that the field declares, or ValueError with one line that says what is allowed."""
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next((kind for kind in kinds if kind in _KINDS), None)
    if kind is None:  # a nested rule or a list of them: checked by the rule that takes it
        return value
    allowed = _allowed(kind, f.metadata, type(None) in kinds)
    try:
        if kind is not bool and isinstance(value, bool):
            raise TypeError
        if kind is int:
            value = operator.index(value)
        elif kind is float and not isinstance(value, str):
            value = float(value)
        elif not isinstance(value, kind):
            raise TypeError
    except (TypeError, ValueError):
        raise ValueError(f"{label} must be {allowed}, got {value!r}") from None
    low, high, choices = (f.metadata.get(name) for name in ("low", "high", "choices"))
    inside = (low is None or value >= low) and (high is None or value <= high) and (choices is None or value in choices)
    if not inside:
        raise ValueError(f"{label} must be {allowed}, got {value!r}")
    return value


def _allowed(kind: type, limits: Mapping[str, Any], optional: bool) -> str:
    low, high, choices = (limits.get(name) for name in ("low", "high", "choices"))
    if choices is not None:
        text = "one of " + ", ".join(choices)
    elif low is not None and high is not None:
        text = f"{_KINDS[kind]} from {low} to {high}"
    elif low is not None:
        text = f"{_KINDS[kind]} of at least {low}"
    else:
        text = _KINDS[kind]
    return text + " or none" if optional else text
