import io
import os
import tarfile
import time

import numpy as np
import pytest
import webdataset
from tarmaking import encode, random_image, samples, write_tar

from vitwarm.cache import cache_dir
from vitwarm.data.decoding import decode
from vitwarm.data.shards import ShardSet, expand
from vitwarm.data.source import DamagedSample, check_labels
from vitwarm.errors import UserError


def by_tarfile(paths):
    """(name of tar:key, image, label) of all samples, read by Python's tarfile alone."""
    found = []
    for path in paths:
        with tarfile.open(path) as archive:
            data = {member.name: archive.extractfile(member).read() for member in archive if member.isreg()}
        for name, image in data.items():
            stem, extension = name.rsplit(".", 1)
            if extension.lower() in ("png", "jpg", "jpeg"):
                found.append((f"{path.name}:{stem}", image, int(data[f"{stem}.cls"])))
    return found


def by_us(shards):
    return [(shards.key(i), shards.read(i), int(shards.labels[i])) for i in range(len(shards))]


def test_reads_what_tarfile_reads(tars):
    assert by_us(ShardSet(tars)) == by_tarfile(tars)


def test_groups_as_webdataset_does(tmp_path):
    members = [
        ("a.b/x.jpg", b"1"),
        ("a.b/x.cls", b"3"),
        ("./y.JPEG", b"2"),
        ("./y.cls", b"0\n"),
        ("./y.seg.png", b"not this"),
    ]
    path = write_tar(tmp_path / "t.tar", members)
    theirs = [
        (f"t.tar:{sample['__key__']}", sample.get("jpg", sample.get("jpeg")), int(sample["cls"]))
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
        if "cls" in sample
    ]
    assert by_us(ShardSet([path])) == theirs


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_and_long_unicode_names(tmp_path, format):
    folder = "d" * 60 if format == tarfile.USTAR_FORMAT else "d" * 300 + "é"
    members = [
        (f"{folder}/k{i}.{kind}", data) for i in range(3) for kind, data in (("cls", b"1"), ("png", b"%d" % i * 700))
    ]
    path = write_tar(tmp_path / "t.tar", members, format)
    assert by_us(ShardSet([path])) == by_tarfile([path])


def test_labels_may_be_apart_from_images_and_other_members_do_not_matter(tmp_path):
    members = sorted(samples(5)) + [("README", b"hello"), ("s000.json", b"{}"), ("._s000.png", b"apple")]
    path = write_tar(tmp_path / "t.tar", members)
    with tarfile.open(path, "a") as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert [image for _, image, _ in by_us(ShardSet([path]))] == [random_image(i) for i in range(5)]


def test_the_index_is_kept_and_used_and_one_of_another_tar_is_not(tars):
    ShardSet(tars)
    index = tars[0].with_name("train-000.tar.index.safetensors")
    written = os.stat(index).st_mtime_ns
    ShardSet(tars)
    assert os.stat(index).st_mtime_ns == written
    write_tar(tars[0], samples(9, first=50))
    assert by_us(ShardSet(tars)) == by_tarfile(tars)
    index.write_bytes(index.read_bytes()[:100])
    assert by_us(ShardSet(tars)) == by_tarfile(tars)
    assert sorted(path.name for path in tars[0].parent.iterdir()) == sorted(
        name for path in tars for name in (path.name, f"{path.name}.index.safetensors")
    ), "nothing is left aside"


def test_another_tar_of_the_same_size_is_noticed(tmp_path):
    path = write_tar(tmp_path / "t.tar", samples(4))
    ShardSet([path])
    before = path.stat().st_size
    write_tar(path, [("r" + name[1:], data) for name, data in samples(4)][::-1])
    assert path.stat().st_size == before
    assert by_us(ShardSet([path])) == by_tarfile([path])


def test_other_labels_at_the_same_places_are_noticed(tmp_path):
    """Images, names and size are the same: only the time tells that the tar was written again."""
    path = write_tar(tmp_path / "t.tar", samples(4))
    assert ShardSet([path]).labels.tolist() == [0, 1, 2, 3]
    time.sleep(0.02)  # clocks of file systems are coarse
    write_tar(path, [(name, b"7" if name.endswith("cls") else data) for name, data in samples(4)])
    assert ShardSet([path]).labels.tolist() == [7, 7, 7, 7]


