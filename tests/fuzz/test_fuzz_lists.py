"""Lists that users bring: labels of validation images, names of a subset, class names by number."""

import hashlib
import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image
from sweeping import Case, command, labelled

from vitwarm.data.shards import ShardSet, expand
from vitwarm.data.subset import select_subset

pytestmark = pytest.mark.long

CLASSES = [
    ["n01440764", "n01443537", "n02084071"], ["cat", "dog", "été"], ["a b", "c d", "e"], ["0", "1", "10"],
    ["x,y", "z", "w"], ["A", "a1", "b"], ["image", "label", "file"], ["日本", "naïve", "e\u0301"], ["#1", "b", "c"],
    ["1a", "2b", "3c"],
]  # fmt: skip
FILES = [
    "{i}.jpg",
    "ILSVRC2012_val_{i:08d}.JPEG",
    "img {i}.png",
    "é{i}.jpg",
    "x.{i}.jpg",
    "{i}",
    "val_{i}.JPEG",
    "IMG-{i}.jpeg",
]
ENDS = ["\n", "\n", "\r\n", "\r"]
HEADERS = [
    "",
    "",
    "ImageId,PredictionString",
    "image_id{s}label",
    "filename{s}class",
    "id{s}breed",
    "file_name{s}category",
    "name{s}label",
]
CODINGS = ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]


def jpeg(rng):
    stream = io.BytesIO()
    Image.fromarray(np.frombuffer(rng.randbytes(192), np.uint8).reshape(8, 8, 3)).save(stream, "PNG")
    return stream.getvalue()


def encoded(rng, text):
    coding = rng.choice(CODINGS)
    try:
        return text.encode(coding), coding
    except UnicodeEncodeError:
        return text.encode(), "utf-8"


def quoted(rng, cell, separator):
    if separator in cell or '"' in cell or rng.random() < 0.15:
        return '"' + cell.replace('"', '""') + '"'
    return cell


def table(rng, rows):
    """Rows of cells as a spreadsheet, a script or a person writes them."""
    separator = rng.choice([",", ",", "\t", ";", " "])
    end = rng.choice(ENDS)
    lines = [separator.join(quoted(rng, cell, separator) for cell in row) for row in rows]
    if header := rng.choice(HEADERS).format(s=separator):
        lines.insert(0, header)
    if rng.random() < 0.15:
        lines.insert(rng.randrange(len(lines) + 1), "")
    if rng.random() < 0.1:
        lines = [line + rng.choice([" ", "\t", ""]) for line in lines]
    return end.join(lines) + rng.choice([end, ""])


def labels(rng, folder):
    """Class folders for training, a flat folder for validation, and a list of its labels."""
    names, pattern = rng.choice(CLASSES), rng.choice(FILES)
    if "." not in pattern:
        pattern += ".jpg"
    source, out = folder / "source", folder / "out"
    for one in names:
        (source / "train" / one).mkdir(parents=True)
        (source / "train" / one / "t.jpg").write_bytes(jpeg(rng))
    (source / "val").mkdir()
    truth, rows = {}, []
    for i in range(1, rng.randint(3, 7)):
        name, data, of = pattern.format(i=i), jpeg(rng), rng.choice(names)
        (source / "val" / name).write_bytes(data)
        truth[hashlib.sha256(data).hexdigest()] = of
        shown = rng.choice(
            [name, name, name, name.rpartition(".")[0], f"val/{name}", f"/data/set/val/{name}", f"./{name}"]
        )
        rows.append([shown, of, *rng.choice([[], [], ["0.5"], ["12 30 40 50"]])])
    rng.shuffle(rows)
    spoiled = rng.choice([None, None, None, None, "lost", "twice", "unknown", "empty", "binary", "swapped"])
    if spoiled == "lost":
        rows.pop()
    elif spoiled == "twice":
        rows.append([rows[0][0], next(one for one in names if one != rows[0][1])])
    elif spoiled == "unknown":
        rows[0][1] = "nothing"
    elif spoiled == "swapped":
        rows = [[row[1], row[0]] for row in rows]
    if len({len(row) for row in rows}) > 1:
        rows = [row[:2] for row in rows]
    content, coding = encoded(rng, table(rng, rows))
    content = {"empty": b"", "binary": b"\x00\x01\xff" * 50}.get(spoiled, content)
    path = folder / rng.choice(["labels.csv", "labels.txt", "labels", "a b.tsv"])
    path.write_bytes(content)

    def act():
        command("make-shards", f"source={source}", f"out={out}", f"labels={path}", "workers=0")
        known = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["classes"]
        samples = [sample for tar in out.glob("val-*.tar") for sample in labelled(tar)]
        return {hashlib.sha256(image).hexdigest(): known[label] for label, image in samples}

    return Case(
        act, lambda found: spoiled is None and found == truth, f"labels, {spoiled}, {coding}: {content[:160]!r}"
    )


