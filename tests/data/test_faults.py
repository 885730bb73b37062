"""Whatever is wrong with the data: each sample is read, or counted as damaged, or the run refuses in one line."""

import logging
import os
import pickle
import signal
import time
from collections import Counter

import numpy as np
import pytest
import torch
from tarmaking import encode, random_image, samples, write_tar
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from vitwarm.data import loading
from vitwarm.data.images import EvalTransform, TrainTransform
from vitwarm.data.loading import ImageDataset, eval_loader, train_loader
from vitwarm.data.order import ImageOrder
from vitwarm.data.shards import ShardSet
from vitwarm.errors import UserError

JPEG = [random_image(seed, 40, 48, "JPEG") for seed in range(6)]
BOMB = bytearray(encode(np.zeros((8, 8), dtype=np.uint8), "JPEG"))
_FRAME = BOMB.index(b"\xff\xc0")
BOMB[_FRAME + 5 : _FRAME + 9] = b"\x27\x11\x27\x11"  # 10001 x 10001 pixels


@pytest.fixture(autouse=True)
def alarm():
    """A hang is a failure."""
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("hangs")))
    signal.alarm(300)
    yield
    signal.alarm(0)


# Faults of one member list; each returns what must be true of it: how many samples are damaged, or None: refused.


def nothing(members, rng):
    return 0


def empty_image(members, rng):
    members[2 * rng.integers(6)][1] = b""
    return 1


def bomb(members, rng):
    members[2 * rng.integers(6)][1] = bytes(BOMB)
    return 1


def no_image(members, rng):
    members[2 * rng.integers(6)][1] = rng.bytes(rng.integers(1, 3000))
    return 1


def cut_image(members, rng):
    member = members[2 * rng.integers(6)]
    member[1] = member[1][: rng.integers(0, len(member[1]) - 100)]
    return 1


def any_order(members, rng):
    rng.shuffle(members)
    return 0


def twice(members, rng):
    members.append(list(members[rng.integers(12)]))
    return None


def missing_label(members, rng):
    del members[2 * rng.integers(6) + 1]
    return None


def missing_image(members, rng):
    del members[2 * rng.integers(6)]
    return None


def wrong_label(members, rng):
    members[2 * rng.integers(6) + 1][1] = [b"", b"cat", b"-3", b"7.5", b"\xff\0", b"9" * 30][rng.integers(6)]
    return None


MEMBER_FAULTS = [nothing, empty_image, bomb, no_image, cut_image, any_order]
MEMBER_FAULTS += [twice, missing_label, missing_image, wrong_label]


def flipped(data, rng):
    broken = bytearray(data)
    for _ in range(rng.integers(1, 20)):
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
    return bytes(broken)


def cut(data, rng):
    return data[: rng.integers(len(data))]


def joined(data, rng):
    return data + data


def zeroed(data, rng):
    start = rng.integers(len(data))
    return data[:start] + bytes(min(2000, len(data) - start)) + data[start + 2000 :]


def whole(data, rng):
    return data


TAR_FAULTS = [whole, whole, whole, flipped, cut, joined, zeroed]


