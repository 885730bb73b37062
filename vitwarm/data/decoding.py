"""Encoded images to pixels; of a JPEG only what a crop keeps is decoded.

A JPEG is coded row after row, so the rows below a crop are not read at all; the pixels above its lower edge are equal
bit for bit to those of the whole file. Large photographs are decoded at a half, a quarter or an eighth of their scale
where the resampling that follows hides it (`docs/input_pipeline.md` has the figures).
"""

import contextlib
import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitwarm.data.depth import to_8_bits
from vitwarm.data.source import DamagedSample

try:  # the faster decoder; Pillow gives the same pixels where there is no wheel of it
    import simplejpeg
except ImportError:
    simplejpeg = None

# Markers of a frame of Huffman-coded 8-bit samples: baseline, extended sequential, progressive.
_FRAMES = {0xC0: True, 0xC1: True, 0xC2: False}
_SEGMENTS = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # tables, comments and APPn, each with its length
_SLACK = 2  # after reduced decoding a crop still has at least this many pixels for each one of the output

MAX_PIXELS = 100_000_000  # beyond it an image is taken for a decompression bomb


def decode(data: bytes) -> Image.Image:
    """Decode an image to RGB, whatever its mode (grey of 1, 8 or 16 bits, palette, CMYK, alpha).

    Raises:
        DamagedSample: the bytes are not a whole image, or one of more than `MAX_PIXELS`.
    """
    if not data:
        raise DamagedSample("empty image (0 bytes)")
    if jpeg := Jpeg.open(data):
        check_size(*jpeg.size)
        with contextlib.suppress(ValueError):  # Pillow may decode it, or raise a clearer error
            return Image.fromarray(jpeg.rows(jpeg.size[1]))
    try:
        with warnings.catch_warnings():  # PIL warns somewhat below MAX_PIXELS
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        check_size(*image.size)  # known from the header: nothing is decoded yet
        return _to_rgb(image)
    except DamagedSample:
        raise
    except UnidentifiedImageError:
        raise DamagedSample("not an image: damaged at its start, or of an unknown format") from None
    except Exception as error:  # PIL's codecs raise many kinds on damaged bytes
        raise DamagedSample(_one_line(f"cannot be decoded ({type(error).__name__}: {error})")) from None


def size_of(data: bytes) -> tuple[int, int] | None:
    """(width, height) as an image's header has them, without decoding it; None where there is none to read."""
    if jpeg := Jpeg.open(data):
        return jpeg.size
    with contextlib.suppress(Exception), warnings.catch_warnings():  # see `decode`
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data)).size
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    image = to_8_bits(image)
    image.info.pop("transparency", None)  # it is dropped either way, and PIL would warn
    return image.convert("RGB")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def check_size(width: int, height: int) -> None:
    """Raise DamagedSample if that many pixels look like a decompression bomb."""
    if width * height > MAX_PIXELS:
        raise DamagedSample(f"{width}x{height} pixels, more than {MAX_PIXELS}")


def shorter_side(width: int, height: int, shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `shorter` pixels; the longer one rounds down, as in torchvision."""
    longer = int(shorter * max(width, height) / min(width, height))
    return (shorter, longer) if width <= height else (longer, shorter)


def decodes_cleanly(jpeg: bytes) -> bool | None:
    """Whether a JPEG decodes without a warning, which tells of lost bytes; None where simplejpeg is missing."""
    if simplejpeg is None:
        return None
    try:
        simplejpeg.decode_jpeg(jpeg, min_factor=8)
    except ValueError:
        return False
    return True


class Jpeg:
    """An encoded JPEG, grey or of three channels, that seems whole.

    Attributes:
        data: the file.
        size: (width, height) in pixels.
    """

    def __init__(self, data: bytes, frame: int):
        self.data, self._frame = data, frame
        self._by_rows = _FRAMES[data[frame + 1]]
        self.size = (int.from_bytes(data[frame + 7 : frame + 9], "big"), self._height(data))

    def _height(self, data: bytes) -> int:
        return int.from_bytes(data[self._frame + 5 : self._frame + 7], "big")

    @classmethod
    def open(cls, data: bytes) -> "Jpeg | None":
        """None if this is another format, a rarer kind of JPEG (CMYK, 12 bits, lossless), or one that was cut short."""
        if data[:2] != b"\xff\xd8":
            return None
        at = 2
        while at + 12 <= len(data) and data[at] == 0xFF and data[at + 1] in _SEGMENTS:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if at + 12 > len(data) or data[at] != 0xFF or data[at + 1] not in _FRAMES:
            return None
        if data[at + 4] != 8 or data[at + 9] not in (1, 3) or data.rfind(b"\xff\xd9") < at:
            return None
        jpeg = cls(data, at)
        return jpeg if min(jpeg.size) > 0 else None

    def reduction(self, box: tuple[int, int, int, int], side: int) -> int:
        """How far (1, 2, 4 or 8) a box that will be resized to `side` x `side` pixels may be reduced in decoding."""
        sampling = self.data[self._frame + 11]
        if sampling >> 4 != sampling & 15:  # chroma at half the width alone, as in 4:2:2, would be reduced further
            return 1
        spare = min(box[2] - box[0], box[3] - box[1]) // (side * _SLACK)
        return next((factor for factor in (8, 4, 2) if spare >= factor), 1)

    def rows(self, bottom: int, reduction: int = 1) -> np.ndarray:
        """Decode the image down to row `bottom`, or a little further.

        Args:
            bottom: rows of the full image that are needed.
            reduction: 1, 2, 4 or 8: how many pixels of either direction become one.

        Returns:
            (rows, ceil(width / reduction), 3) uint8.

        Raises:
            ValueError: the bytes are damaged; Pillow may still decode them.
        """
        data: bytes | bytearray = self.data
        width, height = self.size
        if self._by_rows and bottom < height:
            # Decoders stop at the height in the header, so a smaller one is written there. Chroma of half the height is
            # interpolated between rows, so the row below the last one counts too.
            height = bottom + 1
            data = bytearray(self.data)
            data[self._frame + 5 : self._frame + 7] = height.to_bytes(2, "big")
        try:
            return _decode(data, width, height, reduction)
        except Exception as error:  # codecs raise many kinds on damaged bytes
            raise ValueError(str(error)) from error


def _decode(data: bytes | bytearray, width: int, height: int, reduction: int) -> np.ndarray:
    if simplejpeg is not None:
        return simplejpeg.decode_jpeg(
            data,
            min_factor=reduction,
            min_width=-(-width // reduction),
            min_height=-(-height // reduction),
            strict=False,  # strict would report the rest of the file as damage
        )
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (width // reduction, height // reduction))
        return np.asarray(image.convert("RGB"))
