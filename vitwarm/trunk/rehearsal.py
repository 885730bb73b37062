"""What a model would do with images, found on the device `meta`: shapes without numbers, and nothing allocated.

Arguments of a model that cannot work are found here, before data are opened and weights are drawn or fetched.
"""

import functools
import json
import os
from typing import NamedTuple

import torch
from torch import nn

from vitwarm.config import ModelConfig
from vitwarm.errors import UserError
from vitwarm.trunk.build import build_model
from vitwarm.trunk.families import family_of
from vitwarm.trunk.image_model import ImageModel

_DEPTH = 12  # of a model whose arguments do not say, to tell how much memory it takes
_KEPT = 16  # numbers a token and channel within a block: queries, keys, values, the MLP's hidden units, ...


class Rehearsal(NamedTuple):
    """What was found.

    Attributes:
        height, width: of the images, in pixels.
        tokens: of an image in the trunk during training. Prefix tokens count; patches that patch dropout leaves out do
            not; pooling by attention adds none.
        memory: bytes that weights and one image take at least.
    """

    height: int
    width: int
    tokens: int
    memory: int


def rehearse_images(config: ModelConfig, size: int | None) -> Rehearsal:
    """Build a model and give it images, on `meta`.

    Args:
        config: the recipe's model.
        size: side in pixels of square images; None is the model's own size.

    Raises:
        UserError: a model that cannot be built, takes no such images, or gives no logits of the classes.
    """
    return _rehearse(config.name, config.num_classes, json.dumps(config.args), size)


@functools.cache
def _rehearse(name: str, num_classes: int, arguments: str, size: int | None) -> Rehearsal:
    args = json.loads(arguments)
    model, left_out = _one_block(ModelConfig(name, num_classes, args))
    family = family_of(model)
    height, width = (size, size) if size else family.input_size
    if (height, width) != family.input_size and not family.any_size:
        takes = "x".join(map(str, family.input_size))
        raise UserError(f"images.size={size}, but the model takes {takes} pixels; set model.args.img_size too")
    seen: list[int] = []
    family.model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    try:
        logits = ImageModel(model.train())(torch.zeros(2, 3, height, width, device="meta"))
    except Exception as error:  # whatever a model makes of images that it cannot take
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} with {args} cannot take images of {height}x{width}: {reason}; check images.size and model.args"
        ) from error
    if logits.shape != (2, num_classes):
        raise UserError(f"{name} with {args} gives {tuple(logits.shape[1:])} for an image, not {num_classes} logits")
    kept = seen[0] * family.model.embed_dim * _KEPT
    return Rehearsal(height, width, seen[0], 4 * kept + weight_bytes(model, left_out))


def _one_block(config: ModelConfig) -> tuple[nn.Module, int]:
    """The model with one block in place of equal ones, and how many were left out: each takes long on `meta`."""
    with torch.device("meta"):
        try:
            short = ModelConfig(config.name, config.num_classes, config.args | {"depth": 1})
            return build_model(short, "rehearsal", seed=0), config.args.get("depth", _DEPTH) - 1
        except UserError:  # a model whose depth is no argument, or one that cannot be built at all
            return build_model(config, "rehearsal", seed=0), 0


def weight_bytes(model: nn.Module, more_blocks: int = 0) -> int:
    """Bytes of a model's weights in fp32, with further blocks like its first."""
    block = sum(p.numel() for p in family_of(model).model.blocks[0].parameters())
    return 4 * (sum(p.numel() for p in model.parameters()) + more_blocks * block)


def require_memory(need: int) -> None:
    """Refuse a model that does not fit the memory of this machine, before it is allocated.

    Args:
        need: bytes.

    Raises:
        UserError: there are fewer.
    """
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        raise UserError(
            f"weights and one sample of the model take {need / 1e9:,.0f} GB, this machine has {have / 1e9:,.0f}; make "
            "model.args, model.num_classes, images.size or model.decoder smaller"
        )
