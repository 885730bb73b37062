"""What was done to the weights of a model in memory, kept with the model so that its export tells it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

_ATTRIBUTE = "_vitwarm"  # of the model; copies of a model take it along


@dataclass(frozen=True)
class Change:
    """Something that gave tensors of a model other values.

    Attributes:
        text: what it was.
        seed: root seed of what it drew; None if it drew nothing.
        tensors: that it changed, and nothing has replaced since.
        warms: whether these come from a warm-up.
        lineage: `base_models` and `license` of weights that came from elsewhere.
    """

    text: str
    seed: int | None
    tensors: tuple[str, ...]
    warms: bool = True
    lineage: Mapping[str, Any] = field(default_factory=dict)


def note(model: nn.Module, change: Change, replaced: Iterable[str] = ()) -> None:
    """Add a change to a model's history; changes of which it leaves nothing are forgotten.

    Args:
        model: without wrappers.
        change: the latest.
        replaced: tensors of which no earlier value is left.
    """
    gone = set(replaced)
    kept = [replace(one, tensors=tuple(n for n in one.tensors if n not in gone)) for one in changes(model)]
    setattr(model, _ATTRIBUTE, (*(one for one in kept if one.tensors), change))


def changes(model: nn.Module) -> tuple[Change, ...]:
    """What was done to a model, as far as it is left, the first thing first."""
    return getattr(model, _ATTRIBUTE, ())


def record_of(model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """A model's history as provenance has it: `start`, `seed`, `warmed_keys`, `fresh_keys`; empty without any.

    Args:
        model: without wrappers.
        names: of all tensors that it has now, as the changes call them.
    """
    names = list(names)
    done = [change for change in changes(model) if not set(names).isdisjoint(change.tensors)]
    if not done:
        return {}
    seeds = {change.seed for change in done} - {None}
    warmed = dict.fromkeys(name for change in done if change.warms for name in change.tensors if name in names)
    return {
        "start": "; then ".join(
            f"{change.text} (seed {change.seed})" if len(seeds) > 1 and change.seed is not None else change.text
            for change in done
        ),
        **({"seed": seeds.pop()} if len(seeds) == 1 else {}),
        "warmed_keys": list(warmed),
        "fresh_keys": [name for name in names if name not in warmed],
    }
