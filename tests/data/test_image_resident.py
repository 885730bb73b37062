"""A set on the device against the loader that decodes each image anew."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from tarmaking import encode, write_tar

from vitwarm.data import resident
from vitwarm.data.decoding import decode
from vitwarm.data.images import TrainTransform
from vitwarm.data.loading import ImageDataset, train_loader
from vitwarm.data.order import ImageOrder
from vitwarm.data.resident import ResidentImages, check_resident, resampling
from vitwarm.data.shards import ShardSet
from vitwarm.errors import UserError

CPU = torch.device("cpu")


def shards_of(folder, sizes, broken=()):
    members = []
    for row, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(row).integers(0, 256, (height, width, 3)).astype(float)
        pixels = np.clip(gaussian_filter(noise, (1, 1, 0)) * 2 - 128, 0, 255).astype(np.uint8)
        members += [(f"{row}.png", b"no" if row in broken else encode(pixels)), (f"{row}.cls", str(row % 3).encode())]
    return ShardSet([write_tar(folder / "t.tar", members)])


def both(shards, transform, ids=None, workers=0):
    """Batches of either kind, those of the resident set with their pixels."""
    order = ImageOrder(len(shards), 8, 3, ids)
    on_device = ResidentImages(shards, transform, 3, ids, CPU)
    theirs = list(train_loader(ImageDataset(shards, transform, 3), order, 0, 6))
    ours = list(train_loader(on_device, order, 0, 6, workers=workers))
    for batch in ours:
        batch["image"] = on_device.images(batch["sample"], batch["box"], batch["flip"])
    for a, b in zip(ours, theirs, strict=True):
        assert (
            all(torch.equal(a[name], b[name]) for name in ("label", "sample", "valid")) and a["damage"] == b["damage"]
        )
    return ours, theirs


@pytest.mark.parametrize("size", [(16, 16), (16, 23), (30, 21)])
@pytest.mark.parametrize("options", [{"crop": "pad", "pad": 3}, {"crop": "none"}, {"crop": "pad", "hflip": 0.0}])
def test_padded_and_centred_crops_are_the_loaders(tmp_path, size, options):
    ours, theirs = both(shards_of(tmp_path, [size] * 10), TrainTransform(16, **options))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "side"), [((20, 20), 20), ((40, 30), 16), ((16, 24), 32)])
def test_resized_crops_are_the_loaders_to_a_rounding(tmp_path, size, side, interpolation):
    ours, theirs = both(shards_of(tmp_path, [size] * 10), TrainTransform(side, interpolation=interpolation))
    errors = torch.cat([a["image"].int() - b["image"].int() for a, b in zip(ours, theirs, strict=True)]).abs()
    assert errors.max() <= 2 and errors.float().mean() < 0.05  # rounded twice, by 8-bit weights there


def test_resampling_is_pils():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 37), dtype=np.uint8)
    for cubic, kind in ((True, Image.Resampling.BICUBIC), (False, Image.Resampling.BILINEAR)):
        for low, high in ((0, 37), (5, 30), (30, 37)):
            for size in (8, 25, 60):
                exact = np.array(Image.fromarray(pixels.astype(np.float32)[:, low:high]).resize((size, 1), kind))
                matrix = resampling(torch.tensor([low]), torch.tensor([high]), 37, size, cubic)[0]
                np.testing.assert_allclose(matrix.numpy() @ pixels[0], exact[0], atol=1e-2)


def test_subsets_damage_and_workers(tmp_path):
    shards = shards_of(tmp_path, [(16, 16)] * 12, broken=(0, 5))
    ours, theirs = both(shards, TrainTransform(16, crop="pad"), ids=np.array([0, 2, 5, 7, 11]), workers=2)
    assert {damage[0] for batch in ours for damage in batch["damage"]} == {0, 5}
    assert all(torch.equal(a["image"][a["valid"]], b["image"][b["valid"]]) for a, b in zip(ours, theirs, strict=True))


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    for refused in (check_resident, lambda shards, transform, *rest: ResidentImages(shards, transform, 0, *rest)):
        with pytest.raises(UserError, match="one is 9x8 and the first 8x8; leave images.resident off"):
            refused(shards_of(tmp_path / "a", [(8, 8), (9, 8)]), TrainTransform(8), None, CPU)
        with pytest.raises(UserError, match="none of the images can be read"):
            refused(shards_of(tmp_path / "b", [(8, 8)], broken=(0,)), TrainTransform(8), None, CPU)
    check_resident(shards_of(tmp_path / "a", [(8, 8), (9, 8), (8, 8)]), TrainTransform(8), np.array([0, 2]), CPU)
    monkeypatch.setattr(resident, "_SHARE", 1e-12)
    with pytest.raises(UserError, match=r"1 images of 8x8 take 0.0 GiB, more than half of the .* free on cpu"):
        check_resident(shards_of(tmp_path / "c", [(8, 8)]), TrainTransform(8), None, CPU)


@pytest.mark.parametrize("crop", ["rrc", "pad"])
def test_only_images_of_another_size_are_decoded_to_be_refused(tmp_path, monkeypatch, crop):
    """The second one is damaged behind its header, which is of another size; the third is not, once it is resized."""
    sizes = [(16, 24), (40, 40), (32, 48) if crop == "pad" else (16, 24), (16, 24)]
    members = [(f"{row}.jpg", encode(np.zeros((h, w, 3), np.uint8), "JPEG")) for row, (w, h) in enumerate(sizes)]
    members[1] = (members[1][0], members[1][1][:-40])
    labels = [(f"{row}.cls", b"0") for row in range(len(sizes))]
    shards = ShardSet([write_tar(tmp_path / "t.tar", [m for pair in zip(members, labels, strict=True) for m in pair])])
    decoded = []
    monkeypatch.setattr(resident, "decode", lambda data: decoded.append(data) or decode(data))
    check_resident(shards, TrainTransform(16, crop=crop), None, CPU)
    assert [len(data) for data in decoded] == [len(members[0][1]), len(members[1][1])]
    images = ResidentImages(shards, TrainTransform(16, crop=crop), 0, None, CPU)
    assert [images[0, row]["valid"] for row in range(4)] == [True, False, True, True]


def test_only_places_travel_to_spawned_processes(tmp_path):
    images = ResidentImages(shards_of(tmp_path, [(64, 64)] * 4), TrainTransform(16), 0, None, CPU)
    assert len(pickle.dumps(images)) < 4 * 64 * 64
    copy = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(copy[1, 2]["box"], images[1, 2]["box"])
