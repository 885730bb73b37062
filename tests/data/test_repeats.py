"""Repeated augmentation in the order of images: counts, an independent sampler (timm's), and what mixing sees."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare
from timm.data.distributed_sampler import RepeatAugSampler

from vitwarm.data.order import ImageOrder


@pytest.mark.parametrize(
    ("num_samples", "batch", "repeats"), [(24, 12, 3), (25, 12, 3), (7, 24, 4), (40, 8, 2), (30, 16, 3), (11, 5, 4)]
)
def test_each_image_comes_as_often_as_asked_and_no_address_twice(num_samples, batch, repeats):
    order = ImageOrder(num_samples, batch, seed=5, repeats=repeats)
    seen, steps = [], num_samples * repeats  # a whole number of passes: steps * batch presentations
    for step in range(steps):
        epochs, samples = order.batch(step)
        assert epochs.shape == samples.shape == (batch,)
        seen += zip(epochs.tolist(), samples.tolist(), strict=True)
        # A showing of an image is cut by the batch's two ends at most.
        showings = Counter((epoch // repeats, sample) for epoch, sample in seen[-batch:])
        whole = [count for count in showings.values() if count == repeats]
        assert len(showings) - len(whole) <= 2 and max(showings.values()) <= repeats
        assert len(whole) == len(showings) or batch % repeats
    assert len(set(seen)) == len(seen)  # an (epoch, image) keys the augmentation: no two copies are augmented alike
    presentations = Counter(sample for _, sample in seen)
    assert set(presentations.values()) == {steps * batch // num_samples}


def test_n_presentations_hold_n_over_r_images_as_in_timm():
    n, repeats, batch = 1536, 3, 48
    sampler = RepeatAugSampler(range(n), num_replicas=1, rank=0, num_repeats=repeats)
    theirs = Counter(list(sampler)[:n])
    order = ImageOrder(n, batch, seed=0, repeats=repeats)
    ours = Counter(np.concatenate([order.batch(step)[1] for step in range(n // batch)]).tolist())
    assert len(ours) == len(theirs) == n // repeats
    assert set(ours.values()) == set(theirs.values()) == {repeats}


def test_copies_meet_other_partners_and_other_processes():
    order = ImageOrder(1000, 96, seed=2, repeats=3)
    alike = 0
    for step in range(50):
        _, samples = order.batch(step)
        for part in samples.reshape(3, 32):
            assert np.unique(part).size == 32  # one copy in each third, and so in each of 3 processes
        pairs = [frozenset(pair) for pair in samples.reshape(-1, 2).tolist()]
        alike += len(pairs) - len(set(pairs))
    # 3 pairs of thirds; a given pair of images is a pair again with probability 1 / 31
    assert abs(alike - 50 * 3 * 16 / 31) < 5 * (50 * 3 * 16 / 31) ** 0.5


def test_the_place_of_a_copy_is_even():
    counts = np.zeros((6, 6))
    order = ImageOrder(6, 12, seed=0, repeats=2)
    for step in range(2000):
        _, samples = order.batch(step)
        counts[np.arange(6), samples[6:]] += 1
    assert chisquare(counts.ravel()).pvalue > 1e-3


def test_one_copy_is_the_plan_without_repeats():
    for step in range(5):
        for ours, plain in zip(
            ImageOrder(30, 8, 1, repeats=1).batch(step), ImageOrder(30, 8, 1).batch(step), strict=True
        ):
            np.testing.assert_array_equal(ours, plain)
