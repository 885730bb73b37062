"""What the folders of a tree are: splits, classes, or neither."""

from collections import Counter

from vitwarm.data.splits import choose, split_folder
from vitwarm.data.tree import Folder
from vitwarm.errors import UserError

ANNOTATIONS = "val_annotations.txt"  # of Tiny-ImageNet, beside a folder of images
_REMEDY = "give the folder whose folders are the classes, or name the classes: vitwarm make-shards classes=FILE"


def find_splits(
    root: Folder, split: str | None, known: list[str] | None, ignored: Counter[str], remedy: str
) -> dict[str, Folder]:
    """The folder of each split of a tree: folders of classes, or images that want labels.

    Folders that hold nothing but one other with images are passed through.

    Args:
        root: the tree.
        split: name of the one split that the tree is; None is `train`, or what its folders are named after.
        known: names of all classes, which may look like splits.
        ignored: gets what is left out.
        remedy: ends the message where a folder may be either.

    Raises:
        UserError: a folder may be a split or a class, or a split is there twice.
    """
    while True:
        named = [one for one in root.folders if split_folder(one.name) and one.name not in (known or ())]
        others = [one for one in root.filled if one not in named]
        if named and split is None and (not others or any(one.folders for one in named)):
            break
        if named:
            raise UserError(f"{named[0].path}: is it a split or a class? A split has folders of classes in it{remedy}")
        if len(others) > 1 or root.images or not (others and others[0].filled) or others[0].name in (known or ()):
            return {split or "train": root}
        for one in root.folders:
            if one is not others[0]:
                ignored[f"folder {one.name}"] += 1
        root = others[0]
    places: dict[str, Folder] = {}
    for one in root.folders:
        name = split_folder(one.name)
        if name is None:
            ignored[f"folder {one.name}"] += 1
        elif name in places:
            raise UserError(f"{root.path}: has {places[name].name}, {one.name}, two of them for one split; remove one")
        else:
            places[name] = one
    return places


def check_level(place: Folder, remedy: str) -> None:
    """Refuse folders that are not classes, but hold them, or are one of several.

    Args:
        place: the folder of the classes.
        remedy: ends the message.

    Raises:
        UserError: says what they look like.
    """
    if len(place.folders) == 1:
        raise UserError(f"{place.path}: has one class alone, {place.folders[0].name!r}; {remedy}")
    nested = [one for one in place.folders if not one.images and len(one.filled) > 1]
    inside = [inner.name for one in nested for inner in one.filled]
    if nested and (
        len(nested) == len(place.folders) or len(set(inside)) < len(inside) or any(map(split_folder, inside))
    ):
        inner = ", ".join(one.name for one in nested[0].filled[:3])
        raise UserError(
            f"{nested[0].path}: is it a class? Its images lie in folders of their own ({inner}, ...); {remedy}"
        )


def place_of_split(root: Folder, split: str | None) -> Folder:
    """The folder of a tree whose folders are the classes, of the split that is asked for.

    Raises:
        UserError: a folder may be a split or a class, or the split is not there.
    """
    if not root.below:
        raise UserError(f"{root.path}: holds no images; they lie in a folder for each class, in tars or parquet files")
    places = find_splits(root, None, None, Counter(), f"; {_REMEDY}")
    return choose(places, split, root.path, "name one of its folders")


def labelled(place: Folder) -> tuple[list[str], list[tuple[int, str]]]:
    """The classes of a folder, by name, and (class number, path) of its images: class by class, each by name.

    Raises:
        UserError: images without a class, no classes, or folders that are perhaps none.
    """
    if place.images:
        loose = f"{place.images[0].rpartition('/')[2]} ({len(place.images):,} such images)"
        if place.filled:
            raise UserError(
                f"{place.path}: has class folders ({place.filled[0].name}, ...) and images outside of them, first "
                f"{loose}; move each into the folder of its class, or elsewhere"
            )
        raise UserError(
            f"{place.path}: has no class folders, but images, first {loose}; give the list of their labels instead of "
            "the folder: a .csv or .tsv of names and classes, such as LOC_val_solution.csv"
        )
    check_level(place, _REMEDY)
    if empty := [one for one in place.folders if not one.below]:
        raise UserError(f"{empty[0].path}: a class without an image; fill the folder, or remove it")
    return (
        [one.name for one in place.folders],
        [(number, path) for number, one in enumerate(place.folders) for path in one.below],
    )
