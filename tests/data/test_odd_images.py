"""Odd images: the pixels that torchvision's ImageFolder and timm's dataset give, or a difference that is on purpose.

The table is in docs/input_pipeline.md.
"""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import timm
import torchvision
from PIL import Image, ImageCms
from tarmaking import encode

from vitwarm.data.decoding import MAX_PIXELS, decode
from vitwarm.data.making.encode import checked
from vitwarm.data.source import DamagedSample

WIDTH, HEIGHT = 48, 40
SMALL = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
IMAGE = Image.fromarray(SMALL).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
PIXELS = np.asarray(IMAGE)
GREY = PIXELS[..., 0]
DEEP = GREY.astype(np.uint16) * 256 + 77
OTHERS = [Image.fromarray(PIXELS[::-1].copy()), Image.fromarray(255 - PIXELS)]


def saved(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png(pixels: np.ndarray, depth: int, colour: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A PNG of rows of bytes, of kinds that Pillow does not write."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)),
        b"IEND": b"",
    }
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(IMAGE, "JPEG", exif=exif)


def ycck() -> bytes:
    """Adobe's mark says that the four channels are YCCK."""
    data = saved(IMAGE.convert("CMYK"), "JPEG")
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    return data[:at] + b"\2" + data[at + 1 :]


WIDE = np.repeat(PIXELS[..., None], 2, axis=-1)  # 16 bits a channel, both bytes the same
RGBA = np.dstack([PIXELS, GREY])
ANIMATED = {"save_all": True, "append_images": OTHERS}
SAME = {
    "grey JPEG": encode(GREY, "JPEG"),
    "progressive JPEG": encode(PIXELS, "JPEG", progressive=True),
    "JPEG of 4:2:2": encode(PIXELS, "JPEG", subsampling="4:2:2"),
    "JPEG of 4:1:1": encode(PIXELS, "JPEG", subsampling="4:1:1"),
    "JPEG with bytes behind its end": encode(PIXELS, "JPEG") + bytes(99),
    "CMYK JPEG": saved(IMAGE.convert("CMYK"), "JPEG"),
    "YCCK JPEG": ycck(),
    "EXIF orientation": turned(),
    "colour profile": saved(
        IMAGE, "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    ),
    "RGBA": encode(RGBA, "PNG"),
    "RGBA WebP": encode(RGBA, "WEBP", lossless=True),
    "grey with alpha": encode(PIXELS[..., :2], "PNG"),
    "one transparent colour": saved(IMAGE, "PNG", transparency=tuple(map(int, PIXELS[0, 0]))),
    "one transparent grey": saved(IMAGE.convert("L"), "PNG", transparency=7),
    "palette": saved(IMAGE.convert("P"), "PNG"),
    "palette with a transparent colour": saved(IMAGE.convert("P"), "PNG", transparency=3),
    "palette with alpha": saved(IMAGE.convert("P"), "PNG", transparency=bytes(range(256))),
    "1 bit": saved(IMAGE.convert("1"), "PNG"),
    "2 bits of grey": png(PIXELS[:, :12, 0], 2, 0),
    "RGB of 16 bits": png(WIDE, 16, 2),
    "RGBA of 16 bits": png(np.repeat(RGBA[..., None], 2, axis=-1), 16, 6),
    "grey with alpha of 16 bits": png(WIDE[:, :, :2], 16, 4),
    "GIF": saved(IMAGE, "GIF"),
    "animated GIF": saved(IMAGE, "GIF", **ANIMATED),
    "animated WebP": saved(IMAGE, "WEBP", lossless=True, **ANIMATED),
    "APNG": saved(IMAGE, "PNG", **ANIMATED),
    "APNG with a picture of its own": saved(IMAGE, "PNG", default_image=True, **ANIMATED),
    "TIFF": saved(IMAGE, "TIFF"),
    "BMP": saved(IMAGE, "BMP"),
    "one pixel": saved(IMAGE.resize((1, 1)), "PNG"),
    "one pixel, JPEG": saved(IMAGE.resize((1, 1)), "JPEG"),
    "one row": saved(IMAGE.resize((3000, 1)), "JPEG"),
    "one column": saved(IMAGE.resize((1, 3000)), "JPEG"),
}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Pixels that torchvision's and timm's data sets give for an encoded image."""
    root = tmp_path_factory.mktemp("odd")
    file = root / "class/image.png"  # both go by the content; by the name they only choose files
    file.parent.mkdir()
    file.write_bytes(SAME["RGBA"])
    sets = torchvision.datasets.ImageFolder(root), timm.data.create_dataset("", str(root))

    def read(data: bytes) -> list[np.ndarray]:
        file.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on transparency that is dropped
            return [np.asarray(dataset[0][0]) for dataset in sets]

    return read


@pytest.mark.parametrize("name", SAME)
def test_the_pixels_are_torchvisions_and_timms(others, name):
    ours = np.asarray(decode(SAME[name]))
    for theirs in others(SAME[name]):
        np.testing.assert_array_equal(ours, theirs)
    stored = checked(SAME[name], MAX_PIXELS)[0]
    for pixels in [np.asarray(decode(stored)), *others(stored)]:  # a shard shows everyone the same
        np.testing.assert_array_equal(pixels, ours)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize(("bits", "values"), [(16, DEEP), (12, DEEP >> 4), (8, DEEP >> 8)])
def test_16_bit_grey_is_divided_by_256_where_others_clip_at_255(others, format, bits, values):
    """Of 12 or 8 bits in a container of 16, too: its header says that white is 65,535."""
    data = encode(values, format)
    ours = np.asarray(decode(data))
    np.testing.assert_array_equal(ours, np.repeat((values // 256)[..., None], 3, axis=2))
    for theirs in others(data):
        np.testing.assert_array_equal(theirs, np.repeat(np.minimum(values, 255)[..., None], 3, axis=2))
    stored, _, notes = checked(data, MAX_PIXELS)
    assert "16-bit grey stored as PNG" in notes
    for pixels in others(stored):
        np.testing.assert_array_equal(pixels, ours)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_damaged_where_others_clip(others, kind):
    data = encode(GREY.astype(kind), "TIFF")
    assert [pixels.shape for pixels in others(data)] == [(HEIGHT, WIDTH, 3)] * 2
    with pytest.raises(DamagedSample, match="no known range"):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [saved(IMAGE, "JPEG")[:-200], saved(IMAGE, "JPEG")[:-2], encode(PIXELS, "PNG")[:-600], b"no image", b""],
    ids=["JPEG", "end mark", "PNG", "none", "empty"],
)
def test_what_is_cut_is_damaged_here_an_error_in_torchvision_and_another_image_in_timm(tmp_path, data):
    with pytest.raises(DamagedSample):
        decode(data)
    for name, content in {"a": data, "b": saved(IMAGE, "PNG")}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.png").write_bytes(content)
    with pytest.raises(OSError, match="truncated|cannot identify"):
        torchvision.datasets.ImageFolder(tmp_path)[0]
    pixels, label = timm.data.create_dataset("", str(tmp_path))[0]
    assert label == 1 and np.array_equal(pixels, PIXELS)


def test_more_than_100_megapixels_are_damaged_where_pillow_refuses_more_than_179(others):
    nothing = np.zeros((0, 0), dtype=np.uint8)
    between, above = (png(nothing, 8, 2, (side, side)) for side in (10_001, 13_378))
    for data in (between, above):
        with pytest.raises(DamagedSample):
            decode(data)
    with pytest.warns(Image.DecompressionBombWarning):  # no more than that: the others would decode it
        Image.open(io.BytesIO(between))
    with pytest.raises(Image.DecompressionBombError):
        others(above)