def subset(rng, folder):
    """Names of some of the images of a tar."""
    keys = [rng.choice(["{i:03d}", "cat_{i}", "é{i}", "a b{i}", "x.{i}"]).format(i=i) for i in range(6)]
    with tarfile.open(folder / "x.tar", "w") as tar:
        for key in keys:
            for name, data in ((f"{key}.png", jpeg(rng)), (f"{key}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    chosen = sorted(rng.sample(keys, rng.randint(1, 5)), key=keys.index)
    spoiled = rng.choice([None, None, None, "unknown", "twice", "empty", "binary"])
    shown = [rng.choice([key, key, f"{key}.png", f"{key}.JPEG", f"x.tar:{key}", f"train/{key}.png"]) for key in chosen]
    rng.shuffle(shown)
    if spoiled == "unknown":
        shown.append("nothing.png")
    elif spoiled == "twice":
        shown.append(shown[0])
    end = rng.choice(ENDS)
    lines = [f'"{one}"' if " " in one else one for one in shown]
    text = ("name\n" if rng.random() < 0.1 else "") + end.join(lines) + rng.choice([end, "", end + end])
    content, coding = encoded(rng, text)
    content = {"empty": b"\n", "binary": b"\x00\xff" * 20}.get(spoiled, content)
    (folder / "names.txt").write_bytes(content)

    def act():
        found = select_subset(ShardSet(expand(folder / "x.tar")), str(folder / "names.txt"), 0)
        return [name.partition(":")[2] for name in found.names]

    return Case(
        act,
        lambda found: spoiled in (None, "twice") and found == chosen,
        f"subset, {spoiled}, {coding}: {content[:160]!r}",
    )


def classes(rng, folder):
    """Class names in the order of their numbers, which is not that of the alphabet."""
    names = rng.sample(rng.choice([one for one in CLASSES if "0" not in one]), 3)
    source, out = folder / "source", folder / "out"
    for one in names:
        (source / one).mkdir(parents=True)
        (source / one / "t.png").write_bytes(jpeg(rng))
    form = rng.choice(
        ["{name}", "{name}", "{i} {name}", "{i},{name}", "{name} {i}", "{i}: {name}", "json", "manifest", "{i}\t{name}"]
    )
    spoiled = rng.choice([None, None, None, "lost", "twice", "more", "gap"])
    listed = {"lost": names[:-1], "twice": [*names[:-1], names[0]], "more": [*names, "extra"]}.get(spoiled, names)
    numbers = [i + (i > 1) * (spoiled == "gap") for i in range(len(listed))]
    end = rng.choice(ENDS)
    text = {"json": json.dumps(listed), "manifest": json.dumps({"classes": listed})}.get(form)
    text = text or end.join(form.format(i=i, name=name) for i, name in zip(numbers, listed, strict=True)) + rng.choice(
        [end, ""]
    )
    content, coding = encoded(rng, text)
    path = folder / ("c.json" if form in ("json", "manifest") else "classes.txt")
    path.write_bytes(content)

    def act():
        command("make-shards", f"source={source}", f"out={out}", f"classes={path}", "workers=0")
        return json.loads((out / "manifest.json").read_text(encoding="utf-8"))["classes"]

    numbered = re.search(r"\{i\}", form)
    sound = spoiled in (None, "more") or (spoiled == "gap" and not numbered)
    return Case(
        act, lambda found: sound and found == listed, f"classes, {form}, {spoiled}, {coding}: {content[:120]!r}"
    )


def test_lists(fuzz):
    fuzz("lists", lambda rng, folder: rng.choice([labels, subset, classes])(rng, folder))
