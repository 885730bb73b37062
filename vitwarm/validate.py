"""Exact evaluation of an export folder, or any other timm folder, over any number of processes."""

import time
from typing import Any

import timm
import torch
from safetensors import SafetensorError

from vitwarm.data.images import EvalTransform
from vitwarm.data.loading import ImageDataset
from vitwarm.data.manifest import ClassList, check_classes
from vitwarm.data.mixing import Normalise
from vitwarm.data.opening import open_source
from vitwarm.data.source import ImageSource, check_labels
from vitwarm.errors import UserError
from vitwarm.exports.layout import CONFIG
from vitwarm.exports.weights import require_finite
from vitwarm.files import expanded
from vitwarm.parallel import default_workers
from vitwarm.reading import read_json
from vitwarm.stages.images import evaluate_images
from vitwarm.training.processes import Processes, start_accelerator

_OF_TIMM = (ValueError, KeyError, RuntimeError, TypeError, AttributeError, AssertionError)  # of arguments that it lacks


def validate_export(export: str, shards: str, batch: int = 256, workers: int | None = None) -> dict[str, float | int]:
    """Top-1, top-5, loss, images per second and the count; every image counts once at any process count.

    Args:
        export: an export folder. The model and its preprocessing are what plain timm makes of it.
        shards: validation images, see `sources.open_images`, or `digits`.
        batch: images a device takes at once.
        workers: loader processes a rank; None scales with the CPUs.

    Raises:
        UserError: no model there, or shards that do not suit it.
    """
    accelerator = start_accelerator()
    processes = Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)
    folder = expanded(export)
    try:
        architecture = read_json(folder / CONFIG, architecture=str)["architecture"]
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).to(processes.device).eval()
    except (UserError, OSError, SafetensorError, *_OF_TIMM) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{export} holds no timm model ({reason}); give RUN/export") from error
    require_finite(model.state_dict(), export)
    data = timm.data.resolve_model_data_config(model)
    (channels, height, width), mode = data["input_size"], data["crop_mode"]
    if channels != 3 or getattr(model, "in_chans", 3) != 3:
        raise UserError(f"{export} does not take the three channels of RGB: only images in RGB can be validated")
    if height != width or mode not in ("center", "squash"):
        raise UserError(
            f"{export} is for images of {height} x {width}, cropped by {mode}: only squares can be validated"
        )
    transform = EvalTransform(width, data["crop_pct"], data["interpolation"], squash=mode == "squash")
    dataset = processes.all_do(lambda: ImageDataset(_labelled(shards, model, export), transform))
    workers = default_workers(processes.world) if workers is None else workers
    started = time.perf_counter()
    normalise = Normalise(data["mean"], data["std"])
    with torch.inference_mode():
        sums = processes.all_do(
            lambda: evaluate_images(model, dataset, normalise, processes.rank, processes.world, batch, workers)
        )
    names = sorted(sums)
    totals = dict(zip(names, processes.sum([sums[n] for n in names]), strict=True))
    count = int(totals.pop("weight"))
    if not count:
        raise UserError(f"none of the images of {shards} can be read")
    seconds = time.perf_counter() - started
    damaged = int(totals.pop("damaged"))
    return {
        "model": architecture,
        **{n: totals[n] / count for n in ("top1", "top5", "loss")},
        "count": count,
        "damaged": damaged,
        **({"clipped_by_timm": dataset.shards.deep} if dataset.shards.deep else {}),
        **({"max_side": side} if (side := dataset.shards.max_side) is not None else {}),
        "images_per_s": (count + damaged) / seconds,
        "processes": processes.world,
    }


def _labelled(shards: str, model: Any, export: str) -> ImageSource:
    found = open_source(shards, "val", "shards")
    limit = f"the {model.num_classes} classes of {export}"
    check_labels(found, model.num_classes, limit, "number its classes as in training, from 0 on")
    names = model.pretrained_cfg.get("label_names")
    check_classes(ClassList(list(names), export) if names else None, found.classes, export, shards)
    return found
