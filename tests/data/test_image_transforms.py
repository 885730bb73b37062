import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, chisquare, ks_2samp
from tarmaking import encode, random_image
from timm.data import create_transform
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from vitwarm.data.cropping import random_crop_box
from vitwarm.data.decoding import MAX_PIXELS, decode
from vitwarm.data.images import EvalTransform, TrainTransform
from vitwarm.data.source import DamagedSample
from vitwarm.errors import UserError


def picture(width, height, seed=0):
    """Smooth enough that resampling filters differ, rough enough that a shift by a pixel shows."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def pixels(tensor):
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(97, 61), (61, 97), (33, 33), (32, 32), (300, 21), (37, 36), (8, 8)])
def test_evaluation_is_timms_pixel_for_pixel(shape, crop_pct, mode, interpolation):
    image = picture(*shape)
    theirs = create_transform(
        32, is_training=False, crop_pct=crop_pct, crop_mode=mode, interpolation=interpolation, use_prefetcher=True
    )
    ours = EvalTransform(32, crop_pct, interpolation, squash=mode == "squash")(image)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, theirs(image))


def test_evaluation_of_an_image_of_the_right_size_changes_nothing():
    image = picture(32, 32)
    np.testing.assert_array_equal(pixels(EvalTransform(32, crop_pct=1.0)(image)), np.array(image))


def test_crop_boxes_follow_torchvisions_law():
    for width, height, scale, ratio in [(500, 375, (0.08, 1.0), (3 / 4, 4 / 3)), (90, 200, (0.3, 0.6), (0.5, 1.5))]:
        rng, image = np.random.default_rng(0), Image.new("1", (width, height))
        torch.manual_seed(0)
        ours = np.array([random_crop_box(width, height, scale, ratio, rng) for _ in range(4000)])
        ours = np.stack([ours[:, 1], ours[:, 0], ours[:, 3] - ours[:, 1], ours[:, 2] - ours[:, 0]], axis=1)
        theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)])  # top, left, h, w
        for law in (
            *(lambda box, i=i: box[:, i] for i in range(4)),
            lambda box: box[:, 2] * box[:, 3],
            lambda box: box[:, 3] / box[:, 2],
            lambda box: box[:, 0] + box[:, 2],
        ):
            assert ks_2samp(law(ours), law(theirs), method="asymp").pvalue > 1e-3


@pytest.mark.parametrize(("width", "height"), [(2000, 40), (40, 2000), (1, 1), (1, 500)])
def test_crops_of_extreme_images_fall_back_as_torchvisions(width, height):
    top, left, h, w = RandomResizedCrop.get_params(Image.new("1", (width, height)), (0.9, 1.0), (3 / 4, 4 / 3))
    box = random_crop_box(width, height, (0.9, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0))
    assert box == (left, top, left + w, top + h)


def weights(length, side):
    """(side, length) float64: the bicubic filter (a = -1/2), widened by the scale where it shrinks."""
    scale = length / side
    centres = (np.arange(side) + 0.5) * scale
    x = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
    taps = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return taps / taps.sum(1, keepdims=True)


def test_a_random_resized_crop_is_the_bicubic_law_and_torchvisions_to_a_rounding():
    image, errors = picture(90, 70), []
    transform = TrainTransform(32, hflip=0.0)
    for seed in range(40):
        left, top, right, bottom = random_crop_box(90, 70, (0.08, 1.0), (3 / 4, 4 / 3), np.random.default_rng(seed))
        ours = pixels(transform(image, np.random.default_rng(seed))).astype(int)
        rows = np.einsum("ow,hwc->hoc", weights(right - left, 32), np.array(image)[top:bottom, left:right])
        law = np.einsum("oh,hwc->owc", weights(bottom - top, 32), rows.round().clip(0, 255)).round().clip(0, 255)
        assert np.abs(ours - law).max() <= 1
        theirs = F.resized_crop(
            image, top, left, bottom - top, right - left, [32, 32], interpolation=F.InterpolationMode.BICUBIC
        )
        errors.append(ours - np.array(theirs))
    assert np.mean(np.square(errors)) < 255**2 / 10**4.5  # 45 dB; bilinear would be at 30


def test_pad_and_crop_shows_every_shift_equally_often():
    image = picture(8, 8)
    transform, canvas = TrainTransform(8, crop="pad", pad=2, hflip=0.0), np.zeros((12, 12, 3), dtype=np.uint8)
    canvas[2:10, 2:10] = image
    shifts = {canvas[y : y + 8, x : x + 8].tobytes(): (y, x) for y in range(5) for x in range(5)}
    rng, counts = np.random.default_rng(0), np.zeros((5, 5))
    for _ in range(2000):
        counts[shifts[pixels(transform(image, rng)).tobytes()]] += 1
    assert chisquare(counts.ravel()).pvalue > 1e-3


def test_pad_and_crop_brings_other_sizes_to_the_shorter_side_first():
    out = TrainTransform(8, crop="pad", pad=0, hflip=0.0)(picture(16, 24), np.random.default_rng(0))
    resized = np.array(picture(16, 24).resize((8, 12), Image.Resampling.BICUBIC))
    assert any(np.array_equal(pixels(out), resized[top : top + 8]) for top in range(5))


def test_no_crop_is_the_evaluation_without_margin():
    image = picture(50, 40)
    out = TrainTransform(32, crop="none", hflip=0.0)(image, np.random.default_rng(0))
    assert torch.equal(out, EvalTransform(32, crop_pct=1.0)(image))


def test_flips_come_at_their_rate():
    image = picture(8, 8)
    for rate in (0.0, 0.3, 1.0):
        transform, rng = TrainTransform(8, crop="none", hflip=rate), np.random.default_rng(0)
        plain, flipped = np.array(image), np.array(image)[:, ::-1]
        outs = [pixels(transform(image, rng)) for _ in range(1000)]
        assert all(np.array_equal(out, plain) or np.array_equal(out, flipped) for out in outs)
        assert binomtest(sum(np.array_equal(out, flipped) for out in outs), 1000, rate).pvalue > 1e-3


POLICIES = ["rand-m9-mstd0.5-inc1", "rand-m10-n3-mstd1-inc1", "3a", "augmix-m5", "v0", "original"]


@pytest.mark.parametrize("policy", POLICIES)
def test_augmentation_is_a_function_of_its_generator_alone(policy):
    image = picture(40, 40)
    transform = TrainTransform(32, auto_augment=policy, color_jitter=0.4)
    first = []
    for seed in range(60):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        first.append(transform(image, np.random.default_rng(seed)))
    random.seed(9)
    again = [transform(image, np.random.default_rng(seed)) for seed in range(60)]
    assert all(map(torch.equal, first, again))
    assert len({out.numpy().tobytes() for out in first}) > 55


@pytest.mark.parametrize("options", [{"auto_augment": "rand-m9-mstd0.5-inc1"}, {"color_jitter": 0.4}])
def test_global_generators_are_left_as_they_were(options):
    transform, image = TrainTransform(32, **options), picture(40, 40)

    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    transform(image, np.random.default_rng(0))
    assert state() == before


def test_a_policy_has_timms_own_parameters():
    """Same global seeds, same policy: equal to what timm's create_transform builds, posterise to 0 bits aside."""
    theirs = create_transform(
        32, is_training=True, auto_augment="rand-m9-mstd0-inc1", interpolation="bicubic", hflip=0, separate=True
    )[1]
    ours = TrainTransform(32, auto_augment="rand-m9-mstd0-inc1")
    image = picture(32, 32)
    for seed in range(100):
        expected = []
        for policy in (theirs.transforms[0], ours._global_steps[0]):
            random.seed(seed)
            np.random.seed(seed)
            expected.append(np.array(policy(image)))
        np.testing.assert_array_equal(*expected)


