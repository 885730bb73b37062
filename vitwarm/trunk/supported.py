"""The plain ViTs of timm that stand for their sizes: what the refusal of another model points to."""

from math import log2
from typing import Any

PLAIN = {  # name -> parameters in millions
    "vit_tiny_patch16_224": 5.7,
    "vit_tiny_patch16_384": 5.8,
    "vit_small_patch16_224": 22.1,
    "vit_small_patch16_384": 22.2,
    "deit3_medium_patch16_224": 38.8,
    "vit_base_patch16_224": 86.6,
    "vit_base_patch16_384": 86.9,
    "vit_large_patch16_224": 304.3,
    "vit_large_patch16_384": 304.7,
    "vit_huge_patch14_224": 630.8,
    "vit_giant_patch14_224": 1012.6,
    "vit_gigantic_patch14_224": 1844.4,
}


def nearest(model: Any) -> str:
    """The plain ViT nearest to a model of timm in parameters and image size, where a factor of either counts alike.

    Args:
        model: timm model, also on the device `meta`.
    """
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    own = getattr(getattr(model, "patch_embed", None), "img_size", None)
    side = (own or model.pretrained_cfg.get("input_size") or [224])[-1]

    def distance(name: str) -> float:
        return abs(log2(PLAIN[name] / parameters)) + abs(log2(int(name.rpartition("_")[2]) / side))

    return min(PLAIN, key=distance)
