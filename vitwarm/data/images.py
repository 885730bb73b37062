"""Encoded images to uint8 tensors: the transforms of training and evaluation.

Pixels stay uint8 until they are on the device (`vitwarm.data.mixing`). Geometry follows torchvision's on PIL images, so
that results compare with timm's. EXIF orientation is not applied, as in torchvision and timm.

Images leave as (3, H, W) views of (H, W, 3) memory, as decoders write it; the device makes planes of it.
"""

import contextlib
import math
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from vitwarm.data.cropping import Cut, cut, random_crop_box, resize, to_tensor
from vitwarm.data.decoding import Jpeg, check_size, decode, shorter_side
from vitwarm.errors import UserError

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _filter(interpolation: str) -> Image.Resampling:
    if interpolation not in _FILTERS:
        raise UserError(f"images.interpolation={interpolation} is not one of {', '.join(_FILTERS)}")
    return _FILTERS[interpolation]


def _resize_shorter(image: Image.Image, shorter: int, resample: Image.Resampling) -> Image.Image:
    size = shorter_side(*image.size, shorter)
    check_size(*size)  # a line of pixels becomes a plane of them
    return image if size == image.size else image.resize(size, resample)


def _centre(width: int, height: int, side: int) -> tuple[int, int]:
    """(left, top) of the square in the middle."""
    return int(round((width - side) / 2)), int(round((height - side) / 2))


class Place(NamedTuple):
    """The random crop and flip of `TrainTransform`.

    Attributes:
        box: (left, top, right, bottom) of the crop; under 'pad' and 'none' in pixels of the resized image.
        flip: whether it is flipped from left to right.
    """

    box: tuple[int, int, int, int]
    flip: bool


class EvalTransform:
    """Resize the shorter side to `size / crop_pct`, keep the centre: pixel for pixel timm's evaluation transform.

    Args:
        size: side of the output in pixels.
        crop_pct: share of the resized shorter side that the crop keeps.
        interpolation: 'bicubic', 'bilinear' or 'lanczos'.
        squash: resize both sides to it, whatever the image's shape: timm's `crop_mode="squash"`.
    """

    def __init__(self, size: int, crop_pct: float = 0.875, interpolation: str = "bicubic", *, squash: bool = False):
        if not 0 < crop_pct <= 1:
            raise UserError(f"images.eval_crop_pct must be above 0 and at most 1, got {crop_pct}")
        self.size, self.shape = size, (size, size)
        self.shorter, self.squash = math.floor(size / crop_pct), squash
        self.resample = _filter(interpolation)

    @property
    def phases(self) -> tuple[Callable[[bytes, np.random.Generator], torch.Tensor]]:
        """The steps (state, rng) -> state from encoded image to pixels: here a single one, without randomness."""
        return (lambda data, rng: self(decode(data)),)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """(3, size, size) uint8."""
        if self.squash:
            image = image.resize((self.shorter, self.shorter), self.resample)
        else:
            image = _resize_shorter(image, self.shorter, self.resample)
        left, top = _centre(*image.size, self.size)
        return to_tensor(image.crop((left, top, left + self.size, top + self.size)))


