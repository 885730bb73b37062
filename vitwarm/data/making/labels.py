"""Labels of ImageNet's validation images: the devkit, a list of WordNet ids, or a table of names and ids."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

from vitwarm.data.grouping import IMAGE_SUFFIXES
from vitwarm.data.lists import parse_labelled, read_rows, read_text
from vitwarm.data.tar_reader import read_tar
from vitwarm.errors import UserError

_MOST_BYTES = 1 << 27  # of the devkit; the real one has a few megabytes
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Labels:
    """Class names of validation images.

    Attributes:
        path: the file that they come from.
        by_name: stem of an image -> class, or
        in_order: the class of image 1, 2, ...; exactly one of the two is given.
    """

    path: Path
    by_name: dict[str, str] | None = None
    in_order: list[str] | None = None

    @property
    def classes(self) -> set[str]:
        return set(self.by_name.values() if self.by_name is not None else self.in_order or ())

    def knows(self, paths: list[str]) -> bool:
        """Whether some of these images have labels here."""
        return self.by_name is not None and any(_stem(path) in self.by_name for path in paths)

    def assign(self, names: list[str]) -> list[str]:
        """The class of each file name.

        Raises:
            UserError: a name has no label, or there are more labels than images.
        """
        stems = [_stem(name) for name in names]
        if self.by_name is not None:
            if lost := [stem for stem in stems if stem not in self.by_name]:
                raise UserError(f"{self.path}: has no label for {lost[0]} ({len(lost)} such images)")
            return [self.by_name[stem] for stem in stems]
        ordered = self.in_order or []
        if len(ordered) != len(stems):
            raise UserError(f"{self.path}: has {len(ordered)} labels for {len(stems)} images")
        found = [re.search(r"(\d+)$", stem) for stem in stems]
        numbers = [int(n[1]) if n else 0 for n in found]
        if sorted(numbers) != list(range(1, len(stems) + 1)):
            raise UserError(
                f"{self.path}: is in the order of the image numbers, but the images are not numbered 1, 2, ..."
            )
        return [ordered[number - 1] for number in numbers]


def read_labels(path: Path) -> Labels:
    """Read the devkit's .tar.gz, a list (one WordNet id a line, in the order of the image numbers), or a table.

    A table has an image name, perhaps with folders in front, and a class name on each line, with a comma or white space
    between; the rest of the line is ignored. Kaggle's LOC_val_solution.csv is one.

    Raises:
        UserError: the file is none of these.
    """
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return Labels(path, in_order=_devkit(path))
    lines = read_rows(path, "labels")
    if lines and all(len(line) == 1 and _WNID.fullmatch(line[0]) for line in lines):
        return Labels(path, in_order=[line[0] for line in lines])
    if lines and all(len(line) > 1 and line[1] for line in lines):
        table = {
            _stem(name): class_name for name, class_name in parse_labelled(read_text(path, "labels"), f"labels: {path}")
        }
        if len(table) < len(lines):
            raise UserError(f"{path}: names an image twice")
        return Labels(path, by_name=table)
    if lines and all(len(line) == 1 and line[0].isdigit() for line in lines):
        raise UserError(
            f"{path}: bare numbers mean nothing without the devkit; give ILSVRC2012_devkit_t12.tar.gz itself"
        )
    raise UserError(f"{path}: is neither a list of WordNet ids (n01440764) nor a table of image names and classes")


def _stem(name: str) -> str:
    """`val/x.1.JPEG` and `x.1` are one image: x.1."""
    base = re.split(r"[/\\]", name)[-1]
    stem, _, suffix = base.rpartition(".")
    return stem if suffix.lower() in IMAGE_SUFFIXES else base


def _devkit(path: Path) -> list[str]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            "reading the devkit's meta.mat needs scipy: pip install 'vitwarm[plot]', or give labels=FILE"
        ) from None
    wanted = {"ILSVRC2012_validation_ground_truth.txt": b"", "meta.mat": b""}
    try:
        with open(path, "rb") as file:
            for member in read_tar(file):
                directory, _, name = member.name.rpartition("/")
                if member.size > _MOST_BYTES or member.offset > _MOST_BYTES:
                    raise ValueError("it is too large")
                if name in wanted and directory.endswith("data") and member.link is None:
                    wanted[name] = member.read()
        truth = [int(line) for line in wanted["ILSVRC2012_validation_ground_truth.txt"].split()]
        synsets = loadmat(io.BytesIO(wanted["meta.mat"]), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        labels = [wnids[number] for number in truth]
    except Exception as error:  # tarfile and scipy raise many kinds on bytes that are not theirs
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: is not the devkit ILSVRC2012_devkit_t12.tar.gz ({reason})") from None
    if not labels or not all(_WNID.fullmatch(label) for label in labels):
        raise UserError(f"{path}: is not the devkit ILSVRC2012_devkit_t12.tar.gz (it has no validation labels)")
    return labels
