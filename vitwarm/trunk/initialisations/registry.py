"""Initialisations by name."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vitwarm.trunk.families import Attention, Family

Rewrite = Callable[[list[Attention], list[np.random.Generator], Family], None]


@dataclass(frozen=True)
class Initialisation:
    """How an initialisation sets the weights of a model.

    Attributes:
        rewrite: sets the weights, given the attention of each block, a random stream for each, and the family. Raises
            ValueError for a model that its formulas do not cover, before it has changed anything.
        stream: names the random streams; two initialisations of one stream share their noise.
        on_grid: it ties attention to positions on the image grid, and sets these too.
        despite_norms: what it says of each matrix holds as well where norms stand between them.
    """

    rewrite: Rewrite
    stream: str
    on_grid: bool
    despite_norms: bool


_KNOWN: dict[str, Initialisation] = {}


def initialisation(
    name: str, *, stream: str | None = None, on_grid: bool = False, despite_norms: bool = False
) -> Callable[[Rewrite], Rewrite]:
    """Register a function as the initialisation of that name, which `vitwarm.config.Init` must list.

    Args:
        name: what `model.init` says.
        stream, on_grid, despite_norms: see `Initialisation`; the stream is the name by default.
    """

    def register(rewrite: Rewrite) -> Rewrite:
        _KNOWN[name] = Initialisation(rewrite, stream or name, on_grid, despite_norms)
        return rewrite

    return register


def registered() -> dict[str, Initialisation]:
    """The initialisations known so far, by name."""
    return dict(_KNOWN)
