"""The death of a loader worker costs a run nothing but time."""

import io
import tarfile

import numpy as np
from harness import Command, assert_complete, weights, write_recipe
from PIL import Image

DIES = """
import os, pathlib
from vitwarm.data import loading
loading._PATIENCE = 1
read, mark = loading.ImageDataset._load, pathlib.Path({mark!r})
def load(self, addresses):
    if any(sample == 17 for _, sample in addresses) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    return read(self, addresses)
loading.ImageDataset._load = load
"""


def test_a_run_goes_on_to_the_same_weights(tmp_path):
    rng, tar = np.random.default_rng(0), tmp_path / "train.tar"
    with tarfile.open(tar, "w") as archive:
        for row in range(40):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "PNG")
            for suffix, data in (("png", stream.getvalue()), ("cls", str(row % 10).encode())):
                info = tarfile.TarInfo(f"{row}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    recipe, found = write_recipe(tmp_path, images={"train": str(tar), "val": "", "epochs": 7.2}), []
    for name, before in (("quiet", None), ("killed", DIES.format(mark=str(tmp_path / "mark")))):
        folder = tmp_path / name
        command = Command([f"recipe={recipe}", f"run.dir={folder}", "run.workers=2"], tmp_path, before=before)
        assert command.wait() == 0, command.err
        assert ("loader worker died (exit code -9" in command.err) == (before is not None)
        assert_complete(folder)
        found.append(weights(folder))
    assert (tmp_path / "mark").exists() and found[0] == found[1]
