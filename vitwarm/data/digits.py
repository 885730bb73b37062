"""scikit-learn's handwritten digits as WebDataset tars: a real data set that needs no download."""

import io
from pathlib import Path
from typing import Literal

from vitwarm.cache import cache_dir
from vitwarm.errors import UserError
from vitwarm.files import whole_folder


def digits_shards(split: Literal["train", "test"]) -> str:
    """Return the tars of one split of the digits, written into the user's cache on first use.

    1,797 grey 8x8 images of 10 classes (UCI Optical Recognition of Handwritten Digits, its test part); a fixed
    stratified split into 1,437 train and 360 test images. Stored as PNG, 16 grey levels stretched to 255.

    Returns:
        A glob for `vitwarm.data.shards.expand`.

    Raises:
        UserError: scikit-learn is missing, or the cache cannot be written.
    """
    folder = cache_dir() / "digits"
    if not folder.exists():
        _write(folder)
    return str(folder / f"{split}-*.tar")


def _write(folder: Path) -> None:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError("the digits come with scikit-learn: pip install vitwarm[digits]") from None
    digits = load_digits()
    train, test = train_test_split(range(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target)
    shards = {"train-000": train[::2], "train-001": train[1::2], "test-000": test}
    try:
        with whole_folder(folder, shared=True) as aside:
            for name, rows in shards.items():
                _write_tar(aside / f"{name}.tar", digits.images[rows], digits.target[rows], rows)
    except OSError as error:
        message = f"{folder}: cannot be written ({error.strerror}); set VITWARM_CACHE to a writable folder"
        raise UserError(message) from None


def _write_tar(path: Path, images, labels, rows) -> None:
    import numpy as np
    import webdataset
    from PIL import Image

    with open(path, "wb") as stream, webdataset.TarWriter(stream, mtime=0, user="", group="") as tar:
        for image, label, row in zip(images, labels, rows, strict=True):
            png = io.BytesIO()
            Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)).save(png, format="PNG")
            tar.write({"__key__": f"{row:04d}", "png": png.getvalue(), "cls": str(label)})
