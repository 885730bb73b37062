"""Tars of foreign makers: what an archiver writes beside the members, and members as no archiver of ours names them."""

import gzip
import io
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image
from sweeping import Case

from vitwarm.data.shards import ShardSet, expand

pytestmark = pytest.mark.long

MAKERS = [
    "python ustar", "python gnu", "python pax", "tar gnu", "tar oldgnu", "tar ustar", "tar v7", "tar posix", "macos",
    "go", "webdataset", "star",
]  # fmt: skip
KEYS = [
    "{i:04d}", "train/{i:04d}", "./{i:04d}", "é{i}", "日本/{i}", "a b {i}", "p{i}.000", "n0144{i}_10",
    "x" * 120 + "/{i}", "y" * 90 + "{i}", "-{i}", "{i}'\"", "a/b/c/d/{i}", "#{i}", "{{{i}}}", "%{i}", "A{i}",
]  # fmt: skip
MORE = [
    ("json", b"{}"),
    ("txt", b"a cat"),
    ("seg.png", b"no image"),
    ("bbox", b""),
    ("meta.json", b"{}"),
]
DAMAGE = [
    "no label", "no image", "label cat", "label -1", "label 1.5", "empty label", "twice", "cut", "cut at a member",
    "flipped", "garbage", "hard link", "symlink", "no end", "label utf-16", "header size", "joined", "gzip cut",
    "two images", "absolute", "up",
]  # fmt: skip


def jpeg(rng):
    stream = io.BytesIO()
    Image.fromarray(np.frombuffer(rng.randbytes(192), np.uint8).reshape(8, 8, 3)).save(
        stream, rng.choice(["JPEG", "PNG"])
    )
    return stream.getvalue()


def ending(rng, data):
    return rng.choice(["jpg", "jpeg", "JPG", "JPEG"] if data[:2] == b"\xff\xd8" else ["png", "PNG"])


def member(name, data=b"", **more):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def written(members, form, **more):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, **more) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return stream.getvalue()


