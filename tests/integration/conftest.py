import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from harness import Command, assert_complete, write_recipe
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The digits are written into a cache of our own, once; this comes before the fork server starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITWARM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, recipe) -> Path:
    """Run folder of the tiny recipe, carried out without a break."""
    scratch = tmp_path_factory.mktemp("undisturbed")
    command = Command([f"recipe={recipe}", f"run.dir={scratch / 'run'}"], scratch)
    assert command.wait() == 0, command.err
    assert_complete(scratch / "run")
    return scratch / "run"


@pytest.fixture
def tars_of(tmp_path):
    """Make a tar of `count` small random PNGs; returns its path."""

    def make(count: int, classes: int = 4, first: int = 0, name: str | None = None, spoil: dict | None = None) -> Path:
        path = tmp_path / (name or f"{first}-{count}.tar")
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for row in range(first, first + count):
                stream = io.BytesIO()
                pixels = np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(stream, format="JPEG")
                data = stream.getvalue()
                if spoil and row in spoil:
                    data = spoil[row](data)
                for suffix, content in (("jpg", data), ("cls", str(row % classes).encode())):
                    info = tarfile.TarInfo(f"s{row:03d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return path

    return make
