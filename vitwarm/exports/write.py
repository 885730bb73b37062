"""A model of any kind as a folder."""

from pathlib import Path
from typing import Any

from torch import nn

from vitwarm.config import Config
from vitwarm.data.tokenizers import Tokenizer
from vitwarm.exports.gpt2 import export_gpt2
from vitwarm.exports.timm_folder import export_model
from vitwarm.trunk import Decoder


def write_model(
    model: nn.Module,
    folder: Path,
    config: Config,
    tokenizer: Tokenizer | None,
    record: dict[str, Any],
    classes: list[str] | None = None,
) -> None:
    """A timm folder, or one of GPT-2 for `transformers`, with its provenance; it appears whole or not at all.

    Args:
        model: timm model or decoder, on the CPU.
        folder: target; an older export there is replaced.
        config: the recipe, or what a recipe would say of the model.
        tokenizer: of a decoder; goes into the folder.
        record: JSON-able provenance.
        classes: name of each class of a timm model.

    Raises:
        OSError: full disk, no permission.
    """
    if isinstance(model, Decoder):
        export_gpt2(model, folder, tokenizer=tokenizer, provenance=record)
    else:
        export_model(model, folder, config, record, classes)
