"""Making shards: same bytes for any workers, kills, damage, odd images, mistakes. Results are read with tarfile."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sourcemaking import contents, files_of, jpeg, pixels, quiet, tree
from tarmaking import encode, samples, write_tar

from vitwarm.cli import call
from vitwarm.data.decoding import MAX_PIXELS, decode
from vitwarm.data.images import EvalTransform
from vitwarm.data.making import Options, make_shards
from vitwarm.data.making.encode import MaxSide, checked
from vitwarm.data.shards import ShardSet
from vitwarm.data.source import DamagedSample
from vitwarm.errors import Interrupted, UserError

REPO = Path(__file__).parents[2]
LOCK_AND_WAIT = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print(1, flush=True); input()"


def trouble() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(pixels(1)).convert("CMYK").save(stream, "JPEG")
    return {
        "cmyk.jpg": stream.getvalue(),
        "png.jpg": encode(pixels(2), "PNG"),
        "turned.jpg": jpeg(3, exif=exif),
        "grey.jpg": encode(pixels(4)[..., 0], "JPEG"),
        "gif.gif": encode(pixels(5), "GIF"),
        "webp.jpeg": encode(pixels(6), "WEBP", lossless=True),
        "deep.png": encode(pixels(7)[..., 0].astype(np.uint16) * 257, "PNG"),
        "plain.JPEG": jpeg(8),
    }


def test_images_that_decoders_disagree_on(tmp_path):
    tree(tmp_path / "in", 1, ("d",))
    (tmp_path / "in/c").mkdir()
    for name, data in trouble().items():
        (tmp_path / "in/c" / name).write_bytes(data)
    made = quiet(tmp_path / "in", tmp_path / "out")
    found = contents(tmp_path / "out", "train")
    for name, data in trouble().items():
        extension, stored, _ = found[f"c_{name.partition('.')[0]}"]
        if name in ("cmyk.jpg", "gif.gif"):
            image = Image.open(io.BytesIO(stored))
            assert (extension, image.format, image.mode) == ("png", "PNG", "RGB")
            assert np.array_equal(image, Image.open(io.BytesIO(data)).convert("RGB"))
        elif name == "deep.png":  # 16 bits of the form 257 * x: 8 bits of x
            assert np.array_equal(Image.open(io.BytesIO(stored)), pixels(7)[..., 0])
        else:
            assert stored == data
            assert extension == {"png.jpg": "png", "webp.jpeg": "webp"}.get(name, "jpg")
    split = made.splits["train"]
    assert split.notes == {
        "16-bit grey stored as PNG": 1,
        "CMYK stored as PNG": 1,
        "EXIF orientation, not applied": 1,
        "GIF stored as PNG": 1,
        "grey": 2,
    }
    assert sorted(key for key, _ in split.stored_as_png) == ["c_cmyk", "c_deep", "c_gif"]


def test_what_is_let_in_is_what_the_reader_can_decode():
    """The quick check against the reader's own full decoding, on cut and flipped files of each kind."""
    rng, outcomes = np.random.default_rng(0), {True: 0, False: 0}
    big = np.asarray(Image.fromarray(pixels(0, 8)).resize((90, 70), Image.Resampling.BICUBIC))
    kinds = [
        encode(big, "JPEG"),
        encode(big, "JPEG", progressive=True),
        encode(big, "PNG"),
        encode(big[..., 0], "JPEG"),
    ]
    for data in [*kinds, *trouble().values()]:
        for _ in range(40):
            broken = bytearray(data[: rng.integers(len(data) + 1)] if rng.random() < 0.5 else data)
            if broken and rng.random() < 0.5:
                broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
            answers = []
            for read in (decode, lambda b: checked(b, MAX_PIXELS), lambda b: checked(b, MAX_PIXELS, MaxSide(8, 90))):
                try:
                    read(bytes(broken))
                    answers.append(True)
                except DamagedSample:
                    answers.append(False)
            assert len(set(answers)) == 1
            outcomes[answers[0]] += 1
    assert min(outcomes.values()) > 100


