"""A trunk of one size becomes one of another: a part of a larger model's weights, or a small core spread over a larger.

`select` (weight selection, arXiv 2311.18823) takes the first blocks and, along each axis, every s-th element.

`expand` spreads a core of three blocks; see `vitwarm.transfer.expand`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.errors import UserError
from vitwarm.transfer.expand import Resized, atoms, every, expand
from vitwarm.transfer.groups import block_of, canonical, group_of, input_rows
from vitwarm.trunk import family_of

Fit = Literal["select", "expand"]


def resize(tensors: Mapping[str, Tensor], model: nn.Module, fit: Fit, *, heads: int | None, seed: int) -> Resized:
    """The trunk's tensors of a source in the shapes of a model; stem and head are left out.

    Args:
        tensors: {canonical name: tensor} of the source.
        model: timm model or decoder.
        fit: see the module's page.
        heads: attention heads of the source; `expand` must know them.
        seed: root seed of the noise of `expand`.

    Raises:
        UserError: a source that is too small to select from or stores its blocks otherwise, or no core that can be
            expanded to the model.
    """
    state = family_of(model).model.state_dict()
    own = {c: state[n].shape for n, c in canonical(state).items()}
    wanted = {n: shape for n, shape in own.items() if group_of(n) not in ("embedding", "head")}
    if fit == "select":
        _require_same_blocks(tensors, model)
        return _selection(tensors, wanted, model)
    return expand(tensors, model, heads, seed)


def _require_same_blocks(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse a model whose blocks hold a source's numbers under other names: they would stay fresh without a word."""
    family = family_of(model)
    for number, block in enumerate(family.model.blocks):
        prefix, state = f"blocks.{number}.", block.state_dict()
        own = {n.removeprefix(prefix) for n in tensors if n.startswith(prefix)}
        known = {atom for n in own for atom in atoms(n)}
        for name, parts in family.counterparts(block).items() if own else ():
            there = {atom for part in parts if part for atom in atoms(part)} & known
            if parts and name not in own and (there or state[name].ndim > 1):
                raise UserError(
                    f"transfer.fit=select: {type(block).__name__} of the model keeps {prefix}{name}, which the source "
                    "has not, or in another form; take a source of the model's kind, or expand a core"
                )


def _selection(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], model: nn.Module) -> Resized:
    family = family_of(model)
    blocks = [family.counterparts(block) for block in family.model.blocks]
    made = Resized()
    for name, shape in wanted.items():
        if _has(tensors, name):
            block = block_of(name)
            parts = blocks[block].get(name.split(".", 2)[2], ()) if block is not None else ()
            made[name] = _select(name, tensors, shape, parts, int(family.model.embed_dim))
    depth = 1 + max((b for n in wanted if (b := block_of(n)) is not None), default=-1)
    left = {
        re.sub(r"^blocks\.\d+", "blocks.*", n)
        for n in tensors.keys() - wanted.keys()
        if group_of(n) not in ("embedding", "head") and (block_of(n) or 0) < depth
    }
    made.unused = dict.fromkeys(sorted(left), "the model has no such tensor")
    return made


def _has(tensors: Mapping[str, Tensor], name: str) -> bool:
    if name in tensors:
        return True
    depth = 1 + max((b for n in tensors if (b := block_of(n)) is not None), default=-1)
    if (block := block_of(name)) is not None and block >= depth:
        raise UserError(f"transfer.fit=select: the source has {depth} blocks, too few to take {name} from")
    return False  # such as a layer scale: stays fresh


def _select(
    name: str, tensors: Mapping[str, Tensor], shape: torch.Size, parts: Sequence[str | None], width: int
) -> Tensor:
    tensor = tensors[name]
    if tensor.ndim != len(shape) or any(a < b for a, b in zip(tensor.shape, shape, strict=True)):
        raise UserError(
            f"transfer.fit=select takes a part of larger weights, but {name} is {tuple(tensor.shape)} there and "
            f"{tuple(shape)} in the model"
        )
    before = _width(tensors)
    for axis, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        rows = _pieces(name, axis, parts, old, before), _pieces(name, axis, parts, new, width)
        places, start = [], 0
        for many, few in zip(*rows, strict=True):  # what is stacked on an axis is selected from piece by piece
            places.append(every(many, few) + start)
            start += many
        tensor = tensor.index_select(axis, torch.from_numpy(np.concatenate(places)))
    return tensor.contiguous()


def _width(tensors: Mapping[str, Tensor]) -> int:
    """Length of the residual stream, from any norm of the blocks."""
    return next((len(t) for n, t in tensors.items() if group_of(n) == "norm"), 0)


def _pieces(name: str, axis: int, parts: Sequence[str | None], length: int, width: int) -> list[int]:
    """Lengths of what a tensor stacks along an axis.

    Args:
        name: canonical.
        axis: rows are 0.
        parts: see `Family.counterparts`.
        length: of the axis.
        width: of the residual stream.
    """
    if axis == 0 and (letters := input_rows(name)):  # query, key and value
        return [length // letters] * letters
    if axis == 0 and None in parts:  # of a gated MLP
        return [length // 2] * 2
    if axis == int(".out_proj." in name) and len(parts) > 1:  # of blocks whose attention and MLP run side by side
        stacked = [atom for part in parts if part for atom in atoms(part)]
        hidden = length - width * (len(stacked) - 1)
        return [hidden if atom.startswith("mlp.") else width for atom in stacked]
    return [length]
