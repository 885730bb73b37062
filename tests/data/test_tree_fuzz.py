"""Random trees of folders: what is made of one is what its paths say, or it is refused in one line."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sourcemaking import contents, jpeg, quiet
from tarmaking import samples, write_tar

from vitwarm.data.grouping import is_hidden
from vitwarm.data.making import Options
from vitwarm.data.splits import split_folder
from vitwarm.errors import UserError

CLASSES = [
    "ant",
    "bee",
    "cat",
    "Dog",
    "n01440764",
    "2",
    "red fox",
    "bullet_train",
    "caf\u00e9",
    "\U0001f98a",
    "{a}",
    "[b]",
]
SPLITS = ["train", "val", "test", "Training", "validation", "dev", "train2017", "test_images", "holdout"]
ODD = [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".hidden", "images", "annotations", "caf\udce9", "a\nb", "more"]
FILES = [".DS_Store", "._0.jpg", "Thumbs.db", "notes.txt", "x.heic", "list.csv"]


def grow(folder: Path, rng: np.random.Generator) -> dict[bytes, str]:
    """Make a tree; returns image -> its path below it. All images differ."""
    found: dict[bytes, str] = {}

    def images(place: Path, count: int) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            data = jpeg(len(found))
            name = rng.choice(["%d.jpg", "%d.JPEG", "%d.x.jpeg", "IMG %d.jpe"]) % len(found)
            (place / name).write_bytes(data)
            found[data] = os.path.relpath(place / name, folder)

    def classes(place: Path, names: list[str]) -> None:
        for name in names:
            inner = place / name / "images" if rng.random() < 0.1 else place / name
            images(inner, int(rng.integers(0 if rng.random() < 0.05 else 1, 4)))

    root = folder / "set" if rng.random() < 0.15 else folder
    root.mkdir(parents=True)
    names = rng.choice(CLASSES, rng.integers(1, 5), replace=False).tolist()
    splits = rng.choice(SPLITS, rng.integers(0, 4), replace=False).tolist() if rng.random() < 0.6 else []
    for split in splits:
        classes(root / split, names if rng.random() < 0.8 else names[:-1])
    if not splits or rng.random() < 0.1:
        classes(root, names)
    places = [path for path in folder.rglob("*") if path.is_dir()] or [folder]
    for _ in range(rng.integers(0, 3)):
        place = places[rng.integers(len(places))]
        kind = rng.integers(5)
        if kind == 0:
            images(place / str(rng.choice(ODD)), int(rng.integers(0, 3)))
        elif kind == 1:
            (place / str(rng.choice(FILES))).write_bytes(b"x")
        elif kind == 2 and not (place / "link").is_symlink():
            (place / "link").symlink_to(places[rng.integers(len(places))])
        elif kind == 3:
            images(place, 1)
        elif kind == 4 and not (place / "pipe.jpg").exists():
            os.mkfifo(place / "pipe.jpg")
        else:
            write_tar(place / "backup.tar", samples(1))
    return found


def run_case(folder: Path, seed: int) -> str:
    truth = grow(folder / "in", np.random.default_rng(seed))
    try:
        made = quiet(folder / "in", folder / "out", options=Options(max_damaged=0.0))
    except UserError as error:
        assert "\n" not in str(error) and str(error).encode("utf-8", "backslashreplace").decode().isprintable(), error
        assert not (folder / "out").exists()
        return "refused"
    if made.kind != "folders":
        return "refused"
    assert len(made.classes) > 1
    used: set[bytes] = set()
    for split in made.splits:
        stored = contents(folder / "out", split)
        used |= {image for _, image, _ in stored.values()}
        assert max(Counter(image for _, image, _ in stored.values()).values()) == 1, "an image came twice"
        for _, image, label in stored.values():
            parts = truth[image].split("/")
            assert made.classes[label] in parts, f"{truth[image]} is no {made.classes[label]}"
            assert not {".ipynb_checkpoints", "__MACOSX", "@eaDir", ".hidden"} & set(parts)
            assert len(made.splits) == 1 or split_folder(parts[-3]) == split or split in map(split_folder, parts)
    # What lies beside an image that is used, in any of the classes, is used too.
    roots = {_above(truth[image], made.classes) for image in used}
    for image, path in truth.items():
        if _above(path, made.classes) in roots and not any(map(is_hidden, path.split("/"))):
            assert image in used, f"{path} was lost"
    return "made"


def _above(path: str, classes: list[str]) -> str | None:
    parts = path.split("/")[:-1]
    return next(("/".join(parts[:at]) for at, part in enumerate(parts) if part in classes), None)


def fuzz(folder: Path, seeds: range) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        (folder / str(seed)).mkdir()
        outcomes[run_case(folder / str(seed), seed)] += 1
    return outcomes


def test_trees_are_what_their_paths_say_or_refused(tmp_path):
    outcomes = fuzz(tmp_path, range(40))
    assert min(outcomes["made"], outcomes["refused"]) > 8


@pytest.mark.long
def test_five_hundred_trees_are_what_their_paths_say_or_refused(tmp_path):
    outcomes = fuzz(tmp_path, range(1000, 1500))
    assert outcomes.total() == 500 and min(outcomes["made"], outcomes["refused"]) > 100
