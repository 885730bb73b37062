"""What is found on the device `meta` is what the model itself does, and what cannot work is refused there."""

import pytest
import timm
import torch
from families import FAMILIES, tiny

from vitwarm.config import ModelConfig
from vitwarm.errors import UserError
from vitwarm.trunk import family_of, rehearse_images, require_memory


def found(label, size=None, **more):
    name, arguments = FAMILIES[label]
    return rehearse_images(ModelConfig(name, 7, arguments | more), size)


@pytest.mark.parametrize("label", FAMILIES)
def test_tokens_of_an_image_are_those_of_the_first_block(label):
    model, seen = tiny(label), []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    size = family_of(model).input_size
    model(torch.randn(1, 3, *size))
    alone = found(label)
    assert alone[:3] == (*size, seen.pop())
    if family_of(model).any_size:
        model(torch.randn(1, 3, 64, 64))
        assert found(label, 64)[:3] == (64, 64, seen.pop()) and found(label, 64).tokens > alone.tokens


@pytest.mark.parametrize(
    ("arguments", "size", "tokens"),
    [
        ({"img_size": 32, "dynamic_img_size": True}, 64, 1 + 16),
        ({"img_size": 32, "dynamic_img_size": True, "dynamic_img_pad": True}, 70, 1 + 25),
        ({"img_size": 64, "patch_size": [8, 16]}, None, 1 + 8 * 4),
        ({"img_size": [32, 64]}, None, 1 + 2 * 4),
        ({"img_size": 64, "reg_tokens": 3}, None, 4 + 16),
        ({"img_size": 64, "patch_drop_rate": 0.5}, None, 1 + 8),  # in training
        ({"img_size": 64, "class_token": False, "global_pool": "map"}, None, 16),
    ],
)
def test_tokens_are_those_of_what_is_trained(arguments, size, tokens):
    assert rehearse_images(ModelConfig("test_vit", 7, arguments), size).tokens == tokens


@pytest.mark.parametrize(
    ("arguments", "size", "reason"),
    [
        ({"img_size": 32}, 9, "cannot take images of 9x9: Input height"),
        ({"img_size": 33}, None, "cannot take images of 33x33: Input height"),
        ({"img_size": 32, "global_pool": ""}, None, r"gives \(5, 7\) for an image, not 7 logits"),
        ({"img_size": 32, "num_heads": -2}, None, "cannot take images"),
        ({"img_size": 32, "colour": 1}, None, "timm cannot build .*colour"),
        ({"img_size": 1 << 40}, None, "cannot"),
        ({"img_size": 32, "dynamic_img_size": True}, 1 << 40, "cannot"),
    ],
)
def test_what_cannot_work_is_refused(arguments, size, reason):
    with pytest.raises(UserError, match=reason) as caught:
        rehearse_images(ModelConfig("test_vit", 7, arguments), size)
    assert "\n" not in str(caught.value)


def test_memory_is_that_of_the_weights_and_of_one_image():
    config = ModelConfig("vit_tiny_patch16_224", 7, {"img_size": 32, "depth": 5})
    weights = sum(p.numel() for p in timm.create_model(config.name, num_classes=7, **config.args).parameters())
    assert rehearse_images(config, None).memory == 4 * (weights + 16 * 5 * 192)
    for many in ({"img_size": 32, "embed_dim": 3 << 18}, {"img_size": 32, "reg_tokens": 1 << 28}):
        with pytest.raises(UserError, match=r"take [\d,]+ GB, this machine has"):
            require_memory(rehearse_images(ModelConfig("vit_tiny_patch16_224", 7, many), None).memory)