def run_case(folder, seed):
    """What came of one tar with faults of its members, of its bytes and of the index beside it."""
    rng = np.random.default_rng(seed)
    members = [
        member for row in range(6) for member in ([f"s{row}.jpg", JPEG[row]], [f"s{row}.cls", str(row % 3).encode()])
    ]
    member_fault = MEMBER_FAULTS[rng.integers(len(MEMBER_FAULTS))]
    tar_fault = TAR_FAULTS[rng.integers(len(TAR_FAULTS))]
    path = folder / f"case-{seed}.tar"
    if rng.random() < 0.3:  # an index of what the tar once was
        ShardSet([write_tar(path, [tuple(member) for member in members])])
        time.sleep(0.02)  # clocks of file systems are coarse
    damaged = member_fault(members, rng)
    write_tar(path, [tuple(member) for member in members])
    path.write_bytes(tar_fault(path.read_bytes(), rng))
    index = path.with_name(f"{path.name}.index.safetensors")
    if index.exists() and rng.random() < 0.5:
        index.write_bytes(flipped(index.read_bytes(), rng))

    known = tar_fault is whole
    try:
        shards = ShardSet([path])
        labels = shards.labels.tolist()
        batches = list(eval_loader(ImageDataset(shards, EvalTransform(16)), batch=4))
        trained = list(train_loader(ImageDataset(shards, TrainTransform(16)), ImageOrder(6, 3, 0), 0, 4))
    except UserError as error:
        assert path.name in str(error) and "\n" not in str(error)
        assert not known or damaged is None, f"{member_fault.__name__}: {error}"
        return "refused"
    assert not (known and damaged is None), f"{member_fault.__name__} went unnoticed"
    assert len(shards) == 6 and sorted(labels) == [0, 0, 1, 1, 2, 2], "a sample was lost"
    assert sorted(torch.cat([batch["sample"] for batch in batches]).tolist()) == list(range(6))
    lost = 0
    for batch in batches + trained:
        named = [sample for sample, _, _ in batch["damage"]]
        assert named == batch["sample"][~batch["valid"]].tolist()
        assert all(key.startswith(path.name) and reason and "\n" not in reason for _, key, reason in batch["damage"])
        assert not batch["image"][~batch["valid"]].any()
    lost = sum(int((~batch["valid"]).sum()) for batch in batches)
    assert not known or lost == damaged, f"{member_fault.__name__}: {lost}"
    return "damaged" if lost else "read"


def fuzz(folder, seeds):
    logging.disable(logging.WARNING)
    try:
        return Counter(run_case(folder, seed) for seed in seeds)
    finally:
        logging.disable(logging.NOTSET)


def test_faulty_tars_are_read_counted_or_refused(tmp_path):
    outcomes = fuzz(tmp_path, range(40))
    assert sum(outcomes.values()) == 40 and min(outcomes[name] for name in ("read", "damaged", "refused")) >= 4


@pytest.mark.long
def test_five_hundred_faulty_tars_are_read_counted_or_refused(tmp_path):
    outcomes = fuzz(tmp_path, range(1000, 1500))
    assert sum(outcomes.values()) == 500 and min(outcomes[name] for name in ("read", "damaged", "refused")) >= 50


@pytest.fixture
def shards(tars):
    return ShardSet(tars)


def test_tars_that_shrink_under_a_run_end_it_in_one_line(tars, shards):
    loader = iter(train_loader(ImageDataset(shards, TrainTransform(8)), ImageOrder(20, 4, 0), 0, 1000, workers=2))
    next(loader)
    for path in tars:
        path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(UserError, match=r"train-\d+.tar: has (become shorter|changed) since it was indexed") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


def test_a_tar_that_vanishes_is_read_on_from_the_open_file_or_refused(tars, shards):
    dataset = ImageDataset(shards, EvalTransform(8))
    loader = iter(eval_loader(dataset, batch=10))
    next(loader)  # has opened all three
    for path in tars:
        path.unlink()
    assert all(batch["valid"].all() for batch in loader)
    with pytest.raises(UserError, match="cannot be opened any more"):
        list(
            eval_loader(ImageDataset(pickle.loads(pickle.dumps(shards)), EvalTransform(8)), batch=10)
        )  # as workers get it


@pytest.mark.parametrize("world", [1, 4, 8])
def test_more_processes_than_uneven_tars_share_every_batch(shards, world):
    order, dataset = ImageOrder(20, 8, 3), ImageDataset(shards, TrainTransform(8), 3)
    ranks = [list(train_loader(dataset, order, 0, 10, rank, world)) for rank in range(world)]
    for step in range(10):
        assert torch.cat([rank[step]["sample"] for rank in ranks]).tolist() == order.batch(step)[1].tolist()
    shown = Counter(int(s) for rank in ranks for batch in rank for s in batch["sample"])
    assert set(shown.values()) == {4}, "80 presentations of 20 images"


