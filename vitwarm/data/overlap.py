"""Images that are in two sets, by content and not by name."""

import numpy as np

from vitwarm.data.source import DamagedSample, ImageSource
from vitwarm.errors import UserError

MOST_SHARED = 0.05  # of the validation images; public data sets have a few that are in both
_COMPARED, _TWINS = 1000, 100  # validation images that are compared byte for byte, and each one's candidates, at most


def shared_images(train: ImageSource, val: ImageSource) -> tuple[int, str]:
    """How many validation images are training images too, byte for byte under whatever keys, and one of them.

    Of very many a sample is compared, so that a mistake is seen at once.

    Raises:
        UserError: a tar of `val` holds nothing else, or they are more than `MOST_SHARED` of `val`.
    """
    order = np.argsort(train.marks, kind="stable")
    first, last = (np.searchsorted(train.marks, val.marks, side, sorter=order) for side in ("left", "right"))
    alike = np.flatnonzero(first < last)
    compared = alike if alike.size <= _COMPARED else alike[np.linspace(0, alike.size - 1, _COMPARED).astype(int)]
    found = {}
    for sample in compared.tolist():
        try:
            image = val.read(sample)
            twins = (int(twin) for twin in order[first[sample] : last[sample]][:_TWINS])
            if (twin := next((twin for twin in twins if train.read(twin) == image), None)) is not None:
                found[sample] = f"{val.key(sample)}, which is {train.key(twin)}"
        except DamagedSample:
            continue
    if not found:
        return 0, ""
    count, example = round(len(found) / compared.size * alike.size), next(iter(found.values()))
    what = f"{count:,} of {len(val):,} images" if count > MOST_SHARED * len(val) else ""
    for path, start, stop in zip(val.paths, val.starts[:-1], val.starts[1:], strict=True):
        of_tar = compared[(compared >= start) & (compared < stop)].tolist()
        if of_tar and ((alike >= start) & (alike < stop)).sum() == stop - start and all(s in found for s in of_tar):
            what = f"all images of {path}"
            break
    if what:
        raise UserError(
            f"images.val: {what} are in images.train too, such as {example} there; keep them out of one of the two"
        )
    return count, example
