"""Directory trees as people have them, into `make-shards`."""

import hashlib
import io
import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sweeping import Case, command, labelled

CLASSES = [
    "cat", "Dog", "a b", "été", "日本", "n01440764", "x.y", "#1", "cl'a", '"q"', "0", "10", "9", "-x", "~", "$HOME",
    "%41", "[v1]", "{a,b}", "*", "con", "train_set", "valley", "testing", "a" * 200, "c:", "\u202e", "e\u0301",
]  # fmt: skip
ODD_CLASSES = [b"caf\xe9", b"a\nb", b"\x1b[31m", b"\xff", b"t\tb"]
ENDINGS = ["jpg", "JPG", "jpeg", "png", "PNG", "webp", "bmp", "gif", "tif", "tiff", "jfif", "jpe", "ppm"]
JUNK = [
    "._x.jpg", ".DS_Store", "Thumbs.db", ".hidden.png", "notes.txt", "labels.csv", "x.jpg.part", "README",
    "desktop.ini", "x.xml", "._.jpg",
]  # fmt: skip
JUNK_FOLDERS = [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", ".thumbnails", "$RECYCLE.BIN"]
SPLITS = [("train", "val"), ("training", "validation"), ("train", "test"), ("Train", "Val"), ("train", "dev"), ("val",),
          ("train", "valid", "test")]  # fmt: skip
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "tif": "TIFF"}
NAMES = {"training": "train", "Train": "train", "validation": "val", "valid": "val", "dev": "val", "Val": "val"}

pytestmark = pytest.mark.long


def image(rng, ending):
    stream = io.BytesIO()
    pixels = np.frombuffer(rng.randbytes(192), np.uint8).reshape(8, 8, 3)
    ending = ending.lower()
    Image.fromarray(pixels).save(stream, FORMATS.get(ending, ending.upper()))
    return stream.getvalue()


def digest(data):
    with Image.open(io.BytesIO(data)) as decoded:
        return hashlib.sha256(decoded.convert("RGB").tobytes()).hexdigest()[:12]


def fill(rng, folder, depth=0):
    """Images of a class, and what else lies there."""
    for i in range(rng.randint(1, 4)):
        ending = rng.choice(ENDINGS)
        name = rng.choice([f"{i}", f"IMG_{i}", f"é{i}", f"a b{i}", f"x.{i}.y", f"{i:03d}.000"])
        data = image(rng, ending)
        if rng.random() < 0.05:
            ending = rng.choice(ENDINGS)  # named otherwise than it is
        (folder / f"{name}.{ending}").write_bytes(data)
    if rng.random() < 0.3:
        (folder / rng.choice(JUNK)).write_bytes(rng.choice([b"", b"x", image(rng, "jpg")]))
    if rng.random() < 0.25:
        (folder / rng.choice(JUNK_FOLDERS)).mkdir()
        (next(p for p in folder.iterdir() if p.name in JUNK_FOLDERS) / "copy.jpg").write_bytes(image(rng, "jpg"))
    if rng.random() < 0.2 and depth < 3:
        inner = folder / rng.choice(["session 1", "more", "2019", "a.b"])
        inner.mkdir()
        fill(rng, inner, depth + 1)
    files = [p for p in folder.iterdir() if p.is_file()]
    chance = rng.random()
    if chance < 0.08:
        (folder / "link.jpg").symlink_to(rng.choice(files).name)
    elif chance < 0.1:
        (folder / "lost.jpg").symlink_to("nowhere.jpg")
    elif chance < 0.14:
        (folder / "up").symlink_to("..", target_is_directory=True)
    elif chance < 0.16:
        (folder / "turn.jpg").symlink_to("turn.jpg")
    elif chance < 0.18:
        os.mkfifo(folder / "pipe.jpg")
    elif chance < 0.2:
        os.link(files[0], folder / "hard.png")


