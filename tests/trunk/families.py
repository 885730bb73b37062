"""Tiny members of every family that the trunk serves: label -> (timm name, arguments of create_model)."""

import timm
import torch
from torch import nn

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8}

NAFLEX = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8, "pos_embed_grid_size": (4, 4)}
NAFLEX |= {"pretrained_cfg_overlay": {"input_size": (3, 32, 32)}}

FAMILIES = {
    "token": ("test_vit", {"img_size": 32}),
    "avg, fc_norm": ("test_vit2", {"img_size": 32}),
    "attention pool": ("test_vit3", {"img_size": 32}),
    "RmsNorm": ("test_vit4", {"img_size": 32}),
    "no class token": ("test_vit", {"img_size": 32, "class_token": False, "global_pool": "avg"}),
    "no norm": ("vit_pe_spatial_tiny_patch16_512", SMALL),
    "DeiT distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "DeiT-III": ("deit3_small_patch16_224", SMALL),
    "SigLIP": ("vit_base_patch16_siglip_224", SMALL),
    "CLIP, norm_pre": ("vit_base_patch16_clip_224", SMALL),
    "registers": ("vit_medium_patch16_reg4_gap_256", SMALL),
    "dynamic size": ("test_vit", {"img_size": 32, "dynamic_img_size": True}),
    "AIMv2": ("aimv2_large_patch14_224", SMALL | {"img_size": 28, "patch_size": 7}),
    "parallel things": ("vit_small_patch16_18x2_224", SMALL),
    "parallel scaling": ("vit_base_patch16_xp_224", SMALL),
    "differential": ("vit_dpwee_patch16_reg1_gap_256", SMALL),
    "EVA-02": ("eva02_tiny_patch14_224", SMALL | {"img_size": 28, "patch_size": 7}),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", SMALL),
    "DINOv3": ("vit_small_patch16_dinov3", SMALL),
    "rope": ("vit_base_patch16_rope_reg1_gap_256", SMALL),
    "rope mixed": ("vit_base_patch16_rope_mixed_224", SMALL),
    "NaFlex": ("naflexvit_base_patch16_gap", NAFLEX),
    "NaFlex, class token": ("naflexvit_base_patch16_gap", NAFLEX | {"class_token": True, "global_pool": "token"}),
    "NaFlex, rope mixed": ("naflexvit_base_patch16_map", NAFLEX | {"rope_type": "mixed", "attn_type": "eva"}),
    "BEiT": ("beit_base_patch16_224", SMALL),
    "BEiT-v2": ("beitv2_base_patch16_224", SMALL),
    "BEiT, shared": ("beit_base_patch16_224", SMALL | {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "BEiT, both, positions": (
        "beit_base_patch16_224",
        SMALL | {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True},
    ),
    "relpos MLP": ("vit_relpos_base_patch16_224", SMALL),
    "relpos shared": ("vit_srelpos_small_patch16_224", SMALL),
    "relpos class token": ("vit_relpos_medium_patch16_cls_224", SMALL),
    "relpos post-norm": ("vit_relpos_small_patch16_rpn_224", SMALL),
    "relpos table": ("vit_relpos_base_patch16_cls_224", SMALL | {"rel_pos_type": "bias", "qk_norm": True}),
}


def tiny(label: str, **more: object) -> nn.Module:
    """A member whose every tensor matters: no zero head, no layer scale of 1e-5."""
    name, arguments = FAMILIES[label]
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=7, **arguments, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
