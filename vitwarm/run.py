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

from vitwarm.checks import rule_of, starts_from_given, warms_up
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.export import export_gpt2, export_model, push_to_hub
from vitwarm.export.layout import CONFIG, EXPORT, WARMUP
from vitwarm.files import write_text
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
)
from vitwarm.stages import AlgorithmicStage, CorpusStage, ImagesStage, RuleStage, make_text, make_warmup
from vitwarm.stages.images import default_workers
from vitwarm.training.checkpoint import Checkpoints, State
from vitwarm.training.loop import Context, device_batch_size, train_stage
from vitwarm.training.param_groups import freeze
from vitwarm.training.processes import Processes, start_accelerator
from vitwarm.training.sharding import check_shardable, fsdp_requested
from vitwarm.training.signals import stop_signals
from vitwarm.training.tracking import Tracker, check_trackers
from vitwarm.transfer import Part, TransferReport, canonical, mean_embeddings, merge, read_source
from vitwarm.transfer.perturb import describe
from vitwarm.transfer.warm_start import fitted
from vitwarm.trunk import Decoder, build_model, configured_decoder, initialise

_DISTRIBUTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)

MainStage = ImagesStage | AlgorithmicStage | CorpusStage


@dataclass
class Parts:
    """What a run is made of, built before anything is written.

    Attributes:
        main: the stage that the run is for; None when it is a warm-up alone.
        fresh: timm model or decoder that the main stage starts from; holds the weights that were given already.
        warmup: None when the budget is nothing, or given weights take its place.
        given: what `init_from` or `transfer.sources` brought in; None without them.
    """

    main: MainStage | None
    fresh: nn.Module
    warmup: RuleStage | None
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
    processes.main_does(lambda: open_folder(folder, config, held, _steady_steps(parts.main)))
    if subset := getattr(parts.main, "subset", None):
        processes.main_does(lambda: record_subset(folder, subset.text))
    resume = processes.main_does(lambda: newest_checkpoint(folder, config, warn))
    if resume is None and parts.given is None and starts_from_given(config):  # all checkpoints turned out to be damaged
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
    elif facts := getattr(parts.main, "facts", None):
        entry = {"event": "data", "stage": parts.main.name, **facts}
        processes.main_does(lambda: tracker.record(entry, _data_text(facts)))
    context = Context(
        accelerator=accelerator,
        processes=processes,
        folder=folder,
        run=config.run,
        seed=config.seed,
        recipe_hash=recipe_hash(config),
        tracker=tracker,
        checkpoints=Checkpoints(folder / CHECKPOINTS, config.run.keep_last, config.run.keep_at),
        stop=stop,
        run_step=state.run_step - state.step if state else 0,
        results=state.results if state else {},
        sharded=fsdp_requested(),
    )
    start = _first_weights(config, context, parts, resume)
    model, main = parts.fresh, parts.main
    if main is not None:
        main.set_model(parts.fresh, config.model.grad_checkpointing)
        trained = train_stage(main, context, resume if state and state.stage == main.name else None)
        model = trained.vit if isinstance(main, ImagesStage) else trained
    result = result_of(config, context.results, start, main, processes)
    processes.main_does(lambda: finish(config, folder, main, model, result, start))
    processes.main_does(lambda: _push(config, folder))
    return result


def _steady_steps(main: MainStage | None) -> int:
    """How many steps of the main stage come before its learning rate falls; 0 unless its schedule is wsd."""
    return main.steps - main.schedule_lengths[1] if main and main.optim.schedule == "wsd" else 0


def _data_text(facts: dict[str, Any]) -> str:
    train, epochs = facts["train"], facts["epochs"]
    repeated = f": each token is repeated up to {math.ceil(epochs) - 1} times" if epochs > 1 else ""
    return (
        f"text: {train['documents']:,} documents, {train['tokens']:,} tokens in {facts['rows']:,} rows, "
        f"{epochs:.3g} epochs{repeated}"
    )


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
    main = _main_stage(config, world)
    fresh = _fresh_model(config, main)
    if main is not None:
        main.set_model(fresh, config.model.grad_checkpointing)
        freeze(fresh, config.train)
    warming = warms_up(config) and not starts_from_given(config)
    warmup = make_warmup(config, main.samples if main else None) if warming else None
    if main is None and warmup is None:
        raise UserError(
            "the recipe has nothing to do: no main stage (images.train, algorithmic.task, text.train), no warm-up"
        )
    for stage in (main, warmup):
        if stage is not None:
            stage.check_device_batch(device_batch_size(stage.optim.global_batch, world, config.run.device_batch))
    given = None
    if starts_from_given(config) and starts:
        given = hand_over(config, main, fresh, _given_parts(config, fresh))
    return Parts(main, fresh, warmup, given)


