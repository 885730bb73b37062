"""Other libraries' decoders and resizers, where they are installed: NVIDIA DALI on the CPU, and SPDL.

    pip install nvidia-dali-cuda120 spdl    # SPDL loads the system's FFmpeg

Each arm does what the others do: random-resized-crop of the same law, to a square, and a flip, to uint8 pixels. It uses
one thread.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitwarm.data.cropping import random_crop_box

Arm = Callable[[list[bytes], int], Any]
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
DALI_FILTERS = {"cubic": "INTERP_CUBIC", "linear": "INTERP_LINEAR"}


def dali(size: int, batch: int, interpolation: str) -> Arm:
    """NVIDIA DALI on the CPU: only the crop is decoded, and resized with antialiasing.

    Raises:
        ImportError, RuntimeError: it is not installed, or does not run here.
    """
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch, num_threads=1, device_id=None, prefetch_queue_depth=1, seed=0)
    def graph() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        crops = fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=SCALE, random_aspect_ratio=RATIO, num_attempts=10, output_type=types.RGB
        )
        sized = fn.resize(crops, size=(size, size), interp_type=getattr(types, DALI_FILTERS[interpolation]))
        return fn.flip(sized, horizontal=fn.random.coin_flip())

    pipeline = graph()
    pipeline.build()

    def arm(encoded: list[bytes], first: int) -> Any:
        pipeline.feed_input("encoded", [np.frombuffer(data, dtype=np.uint8) for data in encoded])
        return pipeline.run()

    return arm


def spdl(size: int) -> Arm:
    """SPDL, which is FFmpeg: the whole image is decoded, and the crop resized before it becomes RGB.

    Raises:
        ImportError, RuntimeError: it is not installed, or finds no FFmpeg.
    """
    from spdl import io as media

    rng = np.random.default_rng(0)

    def one(data: bytes) -> torch.Tensor:
        packets = media.demux_image(data)  # tells the size
        left, top, right, bottom = random_crop_box(packets.width, packets.height, SCALE, RATIO, rng)
        steps = [f"crop={right - left}:{bottom - top}:{left}:{top}:exact=1", f"scale={size}:{size}:flags=bicubic"]
        steps += ["hflip"] * int(rng.random() < 0.5) + ["format=rgb24"]
        frames = media.decode_packets(packets, filter_desc=",".join(steps))
        return media.to_torch(media.convert_frames(frames))

    return lambda encoded, first: [one(data) for data in encoded]


def rivals(size: int, batch: int) -> tuple[dict[str, Arm], dict[str, str]]:
    """Those that run here, by name, and why each other does not; each is tried on an image first."""
    makers: dict[str, Callable[[], Arm]] = {
        "DALI, cubic": lambda: dali(size, batch, "cubic"),
        "DALI, linear": lambda: dali(size, batch, "linear"),
        "SPDL": lambda: spdl(size),
    }
    stream = io.BytesIO()
    Image.new("RGB", (64, 48)).save(stream, "JPEG")
    arms, missing = {}, {}
    for name, make in makers.items():
        try:
            arm = make()
            arm([stream.getvalue()], 0)
            arms[name] = arm
        except (ImportError, RuntimeError) as error:
            missing[name] = str(error).strip().splitlines()[0][:120]
    return arms, missing
