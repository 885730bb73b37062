"""A trunk of one size becomes one of another: a part of a larger model's weights, or a small core spread over a larger.

`select` (weight selection, arXiv 2311.18823) takes the first blocks and, along each axis, every s-th element.

`expand` copies the three blocks of a core, {first, middle, last}, to any depth and tiles them to any larger width:

| axis of a matrix | made of | the matrix is divided by |
|---|---|---|
| residual stream | copies of the core's channels | sqrt(r): what the copies receive from a fresh stem is independent |
| attention heads | copies of heads; in a wider head its channels repeat | r: what the copies say is the same |
| hidden units of the MLP | copies of units | r, likewise |

where r is the new length of the matrix's inputs over the core's. So a block's output is as large as the core's. Queries
and keys of wider heads shrink to keep the logits. Norms and biases are tiled along. To what was tiled comes noise of
`NOISE` times its root mean square: two units with equal weights would get equal gradients forever.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.transfer.groups import block_of, canonical, group_of, input_letters, input_rows
from vitwarm.trunk import require_values, trunk_facts

NOISE = 0.1

Fit = Literal["select", "expand"]


def resize(
    tensors: Mapping[str, Tensor], model: nn.Module, fit: Fit, *, heads: int | None, seed: int
) -> dict[str, Tensor]:
    """The trunk's tensors of a source in the shapes of a model; stem and head are left out.

    Args:
        tensors: {canonical name: tensor} of the source.
        model: timm model or decoder.
        fit: see the module's page.
        heads: attention heads of the source; `expand` must know them.
        seed: root seed of the noise of `expand`.

    Raises:
        UserError: a source that is too small to select from, or no core that can be expanded to the model.
    """
    state = require_values(model).state_dict()
    own = {c: state[n].shape for n, c in canonical(state).items()}
    wanted = {n: shape for n, shape in own.items() if group_of(n) not in ("embedding", "head")}
    if fit == "select":
        return {n: _select(n, tensors[n], shape) for n, shape in wanted.items() if _has(tensors, n)}
    return _expand(tensors, wanted, trunk_facts(model), heads, seed)


def _has(tensors: Mapping[str, Tensor], name: str) -> bool:
    if name in tensors:
        return True
    depth = 1 + max((b for n in tensors if (b := block_of(n)) is not None), default=-1)
    if (block := block_of(name)) is not None and block >= depth:
        raise UserError(f"transfer.fit=select: the source has {depth} blocks, too few to take {name} from")
    return False  # such as a layer scale: stays fresh


def every(many: int, few: int) -> np.ndarray:
    """`few` of `many` places: every s-th when it divides, else evenly spread and rounded. Source: arXiv 2311.18823."""
    return np.arange(few) * (many // few) if many % few == 0 else np.linspace(0, many - 1, few).round().astype(int)


def _select(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    if tensor.ndim != len(shape) or any(a < b for a, b in zip(tensor.shape, shape, strict=True)):
        raise UserError(
            f"transfer.fit=select takes a part of larger weights, but {name} is {tuple(tensor.shape)} there and "
            f"{tuple(shape)} in the model"
        )
    parts = input_rows(name) or 1  # query, key and value each give their part
    pieces = [torch.from_numpy(every(tensor.shape[0] // parts, shape[0] // parts)) + p * (tensor.shape[0] // parts)
              for p in range(parts)]  # fmt: skip
    tensor = tensor[torch.cat(pieces)]
    for axis in range(1, len(shape)):
        tensor = tensor.index_select(axis, torch.from_numpy(every(tensor.shape[axis], shape[axis])))
    return tensor.contiguous()


def _expand(
    core: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], facts: Mapping[str, Any], heads: int | None, seed: int
) -> dict[str, Tensor]:
    core = {n: t for n, t in core.items() if group_of(n) not in ("embedding", "head")}
    if {block_of(n) for n in core} - {None} != {0, 1, 2} or heads is None:
        raise UserError("transfer.fit=expand takes a core: three blocks, and vitwarm.json beside them with the heads")
    depth, width = facts["depth"], len(core["blocks.0.norm1.weight"])
    if depth < 3 or facts["heads"] is None:
        raise UserError(f"a core is expanded to three blocks or more, each with heads; the model has {depth} blocks")
    sizes = (heads, width // heads), (facts["heads"], facts["width"] // facts["heads"])
    origins = {n: re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{_third(int(m[1]), depth)}", n) for n in wanted}
    if missing := sorted(set(core) - set(origins.values())):
        raise UserError(f"the core does not fit the model's blocks ({facts['block']}), which have no {missing[0]}")
    return {
        name: _tile(name, core[origin].float(), wanted[name], *sizes, seed)
        for name, origin in origins.items()
        if origin in core  # else the model's own, such as a layer scale
    }


def _third(block: int, depth: int) -> int:
    """Number of the core's block {first, middle, last} that a block is made of."""
    return 0 if block == 0 else 2 if block == depth - 1 else 1


def _tile(
    name: str, tensor: Tensor, shape: torch.Size, small: tuple[int, int], large: tuple[int, int], seed: int
) -> Tensor:
    """One tensor of the core in the model's shape; `small` and `large` are (heads, channels a head)."""
    (heads, channels), (new_heads, new_channels) = small, large
    head = (np.arange(new_heads) % heads)[:, None] * channels + np.arange(new_channels) % channels
    head = head.ravel()
    parts = input_rows(name)
    if any(new < old for new, old in zip(shape, tensor.shape, strict=True)):
        raise UserError(
            f"the core's {name} is {tuple(tensor.shape)}, the model's only {tuple(shape)}: it cannot shrink"
        )
    if parts:
        size = heads * channels
        rows = np.concatenate([p * size + head for p in range(parts)])
    else:
        rows = np.arange(shape[0]) % len(tensor)
    made = tensor[torch.from_numpy(rows)]
    if scaled := len(input_letters(name).removesuffix("v")):
        made[: scaled * len(head)] *= (channels / new_channels) ** 0.25  # queries, keys: logits add up over channels
    if made.ndim == 2:
        ratio = shape[1] / tensor.shape[1]
        coherent = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
        columns = head if name.endswith("attn.proj.weight") else np.arange(shape[1]) % tensor.shape[1]
        made = made[:, torch.from_numpy(columns)] / (ratio if coherent else ratio**0.5)
    if made.shape != tensor.shape and made.ndim == 2:
        noise = keyed_rng(seed, "expand", name).standard_normal(tuple(made.shape), dtype=np.float32)
        made = made + NOISE * made.square().mean().sqrt() * torch.from_numpy(noise)
    return made.contiguous()
