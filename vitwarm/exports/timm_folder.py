"""A trained or warmed model as a folder that plain timm loads, with its model card and provenance."""

import json
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.exports.layout import CONFIG, PROVENANCE
from vitwarm.files import whole_folder
from vitwarm.trunk import family_of, is_drop_rate, trunk_facts

TAG = "vitwarm"
LICENSE = "apache-2.0"
PAPER = "2511.13945"

_OF_THE_ARCHITECTURE = ("num_classes", "fixed_input_size", "first_conv", "classifier")


def export_model(
    model: nn.Module,
    folder: Path,
    config: Config,
    provenance: dict[str, Any],
    classes: list[str] | None = None,
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

    Raises:
        OSError: full disk, no permission.
    """
    arguments = {k: v for k, v in config.model.args.items() if not is_drop_rate(k)}
    with whole_folder(folder) as aside:
        save_for_hf(model, str(aside), model_args=arguments, safe_serialization=True)
        description = json.loads((aside / CONFIG).read_text(encoding="utf-8"))
        size = trained_size(model, config)
        description["pretrained_cfg"] = _pretrained_cfg(model, config, size, description["pretrained_cfg"])
        description["model_args"] = _model_args(model, size, description.get("model_args", {}))
        if classes is not None:
            description["label_names"] = classes
        _write(aside / CONFIG, json.dumps(description, indent=2) + "\n")
        _write(aside / PROVENANCE, json.dumps({**provenance, "trunk": trunk_facts(model)}, indent=2) + "\n")
        _write(aside / "README.md", model_card(config, provenance))


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
    """What timm reads as the weights' own description: preprocessing of the recipe, our tag and licence."""
    return {k: timms[k] for k in _OF_THE_ARCHITECTURE if k in timms} | {
        "tag": TAG,
        "num_classes": model.num_classes,
        "license": LICENSE,
        "paper_ids": f"arXiv:{PAPER}",
        "input_size": [3, *size],
        "mean": list(config.images.mean),
        "std": list(config.images.std),
        "interpolation": config.images.interpolation,
        "crop_pct": config.images.eval_crop_pct,
        "crop_mode": "center",
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def model_card(config: Config, provenance: dict[str, Any]) -> str:
    """Markdown with the Hub's metadata header: what the model is, how it was made, how to load it."""
    metrics = provenance.get("metrics") or {}
    trained = "trained on images" if metrics else "not trained on images: warmed trunk, fresh stem and head"
    facts = {
        "recipe": f"`{config.name}`",
        "recipe hash": f"`{provenance['recipe_hash']}`",
        "seed": config.seed,
        "start": provenance["start"],
        "warmed tensors": f"{len(provenance.get('warmed_keys', []))} (listed in `{PROVENANCE}`)",
    } | metrics
    rows = "\n".join(f"| {k} | {v:.4f} |" if isinstance(v, float) else f"| {k} | {v} |" for k, v in facts.items())
    return f"""---
library_name: timm
license: {LICENSE}
pipeline_tag: image-classification
tags: [timm, vitwarm, image-classification]
---
# {config.model.name} ({config.name})

A timm `{config.model.name}`, {trained}. {config.description}

| | |
|---|---|
{rows}

```python
import timm
model = timm.create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True)
```

Made with vitwarm; method: [arXiv {PAPER}](https://arxiv.org/abs/{PAPER}).
"""


def push_to_hub(folder: Path, repo_id: str) -> str:
    """Upload an export folder to the Hugging Face Hub; returns the address.

    Raises:
        UserError: no access, no network or no such folder.
    """
    from huggingface_hub import HfApi

    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no export folder; give RUN/export")
    try:
        api = HfApi()
        api.create_repo(repo_id, exist_ok=True)
        return str(api.upload_folder(folder_path=str(folder), repo_id=repo_id))
    except Exception as error:  # the client's own, the network's, and those of the libraries between
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot push to {repo_id}: {reason}; is `hf auth login` done and the network up?") from error
