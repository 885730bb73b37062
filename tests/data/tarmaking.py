"""Small tars to read: made with Python's tarfile, so that nothing of ours is on both sides of a comparison."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=format, **options)
    return stream.getvalue()


def random_image(seed: int, height: int = 12, width: int = 10, format: str = "PNG") -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8), format)


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(count: int, classes: int = 4, first: int = 0) -> list[tuple[str, bytes]]:
    """Members of `count` samples: KEY.png, KEY.cls."""
    return [
        member
        for row in range(first, first + count)
        for member in ((f"s{row:03d}.png", random_image(row)), (f"s{row:03d}.cls", str(row % classes).encode()))
    ]
