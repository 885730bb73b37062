import numpy as np
import pytest
import timm.data.mixup
import timm.data.random_erasing
import torch
from scipy.stats import beta, binomtest, ks_2samp, kstest
from torchvision.transforms import Compose, Normalize, ToTensor

from vitwarm.data.mixing import Mixer, Normalise, RandomErasing, hashed_normal
from vitwarm.errors import UserError

CLASSES = 5


def mixer(mixup=0.8, cutmix=1.0, prob=1.0, switch=0.5, smoothing=0.1, seed=0):
    return Mixer(mixup, cutmix, prob, switch, smoothing, CLASSES, seed)


def batch(size=8, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, side, side, generator=generator)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    return images, labels, torch.ones(size, dtype=torch.bool)


def test_pixels_are_torchvisions_normalisation_bit_for_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 7, 3), dtype=np.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    theirs = Compose([ToTensor(), Normalize(mean, std)])
    ours = Normalise(mean, std)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert torch.equal(ours, torch.stack([theirs(image) for image in pixels]))


def timms_mix(monkeypatch, images, labels, share, box, smoothing):
    """timm's Mixup on each pair of neighbours, for which its own pairing (i with B - 1 - i) is ours."""
    theirs = timm.data.mixup.Mixup(label_smoothing=smoothing, num_classes=CLASSES, mode="batch")
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (share, box is not None))
    monkeypatch.setattr(timm.data.mixup, "cutmix_bbox_and_lam", lambda *args, **kwargs: (box, share))
    pairs = [theirs(images[i : i + 2].clone(), labels[i : i + 2]) for i in range(0, len(images), 2)]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@pytest.mark.parametrize("options", [{"cutmix": 0.0}, {"mixup": 0.0}, {"smoothing": 0.0}])
def test_images_and_targets_are_timms(monkeypatch, options):
    ours = mixer(**options)
    for step in range(10):
        images, labels, valid = batch(seed=step)
        expected = timms_mix(monkeypatch, images, labels, *ours.draw(step, 6, 6), ours.smoothing)
        mixed, targets, weight = ours(images.clone(), labels, valid, step)
        torch.testing.assert_close(mixed, expected[0])
        torch.testing.assert_close(targets, expected[1])
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        assert weight.tolist() == [1.0] * 8


def test_without_mixing_targets_are_smoothed_labels():
    images, labels, valid = batch(size=7)  # an odd batch is fine then
    mixed, targets, _ = mixer(mixup=0.0, cutmix=0.0, smoothing=0.2)(images.clone(), labels, valid, 0)
    assert torch.equal(mixed, images)
    torch.testing.assert_close(targets, timm.data.mixup.mixup_target(labels, CLASSES, 1.0, 0.2))
    logits = torch.randn(7, CLASSES)
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits, targets),
        torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2),
    )


def test_shares_of_mixup_follow_a_beta_law():
    for alpha in (0.2, 0.8):
        shares = [mixer(mixup=alpha, cutmix=0.0).draw(step, 6, 6)[0] for step in range(3000)]
        assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3


def test_boxes_of_cutmix_follow_timms_law():
    np.random.seed(0)
    ours = [mixer(mixup=0.0).draw(step, 32, 20) for step in range(3000)]
    theirs = [timm.data.mixup.cutmix_bbox_and_lam((32, 20), np.random.beta(1.0, 1.0)) for _ in range(3000)]
    ours = np.array([(*(box or (0, 0, 0, 0)), share) for share, box in ours])
    theirs = np.array([(box[0], box[1], box[2], box[3], share) for box, share in theirs])
    for column in (0, 1, 2, 3, 4):
        assert ks_2samp(ours[:, column], theirs[:, column], method="asymp").pvalue > 1e-3


def test_steps_mix_and_switch_at_their_rates():
    draws = [mixer(prob=0.7, switch=0.25).draw(step, 64, 64) for step in range(3000)]
    mixed = [box is not None for share, box in draws if share < 1]
    assert binomtest(len(mixed), 3000, 0.7).pvalue > 1e-3  # a box of 64 px is empty at a share above 0.9998 only
    assert binomtest(sum(mixed), len(mixed), 0.25).pvalue > 1e-3


@pytest.mark.parametrize("options", [{"cutmix": 0.0}, {"mixup": 0.0}])
def test_any_even_split_of_a_batch_mixes_alike(options):
    ours = mixer(**options)
    images, labels, valid = batch(size=12)
    valid[5] = False
    for step in range(5):
        whole = ours(images.clone(), labels, valid, step)
        for size in (2, 4, 6):
            parts = [
                ours(images[i : i + size].clone(), labels[i : i + size], valid[i : i + size], step)
                for i in range(0, 12, size)
            ]
            for expected, pieces in zip(whole, zip(*parts, strict=True), strict=True):
                assert torch.equal(torch.cat(pieces), expected)


