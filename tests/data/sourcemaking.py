"""Small sources of every kind, and what became of them: tarfile, PIL and NumPy, nothing of ours but the call."""

import io
import tarfile
from pathlib import Path

import numpy as np
from tarmaking import encode, random_image

from vitwarm.data.making import make_shards

WNIDS = ["n03", "n01", "n02"]  # as an archive may list them
WNIDS = [f"{wnid}{0:06d}" for wnid in WNIDS]


def jpeg(seed: int, **options) -> bytes:
    return random_image(seed, 20 + seed % 5, 24, "JPEG") if not options else encode(pixels(seed), "JPEG", **options)


def pixels(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def contents(folder: Path, split: str) -> dict[str, tuple[str, bytes, int]]:
    """Key -> (extension, image, label) of a split, in the order of its tars, read with tarfile alone."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                key, extension = member.name.split(".")
                found.setdefault(key, {})[extension] = archive.extractfile(member).read()
    out = {}
    for key, parts in found.items():
        label = int(parts.pop("cls"))
        ((extension, image),) = parts.items()
        out[key] = (extension, image, label)
    return out


def quiet(source, out=None, **more):
    return make_shards(Path(source), out and Path(out), say=lambda _: None, **more)


def tree(folder: Path, per_class: int = 6, classes: tuple[str, ...] = ("cat", "ant", "bee")) -> dict[str, bytes]:
    """A class tree; path below it -> bytes."""
    made = {}
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            made[f"{name}/{i}.jpg"] = jpeg(100 * c + i)
            (folder / name / f"{i}.jpg").write_bytes(made[f"{name}/{i}.jpg"])
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
