"""Partial decoding against Pillow's decoding of the whole file."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from tarmaking import encode

from vitwarm.data import decoding
from vitwarm.data.cropping import cut, random_crop_box, resize
from vitwarm.data.decoding import Jpeg, decode
from vitwarm.data.images import TrainTransform
from vitwarm.data.source import DamagedSample

BICUBIC = Image.Resampling.BICUBIC


def resized_crop(image, box, side, resample):
    return resize(cut(image, box, side), side, resample)


def picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), BICUBIC), dtype=int)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def coded(width=61, height=75, mode="RGB", **options):
    stream = io.BytesIO()
    Image.fromarray(picture(width, height)).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "grey": {"mode": "L"},
    "restart marks": {"subsampling": 2, "restart_marker_blocks": 3},
    "restart marks, 4:4:4": {"subsampling": 0, "restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "kept RGB": {"keep_rgb": True},
    "comment and EXIF": {"comment": b"\xff\xd9" * 40, "exif": b"Exif\0\0" + b"\xff\xc0" * 99},
}


@pytest.fixture(params=["simplejpeg", "Pillow"], autouse=True)
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(decoding, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_above_the_cut_are_those_of_the_whole_image(kind):
    data = coded(**KINDS[kind])
    whole, opened = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), Jpeg.open(data)
    assert opened.size == (61, 75)
    for bottom in range(1, 76):
        rows = opened.rows(bottom)
        assert rows.shape[0] >= bottom and rows.shape[1:] == (61, 3)
        np.testing.assert_array_equal(rows[:bottom], whole[:bottom])
        if kind != "progressive" and bottom < 55:
            assert rows.shape[0] < 75, "decoded in vain"


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_pillows_pixel_for_pixel(kind):
    for width, height in ((61, 75), (8, 8), (33, 1), (1, 40)):
        data = coded(width, height, **KINDS[kind])
        np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_every_crop_is_that_of_the_whole_image():
    data = coded(300, 200, subsampling=2)
    rng = np.random.default_rng(0)
    for _ in range(30):
        box = random_crop_box(300, 200, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        assert torch.equal(
            resized_crop(Jpeg.open(data), box, 64, BICUBIC), resized_crop(decode(data), box, 64, BICUBIC)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_reduction_leaves_two_pixels_for_one_and_changes_little(kind):
    options = KINDS[kind] | {"quality": 92}
    data, rng, seen = coded(701, 533, **options), np.random.default_rng(0), set()
    opened, whole = Jpeg.open(data), Image.open(io.BytesIO(data)).convert("RGB")
    if kind == "4:2:2":  # its chroma would be reduced further than its luminance
        assert opened.reduction((0, 0, 700, 533), 40) == 1
        return
    for _ in range(30):
        box = random_crop_box(701, 533, (0.2, 1.0), (3 / 4, 4 / 3), rng)
        factor = opened.reduction(box, 40)
        seen.add(factor)
        shorter = min(box[2] - box[0], box[3] - box[1])
        assert shorter / factor >= 80 or factor == 1
        assert factor == 8 or shorter / (2 * factor) < 80, "could be reduced further"
        ours = resized_crop(opened, box, 40, BICUBIC).permute(1, 2, 0).numpy().astype(float)
        exact = np.asarray(whole.resize((40, 40), BICUBIC, box), dtype=float)
        bilinear = np.asarray(whole.resize((40, 40), Image.Resampling.BILINEAR, box), dtype=float)
        assert np.square(ours - exact).mean() < np.square(bilinear - exact).mean() / 3
    assert {2, 4} <= seen


def test_training_on_encoded_and_on_decoded_images_is_the_same():
    for data in (coded(120, 90), coded(90, 120, mode="CMYK"), encode(picture(100, 90))):
        for options in ({}, {"auto_augment": "rand-m9"}, {"crop": "pad"}, {"crop": "none"}):
            transform = TrainTransform(32, **options)
            for seed in range(5):
                ours = transform(transform.open(data), np.random.default_rng(seed))
                assert torch.equal(ours, transform(decode(data), np.random.default_rng(seed)))
                assert ours.shape == (3, 32, 32) and ours.dtype == torch.uint8


def test_crops_of_encoded_images_follow_torchvisions_law():
    """The place of the crop, read off the pixels of an image whose channels hold row and column."""
    from torchvision.transforms import RandomResizedCrop

    y, x = np.mgrid[:128, :160]
    data = encode(np.stack([y, x, 0 * x], axis=2).astype(np.uint8), "JPEG", quality=100, subsampling=0)
    transform, rng = TrainTransform(16, hflip=0.0), np.random.default_rng(0)
    torch.manual_seed(0)
    theirs = RandomResizedCrop(16, interpolation=BICUBIC)

    def place(pixels):
        return [*pixels[:2, 8, 8].tolist(), int(pixels[0, -1, 8]) - int(pixels[0, 0, 8])]

    image = decode(data)
    ours = np.array([place(transform(transform.open(data), rng)) for _ in range(1500)])
    theirs = np.array([place(np.asarray(theirs(image)).transpose(2, 0, 1)) for _ in range(1500)])
    for column in range(3):
        assert ks_2samp(ours[:, column], theirs[:, column], method="asymp").pvalue > 1e-3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        encode(picture(20, 20)),
        coded(mode="CMYK"),
        coded()[:-300],
        coded()[:200],
        b"\xff\xd8" + b"\xff\xe0\xff\xff" * 9,
    ],
)
def test_what_is_not_a_whole_plain_jpeg_is_left_to_pillow(data):
    assert Jpeg.open(data) is None


def test_damage_is_found_as_without_partial_decoding():
    """Flipped and cut files: damaged for one way of decoding and not for the other never happens, nor does a crash."""
    whole, rng = coded(96, 80), np.random.default_rng(0)
    transform, read, damaged = TrainTransform(16), 0, 0
    for seed in range(300):
        broken = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.integers(1, 6)):
            if broken:
                broken[rng.integers(min(len(broken), 700 if rng.random() < 0.5 else len(broken)))] = rng.integers(256)
        outcomes = []
        for opener in (transform.open, decode):
            try:
                outcomes.append(transform(opener(bytes(broken)), np.random.default_rng(seed)))
            except DamagedSample as error:
                assert "\n" not in str(error)
                outcomes.append(None)
        ours, full = outcomes
        if full is None:
            # Damage below the crop may go unseen, since it is not looked at; a cut never does.
            damaged += 1
        else:
            assert ours is not None
            read += 1
    assert read > 50 and damaged > 50


def test_an_image_of_too_many_pixels_is_damaged_before_it_is_decoded():
    data = bytearray(coded())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\x75\x30\x75\x30"  # 30000 x 30000
    with pytest.raises(DamagedSample, match="30000x30000 pixels"):
        TrainTransform(16).open(bytes(data))
