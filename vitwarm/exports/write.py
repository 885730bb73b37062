"""A model of any kind as a folder: that of a recipe, and one that somebody already has."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, cast

from torch import nn

from vitwarm.config import Config, ImagesConfig, ModelConfig
from vitwarm.data.tokenizers import Tokenizer
from vitwarm.errors import UserError
from vitwarm.exports.arguments import require_own_code, twin_of
from vitwarm.exports.card import LICENSE, model_card
from vitwarm.exports.gpt2 import export_gpt2, from_gpt2, gpt2_facts, is_gpt2_model, require_as_configured
from vitwarm.exports.hub import check_push, push_to_hub
from vitwarm.exports.layout import CARD, PROVENANCE, require_replaceable
from vitwarm.exports.opening import class_names, preprocessing
from vitwarm.exports.timm_folder import CROP_MODE, export_model
from vitwarm.exports.weights import require_finite
from vitwarm.files import expanded, whole_folder
from vitwarm.trunk import Decoder, require_data, require_values, unwrap
from vitwarm.trunk.families import canonical, tensor_group, wrappers
from vitwarm.trunk.history import changes, record_of


def write_model(
    model: nn.Module,
    folder: Path,
    config: Config,
    tokenizer: Tokenizer | None,
    record: dict[str, Any],
    classes: list[str] | None = None,
    crop_mode: str = CROP_MODE,
) -> None:
    """A timm folder, or one of GPT-2 for `transformers`, with its provenance; it appears whole or not at all.

    Args:
        model: timm model or decoder, on the CPU.
        folder: target; an older export there is replaced.
        config: the recipe, or what a recipe would say of the model.
        tokenizer: of a decoder; goes into the folder.
        record: JSON-able provenance.
        classes: name of each class of a timm model.
        crop_mode: of a timm model; see `export_model`.

    Raises:
        OSError: full disk, no permission.
    """
    if isinstance(model, Decoder):
        export_gpt2(model, folder, tokenizer=tokenizer, provenance=record)
    else:
        export_model(model, folder, config, record, classes, crop_mode)


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

    Classes keep the names of the weights that the model began with, where it has as many and its head is not that of
    another source.

    Args:
        model: a timm model, a `vitwarm.trunk.Decoder` or a `GPT2LMHeadModel` of transformers; DDP, `torch.compile` and
            moving averages around it are looked through. In a process group one process calls this.
        folder: to make; an older export there is replaced.
        push: repository of the Hugging Face Hub (USER/NAME) to upload the folder to.
        model_args: what the model was made with, as far as it cannot be told: timm of 1.0.31 and later records the
            arguments of `create_model`; of older ones sizes, pooling, tokens and the like are read off the model.
        license: of the weights; None is that of timm's weights for the name, since the model may have begun with them,
            and `unknown` for a language model.

    Returns:
        The folder.

    Raises:
        UserError: a model that cannot be exported or is not what its arguments make, a login that a push needs, a
            folder that holds anything else than an older export.
        OSError: full disk, no permission.
    """
    for name, text in (("folder", folder), ("push", push), ("license", license)):
        if not isinstance(text, str | (Path if name == "folder" else NoneType)) or text == "":
            raise UserError(f"{name} is {text!r}; give a text that is not empty")
    folder, given, model = expanded(folder), model, unwrap(model)
    require_replaceable(folder)
    if push:
        check_push(push)
    theirs = is_gpt2_model(model)
    require_own_code(given)
    tensors = (require_data(model) if theirs else require_values(model)).state_dict()
    require_finite(tensors, "the model")
    record = {"start": "a model of somebody's own", "trained": "elsewhere"}
    history = changes(model)
    if theirs:
        require_as_configured(model)
    names = from_gpt2(tensors) if theirs and history else tensors
    tied = theirs and getattr(model.config, "tie_word_embeddings", False)  # then the head is the token table
    record |= record_of(model, [name for name in names if not (tied and name == "head.weight")])
    lineages = [change.lineage for change in history if change.lineage]
    unknown = {"license": "unknown"}  # what a language model began with
    if theirs:
        _export_transformers(model, folder, record | _lineage([unknown, *lineages], license))
    elif isinstance(model, Decoder):
        if model.middle_runs > 1:
            raise UserError(
                f"the middle block runs {model.middle_runs} times, which transformers cannot do; expand it into a "
                "deeper decoder (vitwarm.warm_start with fit='expand') and export that"
            )
        export_gpt2(model, folder, provenance=record | _lineage([unknown, *lineages], license))
    else:
        name, arguments, twin = twin_of(model, model_args)
        known = dict(cast(Any, model).pretrained_cfg)
        for wrapper in wrappers(given):  # of transformers, which makes the model within as if it had never been trained
            known |= _known_to(getattr(wrapper, "config", None))
        record |= _lineage([{"license": known.get("license") or LICENSE}, *lineages], license)
        images = {key: value for key, value in preprocessing(known).items() if key != "size"}
        described = ModelConfig(name, twin.num_classes, {k: v for k, v in arguments.items() if k != "num_classes"})
        config = Config(model=described, images=ImagesConfig(**images))
        changed = canonical(n for change in history for n in change.tensors if not n.startswith("blocks.")).values()
        other_head = "head" in map(tensor_group, changed)
        classes = None if other_head else class_names(known, twin.num_classes)
        export_model(twin, folder, config, record, classes, crop_mode=known.get("crop_mode") or CROP_MODE)
    if push:
        push_to_hub(folder, push)
    return folder


def _known_to(config: object) -> dict[str, Any]:
    """What a configuration of transformers says of a timm model's weights, the names of the classes among it."""
    names = getattr(config, "id2label", None) or {}
    given = any(name != f"LABEL_{i}" for i, name in names.items())  # it makes these up where nobody named the classes
    labels = {"label_names": [names[i] for i in sorted(names)]} if given else {}
    return (getattr(config, "pretrained_cfg", None) or {}) | labels


def _lineage(lineages: Sequence[Mapping[str, Any]], license: str | None) -> dict[str, Any]:
    """Whose weights are in a model: `base_models` and `license`, the given one or what others' licences leave.

    Ours asks for nothing that others do not ask for, so it gives way to one of theirs.
    """
    bases = sorted({base for one in lineages for base in one.get("base_models", [])})
    others = {one["license"] for one in lineages} - {LICENSE}
    left = LICENSE if not others else others.pop() if len(others) == 1 else "unknown"
    return {"license": license or left, **({"base_models": bases} if bases else {})}


def _export_transformers(model: Any, folder: Path, record: dict[str, Any]) -> None:
    """A GPT-2 of transformers by its own `save_pretrained`, with card and provenance."""
    facts = gpt2_facts(model.config.to_dict())
    with whole_folder(folder) as aside:
        try:
            model.save_pretrained(aside)
        except ValueError as error:  # a generation config that contradicts itself
            reasons = [line.strip("- `") for line in str(error).splitlines() if line.startswith("- ")]
            raise UserError(
                f"transformers does not save the {type(model).__name__}: {(reasons or [str(error)])[0]}"
            ) from error
        text = json.dumps({**record, "trunk": facts}, indent=2) + "\n"
        (aside / PROVENANCE).write_text(text, encoding="utf-8")
        name = "GPT-2 {depth}_{heads}_{width}".format(**facts)
        (aside / CARD).write_text(model_card(name, record, type(model).__name__), encoding="utf-8")
