"""Tensor groups: which names belong to attention, MLP, norms, stem and head.

| group       | tensors                                                                          |
|-------------|----------------------------------------------------------------------------------|
| `attention` | `blocks.N.attn.*` and the layer scale behind it (`ls1`, `gamma_1`)               |
| `mlp`       | `blocks.N.mlp.*` and the layer scale behind it (`ls2`, `gamma_2`)                |
| `norm`      | `norm1`, `norm2` of the blocks, `norm_pre`, the final norm                       |
| `trunk`     | the three above, and what attention and MLP share in parallel blocks (`in_proj`) |
| `stem`      | `patch_embed`, `token_embed`, `pos_embed`, prefix tokens, rotary tables          |
| `head`      | everything after the final norm: classifier, attention pooling                   |

Norms inside the attention or the MLP belong to those. Names are canonical (see `canonical`): the final norm is
`norm.*` in every model.
"""

import re
from collections.abc import Iterable

from vitwarm.errors import UserError
from vitwarm.trunk import PREFIX_TOKENS

GROUPS = ("trunk", "attention", "mlp", "norm", "stem", "head")

_BLOCK = re.compile(r"^blocks\.(\d+)\.(\w+)")
_PARTS = {
    "attention": {"attn", "ls1", "gamma_1", "attns", "attn_out_proj", "q_norm", "k_norm"},
    "mlp": {"mlp", "ls2", "gamma_2", "ffns", "mlp_out_proj"},
    "norm": {"norm1", "norm2", "in_norm"},
}
_STEM = ("patch_embed.", "token_embed.", "pos_embed", "rope.", *PREFIX_TOKENS)


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Model names to canonical ones: a final norm that timm keeps behind the pooling (`fc_norm`) is `norm`."""
    names = list(names)
    moved = any(n.startswith("fc_norm.") for n in names) and not any(n.startswith("norm.") for n in names)
    return {n: n.removeprefix("fc_") if moved and n.startswith("fc_norm.") else n for n in names}


def group_of(name: str) -> str:
    """The narrowest group that a canonical tensor name belongs to."""
    if block := _BLOCK.match(name):
        return next((part for part, modules in _PARTS.items() if block[2] in modules), "trunk")
    if name.startswith(("norm.", "norm_pre.")):
        return "norm"
    return "stem" if name.startswith(_STEM) else "head"


def block_of(name: str) -> int | None:
    """Number of the block that a tensor belongs to; None outside the blocks."""
    return int(block[1]) if (block := _BLOCK.match(name)) else None


def select(names: Iterable[str], groups: Iterable[str]) -> list[str]:
    """The canonical names that belong to any of the groups.

    Raises:
        UserError: an unknown group.
    """
    parts = set()
    for group in groups:
        if group not in GROUPS:
            raise UserError(f"unknown tensor group {group!r}; known: {', '.join(GROUPS)}")
        parts |= {"trunk", *_PARTS} if group == "trunk" else {group}
    return [n for n in names if group_of(n) in parts]
