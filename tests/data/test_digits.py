import io
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vitwarm.data.digits import digits_shards
from vitwarm.data.shards import ShardSet, expand
from vitwarm.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path))
    return tmp_path


def read(split):
    shards = ShardSet(expand(digits_shards(split)))
    rows = [int(shards.key(i).split(":")[1]) for i in range(len(shards))]
    images = np.stack([np.array(Image.open(io.BytesIO(shards.read(i)))) for i in range(len(shards))])
    return rows, images, shards.labels


def test_the_splits_are_scikit_learns_images_and_share_none(cache):
    digits, seen = load_digits(), []
    for split, count in (("train", 1437), ("test", 360)):
        rows, images, labels = read(split)
        assert len(rows) == count
        np.testing.assert_array_equal(np.round(images * (16 / 255)), digits.images[rows])
        np.testing.assert_array_equal(labels, digits.target[rows])
        shares = np.bincount(labels) / count - np.bincount(digits.target) / 1797
        assert np.abs(shares).max() < 0.002, "stratified"
        seen += rows
    assert sorted(seen) == list(range(1797))


def test_two_processes_at_once_leave_one_whole_folder(cache):
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        specs = list(pool.map(digits_shards, ["train", "test", "train"]))
    assert [len(ShardSet(expand(spec))) for spec in specs] == [1437, 360, 1437]
    assert [path.name for path in cache.iterdir()] == ["digits"]


def test_they_are_written_once_and_always_the_same(cache, monkeypatch, tmp_path):
    first = {path.name: path.read_bytes() for path in expand(digits_shards("train"))}
    monkeypatch.setattr("vitwarm.data.digits._write", None)
    assert {path.name: path.read_bytes() for path in expand(digits_shards("train"))} == first
    monkeypatch.undo()
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "other"))
    assert {path.name: path.read_bytes() for path in expand(digits_shards("train"))} == first


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("VITWARM_CACHE", str(cache / "file"))
    with pytest.raises(UserError, match="set VITWARM_CACHE"):
        digits_shards("train")
    monkeypatch.setenv("VITWARM_CACHE", str(cache / "full"))
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        digits_shards("train")
    assert not list((cache / "full").iterdir()), "nothing is left half-written"