def test_other_labels_under_the_same_time_are_noticed(tmp_path):
    """Size and time of the file are the same, as `touch -r` and rsync make them: the time of the inode tells."""
    path = write_tar(tmp_path / "t.tar", samples(4))
    assert ShardSet([path]).labels.tolist() == [0, 1, 2, 3]
    before = path.stat()
    write_tar(path, [(name, b"7" if name.endswith("cls") else data) for name, data in samples(4)])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ShardSet([path]).labels.tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("when", [1, 1_000_000_000, 4_000_000_000])
def test_a_tar_is_indexed_once_whatever_its_clock_says(tmp_path, when):
    path = write_tar(tmp_path / "t.tar", samples(4))
    os.utime(path, (when, when))
    index = tmp_path / "t.tar.index.safetensors"
    ShardSet([path])
    written = index.stat().st_ino
    ShardSet([path])
    assert index.stat().st_ino == written


def test_an_index_with_a_wrong_bit_is_made_again(tmp_path, caplog):
    path = write_tar(tmp_path / "t.tar", samples(4))
    truth, index = by_us(ShardSet([path])), tmp_path / "t.tar.index.safetensors"
    whole, rng = index.read_bytes(), np.random.default_rng(0)
    label = whole.index(np.array([0, 1, 2, 3]).tobytes())
    for place in [label, label + 9, *rng.integers(len(whole), size=60).tolist()]:
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        index.write_bytes(broken)
        os.utime(index, ns=(0, path.stat().st_mtime_ns))
        assert by_us(ShardSet([path])) == truth
    assert "does not match t.tar: indexing it again" in caplog.text


def test_links_in_a_tar_are_what_they_point_to(tmp_path):
    path = tmp_path / "t.tar"

    def links(*rows):
        write_tar(path, samples(3) + [("d/u.png", random_image(9)), ("d/u.cls", b"2")])
        with tarfile.open(path, "a") as archive:
            for name, target, kind in rows:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                archive.addfile(info)
        return ShardSet([path])

    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    found = links(
        ("d/y.png", "s001.png", hard), ("d/y.cls", "s002.cls", hard), ("d/z.png", "../s002.png", soft),
        ("d/z.cls", "u.cls", soft), ("folder.link", "..", soft),
    )  # fmt: skip
    assert by_us(found)[4:] == [("t.tar:d/y", random_image(1), 2), ("t.tar:d/z", random_image(2), 2)]
    with pytest.raises(UserError, match="'x.png' is a link to '/data/x.png', which is not in it"):
        links(("x.png", "/data/x.png", soft), ("x.cls", "s000.cls", hard))


KEYS = {
    "macOS": [(f"{folder}{name}", data) for folder in ("._", "d/._", "__MACOSX/d/") for name, data in samples(2)],
    "fields": [("s000.seg.png", b"x"), ("s000.coarse.cls", b"no number"), ("s001.depth.map.png", b"x")],
    "others": [("s000.json", b"{}"), ("README", b""), (".hidden.png", b"x"), ("d/.cls", b"x")],
}


@pytest.mark.parametrize("kind", KEYS)
def test_what_belongs_to_no_sample_is_passed_over(tmp_path, kind):
    for members in (KEYS[kind] + samples(2), samples(2) + KEYS[kind]):
        assert by_us(ShardSet([write_tar(tmp_path / "t.tar", members)])) == [
            (f"t.tar:s{i:03d}", random_image(i), i) for i in range(2)
        ]