def test_damaged_images_are_named_counted_and_refused_past_the_limit(tmp_path):
    made = tree(tmp_path / "in")
    (tmp_path / "in/ant/2.jpg").write_bytes(made["ant/2.jpg"][:200])
    (tmp_path / "in/bee/3.jpg").write_bytes(b"")
    (tmp_path / "in/cat/9.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(UserError, match=r"of 19 images are damaged, more than max_damaged=0.001.*(ant_2|bee_3|cat_9)"):
        quiet(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    split = quiet(tmp_path / "in", tmp_path / "out", options=Options(max_damaged=0.2)).splits["train"]
    assert sorted(key for key, _ in split.damaged) == ["ant_2", "bee_3", "cat_9"]
    assert (split.samples, split.class_counts) == (16, [5, 5, 6])
    assert len(contents(tmp_path / "out", "train")) == 16


@pytest.mark.parametrize("max_side", [None, 10])
def test_bytes_do_not_depend_on_the_workers(tmp_path, max_side):
    tree(tmp_path / "in")
    options = Options(images_per_shard=5, max_side=max_side)
    for workers in (1, 2):
        quiet(tmp_path / "in", tmp_path / str(workers), workers=workers, options=options)
    assert len(files_of(tmp_path / "1")) == 9
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


def test_order(tmp_path):
    made = tree(tmp_path / "in", 40)
    source = [f"{name[:3]}_{name[4:-4]}" for name in sorted(made, key=lambda n: (n[:3], n[4:]))]
    orders = {}
    for name, options in {
        "kept": Options(shuffle=False),
        "zero": Options(images_per_shard=50),
        "one": Options(seed=1, images_per_shard=50),
    }.items():
        quiet(tmp_path / "in", tmp_path / name, options=options)
        orders[name] = list(contents(tmp_path / name, "train"))
    assert orders["kept"] == source
    assert orders["zero"] != orders["one"] and sorted(orders["zero"]) == sorted(orders["one"]) == sorted(source)
    for tar in sorted((tmp_path / "zero").glob("*.tar")):  # 40 images of 3 equal classes: 13.3, sd 2.4 a class
        counts = np.bincount(ShardSet([tar]).labels, minlength=3)
        assert counts.sum() == 40 and counts.min() >= 4


@pytest.mark.parametrize(
    ("options", "tars"), [(Options(shard_mb=0.004), 5), (Options(images_per_shard=7), 3), (None, 1)]
)
def test_size_of_shards(tmp_path, options, tars):
    made = tree(tmp_path / "in")
    assert 0.016 < sum(map(len, made.values())) / 1e6 <= 0.020
    split = quiet(tmp_path / "in", tmp_path / "out", options=options).splits["train"]
    counts = [shard.samples for shard in split.shards]
    assert len(counts) == tars and sum(counts) == 18 and max(counts) - min(counts) <= 1


def test_a_killed_maker_is_gone_on_with(tmp_path):
    """SIGKILL in the midst; workers end by themselves, whole shards stay, the end is the same."""
    for name in "cd":
        (tmp_path / "in" / name).mkdir(parents=True)
    big = encode(np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8), "JPEG")
    for i in range(24):
        (tmp_path / f"in/{'cd'[i % 2]}/{i}.jpg").write_bytes(big)
    tool = [sys.executable, REPO / "tools/make_shards.py", f"source={tmp_path}/in", "images_per_shard=2", "workers=2"]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    maker = subprocess.Popen([*tool, f"out={tmp_path}/out"], env=environment, stdout=subprocess.DEVNULL)
    partial, end = tmp_path / "out.partial", time.time() + 60
    while len(list(partial.glob("*.tar.json"))) < 3:
        assert maker.poll() is None and time.time() < end, "it is to be killed while it writes"
        time.sleep(0.005)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    time.sleep(1)  # the workers look for their parent twice a second
    whole = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.tar")}
    assert 3 <= len(whole) < 12 and not (tmp_path / "out").exists()
    said = []
    make_shards(tmp_path / "in", tmp_path / "out", options=Options(images_per_shard=2), say=said.append)
    assert any(re.match(r"resuming: \d+ of 12 shards", line) for line in said)
    kept = [name for name in whole if (tmp_path / "out" / name).stat().st_mtime_ns == whole[name]]
    assert len(kept) >= 3, "whole shards are not made again"
    quiet(tmp_path / "in", tmp_path / "at once", options=Options(images_per_shard=2))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "at once")


