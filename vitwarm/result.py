"""What stands in a run's result.json and in the provenance of its exports, and what a person is told at the end."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from vitwarm.assembly import Experiment
from vitwarm.config import Config
from vitwarm.exports.card import dataset_name
from vitwarm.exports.layout import CONFIG, EXPORT, WARMUP
from vitwarm.exports.weights import middle_runs_of
from vitwarm.reading import read_json
from vitwarm.recipe import recipe_hash


def result_of(
    experiment: Experiment, stages: dict[str, Any], start: dict[str, Any], processes: int, device: torch.device
) -> dict[str, Any]:
    """The content of result.json.

    Args:
        experiment: that was carried out.
        stages: stage -> outcome, in order.
        start: record of how the main stage started (`assembly.start_record`).
        processes: how many trained.
        device: on which each of them did.
    """
    config, main = experiment.config, experiment.main
    result = {
        "recipe": config.name,
        "recipe_hash": recipe_hash(config),
        "seed": config.seed,
        "start": start["start"],
        **({"source_sha256": start["source_sha256"]} if "source_sha256" in start else {}),
        "metrics": stages[main.name if main else WARMUP]["metrics"],
        "stages": stages,
        "processes": processes,
        "device": device_name(device),
        "versions": versions(),
        **(main.facts() if main else {}),
    }
    if main and WARMUP in stages:
        result["warmup_share_of_samples"] = stages[WARMUP]["samples"] / stages[main.name]["samples"]
    return result


def provenance(
    config: Config, start: dict[str, Any], trained: str | None = None, metrics: dict[str, float] | None = None
) -> dict[str, Any]:
    """The record in an export of where its weights come from.

    Args:
        config: the recipe.
        start: `assembly.start_record`.
        trained: stage that the weights come out of; None if they were put together and not trained since.
        metrics: what that stage measured.
    """
    return {
        "recipe": config.name,
        "description": config.description,
        "recipe_hash": recipe_hash(config),
        **({"smoke": True} if config.run.smoke else {}),
        "seed": config.seed,
        **start,
        "trained": trained,
        **({"middle_runs": runs} if trained == WARMUP and (runs := config.warmup.middle_runs) > 1 else {}),
        **({"dataset": name} if (name := _dataset(config, trained)) else {}),
        "metrics": metrics or {},
        "versions": versions(),
    }


def _dataset(config: Config, trained: str | None) -> str | None:
    """What to call the data that a main stage is measured on."""
    if trained == "images":
        return dataset_name(config.images.val or config.images.train)
    if trained == "text" and config.text.task == "language":
        return dataset_name(config.text.val or config.text.train)
    return {"text": config.text.task, "algorithmic": config.algorithmic.task}.get(trained or "")


def versions() -> dict[str, str]:
    """Versions that a number may depend on."""
    names = ("vitwarm", "torch", "torchvision", "timm", "accelerate", "numpy", "safetensors")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()}, {threads} thread{'s' * (threads > 1)}"


def summary(result: dict[str, Any], folder: Path) -> str:
    """The lines that are printed at the end: accuracy, cost of each stage, how to load the model."""
    lines = [f"recipe {result['recipe']} (hash {result['recipe_hash']}), seed {result['seed']}, {result['start']}"]
    for name, stage in result["stages"].items():
        shown = ", ".join(f"{k} {v:.4f}" for k, v in stage["metrics"].items() if k not in ("count", "damaged"))
        lines.append(
            f"  {name}: {stage['steps']} steps, {stage['samples']:,.0f} samples, {stage['tokens']:,.0f} tokens, "
            f"{stage['flops']:.3g} FLOPs, {stage['seconds']:.0f} s; {shown}"
        )
    if share := result.get("warmup_share_of_samples"):
        lines.append(f"  the warm-up took {100 * share:.3g} % of the samples that the main stage took")
    if "top1" in result["metrics"]:
        metrics = result["metrics"]
        lines.append(f"top-1 accuracy {100 * metrics['top1']:.2f} % on {metrics['count']:.0f} images")
    export = folder.resolve() / EXPORT
    if (runs := middle_runs_of(export)) > 1:  # which neither timm nor transformers would do
        lines += [
            f"a core, not a model to run (its middle block ran {runs} times); expand it into a model:",
            f'  vitwarm.warm_start(model, "{folder.resolve()}", fit="expand")',
        ]
        return "\n".join(lines)
    described = read_json(export / CONFIG) if (export / CONFIG).is_file() else {}
    if "architectures" in described:
        architecture = described["architectures"][0]
        load = "import transformers", f'model = transformers.{architecture}.from_pretrained("{export}")'
    else:
        load = "import timm", f'model = timm.create_model("local-dir:{export}", pretrained=True)'
    lines += [f"load it in {load[0].split()[1]}:", *(f"  {line}" for line in load)]
    return "\n".join(lines)
