"""Selections of tensor groups and the controls that perturb them, parsed without a model.

A selection is a list of words. Kinds unite (`attention`, `mlp`); `layers=` and `heads=` narrow what they unite to.

| word | what it selects |
|---|---|
| `trunk`, `attention`, `mlp`, `norm`, `norm1`, `norm2`, `embedding`, `head` | tensors of `vitwarm.transfer.groups` |
| `layers=8-11`, `layers=0+4-6` | of the kinds (the whole trunk if there is none), what these blocks hold |
| `layers=first`, `middle`, `last` | the thirds of the depth |
| `layers=first:2`, `layers=last:4` | that many blocks from either end |
| `heads=0+2`, `heads=3:1+4:0` | query, key, value and projection of these heads, in each block or in block 3 and 4 |
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vitwarm.errors import UserError

GROUPS = ("trunk", "attention", "mlp", "norm", "norm1", "norm2", "embedding", "head")
CONTROLS = ("shuffle", "gaussian", "noise", "scale")

_HELD = {"trunk": ("attention", "mlp", "norm1", "norm2", "other norms"), "norm": ("norm1", "norm2", "other norms")}
_THIRDS = ("first", "middle", "last")
_LAYERS = re.compile(r"(\d+)(?:-(\d+))?|(first|last):(\d+)|first|middle|last")
_HEADS = re.compile(r"(?:(\d+):)?(\d+)")


@dataclass(frozen=True)
class Selection:
    """A parsed selection.

    Attributes:
        kinds: the groups that unite; `trunk` holds all of the blocks and the norms around them.
        layers: what stands behind `layers=`; None for all, and for what lies outside the blocks.
        heads: (block or None for each, head) behind `heads=`; empty for whole tensors.
    """

    kinds: tuple[str, ...]
    layers: str | None = None
    heads: tuple[tuple[int | None, int], ...] = ()

    @classmethod
    def parse(cls, words: str | Iterable[str]) -> "Selection":
        """Parse words in a list, or in one text with spaces between.

        Raises:
            UserError: an unknown word, or words that contradict each other.
        """
        words = words_of(words)
        kinds: list[str] = []
        narrow: dict[str, str] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if name in GROUPS and not equals:
                kinds.append(name)
            elif name in ("layers", "heads") and equals:
                if name in narrow:
                    raise UserError(f"{name}= stands twice; join the parts with +, such as {narrow[name]}+{value}")
                grammar = _LAYERS if name == "layers" else _HEADS
                if not all(grammar.fullmatch(part) for part in value.split("+")):
                    example = "8-11, 0+4-6, middle or last:4" if name == "layers" else "0+2 or 3:1+4:0 (BLOCK:HEAD)"
                    raise UserError(f"cannot use {word!r}: write {name}={example}")
                narrow[name] = value
            else:
                known = ", ".join((*GROUPS, "layers=...", "heads=..."))
                raise UserError(f"unknown tensor group {word!r}; known: {known}")
        if not words:
            raise UserError(f"no tensor group; known: {', '.join(GROUPS)}, layers=..., heads=...")
        if "heads" in narrow and set(kinds) - {"attention"}:
            raise UserError(f"heads= narrows attention alone; leave out {next(k for k in kinds if k != 'attention')}")
        if "layers" in narrow and (outside := {"embedding", "head"} & set(kinds)):
            raise UserError(f"layers= narrows what the blocks hold; leave out {' and '.join(sorted(outside))}")
        heads = (_groups(_HEADS, part) for part in narrow["heads"].split("+")) if "heads" in narrow else ()
        return cls(
            tuple(kinds) or (("attention",) if "heads" in narrow else ("trunk",)),
            narrow.get("layers"),
            tuple((None if block is None else int(block), int(head)) for block, head in heads),
        )

    def blocks(self, depth: int) -> set[int] | None:
        """Numbers of the blocks that are selected; None when nothing narrows them.

        Raises:
            UserError: a block that a model of this depth does not have.
        """
        named = {block for block, _ in self.heads if block is not None}
        if beyond := {block for block in named if block >= depth}:
            raise UserError(f"heads={max(beyond)}:...: the model has {depth} blocks, 0 to {depth - 1}")
        if self.layers is None:
            return None
        found: set[int] = set()
        for part in self.layers.split("+"):
            low, high, end, count = _groups(_LAYERS, part)
            if low is not None:
                chosen = range(int(low), int(high or low) + 1)
            elif end is not None:
                chosen = range(int(count)) if end == "first" else range(depth - int(count), depth)
            else:
                third = _THIRDS.index(part)
                chosen = range(round(third * depth / 3), round((third + 1) * depth / 3))
            if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
                raise UserError(f"layers={part}: the model has {depth} blocks, 0 to {depth - 1}")
            found |= set(chosen)
        if outside := named - found:
            raise UserError(f"heads={min(outside)}:... is not among layers={self.layers}; leave layers= out")
        return found

    def heads_of(self, block: int | None) -> set[int] | None:
        """Heads of a block that are selected; None for whole tensors."""
        return {head for of, head in self.heads if of in (None, block)} if self.heads else None


def check_overlap(selections: Iterable[str]) -> None:
    """Refuse selections that take the same tensors in every model; a model of known depth shows the rest.

    Raises:
        UserError: two that are not narrowed hold the same kind.
    """
    taken: dict[str, str] = {}
    for words in selections:
        chosen = Selection.parse(words)
        if chosen.layers is not None or chosen.heads:
            continue
        for held in dict.fromkeys(held for kind in chosen.kinds for held in _HELD.get(kind, (kind,))):
            if other := taken.get(held):
                raise UserError(f"{other!r} and {words!r} both hold {held}; narrow one of them")
            taken[held] = words


def words_of(groups: str | Iterable[str]) -> list[str]:
    """The words of a selection: those of a list, or of one text with spaces between.

    Raises:
        UserError: neither.
    """
    if not isinstance(groups, Iterable) or isinstance(groups, bytes):
        raise UserError(f"groups is {groups!r}; give a list of tensor groups, such as ['attention', 'mlp']")
    return [word for text in ([groups] if isinstance(groups, str) else groups) for word in str(text).split()]


def parse_control(text: str) -> tuple[str, float | None]:
    """A control, `shuffle`, `gaussian`, `noise:0.1` or `scale:0.5`, as (name, number).

    Raises:
        UserError: anything else.
    """
    name, colon, number = str(text).partition(":")
    if name in CONTROLS and bool(colon) == (name in ("noise", "scale")):
        try:
            value = float(number) if colon else None
        except ValueError:
            value = -1.0
        if value is None or 0 <= value < float("inf"):
            return name, value
    raise UserError(f"cannot use control {text!r}; write shuffle, gaussian, noise:0.1 or scale:0.5")


def _groups(grammar: re.Pattern[str], part: str) -> tuple[Any, ...]:
    """The groups of a part that `Selection.parse` has accepted."""
    found = grammar.fullmatch(part)
    assert found is not None
    return found.groups()
