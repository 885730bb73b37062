"""`vitwarm.warm_up`: the warm-up stage of a recipe on a model that somebody already has."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitwarm.amounts import Amount
from vitwarm.checks import KEYS, nearest, rule_spec
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.exports.arguments import structure_of
from vitwarm.exports.gpt2 import as_trunk, is_gpt2_model, require_one_rate
from vitwarm.exports.layout import CHECKPOINTS
from vitwarm.files import expanded
from vitwarm.keys import require_seed
from vitwarm.procedural import Rule
from vitwarm.recipe import build_recipe, recipe_hash
from vitwarm.run_folder import LOG, check_folder, newest_checkpoint, open_folder, record_data, warn
from vitwarm.selection import Selection, words_of
from vitwarm.signals import stop_signals
from vitwarm.stages import RuleStage, make_warmup
from vitwarm.stages.warmup import sequence_length
from vitwarm.training.checkpoint import Checkpoints
from vitwarm.training.loop import Context, check_compile, device_batch_size, train_stage
from vitwarm.training.optimizers import check_optimizer
from vitwarm.training.processes import Processes, plain_torch
from vitwarm.training.tracking import Tracker, evaluations
from vitwarm.transfer import Part, TransferReport, merge
from vitwarm.trunk import Decoder, require_values, unwrap
from vitwarm.trunk.families import copy_of
from vitwarm.trunk.history import Change, note

PUBLISHED_STEPS = 15_000  # arXiv 2511.13945, for ImageNet-1k

_SETTINGS = {key.partition(".")[2] for key in KEYS if key.startswith("warmup.")} - {"rule", "budget"}

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
        chance: accuracy there of the best constant answer, which knows how often each symbol occurs and no more; of a
            curriculum, at the level of that evaluation.
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
    rule: str | Mapping[str, Any] | Rule = "dyck",
    *,
    steps: int | None = None,
    budget: str | None = None,
    seed: int = 0,
    groups: str | Sequence[str] = ("trunk",),
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
        rule: name of a rule, {"name": NAME, PARAMETER: value}, or a `Rule`.
        steps: optimiser steps; 15,000 if neither these nor a budget is given, as the paper trains for ImageNet-1k.
        budget: the length in other units: "3.84M" sequences, "20M tokens".
        seed: root seed of the sequences and of what the stage adds (symbol tables, head).
        groups: what is copied into the model: `trunk`, or a part such as `attention` (docs/modular.md).
        dir: folder of checkpoints and log, from which the same call resumes, whatever weights the model has by then.
            None keeps nothing.
        progress: show a progress bar.
        on_log: called with each log entry.
        on_eval: called with each evaluation.
        settings: further keys of the section `warmup` of a recipe: `global_batch`, `lr`, `lr_warmup`, `mask_prob`,
            `precision`, `compile`, `eval_every`, ... (`vitwarm train --help`). The defaults are the paper's; where
            its 1,000 steps of `lr_warmup` would be more than half of all, they shrink as the stage does.

    Returns:
        What was learnt and what was copied.

    Raises:
        UserError: a model, rule or setting that cannot be; the model is then unchanged.
        Interrupted: a signal, where `dir` holds a checkpoint; the same call resumes.
    """
    for name, listener in (("on_log", on_log), ("on_eval", on_eval)):
        if not (listener is None or callable(listener)):
            raise UserError(f"{name} is {listener!r}; give a function of one log entry, or leave it out")
    if dir is not None and not (isinstance(dir, str | Path) and str(dir)):
        raise UserError(f"dir is {dir!r}; give the path of a folder, or leave it out")
    if (unknown := next((name for name in settings if name not in _SETTINGS), None)) is not None:
        close = nearest(unknown, [*_SETTINGS, *signature(warm_up).parameters])
        raise UserError(
            f"no setting {unknown}{close or '; they are the keys warmup.* of a recipe: vitwarm train --help'}"
        )
    seed = require_seed(seed)
    length, words, target = _length(steps, budget), words_of(groups), unwrap(model)
    Selection.parse(words)
    with contextlib.ExitStack() as held:
        trunk = require_values(held.enter_context(as_trunk(target)))
        if is_gpt2_model(target) and settings.get("dropout") is None:
            require_one_rate(target)
        tree: dict[str, Any] = {
            "name": "warm_up",
            "seed": seed,
            "model": _described(target, trunk),
            "warmup": {
                "rule": rule_spec(rule),
                "budget": length,
                **(_as_built(trunk) if isinstance(trunk, Decoder) else {}),
                **settings,
            },
            "transfer": {"groups": words},
            "run": {"dir": None if dir is None else str(dir)},
        }
        config = build_recipe(tree)
        check_optimizer("warmup", config.warmup)
        if "lr_warmup" not in settings:
            _fit_schedule(config, trunk)
        device = next(target.parameters()).device
        held.enter_context(plain_torch(device))
        stage = make_warmup(config, None, trunk)
        merge(copy_of(trunk), [Part(words, stage.trained_tensors(stage.model), "the warm-up")])  # before hours
        outcome, curve, trained = _train(stage, config, device, progress, on_log, on_eval, held)
        report = merge(trunk, [Part(words, stage.trained_tensors(trained), "the warm-up")])
    of = "" if words == ["trunk"] else f" ({' '.join(words)})"
    runs = config.warmup.middle_runs
    repeated = f", the middle block run {runs} times" if runs > 1 else ""
    text = f"warm-up of {outcome['steps']} steps on {stage.rule.spec()['name']}{of}{repeated}"
    note(target, Change(text, seed, tuple(report.copied)))
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
        chance=metrics["chance"] if "chance" in metrics else stage.chance(),  # a folder of 0.1 lacks it
        curve=curve,
        transfer=report.of_model(target),
    )


