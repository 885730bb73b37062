"""`vitwarm.warm_up`: the warm-up stage of a recipe on a model that somebody already has."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.exports.gpt2 import check_gpt2, from_gpt2, gpt2_facts, is_gpt2_model, to_gpt2
from vitwarm.exports.write import WARMED
from vitwarm.recipe import build_recipe, recipe_hash
from vitwarm.run_folder import CHECKPOINTS, LOG, check_folder, newest_checkpoint, open_folder, warn
from vitwarm.signals import stop_signals
from vitwarm.stages import RuleStage, make_warmup
from vitwarm.training.checkpoint import Checkpoints
from vitwarm.training.loop import Context, device_batch_size, train_stage
from vitwarm.training.processes import Processes
from vitwarm.training.tracking import Tracker, evaluations
from vitwarm.transfer import Part, TransferReport, merge
from vitwarm.trunk import Decoder, build_decoder, require_data, require_values, unwrap

PUBLISHED_STEPS = 15_000  # arXiv 2511.13945, for ImageNet-1k

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class WarmUpReport:
    """What a warm-up did to a model.

    Attributes:
        rule: the rule with all its parameters.
        steps, sequences, tokens: trained on; of the tokens those in the trunk count, prefix tokens included.
        seconds, flops: of the training; FLOPs of matrix products.
        accuracy: share of right predictions on the validation sequences, behind the last step.
        loss: mean cross-entropy there, in nats.
        chance: accuracy there of the best constant answer, which knows how often each symbol occurs and no more.
        curve: each evaluation: `step`, `loss`, `accuracy`, ...
        transfer: what was copied into the model and what stays as it was.
    """

    rule: dict[str, Any]
    steps: int
    sequences: int
    tokens: int
    seconds: float
    flops: float
    accuracy: float
    loss: float
    chance: float
    curve: list[dict[str, Any]]
    transfer: TransferReport

    def __str__(self) -> str:
        return (
            f"{self.rule['name']}: {self.steps:,} steps, {self.sequences:,} sequences, {self.seconds:.0f} s; "
            f"{100 * self.accuracy:.1f} % of the predictions right, {100 * self.chance:.1f} % by chance\n"
            f"{self.transfer}"
        )


def warm_up(
    model: nn.Module,
    rule: str | Mapping[str, Any] = "dyck",
    *,
    steps: int | None = None,
    budget: str | None = None,
    seed: int = 0,
    groups: Sequence[str] = ("trunk",),
    dir: str | Path | None = None,
    progress: bool = True,
    on_log: Listener | None = None,
    on_eval: Listener | None = None,
    **settings: Any,
) -> WarmUpReport:
    """Warm up the trunk of a model on sequences of a rule, in place and on the device where the model is.

    This is the stage `warmup` of a recipe (docs/warmup.md), from the weights that the model has; with those that a
    recipe starts from, the result is that of the recipe, bit for bit. Embedding, positions, class token and head
    stay as they are. The model changes when the warm-up is over, or not at all.

        model = timm.create_model("vit_small_patch16_dinov3", num_classes=10)
        print(vitwarm.warm_up(model, rule="dyck", steps=15_000))

    Args:
        model: a timm model, a `vitwarm.trunk.Decoder` or a `GPT2LMHeadModel` of transformers; DDP, `torch.compile`
            and moving averages around it are looked through. In a process group every process calls this alike.
        rule: name of a rule, or {"name": NAME, PARAMETER: value}.
        steps: optimiser steps; 15,000 if neither these nor a budget is given, as the paper trains for ImageNet-1k.
        budget: the length in other units: "3.84M" sequences, "20M tokens".
        seed: root seed of the sequences and of what the stage adds (symbol tables, head).
        groups: what is copied into the model: `trunk`, or a part such as `attention` (docs/modular.md).
        dir: folder of checkpoints and log, from which the same call resumes. None keeps nothing.
        progress: show a progress bar.
        on_log: called with each log entry.
        on_eval: called with each evaluation.
        settings: further keys of the section `warmup` of a recipe: `global_batch`, `lr`, `lr_warmup`, `mask_prob`,
            `precision`, `compile`, `eval_every`, ... (`vitwarm train --help`). The defaults are the paper's.

    Returns:
        What was learnt and what was copied.

    Raises:
        UserError: a model, rule or setting that cannot be; the model is then unchanged.
        Interrupted: a signal, where `dir` holds a checkpoint; the same call resumes.
    """
    if steps is not None and budget is not None:
        raise UserError("give steps or budget, not both")
    target, length = _Target.of(model), f"{steps if steps is not None else PUBLISHED_STEPS} steps"
    tree: dict[str, Any] = {
        "name": "warm_up",
        "seed": seed,
        "model": target.described,
        "warmup": {
            "rule": {"name": rule} if isinstance(rule, str) else dict(rule),
            "budget": budget or length,
            **({"objective": "next_token"} if isinstance(target.start, Decoder) else {}),
            **settings,
        },
        "transfer": {"groups": list(groups)},
        "run": {"dir": None if dir is None else str(dir)},
    }
    config = build_recipe(tree)
    device = next(target.model.parameters()).device
    with contextlib.ExitStack() as held:
        held.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stage = make_warmup(config, None, target.start)
        outcome, curve, trained = _train(stage, config, device, progress, on_log, on_eval, held)
    report = target.take(stage.trained_tensors(trained), groups)
    text = f"warm-up of {outcome['steps']} steps on {stage.rule.spec()['name']}"
    setattr(
        target.model, WARMED, {"start": text, "seed": seed, "warmed_keys": report.copied, "fresh_keys": report.fresh}
    )
    metrics = outcome["metrics"]
    return WarmUpReport(
        rule=stage.rule.spec(),
        steps=outcome["steps"],
        sequences=int(outcome["samples"]),
        tokens=int(outcome["tokens"]),
        seconds=outcome["seconds"],
        flops=outcome["flops"],
        accuracy=metrics["accuracy"],
        loss=metrics["loss"],
        chance=stage.chance(),
        curve=curve,
        transfer=report,
    )


@dataclass(frozen=True)
class _Target:
    """A model that somebody gave, and how a recipe describes it.

    Attributes:
        model: the model itself, without what was around it.
        start: timm model or decoder with its weights; for our stages the same model.
        described: section `model` of a recipe.
    """

    model: nn.Module
    start: nn.Module
    described: dict[str, Any]

    @classmethod
    def of(cls, given: nn.Module) -> "_Target":
        """
        Raises:
            UserError: no model that can be warmed up; the message says why.
        """
        model = unwrap(given)
        start = require_values(_decoder_of_gpt2(model) if is_gpt2_model(model) else model)
        if not isinstance(start, Decoder):
            name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
            return cls(model, start, {"name": name})
        size = {"size": str(start.size), "positions": start.n_positions}
        return cls(model, start, {"decoder": {**size, "dropout": start.dropout, "tied": start.tied}})

    def take(self, tensors: dict[str, Tensor], groups: Sequence[str]) -> TransferReport:
        """Copy the groups of a trained trunk into the model.

        Raises:
            UserError: they do not fit.
        """
        report = merge(self.start, [Part(list(groups), tensors, "the warm-up")])
        if self.start is not self.model:
            own, names = self.model.state_dict(), to_gpt2(self.start.state_dict())
            with torch.no_grad():
                for name, tensor in names.items():
                    own[name].copy_(tensor)
        return report


def _decoder_of_gpt2(model: Any) -> Decoder:
    """The weights of a `GPT2LMHeadModel` as our decoder, a copy on the same device."""
    require_data(model)
    config = check_gpt2(model.config.to_dict(), "the model's configuration")
    facts = gpt2_facts(config)
    tensors = from_gpt2(model.state_dict())
    tied = bool(config.get("tie_word_embeddings", True))
    if tied:
        tensors.pop("head.weight", None)
    size = f"{facts['depth']}_{facts['heads']}_{facts['width']}"
    decoder = build_decoder(
        size, config["vocab_size"], config["n_positions"], "warm_up", seed=0, dropout=config["resid_pdrop"], tied=tied
    )
    decoder.load_state_dict(tensors)
    return decoder.to(next(model.parameters()).device)


class _Here:
    """In place of an Accelerator: the process group that is there already, or none, and the model's own device."""

    def __init__(self, processes: Processes):
        self.processes = processes

    def prepare_model(self, model: nn.Module) -> nn.Module:
        if self.processes.world == 1:
            return model
        device = self.processes.device
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def _open(folder: Path, config: Config, held: contextlib.ExitStack) -> None:
    check_folder(folder, config)
    open_folder(folder, config, held, 0)


