"""The trunk: `norm_pre -> blocks -> final norm` of a real timm model, run on any tokens.

Shapes: B sequences, N tokens, D channels (the trunk's width), H heads.
"""

from collections.abc import Iterable
from inspect import signature

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from vitwarm.errors import UserError


def refusal(model: nn.Module) -> str | None:
    """Why the blocks of a timm model (or of our decoder, made from the same) cannot serve as a trunk, or None."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) == 0:
        return "it has no plain sequence of transformer blocks"
    for name in ("attn_mask", "is_causal"):
        if name not in signature(blocks[0].forward).parameters:
            return f"its blocks do not take {name} ({type(blocks[0]).__name__})"
    if hasattr(model, "token_embed"):
        return None  # a decoder: no picture to replace
    missing = [n for n in ("patch_embed", "_pos_embed", "norm", "forward_head") if not hasattr(model, n)]
    if missing:
        return f"it has no {missing[0]}, so its tokens cannot be replaced"
    if not hasattr(model.patch_embed, "grid_size"):
        return "its patch embedding has no fixed grid"
    return None


def final_norm_name(model: nn.Module) -> str:
    """Name of the norm that closes the trunk: `norm`, or `fc_norm` where timm moves it behind the pooling.

    timm sets the other one to Identity. A token-level objective on an average-pooled model must still pass
    through `fc_norm`, or its head would read un-normalised features.
    """
    fc_norm = getattr(model, "fc_norm", None)
    if isinstance(model.norm, nn.Identity) and fc_norm is not None and not isinstance(fc_norm, nn.Identity):
        return "fc_norm"
    return "norm"


def trunk_facts(model: nn.Module) -> dict[str, str | int | None]:
    """What two trunks must share before tensors can go from one to the other; head count and block type leave no
    trace in the shapes."""
    block = model.blocks[0]
    return {
        "block": type(block).__name__,
        "width": model.embed_dim,
        "depth": len(model.blocks),
        "heads": getattr(getattr(block, "attn", block), "num_heads", None),
    }


def merge_causal(attn_mask: Tensor, length: int) -> Tensor:
    """One mask that says what `attn_mask` and `is_causal` say together.

    timm's fused attention raises when given both and its unfused one lets `is_causal` win silently.

    Args:
        attn_mask: (..., N, N), bool (True attends) or additive float.
        length: N.
    """
    causal = torch.ones(length, length, dtype=torch.bool, device=attn_mask.device).tril()
    if attn_mask.dtype == torch.bool:
        return attn_mask & causal
    return attn_mask.masked_fill(~causal, float("-inf"))


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    rope: Tensor | None = None,
    rope_per_block: bool = False,
    grad_checkpointing: bool = False,
) -> Tensor:
    """Run timm blocks on tokens; masks and gradient checkpointing work together (timm's own loop drops the latter).

    Args:
        blocks: timm blocks whose forward takes `(x, attn_mask, is_causal)`.
        x: (B, N, D) tokens.
        attn_mask: broadcastable to (B, H, N, N); bool (True attends) or additive float.
        is_causal: token i attends to tokens <= i.
        rope: rotary embedding for blocks that take one; with `rope_per_block`, its first axis is the block.
        rope_per_block: see `rope` (timm's "mixed" rotary embeddings).
        grad_checkpointing: recompute each block in the backward pass.

    Returns:
        (B, N, D).
    """
    if attn_mask is not None and is_causal:
        attn_mask, is_causal = merge_causal(attn_mask, x.shape[1]), False
    for i, block in enumerate(blocks):
        arguments = {"attn_mask": attn_mask, "is_causal": is_causal}
        if rope is not None:
            arguments["rope"] = rope[i] if rope_per_block else rope
        x = checkpoint(block, x, **arguments) if grad_checkpointing else block(x, **arguments)
    return x


def in_order(blocks: nn.Sequential | nn.ModuleList, middle_runs: int) -> list[nn.Module]:
    """Blocks in the order in which they run: of three, the middle one `middle_runs` times in a row (compact core).

    Raises:
        UserError: not three blocks, where one is to repeat.
    """
    if middle_runs == 1:
        return list(blocks)
    if len(blocks) != 3:
        raise UserError(f"warmup.middle_runs repeats the middle of three blocks; the model has {len(blocks)}")
    return [blocks[0], *[blocks[1]] * middle_runs, blocks[2]]


class Trunk(nn.Module):
    """The shared part of every stage. Holds the modules of the model it is made from, not copies.

    Tensor names are the same for every source: `norm_pre.*`, `blocks.N.*`, `norm.*`, whichever of `norm` and
    `fc_norm` is real in the model. Rotary models run without rotation here: symbols have no place on the image grid.

    Args:
        model: timm model, or a decoder.
        grad_checkpointing: recompute each block in the backward pass.
        middle_runs: how often in a row the middle one of three blocks runs, always with the same weights.

    Raises:
        UserError: the model's family is not supported; the message says why. Not three blocks, where one is to repeat.
    """

    def __init__(self, model: nn.Module, grad_checkpointing: bool = False, middle_runs: int = 1):
        super().__init__()
        if reason := refusal(model):
            raise UserError(
                f"{type(model).__name__} cannot be warmed up: {reason}; use a ViT, DeiT, DeiT-III, SigLIP, EVA-02 "
                "or DINOv3 of timm"
            )
        self.norm_pre = getattr(model, "norm_pre", nn.Identity())
        self.blocks = model.blocks
        self.norm = getattr(model, final_norm_name(model))
        self.width: int = model.embed_dim
        self.grad_checkpointing = grad_checkpointing
        in_order(self.blocks, middle_runs)  # refuses what cannot be
        self.middle_runs = middle_runs

    def forward(self, x: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) tokens to (B, N, D) normalised features; arguments as in `run_blocks`."""
        x = self.norm_pre(x)
        x = run_blocks(
            in_order(self.blocks, self.middle_runs),
            x,
            attn_mask=attn_mask,
            is_causal=is_causal,
            grad_checkpointing=self.grad_checkpointing,
        )
        return self.norm(x)