def test_a_key_may_have_dots_and_an_image_any_format(tmp_path):
    members = [m for i in range(3) for m in ((f"photo.{i}.png", random_image(i)), (f"photo.{i}.cls", b"1"))]
    assert [key for key, _, _ in by_us(ShardSet([write_tar(tmp_path / "t.tar", members)]))] == [
        f"t.tar:photo.{i}" for i in range(3)
    ]
    formats = {"gif": "GIF", "TIFF": "TIFF", "jfif": "JPEG", "jpe": "JPEG", "webp": "WEBP"}
    pixels = np.full((8, 8, 3), 99, dtype=np.uint8)
    members = [m for e, f in formats.items() for m in ((f"{e}.{e}", encode(pixels, f)), (f"{e}.cls", b"1"))]
    for image in (decode(data) for _, data, _ in by_us(ShardSet([write_tar(tmp_path / "t.tar", members)]))):
        assert np.abs(np.asarray(image).astype(int) - 99).max() < 12
    with pytest.raises(UserError, match="2 samples have no label .*'a.left', 'a.right'"):
        ShardSet([write_tar(tmp_path / "t.tar", [("a.left.png", b"x"), ("a.right.png", b"x"), *samples(1)])])


def test_an_unwritable_folder_gets_its_index_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    path = write_tar(tmp_path / "data" / "t.tar", samples(3))
    real = os.replace
    monkeypatch.setattr(
        os,
        "replace",
        lambda a, b: real(a, b) if "cache" in str(b) else (_ for _ in ()).throw(PermissionError(13, "no")),
    )
    assert by_us(ShardSet([path])) == by_tarfile([path])
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["t.tar"]
    assert len(list((tmp_path / "cache" / "indices").iterdir())) == 1
    monkeypatch.setattr("vitwarm.data.tar_index._build", None)  # from here on the kept one must do
    assert by_us(ShardSet([path])) == by_tarfile([path])


def test_reading_goes_on_where_no_index_can_be_kept(tmp_path, monkeypatch, caplog):
    path = write_tar(tmp_path / "t.tar", samples(3))
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert by_us(ShardSet([path])) == by_tarfile([path])
    assert "No space left" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["t.tar"]


def test_a_cut_anywhere_is_refused_or_loses_nothing(tmp_path):
    """Cut at each block border and around it: in a header, in data, between members, in the end mark."""
    whole = write_tar(tmp_path / "whole.tar", samples(3))
    data, truth = whole.read_bytes(), [sample[1:] for sample in by_tarfile([whole])]
    refused = kept = 0
    for block in range(0, len(data), 512):
        for cut in {max(block - 1, 0), block, block + 1, block + 300}:
            path = tmp_path / f"cut-{cut}.tar"
            path.write_bytes(data[:cut])
            try:
                assert [sample[1:] for sample in by_us(ShardSet([path]))] == truth
                kept += 1
            except UserError as error:
                assert path.name in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 40 and kept > 20  # the end mark is long: 10,240-byte records


def test_flipped_bytes_are_refused_or_confined(tmp_path):
    """What is read after a flip is the truth, a damaged sample, or differs in the one sample whose data was hit."""
    whole = write_tar(tmp_path / "whole.tar", samples(4))
    data, truth = whole.read_bytes(), by_tarfile([whole])
    rng = np.random.default_rng(0)
    path, outcomes = tmp_path / "flipped.tar", {"refused": 0, "damaged": 0, "differs": 0, "same": 0}
    for late in (False, True):  # before and after the index was made
        for _ in range(150):
            broken = bytearray(data)
            broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
            path.write_bytes(data if late else broken)
            try:
                shards = ShardSet([path])
                path.write_bytes(broken)
                wrong = 0
                for i in range(len(shards)):
                    try:
                        wrong += shards.read(i) != truth[i][1]
                    except DamagedSample:
                        outcomes["damaged"] += 1
                assert len(shards) == 4 and wrong <= 1
                outcomes["differs" if wrong else "same"] += 1
            except UserError as error:
                assert "\n" not in str(error)
                outcomes["refused"] += 1
            path.with_name("flipped.tar.index.safetensors").unlink(missing_ok=True)
    assert all(outcomes.values()), outcomes


BAD_TARS = {
    "empty": (b"", "0 bytes"),
    "not a tar": (b"hello world " * 100, "not a whole tar"),
    "compressed": (b"\x1f\x8b" + bytes(600), "gunzip"),
    "no members": (bytes(10240), "no images"),
}