def test_a_set_smaller_than_a_batch_is_gone_through_several_times(tmp_path):
    shards = ShardSet([write_tar(tmp_path / "t.tar", samples(3))])
    batches = list(train_loader(ImageDataset(shards, TrainTransform(8)), ImageOrder(3, 8, 0), 0, 3, workers=1))
    assert [len(batch["sample"]) for batch in batches] == [8, 8, 8]
    assert Counter(torch.cat([batch["sample"] for batch in batches]).tolist()) == {0: 8, 1: 8, 2: 8}
    (last,) = eval_loader(ImageDataset(shards, EvalTransform(8)), batch=8)
    assert len(last["sample"]) == 3


# Workers


class Transform(EvalTransform):
    """Does something to the worker process when it meets a certain image of `samples`."""

    def __init__(self, at, deed):
        super().__init__(8)
        self.at, self.deed = at, deed

    @property
    def phases(self):
        def meet(data, rng):
            if data == random_image(self.at):
                self.deed()
            return data

        return meet, *super().phases


def same(left, right):
    return all(torch.equal(a["image"], b["image"]) and torch.equal(a["sample"], b["sample"])
               for a, b in zip(left, right, strict=True))  # fmt: skip


def test_a_slow_worker_changes_nothing_but_time(shards):
    order = ImageOrder(20, 4, 0)
    slow = ImageDataset(shards, Transform(3, lambda: time.sleep(0.5)))
    plain = ImageDataset(shards, EvalTransform(8))
    assert same(list(train_loader(slow, order, 0, 8, workers=2)), list(train_loader(plain, order, 0, 8)))


@pytest.fixture(params=["alone", "beside another loader"])
def company(request, monkeypatch):
    """Another loader of torch with a worker of its own, which brings torch's answer to the death of any worker."""
    if request.param == "alone":
        yield
        return
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # or an earlier test may have had it removed
    before = signal.getsignal(signal.SIGCHLD)
    other = iter(DataLoader(range(4), num_workers=1))
    yield
    assert [int(batch) for batch in other] == [0, 1, 2, 3]
    signal.signal(signal.SIGCHLD, before)


def test_a_killed_worker_is_replaced_and_nothing_lost_or_shown_twice(shards, tmp_path, monkeypatch, caplog, company):
    monkeypatch.setattr(loading, "_PATIENCE", 1)
    mark, order = tmp_path / "killed", ImageOrder(20, 4, 0)

    def once():
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    found = list(train_loader(ImageDataset(shards, Transform(3, once)), order, 0, 8, workers=2))
    assert mark.exists() and same(found, list(train_loader(ImageDataset(shards, EvalTransform(8)), order, 0, 8)))
    assert "worker died (exit code -9" in caplog.text


def test_workers_that_are_killed_in_the_end_disturb_nothing_that_comes_later(shards, company):
    loader = train_loader(ImageDataset(shards, EvalTransform(8)), ImageOrder(20, 4, 0), 0, 8, workers=2)
    for _ in range(3):
        running = loader._start(0)
        next(running)
        loading._kill(running)
        time.sleep(0.3)  # the deaths are reported while the iterator is alive, as a traceback may keep it


def test_an_image_that_kills_every_worker_ends_the_run_in_one_line(shards, monkeypatch):
    monkeypatch.setattr(loading, "_PATIENCE", 1)
    dataset = ImageDataset(shards, Transform(3, lambda: os._exit(1)))
    with pytest.raises(UserError, match=r"worker died \(exit code 1") as caught:
        list(train_loader(dataset, ImageOrder(20, 4, 0), 0, 50, workers=1))
    assert "\n" not in str(caught.value)


def test_a_stuck_worker_ends_the_run_in_one_line(shards, monkeypatch):
    monkeypatch.setattr(loading, "_PATIENCE", 1)
    monkeypatch.setattr(loading, "_STALLED", 2)
    dataset = ImageDataset(shards, Transform(3, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    with pytest.raises(UserError, match="no batch for 2 s") as caught:
        list(train_loader(dataset, ImageOrder(20, 4, 0), 0, 50, workers=1))
    assert "\n" not in str(caught.value)


def test_a_fault_of_ours_in_a_worker_keeps_its_traceback(shards):
    dataset = ImageDataset(shards, Transform(3, lambda: 1 / 0))
    with pytest.raises(ZeroDivisionError, match="Traceback"):
        list(train_loader(dataset, ImageOrder(20, 4, 0), 0, 50, workers=1))
