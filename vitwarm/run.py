"""An experiment becomes a run folder: start order, stages in order, final export."""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from vitwarm.assembly import Experiment, assemble, start_record
from vitwarm.banner import Banner
from vitwarm.checks import starts_from_given
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.exports import check_push, push_to_hub, write_model
from vitwarm.exports.layout import CHECKPOINTS, EXPORT, PROVENANCE, WARMUP
from vitwarm.exports.opening import LINEAGE
from vitwarm.files import write_text
from vitwarm.reading import parse_yaml, read_json
from vitwarm.recipe import build_recipe, freeze, recipe_hash
from vitwarm.result import provenance, result_of
from vitwarm.run_folder import (
    LOG,
    RESULT,
    check_folder,
    has_checkpoint,
    is_finished,
    newest_checkpoint,
    open_folder,
    read_result,
    record_data,
    run_folder,
    warn,
)
from vitwarm.signals import stop_signals
from vitwarm.stages.ensemble import EnsembleStage, seed_log
from vitwarm.training.checkpoint import Checkpoints, State
from vitwarm.training.logins import check_wandb_login
from vitwarm.training.loop import Context, check_compile, device_batch_size, train_stage
from vitwarm.training.processes import Processes, plain_torch, start_accelerator
from vitwarm.training.protocol import Stage
from vitwarm.training.sharding import check_launcher, check_shardable, fsdp_requested
from vitwarm.training.tracking import Tracker, check_trackers
from vitwarm.transfer import TransferReport

_SMOKE_RUN: dict[str, Any] = {"log_every": 5, "checkpoint_every": 10, "keep_at": []}
_DISTRIBUTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


def train(recipe: str | Path, **overrides: Any) -> dict[str, Any]:
    """Carry out a recipe, or resume it, as `vitwarm train` does.

        vitwarm.train("digits_proc", seed=1, images={"epochs": 3})
        vitwarm.train("digits_proc", **{"images.epochs": 3, "run.dir": "mine"})

    Args:
        recipe: name of a shipped recipe, or a path.
        overrides: keys and sections of the recipe, by plain values.

    Returns:
        What stands in the run's result.json.

    Raises:
        UserError, Interrupted: see `run`.
    """
    return run(build_recipe(overrides, recipe))


def run(config: Config, stop: list[int] | None = None) -> dict[str, Any]:
    """Carry out a recipe, or resume it, and return what stands in its result.json.

    Start order, the first that applies: the run folder's newest whole checkpoint; `resume_from`; `init_from`; the
    warm-up; fresh weights. A finished run is left as it is.

    Args:
        config: the recipe.
        stop: list that a signal handler fills, as `stop_signals` gives it; None listens for signals itself.

    Raises:
        UserError: something of the recipe, the data, the folder or the disk that the user can fix.
        Interrupted: a signal; the same command resumes.
    """
    with contextlib.ExitStack() as held:
        stop = held.enter_context(stop_signals()) if stop is None else stop
        return _carry_out([config], config, stop, held)[0]


def run_ensemble(config: Config, seeds: Sequence[int], stop: list[int] | None = None) -> list[dict[str, Any]]:
    """Carry out a recipe of token stages under several seeds as one (`stages.ensemble` says how).

    Each seed gets the run folder that it would have alone: recipe, evaluations, exports, result. Checkpoints and the
    log are those of all together, in `DIR/RECIPE-ensembleSEEDS`, from which the same command resumes. `{seed}` in
    `init_from` and `transfer.sources` stands for the seed. Seconds and FLOPs of a seed are its share.

    Args:
        config: the recipe; `run.dir` is the folder that holds all these folders, `runs` by default.
        seeds: one or more, each once.
        stop: see `run`.

    Returns:
        What stands in each seed's result.json.

    Raises:
        UserError, Interrupted: as `run`; a recipe that cannot be trained as one.
    """
    members = members_of(config, seeds)
    folder = Path(config.run.dir or "runs") / f"{config.name}-ensemble{','.join(map(str, seeds))}"
    together = replace(members[0], run=replace(config.run, dir=str(folder)))
    with contextlib.ExitStack() as held:
        stop = held.enter_context(stop_signals()) if stop is None else stop
        return _carry_out(members, together, stop, held)