@pytest.mark.parametrize("options", [{"cutmix": 0.0}, {"mixup": 0.0}])
def test_the_partner_of_a_damaged_image_stays_as_it_is(options):
    images, labels, valid = batch()
    valid[2] = False
    images[2] = 1e6
    for step in range(5):
        mixed, targets, weight = mixer(**options, smoothing=0.0)(images.clone(), labels, valid, step)
        assert torch.equal(mixed[3], images[3]) and torch.equal(targets[3], torch.eye(CLASSES)[labels[3]])
        assert weight.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
        assert mixed[[0, 1, 3, 4, 5, 6, 7]].abs().max() < 100


def test_odd_batches_and_senseless_values_are_refused():
    with pytest.raises(UserError, match="must be even, got 7"):
        mixer()(*batch(size=7), step=0)
    for options in ({"mixup": -1.0}, {"cutmix": -1.0}, {"smoothing": 1.0}, {"smoothing": -0.1}):
        with pytest.raises(UserError, match="images."):
            mixer(**options)


def erased_box(image):
    """(top, left, height, width) of the zeros in an image of ones."""
    rows, columns = np.nonzero((image[0] == 0).numpy())
    return rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1


def test_boxes_of_erasing_follow_timms_law():
    import random

    random.seed(0)
    theirs = timm.data.random_erasing.RandomErasing(1.0, mode="const", device="cpu")(torch.ones(1500, 3, 40, 24))
    ours = RandomErasing(1.0, seed=0, mode="const")(torch.ones(1500, 3, 40, 24), step=0, first=0)
    theirs, ours = (np.array([erased_box(image) for image in images]) for images in (theirs, ours))
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column], method="asymp").pvalue > 1e-3
    for law in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 2] / box[:, 3]):
        assert ks_2samp(law(ours), law(theirs), method="asymp").pvalue > 1e-3


def test_images_are_erased_at_their_rate_and_with_unit_noise():
    images = torch.full((2000, 3, 16, 16), 9.0)
    RandomErasing(0.25, seed=0)(images, step=3, first=0)
    changed = images != 9
    assert binomtest(int(changed.any(3).any(2).any(1).sum()), 2000, 0.25).pvalue > 1e-3
    assert kstest(images[changed].numpy()[:20000], "norm").pvalue > 1e-3


def test_noise_is_unit_normal_and_independent():
    seeds = torch.tensor([3, 4, 2**61])  # neighbours, and one far away
    noise = hashed_normal(seeds, (3, 64, 64)).numpy().astype(np.float64)
    assert kstest(noise.ravel(), "norm").pvalue > 1e-3
    bound = 4 / np.sqrt(3 * 64 * 64)  # four standard deviations of a correlation of independent values
    for one, other in (
        (noise[0], noise[1]),
        (noise[0], noise[2]),
        (noise[:, :, 1:], noise[:, :, :-1]),
        (noise[..., 1:], noise[..., :-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[..., 1:] ** 2 - 1, noise[..., :-1] ** 2 - 1),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < bound


def test_noise_is_splitmix64():
    """The generator of Steele, Lea and Flood (OOPSLA 2014) in plain integers, and Box and Muller's transform."""

    def bits(seed, counter):
        z = (seed + counter * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    for seed in (0, 12345, 2**62 - 1):
        halves = [divmod(bits(seed, counter), 2**32) for counter in range(12)]
        expected = [
            np.sqrt(-2 * np.log((high + 0.5) / 2**32)) * np.cos(2 * np.pi * (low + 0.5) / 2**32) for high, low in halves
        ]
        np.testing.assert_allclose(hashed_normal(torch.tensor([seed]), (3, 4)).ravel(), expected, atol=2e-6)


def test_any_split_of_a_batch_is_erased_alike():
    for mode in ("pixel", "const"):
        erase, images = RandomErasing(0.6, seed=0, mode=mode), torch.ones(12, 3, 16, 16)
        whole = erase(images.clone(), step=5, first=0)
        for size in (1, 3, 6):
            parts = [erase(images[i : i + size].clone(), step=5, first=i) for i in range(0, 12, size)]
            assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(erase(images.clone(), step=6, first=0), whole)


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    images, labels, valid = batch()
    mixer()(RandomErasing(1.0, seed=0)(images, 0, 0), labels, valid, 0)
    assert torch.equal(torch.get_rng_state(), before)
