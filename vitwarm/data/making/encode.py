"""Encodes images for a shard: the source's bytes wherever the readers of vitwarm, timm and torchvision agree on them.

- JPEG, PNG, WebP, BMP and PPM are copied byte for byte under the extension of their content, whatever their name says
  (ImageNet has a PNG named JPEG). Grey images stay grey: readers make them RGB.
- EXIF orientation is left alone: torchvision and timm ignore it, so published numbers rest on the unturned pixels.
- CMYK JPEGs (ImageNet has 22) are stored as PNG of the RGB that PIL makes of them: fast JPEG decoders refuse or invert
  them. PNG, because a second lossy coding would change their pixels.
- Other formats (GIF, TIFF, ...), which fast decoders do not know, become PNG likewise, first frame.
- Grey of 16 bits becomes PNG of 8, since readers clip it to white. Floats, whose range nobody knows, are damaged.
- Bare pixels (CIFAR, STL-10) become PNG.
- A JPEG whose decoder warns (bytes of it are lost) decodes nevertheless: it is kept, and counted.
"""

import contextlib
import io
import warnings

import numpy as np
from PIL import Image

from vitwarm.data.decoding import decodes_cleanly
from vitwarm.data.depth import to_8_bits
from vitwarm.data.making.samples import Pixels
from vitwarm.data.source import DamagedSample

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "PPM": "ppm"}
_ANIMATED = frozenset(("GIF", "PNG", "WEBP", "TIFF", "AVIF"))
_ORIENTATION = 0x0112  # tag of EXIF; 1 is upright


def encode_pixels(data: bytes, pixels: Pixels) -> bytes:
    """Encode planes (3, side, side) uint8 as PNG."""
    planes = np.frombuffer(data, dtype=np.uint8).reshape(3, pixels.side, pixels.side)
    return _png(Image.fromarray(planes.transpose((2, 1, 0) if pixels.by_column else (1, 2, 0))))


def checked(data: bytes, max_pixels: int) -> tuple[bytes, str, list[str]]:
    """Prepare an encoded image for a shard; it is decoded once to make sure that it can be.

    Args:
        data: the source's bytes.
        max_pixels: most pixels that the reader of shards accepts.

    Returns:
        The bytes to store, their extension, and peculiarities of the image (see the manifest's `notes`).

    Raises:
        DamagedSample: it cannot be decoded.
    """
    if not data:
        raise DamagedSample("empty image (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, on odd metadata: the pixels are what counts
            image = Image.open(io.BytesIO(data))
            width, height = image.size
            if width * height <= max_pixels:
                return _checked(image, data)
    except Exception as error:  # PIL's codecs raise many kinds on damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedSample(f"cannot be decoded ({reason})") from None
    raise DamagedSample(f"{width}x{height} pixels, more than {max_pixels}")


def _checked(image: Image.Image, data: bytes) -> tuple[bytes, str, list[str]]:
    extension, mode, notes = EXTENSIONS.get(image.format or ""), image.mode, []
    deep = mode[0] in "IF"
    if image.format in _ANIMATED and _frames(data) > 1:
        notes.append(f"first of several frames of {image.format}")
    if extension is None or deep or mode in ("CMYK", "YCCK"):
        what = "16-bit grey" if deep else mode if extension else image.format
        notes.append(f"{what} stored as PNG")
        data, extension = _png(to_8_bits(image) if deep else image.convert("RGB")), "png"
    else:
        # A JPEG is read to its end at an eighth of its size, which finds a cut as surely and costs half.
        clean = decodes_cleanly(data) if extension == "jpg" else None
        if not clean:
            image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
            image.load()
        if clean is False:
            notes.append("JPEG with lost bytes, as its decoder warns")
    if deep or mode in ("1", "L", "LA"):
        notes.append("grey")
    with contextlib.suppress(Exception):  # readers never look at EXIF, so a broken one does no harm
        if image.getexif().get(_ORIENTATION, 1) != 1:
            notes.append("EXIF orientation, not applied")
    return data, extension, notes


def _frames(data: bytes) -> int:
    try:
        return getattr(Image.open(io.BytesIO(data)), "n_frames", 1)
    except (OSError, EOFError, ValueError, SyntaxError):  # of a later frame, which is not used
        return 2


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
