"""Tensor groups: which names belong to attention, MLP, norms, embedding and head.

| group       | tensors                                                                          |
|-------------|----------------------------------------------------------------------------------|
| `attention` | `blocks.N.attn.*` and the layer scale behind it (`ls1`, `gamma_1`)               |
| `mlp`       | `blocks.N.mlp.*` and the layer scale behind it (`ls2`, `gamma_2`)                |
| `norm`      | `norm1`, `norm2` of the blocks, `norm_pre`, the final norm                       |
| `norm1`     | of these the norms before the attention                                          |
| `norm2`     | of these the norms before the MLP                                                |
| `trunk`     | attention, MLP, norms, and `in_proj`, which parallel blocks share between them   |
| `embedding` | `patch_embed`, `token_embed`, `pos_embed`, prefix tokens, tensors of rotary      |
|             | positions and of relative ones, those inside the blocks too                      |
| `head`      | everything after the final norm: classifier, attention pooling                   |

`vitwarm.selection` says how blocks and heads narrow them. Norms inside the attention or the MLP belong to those. Names
are canonical (see `canonical`): the final norm is `norm.*` in every model. Which tensor of which family belongs where
stands in `vitwarm.trunk.families`.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from vitwarm.errors import UserError
from vitwarm.selection import GROUPS, Selection
from vitwarm.trunk.families import canonical, stacked, tensor_group

__all__ = ["GROUPS", "block_of", "canonical", "group_of", "head_mask", "input_letters", "input_rows", "select"]

_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_TRUNK = ("trunk", "attention", "mlp", "norm")
_NORMS = {  # also of the attentions and MLPs that run side by side in a block
    "norm1": re.compile(r"^blocks\.\d+\.(norm1|attns\.\d+\.norm)\."),
    "norm2": re.compile(r"^blocks\.\d+\.(norm2|ffns\.\d+\.norm)\."),
}


def group_of(name: str) -> str:
    """The group that a canonical tensor name belongs to; of a norm it is `norm`."""
    return tensor_group(_BLOCK.sub("blocks.", name))


def block_of(name: str) -> int | None:
    """Number of the block that a tensor belongs to; None outside the blocks."""
    return int(block[1]) if (block := _BLOCK.match(name)) else None


def input_letters(name: str) -> str:
    """Which of query, key and value a tensor stacks in its rows, such as `qkv` or `q`; empty for any other tensor."""
    return stacked(_BLOCK.sub("", name))


def input_rows(name: str) -> int:
    """How many of query, key and value a tensor stacks in its rows, head by head; 0 for any other tensor."""
    return len(input_letters(name))


def select(names: Iterable[str], groups: str | Iterable[str] | Selection, depth: int | None = None) -> list[str]:
    """The canonical names that a selection takes, whole or (see `head_mask`) in part.

    Args:
        names: canonical.
        groups: words of `vitwarm.selection`.
        depth: blocks of the model, which `layers=` counts in; None: as many as the names show.

    Raises:
        UserError: an unknown group, or blocks that are not there.
    """
    chosen = groups if isinstance(groups, Selection) else Selection.parse(groups)
    names = list(names)
    kinds = {kind for g in chosen.kinds for kind in (_TRUNK if g == "trunk" else (g,))}
    if depth is None:
        depth = 1 + max((b for n in names if (b := block_of(n)) is not None), default=-1)
    blocks = chosen.blocks(depth)
    norms = [_NORMS[kind] for kind in kinds if kind in _NORMS]

    def taken(name: str) -> bool:
        return group_of(name) in kinds or any(norm.match(name) for norm in norms)

    found = [n for n in names if taken(n) and (blocks is None or block_of(n) in blocks)]
    if not chosen.heads:
        return found
    return [n for n in found if chosen.heads_of(block_of(n)) and (input_rows(n) or n.endswith("attn.proj.weight"))]


def head_mask(name: str, shape: torch.Size, heads: set[int], num_heads: int) -> Tensor:
    """Which entries of an attention tensor are of these heads: rows of query, key, value, columns of the projection.

    Raises:
        UserError: a head that the model does not have.
    """
    if max(heads) >= num_heads:
        raise UserError(f"heads={max(heads)} of {name}: the model has {num_heads} heads, 0 to {num_heads - 1}")
    own = torch.zeros(num_heads, dtype=torch.bool)
    own[list(heads)] = True
    if not (parts := input_rows(name)):
        return own.repeat_interleave(shape[1] // num_heads).expand(shape)
    rows = own.repeat_interleave(shape[0] // (parts * num_heads)).repeat(parts)
    return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
