"""A trained or warmed model as a folder that plain timm loads, with its model card and provenance."""

import json
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from vitwarm.config import Config
from vitwarm.exports.card import LICENSE, model_card
from vitwarm.exports.layout import CARD, CONFIG, PROVENANCE, require_replaceable
from vitwarm.files import whole_folder
from vitwarm.trunk import family_of, is_drop_rate, trunk_facts

TAG = "vitwarm"
PAPER = "2511.13945"
CROP_MODE = "center"

_OF_THE_ARCHITECTURE = ("num_classes", "fixed_input_size", "first_conv", "classifier")


def export_model(
    model: nn.Module,
    folder: Path,
    config: Config,
    provenance: dict[str, Any],
    classes: list[str] | None = None,
    crop_mode: str = CROP_MODE,
) -> None:
    """Write a complete timm folder; it appears whole or not at all.

    timm copies the metadata of its own pretrained weights for the name (tag, licence, addresses, label names, mean and
    std, test size) into every export. Those would be false here: only what describes the architecture is kept of them.

    Args:
        model: raw timm model, built from `config.model`.
        folder: target; an older export there is replaced.
        config: the resolved recipe.
        provenance: JSON-able facts for `vitwarm.json` and the model card: recipe, hash, metrics, warmed tensors.
        classes: name of each class; timm's `label_names`.
        crop_mode: timm's name of how images are cropped for evaluation; ours are cropped in the middle.

    Raises:
        UserError: a folder that holds anything else than an older export.
        OSError: full disk, no permission.
    """
    require_replaceable(folder)
    arguments = {k: v for k, v in config.model.args.items() if not is_drop_rate(k)}
    with whole_folder(folder) as aside:
        save_for_hf(model, str(aside), model_args=arguments, safe_serialization=True)
        description = json.loads((aside / CONFIG).read_text(encoding="utf-8"))
        size = trained_size(model, config)
        weights = _pretrained_cfg(model, config, size, description["pretrained_cfg"])
        own = {"crop_mode": crop_mode, "license": provenance.get("license", LICENSE)}
        description["pretrained_cfg"] = weights | own
        description["model_args"] = _model_args(model, size, description.get("model_args", {}))
        if classes is not None:
            description["label_names"] = classes
        _write(aside / CONFIG, json.dumps(description, indent=2) + "\n")
        _write(aside / PROVENANCE, json.dumps({**provenance, "trunk": trunk_facts(model)}, indent=2) + "\n")
        _write(aside / CARD, model_card(config.model.name, provenance))


def trained_size(model: nn.Module, config: Config) -> tuple[int, int]:
    """(height, width) of the images of a recipe: `images.size` where the model takes any, else the model's own."""
    family = family_of(model)
    return (config.images.size,) * 2 if config.images.size and family.any_size else family.input_size


def _model_args(model: nn.Module, size: tuple[int, int], recorded: dict[str, Any]) -> dict[str, Any]:
    """What the model is built from.

    timm sizes a model by its `input_size` unless its arguments say otherwise: a model that was trained on images of
    another size than its own keeps its own. Newer versions of timm record `num_classes` here as well, which stands
    beside these arguments already: transformers' wrapper passes both on and is given it twice.
    """
    own = family_of(model).input_size
    arguments = {name: value for name, value in recorded.items() if name != "num_classes"}
    return arguments if size == own else {"img_size": list(own)} | arguments


def _pretrained_cfg(model: nn.Module, config: Config, size: tuple[int, int], timms: dict[str, Any]) -> dict[str, Any]:
    """What timm reads as the weights' own description: preprocessing of the recipe, our tag.

    Of other images than RGB the first convolution is not named: older versions of timm take every one that is for a
    convolution of three channels, and convert it.
    """
    channels = model.in_chans
    kept = [k for k in _OF_THE_ARCHITECTURE if k in timms and (k != "first_conv" or channels == 3)]
    return {k: timms[k] for k in kept} | {
        "tag": TAG,
        "num_classes": model.num_classes,
        "paper_ids": f"arXiv:{PAPER}",
        "input_size": [channels, *size],
        "mean": list(config.images.mean),
        "std": list(config.images.std),
        "interpolation": config.images.interpolation,
        "crop_pct": config.images.eval_crop_pct,
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
