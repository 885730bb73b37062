"""A model of any kind as a folder: that of a recipe, and one that somebody already has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitwarm.config import Config, ImagesConfig, ModelConfig
from vitwarm.data.tokenizers import Tokenizer
from vitwarm.errors import UserError
from vitwarm.exports.arguments import twin_of
from vitwarm.exports.card import LICENSE, model_card
from vitwarm.exports.gpt2 import export_gpt2, gpt2_facts, is_gpt2_model
from vitwarm.exports.hub import check_push, push_to_hub
from vitwarm.exports.layout import CARD, PROVENANCE
from vitwarm.exports.opening import preprocessing
from vitwarm.exports.timm_folder import export_model
from vitwarm.exports.weights import require_finite
from vitwarm.files import whole_folder
from vitwarm.trunk import Decoder, require_data, require_values, unwrap

WARMED = "_vitwarm"  # attribute of a model that was warmed up: what its export says of that


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


def export(
    model: nn.Module,
    folder: str | Path,
    push: str | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> Path:
    """Write a model that you have as a folder that plain timm loads, or transformers; it appears whole or not at all.

        vitwarm.export(model, "warmed")
        timm.create_model("local-dir:warmed", pretrained=True)  # the same model: equal logits

    Args:
        model: a timm model, a `vitwarm.trunk.Decoder` or a `GPT2LMHeadModel` of transformers; DDP, `torch.compile` and
            moving averages around it are looked through. In a process group one process calls this.
        folder: to make; an older export there is replaced.
        push: repository of the Hugging Face Hub (USER/NAME) to upload the folder to.
        model_args: what the model was made with, as far as it cannot be told: timm of 1.0.31 and later records the
            arguments of `create_model`; of older ones sizes, pooling, tokens and the like are read off the model.
        license: of the weights; None is that of timm's weights for the name, since the model may have begun with them.

    Returns:
        The folder.

    Raises:
        UserError: a model that cannot be exported or is not what its arguments make, a login that a push needs, a
            folder that holds anything else than an older export.
        OSError: full disk, no permission.
    """
    folder, model = Path(folder).expanduser(), unwrap(model)
    _check_replaceable(folder)
    if push:
        check_push(push)
    record = {"start": "a model of somebody's own", "trained": "elsewhere", **getattr(model, WARMED, {})}
    if license:
        record["license"] = license
    theirs = is_gpt2_model(model)
    require_finite((require_data(model) if theirs else require_values(model)).state_dict(), "the model")
    if theirs:
        _export_transformers(model, folder, record)
    elif isinstance(model, Decoder):
        export_gpt2(model, folder, provenance=record)
    else:
        name, arguments, twin = twin_of(model, model_args)
        known = dict(twin.pretrained_cfg)
        images = {key: value for key, value in preprocessing(known).items() if key != "size"}
        described = ModelConfig(name, twin.num_classes, {k: v for k, v in arguments.items() if k != "num_classes"})
        record.setdefault("license", known.get("license") or LICENSE)
        export_model(twin, folder, Config(model=described, images=ImagesConfig(**images)), record)
    if push:
        push_to_hub(folder, push)
    return folder


def _check_replaceable(folder: Path) -> None:
    """Refuse a place where something else than an export stands: whatever is there would be removed.

    Raises:
        UserError: a file, the current folder, a folder with other things in it.
    """
    if not folder.name:
        raise UserError(f"cannot export to {str(folder)!r}; give a folder to make")
    held = list(folder.iterdir()) if folder.is_dir() else []
    older = (folder / PROVENANCE).is_file() and all(path.is_file() for path in held)
    if folder.exists() and (held or not folder.is_dir()) and not older:
        raise UserError(f"{folder} exists and is no export; give a folder to make, or one with an older export alone")


def _export_transformers(model: Any, folder: Path, record: dict[str, Any]) -> None:
    """A GPT-2 of transformers by its own `save_pretrained`, with card and provenance."""
    facts = gpt2_facts(model.config.to_dict())
    with whole_folder(folder) as aside:
        model.save_pretrained(aside)
        text = json.dumps({**record, "trunk": facts}, indent=2) + "\n"
        (aside / PROVENANCE).write_text(text, encoding="utf-8")
        name = "GPT-2 {depth}_{heads}_{width}".format(**facts)
        (aside / CARD).write_text(model_card(name, record, type(model).__name__), encoding="utf-8")