def members_of(config: Config, seeds: Sequence[int]) -> list[Config]:
    """The recipe of each seed of an ensemble, with the run folder that it has.

    Raises:
        UserError: a key that all of them cannot share.
    """
    for name, value in (("resume_from", config.resume_from), ("run.push", config.run.push)):
        if value:
            raise UserError(f"an ensemble of seeds works without {name}; leave it out, or run the seeds alone")
    return [_of_seed(config, seed) for seed in seeds]


def _of_seed(config: Config, seed: int) -> Config:
    def named(source: str) -> str:
        return source.replace("{seed}", str(seed))

    return replace(
        config,
        seed=seed,
        run=replace(config.run, dir=str(Path(config.run.dir or "runs") / f"{config.name}-seed{seed}")),
        init_from=config.init_from and named(config.init_from),
        transfer=replace(config.transfer, sources={k: named(v) for k, v in config.transfer.sources.items()}),
    )


@dataclass(frozen=True)
class _Member:
    """One seed of a run and its folder; a plain run has one member, an ensemble several."""

    experiment: Experiment
    folder: Path


@dataclass(frozen=True)
class _Joint:
    """The members of a run, and what the loop trains of them: their stages, or ensembles of these.

    Attributes:
        members: in the order of the seeds.
        warmup, main: None where the members have none.
    """

    members: list[_Member]
    warmup: Stage[Any] | None
    main: Stage[Any] | None

    def train(self, stage: Stage[Any], context: Context, resume: tuple[State, Path] | None) -> list[nn.Module]:
        """Train a stage; returns the model of each member."""
        if resume and resume[0].stage != stage.name:
            resume = None
        return stage.members(train_stage(stage, context, resume))

    def outcomes(self, results: dict[str, Any]) -> list[dict[str, Any]]:
        """Stage -> outcome, of each member."""
        outcomes: list[dict[str, Any]] = [{} for _ in self.members]
        for stage in (self.warmup, self.main):
            if stage is not None and stage.name in results:
                for outcome, own in zip(outcomes, stage.outcomes(results[stage.name]), strict=True):
                    outcome[stage.name] = own
        return outcomes


