"""Transforms of a batch on the device: normalisation, mixup, cutmix, random erasing.

Draws are made on the host, keyed by (seed, step) and by the place in the global batch, so the same images come out for
any number of processes and micro-batches, and nothing waits for the device.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng

_TRIES = 10  # at a box that fits the image


class Normalise:
    """Pixels to normalised images, bit-equal to torchvision's ToTensor and Normalize in fp32.

    The statistics stay on each device that asked for them: a copy from the host for every batch would wait for the
    device. They belong to this object alone: a cache for all would outlive a fake tensor mode and hand its tensors on
    to real images.

    Args:
        mean, std: channel statistics of pixels in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = tuple(mean), tuple(std)
        self._on: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 to (B, 3, H, W) fp32, on the same device."""
        if images.device not in self._on:
            first, second = (
                torch.tensor(v, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
                for v in (self.mean, self.std)
            )
            self._on[images.device] = first, second
        mean, std = self._on[images.device]
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)  # loaders give (B, H, W, 3) memory
        return pixels.div_(255).sub_(mean).div_(std)


class Mixer:
    """Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899), label smoothing, and the soft targets of all three.

    The distributions of the mode, of lambda and of the box are those of timm's `Mixup` in batch mode: one draw for a
    whole step. Images 2j and 2j + 1 are partners, where timm pairs i with B - 1 - i, so that no pair crosses a
    micro-batch of even size. Where either partner is damaged the other is not mixed.

    Args:
        mixup_alpha: lambda ~ Beta(alpha, alpha) under mixup; 0 turns mixup off.
        cutmix_alpha: likewise under cutmix.
        prob: probability that a step mixes at all.
        switch_prob: probability of cutmix when both are on.
        smoothing: label smoothing: this much of the target is spread evenly over all classes.
        num_classes: classes, C.
        seed: root seed of the run.

    Raises:
        UserError: an alpha or the smoothing is out of its range.
    """

    def __init__(
        self,
        mixup_alpha: float,
        cutmix_alpha: float,
        prob: float,
        switch_prob: float,
        smoothing: float,
        num_classes: int,
        seed: int,
    ):
        if mixup_alpha < 0 or cutmix_alpha < 0:
            raise UserError(f"images.mixup and images.cutmix are at least 0, got {mixup_alpha} and {cutmix_alpha}")
        if not 0 <= smoothing < 1:
            raise UserError(f"images.label_smoothing is at least 0 and below 1, got {smoothing}")
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.prob, self.switch_prob = prob, switch_prob
        self.smoothing, self.num_classes, self.seed = smoothing, num_classes, seed

    def draw(self, step: int, height: int, width: int) -> tuple[float, tuple[int, int, int, int] | None]:
        """Draw the mixing of a step.

        Returns:
            The share of its own image that each sample keeps, and the box (top, bottom, left, right) that cutmix swaps;
            None under mixup. Without mixing: (1.0, None).
        """
        rng = keyed_rng(self.seed, "images", "mix", step)
        mixes, switches, center_y, center_x = rng.random(4)
        if mixes >= self.prob or not (self.mixup_alpha or self.cutmix_alpha):
            return 1.0, None
        cuts = bool(self.cutmix_alpha) and (not self.mixup_alpha or switches < self.switch_prob)
        alpha = self.cutmix_alpha if cuts else self.mixup_alpha
        share = float(rng.beta(alpha, alpha))
        if not cuts:
            return share, None
        side = math.sqrt(1 - share)
        (top, bottom), (left, right) = (
            _clipped(int(center * length), int(length * side), length)
            for center, length in ((center_y, height), (center_x, width))
        )
        # The image border may have cut the box: the targets follow the area that is really swapped.
        return 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mix one micro-batch, whose first image has an even place in the global batch.

        Args:
            images: (B, 3, H, W) float; may be overwritten.
            labels: (B,) int64.
            valid: (B,) bool, False for damaged samples.
            step: step of the image stage.

        Returns:
            images: (B, 3, H, W), mixed.
            targets: (B, C) fp32, rows sum to 1.
            weight: (B,) fp32, the weight of each sample in the loss: 0 for a damaged one, else 1.

        Raises:
            UserError: the batch is odd, so one image has no partner.
        """
        if images.shape[0] % 2 and (self.mixup_alpha or self.cutmix_alpha):
            raise UserError(f"mixup and cutmix pair images: a device's batch must be even, got {images.shape[0]}")
        off = self.smoothing / self.num_classes
        targets = torch.full((labels.numel(), self.num_classes), off, device=labels.device)
        targets.scatter_(1, labels.unsqueeze(1), 1 - self.smoothing + off)
        weight = valid.float()
        share, box = self.draw(step, *images.shape[-2:])
        if share == 1.0:
            return images, targets, weight
        shares = torch.where(valid & _partner(valid), share, 1.0)  # (B,)
        if box is None:
            images = torch.lerp(_partner(images), images, shares.to(images.dtype).view(-1, 1, 1, 1))
        else:
            top, bottom, left, right = box
            inside = images[:, :, top:bottom, left:right]
            inside.copy_(torch.where((shares < 1).view(-1, 1, 1, 1), _partner(inside), inside))
        return images, torch.lerp(_partner(targets), targets, shares.unsqueeze(1)), weight


