"""Real timm models from a recipe, with errors that a person can act on."""

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn

from vitwarm.config import ModelConfig
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.trunk.families import family_of


def build_model(
    config: ModelConfig, *init_key: str | int, seed: int, pretrained: bool = False, **overrides: object
) -> nn.Module:
    """A timm model with seeded fresh weights; the global torch RNG is left as it was.

    Args:
        config: name, classes and further arguments of `timm.create_model`.
        init_key: names the random stream of the initialisation, e.g. `"images"`.
        seed: root seed.
        pretrained: load timm's own weights for that name.
        overrides: arguments that win over `config.args`.

    Raises:
        UserError: unknown name, arguments that timm refuses, or a family without a usable trunk.
    """
    arguments = {"num_classes": config.num_classes, **config.args, **overrides}
    with torch.random.fork_rng(devices=[]):
        # of the CPU alone, where models are drawn: `torch.manual_seed` would set the generators of all GPUs as well
        torch.default_generator.manual_seed(int(keyed_rng(seed, "init", *init_key).integers(2**63)))
        try:
            model = timm.create_model(config.name, pretrained=pretrained, **arguments)
        except Exception as error:  # whatever a model's constructor makes of arguments that it cannot use
            raise UserError(_why(config.name, arguments, error)) from error
    family_of(model)  # refuses a family without a usable trunk before anything runs
    return model


def _why(name: str, arguments: dict[str, Any], error: Exception) -> str:
    base = name.removeprefix("timm:").split(".")[0].split("/")[-1]
    if not timm.is_model(base) and ":" not in name:
        near = get_close_matches(base, timm.list_models(), n=3, cutoff=0.5)
        return f"model.name: timm has no model {name!r}" + (f"; nearest: {', '.join(near)}" if near else "")
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"timm cannot build {name} with {arguments}: {first}; check model.name and model.args"


def is_drop_rate(argument: str) -> bool:
    """Whether an argument of `timm.create_model` is a dropout of some kind: a setting of training, not of the model."""
    return argument.endswith(("drop_rate", "drop_path_rate"))
