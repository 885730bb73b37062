"""Caches, indices and run folders after accidents, of other users, and under clocks that are wrong."""

import codecs
import contextlib
import json
import os
import shutil
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file
from sweeping import Case, command
from tarmaking import samples, write_tar

from vitwarm.data.shards import ShardSet, expand
from vitwarm.data.text.corpus import open_corpus
from vitwarm.data.text.readers import TextSource

pytestmark = pytest.mark.long

NOBODY = 65534
CLOCKS = [0, 1, 86400, 2**31 - 1, 2**31 + 5, 2**32 + 5, 4_000_000_000]  # 1970, 2038, 2106
RUN = [
    "recipe=digits_default", "model.name=test_vit", "model.args={img_size: 8, patch_size: 4}",
    "train.global_batch=16", "train.lr_warmup=0", "images.epochs=0.06", "run.workers=0", "run.checkpoint_every=2",
    "run.log_every=1", "run.dir=run",
]  # fmt: skip


@contextlib.contextmanager
def as_another(rng):
    """Half of the time as a user to whom nothing here belongs; only root can."""
    if os.geteuid() or rng.random() < 0.5:
        yield
        return
    for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        codecs.lookup(name)  # json may ask for them; Python's own files may be closed to another user
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def files_below(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size)


def accident(rng, folder, outside):
    """Something happens to one of the files below a folder; says what."""
    path = rng.choice(files_below(folder))
    kind = rng.choice(
        [
            "flip",
            "flip",
            "cut",
            "empty",
            "remove",
            "folder",
            "lost link",
            "link",
            "fifo",
            "clock",
            "mode",
            "json",
            "zeros",
            "longer",
        ]
    )
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "zeros":
        path.write_bytes(bytes(len(data)))
    elif kind == "longer":
        path.write_bytes(data + data[-3:])
    elif kind == "json":
        path.write_bytes(
            rng.choice([b"{}", b"[]", b"null", b"[" * 5000, b'{"step": NaN}', b'{"a":' * 3000, b"\xff{}", b"1" * 5000])
        )
    elif kind == "clock":
        for one in files_below(folder):
            os.utime(one, (rng.choice(CLOCKS),) * 2)
    elif kind == "mode":
        path.chmod(rng.choice([0, stat.S_IRUSR, stat.S_IWUSR, 0o777]))
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "lost link":
            path.symlink_to("nowhere")
        elif kind == "link":
            path.symlink_to(outside)
        elif kind == "fifo":
            os.mkfifo(path)
    return f"{kind} {path.name}"


def texts(rng, folder):
    """A text that is read, an accident to its cache or another text of equal size in its place, and read again."""

    def read():
        corpus = open_corpus(TextSource("t.txt"), "bytes", 0, 0.0)
        return bytes(np.asarray(corpus.tokens)[1:-1].astype(np.uint8))

    cache, file, outside = folder / "cache", folder / "t.txt", folder / "outside"
    text = f"{rng.random()} a text"
    file.write_text(text, encoding="utf-8")
    outside.write_text("mine", encoding="utf-8")
    os.environ["VITWARM_CACHE"] = str(cache)
    assert read() == text.encode()
    what = []
    if rng.random() < 0.7:
        what.append(accident(rng, cache, outside))
    if rng.random() < 0.5:
        before = file.stat()
        text = text[::-1]
        file.write_text(text, encoding="utf-8")
        clock = rng.choice([before.st_mtime, *CLOCKS])
        os.utime(file, (clock, clock))
        what.append(f"other text, mtime {clock:.0f}")
    folder.chmod(rng.choice([0o755, 0o555]))

    def act():
        with as_another(rng):
            return read()

    return Case(
        act,
        lambda found: found == text.encode() and outside.read_text(encoding="utf-8") == "mine",
        f"text cache: {what}",
    )


def indices(rng, folder):
    """A tar that is read, an accident to its index or another tar of equal size in its place, and read again."""

    def read(path):
        shards = ShardSet(expand(path))
        return [(shards.key(i), shards.read(i), int(shards.labels[i])) for i in range(len(shards))]

    inner, outside = folder / "tars", folder / "outside"
    inner.mkdir()
    outside.write_bytes(b"mine")
    path = write_tar(inner / "x.tar", samples(4, first=rng.randrange(100)))
    read(path)
    what = []
    if rng.random() < 0.7 and (index := [p for p in inner.iterdir() if p != path]):
        held = path.rename(folder / "held.tar")
        what.append(accident(rng, inner, outside))
        held.rename(path)
        what.append(str(len(index)))
    if rng.random() < 0.5:
        before = path.stat()
        write_tar(path, samples(4, first=rng.randrange(100), classes=3))
        clock = rng.choice([before.st_mtime, *CLOCKS])
        os.utime(path, (clock, clock))
        what.append(f"other tar, mtime {clock:.0f}")
    plain = folder / "plain"
    plain.mkdir()
    shutil.copyfile(path, plain / "x.tar")
    expected = read(plain / "x.tar")  # never seen, so without an index of before
    inner.chmod(rng.choice([0o755, 0o555]))

    def act():
        with as_another(rng):
            return read(path)

    return Case(act, lambda found: found == expected and outside.read_bytes() == b"mine", f"index: {what}")


def runs(rng, folder, whole):
    """A run that was killed, an accident to its folder, and the same command again: the weights of the undisturbed."""
    run, outside = folder / "run", folder / "outside"
    shutil.copytree(whole, run)
    outside.write_text("mine", encoding="utf-8")
    expected = load_file(run / "export" / "model.safetensors")
    checkpoints = sorted((run / "checkpoints").iterdir())
    shutil.rmtree(run / "export")
    (run / "result.json").unlink()
    shutil.rmtree(checkpoints[-1])
    what = accident(rng, run, outside)

    def act():
        command("train", *RUN)
        json.loads((run / "result.json").read_text(encoding="utf-8"))
        return load_file(run / "export" / "model.safetensors")

    def right(found):
        same = found.keys() == expected.keys() and all(np.array_equal(found[n], expected[n]) for n in found)
        return same and outside.read_text(encoding="utf-8") == "mine"

    return Case(act, right, f"run folder: {what}")


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A finished run."""
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    command("train", *RUN)
    for folder in (tmp_path, *tmp_path.parents):  # another user must get here
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith(("pytest", "hf", tmp_path.name)):
            folder.chmod(0o755)
    return tmp_path / "run"


def test_folders(fuzz, whole, monkeypatch):
    cache = os.environ["VITWARM_CACHE"]

    def make(rng, folder):
        monkeypatch.setenv("VITWARM_CACHE", cache)
        kind = rng.choice([texts, indices, runs])
        return kind(rng, folder, whole) if kind is runs else kind(rng, folder)

    fuzz("folders", make)