class TrainTransform:
    """Crop, flip, automatic augmentation, colour jitter, in timm's order; every draw is from the given generator.

    Args:
        size: side of the output in pixels.
        crop: 'rrc' random-resized-crop (Szegedy et al., arXiv 1409.4842, sec. 6; as in torchvision); 'pad' resizes the
            shorter side to `size`, pads with black and crops at random (usual for CIFAR: He et al., arXiv 1512.03385,
            sec. 4.2); 'none' resizes likewise and keeps the centre.
        scale: range of the crop's share of the image area (rrc).
        ratio: range of the crop's width / height (rrc).
        pad: pixels of padding on each side (pad).
        interpolation: 'bicubic', 'bilinear' or 'lanczos'.
        hflip: probability of a horizontal flip.
        auto_augment: a timm policy: 'rand-m9-mstd0.5-inc1' (RandAugment), '3a' (3-Augment), 'augmix-m3', 'v0', ...
        color_jitter: strength of brightness, contrast and saturation jitter; off under a policy other than '3a', as in
            timm.
        mean: channel means in [0, 1], the fill of the corners that rotations and shears leave empty.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self,
        size: int,
        crop: Literal["rrc", "pad", "none"] = "rrc",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        pad: int = 4,
        interpolation: str = "bicubic",
        hflip: float = 0.5,
        auto_augment: str | None = None,
        color_jitter: float = 0.0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    ):
        for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
            if not 0 < low <= high:
                raise UserError(f"images.{name} must be two positive numbers, the smaller first, got {[low, high]}")
        if scale[1] > 1:
            raise UserError(f"images.scale is a share of the image and at most 1, got {list(scale)}")
        if crop not in ("rrc", "pad", "none"):
            raise UserError(f"images.crop={crop} is not one of rrc, pad, none")
        self.crop, self.size, self.pad, self.hflip = crop, size, pad, hflip
        self.scale, self.ratio = (scale[0], scale[1]), (ratio[0], ratio[1])
        self.shape = (size, size)
        self.resample = _filter(interpolation)
        # These two draw from the process's global generators.
        self._global_steps: list[Callable[[Image.Image], Image.Image]] = []
        if auto_augment:
            self._global_steps.append(_policy(auto_augment, size, self.resample, mean))
        if color_jitter and (not auto_augment or "3a" in auto_augment):
            from torchvision.transforms import ColorJitter

            self._global_steps.append(ColorJitter(color_jitter, color_jitter, color_jitter))

    def open(self, data: bytes) -> Image.Image | Jpeg:
        """Open an encoded image for `__call__`; a JPEG is decoded once the crop is known.

        Raises:
            DamagedSample: the bytes are not a whole image, or one of more than `MAX_PIXELS`.
        """
        jpeg = Jpeg.open(data) if self.crop == "rrc" else None
        if jpeg is None:
            return decode(data)
        check_size(*jpeg.size)
        return jpeg

    def fit(self, image: Image.Image) -> Image.Image:
        """The image whose pixels the boxes of `draw` count."""
        return image if self.crop == "rrc" else _resize_shorter(image, self.size, self.resample)

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of what `fit` makes of an image of that size."""
        return (width, height) if self.crop == "rrc" else shorter_side(width, height, self.size)

    @property
    def needs_pil(self) -> bool:
        """Whether a step follows crop and flip."""
        return bool(self._global_steps)

    def draw(self, width: int, height: int, rng: np.random.Generator) -> Place:
        """Where an image is cropped and whether it is flipped."""
        if self.crop == "rrc":
            box = random_crop_box(width, height, self.scale, self.ratio, rng)
        else:
            sides = shorter_side(width, height, self.size)
            if self.crop == "pad":
                reach = (-self.pad, self.pad - self.size)
                left, top = (int(rng.integers(reach[0], side + reach[1], endpoint=True)) for side in sides)
            else:
                left, top = _centre(*sides, self.size)
            box = (left, top, left + self.size, top + self.size)
        return Place(box, bool(rng.random() < self.hflip))

    @property
    def phases(self) -> tuple[Callable[[Any, np.random.Generator], Any], ...]:
        """The steps (state, rng) -> state from encoded image to pixels.

        The loader takes a batch through one step after the other: work of one kind at a time keeps the processor's
        caches warm, which saves a tenth of the time.
        """
        return self._begin, self._cut, self._finish

    def __call__(self, image: Image.Image | Jpeg, rng: np.random.Generator) -> torch.Tensor:
        """(3, size, size) uint8."""
        return self._finish(self._cut((image, self.draw(*image.size, rng)), rng), rng)

    def _begin(self, data: bytes, rng: np.random.Generator) -> tuple[Image.Image | Jpeg, Place]:
        image = self.open(data)
        return image, self.draw(*image.size, rng)

    def _cut(self, state: tuple[Any, Place], rng: np.random.Generator) -> tuple[Cut, bool]:
        image, (box, flip) = state
        if self.crop == "rrc":
            return cut(image, box, self.size), flip
        # PIL fills what lies outside with black.
        return Cut(np.array(self.fit(image).crop(box)), None), flip

    def _finish(self, state: tuple[Cut, bool], rng: np.random.Generator) -> torch.Tensor:
        pixels = resize(state[0], self.size, self.resample)
        if state[1]:
            pixels = pixels.flip(2)
        if self._global_steps:
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            with _global_generators(rng):
                for step in self._global_steps:
                    image = step(image)
            pixels = to_tensor(image)
        return pixels


def _policy(name: str, size: int, resample: Image.Resampling, mean: tuple[float, ...]) -> Callable:
    """timm's policy of that name, with the parameters that timm's own `create_transform` gives it."""
    from timm.data import auto_augment

    params = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        "interpolation": resample,
    }
    try:
        if not all(re.fullmatch(r"[a-z]+[0-9].*", part) for part in name.split("-")[1:]):
            raise ValueError(name)  # timm passes over what has no number
        if name.startswith("rand"):
            policy = auto_augment.rand_augment_transform(name, params)
        elif name.startswith("augmix"):
            policy = auto_augment.augment_and_mix_transform(name, params | {"translate_pct": 0.3})
        else:
            policy = auto_augment.auto_augment_transform(name, params)
    except (AssertionError, ValueError, KeyError, IndexError):
        raise UserError(f"images.auto_augment={name} is not a timm policy; try rand-m9-mstd0.5-inc1 or 3a") from None
    groups = policy.policy if hasattr(policy, "policy") else [policy.ops]
    for op in (op for group in groups for op in group if op.aug_fn is auto_augment.posterize):
        op.aug_fn = _posterize
    return policy


def _posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    """timm's posterize, but black at 0 bits, which RandAugment can draw: older Pillow did so, newer Pillow refuses."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


@contextlib.contextmanager
def _global_generators(rng: np.random.Generator) -> Iterator[None]:
    """Python's, NumPy's and torch's (CPU) global generators seeded from `rng` inside, as they were before outside."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = rng.integers(2**32, size=3)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