def by_tar(folder, form, parts, rng):
    """GNU tar over files on the disk, in the given order, some of them sparse."""
    for name, data in parts:
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    names = "".join(f"{name}\0" for name, _ in parts).encode()
    more = ["--sparse"] if form not in ("v7", "ustar") and rng.random() < 0.4 else []
    words = ["tar", "-C", str(folder / "tree"), f"--format={form}", "--no-recursion", "--null", *more, "-cf-", "-T-"]
    done = subprocess.run(words, input=names, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None  # a name that the format cannot hold


def by_webdataset(parts, path):
    from webdataset import TarWriter

    grouped = {}
    for name, data in parts:
        folder, _, base = name.rpartition("/")
        key, _, suffix = base.partition(".")
        grouped.setdefault(f"{folder}/{key}" if folder else key, {})[suffix] = data
    with TarWriter(str(path), encoder=False) as writer:
        for key, fields in grouped.items():
            writer.write({"__key__": key} | fields)
    return path.read_bytes()


def archive(rng, folder, maker, parts):
    if maker.startswith("tar "):
        return by_tar(folder, maker.split()[1], parts, rng)
    if maker == "webdataset":
        return by_webdataset(parts, folder / "w.tar")
    members = []
    for name, data in parts:
        if maker == "macos":  # AppleDouble files in front, extended attributes as pax records
            head, slash, base = name.rpartition("/")
            if rng.random() < 0.6:
                members.append(member(f"{head}{slash}._{base}", b"\x00\x05\x16\x07" + b"\x00" * 30))
            pax = {"LIBARCHIVE.xattr.com.apple.quarantine": "MDA4MQ", "mtime": "1700000000.123456789"}
            members.append(member(name, data, pax_headers=pax))
        elif maker == "go":
            members.append(
                member(name, data, pax_headers={"GOLANG.pkg": "x=1\n2", "path": name} if rng.random() < 0.5 else {})
            )
        elif maker == "star":
            members.append(
                member(name, data, pax_headers={"SCHILY.dev": "1", "SCHILY.ino": "2", "size": str(len(data))})
            )
        else:
            members.append(
                member(name, data, mtime=rng.choice([0, 2**33, 1_700_000_000]), uname=rng.choice(["", "me", "ü"]))
            )
        if rng.random() < 0.1:
            members.append(member(rng.choice(["folder", "train/", "a/b/"]), type=tarfile.DIRTYPE))
    form = {"python ustar": tarfile.USTAR_FORMAT, "python gnu": tarfile.GNU_FORMAT}.get(maker, tarfile.PAX_FORMAT)
    more = {"pax_headers": {"comment": "made by hand"}} if form == tarfile.PAX_FORMAT and rng.random() < 0.3 else {}
    try:
        return written(members, form, **more)
    except ValueError:  # a name or time that ustar cannot hold
        return None


def damaged(rng, kind, parts, content):
    """(parts, whole archive) after an accident; one of them is None."""
    parts = [list(part) for part in parts]
    label = next(part for part in parts if part[0].endswith(".cls"))
    image = parts[parts.index(label) - 1] if parts.index(label) else parts[1]
    if kind == "no label":
        parts.remove(label)
    elif kind == "no image":
        parts.remove(image)
    elif kind.startswith("label "):
        label[1] = {"cat": b"cat", "-1": b"-1", "1.5": b"1.5", "utf-16": "1".encode("utf-16")}[kind[6:]]
    elif kind == "empty label":
        label[1] = b""
    elif kind in ("twice", "two images"):
        parts.append([image[0] if kind == "twice" else image[0].rpartition(".")[0] + ".webp", image[1]])
    else:
        return None, spoiled(rng, kind, content)
    return parts, None


def spoiled(rng, kind, content):
    if kind == "cut":
        return content[: rng.randrange(600, max(601, len(content) - 11000))]
    if kind == "cut at a member":
        return content[: 512 * rng.randrange(2, 4)]
    if kind == "flipped":
        at = rng.randrange(0, 100)  # in the first header
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == "garbage":
        return content.rstrip(b"\0") + b"\0" * 1024 + b"garbage" * 200
    if kind == "no end":
        return content.rstrip(b"\0") + b"\0" * (-len(content.rstrip(b"\0")) % 512)
    if kind == "joined":
        return content + content
    if kind == "header size":
        return content[:124] + b"77777777777\0" + content[136:]
    if kind == "gzip cut":
        return gzip.compress(content)[:-20]
    names = {"hard link": tarfile.LNKTYPE, "symlink": tarfile.SYMTYPE}
    if kind in names:
        extra = [member("zz.jpg", type=names[kind], linkname="0000.jpg"), member("zz.cls", b"1")]
    else:
        extra = [member({"absolute": "/etc/zz.jpg", "up": "../zz.jpg"}[kind], b"\xff\xd8"), member("zz.cls", b"1")]
    more = written(extra, tarfile.GNU_FORMAT)
    return content.rstrip(b"\0") + b"\0" * (-len(content.rstrip(b"\0")) % 512) + more


def read(path):
    shards = ShardSet(expand(path))
    return sorted((shards.key(i).partition(":")[2], shards.read(i), int(shards.labels[i])) for i in range(len(shards)))


def make(rng, folder):
    maker, pattern = rng.choice(MAKERS), rng.choice(KEYS)
    parts, expected = [], []
    for i in range(rng.randint(2, 6)):
        key, data, label = pattern.format(i=i), jpeg(rng), rng.randrange(10)
        own = [
            (f"{key}.{ending(rng, data)}", data),
            (f"{key}.cls", str(label).encode() + rng.choice([b"", b"\n", b" ", b"\r\n"])),
        ]
        if rng.random() < 0.3:
            suffix, more = rng.choice(MORE)
            own.append((f"{key}.{suffix}", more))
        if rng.random() < 0.3:
            rng.shuffle(own)
        parts += own
        expected.append((key, data, label))
    content = archive(rng, folder, maker, parts)
    accident = rng.choice(DAMAGE) if rng.random() < 0.4 else None
    what = f"{maker}, {pattern[:20]}, {accident}, {[name[-30:] for name, _ in parts][:6]}"
    if content is None:
        content = archive(rng, folder, "python pax", parts)
    if accident:
        changed, whole = damaged(rng, accident, parts, content)
        content = archive(rng, folder, "python pax", changed) if changed else whole
    name = rng.choice(["x.tar", "x.tar", "a b.tar", "é.tar", "[v1].tar", "{a,b}.tar"])
    (folder / name).write_bytes(content)
    shutil.rmtree(folder / "tree", ignore_errors=True)
    keys = [(os.path.normpath(key), data, label) for key, data, label in expected]

    def right(found):
        found = [(os.path.normpath(key), data, label) for key, data, label in found]
        if accident in ("hard link", "symlink"):  # the target is the member of exactly that name
            return found == sorted([*keys, *(("zz", data, 1) for name, data in parts if name == "0000.jpg")])
        if accident in ("no end", "absolute", "up"):  # what is whole may be read, and nothing else
            return found == sorted(keys)
        return accident is None and found == sorted(keys)

    return Case(lambda: read(folder / name), right, what)


def test_tars(fuzz):
    fuzz("tars", make)
