"""Families with rotary positions, and with query, key and value apart."""

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.layers import apply_keep_indices_nlc
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from torch import Tensor

from vitwarm.trunk.families.family import OWN_BIASES, BlockArguments, Family, family

_SEPARATE = {f"attn.{letter}_proj.{kind}": letter for letter in "qkv" for kind in ("weight", "bias")}


@family(Eva)
class EvaFamily(Family):
    """EVA, EVA-02, DINOv3 and ViTs with rotary positions."""

    examples = ("EVA-02", "DINOv3")
    tensors: ClassVar[Mapping[str, str]] = {
        **Family.tensors,
        "rope": "embedding",
        "blocks.gamma_1": "attention",
        "blocks.gamma_2": "mlp",
    }
    stacks: ClassVar[Mapping[str, str]] = {**Family.stacks, **_SEPARATE, **OWN_BIASES}

    def embed(self, images: Tensor) -> tuple[Tensor, BlockArguments]:
        """See `Family.embed`; patch dropout is part of timm's own step, since it drops rotations too."""
        tokens, rope = self.model._pos_embed(self.model.patch_embed(images))
        tokens = self.model.norm_pre(tokens)
        if rope is None:
            return tokens, {}
        if getattr(self.model, "rope_mixed", False):  # the first axis is the block
            return tokens, [{"rope": rope[i]} for i in range(len(rope))]
        return tokens, {"rope": rope}


@family(NaFlexVit)
class NaFlexFamily(Family):
    """NaFlexViT: patches, positions and prefix tokens in one module, and images of any size."""

    examples = ("NaFlexViT",)
    tensors: ClassVar[Mapping[str, str]] = {**EvaFamily.tensors, "embeds": "embedding"}
    stacks: ClassVar[Mapping[str, str]] = EvaFamily.stacks
    needs = ("embeds", "_forward_embeds", "norm", "forward_head")
    any_size = True

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.model.embeds.dynamic_feat_size(self.input_size)
        return rows, columns

    @property
    def input_size(self) -> tuple[int, int]:
        return self.named_size()

    @property
    def stem(self) -> Any:
        return self.model.embeds

    def embed(self, images: Tensor) -> tuple[Tensor, BlockArguments]:
        """See `Family.embed`; patch dropout is part of timm's own step, but for rotations of each block's own."""
        found = self.model._forward_embeds(images, None, None, None)
        tokens, rope, kept = (found[name] for name in ("patches", "rope_embeds", "keep_indices"))
        if rope is None or not self.model.rope_is_mixed:
            return tokens, {} if rope is None else {"rope": rope}
        if kept is not None:
            rope = [apply_keep_indices_nlc(tokens, own, kept, pos_embed_has_batch=False) for own in rope]
        return tokens, [{"rope": own} for own in rope]
