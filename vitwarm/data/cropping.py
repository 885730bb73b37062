"""Random-resized-crop, of images that need not be decoded yet."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vitwarm.data.decoding import Jpeg, decode

_TORCH_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


def random_crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A crop of random area and aspect ratio, as in torchvision: ten tries, then the largest centre crop in `ratio`.

    Args:
        width, height: size of the image, in pixels.
        scale: range of the crop's share of the image area, drawn evenly.
        ratio: range of the crop's width / height, drawn evenly in its logarithm.

    Returns:
        (left, top, right, bottom) in pixels.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, int(round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = max(1, int(round(height * ratio[1])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class Cut(NamedTuple):
    """The pixels that a crop needs.

    Attributes:
        pixels: (h, w, 3) uint8.
        box: where the crop lies among them, if they are of a reduced scale; None if they are the crop.
    """

    pixels: np.ndarray
    box: tuple[float, float, float, float] | None


def cut(image: Image.Image | Jpeg, box: tuple[int, int, int, int], side: int) -> Cut:
    """Decode the pixels that a crop needs; of a JPEG, only that part is decoded.

    Args:
        image: PIL image, RGB, or a JPEG.
        box: (left, top, right, bottom) in pixels.
        side: side of the output that the crop will be resized to, in pixels.

    Raises:
        DamagedSample: it cannot be decoded.
    """
    left, top, right, bottom = box
    if isinstance(image, Jpeg):
        factor = image.reduction(box, side)
        try:
            pixels = image.rows(bottom, factor)
        except ValueError:
            image = decode(image.data)
        else:
            if factor > 1:
                return Cut(pixels, (left / factor, top / factor, right / factor, bottom / factor))
            return Cut(np.ascontiguousarray(pixels[top:bottom, left:right]), None)
    return Cut(np.array(image.crop(box)), None)


def resize(crop: Cut, side: int, resample: Image.Resampling) -> torch.Tensor:
    """Resize a crop to (3, side, side) uint8, antialiased.

    This is PIL's resampling with torch's kernels, which are several times as fast; some pixels differ by a rounding.
    """
    pixels, box = crop
    if box is None and pixels.shape[:2] == (side, side):
        return torch.from_numpy(pixels).permute(2, 0, 1)
    if box is not None or resample not in _TORCH_MODES:  # only PIL has boxes between pixels, and Lanczos
        return to_tensor(Image.fromarray(pixels).resize((side, side), resample, box))
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # the strides of channels_last, for the fast kernels
    return F.interpolate(batch, (side, side), mode=_TORCH_MODES[resample], antialias=True)[0]


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) uint8, a view of (H, W, 3) memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
