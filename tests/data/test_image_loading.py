import pickle

import numpy as np
import pytest
import torch
from tarmaking import encode, random_image, samples, write_tar

from vitwarm.data.decoding import decode
from vitwarm.data.images import EvalTransform, TrainTransform
from vitwarm.data.loading import ImageDataset, eval_loader, train_loader
from vitwarm.data.order import ImageOrder
from vitwarm.data.shards import ShardSet
from vitwarm.errors import UserError


@pytest.fixture
def shards(tars):
    return ShardSet(tars)


@pytest.fixture
def train_set(shards):
    return ImageDataset(shards, TrainTransform(8, auto_augment="rand-m9-mstd0.5-inc1"), seed=5)


@pytest.fixture
def eval_set(shards):
    return ImageDataset(shards, EvalTransform(8, 1.0))


def joined(batches, key):
    return torch.cat([batch[key] for batch in batches])


def same(left, right):
    return len(left) == len(right) and all(
        a["damage"] == b["damage"] and all(torch.equal(a[k], b[k]) for k in ("image", "label", "valid", "sample"))
        for a, b in zip(left, right, strict=True)
    )


def test_a_batch_holds_what_the_plan_says(train_set, shards):
    order = ImageOrder(len(shards), 8, seed=5)
    for step, batch in enumerate(train_loader(train_set, order, 0, 6)):
        epochs, ids = order.batch(step)
        assert batch["image"].shape == (8, 3, 8, 8) and batch["image"].dtype == torch.uint8
        assert batch["label"].dtype == torch.int64 and batch["valid"].dtype == torch.bool and batch["valid"].all()
        assert batch["damage"] == []
        np.testing.assert_array_equal(batch["sample"], ids)
        np.testing.assert_array_equal(batch["label"], shards.labels[ids])
        for row, (epoch, sample) in enumerate(zip(epochs, ids, strict=True)):
            assert torch.equal(batch["image"][row], train_set[epoch, sample]["image"])


def test_images_are_augmented_anew_each_epoch_and_seed(train_set, shards):
    other = ImageDataset(shards, train_set.transform, seed=6)
    views = [dataset[epoch, 2]["image"].numpy().tobytes() for dataset in (train_set, other) for epoch in range(8)]
    assert len(set(views)) > 12


def test_workers_change_nothing(train_set, shards):
    order = ImageOrder(len(shards), 8, seed=5)
    alone, one, two = (list(train_loader(train_set, order, 0, 7, device_batch=4, workers=n)) for n in (0, 1, 2))
    assert len(alone) == 14 and same(alone, one) and same(alone, two)


def test_a_restart_goes_on_with_the_same_batches(train_set, shards):
    order = ImageOrder(len(shards), 8, seed=5)
    whole = list(train_loader(train_set, order, 0, 9))
    rest = list(train_loader(train_set, ImageOrder(len(shards), 8, seed=5), 4, 9, workers=2))
    assert same(whole[4:], rest)


@pytest.mark.parametrize(("world", "device_batch"), [(2, None), (2, 2), (4, 1), (1, 2)])
def test_processes_and_micro_batches_make_up_the_same_global_batch(train_set, shards, world, device_batch):
    order = ImageOrder(len(shards), 8, seed=5)
    whole = list(train_loader(train_set, order, 0, 4))
    parts = [list(train_loader(train_set, order, 0, 4, rank, world, device_batch)) for rank in range(world)]
    per_step = len(parts[0]) // 4
    for step in range(4):
        pieces = [piece for part in parts for piece in part[step * per_step : (step + 1) * per_step]]
        for key in ("image", "label", "sample"):
            assert torch.equal(joined(pieces, key), whole[step][key])


@pytest.mark.parametrize("world", [1, 2, 3, 25])
def test_evaluation_sees_every_sample_once(eval_set, shards, world):
    seen = [list(eval_loader(eval_set, rank, world, batch=4)) for rank in range(world)]
    found = joined([batch for batches in seen for batch in batches], "sample")
    assert sorted(found.tolist()) == list(range(len(shards)))
    assert len(seen[-1]) == (0 if world == 25 else len(seen[-1]))


def test_evaluation_repeats_itself_with_and_without_workers(eval_set):
    loader = eval_loader(eval_set, batch=6, workers=2)
    first, again = list(loader), list(loader)
    assert same(first, again) and same(first, list(eval_loader(eval_set, batch=6)))


def test_loading_draws_nothing_from_the_global_generators(train_set, shards):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 2):
        list(train_loader(train_set, ImageOrder(len(shards), 4, 0), 0, 2, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_does_not_divide_is_refused(train_set, shards):
    order = ImageOrder(len(shards), 8, 0)
    with pytest.raises(UserError, match="does not divide among 3"):
        train_loader(train_set, order, 0, 1, world=3)
    with pytest.raises(UserError, match="run.device_batch=3 does not divide a process's share 4"):
        train_loader(train_set, order, 0, 1, world=2, device_batch=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_are_named_and_the_rest_goes_on(tmp_path, workers):
    jpeg = random_image(9, 40, 40, "JPEG")
    members = samples(2) + [
        *(("cut.jpg", jpeg[:-200]), ("cut.cls", b"3")),
        *(("none.png", b""), ("none.cls", b"2")),
        *(("whole.jpg", jpeg), ("whole.cls", b"1")),
    ]
    shards = ShardSet([write_tar(tmp_path / "t.tar", members)])
    (batch,) = eval_loader(ImageDataset(shards, EvalTransform(8)), batch=8, workers=workers)
    assert batch["valid"].tolist() == [True, True, False, False, True]
    assert batch["label"].tolist() == [0, 1, 3, 2, 1]
    assert [(sample, key) for sample, key, _ in batch["damage"]] == [(2, "t.tar:cut"), (3, "t.tar:none")]
    assert "truncated" in batch["damage"][0][2] and "0 bytes" in batch["damage"][1][2]
    assert not batch["image"][2:4].any() and torch.equal(batch["image"][4], EvalTransform(8)(decode(jpeg)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tar_that_goes_away_ends_in_one_line(tars, workers):
    dataset = ImageDataset(ShardSet(tars), EvalTransform(8))
    tars[2].unlink()
    with pytest.raises(UserError, match="train-002.tar: cannot be opened any more") as caught:
        list(eval_loader(dataset, batch=4, workers=workers))
    assert "\n" not in str(caught.value)


def test_data_sets_travel_to_spawned_processes_without_their_open_files(train_set):
    train_set[0, 0]
    copy = pickle.loads(pickle.dumps(train_set))
    opened = [[part._file >= 0 for part in one.shards.parts] for one in (train_set, copy)]
    assert any(opened[0]) and not any(opened[1])
    assert torch.equal(copy[3, 4]["image"], train_set[3, 4]["image"])


def test_images_of_one_size_reach_the_batch_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    members = [(f"{i}.{kind}", data) for i in range(3) for kind, data in (("png", encode(pixels[i])), ("cls", b"0"))]
    (batch,) = eval_loader(ImageDataset(ShardSet([write_tar(tmp_path / "t.tar", members)]), EvalTransform(8, 1.0)))
    np.testing.assert_array_equal(batch["image"].permute(0, 2, 3, 1), pixels)
