"""Parts of a training set: exact counts, balance, nesting, lists of names in every form that people have them."""

import io
import tarfile

import numpy as np
import pytest
from sourcemaking import quiet
from tarmaking import random_image, samples, write_tar

from vitwarm.data.making import Options
from vitwarm.data.shards import ShardSet, expand
from vitwarm.data.sources import open_images
from vitwarm.data.subset import balanced, select_subset, subset_size
from vitwarm.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), [3, 40, 40, 50, 60, 7, 90, 100, 100, 110]))


def water_level(sizes: np.ndarray, count: int) -> tuple[int, int]:
    """The largest level to which every class can be filled, and how many images are left over; by counting up."""
    level = 0
    while np.minimum(sizes, level + 1).sum() <= count and level < sizes.max():
        level += 1
    return level, count - int(np.minimum(sizes, level).sum())


@pytest.mark.parametrize("count", [1, 9, 10, 11, 60, 200, 599, 600])
def test_classes_give_equally_many_and_small_ones_all_they_have(count):
    ids = balanced(LABELS, count, seed=0)
    assert ids.dtype == np.int64 and ids.size == count == np.unique(ids).size
    assert (np.diff(ids) > 0).all()
    sizes, given = np.bincount(LABELS), np.bincount(LABELS[ids], minlength=10)
    level, left = water_level(sizes, count)
    extra = given - np.minimum(sizes, level)
    assert set(extra.tolist()) <= {0, 1} and extra.sum() == left


def test_imagenets_one_percent_has_simclrs_balance():
    labels = np.repeat(np.arange(1000), 1281)[:1_281_000]
    labels = np.concatenate([labels, np.arange(167)])
    ids = balanced(labels, subset_size("1%", 1_281_167), seed=0)
    assert ids.size == 12_812  # SimCLR's own list has 12,811
    assert set(np.bincount(labels[ids]).tolist()) == {12, 13}


def test_larger_parts_contain_smaller_ones_and_seeds_differ():
    parts = [set(balanced(LABELS, count, seed=3).tolist()) for count in (10, 33, 100, 400)]
    assert all(small < large for small, large in zip(parts, parts[1:], strict=False))
    assert parts[2] != set(balanced(LABELS, 100, seed=4).tolist())


def test_every_image_of_a_class_is_as_likely():
    from scipy.stats import chisquare

    labels = np.repeat([0, 1], 8)
    counts = sum(np.bincount(balanced(labels, 6, seed), minlength=16) for seed in range(2000))
    assert chisquare(counts).pvalue > 1e-3


def test_amounts():
    assert [subset_size(spec, 1437) for spec in ("10%", "144 samples", "0.1k", "100%")] == [144, 144, 100, 1437]
    for spec, why in [("0%", "makes 0"), ("2k", "makes 2000"), ("3 epochs", "cannot use"), ("ten", "cannot use")]:
        with pytest.raises(UserError, match=f"images.subset.*{why}"):
            subset_size(spec, 1437)


def test_a_written_list_selects_the_same_images_again(tars, tmp_path):
    shards = ShardSet(tars)
    drawn = select_subset(shards, "8 samples", seed=0)
    assert drawn.names == [shards.key(int(i)) for i in drawn.ids]
    (tmp_path / "subset.txt").write_text(drawn.text)
    again = select_subset(shards, str(tmp_path / "subset.txt"), seed=99)
    np.testing.assert_array_equal(again.ids, drawn.ids)
    assert again.sha256 == drawn.sha256
    # the same images in other shards
    whole = ShardSet([write_tar(tmp_path / "all-000.tar", samples(20))])
    moved = select_subset(whole, str(tmp_path / "subset.txt"), seed=99)
    assert [n.split(":")[1] for n in moved.names] == [n.split(":")[1] for n in drawn.names]