def stopped(tmp_path, monkeypatch, after: int = 2) -> Path:
    """A maker that Ctrl-C stopped after some shards."""
    from vitwarm.data.making import make

    real, calls = make.write_shard, []

    def write(task):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(task)
        return real(task)

    tree(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(make, "write_shard", write)
        with pytest.raises(Interrupted, match="stopped"):
            quiet(tmp_path / "in", tmp_path / "out", options=Options(images_per_shard=4))
    return tmp_path / "out.partial"


def test_a_finished_shard_that_rots_is_noticed_and_made_again(tmp_path, monkeypatch):
    partial = stopped(tmp_path, monkeypatch)
    tar = partial / "train-00001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match="train-00001.tar: what is on the disk is not what was written"):
        quiet(tmp_path / "in", tmp_path / "out", options=Options(images_per_shard=4))
    assert not (tmp_path / "out").exists()
    quiet(tmp_path / "in", tmp_path / "out", options=Options(images_per_shard=4))
    assert len(contents(tmp_path / "out", "train")) == 18


@pytest.mark.parametrize("how", ["replaced", "replaced by one of its size", "removed", "more than that"])
def test_a_source_that_was_mended_is_gone_on_with(tmp_path, how):
    good = tree(tmp_path / "in")["ant/2.jpg"]
    path, options = tmp_path / "in/ant/2.jpg", Options(images_per_shard=4)
    path.write_bytes(bytes(len(good)) if how == "replaced by one of its size" else good[:200])
    with pytest.raises(UserError, match="1 of 18 images are damaged.*ant_2"):
        quiet(tmp_path / "in", tmp_path / "out", options=options)
    path.write_bytes(good)
    if how == "removed":
        path.unlink()
    if how == "more than that":
        (tmp_path / "in/cat/99.jpg").write_bytes(jpeg(99))
        (tmp_path / "in/bee/0.jpg").unlink()
        (tmp_path / "in/bee/1.jpg").unlink()
    quiet(tmp_path / "in", tmp_path / "out", options=options)
    quiet(tmp_path / "in", tmp_path / "at once", options=options)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "at once")


