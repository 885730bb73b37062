"""Rival initialisations: closed-form attention weights that cost no training, as arms against a warm-up.

| name | query and key, per head | value and projection | source |
|---|---|---|---|
| `mimetic` | Wq Wk^T is 0.7 Z + 0.7 I at rank k | x -> V -> projection is 0.4 Z - 0.4 I | arXiv 2305.09828 |
| `mimetic_as_published` | the same with 0.4 Z + 0.4 I | the factors not transposed for timm | copies of its code |
| `conditioned` | semi-orthogonal | V is the identity; projection untouched | OpenReview cKNOCYPo2W |
| `mimetic_value` | untouched | V is sqrt(0.05) I, projection its negative, noise 0.01 | modded-nanogpt, record 64 |
| `impulse` | a position attends to one neighbour on the grid | as `mimetic` | arXiv 2505.19985, its code |

Z has entries N(0, 1/D). Attention biases become 0. All else keeps the weights that the model came with: norms, MLPs,
stem and head (but `impulse` enlarges the positions). So arms of one seed differ in attention alone.

A linear layer of timm computes x W^T: its weight is the transpose of the matrix that a formula multiplies x with.

Shapes: D width, H heads, k = D / H channels a head, N positions of the grid.

Every module of this package is imported, and registers what it has with `@initialisation(NAME)`.
"""

from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules

import torch
from torch import nn

from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng, require_seed
from vitwarm.trunk.families import Attention, Family, family_of, require_changeable
from vitwarm.trunk.history import Change, note
from vitwarm.trunk.initialisations.registry import Initialisation, registered

__all__ = ["attentions", "find_initialisation", "initialise", "list_initialisations", "rewrite"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def list_initialisations() -> list[str]:
    """Their names, `default` first."""
    return ["default", *sorted(registered())]


def find_initialisation(name: str) -> Initialisation | None:
    """The initialisation of that name; None for `default`, which leaves a model alone.

    Raises:
        UserError: unknown name.
    """
    if name == "default":
        return None
    if not isinstance(name, str) or name not in registered():
        near = get_close_matches(str(name), list_initialisations(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown initialisation {name!r}; known: {', '.join(list_initialisations())}{hint}")
    return registered()[name]


def initialise(model: nn.Module, name: str, *, seed: int = 0) -> nn.Module:
    """Give the attention of a timm model another start: in place, or not at all when it is refused.

    Block b draws from the stream (seed, "init", NAME, b), whatever the model is for, so that the models of two stages
    start with the same attention; the two mimetic variants share their Z.

    Args:
        model: timm model with a supported trunk.
        name: one of `list_initialisations`.
        seed: root seed.

    Returns:
        The same model.

    Raises:
        UserError: unknown name, or a model that the formulas do not cover.
    """
    if changed := rewrite(model, name, seed=seed):
        note(family_of(model).model, *changed)
    return model


@torch.no_grad()
def rewrite(model: nn.Module, name: str, *, seed: int) -> tuple[Change, tuple[str, ...]] | None:
    """What `initialise` does, but for the model's history: what to note there, None for `default`.

    Returns:
        What changed, and the tensors of which no earlier value is left.

    Raises:
        UserError: as `initialise`.
    """
    seed = require_seed(seed)
    if (found := find_initialisation(name)) is None:
        return None
    family = family_of(require_changeable(model))
    before = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    try:
        layers = attentions(family, found)
        streams = [keyed_rng(seed, "init", found.stream, number) for number in range(len(layers))]
        found.rewrite(layers, streams, family)
    except ValueError as error:
        raise UserError(f"model.init={name} does not apply to this {type(model).__name__}: {error}") from error
    for layer in layers:
        for bias in layer.biases:
            bias.zero_()
    after = {n: t for n, t in family.model.state_dict().items() if t.ndim and t.numel()}
    rows = {n: _differ(before[n], t).reshape(len(t), -1).any(1) for n, t in after.items()}
    changed, replaced = (
        tuple(n for n, differ in rows.items() if bool(test(differ))) for test in (torch.any, torch.all)
    )
    return Change(f"initialised as {name}", seed, changed, warms=False), replaced


def _differ(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return (before != after) & ~(before.isnan() & after.isnan())


def attentions(family: Family, found: Initialisation) -> list[Attention]:
    """The weights that an initialisation is to set, of each block.

    Raises:
        ValueError: a block computes more than x -> query, key, value -> projection, which its formulas assume.
    """
    return [_attention(family, block, found.despite_norms) for block in family.model.blocks]


def _attention(family: Family, block: nn.Module, despite_norms: bool) -> Attention:
    layer = family.attention(block)
    others = [n for n in layer.others if not (despite_norms and n.rpartition(".")[0].endswith("norm"))]
    if others:
        raise ValueError(f"its attention has more than query, key, value and projection ({others[0]})")
    width = len(layer.projection)
    if any(w.shape != (width, width) for w in (layer.query, layer.key, layer.value, layer.projection)):
        raise ValueError("its heads together are not as wide as the model")
    return layer
