"""A recipe becomes a run folder: stages in order, start order, final export."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.recipe import recipe_hash
from vitwarm.run_folder import (
    CHECKPOINTS,
    RESULT,
    check_folder,
    has_checkpoint,
    newest_checkpoint,
    open_folder,
    record_subset,
    run_folder,
    warn,
    write_text,
)
from vitwarm.stages.images import ImagesStage, default_workers
from vitwarm.stages.warmup import WarmupStage
from vitwarm.training.checkpoint import Checkpoints, State
from vitwarm.training.loop import Context, device_batch_size, train_stage
from vitwarm.training.processes import Processes, start_accelerator
from vitwarm.training.sharding import check_shardable, fsdp_requested
from vitwarm.training.signals import stop_signals
from vitwarm.training.tracking import Tracker, check_trackers
from vitwarm.transfer import TransferReport, canonical, export_model, initialise, push_to_hub, read_source, transfer
from vitwarm.transfer.warm_start import EXPORT, WARMUP, require_fit, require_same_blocks
from vitwarm.trunk import build_model

_DISTRIBUTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


@dataclass
class Parts:
    """What a run is made of, built before anything is written.

    Attributes:
        images: image stage; None without images.
        fresh: timm model that the image stage starts from; holds the weights of `init_from` already.
        warmup: None when the budget is nothing, or `init_from` takes its place.
        given: what `init_from` brought in; None without it.
    """

    images: ImagesStage | None
    fresh: nn.Module
    warmup: WarmupStage | None
    given: TransferReport | None


def run(config: Config, stop: list[int] | None = None) -> dict[str, Any]:
    """Carry out a recipe, or go on with it, and return what stands in its result.json.

    Start order, the first that applies: the run folder's newest whole checkpoint; `resume_from`; `init_from`; the
    warm-up; fresh weights. A finished run is left as it is.

    Args:
        config: the recipe.
        stop: list that a signal handler fills, as `stop_signals` gives it; None listens for signals itself.

    Raises:
        UserError: something of the recipe, the data, the folder or the disk that the user can mend.
        Interrupted: a signal; the same command goes on.
    """
    with contextlib.ExitStack() as held:
        return _run(config, held.enter_context(stop_signals()) if stop is None else stop, held)


def _run(config: Config, stop: list[int], held: contextlib.ExitStack) -> dict[str, Any]:
    accelerator = _accelerator(config)
    processes = Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)
    folder = run_folder(config)
    processes.main_does(lambda: check_folder(folder, config))
    if (folder / RESULT).exists():
        processes.main_does(lambda: _push(config, folder))
        return json.loads((folder / RESULT).read_text())

    parts = processes.all_do(lambda: build(config, processes.world, starts=not has_checkpoint(folder)))
    processes.main_does(lambda: open_folder(folder, config, held))
    if parts.images and (subset := parts.images.subset):
        processes.main_does(lambda: record_subset(folder, subset.text))
    resume = processes.main_does(lambda: newest_checkpoint(folder, config, warn))
    if resume is None and parts.given is None and config.init_from:  # all checkpoints turned out to be damaged
        parts = processes.all_do(lambda: build(config, processes.world, starts=True))
    state = resume[0] if resume else None
    tracker = processes.all_do(
        lambda: Tracker(
            folder,
            log_bytes=state.log_bytes if state else 0,
            run_step=state.run_step if state else 0,
            tensorboard=config.run.tensorboard,
            wandb=config.run.wandb,
            config={"recipe": config.name, "hash": recipe_hash(config), "seed": config.seed},
            active=processes.is_main,
        )
    )
    held.callback(tracker.close)
    if resume:
        tracker.say(f"going on from {resume[1]} ({state.stage} step {state.step})")
    context = Context(
        accelerator=accelerator,
        processes=processes,
        folder=folder,
        run=config.run,
        seed=config.seed,
        recipe_hash=recipe_hash(config),
        tracker=tracker,
        checkpoints=Checkpoints(folder / CHECKPOINTS, config.run.keep_last),
        stop=stop,
        run_step=state.run_step - state.step if state else 0,
        results=state.results if state else {},
        sharded=fsdp_requested(),
    )
    start = _first_weights(config, context, parts, resume)
    model, images = parts.fresh, parts.images
    if images is not None:
        images.set_model(parts.fresh, config.model.grad_checkpointing)
        model = train_stage(images, context, resume if state and state.stage == images.name else None).vit
    result = _result(config, context, start, images)
    processes.main_does(lambda: _finish(config, context, model, result, start))
    processes.main_does(lambda: _push(config, folder))
    return result


def _accelerator(config: Config) -> Accelerator:
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(config.run.deterministic)
    accelerator = start_accelerator()
    if accelerator.distributed_type not in _DISTRIBUTED:
        raise UserError(
            f"launched as {accelerator.distributed_type.value}, but only data parallelism (--multi_gpu) and FSDP2 "
            "(--config_file recipes/accelerate/fsdp2.yaml) are supported"
        )
    return accelerator


def build(config: Config, world: int, starts: bool) -> Parts:
    """Everything that can be refused is built here, before a file is written.

    Args:
        config: the recipe.
        world: number of processes.
        starts: False when a checkpoint will bring the weights, so that `init_from` need not be there any more.
    """
    check_trackers(config.run)
    if fsdp_requested():
        check_shardable(config)
    fresh = initialise(build_model(config.model, "images", seed=config.seed), config.model.init, seed=config.seed)
    images = None
    if config.images.train and config.images.epochs > 0:
        workers = default_workers(world) if config.run.workers is None else config.run.workers
        images = ImagesStage(config, workers)
        images.set_model(fresh, config.model.grad_checkpointing)
    warmup = None if config.init_from else WarmupStage(config, images.samples if images else None)
    if warmup is not None and warmup.steps == 0:
        warmup = None
    if images is None and warmup is None:
        raise UserError("the recipe has nothing to do: neither images (images.train) nor a warm-up (warmup.budget)")
    for stage in (images, warmup):
        if stage is not None:
            stage.check_device_batch(device_batch_size(stage.optim.global_batch, world, config.run.device_batch))
    given = None
    if config.init_from and starts:
        tensors, source = _init_tensors(config)
        require_same_blocks(fresh, source)
        given = transfer(fresh, tensors, source=source, groups=config.transfer.groups)
        require_fit(given, config.transfer.groups)
    return Parts(images, fresh, warmup, given)


def _first_weights(
    config: Config, context: Context, parts: Parts, resume: tuple[State, Path] | None
) -> dict[str, Any]:
    """Bring the fresh model to where the main stage starts; what happened, for the export's provenance."""
    folder = context.folder / WARMUP
    attention = "" if config.model.init == "default" else f" (attention: {config.model.init})"
    fresh = _start(f"fresh weights{attention}", None)
    if resume and resume[0].stage != WarmupStage.name:
        # The weights come from the checkpoint; only the record of how the run started is still needed.
        record = folder / "vitwarm.json"
        return json.loads(record.read_text()) if record.is_file() else fresh
    if parts.given is not None:
        report, start = parts.given, f"weights of {config.init_from}"
    elif parts.warmup is not None:
        trained = train_stage(parts.warmup, context, resume)
        tensors = {n: t.detach().cpu() for n, t in trained.trunk.state_dict().items()}
        report = transfer(parts.fresh, tensors, source="the warm-up", groups=config.transfer.groups)
        require_fit(report, config.transfer.groups)
        start = f"warm-up of {parts.warmup.steps} steps on {config.warmup.rule['name']}"
    else:
        return fresh
    record = _start(start + attention, report)

    def write() -> None:
        context.tracker.record({"event": "transfer", **report.to_dict()}, str(report))
        export_model(parts.fresh, folder, config, _provenance(config, record, {}))

    context.processes.main_does(write)
    return record