def test_larger_images_are_made_smaller(tmp_path):
    """The pixels that readers see, by PIL's bicubic filter, as a JPEG of 4:2:0; what is not larger keeps its bytes."""
    tree(tmp_path / "in", 1, ("d",))
    (tmp_path / "in/c").mkdir()
    exif, big = Image.Exif(), np.asarray(Image.fromarray(pixels(1, 8)).resize((90, 61), Image.Resampling.BICUBIC))
    exif[0x0112], image = 6, Image.fromarray(big)
    larger = {
        "rgb.jpg": encode(big, "JPEG", exif=exif, icc_profile=b"profile", comment=b"words", subsampling="4:4:4"),
        "rgba.png": encode(np.dstack([big, big[..., 0]]), "PNG"),
        "cmyk.jpg": _saved(image.convert("CMYK"), "JPEG"),
        "palette.gif": _saved(image.convert("P"), "GIF"),
        "grey.jpg": encode(big[..., 0], "JPEG"),
        "deep.png": encode(big[..., 0].astype(np.uint16) * 257, "PNG"),
        "bits.png": _saved(image.convert("1"), "PNG"),
        "alpha.png": _saved(image.convert("LA"), "PNG"),
        "wide.jpg": encode(big[:33], "JPEG"),
        "tall.png": encode(big[:, :40], "PNG"),
    }
    kept = {"same.jpg": encode(big[:32], "JPEG"), "thin.png": encode(big[:5], "PNG"), "long.png": _long_png()}
    for name, data in (larger | kept).items():
        (tmp_path / "in/c" / name).write_bytes(data)
    split = quiet(tmp_path / "in", tmp_path / "out", options=Options(max_side=32, quality=80)).splits["train"]
    found = contents(tmp_path / "out", "train")
    for name, data in larger.items():
        extension, stored, _ = found[f"c_{name.partition('.')[0]}"]
        grey = name in ("grey.jpg", "deep.png", "bits.png", "alpha.png")
        seen = Image.fromarray(big[..., 0]) if name == "deep.png" else Image.open(io.BytesIO(data))
        size = (32, 32 * 61 // 40) if name == "tall.png" else (32 * 90 // (33 if name == "wide.jpg" else 61), 32)
        small = seen.convert("L" if grey else "RGB").resize(size, Image.Resampling.BICUBIC)
        assert (extension, Image.open(io.BytesIO(stored)).info.keys()) == (
            "jpg",
            {"jfif", "jfif_version", "jfif_unit", "jfif_density"},
        )
        assert stored == encode(np.asarray(small), "JPEG", quality=80, subsampling=2), name
    for name, data in kept.items():
        assert found[f"c_{name.partition('.')[0]}"][1] == data
    assert (split.max_side, split.quality) == (32, 80)
    assert split.notes["resized to a shorter side of 32, JPEG of quality 80"] == len(larger)
    assert not split.stored_as_png and split.notes["EXIF orientation, not applied"] == 1


def test_tars_are_made_smaller_in_another_folder(tmp_path):
    """As from the source that they were made of; they stay as they are."""
    tree(tmp_path / "in")
    quiet(tmp_path / "in", tmp_path / "full", options=Options(images_per_shard=7, shuffle=False))
    before, options = files_of(tmp_path / "full"), Options(max_side=9, images_per_shard=5)
    quiet(tmp_path / "full", tmp_path / "of tars", options=options)
    quiet(tmp_path / "in", tmp_path / "of folders", options=options)
    made, direct = (files_of(tmp_path / name) for name in ("of tars", "of folders"))
    assert files_of(tmp_path / "full") == before
    tars = {name for name in made if name.endswith(".tar")}
    assert len(tars) == 4 and {name: made[name] for name in tars} == {name: direct[name] for name in tars}
    manifests = [json.loads(files["manifest.json"]) for files in (made, direct)]
    assert manifests[0]["classes"] == ["ant", "bee", "cat"] and manifests[0]["splits"] == manifests[1]["splits"]
    again = quiet(tmp_path / "of tars", tmp_path / "again", options=Options(images_per_shard=7)).splits["train"]
    assert (again.max_side, again.quality) == (9, None)
    assert quiet(tmp_path / "of tars", tmp_path / "more", options=Options(max_side=30)).splits["train"].max_side == 9
    (tmp_path / "full/manifest.json").unlink()
    with pytest.raises(UserError, match="numbers without names; give these.* classes=FILE"):
        quiet(tmp_path / "full", tmp_path / "nameless", options=options)


def test_at_the_evaluations_side_only_the_coding_differs():
    """max_side of size / crop_pct: evaluation has nothing left to resample. Grey, since 4:2:0 costs chroma."""
    big = np.asarray(Image.fromarray(pixels(1, 8)).resize((90, 61), Image.Resampling.BICUBIC))[..., 0]
    stored, _, _ = checked(encode(big, "PNG"), MAX_PIXELS, MaxSide(32, 100))
    seen, exact = (EvalTransform(28)(decode(data)).numpy().astype(int) for data in (stored, encode(big, "PNG")))
    assert np.abs(seen - exact).max() <= 2


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_used_and_said(format):
    frames, stream = [Image.fromarray(pixels(i, 32)) for i in range(3)], io.BytesIO()
    frames[0].save(
        stream, format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    stored, _, notes = checked(stream.getvalue(), MAX_PIXELS)
    assert f"first of several frames of {format}" in notes
    assert np.array_equal(decode(stored), Image.open(stream).convert("RGB"))


def _saved(image: Image.Image, format: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


def _long_png() -> bytes:
    """Longer than a JPEG can be, even at a shorter side of 32."""
    return _saved(Image.new("1", (33, 68_000)), "PNG")


GREY = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096


@pytest.mark.parametrize("format", ["TIFF", "PNG", "PPM"])
def test_16_bit_grey_is_scaled_once(tmp_path, format):
    tree(tmp_path / "in", 1)
    (tmp_path / f"in/ant/x.{'pgm' if format == 'PPM' else format}").write_bytes(encode(GREY, format))
    quiet(tmp_path / "in", tmp_path / "out")
    stored = contents(tmp_path / "out", "train")["ant_x"][1]
    for read in (decode, lambda data: Image.open(io.BytesIO(data)).convert("RGB")):  # ours, and that of plain timm
        assert np.array_equal(np.asarray(read(stored)), np.repeat(GREY[..., None] // 256, 3, axis=2))
    assert np.array_equal(decode(encode(GREY, format)), read(stored)), "as it is read from other tars"


@pytest.mark.parametrize("pixels", [GREY.astype(np.float32), GREY.astype(np.int32)])
def test_pixels_of_unknown_range_are_refused(pixels):
    for read in (decode, lambda data: checked(data, MAX_PIXELS)):
        with pytest.raises(DamagedSample, match="pixels have no known range; convert the image"):
            read(encode(pixels, "TIFF"))


def test_a_jpeg_that_lost_bytes_is_counted(tmp_path):
    pytest.importorskip("simplejpeg")
    tree(tmp_path / "in", 3)
    smooth = np.asarray(Image.fromarray(pixels(1, 8)).resize((200, 160), Image.Resampling.BICUBIC))
    for number, (start, stop) in enumerate([(0.5, 0.75), (0.7, 0.9), (0.3, 0.6)]):
        data = bytearray(encode(smooth, "JPEG", quality=95))
        first, last = int(start * len(data)), int(stop * len(data))
        data[first:last] = bytes(last - first)
        assert decode(bytes(data)).size == (200, 160)
        (tmp_path / f"in/ant/z{number}.jpg").write_bytes(data)
    assert quiet(tmp_path / "in", tmp_path / "out").splits["train"].notes == {
        "JPEG with lost bytes, as its decoder warns": 3
    }


def test_what_another_plan_began_is_not_mixed_in(tmp_path, monkeypatch):
    partial = stopped(tmp_path, monkeypatch)
    for options in (Options(images_per_shard=5), Options(images_per_shard=4, seed=1), Options(max_side=9)):
        with pytest.raises(UserError, match="out.partial: was begun from another source or with other options"):
            quiet(tmp_path / "in", tmp_path / "out", options=options)
    assert len(list(partial.glob("*.tar"))) == 2


def test_a_folder_of_ones_own_is_not_taken_for_a_part_of_the_work(tmp_path):
    tree(tmp_path / "in")
    quiet(tmp_path / "in", tmp_path / "tars.partial")  # as a copy that is under way may be called
    tree(tmp_path / "classes.partial")
    (tmp_path / "notes.partial").mkdir()
    (tmp_path / "notes.partial/holiday.tar").write_text("mine")
    (tmp_path / "link.partial").symlink_to(tmp_path / "notes.partial")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for source, out in (("tars.partial", "tars"), ("classes.partial", "classes"), ("in", "notes"), ("in", "link")):
        with pytest.raises(UserError, match=f"{out}.partial: exists and was not begun by this command"):
            quiet(tmp_path / source, tmp_path / out)
        assert not (tmp_path / out).exists()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_two_makers_do_not_share_a_folder(tmp_path, monkeypatch):
    partial = stopped(tmp_path, monkeypatch)
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT, partial / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    with pytest.raises(UserError, match="another process is writing there"):
        quiet(tmp_path / "in", tmp_path / "out", options=Options(images_per_shard=4))
    holder.communicate(b"\n")
    quiet(tmp_path / "in", tmp_path / "out", options=Options(images_per_shard=4))


def test_a_folder_in_use_is_left_alone_and_one_that_is_made_is_not_made_again(tmp_path):
    tree(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    with pytest.raises(UserError, match="out: exists and holds something else"):
        quiet(tmp_path / "in", tmp_path / "out")
    assert files_of(tmp_path / "out") == {"mine.txt": b"x"} and not (tmp_path / "out.partial").exists()
    (tmp_path / "out/mine.txt").unlink()
    made = quiet(tmp_path / "in", tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert quiet(tmp_path / "in", tmp_path / "out") == made
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="exists and holds something else"):
        quiet(tmp_path / "in", tmp_path / "out", options=Options(seed=5))


def test_images_that_changed_under_their_size_are_noticed(tmp_path, monkeypatch):
    """As bitmaps do: a call that was stopped writes their shards again, one that has finished says so."""
    bitmaps = tmp_path / "in/dog"
    bitmaps.mkdir(parents=True)
    for number in range(30):
        Image.fromarray(pixels(number)).save(bitmaps / f"{number}.bmp")
    stopped(tmp_path, monkeypatch)
    time.sleep(0.05)
    for number in range(30):
        Image.fromarray(pixels(number + 50)).save(bitmaps / f"{number}.bmp")
    options = Options(images_per_shard=4)
    quiet(tmp_path / "in", tmp_path / "out", options=options)
    quiet(tmp_path / "in", tmp_path / "at once", options=options)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "at once")
    time.sleep(0.05)
    Image.fromarray(pixels(98)).save(bitmaps / "1.bmp")
    said = []
    make_shards(tmp_path / "in", tmp_path / "out", options=options, say=said.append)
    assert "in/dog/1.bmp was written or copied after it; if images have changed, remove" in said[-1]


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    tree(tmp_path / "in")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="0.0 GB are free"):
        quiet(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


REFUSED = {
    "nothing there": ({"source": "gone"}, "there is nothing"),
    "empty": ({"source": "empty"}, "no data set that is known here; kind= is one of"),
    "a file": ({"source": "tree/ant/0.jpg"}, "is a file; unpack it"),
    "a broken zip": ({"source": "file.zip", "out": "out"}, "file.zip: is not a whole zip"),
    "unknown kind": ({"source": "tree", "kind": "mnist"}, "kind=mnist is not one of imagenet, cifar10"),
    "another kind": ({"source": "tree", "kind": "cifar10"}, "is not cifar10; it has no data_batch_1.bin"),
    "pickled": ({"source": "cifar"}, "pickled version.*download and unpack https://.*cifar-10-binary.tar.gz"),
    "no out": ({"source": "tree"}, "give out=FOLDER"),
    "options of tars": ({"source": "tars", "seed": "1"}, "only workers= has a use"),
    "useless labels": ({"source": "tree", "out": "out", "labels": "file.zip"}, "neither a list"),
    "a path for a split": ({"source": "tree", "out": "out", "split": "../x"}, "split=../x: a name of letters"),
    "no images": ({"source": "hollow", "out": "out"}, "no images there"),
    "one class": ({"source": "lone", "out": "out"}, "has one class alone, 'ant'"),
    "unknown word": ({"source": "tree", "out": "out", "sed": "1"}, "no option sed=; did you mean seed"),
    "no number": ({"source": "tree", "out": "out", "workers": "many"}, "workers is a whole number"),
    "no share": ({"source": "tree", "out": "out", "max_damaged": "2"}, r"max_damaged must lie in \[0, 1\)"),
    "no size": ({"source": "tree", "out": "out", "shard_mb": "0"}, r"shard_mb must lie in \(0, inf\)"),
    "no side": ({"source": "tree", "out": "out", "max_side": "0"}, r"max_side must lie in \[1, inf\)"),
    "no quality": (
        {"source": "tree", "out": "out", "max_side": "9", "quality": "101"},
        r"quality must lie in \[1, 100",
    ),
    "quality of nothing": ({"source": "tree", "out": "out", "quality": "90"}, "give max_side=, or leave it out"),
    "smaller tars": ({"source": "tars", "max_side": "9"}, "only workers= has a use"),
    "no truth": ({"source": "tree", "out": "out", "shuffle": "maybe"}, "shuffle is true or false"),
    "no source": ({"out": "out"}, "no source=PATH"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    tree(Path("tree"))
    for folder in ("empty", "hollow/a", "hollow/b", "cifar/cifar-10-batches-py", "tars"):
        Path(folder).mkdir(parents=True)
    Path("cifar/cifar-10-batches-py/batches.meta").write_bytes(b"\x80")
    Path("file.zip").write_bytes(b"PK")
    write_tar(Path("tars/a.tar"), samples(2))
    tree(Path("lone"), 2, ("ant",))
    before = sorted(map(str, tmp_path.rglob("*")))
    arguments, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        call("make-shards", [f"{key}={value}" for key, value in arguments.items()])
    assert "\n" not in str(caught.value)
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_class_without_images_is_no_class(tmp_path):
    tree(tmp_path / "in")
    (tmp_path / "in" / "logs").mkdir()
    with pytest.raises(UserError, match="in/logs: a class without an image"):
        call("make-shards", [f"source={tmp_path}/in", f"out={tmp_path}/out"])


def test_a_label_that_is_no_class_number(tmp_path):
    image, (key, _) = samples(1)
    write_tar(tmp_path / "a.tar", [image, (key, b"50000000")])
    with pytest.raises(UserError, match="a.tar: label 50000000 is above"):
        call("make-shards", [f"source={tmp_path}"])


def test_the_command(tmp_path):
    tree(tmp_path / "in")
    tool = [sys.executable, REPO / "tools/make_shards.py", f"source={tmp_path}/in", f"out={tmp_path}/out"]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(tool, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "folders: 3 classes (ant ... cat), 18 images of train"
    assert done.stdout.splitlines()[-1].startswith("train  18 images in 1 tar, 0.1 MB")
    wrong = subprocess.run([*tool, "seed=x"], env=environment, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "vitwarm: error: seed is a whole number, not 'x'\n")