def test_names_as_simclr_writes_them(tmp_path):
    keys = ["n01440764_10026", "n01440764_10027", "n01443537_5"]
    members = [(f"{key}.{ext}", data) for key in keys for ext, data in (("jpg", random_image(1)), ("cls", b"0"))]
    shards = ShardSet([write_tar(tmp_path / "train-000.tar", members)])
    names = tmp_path / "1percent.txt"
    names.write_text("n01443537_5.JPEG\n\nn01440764_10026.JPEG\n")
    np.testing.assert_array_equal(select_subset(shards, str(names), 0).ids, [0, 2])
    names.write_text("n01443537/n01443537_5.JPEG\nn01440764_10026\n")
    np.testing.assert_array_equal(select_subset(shards, str(names), 0).ids, [0, 2])
    for text, why in [
        ("n01440764_10026.JPEG\nnothing.JPEG\n", "1 of 2 names are not in images.train, first nothing.JPEG"),
        ("n01443537_5\nn01443537_5.JPEG\n", "1 images twice"),
        ("n01443537_5\n#n01440764_10026\n", "1 of 2 names are not in images.train, first #n01440764_10026"),
        ("\n", "no names"),
    ]:
        names.write_text(text)
        with pytest.raises(UserError, match=why):
            select_subset(shards, str(names), 0)
    with pytest.raises(UserError, match="is missing"):
        select_subset(shards, str(tmp_path / "none.txt"), 0)


def test_a_list_of_ours_is_read_back_whatever_the_names(tmp_path):
    for place in ("golden retriever/5, left.jpg", "golden retriever/6.jpg", "bee/7.jpg"):
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / place).write_bytes(random_image(len(place), format="JPEG"))
    images = open_images(tmp_path / "in", "train")
    drawn = select_subset(images, "2 samples", 3)
    (tmp_path / "subset.txt").write_text(drawn.text)
    np.testing.assert_array_equal(select_subset(images, str(tmp_path / "subset.txt"), 0).ids, drawn.ids)


@pytest.mark.parametrize(
    "text",
    [
        "\ufefffilename,label\nant/5.jpg,0\nbee/x.1.jpg,1\n",
        '"ant/5.jpg";0\n"bee/x.1.jpg";1\n',
        "ant/5.jpg 0\n\nbee/x.1.jpg 1\n",
        "data/ant/5.jpg\ndata/bee/x.1.jpg\r\n",
        "ant/5\nbee_x_1\n",
    ],
)
def test_official_lists_of_splits(tmp_path, text):
    """Of files in class folders, whose keys `make-shards` has made of class and file."""
    for place in ("ant/5.jpg", "ant/6.jpg", "bee/x.1.jpg"):
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / place).write_bytes(random_image(len(place), format="JPEG"))
    quiet(tmp_path / "in", tmp_path / "out", options=Options(shuffle=False))
    names = tmp_path / "train.txt"
    names.write_text(text)
    np.testing.assert_array_equal(select_subset(ShardSet(expand(tmp_path / "out")), str(names), 0).ids, [0, 2])


def test_keys_in_any_bytes_have_a_digest(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for name, data in (("caf\udce9.png", random_image(0)), ("caf\udce9.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    drawn = select_subset(ShardSet([path]), "100%", 0)
    assert drawn.names == ["t.tar:caf\\xe9"] and len(drawn.sha256) == 64
    (tmp_path / "again.txt").write_text(drawn.text)
    assert select_subset(ShardSet([path]), str(tmp_path / "again.txt"), 0).names == drawn.names


def test_a_name_that_two_tars_have_must_say_which(tmp_path):
    tars = [write_tar(tmp_path / f"{letter}.tar", samples(2)) for letter in "ab"]
    shards, names = ShardSet(tars), tmp_path / "names.txt"
    names.write_text("s001\n")
    with pytest.raises(UserError, match="s001 is 2 images; write TAR:KEY"):
        select_subset(shards, str(names), 0)
    names.write_text("b.tar:s001\n")
    np.testing.assert_array_equal(select_subset(shards, str(names), 0).ids, [3])