def classes(rng, folder):
    names = rng.sample(CLASSES, rng.randint(2, 4))
    for name in names:
        (folder / name).mkdir()
        fill(rng, folder / name)
    chance = rng.random()
    if chance < 0.05:
        odd = os.fsencode(folder) + b"/" + rng.choice(ODD_CLASSES)
        os.mkdir(odd)
        fill(rng, Path(os.fsdecode(odd)))
    elif chance < 0.1:
        (folder / "empty").mkdir()
    elif chance < 0.15:
        (folder / "stray.jpg").write_bytes(image(rng, "jpg"))
    elif chance < 0.2:
        (folder / rng.choice(JUNK_FOLDERS)).mkdir()
    elif chance < 0.25:
        (folder / "linked").symlink_to(names[0], target_is_directory=True)
    elif chance < 0.3:
        (folder / "archive.zip").write_bytes(b"PK\x03\x04")
    return names


def reference(source):
    """split -> Counter of (class, pixels): what lies below each class folder, hidden things left out."""
    found = {}
    root, seen = str(source), set()

    def visible(folder):
        return [n for n in sorted(os.listdir(folder)) if not n.startswith(".") and n not in JUNK_FOLDERS]

    def below(folder):
        key = os.path.realpath(folder)
        if key in seen:
            return []
        seen.add(key)
        out = []
        for name in visible(folder):
            path = os.path.join(folder, name)
            if os.path.isdir(path):
                out += below(path)
            elif name.rpartition(".")[2].lower() in {*ENDINGS, "pgm", "pnm", "pbm", "avif"} and os.path.isfile(path):
                with open(path, "rb") as file:
                    out.append(digest(file.read()))
        return out

    while len(inside := [n for n in visible(root) if os.path.isdir(os.path.join(root, n))]) == 1 and not any(
        inside[0] == s for names in SPLITS for s in names
    ):
        root = os.path.join(root, inside[0])
    splits = [n for n in inside if any(n in names for names in SPLITS)]
    for name in sorted(splits) or ["."]:
        place = os.path.join(root, name)
        seen.add(os.path.realpath(root))
        seen.add(os.path.realpath(place))
        own = Counter()
        for one in visible(place):
            if os.path.isdir(os.path.join(place, one)):
                own.update((one, pixels) for pixels in below(os.path.join(place, one)))
        found[NAMES.get(name, name).replace(".", "train")] = own
    return found


def shards(out):
    """The same of the tars that were made, with the class names of the manifest."""
    names = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["classes"]
    found = {}
    for path in sorted(out.glob("*.tar")):
        own = found.setdefault(path.name.partition("-")[0], Counter())
        own.update((names[label], digest(image)) for label, image in labelled(path))
    return found


def make(rng, folder):
    source, out = folder / "source", folder / "out"
    source.mkdir()
    shape = rng.choice(["classes", "splits", "wrapped"] * 4 + ["domains"])
    if shape == "splits":
        for name in rng.choice(SPLITS):
            (source / name).mkdir()
            for one in random.Random(folder.name).sample(CLASSES, 3):  # the same in each split
                (source / name / one).mkdir()
                fill(rng, source / name / one)
        if rng.random() < 0.3:
            (source / rng.choice(["unlabeled", "docs", "annotations", ".cache"])).mkdir()
    elif shape == "domains":
        for name in ("photo", "sketch"):
            (source / name).mkdir()
            for one in ("cat", "dog"):
                (source / name / one).mkdir()
                fill(rng, source / name / one)
    else:
        inner = source / "data" if shape == "wrapped" else source
        inner.mkdir(exist_ok=True)
        classes(rng, inner)
    words = [f"source={source}", f"out={out}", "workers=0", "max_damaged=0.0"]
    if rng.random() < 0.2:
        words.append(f"images_per_shard={rng.randint(1, 3)}")

    def act():
        command("make-shards", *words)
        return shards(out)

    if shape == "domains":  # two sets of the same classes: not one of two
        return Case(act, lambda _: False, "domains")
    return Case(
        act, lambda found: found == reference(source), f"{shape}: {sorted(p.name for p in source.rglob('*'))[:40]}"
    )


def test_trees(fuzz):
    fuzz("trees", make)
