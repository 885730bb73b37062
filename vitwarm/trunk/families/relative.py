"""Families with relative positions, whose bias of attention takes the place of a mask."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.models.beit import Beit
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from vitwarm.trunk.blocks import additive_mask
from vitwarm.trunk.families.family import OWN_BIASES, BlockArguments, Family, family


@family(Beit)
class BeitFamily(Family):
    """BEiT and BEiT-v2: a table of relative positions biases attention, in each block or shared by all.

    A block takes the shared bias as an argument, which masks use as well.
    """

    examples = ("BEiT", "BEiT-v2")
    tensors: ClassVar[Mapping[str, str]] = {
        **Family.tensors,
        "rel_pos_bias": "embedding",
        "blocks.attn.relative_position_bias_table": "embedding",
        "blocks.gamma_1": "attention",
        "blocks.gamma_2": "mlp",
    }
    stacks: ClassVar[Mapping[str, str]] = {**Family.stacks, **OWN_BIASES}
    takes = ("shared_rel_pos_bias",)
    needs = ("patch_embed", "norm", "forward_head")

    def embed(self, images: Tensor) -> tuple[Tensor, BlockArguments]:
        vit = self.model
        tokens = vit.patch_embed(images)
        tokens = torch.cat((vit.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        if vit.pos_embed is not None:
            tokens = tokens + vit.pos_embed
        tokens = vit.pos_drop(tokens)
        return tokens, {"shared_rel_pos_bias": None if vit.rel_pos_bias is None else vit.rel_pos_bias()}

    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList(_without(block, "relative_position_bias_table") for block in self.model.blocks)

    @classmethod
    def mask_arguments(cls, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> BlockArguments:
        return {"shared_rel_pos_bias": additive_mask(x, attn_mask, is_causal)}


@family(VisionTransformerRelPos)
class RelPosFamily(Family):
    """ViTs with relative positions alone, from a table or a small MLP, in each block or shared by all."""

    examples = ("relative-position ViT (vit_relpos)",)
    tensors: ClassVar[Mapping[str, str]] = {
        **Family.tensors,
        "shared_rel_pos": "embedding",
        "blocks.attn.rel_pos": "embedding",
    }
    takes = ("shared_rel_pos",)
    needs = ("patch_embed", "norm", "forward_head")

    def embed(self, images: Tensor) -> tuple[Tensor, BlockArguments]:
        vit = self.model
        tokens = vit.patch_embed(images)
        if vit.cls_token is not None:
            tokens = torch.cat((vit.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        return tokens, {"shared_rel_pos": None if vit.shared_rel_pos is None else vit.shared_rel_pos.get_bias()}

    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList(_without(block, "rel_pos") for block in self.model.blocks)

    @classmethod
    def mask_arguments(cls, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> BlockArguments:
        return {"shared_rel_pos": additive_mask(x, attn_mask, is_causal)}


def _without(block: nn.Module, name: str) -> nn.Module:
    """A block of the same parameters whose attention lacks one of its parts; the given one is not changed."""
    block, attn = _shallow(block), _shallow(block.attn)
    setattr(attn, name, None)
    block.attn = attn
    return block


def _shallow(module: Any) -> Any:
    """A module that holds the same parameters, buffers and modules, and can be given others."""
    other = copy.copy(module)
    for kind in ("_parameters", "_buffers", "_modules"):
        other.__dict__[kind] = other.__dict__[kind].copy()
    return other