def _init_tensors(config: Config) -> tuple[dict[str, torch.Tensor], str]:
    if not config.init_from.startswith("timm:"):
        return read_source(config.init_from)
    named = replace(config.model, name=config.init_from.removeprefix("timm:"))
    tensors = build_model(named, "images", seed=config.seed, pretrained=True).state_dict()
    names = canonical(tensors)
    return {names[n]: t for n, t in tensors.items()}, config.init_from


def _start(text: str, report: TransferReport | None) -> dict[str, Any]:
    return {
        "start": text,
        "warmed_keys": report.copied if report else [],
        "fresh_keys": report.fresh if report else [],
    }


def _provenance(config: Config, start: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "recipe": config.name,
        "recipe_hash": recipe_hash(config),
        "seed": config.seed,
        "start": start["start"],
        "warmed_keys": start["warmed_keys"],
        "fresh_keys": start["fresh_keys"],
        "metrics": metrics,
        "versions": versions(),
    }


def _result(config: Config, context: Context, start: dict[str, Any], images: ImagesStage | None) -> dict[str, Any]:
    stages = context.results
    result = {
        "recipe": config.name,
        "recipe_hash": recipe_hash(config),
        "seed": config.seed,
        "start": start["start"],
        "metrics": stages[images.name]["metrics"] if images else stages[WARMUP]["metrics"],
        "stages": stages,
        "processes": context.processes.world,
        "device": device_name(context.processes.device),
        "versions": versions(),
    }
    if images and images.subset:
        result["subset"] = {"images": len(images.subset.names), "sha256": images.subset.sha256}
    if images and WARMUP in stages:
        result["warmup_share_of_samples"] = stages[WARMUP]["samples"] / stages[images.name]["samples"]
    return result


def _finish(config: Config, context: Context, model: nn.Module, result: dict[str, Any], start: dict[str, Any]) -> None:
    export_model(model.cpu(), context.folder / EXPORT, config, _provenance(config, start, result["metrics"]))
    write_text(context.folder / RESULT, json.dumps(result, indent=2) + "\n")


def _push(config: Config, folder: Path) -> None:
    if config.run.push:
        print(f"pushed to {push_to_hub(folder / EXPORT, config.run.push)}", flush=True)


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
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def summary(result: dict[str, Any], folder: Path) -> str:
    """What a person wants to know at the end: accuracy, cost of each stage, how to load the model."""
    lines = [f"recipe {result['recipe']} (hash {result['recipe_hash']}), seed {result['seed']}, {result['start']}"]
    for name, stage in result["stages"].items():
        shown = ", ".join(f"{k} {v:.4f}" for k, v in stage["metrics"].items() if k not in ("count", "damaged"))
        lines.append(
            f"  {name}: {stage['steps']} steps, {stage['samples']:,.0f} samples, {stage['tokens']:,.0f} tokens, "
            f"{stage['flops']:.3g} FLOPs, {stage['seconds']:.0f} s; {shown}"
        )
    if share := result.get("warmup_share_of_samples"):
        lines.append(f"  the warm-up took {100 * share:.3g} % of the samples that the images took")
    if "top1" in result["metrics"] and not math.isnan(result["metrics"]["top1"]):
        metrics = result["metrics"]
        lines.append(f"top-1 accuracy {100 * metrics['top1']:.2f} % on {metrics['count']:.0f} images")
    lines += [
        "load it in timm:",
        "  import timm",
        f'  model = timm.create_model("local-dir:{folder.resolve() / EXPORT}", pretrained=True)',
    ]
    return "\n".join(lines)
