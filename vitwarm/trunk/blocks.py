"""Running transformer blocks: masks, gradient checkpointing, the order of a compact core.

Shapes: B sequences, N tokens, D channels (the trunk's width), H heads.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from vitwarm.errors import UserError


def merge_causal(attn_mask: Tensor, length: int) -> Tensor:
    """Merge `attn_mask` and a causal mask into one.

    timm's fused attention raises when given both and its unfused one lets `is_causal` win silently.

    Args:
        attn_mask: (..., N, N), bool (True attends) or additive float.
        length: N.
    """
    causal = torch.ones(length, length, dtype=torch.bool, device=attn_mask.device).tril()
    if attn_mask.dtype == torch.bool:
        return attn_mask & causal
    return attn_mask.masked_fill(~causal, float("-inf"))


def mask_arguments(x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> dict[str, Any]:
    """Arguments of a block that takes `attn_mask` and `is_causal`, of which at most one is set.

    Args:
        x: (B, N, D) tokens.
        attn_mask: broadcastable to (B, H, N, N); bool (True attends) or additive float.
        is_causal: token i attends to tokens <= i.
    """
    if attn_mask is not None and is_causal:
        attn_mask, is_causal = merge_causal(attn_mask, x.shape[1]), False
    return {"attn_mask": attn_mask, "is_causal": is_causal}


def additive_mask(x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor | None:
    """`mask_arguments` as one bias of the attention logits, for blocks that take a bias and no mask.

    Returns:
        Broadcastable to (B, H, N, N); 0 or -inf where the mask is bool. None where every token attends to all.
    """
    if is_causal:
        everything = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        attn_mask = merge_causal(everything if attn_mask is None else attn_mask, x.shape[1])
    if attn_mask is None or attn_mask.dtype != torch.bool:
        return attn_mask
    return torch.zeros(attn_mask.shape, dtype=x.dtype, device=x.device).masked_fill(~attn_mask, float("-inf"))


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    arguments: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    grad_checkpointing: bool = False,
) -> Tensor:
    """Run timm blocks on tokens; masks and gradient checkpointing work together (timm's own loop drops the latter).

    Args:
        blocks: in the order in which they run.
        x: (B, N, D) tokens.
        arguments: what a block takes besides its tokens; one mapping for all, or one for each.
        grad_checkpointing: recompute each block in the backward pass.

    Returns:
        (B, N, D).
    """
    for i, block in enumerate(blocks):
        own = arguments if isinstance(arguments, Mapping) else arguments[i]
        x = checkpoint(block, x, **own) if grad_checkpointing else block(x, **own)
    return x


def is_compiled(block: nn.Module) -> bool:
    """Whether a block was compiled in place."""
    return block._compiled_call_impl is not None


def in_order(blocks: nn.Sequential | nn.ModuleList, middle_runs: int) -> list[nn.Module]:
    """Blocks in the order in which they run: of three, the middle one comes `middle_runs` times (compact core).

    Raises:
        UserError: not three blocks, where one is to repeat.
    """
    if middle_runs == 1:
        return list(blocks)
    if len(blocks) != 3:
        raise UserError(f"warmup.middle_runs repeats the middle of three blocks; the model has {len(blocks)}")
    return [blocks[0], *[blocks[1]] * middle_runs, blocks[2]]