@pytest.mark.parametrize("name", BAD_TARS)
def test_what_is_no_tar_is_refused(tmp_path, name):
    content, message = BAD_TARS[name]
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(UserError, match=f"bad.tar: .*{message}"):
        ShardSet([tmp_path / "bad.tar"])


BAD_MEMBERS = {
    "two images": (samples(2) + [("s001.jpg", b"x")], "two images under the key 's001'"),
    "same member twice": (samples(2) + samples(1), "two images under the key 's000'"),
    "two labels": (samples(2) + [("s001.cls", b"1")], "two labels under the key 's001'"),
    "no label": (samples(2) + [("z.jpg", b"x")], "1 samples have no label.*'z'"),
    "many without label": ([(f"{i}.jpg", b"x") for i in range(9)], "9 samples have no label.*'0', '1', '2', ..."),
    "no image": (samples(2) + [("z.cls", b"1")], "1 samples have no image: 'z'"),
    "empty label": (samples(2) + [("z.jpg", b"x"), ("z.cls", b"")], "'z.cls' must be a class number"),
    "word as label": (samples(2) + [("z.jpg", b"x"), ("z.cls", b"cat")], "found 'cat'"),
    "negative label": (samples(2) + [("z.jpg", b"x"), ("z.cls", b"-1")], "found '-1'"),
    "huge label": (samples(2) + [("z.jpg", b"x"), ("z.cls", b"9" * 40)], "must be a class number"),
    "long label": (samples(2) + [("z.jpg", b"x"), ("z.cls", b"1" + b" " * 80 + b"2")], "must be a class number"),
    "binary label": (samples(2) + [("z.jpg", b"x"), ("z.cls", b"\n\xff\0")], "must be a class number"),
    "other things": ([("a.txt", b"x"), ("b/c.npy", b"x")], "only 'a.txt', 'b/c.npy'"),
}


@pytest.mark.parametrize("name", BAD_MEMBERS)
def test_what_is_no_set_of_labelled_images_is_refused(tmp_path, name):
    members, message = BAD_MEMBERS[name]
    with pytest.raises(UserError, match=message) as caught:
        ShardSet([write_tar(tmp_path / "t.tar", members)])
    assert "t.tar" in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar"], "no index of a refused tar"


def test_joined_tars_are_refused_since_their_rest_would_be_lost(tmp_path):
    one, two = write_tar(tmp_path / "1.tar", samples(2)), write_tar(tmp_path / "2.tar", samples(2, first=2))
    one.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(UserError, match="after its end-of-archive mark"):
        ShardSet([one])


def test_a_damaged_header_is_named_by_its_place(tmp_path):
    path = write_tar(tmp_path / "t.tar", samples(2))
    with tarfile.open(path) as archive:
        place = archive.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    data[place + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"damaged header at byte {place}"):
        ShardSet([path])


def test_a_sparse_member_is_refused(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.size = tarfile.GNUTYPE_SPARSE, 10
        archive.addfile(info, io.BytesIO(b"0123456789"))
    with pytest.raises(UserError, match="sparse"):
        ShardSet([path])


def test_what_cannot_be_opened_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"gone.tar: cannot be opened \(No such file"):
        ShardSet([tmp_path / "gone.tar"])
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match="is not a file"):
        ShardSet([tmp_path / "pipe.tar"])
    path = write_tar(tmp_path / "t.tar", samples(1))
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=r"cannot be opened \(Permission denied\)"):
        ShardSet([path])


