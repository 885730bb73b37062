"""Names of the files in runs and exports, and which folders an export may replace."""

from fnmatch import fnmatchcase
from pathlib import Path

from vitwarm.errors import UserError

WARMUP = "warmup"  # folder of a run that holds the model as the warm-up left it
EXPORT = "export"
CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
PROVENANCE = "vitwarm.json"
CARD = "README.md"
GENERATION = "generation_config.json"
WRITTEN = (  # patterns of all that an export holds
    *(CONFIG, WEIGHTS, INDEX, "model-*-of-*.safetensors", PROVENANCE, CARD, GENERATION),
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
)


def require_replaceable(folder: Path) -> None:
    """Refuse a place where something else than an export stands: whatever is there would be removed.

    Args:
        folder: as given; a link, or `..` in it, leads where `vitwarm.files.whole_folder` writes.

    Raises:
        UserError: a file, a place inside a file, the current folder or one above it, a folder with other things in it.
    """
    place = folder.resolve()
    above_us = Path.cwd().is_relative_to(place)
    if not folder.name or above_us or any(above.is_file() for above in place.parents):
        raise UserError(f"cannot export to {str(folder)!r}; give a folder to make")
    held = list(place.iterdir()) if place.is_dir() else []
    strange = [path for path in held if path.is_dir() or not any(fnmatchcase(path.name, name) for name in WRITTEN)]
    if strange or (place.exists() and not place.is_dir()) or (held and not (place / PROVENANCE).is_file()):
        what = f"holds {strange[0].name}, which is no part of an export" if strange else "exists and is no export"
        raise UserError(f"{folder} {what}; move that away, or give another folder")