def _train(
    stage: RuleStage[Any],
    config: Config,
    device: torch.device,
    progress: bool,
    on_log: Listener | None,
    on_eval: Listener | None,
    held: contextlib.ExitStack,
) -> tuple[dict[str, Any], list[dict[str, Any]], nn.Module]:
    """Train the stage, with a folder or without; returns the loop's outcome, the evaluations and the trained model."""
    joined = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
    processes = Processes(rank, world, device)
    device_batch_size(stage.optim.global_batch, world, None)  # refuses a batch that the processes cannot share
    folder = Path(config.run.dir).expanduser() if config.run.dir else None
    resume, stop, curve = None, [], []
    if folder is not None:
        stop = held.enter_context(stop_signals())
        processes.main_does(lambda: _open(folder, config, held))
        resume = processes.main_does(lambda: newest_checkpoint(folder, config, warn))

    def listen(entry: dict[str, Any]) -> None:
        if entry["event"] == "eval":
            curve.append(entry)
        listener = {"train": on_log, "eval": on_eval}.get(entry["event"])
        if listener is not None:
            listener(dict(entry))

    if folder is not None and resume:
        curve += evaluations(folder / LOG, resume[0].log_bytes)
    tracker = Tracker(
        folder,
        log_bytes=resume[0].log_bytes if resume else 0,
        active=processes.is_main,
        listeners=[listen],
        lines=False,
        bar=progress,
    )
    held.callback(tracker.close)
    context = Context(
        accelerator=_Here(processes),
        processes=processes,
        run=config.run,
        seed=config.seed,
        recipe_hash=recipe_hash(config),
        tracker=tracker,
        checkpoints=Checkpoints(folder / CHECKPOINTS, config.run.keep_last) if folder else None,
        stop=stop,
    )
    trained = train_stage(stage, context, resume)
    return context.results[stage.name], curve, trained
