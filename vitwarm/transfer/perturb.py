"""Controls: tensors that keep some of what a warm-up left in them and lose the rest.

| control | what becomes of a tensor | what is kept |
|---|---|---|
| `shuffle` | its entries in random order | the values |
| `gaussian` | N(mean, sd) of its entries | mean and standard deviation |
| `noise:S` | plus N(0, (S x RMS of its entries)^2) | all but a share of noise |
| `scale:F` | times F | the direction |

Query, key and value are dealt with head by head, each as a tensor of its own: their scales differ. Every other tensor
is one piece. Source of the per-head shuffle: arXiv 2511.13945; there the projection is spared, here a group is a group.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.selection import Selection, parse_control
from vitwarm.transfer.groups import block_of, head_mask, input_rows, select


def perturb(
    tensors: Mapping[str, Tensor], controls: Mapping[str, str], *, depth: int, heads: int | None, seed: int
) -> Mapping[str, Tensor]:
    """Apply a control to each group that the recipe names one for; the given tensors are not changed.

    A tensor draws from the stream (seed, "control", CONTROL, its name), so what happens to it depends neither on the
    other tensors nor on their order.

    Args:
        tensors: {canonical name: tensor} of a source.
        controls: selection -> `shuffle`, `gaussian`, `noise:S`, `scale:F`.
        depth: blocks of the model.
        heads: attention heads of a block; None where they are not known, and query, key and value are one piece each.
        seed: root seed.

    Raises:
        UserError: an unknown group or control, one that meets nothing, two that meet in one tensor, or a number whose
            product the tensor's type cannot hold.
    """
    if not controls:
        return tensors  # as they are, with what is known of them
    changed: dict[str, Tensor] = {}
    for groups, text in controls.items():
        chosen, control = Selection.parse(groups), parse_control(text)
        names = select(tensors, chosen, depth)
        if not names:
            raise UserError(f"control {text} of {groups}: the source holds no such tensor")
        if twice := next((n for n in names if n in changed), None):
            raise UserError(f"two controls meet in {twice}; give each group one")
        for name in names:
            tensor = tensors[name].float()
            parts = _pieces(name, tensors, heads or 1)
            rng = keyed_rng(seed, "control", control[0], name)
            pieces = [_controlled(piece, *control, rng) for piece in (tensor.chunk(parts) if parts > 1 else [tensor])]
            made = torch.cat(pieces) if parts > 1 else pieces[0]  # a single number has no axis
            if (own := chosen.heads_of(block_of(name))) is not None:
                made = torch.where(head_mask(name, tensor.shape, own, heads or 1), made, tensor)
            changed[name] = made.to(tensors[name].dtype)
            if tensor.isfinite().all() and not changed[name].isfinite().all():
                raise UserError(f"control {text} of {groups}: {name} becomes infinite; give a smaller number")
    perturbed: Any = copy.copy(tensors)  # what a `Resized` knows of its tensors stays with them
    perturbed.update(changed)
    return perturbed


def _pieces(name: str, tensors: Mapping[str, Tensor], heads: int) -> int:
    """In how many pieces a tensor is perturbed: query, key and value head by head; keys and values may have fewer."""
    pieces = input_rows(name) * heads or 1
    query = re.sub(r"\.[kv](?=[._])", ".q", name)
    return pieces * len(tensors[name]) // len(tensors[query]) if query != name and query in tensors else pieces


def _controlled(piece: Tensor, name: str, number: float | None, rng: np.random.Generator) -> Tensor:
    """A tensor under a control; `number` is that of `noise` and `scale`."""
    if name == "shuffle":
        return piece.flatten()[torch.from_numpy(rng.permutation(piece.numel()))].reshape(piece.shape)
    if name == "scale":
        assert number is not None
        return piece * number
    normal = torch.from_numpy(rng.standard_normal(tuple(piece.shape))).to(piece)
    if name == "gaussian":
        return piece.mean() + piece.std(correction=0) * normal
    assert number is not None
    return piece + number * piece.square().mean().sqrt() * normal


def describe(controls: Mapping[str, str]) -> str:
    """Controls in a few words, such as `trunk shuffle`."""
    return ", ".join(f"{groups} {text}" for groups, text in controls.items())
