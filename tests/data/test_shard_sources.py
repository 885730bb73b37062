"""Each kind of source, built here in its original layout, becomes the tars that its images and labels ask for."""

import hashlib
import io
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sourcemaking import WNIDS, contents, jpeg, pixels, quiet, tar_bytes, tree
from tarmaking import samples, write_tar

from vitwarm.data.making import Options, make_shards
from vitwarm.data.shards import ShardSet, expand
from vitwarm.errors import UserError


@pytest.fixture
def ilsvrc(tmp_path) -> tuple[Path, dict[str, bytes], list[tuple[str, str, bytes]]]:
    """The three archives of ILSVRC2012 in miniature: 3 classes, 5 images each, 7 validation images."""
    from scipy.io import savemat

    folder = tmp_path / "archives"
    folder.mkdir()
    train = {f"{w}_{10 * i + c}.JPEG": jpeg(50 * c + i) for c, w in enumerate(WNIDS) for i in range(5)}
    inner = [(f"{w}.tar", tar_bytes([(n, d) for n, d in train.items() if n.startswith(w)])) for w in WNIDS]
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)
    truth = [WNIDS[i] for i in (2, 0, 1, 1, 0, 2, 2)]
    val = [(f"ILSVRC2012_val_{i + 1:08d}.JPEG", wnid, jpeg(900 + i)) for i, wnid in enumerate(truth)]
    write_tar(folder / "ILSVRC2012_img_val.tar", [(name, data) for name, _, data in val[::-1]])
    # The devkit's own numbers follow neither the order of the archive nor that of the ids; 1001 is an inner synset.
    ids = {WNIDS[0]: 2, WNIDS[1]: 3, WNIDS[2]: 1, "n09000000": 1001}
    synsets = np.array(
        [(number, wnid, "words") for wnid, number in ids.items()],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    kit, ground = "ILSVRC2012_devkit_t12/data", "".join(f"{ids[wnid]}\n" for wnid in truth)
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        for name, data in (("meta.mat", meta.getvalue()), ("ILSVRC2012_validation_ground_truth.txt", ground.encode())):
            info = tarfile.TarInfo(f"{kit}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return folder, train, val


def test_the_archives_of_ilsvrc2012(ilsvrc, tmp_path):
    folder, train, val = ilsvrc
    made = quiet(folder, tmp_path / "out", options=Options(images_per_shard=4))
    assert made.classes == sorted(WNIDS) and made.kind == "imagenet"
    wanted = {name[:-5]: ("jpg", data, sorted(WNIDS).index(name[:9])) for name, data in train.items()}
    assert contents(tmp_path / "out", "train") == wanted
    wanted = {name[:-5]: ("jpg", data, sorted(WNIDS).index(wnid)) for name, wnid, data in val}
    assert list(contents(tmp_path / "out", "val").items()) == list(wanted.items()), "val keeps the source's order"
    assert {n: (s.samples, len(s.shards), s.class_counts) for n, s in made.splits.items()} == {
        "train": (15, 4, [5, 5, 5]),
        "val": (7, 2, [2, 3, 2]),
    }
    stored = json.loads((tmp_path / "out/manifest.json").read_text())
    for split in stored["splits"].values():
        for shard in split["shards"]:
            data = (tmp_path / "out" / shard["name"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert split["bytes"] == sum(shard["bytes"] for shard in split["shards"])
    shards = ShardSet(expand(tmp_path / "out"))
    assert len(shards) == 22 and np.bincount(shards.labels).tolist() == [7, 8, 7]
    assert not (tmp_path / "out.partial").exists()
    tars = {shard["name"] for split in stored["splits"].values() for shard in split["shards"]}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == tars | {f"{tar}.index.safetensors" for tar in tars} | {"manifest.json"}


def test_every_list_of_validation_labels_says_the_same(ilsvrc, tmp_path):
    folder, _, val = ilsvrc
    (folder / "ILSVRC2012_img_train.tar").unlink()
    by_devkit = quiet(folder, tmp_path / "devkit")
    (folder / "ILSVRC2012_devkit_t12.tar.gz").rename(tmp_path / "kit.tar.gz")
    shuffled = [val[i] for i in (3, 0, 6, 1, 2, 5, 4)]
    lists = {
        "wnids.txt": "\n".join(wnid for _, wnid, _ in val),
        "table.txt": "\n".join(f"{name} {wnid}" for name, wnid, _ in shuffled),
        "LOC_val_solution.csv": "ImageId,PredictionString\n"
        + "\n".join(f"{name[:-5]},{wnid} 85 1 499 272 {wnid} 3 3 4 4" for name, wnid, _ in shuffled),
    }
    with pytest.raises(UserError, match="devkit_t12.tar.gz: is missing"):
        quiet(folder, tmp_path / "none")
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert quiet(folder, tmp_path / f"by {name}", labels=tmp_path / name).splits == by_devkit.splits
    flat = tmp_path / "kaggle"
    tree(flat / "train", 1, tuple(WNIDS))
    (flat / "val").mkdir()
    for name, _, data in val:
        (flat / "val" / name).write_bytes(data)
    quiet(flat, tmp_path / "flat", labels=tmp_path / "LOC_val_solution.csv")
    images = [value for _, value in contents(tmp_path / "flat", "val").items()]
    assert images == list(contents(tmp_path / "devkit", "val").values())


BAD_LABELS = {
    "a.txt": ("1\n2\n3\n", "bare numbers"),
    "b.txt": (f"{WNIDS[0]}\n" * 6, "6 labels for 7 images"),
    "c.txt": ("cat\ndog\n", "neither a list"),
    "d.txt": ("", "neither a list"),
    "e.csv": (f"ILSVRC2012_val_00000001,{WNIDS[0]} 1\n", "no label for ILSVRC2012_val_00000002 .6 such"),
    "f.csv": (f"ILSVRC2012_val_00000001,{WNIDS[0]}\n" * 2, "names an image twice"),
    "g.txt": ("n99999999\n" * 7, "class n99999999 is not in"),
    "h.tar.gz": ("no tar", "is not the devkit"),
    "i.tar.gz": (None, "is not the devkit"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_labels_that_cannot_be_right_are_refused(ilsvrc, tmp_path, name):
    text, message = BAD_LABELS[name]
    path = tmp_path / name
    if text is None:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(ilsvrc[0] / "ILSVRC2012_img_val.tar", "data/meta.mat")
    else:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        quiet(ilsvrc[0], tmp_path / "out", labels=path)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("where", ["outer", "inner"])
def test_archives_cut_short_are_refused(ilsvrc, tmp_path, where):
    path = ilsvrc[0] / "ILSVRC2012_img_train.tar"
    if where == "outer":
        path.write_bytes(path.read_bytes()[:-30_000])
    else:  # the class tar ends at a border between two images: tarfile alone would take it for whole
        inner = tar_bytes([(f"{WNIDS[0]}_{i}.JPEG", jpeg(i)) for i in range(3)])
        with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
            border = archive.getmembers()[2].offset
        write_tar(path, [(f"{WNIDS[0]}.tar", inner[:border])])
    with pytest.raises(UserError, match="is not a whole tar .*; download it again"):
        quiet(ilsvrc[0], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_names_from_outside_become_plain_unique_keys(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    names = [
        "../../../etc/x_1.JPEG",
        "/abs/x_1.JPEG",
        "x.1.JPEG",
        "x_1.JPEG",
        "sp ace\u00e9.JPEG",
        "y" * 90 + ".JPEG",
        ".JPEG",
    ]
    inner = [(f"../{WNIDS[0]}.tar", tar_bytes([(n, jpeg(i)) for i, n in enumerate(names)]))]
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)
    quiet(folder, tmp_path / "out", options=Options(shuffle=False))
    made = contents(tmp_path / "out", "train")
    assert [image for _, image, _ in sorted(made.values())] == sorted(jpeg(i) for i in range(len(names)))
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}", key) for key in made)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "out"}


def test_class_folders_with_splits(tmp_path):
    tree(tmp_path / "in/train", 3)
    tree(tmp_path / "in/validation", 2, ("bee", "cat"))
    (tmp_path / "in/test").mkdir()
    (tmp_path / "in/train/cat/notes.txt").write_text("x")
    said = []
    made = make_shards(tmp_path / "in", tmp_path / "out", say=said.append)
    assert made.classes == ["ant", "bee", "cat"] and list(made.splits) == ["train", "val"]
    assert made.splits["val"].class_counts == [0, 2, 2]
    assert "not used: 1 .txt files, 1 test folder without labels" in said
    assert list(quiet(tmp_path / "in/validation", tmp_path / "one", split="val").splits) == ["val"]


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_the_test_split_of_a_zip_and_of_tars_is_made_too(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        tree(tmp_path / "in" / split, count)
    made = quiet(zipped(tmp_path / "in", tmp_path / "in.zip"), tmp_path / "out")
    again = quiet(tmp_path / "out", tmp_path / "smaller", options=Options(max_side=8))
    for one in (made, again):
        assert {name: split.class_counts for name, split in one.splits.items()} == {
            "train": [3, 3, 3],
            "val": [2, 2, 2],
            "test": [1, 1, 1],
        }
    shutil.rmtree(tmp_path / "in/val")  # then the test split stands for it, once
    two = quiet(zipped(tmp_path / "in", tmp_path / "two.zip"), tmp_path / "pair")
    assert {name: split.class_counts for name, split in two.splits.items()} == {"train": [3] * 3, "val": [1] * 3}


def test_a_lone_split_of_a_zip_or_of_tars_keeps_its_name_and_order(tmp_path):
    tree(tmp_path / "in/val")
    made = quiet(zipped(tmp_path / "in", tmp_path / "one.zip"), tmp_path / "out")
    assert list(made.splits) == ["val"] and made.splits["val"].shuffle_seed is None
    assert list(quiet(tmp_path / "out", tmp_path / "smaller", options=Options(max_side=8)).splits) == ["val"]
    assert list(quiet(tmp_path / "one.zip", tmp_path / "told", split="train").splits) == ["train"]
    tree(tmp_path / "flat")
    assert list(quiet(zipped(tmp_path / "flat", tmp_path / "dev.zip"), tmp_path / "dev").splits) == ["val"]
    assert list(quiet(zipped(tmp_path / "flat", tmp_path / "all.zip"), tmp_path / "all").splits) == ["train"]
    tree(tmp_path / "in/train", 2)
    both = quiet(zipped(tmp_path / "in", tmp_path / "train.zip"), tmp_path / "both")  # its own name says less
    assert list(both.splits) == ["train", "val"]


def test_a_test_split_without_labels_in_a_zip_is_named(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        tree(tmp_path / "in" / split, count)
    (tmp_path / "in/test").mkdir()
    (tmp_path / "in/test/0.jpg").write_bytes(jpeg(7))
    said = []
    made = make_shards(zipped(tmp_path / "in", tmp_path / "in.zip"), tmp_path / "out", say=said.append)
    assert list(made.splits) == ["train", "val"]
    assert any(line.startswith("not used: test (") for line in said), said


def cifar_rows(labels: list[tuple[int, ...]]) -> tuple[bytes, list[np.ndarray]]:
    images = [pixels(i, 32) for i in range(len(labels))]
    rows = [bytes(label) + image.transpose(2, 0, 1).tobytes() for label, image in zip(labels, images, strict=True)]
    return b"".join(rows), images


def stored_pixels(folder: Path, split: str) -> list[tuple[int, np.ndarray]]:
    found = contents(folder, split)
    assert all(extension == "png" for extension, _, _ in found.values())
    return [(label, np.asarray(Image.open(io.BytesIO(image)))) for _, image, label in found.values()]


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar(tmp_path, kind):
    ten = kind == "cifar10"
    folder = tmp_path / "data" / ("cifar-10-batches-bin" if ten else "cifar-100-binary")
    folder.mkdir(parents=True)
    labels = [(2,), (0,), (1,), (2,)] if ten else [(9, 2), (0, 0), (9, 1), (4, 2)]
    data, images = cifar_rows(labels)
    (folder / ("batches.meta.txt" if ten else "fine_label_names.txt")).write_text("zebra\nant\ncat\n\n")
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"] if ten else ["train.bin", "test.bin"]:
        (folder / name).write_bytes(data)
    made = quiet(tmp_path / "data", tmp_path / "out", options=Options(shuffle=False))
    assert (made.kind, made.classes) == (kind, ["zebra", "ant", "cat"])
    for split, times in (("train", 5 if ten else 1), ("val", 1)):
        found = stored_pixels(tmp_path / "out", split)
        assert [label for label, _ in found] == [label[-1] for label in labels] * times
        assert all(np.array_equal(got, want) for (_, got), want in zip(found, images * times, strict=True))
    (folder / ("test_batch.bin" if ten else "test.bin")).write_bytes(data[:-1])
    with pytest.raises(UserError, match="not a whole number of records"):
        quiet(tmp_path / "data", tmp_path / "other")


def test_stl10(tmp_path):
    images = [pixels(i, 96) for i in range(3)]
    raw = b"".join(image.transpose(2, 1, 0).tobytes() for image in images)  # planes that run down the columns
    for part in ("train", "test"):
        (tmp_path / f"{part}_X.bin").write_bytes(raw)
        (tmp_path / f"{part}_y.bin").write_bytes(bytes([2, 1, 2]))
    (tmp_path / "class_names.txt").write_text("airplane\nbird\n")
    quiet(tmp_path, tmp_path / "out", options=Options(shuffle=False))
    for split in ("train", "val"):
        found = stored_pixels(tmp_path / "out", split)
        assert [label for label, _ in found] == [1, 0, 1]
        assert all(np.array_equal(got, want) for (_, got), want in zip(found, images, strict=True))
    (tmp_path / "test_y.bin").write_bytes(bytes([0, 1, 2]))
    with pytest.raises(UserError, match="labels outside of its 2 classes"):
        quiet(tmp_path, tmp_path / "other", kind="stl10")


def test_food101(tmp_path):
    made = tree(tmp_path / "food-101/images", 4, ("sushi", "pizza"))
    (tmp_path / "food-101/meta").mkdir()
    lists = {"train": ["sushi/0", "pizza/1", "pizza/3"], "test": ["pizza/0", "sushi/2"]}
    for name, rows in lists.items():
        (tmp_path / f"food-101/meta/{name}.txt").write_text("\n".join(rows) + "\n")
    quiet(tmp_path, tmp_path / "out")
    for name, rows in lists.items():
        found = contents(tmp_path / "out", "val" if name == "test" else name)
        assert found == {r.replace("/", "_"): ("jpg", made[f"{r}.jpg"], int(r[0] == "s")) for r in rows}
    for row in ("../x", "pizza/../../x", "pizza", "/etc/passwd"):
        (tmp_path / "food-101/meta/test.txt").write_text(row)
        with pytest.raises(UserError, match="is not CLASS/IMAGE"):
            quiet(tmp_path, tmp_path / "other", kind="food101")


def test_tiny_imagenet(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    for wnid in WNIDS:
        made = tree(folder / "train" / wnid, 2, ("images",))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
    (folder / "val/images").mkdir(parents=True)
    (folder / "val/images/val_0.JPEG").write_bytes(jpeg(1))
    (folder / "val/val_annotations.txt").write_text(f"val_0.JPEG\t{WNIDS[0]}\t0\t0\t1\t1\n")
    (folder / "test/images").mkdir(parents=True)
    said = []
    result = make_shards(tmp_path, tmp_path / "out", say=said.append)
    assert (result.kind, result.splits["train"].class_counts) == ("tiny-imagenet", [2, 2, 2])
    assert contents(tmp_path / "out", "val") == {f"{WNIDS[0]}_val_0": ("jpg", jpeg(1), 2)}
    assert {image for _, image, _ in contents(tmp_path / "out", "train").values()} == set(made.values())
    assert "not used: 3 box lists, test (no labels)" in said
    (folder / "val/val_annotations.txt").write_text(f"../val_0.JPEG\t{WNIDS[0]}\n")
    with pytest.raises(UserError, match="names no image and class of train"):
        quiet(tmp_path, tmp_path / "other", kind="tiny-imagenet")


def test_existing_tars_are_indexed_and_later_checked(tmp_path):
    paths = [write_tar(tmp_path / name, samples(5, first=i)) for i, name in enumerate(["train-0.tar", "val-0.tar"])]
    before = [path.read_bytes() for path in paths]
    made = quiet(tmp_path)
    assert [path.read_bytes() for path in paths] == before
    assert {n: (s.samples, s.class_counts) for n, s in made.splits.items()} == {
        "train": (5, [2, 1, 1, 1]),
        "val": (5, [1, 2, 1, 1]),
    }
    assert {p.name for p in tmp_path.glob("*.safetensors")} == {f"{p.name}.index.safetensors" for p in paths}
    assert made.splits["val"].shards[0].sha256 == hashlib.sha256(before[1]).hexdigest()
    assert quiet(tmp_path) == made
    data = bytearray(before[0])
    data[700] ^= 1
    paths[0].write_bytes(data)
    with pytest.raises(UserError, match="train-0.tar: is not the tar that .*manifest.json describes"):
        quiet(tmp_path)
    paths[0].unlink()
    with pytest.raises(UserError, match=r"train-0.tar: is missing \(1 of 2"):
        quiet(tmp_path)
