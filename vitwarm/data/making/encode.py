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
- With `MaxSide`, an image that is larger becomes a smaller JPEG of the pixels that readers see, whatever its format:
  RGB, or grey of a grey one. EXIF and colour profiles, which no reader looks at, are not carried over.
"""

import contextlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vitwarm.data.decoding import decodes_cleanly, shorter_side
from vitwarm.data.depth import to_8_bits
from vitwarm.data.making.samples import Pixels
from vitwarm.data.source import DamagedSample

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "PPM": "ppm"}
_ANIMATED = frozenset(("GIF", "PNG", "WEBP", "TIFF", "AVIF"))
_ORIENTATION = 0x0112  # tag of EXIF; 1 is upright
_LONGEST = 65_500  # pixels of a side, in libjpeg


@dataclass(frozen=True)
class MaxSide:
    """Images that are larger are stored smaller: fewer bytes and a faster decoding, for pixels that differ.

    Attributes:
        side: most pixels of the shorter side.
        quality: of the JPEG, 1 to 100. Chroma is stored at half the width and height (4:2:0).
    """

    side: int
    quality: int

    @property
    def note(self) -> str:
        return f"resized to a shorter side of {self.side}, JPEG of quality {self.quality}"

    def applies(self, image: Image.Image) -> bool:
        """Whether an image is larger; what would be longer than a JPEG can be is left as it is."""
        return min(image.size) > self.side and max(shorter_side(*image.size, self.side)) <= _LONGEST

    def encode(self, image: Image.Image) -> bytes:
        """Resize an image, RGB or grey, by PIL's bicubic filter, antialiased; the longer side rounds down."""
        small = image.resize(shorter_side(*image.size, self.side), Image.Resampling.BICUBIC)
        stream = io.BytesIO()  # of the pixels alone: Pillow would carry a comment over
        Image.fromarray(np.asarray(small)).save(stream, "JPEG", quality=self.quality, subsampling="4:2:0")
        return stream.getvalue()


def encode_pixels(data: bytes, pixels: Pixels, max_side: MaxSide | None = None) -> tuple[bytes, str, list[str]]:
    """Encode planes (3, side, side) uint8 as PNG; returns what `checked` does."""
    planes = np.frombuffer(data, dtype=np.uint8).reshape(3, pixels.side, pixels.side)
    image = Image.fromarray(planes.transpose((2, 1, 0) if pixels.by_column else (1, 2, 0)))
    if max_side is not None and max_side.applies(image):
        return max_side.encode(image), "jpg", [max_side.note]
    return _png(image), "png", []


def checked(data: bytes, max_pixels: int, max_side: MaxSide | None = None) -> tuple[bytes, str, list[str]]:
    """Prepare an encoded image for a shard; it is decoded once to make sure that it can be.

    Args:
        data: the source's bytes.
        max_pixels: most pixels that the reader of shards accepts.
        max_side: makes larger images smaller; None keeps every size.

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
                return _checked(image, data, max_side)
    except Exception as error:  # PIL's codecs raise many kinds on damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedSample(f"cannot be decoded ({reason})") from None
    raise DamagedSample(f"{width}x{height} pixels, more than {max_pixels}")


def _checked(image: Image.Image, data: bytes, max_side: MaxSide | None) -> tuple[bytes, str, list[str]]:
    extension, mode, notes = EXTENSIONS.get(image.format or ""), image.mode, []
    deep = mode[0] in "IF"
    grey = deep or mode in ("1", "L", "LA")
    if image.format in _ANIMATED and _frames(data) > 1:
        notes.append(f"first of several frames of {image.format}")
    clean = decodes_cleanly(data) if extension == "jpg" and mode not in ("CMYK", "YCCK") else None
    if max_side is not None and max_side.applies(image):
        notes.append(max_side.note)
        data, extension = max_side.encode(to_8_bits(image).convert("L" if grey else "RGB")), "jpg"
    elif extension is None or deep or mode in ("CMYK", "YCCK"):
        what = "16-bit grey" if deep else mode if extension else image.format
        notes.append(f"{what} stored as PNG")
        data, extension = _png(to_8_bits(image) if deep else image.convert("RGB")), "png"
    elif not clean:
        # A JPEG is read to its end at an eighth of its size, which finds a cut as surely and costs half.
        image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
    if clean is False:
        notes.append("JPEG with lost bytes, as its decoder warns")
    if grey:
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
