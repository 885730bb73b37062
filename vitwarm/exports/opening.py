"""A model from a folder: a timm export or a GPT-2 of `transformers`, with what it takes to write it again."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from vitwarm.checks import MODEL_ARGS_ELSEWHERE
from vitwarm.config import Config, ImagesConfig, ModelConfig
from vitwarm.data.tokenizers import Tokenizer, read_tokenizer
from vitwarm.errors import UserError
from vitwarm.exports.card import LICENSE
from vitwarm.exports.gpt2 import read_gpt2
from vitwarm.exports.layout import CONFIG, EXPORT, PROVENANCE, WARMUP, WEIGHTS
from vitwarm.exports.timm_folder import CROP_MODE
from vitwarm.exports.weights import find_weights, middle_runs_of, read_weights
from vitwarm.files import expanded
from vitwarm.reading import read_json
from vitwarm.trunk import build_decoder, build_model

LINEAGE = ("base_models", "license")  # keys of a record; see `lineage`
_COMPOSED = "composed"


@dataclass(frozen=True)
class Opened:
    """A model and the description that its export needs.

    Attributes:
        model: timm model or decoder.
        config: what a recipe would say of it: name, arguments, preprocessing, and what its record names: the seed, the
            runs of a core's middle block.
        tokenizer: of a language model, if it can be read.
        weights: the file of the weights; None if they are fresh.
        crop_mode: timm's name of how images are cropped for evaluation.
    """

    model: nn.Module
    config: Config
    tokenizer: Tokenizer | None = None
    weights: Path | None = None
    crop_mode: str = CROP_MODE


def open_model(place: str, *, fresh: bool = False, seed: int = 0) -> Opened:
    """The model of a run, of an export, or of a GPT-2 folder; `timm:NAME` is a fresh one of timm.

    Args:
        place: folder, or `timm:NAME`.
        fresh: draw new weights and leave those of the folder.
        seed: root seed of fresh weights; of the model, where there is no record of its own.

    Raises:
        UserError: no model there, or one that cannot be read.
    """
    if place.startswith("timm:"):
        config = Config(name=_COMPOSED, seed=seed, model=ModelConfig(name=place.removeprefix("timm:")))
        return Opened(build_model(config.model, _COMPOSED, seed=seed), config)
    root = expanded(place)
    folder = next((f for f in (root, root / EXPORT, root / WARMUP) if (f / CONFIG).is_file()), None)
    if folder is None:
        raise UserError(f"no model at {place}: expected {CONFIG} and {WEIGHTS}; give RUN/export, or timm:NAME")
    try:
        described = read_json(folder / CONFIG)
        if "architecture" in described:
            return _open_timm(folder, described, fresh, seed)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{folder} holds no model that can be read ({str(error).splitlines()[0]})") from error
    decoder = read_gpt2(folder)
    if fresh:
        facts = (str(decoder.size), decoder.vocab_size, decoder.n_positions)
        how: Any = {"tied": decoder.tied, "middle_runs": decoder.middle_runs}
        decoder, read = build_decoder(*facts, _COMPOSED, seed=seed, **how), decoder
        decoder.text_ids = read.text_ids
    tokenizer = None
    with contextlib.suppress(UserError):  # none there, or its package is not installed
        tokenizer = read_tokenizer(folder)
    config = Config(name=_COMPOSED, seed=seed if fresh else _recorded_seed(folder, seed))
    config.warmup.middle_runs = decoder.middle_runs
    return Opened(decoder, config, tokenizer, None if fresh else find_weights(folder))


def _recorded_seed(folder: Path, otherwise: int) -> int:
    try:
        return int(read_json(folder / PROVENANCE, seed=int)["seed"])
    except UserError:
        return otherwise


def preprocessing(description: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's description of weights says of their images, under the names of `ImagesConfig`.

    Args:
        description: `pretrained_cfg` of a model or of its config.json.
    """
    names = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop_pct": "eval_crop_pct"}
    images = {
        ours: list(v) if isinstance(v := description[n], (list, tuple)) else v
        for n, ours in names.items()
        if n in description
    }
    if (size := description.get("input_size")) and size[-1] == size[-2]:
        images["size"] = size[-1]
    return images


