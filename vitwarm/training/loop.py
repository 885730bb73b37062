"""The one training loop. It knows the Stage protocol, and nothing of images, symbols or text."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from vitwarm.config import OptimConfig, RunConfig
from vitwarm.errors import Interrupted, UserError
from vitwarm.exports.layout import WARMUP
from vitwarm.keys import keyed_rng
from vitwarm.training.batch import Batch, Sums, means
from vitwarm.training.checkpoint import (
    Checkpoints,
    State,
    optimizer_tensors,
    optimizer_values,
    read_tensors,
    restore_optimizer,
)
from vitwarm.training.meters import FIRST_STEPS, Meter, count_flops, duration
from vitwarm.training.optimizers import make_optimizer
from vitwarm.training.processes import Processes
from vitwarm.training.protocol import Stage
from vitwarm.training.schedule import is_steady, learning_rate
from vitwarm.training.sharding import Sharded, gather_all, gather_tensor
from vitwarm.training.tracking import Tracker

# Windows of sums are kept in double precision, where the device has it.
_SUMS = {"mps": torch.float32}


class Wrapper(Protocol):
    """What the loop asks of an Accelerator."""

    def prepare_model(self, model: Any, /) -> Any:
        """The model on its device, under DDP where there are several processes."""

    def no_sync(self, model: Any, /) -> contextlib.AbstractContextManager[Any]:
        """Inside, gradients of the processes are not averaged."""


@dataclass
class Context:
    """What the stages of one run share.

    Attributes:
        accelerator: of the run.
        seed: root seed.
        recipe_hash: stored in every checkpoint.
        checkpoints: None keeps none.
        stop: signals that came so far (`vitwarm.signals`); any ends the run after the step in progress.
        run_step: optimiser steps of the stages that are over.
        results: stage -> outcome, of the stages that are over.
        sharded: split each stage's weights over the processes (`vitwarm.training.sharding`).
    """

    accelerator: Wrapper
    processes: Processes
    run: RunConfig
    seed: int
    recipe_hash: str
    tracker: Tracker
    checkpoints: Checkpoints | None
    stop: list[int]
    run_step: int = 0
    results: dict[str, Any] = field(default_factory=dict)
    sharded: bool = False


def device_batch_size(global_batch: int, world: int, largest: int | None) -> int:
    """Samples a device takes at once; the steps that it takes to make up the global batch are the accumulation.

    Raises:
        UserError: the global batch cannot be split evenly.
    """
    if global_batch % world:
        raise UserError(
            f"global_batch {global_batch} does not divide over {world} processes; "
            "the global batch is part of the recipe: launch a number of processes that divides it"
        )
    share = global_batch // world
    size = min(largest or share, share)
    if share % size:
        fits = max(d for d in range(1, size + 1) if share % d == 0)
        raise UserError(
            f"run.device_batch {size} does not divide the {share} samples a process takes a step; use {fits}"
        )
    return size


def check_compile(optim: OptimConfig, device: torch.device) -> None:
    """Compile something small, if the stage is to be compiled: what is missing here would be missed at its first step.

    Raises:
        UserError: the compiler does not work.
    """
    if not optim.compile:
        return
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except TorchDynamoException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"compile=true needs a C++ compiler (g++), and on a GPU triton: {reason}; install it, or set compile=false"
        ) from error


def train_stage(stage: Stage[Any], context: Context, resume: tuple[State, Path] | None = None) -> nn.Module:
    """Train a stage to its end, from its start or from a checkpoint of it.

    Checkpoints, logs and evaluations happen on the way; the outcome is added to `context.results` and the step
    count of the run advances.

    Args:
        stage: see `vitwarm.training.protocol`.
        context: what the run's stages share.
        resume: state and folder of a checkpoint within this stage.

    Returns:
        The model to evaluate or export: the moving average if there is one, on the CPU's or the device's memory.

    Raises:
        UserError: non-finite loss, damaged data past the threshold, a disk that is full.
        Interrupted: a signal came; a checkpoint of the last finished step was written.
    """
    return Training(stage, context, resume).run()


class Training:
    """The state of `train_stage`: built, then run once; a benchmark takes single steps."""

    def __init__(self, stage: Stage[Any], context: Context, resume: tuple[State, Path] | None):
        self.stage, self.context, self.processes = stage, context, context.processes
        device, optim = context.processes.device, stage.optim
        self.device_batch = device_batch_size(optim.global_batch, self.processes.world, context.run.device_batch)
        self.accumulation = optim.global_batch // (self.processes.world * self.device_batch)
        self.model = stage.start_model().to(device).train()
        self.ema = ModelEmaV3(self.model, decay=optim.ema, foreach=True) if optim.ema else None
        self.state = State(stage.name, 0, context.run_step, context.recipe_hash)
        if resume is not None:
            self._restore(*resume)
        self.state.results = context.results
        example, samples = stage.example()
        flops = count_flops(lambda: stage.losses(self.model.eval(), example.to(device), 0))
        self.flops_per_sample = flops / samples
        self.model.train()
        if optim.compile:
            for block in stage.blocks():  # in place: tensor names stay clean
                block.compile()
        self.sharded = Sharded(self.model, stage.blocks()) if context.sharded and self.processes.world > 1 else None
        self.wrapped = self.model if self.sharded else context.accelerator.prepare_model(self.model)
        # Of the weights as they are now, split or not.
        self.optimizer = make_optimizer(optim, stage.parameter_groups(), self.model)
        if resume is not None:
            tensors = read_tensors(resume[1], "optimizer")
            restore_optimizer(self.model, self.optimizer, tensors, self.state.optimizer)
        self.sums: dict[str, Tensor] = {}
        self.weight = 0.0
        self.bad_step = torch.full((), math.inf, device=device)  # first step with a non-finite loss or gradient
        self.meter = Meter(
            optim.global_batch, stage.tokens_per_sample, self.flops_per_sample, device, self.processes.world
        )
        self.first_step = self.state.step
        self.seconds_before = self.state.totals.get("seconds", 0.0)
        self.stalled = False

    def _restore(self, state: State, path: Path) -> None:
        self.state = state
        self.model.load_state_dict(read_tensors(path, "model"))
        if self.ema is not None:
            self.ema.module.load_state_dict(read_tensors(path, "ema"))

    def run(self) -> nn.Module:
        stage, state, context = self.stage, self.state, self.context
        context.tracker.start_stage(stage.name, state.step, stage.steps)
        if state.metrics:
            stage.follow(state.metrics)
        with self._autocast():
            path = stage.path()
        if path is not None:
            self._record(
                {"event": "path", "stage": stage.name, "step": state.step, "path": path}, f"{stage.name}: {path}"
            )
        batches = stage.batches(state.step, self.processes.rank, self.processes.world, self.device_batch)
        with contextlib.closing(batches):  # ends its threads and workers, whatever happens
            while state.step < stage.steps:
                self.step(batches)
        context.tracker.end_stage()
        context.run_step = state.run_step
        context.results[stage.name] = {
            "steps": state.step,
            **state.totals,
            **({"damaged_samples": len(state.damaged)} if state.damaged else {}),
            "metrics": state.metrics,
            "best": state.best,
        }
        return self._whole_model()

    def _whole_model(self) -> nn.Module:
        """The model that is evaluated and exported; under FSDP every rank must call it."""
        if self.sharded:
            return self.sharded.gathered()
        return self.ema.module if self.ema else self.model

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        return self.sharded.no_sync() if self.sharded else self.context.accelerator.no_sync(self.wrapped)

    def step(self, batches: Iterator[Batch]) -> None:
        """Take a step, with the log line, evaluation and checkpoint that fall due after it."""
        stage, state, context = self.stage, self.state, self.context
        began = time.perf_counter()
        micro, trouble = self._next(batches)
        waited = time.perf_counter() - began
        weight, stopping, failed = self.processes.sum(
            [sum(b.weight for b in micro), float(bool(context.stop)), float(trouble is not None)]
        )
        if failed:
            raise UserError(next(t for t in self.processes.gather(trouble) if t is not None))
        step = state.step + 1
        last = step == stage.steps
        log_due = step % context.run.log_every == 0 or last
        eval_due = step % stage.eval_every == 0 or last
        kept = state.run_step + 1 in context.run.keep_at
        save_due = step % context.run.checkpoint_every == 0 or kept or last or bool(stopping)
        grad_norm = self._update(micro, weight, want_norm=log_due or eval_due or save_due)
        state.step, state.run_step = step, state.run_step + 1
        self.meter.step(waited)
        context.tracker.advance()
        if log_due:
            assert grad_norm is not None
            self._log(grad_norm)
        if step == self.first_step + FIRST_STEPS and not last:
            context.tracker.say(
                f"{stage.name}: about {duration((stage.steps - step) * self.meter.pace())} for the other "
                f"{stage.steps - step:,} steps at the pace of the first {FIRST_STEPS}; evaluations come on top"
            )
        if eval_due or save_due:
            self.meter.pause()
            self._check_finite(weights=True)
            improved = self._evaluate() if eval_due else False
            if save_due or improved:
                self._save()
            self.meter.resume()
        if stopping:
            context.tracker.end_stage()
            raise Interrupted(f"stopped by a signal at {stage.name} step {step} of {stage.steps}")

    def _next(self, batches: Iterator[Batch]) -> tuple[list[Batch], str | None]:
        """The micro-batches of a step, or what went wrong; every rank then stops, not this one alone."""
        try:
            return [next(batches) for _ in range(self.accumulation)], None
        except UserError as error:
            return [], str(error)

    def _update(self, micro: list[Batch], weight: float, want_norm: bool) -> Tensor | None:
        """One optimiser step on this rank's micro-batches; `weight` counts the predictions of all ranks."""
        stage, optim, step = self.stage, self.stage.optim, self.state.step
        # Dropout and drop-path draw from here: a pure function of (seed, stage, step, rank), so nothing is saved.
        rng = keyed_rng(self.context.seed, stage.name, "step", step, self.processes.rank)
        torch.manual_seed(int(rng.integers(2**63)))
        lr = learning_rate(step, stage.steps, optim, *stage.schedule_lengths)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        for i, batch in enumerate(micro):
            last = i == len(micro) - 1
            with contextlib.nullcontext() if last else self._no_sync():
                with self._autocast():
                    sums = stage.losses(self.wrapped, batch.to(self.processes.device), step)
                # DDP averages over ranks; the loss is the mean over the predictions of the whole global batch.
                (sums.loss * (self.processes.world / max(weight, 1.0))).backward()
            self._guard(sums.loss.detach())
            self._add(sums)
        self.weight += weight
        norm = None  # on request only: it costs a pass over the gradients
        if optim.clip_grad or want_norm:
            norm = gather_tensor(stage.clip(self.model.parameters(), optim.clip_grad or math.inf))
            self._guard(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model)
        return norm

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        """The precision of the stage.

        Torch forgets its bf16 copies of the weights when the outermost autocast ends. Where another one is around the
        run, also one that is off, they would outlive the step that changes the weights, so they are dropped here.
        """
        bf16 = self.stage.optim.precision == "bf16"
        torch.clear_autocast_cache()  # of what a checkpointed block has cast in the backward pass
        try:
            with torch.autocast(self.processes.device.type, dtype=torch.bfloat16, enabled=bf16):
                yield
        finally:
            torch.clear_autocast_cache()

    def _add(self, sums: Sums) -> None:
        for name, value in sums.named().items():
            value = value.to(_SUMS.get(value.device.type, torch.float64))
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _guard(self, value: Tensor) -> None:
        """Note the step if the value is not finite; nothing waits for the device until `_check_finite`."""
        now = torch.where(value.isfinite(), math.inf, float(self.state.step + 1))
        self.bad_step = torch.minimum(self.bad_step, now)

    def _check_finite(self, weights: bool = False) -> None:
        """Stop at a loss or gradient that was not finite, and with `weights` at weights that are not."""
        first = min(self.processes.gather(float(self.bad_step)))
        if not math.isinf(first):
            raise UserError(self._not_finite(f"the loss or its gradient is not finite from step {int(first)} on"))
        if weights and not all(self.processes.gather(self._weights_finite())):
            raise UserError(self._not_finite(f"the weights are not finite after step {self.state.step}"))

    def _not_finite(self, what: str) -> str:
        kept = self.context.checkpoints
        newest = kept.all() if kept else []
        return (
            f"{self.stage.name}: {what}; lower the learning rate ({self.stage.optim.lr:g}) or set clip_grad; last good "
            f"checkpoint: {newest[-1] if newest else 'none'}"
        )

    def _weights_finite(self) -> bool:
        averaged = self.ema.module.parameters() if self.ema else ()
        weights = [p.detach() for p in (*self.model.parameters(), *averaged)]
        local = [getattr(p, "to_local", lambda p=p: p)() for p in weights]  # under FSDP each rank looks at its part
        return bool(torch.stack([p.isfinite().all() for p in local]).all())

    def _log(self, grad_norm: Tensor) -> None:
        """One line of log.jsonl. Reading the sums is the only synchronisation of the device."""
        state, stage = self.state, self.stage
        self._check_finite()
        names = sorted(self.sums)
        values = self.processes.sum([self.sums[n].item() for n in names])
        found = means({**dict(zip(names, values, strict=True)), "weight": self.weight})
        del found["count"]  # of a window of steps
        entry: dict[str, Any] = {
            "event": "train",
            "stage": stage.name,
            "step": state.step,
            "run_step": state.run_step,
            "samples": state.step * stage.optim.global_batch,
            **found,
            "lr": learning_rate(state.step - 1, stage.steps, stage.optim, *stage.schedule_lengths),
            "grad_norm": float(grad_norm),
            **self.meter.read(),
        }
        self.sums, self.weight = {}, 0.0
        shown = " ".join(f"{n} {v:.4f}" for n, v in found.items())
        self._record(
            entry,
            f"{stage.name} {state.step}/{stage.steps} {shown} lr {entry['lr']:.2e} "
            f"{entry['samples_per_s']:.0f} samples/s wait {entry['data_wait_pct']:.1f}%",
        )
        if entry["data_wait_pct"] > 10 and state.step > 2 * self.context.run.log_every and not self.stalled:
            self.stalled = True
            hint = "" if stage.name == WARMUP else "; see run.workers"  # a warm-up writes its data itself
            self.context.tracker.warn(
                f"{stage.name}: {entry['data_wait_pct']:.0f} % of the time is spent waiting for data{hint}"
            )
        self._collect_events()

    def _record(self, entry: dict[str, Any], show: str | None = None) -> None:
        """Write a line of log.jsonl; a full disk stops every rank, not the main one alone."""
        self.processes.main_does(lambda: self.context.tracker.record(entry, show))

    def _collect_events(self) -> None:
        known = set(self.state.damaged)
        for event in (e for events in self.processes.gather(self.stage.events()) for e in events):
            if event["sample"] not in known:
                known.add(event["sample"])
                self._record({"stage": self.stage.name, "step": self.state.step, **event})
                self.context.tracker.warn(f"damaged sample {event['sample']}: {event['reason']}")
        self.state.damaged = sorted(known)
        self.stage.check_events(self.state.damaged)

    def _evaluate(self) -> bool:
        """Evaluate the model; returns whether it is the best so far."""
        state, stage = self.state, self.stage
        model = self._whole_model()
        was = model.training
        model.eval()
        started = time.perf_counter()
        batches = math.ceil(stage.val_samples / self.processes.world / self.device_batch)
        with torch.inference_mode(), self._autocast(), self.context.tracker.evaluating(model, batches):
            sums = self.processes.all_do(
                lambda: stage.evaluate(model, self.processes.rank, self.processes.world, self.device_batch)
            )
        model.train(was)
        names = sorted(sums)
        totals = dict(zip(names, self.processes.sum([float(sums[n]) for n in names]), strict=True))
        metrics = stage.metrics(totals)
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise UserError(self._not_finite(f"{bad[0]} of the evaluation at step {state.step} is not finite"))
        state.metrics = metrics
        stage.follow(state.metrics)
        value = state.metrics.get(stage.best) if stage.best else None
        improved = value is not None and (state.best is None or value > state.best["value"])
        if improved:
            at = {"run_step": state.run_step, "step": state.step}
            state.best = {"value": value, **at, "metrics": dict(state.metrics)}
        entry = {"event": "eval", "stage": stage.name, "step": state.step, "run_step": state.run_step}
        shown = " ".join(f"{n} {v:.4f}" for n, v in state.metrics.items() if n != "count" and "/" not in n)
        self._record(
            {**entry, **state.metrics, "seconds": time.perf_counter() - started},
            f"{stage.name} {state.step}/{stage.steps} eval: {shown}",
        )
        return improved

    def _save(self) -> None:
        self._collect_events()
        stage = self.stage
        self.state.steady = is_steady(self.state.step, stage.steps, stage.optim, stage.schedule_lengths[1])
        samples = self.state.step * stage.optim.global_batch
        self.state.totals = {
            "samples": samples,
            "tokens": samples * stage.tokens_per_sample,
            "seconds": self.seconds_before + self.meter.seconds,
            "flops": samples * self.flops_per_sample,
        }
        checkpoints = self.context.checkpoints
        if checkpoints is None:
            return
        self.state.optimizer = optimizer_values(self.model, self.optimizer)
        tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.model, self.optimizer)}
        if self.ema is not None:
            tensors["ema"] = self.ema.module.state_dict()
        tensors = {name: gather_all(group, keep=self.processes.is_main) for name, group in tensors.items()}

        @self.context.tracker.writing()
        def write() -> None:
            self.state.log_bytes = self.context.tracker.bytes
            checkpoints.save(self.state, tensors)

        self.processes.main_does(write)