def _partner(values: torch.Tensor) -> torch.Tensor:
    """(B, ...) with rows 2j and 2j + 1 exchanged."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _clipped(center: int, extent: int, length: int) -> tuple[int, int]:
    return max(center - extent // 2, 0), min(center + (extent + 1) // 2, length)


class RandomErasing:
    """Replace one random box of an image (arXiv 1708.04896), as timm's `RandomErasing` with one box.

    Args:
        prob: probability that an image is erased.
        seed: root seed of the run.
        mode: 'pixel' fills with unit normal noise (DeiT's choice), 'const' with 0, the mean of normalised images.
        area: range of the box's share of the image.
        ratio: smallest height / width of the box; the largest is its inverse.
    """

    def __init__(
        self,
        prob: float,
        seed: int,
        mode: Literal["pixel", "const"] = "pixel",
        area: tuple[float, float] = (0.02, 1 / 3),
        ratio: float = 0.3,
    ):
        self.prob, self.seed, self.mode, self.area, self.ratio = prob, seed, mode, area, ratio

    def boxes(self, step: int, first: int, count: int, height: int, width: int) -> np.ndarray:
        """Boxes of the images at places [first, first + count) of the global batch.

        Returns:
            (count, 4) int64: top, left, height, width; the height and width of an image that stays whole are 0.
        """
        # Rows are drawn from place 0 on, so an image's draws depend on its place alone.
        draws = keyed_rng(self.seed, "images", "erase", step).random((first + count, 1 + 2 * _TRIES + 2))[first:]
        erase, (y, x) = draws[:, 0] < self.prob, draws[:, -2:].T
        areas = (self.area[0] + np.ptp(self.area) * draws[:, 1 : 1 + _TRIES]) * height * width
        aspects = np.exp(np.log(self.ratio) * (1 - 2 * draws[:, 1 + _TRIES : -2]))
        h, w = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
        fits = (h < height) & (w < width)
        rows, first_fit = np.arange(count), fits.argmax(1)  # the first try whose box fits counts
        h, w = (np.where(erase & fits.any(1), side[rows, first_fit], 0) for side in (h, w))
        return np.stack([y * (height - h + 1), x * (width - w + 1), h, w], axis=1).astype(np.int64)

    def __call__(self, images: torch.Tensor, step: int, first: int) -> torch.Tensor:
        """Erase in place.

        Args:
            images: (B, 3, H, W) float, normalised.
            step: step of the image stage.
            first: place of the first image in the global batch.

        Returns:
            `images`.
        """
        boxes = self.boxes(step, first, images.shape[0], *images.shape[-2:])
        rows = np.flatnonzero(boxes[:, 2] * boxes[:, 3])
        if not rows.size:
            return images
        seeds = keyed_rng(self.seed, "images", "noise", step).integers(2**62, size=first + images.shape[0])[first:]
        # All that the device needs in one small copy; a launch for each image would keep it waiting.
        drawn = torch.from_numpy(np.column_stack([rows, boxes[rows], seeds[rows]])).to(images.device, non_blocking=True)
        top, left, height, width = (edge.view(-1, 1, 1, 1) for edge in drawn[:, 1:5].unbind(1))
        y = torch.arange(images.shape[2], device=images.device).view(-1, 1)
        x = torch.arange(images.shape[3], device=images.device)
        hole = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)  # (k, 1, H, W)
        fill = hashed_normal(drawn[:, 5], images.shape[1:]).to(images.dtype) if self.mode == "pixel" else 0.0
        return images.index_copy_(0, drawn[:, 0], torch.where(hole, fill, images[drawn[:, 0]]))


def hashed_normal(seeds: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Unit normal noise, each row a function of its seed alone: the Box-Muller transform of hashed counters.

    Args:
        seeds: (k,) int64.
        shape: shape of the noise of one seed.

    Returns:
        (k, *shape) fp32.
    """
    bits = torch.arange(math.prod(shape), device=seeds.device)
    bits = seeds.view(-1, 1) + bits * -0x61C8864680B583EB  # splitmix64, on which int64 arithmetic wraps as it must
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        bits = (bits ^ _shifted(bits, shift)) * factor
    bits = bits ^ _shifted(bits, 31)
    radius, angle = ((half.float() + 0.5) * 2.0**-32 for half in (_shifted(bits, 32), bits & 0xFFFFFFFF))
    noise = torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
    return noise.view(-1, *shape)


def _shifted(bits: torch.Tensor, count: int) -> torch.Tensor:
    """A logical shift to the right, which torch has for no signed type."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