def test_a_tar_that_changes_under_a_run_is_refused(tmp_path):
    path = write_tar(tmp_path / "t.tar", samples(6))
    shards, data = ShardSet([path]), path.read_bytes()
    shards.read(0)
    path.write_bytes(data[: len(data) // 4])
    with pytest.raises(UserError, match="shorter since it was indexed"):
        shards.read(5)
    write_tar(path, samples(6, first=60))
    with pytest.raises(UserError, match="changed since it was indexed"):
        shards.read(5)


def test_a_tar_that_goes_away_before_it_is_opened_is_refused(tars):
    shards = ShardSet(tars)
    tars[1].unlink()
    shards.read(0)
    with pytest.raises(UserError, match="train-001.tar: cannot be opened any more"):
        shards.read(7)


def test_more_tars_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("vitwarm.data.source._OPEN_FILES", 2)
    paths = [write_tar(tmp_path / f"{i}.tar", samples(2, first=2 * i)) for i in range(6)]
    shards, truth = ShardSet(paths), by_tarfile(paths)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for i in np.random.default_rng(0).integers(len(shards), size=60):
        assert shards.read(int(i)) == truth[i][1]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_number_outside_the_set_is_an_error(tars):
    shards = ShardSet(tars)
    for sample in (-1, len(shards)):
        with pytest.raises(IndexError):
            shards.read(sample)


def test_expand(tars, tmp_path, monkeypatch):
    for spec in (
        tmp_path,
        str(tmp_path),
        f"{tmp_path}/train-*.tar",
        f"{tmp_path}/train-{{000..002}}.tar",
        tars,
        map(str, tars),
    ):
        assert expand(spec) == tars
    assert expand(f"{tmp_path}/train-{{002,000}}.tar") == [tars[2], tars[0]]
    assert expand([tars[2], f"{tmp_path}/train-*0.tar"]) == [tars[2], tars[0]]
    for name, glob in (("a [v1]", "*.tar"), ("b {c,d} ::", "{x}.tar")):
        (tmp_path / name).mkdir()
        lone = write_tar(tmp_path / name / "{x}.tar", samples(1))
        for spec in (lone.parent, str(lone), f"{lone.parent}/{glob}"):
            assert expand(spec) == [lone]
    monkeypatch.setenv("SOME", str(tmp_path))
    assert expand("$SOME/train-000.tar::$SOME/train-00{1,2}.tar") == tars
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/train-000.tar") == [tars[0]]


def test_expand_refuses_what_names_nothing_or_something_twice(tars, tmp_path):
    (tmp_path / "nothing").mkdir()
    for spec, message in [
        (f"{tmp_path}/{{0..99999999}}.tar", "stand for more than"),
        ("", "no shards given"),
        ([], "no shards given"),
        (tmp_path / "nothing", r"no \*.tar in this folder"),
        (f"{tmp_path}/val-*.tar", "no such file"),
        (f"{tmp_path}/train-{{000..003}}.tar", "train-003.tar: no such file"),
        (f"{tmp_path}/train-{{000.tar", "braces"),
        ([tars[0], f"{tmp_path}/*.tar"], "named twice"),
        ("s3://bucket/x.tar", "local files"),
        ("pipe:cat x.tar", "local files"),
    ]:
        with pytest.raises(UserError, match=message):
            expand(spec)


def test_check_labels(tars):
    shards = ShardSet(tars)
    check_labels(shards, 4, "", "")
    with pytest.raises(UserError, match=r"train-000.tar:s003: label 3 is not below MOST \(5 such samples\); DO"):
        check_labels(shards, 3, "MOST", "DO")


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("VITWARM_CACHE", raising=False)
    assert str(cache_dir()) == "/home/someone/.cache/vitwarm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache_dir()) == "/x/vitwarm"
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path


@pytest.mark.parametrize("at", [60, 3000, 9000])
def test_other_bytes_in_an_image_are_another_set(tmp_path, at):
    """Of equal size, between equal headers: whatever part of an image changes."""
    content = random_image(1, 60, 60, "BMP")
    changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    found = set()
    for name, image in (("a", content), ("b", changed)):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "x.tar", [("s.bmp", image), ("s.cls", b"0")])
        found.add(ShardSet([tmp_path / name / "x.tar"]).identity)
    assert len(found) == 2


def test_a_tar_without_a_split_beside_others_is_named(tmp_path):
    for name in ("train-0", "val-0", "more"):
        write_tar(tmp_path / f"{name}.tar", samples(1))
    with pytest.raises(UserError, match=r"more\.tar: its name says no split"):
        expand(str(tmp_path), "train")
