import numpy as np
import pytest
from scipy.stats import chisquare

from vitwarm.data.order import ImageOrder, rank_slice
from vitwarm.errors import UserError


@pytest.mark.parametrize(("num_samples", "batch"), [(37, 8), (37, 37), (5, 16), (1, 3), (64, 8)])
def test_every_epoch_shows_each_image_once(num_samples, batch):
    order = ImageOrder(num_samples, batch, seed=3)
    epochs, images = map(np.concatenate, zip(*(order.batch(step) for step in range(num_samples * 4)), strict=True))
    np.testing.assert_array_equal(epochs, np.arange(epochs.size) // num_samples)
    whole = epochs.size // num_samples * num_samples
    for epoch in images[:whole].reshape(-1, num_samples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_samples))


def test_a_step_does_not_depend_on_what_was_asked_before():
    order, steps = ImageOrder(50, 16, seed=1), np.random.default_rng(0).permutation(40)
    forward = [order.batch(step)[1] for step in range(40)]
    for step in steps:
        np.testing.assert_array_equal(order.batch(int(step))[1], forward[step])
        np.testing.assert_array_equal(ImageOrder(50, 16, seed=1).batch(int(step))[1], forward[step])


def test_the_order_does_not_depend_on_the_batch_size():
    small, large = ImageOrder(30, 4, seed=1), ImageOrder(30, 12, seed=1)
    np.testing.assert_array_equal(np.concatenate([small.batch(step)[1] for step in (9, 10, 11)]), large.batch(3)[1])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(ImageOrder(100, 100, seed).batch(epoch)[1]) for seed in (0, 1) for epoch in range(5)}
    assert len(orders) == 10


def test_each_place_holds_each_image_equally_often():
    counts = np.zeros((6, 6))
    order = ImageOrder(6, 6, seed=0)
    for step in range(3000):
        counts[np.arange(6), order.batch(step)[1]] += 1
    assert chisquare(counts.ravel()).pvalue > 1e-3


def test_a_subset_is_all_that_is_shown():
    ids = np.array([3, 8, 21, 22, 29])
    order = ImageOrder(30, 5, seed=0, ids=ids)
    assert order.epoch_size == 5
    for step in range(4):
        epochs, images = order.batch(step)
        assert set(images) == set(ids) and set(epochs) == {step}


def test_a_bad_subset_is_refused():
    with pytest.raises(ValueError, match="twice"):
        ImageOrder(30, 5, seed=0, ids=[1, 1])
    with pytest.raises(ValueError, match=r"\[0, 30\)"):
        ImageOrder(30, 5, seed=0, ids=[30])
    with pytest.raises(UserError, match="no images"):
        ImageOrder(30, 5, seed=0, ids=[])
    with pytest.raises(UserError, match="global_batch"):
        ImageOrder(30, 0, seed=0)


def test_shares_of_processes_make_up_the_batch():
    for world in (1, 2, 4):
        places = np.concatenate([np.arange(16)[rank_slice(16, rank, world)] for rank in range(world)])
        np.testing.assert_array_equal(places, np.arange(16))
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        rank_slice(16, 0, 3)