def _as_built(decoder: Decoder) -> dict[str, Any]:
    """What a warm-up of a decoder takes from the decoder itself, where the caller says nothing else."""
    return {"objective": "next_token", "middle_runs": decoder.middle_runs}


def _length(steps: int | None, budget: str | None) -> str:
    """The budget of a recipe.

    Raises:
        UserError: both are given, or one that is no length.
    """
    if budget is None:
        steps = PUBLISHED_STEPS if steps is None else steps
        if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
            raise UserError(f"steps is {steps!r}; give a whole number of optimiser steps, 1 or more")
        return f"{steps} steps"
    if steps is not None:
        raise UserError(f"give steps or budget, not both: steps is {steps!r}, budget {budget!r}")
    if not isinstance(budget, str) or Amount.parse(budget, "budget").value == 0:
        raise UserError(f"budget is {budget!r}; give a length above 0, such as '3.84M' (sequences) or '20M tokens'")
    return budget


def _fit_schedule(config: Config, trunk: nn.Module) -> None:
    """Where the learning rate's rise and fall would take more than half of the steps, give the rise its usual share."""
    optim = config.warmup
    sizes = {"global_batch": optim.global_batch, "tokens_per_sample": sequence_length(config, trunk)}
    steps = Amount.parse(optim.budget, "budget").steps(**sizes)
    rise, fall = (
        Amount.parse(length).steps(steps_of_whole=steps, **sizes) for length in (optim.lr_warmup, optim.cooldown)
    )
    if 2 * (rise + (fall if optim.schedule == "wsd" else 0)) > steps:
        optim.lr_warmup = f"{steps * rise // PUBLISHED_STEPS} steps"


def _described(model: nn.Module, trunk: nn.Module) -> dict[str, Any]:
    """A model as the section `model` of a recipe describes it."""
    if not isinstance(trunk, Decoder):
        return {"name": getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__}
    size = {"size": str(trunk.size), "positions": trunk.n_positions}
    return {"decoder": {**size, "dropout": trunk.dropout, "tied": trunk.tied}}


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


def _open(folder: Path, config: Config, held: contextlib.ExitStack, model: nn.Module) -> None:
    check_folder(folder, config)
    open_folder(folder, config, held, 0)
    structure = {name: str(value) for name, value in structure_of(model).items()}
    try:
        record_data(folder, structure, {})
    except UserError as error:
        raise UserError(f"{folder} holds the warm-up of another model; choose another dir") from error


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
    processes.all_do(lambda: check_compile(stage.optim, device))
    folder = expanded(config.run.dir) if config.run.dir else None
    resume, stop, curve = None, [], []
    if folder is not None:
        stop = held.enter_context(stop_signals())
        processes.main_does(lambda: _open(folder, config, held, stage.model))
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
