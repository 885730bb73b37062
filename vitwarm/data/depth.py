"""Images of more than 8 bits a channel, which Pillow's own conversion clips to white: here they are scaled, once.

Plain timm and torchvision clip them, so vitwarm counts those that it meets in tars, and stores none.
"""

import io
import re
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image

_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II", b"MM")
_DEEP_PNM = re.compile(rb"P5(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d{3,5}\s")


def is_deep(head: bytes, read: Callable[[], bytes]) -> bool:
    """Whether an encoded image is grey of more than 8 bits, as its header says.

    Args:
        head: its first 64 bytes.
        read: gives all of it, for formats that hide their depth.
    """
    if head.startswith(_PNG):
        return head[24:26] == b"\x10\0"
    if not head.startswith(_TIFF) and _DEEP_PNM.match(head) is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(read())).mode[0] in "IF"
    except Exception:  # Pillow raises many kinds on damaged bytes; decoding will name the damage
        return False


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; images of 8 bits are returned as they are.

    Raises:
        ValueError: floats, or integers beyond 16 bits, whose range nobody knows.
    """
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    # Of 16-bit PNG and PGM, some versions of Pillow make 32-bit integers.
    if values.itemsize > 2 and image.format not in ("PNG", "PPM"):
        raise ValueError(f"{values.dtype} pixels have no known range; convert the image to 8 or 16 bits")
    return Image.fromarray((values // 256).astype(np.uint8))