def test_color_jitter_moves_colours_and_is_off_under_rand_augment_as_in_timm():
    image, plain = picture(32, 32), TrainTransform(32, crop="none", hflip=0.0)
    jitter = TrainTransform(32, crop="none", hflip=0.0, color_jitter=0.4)
    assert not torch.equal(jitter(image, np.random.default_rng(0)), plain(image, np.random.default_rng(0)))
    for policy, steps in (("rand-m9", 1), ("3a", 2), (None, 1)):
        transform = TrainTransform(32, auto_augment=policy, color_jitter=0.4)
        theirs = create_transform(32, is_training=True, auto_augment=policy, color_jitter=0.4, separate=True)[1]
        assert len(transform._global_steps) == len(theirs.transforms) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "centre"}, "rrc, pad, none"),
        ({"interpolation": "cubic"}, "bilinear, bicubic"),
        ({"scale": (0.5, 0.2)}, "images.scale"),
        ({"scale": (0.5, 1.2)}, "at most 1"),
        ({"ratio": (0.0, 1.0)}, "images.ratio"),
        ({"auto_augment": "rand-x9"}, "not a timm policy"),
        ({"auto_augment": "rand-mxx"}, "not a timm policy"),
        ({"auto_augment": "nonsense"}, "not a timm policy"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TrainTransform(32, **options)


def test_a_senseless_crop_share_is_refused():
    for crop_pct in (0, 1.1, -1):
        with pytest.raises(UserError, match="eval_crop_pct"):
            EvalTransform(32, crop_pct)


# Decoding


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = picture(20, 10).convert(mode)
    out = decode(_saved(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert out.mode == "RGB" and out.size == (20, 10)
    if mode != "CMYK":
        np.testing.assert_array_equal(np.array(out), np.array(image.convert("RGB")))
    else:
        assert np.abs(np.array(out).astype(int) - np.array(image.convert("RGB"))).mean() < 25


def _saved(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 77
    out = np.array(decode(encode(grey)))
    np.testing.assert_array_equal(out, np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=2))


def test_a_palette_with_transparency_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(_saved(picture(8, 8).convert("P"), transparency=bytes(range(256))))


def _png_that_claims(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = encode(np.array(picture(64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"no image", "not an image"),
        (JPEG[:20], "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (random_image(0)[:-40], "cannot be decoded"),
        (_png_that_claims(10_001, 10_000), f"10001x10000 pixels, more than {MAX_PIXELS}"),
        (_png_that_claims(60_000, 60_000), "cannot be decoded"),
        (_png_that_claims(0, 10), "not an image"),
    ],
)
def test_damaged_images_have_a_reason_of_one_line(data, message):
    with pytest.raises(DamagedSample, match=message) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "transform", [EvalTransform(64), TrainTransform(64, crop="none"), TrainTransform(64, crop="pad")]
)
def test_a_line_of_pixels_that_would_become_a_plane_is_damaged(transform):
    thin = Image.new("RGB", (1, 40_000))
    with pytest.raises(DamagedSample, match="pixels, more than"):
        transform(thin) if isinstance(transform, EvalTransform) else transform(thin, np.random.default_rng(0))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
def test_noise_in_image_bytes_never_escapes(format):
    whole, rng = encode(np.array(picture(32, 32)), format), np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            broken = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.5 else whole)
            for _ in range(rng.integers(1, 5)):
                if broken:
                    broken[rng.integers(len(broken))] = rng.integers(256)
            try:
                assert decode(bytes(broken)).mode == "RGB"
            except DamagedSample as error:
                assert str(error) and "\n" not in str(error)