def _main_stage(config: Config, world: int) -> MainStage | None:
    if config.algorithmic.task:
        return AlgorithmicStage(config)
    workers = default_workers(world) if config.run.workers is None else config.run.workers
    if config.text.train:
        return make_text(config, workers)
    if config.images.train and config.images.epochs > 0:
        return ImagesStage(config, workers)
    return None


def _fresh_model(config: Config, main: MainStage | None) -> nn.Module:
    """What the main stage trains; after a warm-up alone, a model that can take all of the warm-up's."""
    decoder = config.model.decoder
    if not decoder.size:
        model = build_model(config.model, "images", seed=config.seed)
    else:
        vocab_size = main.vocab_size if main else rule_of(config.warmup.rule).vocab.size
        positions = decoder.positions or (main.n_positions if main else config.warmup.length)
        if main is None and config.warmup.objective == "next_token":
            positions = config.warmup.length or positions  # as many as the warm-up trains
        if main and positions < main.n_positions:
            raise UserError(f"model.decoder.positions={positions} is too short for rows of {main.n_positions} tokens")
        name = main.name if main else "text"
        more = getattr(main, "decoder_args", {})
        model = configured_decoder(config.model, vocab_size, positions, name, seed=config.seed, **more)
    return initialise(model, config.model.init, seed=config.seed)


def hand_over(config: Config, main: MainStage | None, fresh: nn.Module, parts: list[Part]) -> TransferReport:
    """Bring what the sources give, and what the main stage takes of embeddings, into the fresh model.

    Raises:
        UserError: they do not fit.
    """
    if main is None and isinstance(fresh, Decoder):  # a warm-up alone makes a language model of its rule
        whole = ["trunk", "embedding", "head"]
        parts = [replace(p, groups=whole) if "token_embed.weight" in p.tensors else p for p in parts]
    report = merge(fresh, parts, config.transfer.controls, seed=config.seed)
    alone = len(parts) == 1 and not config.transfer.sources  # which give their groups, and nothing else
    if isinstance(main, AlgorithmicStage) and config.algorithmic.embeddings == "mean" and alone:
        mean_embeddings(fresh, parts[0].tensors, report)
    return report


def warmed_part(config: Config, tensors: dict[str, torch.Tensor]) -> Part:
    """What a warm-up hands on, as the recipe's groups take it."""
    return Part(config.transfer.groups, tensors, "the warm-up")


def _first_weights(config: Config, context: Context, parts: Parts, resume: tuple[State, Path] | None) -> dict[str, Any]:
    """Bring the fresh model to where the main stage starts; what happened, for the export's provenance."""
    folder = context.folder / WARMUP
    fresh = start_of(config, "fresh weights", None)
    if resume and resume[0].stage != WARMUP:
        # The weights come from the checkpoint; only the record of how the run started is still needed.
        record = folder / "vitwarm.json"
        return json.loads(record.read_text()) if record.is_file() else fresh
    if parts.given is not None:
        report, start = parts.given, given_text(config)
    elif parts.warmup is not None:
        trained = train_stage(parts.warmup, context, resume)
        tensors = parts.warmup.hand_on(trained)
        report = hand_over(config, parts.main, parts.fresh, [warmed_part(config, tensors)])
        start = warmup_text(config, parts.warmup)
    else:
        return fresh
    record = start_of(config, start, report)

    def write() -> None:
        context.tracker.record({"event": "transfer", **report.to_dict()}, str(report))
        _export(parts.main, parts.fresh, folder, config, _provenance(config, record, {}))

    context.processes.main_does(write)
    return record


