"""In what runs may differ and still be compared."""

from collections.abc import Sequence
from typing import Any

from vitwarm.budget.runs import Run
from vitwarm.checks import KEYS, nearest, value_of
from vitwarm.errors import UserError
from vitwarm.recipe import NOT_IDENTITY

# The keys in which arms of one comparison may differ: how the trunk starts. All other keys must be equal.
ARM_KEYS = (*NOT_IDENTITY, "seed", "init_from", "model.init", "warmup", "transfer")
# What a value is measured on: values on other data, or of other tasks, do not compare, whatever was tuned.
_MEASURED_ON = (
    *("images.train", "images.val", "images.subset", "images.subset_seed", "images.eval_crop_pct", "model.num_classes"),
    *("algorithmic.task", "algorithmic.size", "algorithmic.loss_on", "algorithmic.val_rows"),
    *("text.task", "text.train", "text.val", "text.field", "text.heading", "text.tokenizer", "text.length"),
    "text.val_rows",
)
SEED_KEYS = (*NOT_IDENTITY, "seed", "init_from", "transfer.sources")  # in which the seeds of an arm may


def check_tuned(keys: Sequence[Any], where: str) -> None:
    """Refuse what no arm can have a value of its own for.

    Args:
        keys: keys in which arms may differ beyond their start.
        where: what names them, for messages.

    Raises:
        UserError: no key of a recipe, or one that says what is measured.
    """
    for key in keys:
        if not isinstance(key, str) or key not in KEYS:
            raise UserError(f"{where}tuned: no key {key}{nearest(str(key), KEYS)}")
        if key in _MEASURED_ON:
            raise UserError(f"{where}tuned: {key} says what is measured, which must be the same for all arms")


def other_data(run: Run, first: Run) -> str:
    """What two runs read in one place that was not the same; empty where all was, or their recipes name other data.

    The recipe has only the place of the data, whose content may have changed between the runs.
    """
    if any(value_of(run.config, key) != value_of(first.config, key) for key in _MEASURED_ON):
        return ""
    for key in first.data:
        if key in run.data and run.data[key] != first.data[key]:
            return f"read other data than {first.folder} ({key}: {run.data[key]}, there {first.data[key]})"
    return ""