def _carry_out(
    configs: list[Config], together: Config, stop: list[int], held: contextlib.ExitStack
) -> list[dict[str, Any]]:
    """Train the members of a run as one, and finish each in its own folder.

    Args:
        configs: the recipe of each member.
        together: the recipe whose folder has log and checkpoints: that of the one member, or of the ensemble.
        stop: signals that came so far.
        held: what is to be closed when the run ends.
    """
    check_launcher()
    accelerator = _accelerator(together, held)
    processes = Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)
    held.enter_context(plain_torch(accelerator.device))
    folder, folders = run_folder(together), [run_folder(config) for config in configs]
    owners = {folder: together} | dict(zip(folders, configs, strict=True))

    def check_folders() -> None:
        for own, config in owners.items():
            check_folder(own, config)

    processes.check_stop(stop)
    processes.main_does(check_folders)
    if is_finished(folder, together):
        if gone := [own for own in folders if not (own / RESULT).exists()]:
            raise UserError(f"{folder} holds a finished run, but {gone[0]} is gone; remove {folder} to start over")
        processes.main_does(lambda: _push(together, folder))
        found: list[dict[str, Any]] = processes.main_does(lambda: [read_result(own) for own in folders])
        return found
    resumes = has_checkpoint(folder, together) or bool(together.resume_from)  # which `check_folders` found whole
    joint = processes.all_do(lambda: _build(configs, folders, folder, processes.world, resumes))

    def open_folders() -> None:
        for own, config in owners.items():
            open_folder(own, config, held, _steady_steps(joint.main))
        for member in joint.members:
            main = member.experiment.main
            if main is not None:
                record_data(member.folder, main.data_read(), main.fixed_files())

    def check_logins() -> None:
        if together.run.push and not together.run.smoke:
            check_push(together.run.push)
        check_wandb_login(together.run.wandb)

    def check_stages() -> None:
        for stage in filter(None, (joint.warmup, joint.main)):
            check_compile(stage.optim, processes.device)
            stage.rehearse(processes.device)

    processes.all_do(check_stages)
    processes.main_does(check_logins)
    processes.check_stop(stop)
    processes.main_does(open_folders)
    resume = processes.main_does(lambda: newest_checkpoint(folder, together, warn))
    if resume is None and starts_from_given(together) and not joint.members[0].experiment.given:
        joint = processes.all_do(lambda: _build(configs, folders, folder, processes.world, False))  # all were damaged
    context = _context(together, folder, accelerator, processes, resume[0] if resume else None, stop, held)
    first = joint.members[0].experiment.main
    processes.main_does(lambda: _announce(joint, configs, folder, processes, context, resume))
    processes.check_stop(stop)
    starts = _first_weights(joint, context, resume)
    models = [member.experiment.model for member in joint.members]
    processes.check_stop(stop)
    if joint.main is not None and first is not None:
        models = [first.exported(trained) for trained in joint.train(joint.main, context, resume)]
    outcomes = joint.outcomes(context.results)
    results = [
        result_of(member.experiment, outcome, start, processes.world, processes.device)
        for member, outcome, start in zip(joint.members, outcomes, starts, strict=True)
    ]

    @context.tracker.writing()
    def finish() -> None:
        for member, model, start, result in zip(joint.members, models, starts, results, strict=True):
            config, main = member.experiment.config, member.experiment.main
            record = provenance(config, start, main.name if main else WARMUP, result["metrics"])
            tokenizer, classes = (main.tokenizer, main.class_names) if main else (None, None)
            write_model(model.cpu(), member.folder / EXPORT, config, tokenizer, record, classes)
            if member.folder != folder:
                write_text(member.folder / LOG, seed_log(folder / LOG, config.seed))
            write_text(member.folder / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        if folder not in folders:
            write_text(folder / RESULT, json.dumps({"seeds": [c.seed for c in configs]} | context.results) + "\n")

    processes.main_does(finish)
    processes.main_does(lambda: _push(together, folder))
    return results


def _announce(
    joint: _Joint,
    configs: list[Config],
    folder: Path,
    processes: Processes,
    context: Context,
    resume: tuple[State, Path] | None,
) -> None:
    """Say what the run is, and log what it reads."""
    experiment, main = joint.members[0].experiment, joint.members[0].experiment.main
    start = experiment.given_record()["start"] if joint.warmup is None else "the warm-up"
    if resume:
        start = f"resuming from {resume[1]} ({resume[0].stage} step {resume[0].step:,})"
    stages, seeds = [s for s in (joint.warmup, joint.main) if s is not None], [c.seed for c in configs]
    context.tracker.say(str(Banner.of(experiment, stages, seeds, folder, processes, start)))
    if main is not None and main.data_line() and not resume:
        context.tracker.record({"event": "data", "stage": main.name, **main.facts().get("data", {})})
    for text in dict.fromkeys(text for member in joint.members for text in member.experiment.warnings):
        if not resume:
            context.tracker.record({"event": "warning", "text": text})
        context.tracker.warn(text)


def _build(configs: list[Config], folders: list[Path], folder: Path, world: int, resumes: bool) -> _Joint:
    """Assemble the members; everything that can be refused is refused here, before a file is written."""
    check_trackers(configs[0].run)
    if fsdp_requested():
        check_shardable(configs[0])
    members = [
        _Member(assemble(config, world, resumes=resumes), own) for config, own in zip(configs, folders, strict=True)
    ]
    first = members[0].experiment
    if folder in folders:
        return _Joint(members, first.warmup, first.main)
    if taken := [own for own in folders if not resumes and is_finished(own, configs[0])]:
        raise UserError(f"{taken[0]} holds a finished run; choose another run.dir, or leave its seed out")
    if begun := [own for own in folders if not resumes and has_checkpoint(own, configs[0])]:
        raise UserError(
            f"{begun[0]} holds a run that goes on alone; finish it with vitwarm train, choose another run.dir, or "
            "leave its seed out"
        )
    seeds, experiments = [config.seed for config in configs], [member.experiment for member in members]
    if world > 1:
        raise UserError("an ensemble of seeds trains in one process; launch one, or run the seeds alone")
    warmup = EnsembleStage([e.warmup for e in experiments if e.warmup], seeds) if first.warmup else None
    main = EnsembleStage([e.main for e in experiments if e.main], seeds) if first.main else None
    for stage in (warmup, main):
        if stage is not None:
            stage.check_device_batch(device_batch_size(stage.optim.global_batch, world, configs[0].run.device_batch))
    return _Joint(members, warmup, main)


def _context(
    config: Config,
    folder: Path,
    accelerator: Accelerator,
    processes: Processes,
    state: State | None,
    stop: list[int],
    held: contextlib.ExitStack,
) -> Context:
    """What the stages share; `state` is that of the checkpoint that the run resumes from."""
    tracker = processes.all_do(
        lambda: Tracker(
            folder,
            log_bytes=state.log_bytes if state else 0,
            run_step=state.run_step if state else 0,
            tensorboard=config.run.tensorboard,
            wandb=config.run.wandb,
            config={"recipe": config.name, "hash": recipe_hash(config), **parse_yaml(freeze(config), config.name)},
            active=processes.is_main,
        )
    )
    held.callback(tracker.close)
    return Context(
        accelerator=accelerator,
        processes=processes,
        run=replace(config.run, **_SMOKE_RUN) if config.run.smoke else config.run,
        seed=config.seed,
        recipe_hash=recipe_hash(config),
        tracker=tracker,
        checkpoints=Checkpoints(folder / CHECKPOINTS, config.run.keep_last, config.run.keep_at),
        stop=stop,
        run_step=state.run_step - state.step if state else 0,
        results=state.results if state else {},
        sharded=fsdp_requested(),
    )


def _steady_steps(main: Stage[Any] | None) -> int:
    """How many steps of the main stage come before its learning rate falls; 0 unless its schedule is wsd."""
    return main.steps - main.schedule_lengths[1] if main and main.optim.schedule == "wsd" else 0


def _accelerator(config: Config, held: contextlib.ExitStack) -> Accelerator:
    if config.run.deterministic:
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        held.callback(torch.use_deterministic_algorithms, before[0], warn_only=before[1])
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    accelerator = start_accelerator()
    if accelerator.distributed_type not in _DISTRIBUTED:
        raise UserError(
            f"launched as {accelerator.distributed_type.value}, but only data parallelism (--multi_gpu) and FSDP2 "
            "(--config_file recipes/accelerate/fsdp2.yaml) are supported"
        )
    return accelerator


def _first_weights(joint: _Joint, context: Context, resume: tuple[State, Path] | None) -> list[dict[str, Any]]:
    """Bring each member's model to where its main stage starts; returns the record of it (`start_record`)."""
    if resume and resume[0].stage != WARMUP:
        # The weights come from the checkpoint; only the record of how the run started is still needed.
        return [_read_start(member) for member in joint.members]
    starts: list[tuple[dict[str, Any], TransferReport | None]]
    if joint.warmup is not None:
        trained = joint.train(joint.warmup, context, resume)
        starts = [m.experiment.transfer_warmup(model) for m, model in zip(joint.members, trained, strict=True)]
    else:
        starts = [(member.experiment.given_record(), member.experiment.given) for member in joint.members]

    @context.tracker.writing()
    def write() -> None:
        for member, (start, report) in zip(joint.members, starts, strict=True):
            if report is not None:
                config, main = member.experiment.config, member.experiment.main
                context.tracker.record({"event": "transfer", **report.to_dict()}, str(report))
                stage = WARMUP if member.experiment.warmup else None
                record, tokenizer = provenance(config, start, stage), main.tokenizer if main else None
                write_model(member.experiment.model, member.folder / WARMUP, config, tokenizer, record)

    context.processes.main_does(write)
    return [start for start, _ in starts]


def _read_start(member: _Member) -> dict[str, Any]:
    file, config = member.folder / WARMUP / PROVENANCE, member.experiment.config
    if not file.is_file():
        given = starts_from_given(config)
        known = not given and member.experiment.warmup is None
        text = "fresh weights" if known else f"unknown, since {file} is gone"
        return start_record(config, text, None, [str(file)] if given else [])
    record = read_json(file, start=str, warmed_keys=list, fresh_keys=list)
    kept = ("start", "source_sha256", "warmed_keys", "fresh_keys", *LINEAGE)
    return {key: record[key] for key in kept if key in record}


def _push(config: Config, folder: Path) -> None:
    if config.run.push and not config.run.smoke:
        print(f"pushed to {push_to_hub(folder / EXPORT, config.run.push)}", flush=True)