def _given_parts(config: Config, fresh: nn.Module) -> list[Part]:
    """The sources of `init_from` or `transfer.sources`, which must compute what the fresh model computes."""
    several = [(groups.split(), source) for groups, source in config.transfer.sources.items()]
    parts = []
    for groups, source in several or [(config.transfer.groups, config.init_from)]:
        tensors, found = _tensors_of(config, source)
        tensors = fitted(fresh, tensors, found, config.transfer.fit, groups, seed=config.seed)
        parts.append(Part(groups, tensors, found))
    return parts


def _tensors_of(config: Config, source: str) -> tuple[dict[str, torch.Tensor], str]:
    if not source.startswith("timm:"):
        return read_source(source)
    named = replace(config.model, name=source.removeprefix("timm:"))
    if config.transfer.fit != "exact":
        named = replace(named, args={})  # the source has a shape of its own
    tensors = build_model(named, "images", seed=config.seed, pretrained=True).state_dict()
    names = canonical(tensors)
    return {names[n]: t for n, t in tensors.items()}, source


def given_text(config: Config) -> str:
    """How a run started from weights that were there already."""
    several = ", ".join(f"{groups} of {source}" for groups, source in config.transfer.sources.items())
    return f"weights of {config.init_from}" if config.init_from else several or "fresh weights"


def warmup_text(config: Config, warmup: RuleStage) -> str:
    """How a run started from its warm-up."""
    return f"warm-up of {warmup.steps} steps on {config.warmup.rule['name']}"


def start_of(config: Config, text: str, report: TransferReport | None) -> dict[str, Any]:
    """How the weights of the main stage came about, for result and provenance."""
    notes = [f"attention: {config.model.init}"] if config.model.init != "default" else []
    if report and config.transfer.controls:
        notes.append(f"controls: {describe(config.transfer.controls)}")
    return {
        "start": f"{text} ({'; '.join(notes)})" if notes else text,
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


def _export(main: Any, model: nn.Module, folder: Path, config: Config, provenance: dict[str, Any]) -> None:
    if isinstance(model, Decoder):
        export_gpt2(model, folder, tokenizer=getattr(main, "tokenizer", None), provenance=provenance)
    else:
        export_model(model, folder, config, provenance)


def result_of(
    config: Config,
    stages: dict[str, Any],
    start: dict[str, Any],
    main: MainStage | None,
    processes: Processes,
) -> dict[str, Any]:
    """What stands in result.json; `stages` maps each to its outcome."""
    result = {
        "recipe": config.name,
        "recipe_hash": recipe_hash(config),
        "seed": config.seed,
        "start": start["start"],
        "metrics": stages[main.name if main else WARMUP]["metrics"],
        "stages": stages,
        "processes": processes.world,
        "device": device_name(processes.device),
        "versions": versions(),
    }
    if subset := getattr(main, "subset", None):
        result["subset"] = {"images": len(subset.names), "sha256": subset.sha256}
    if facts := getattr(main, "facts", None):
        result["data"] = facts
    if main and WARMUP in stages:
        result["warmup_share_of_samples"] = stages[WARMUP]["samples"] / stages[main.name]["samples"]
    return result


def finish(
    config: Config, folder: Path, main: Any, model: nn.Module, result: dict[str, Any], start: dict[str, Any]
) -> None:
    """Export the model, and write the result, which makes the run a finished one."""
    _export(main, model.cpu(), folder / EXPORT, config, _provenance(config, start, result["metrics"]))
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")


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
        lines.append(f"  the warm-up took {100 * share:.3g} % of the samples that the main stage took")
    if "top1" in result["metrics"] and not math.isnan(result["metrics"]["top1"]):
        metrics = result["metrics"]
        lines.append(f"top-1 accuracy {100 * metrics['top1']:.2f} % on {metrics['count']:.0f} images")
    export = folder.resolve() / EXPORT
    described = json.loads((export / CONFIG).read_text()) if (export / CONFIG).is_file() else {}
    if "architectures" in described:
        architecture = described["architectures"][0]
        load = "import transformers", f'model = transformers.{architecture}.from_pretrained("{export}")'
    else:
        load = "import timm", f'model = timm.create_model("local-dir:{export}", pretrained=True)'
    lines += [f"load it in {load[0].split()[1]}:", *(f"  {line}" for line in load)]
    return "\n".join(lines)
