"""Small training sets kept on the device: decoded once, cropped and flipped there.

Crops and flips are drawn from the same keys as the loader's, so training sees the same images: equal bit for bit under
crop 'pad' and 'none', to a rounding under 'rrc'. What reaches the device for a batch is a few bytes an image.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from vitwarm.data.decoding import decode, size_of
from vitwarm.data.images import TrainTransform
from vitwarm.data.loading import ImageDataset, Loader
from vitwarm.data.source import DamagedSample, ImageSource
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng

_SHARE = 0.5  # of the free memory, at most: the model and its activations need the rest
_BATCH = 256  # images decoded at once


class _Whole:
    """Decodes images, and refuses one whose shape differs from the first one that could be read."""

    def __init__(self, transform: TrainTransform, width: int, height: int):
        self.transform, self.shape = transform, (height, width)

    @property
    def phases(self) -> tuple[Callable[[Any, np.random.Generator], Any], ...]:
        return (lambda data, rng: self.pixels(data),)

    def pixels(self, data: bytes) -> torch.Tensor:
        pixels = np.array(self.transform.fit(decode(data)))
        if pixels.shape[:2] != self.shape:
            raise UserError(
                f"images.resident: all images must be of one size, but one is {pixels.shape[1]}x{pixels.shape[0]} and "
                f"the first {self.shape[1]}x{self.shape[0]}; leave images.resident off"
            )
        return torch.from_numpy(pixels).permute(2, 0, 1)


def check_resident(
    shards: ImageSource, transform: TrainTransform, ids: np.ndarray | None, device: torch.device
) -> None:
    """Refuse what `ResidentImages` could not keep, in a fraction of its time: most images are not decoded.

    Args:
        shards, transform, ids, device: see `ResidentImages`.

    Raises:
        UserError: the images differ in size, take too much memory or cannot be read.
    """
    ids = np.arange(len(shards)) if ids is None else np.asarray(ids)
    width, height = _first_size(shards, ids, transform)
    _check_memory(len(ids), width, height, device)
    whole = _Whole(transform, width, height)
    for sample in ids:
        with contextlib.suppress(DamagedSample):
            data = shards.read(int(sample))
            size = size_of(data)
            if size is None or transform.fitted(*size) != (width, height):
                whole.pixels(data)  # refuses it, or finds it damaged


class ResidentImages(Dataset):
    """A training set on the device, which `check_resident` has let pass.

    As a data set for `train_loader` it gives the places of crops instead of pixels.

    Args:
        shards: the images.
        transform: the transform of training, without automatic augmentation and colour jitter.
        seed: root seed of the run.
        ids: (k,) the images that are trained on; None takes all.
        device: the device that keeps them.
        workers: loader processes that decode them.

    Raises:
        UserError: the images differ in size or cannot be read.
    """

    def __init__(
        self,
        shards: ImageSource,
        transform: TrainTransform,
        seed: int,
        ids: np.ndarray | None,
        device: torch.device,
        workers: int = 0,
    ):
        self.shards, self.transform, self.seed = shards, transform, seed
        ids = np.arange(len(shards)) if ids is None else np.asarray(ids)
        width, height = self.image_size = _first_size(shards, ids, transform)
        self._pixels = torch.zeros(len(ids), 3, height, width, dtype=torch.uint8, device=device)
        self._slots = torch.full((len(shards),), -1, device=device)
        self._slots[torch.from_numpy(ids).to(device)] = torch.arange(len(ids), device=device)
        self._damage: dict[int, tuple[int, str, str]] = {}
        whole = ImageDataset(shards, _Whole(transform, width, height))
        batches = [[(0, int(sample)) for sample in ids[row : row + _BATCH]] for row in range(0, len(ids), _BATCH)]
        row = 0
        for batch in Loader(whole, batches, workers, pin_memory=False):
            self._pixels[row : row + len(batch["image"])] = batch["image"].to(device)
            self._damage |= {damage[0]: damage for damage in batch["damage"]}
            row += len(batch["image"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None, "_slots": None}  # loader processes need places alone

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Any]:
        """Place of one sample.

        Args:
            address: (epoch, sample).

        Returns:
            box (4,) int64: left, top, right, bottom of the crop; flip bool; label, valid, sample and damage as from
            `ImageDataset`.
        """
        epoch, sample = (int(part) for part in address)
        rng = keyed_rng(self.seed, "images", "augment", epoch, sample)
        box, flip = self.transform.draw(*self.image_size, rng)
        damage = self._damage.get(sample)
        label = int(self.shards.labels[sample])
        place = {"box": np.array(box, dtype=np.int64), "flip": flip}
        return place | {"label": label, "valid": damage is None, "sample": sample, "damage": damage}

    def images(self, samples: torch.Tensor, box: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """The pixels of a batch of places.

        Args:
            samples: (B,) int64.
            box: (B, 4) int64.
            flip: (B,) bool.

        Returns:
            (B, 3, size, size) uint8, on the device.
        """
        slots, size = self._slots[samples], self.transform.size
        if self.transform.crop == "rrc":
            images = self._resized(self._pixels[slots], box)
            return torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
        steps = torch.arange(size, device=box.device)
        y = box[:, 1:2] + steps  # (B, size)
        x = box[:, 0:1] + torch.where(flip.view(-1, 1), steps.flip(0), steps)
        height, width = self._pixels.shape[2:]
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        y, x = y.clamp(0, height - 1)[:, None, :, None], x.clamp(0, width - 1)[:, None, None, :]
        channels = torch.arange(3, device=box.device).view(1, 3, 1, 1)
        return self._pixels[slots.view(-1, 1, 1, 1), channels, y, x] * inside[:, None]

    def _resized(self, pixels: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 cropped and resized: a matrix for each axis, rounding in between, as PIL does."""
        with torch.autocast(box.device.type, enabled=False):
            cubic = self.transform.resample == Image.Resampling.BICUBIC
            size, (height, width) = self.transform.size, pixels.shape[2:]
            across = resampling(box[:, 0], box[:, 2], width, size, cubic)
            down = resampling(box[:, 1], box[:, 3], height, size, cubic)
            rows = torch.einsum("bchw,bow->bcho", pixels.float(), across).add_(0.5).floor_().clamp_(0, 255)
            return torch.einsum("bcho,bph->bcpo", rows, down).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def resampling(low: torch.Tensor, high: torch.Tensor, length: int, size: int, cubic: bool) -> torch.Tensor:
    """Antialiased resampling along one axis as matrices.

    Args:
        low, high: (B,) the ends of each crop on the axis.
        length: length of the axis, in pixels.
        size: length of the output, in pixels.
        cubic: bicubic (a = -1/2), else bilinear.

    Returns:
        (B, size, length) fp32; rows sum to 1.
    """
    low, high = (edge.float().view(-1, 1, 1) for edge in (low, high))
    scale = (high - low) / size
    steps = torch.arange(max(length, size), device=low.device, dtype=torch.float32) + 0.5
    centres, places = low + steps[:size, None] * scale, steps[:length]
    x = ((places - centres) / scale.clamp(min=1)).abs()
    if cubic:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        taps = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    else:
        taps = (1 - x).clamp(min=0)
    taps = taps * ((places > low) & (places < high))
    return taps / taps.sum(2, keepdim=True)


def _first_size(shards: ImageSource, ids: np.ndarray, transform: TrainTransform) -> tuple[int, int]:
    for sample in ids:
        try:
            return transform.fit(decode(shards.read(int(sample)))).size
        except DamagedSample:
            continue
    raise UserError("images.resident: none of the images can be read")


def _check_memory(count: int, width: int, height: int, device: torch.device) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    need = 3 * count * width * height
    if need > _SHARE * free:
        raise UserError(
            f"images.resident: {count} images of {width}x{height} take {need / 2**30:.1f} GiB, more than half of the "
            f"{free / 2**30:.1f} GiB free on {device}; leave images.resident off"
        )
