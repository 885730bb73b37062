"""Files of runs and exports, and folders that appear whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from vitwarm.training.checkpoint import flush

WARMUP = "warmup"  # folder of a run that holds the model as the warm-up left it
EXPORT = "export"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PROVENANCE = "vitwarm.json"


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when the block ends, and vanishes when it fails.

    Raises:
        OSError: full disk, no permission.
    """
    aside, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("tmp", "old"))
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in (*aside.iterdir(), aside):
            flush(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
