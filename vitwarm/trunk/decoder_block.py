"""The block of a decoder: timm's, which on request computes some places only.

Shapes: B sequences, N tokens, M places of each, D channels, H heads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor


class Block(TimmBlock):
    """timm's `Block`, and its name and tensors."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, positions: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) tokens to (B, N, D), or to (B, M, D) where `positions` (B, M) are given.

        Under these attention is causal, and there is no dropout. Keys and values are of all tokens; queries, projection
        and MLP of the places alone.
        """
        if positions is None:
            whole: Tensor = super().forward(x, attn_mask, is_causal)
            return whole
        attn: Any = self.attn
        width, y = x.shape[-1], self.norm1(x)
        weight, bias = attn.qkv.weight.split([width, 2 * width]), attn.qkv.bias.split([width, 2 * width])
        q, kv = F.linear(gather(y, positions), weight[0], bias[0]), F.linear(y, weight[1], bias[1])
        q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, *kv.chunk(2, -1)))  # (B, H, ., d)
        sees = (torch.arange(x.shape[1], device=x.device) <= positions[..., None])[:, None]  # (B, 1, M, N)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=sees)
        x = gather(x, positions) + attn.proj(attended.transpose(1, 2).flatten(2))
        mlp: Any = self.mlp
        asked: Tensor = x + mlp(self.norm2(x))
        return asked


def gather(x: Tensor, positions: Tensor) -> Tensor:
    """(B, N, D) tokens at `positions` (B, M): (B, M, D)."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))