def preprocessing_beside(weights: Path) -> dict[str, Any]:
    """`preprocessing` of the folder that a file of weights is in; empty if they saw no images, or nobody knows."""
    try:
        found = preprocessing(read_json(weights.with_name(CONFIG), pretrained_cfg=dict)["pretrained_cfg"])
        with contextlib.suppress(UserError):
            if read_json(weights.with_name(PROVENANCE)).get("trained", "images") != "images":
                return {}
    except (UserError, TypeError, IndexError):
        return {}
    return found


def class_names(description: Mapping[str, Any], classes: int) -> list[str] | None:
    """What timm's description of weights calls their classes; None without a name for each.

    Args:
        description: config.json of a model, or the `pretrained_cfg` in it.
        classes: of the head.
    """
    names = description.get("label_names")
    if not isinstance(names, list | tuple) or len(names) != classes or not all(isinstance(n, str) for n in names):
        return None
    return list(names)


def class_names_beside(weights: Path, classes: int) -> list[str] | None:
    """`class_names` of the folder that a file of weights is in."""
    try:
        described = read_json(weights.with_name(CONFIG))
    except UserError:  # weights of others
        return None
    within = described.get("pretrained_cfg")  # where timm's own exports keep them
    return class_names((within if isinstance(within, dict) else {}) | described, classes)


def lineage(sources: Iterable[str]) -> dict[str, Any]:
    """Whose weights are in a model that these sources went into: `base_models` of the Hub, and their `license`.

    Args:
        sources: files of weights, or `timm:NAME` for the pretrained ones of timm.
    """
    bases, licences = [], set()
    for source in sources:
        if source.startswith("timm:"):
            known = timm.get_pretrained_cfg(source.removeprefix("timm:"))
            bases += [known.hf_hub_id] if known and known.hf_hub_id else []
            licences.add((known and known.license) or "unknown")
            continue
        try:
            record = read_json(Path(source).with_name(PROVENANCE))
        except UserError:  # weights of others
            licences.add("unknown")
        else:
            named, terms = record.get("base_models", []), record.get("license", LICENSE)
            readable = isinstance(named, list) and all(isinstance(word, str) for word in [*named, terms])
            bases += named if readable else []
            licences.add(terms if readable else "unknown")
    licence = licences.pop() if len(licences) == 1 else "unknown" if licences else LICENSE
    return dict(zip(LINEAGE, (sorted(set(bases)), licence), strict=True))


def _open_timm(folder: Path, described: dict[str, Any], fresh: bool, seed: int) -> Opened:
    known = described.get("pretrained_cfg", {})
    images = preprocessing(known)
    model = ModelConfig(described["architecture"], described["num_classes"], dict(described.get("model_args") or {}))
    if not timm.is_model(model.name):  # an address, from which timm would load
        raise UserError(f"{CONFIG}: timm has no architecture {model.name!r}")
    if name := next((name for name in MODEL_ARGS_ELSEWHERE if name in model.args), None):
        raise UserError(f"{CONFIG}: model_args has {name}, which is no part of a model")
    config = Config(name=_COMPOSED, seed=seed, model=model, images=ImagesConfig(**images))
    config.warmup.middle_runs = middle_runs_of(folder)
    vit, file = build_model(model, _COMPOSED, seed=seed), None
    if not fresh:
        if (file := find_weights(folder)) is None:
            raise UserError(f"no {WEIGHTS} in {folder}, which has a {CONFIG}; nothing else is read")
        vit.load_state_dict(read_weights(file))
        config.seed = _recorded_seed(folder, seed)
    return Opened(vit, config, weights=file, crop_mode=known.get("crop_mode") or CROP_MODE)
