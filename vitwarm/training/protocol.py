"""What the loop knows of a stage."""

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vitwarm.config import OptimConfig
from vitwarm.training.batch import Batch, Sums, Totals, means

B = TypeVar("B", bound=Batch)


class Stage(Protocol[B]):
    """Stem + trunk + head + data + objective + evaluation. The loop needs nothing else.

    Stages derive from this class: what is abstract they must define, the rest is what most of them do.

    Attributes:
        name: `warmup`, `images`, ...
        model: what is trained; tensor names are those of its checkpoints.
        optim: optimisation keys of the recipe.
        steps: optimiser steps of the stage.
        schedule_lengths: (LR warm-up, cooldown) in steps.
        tokens_per_sample: trunk tokens that one sample costs, prefix tokens included.
        samples: that the stage trains on, repeats counted.
        val_samples: samples of one evaluation.
        eval_every: steps between evaluations; the last step is always evaluated.
        best: metric of `evaluate` that ranks checkpoints, higher is better; None keeps no best.
    """

    name: str
    model: nn.Module
    optim: OptimConfig
    steps: int
    schedule_lengths: tuple[int, int]
    tokens_per_sample: int
    val_samples: int
    eval_every: int
    best: str | None

    @property
    @abstractmethod
    def samples(self) -> int: ...

    def describe(self) -> str:
        """What is learnt from what, in a few words; empty where the name says it."""
        return ""

    def shorten(self, steps: int, val_samples: int) -> None:
        """Become a stage of few steps and short evaluations, two of them; the schedule shrinks with the steps.

        Args:
            steps: of the stage, at most.
            val_samples: of an evaluation, at most.
        """
        kept = min(steps, self.steps)
        warmup, cooldown = (length * kept // max(1, self.steps) for length in self.schedule_lengths)
        self.steps, self.schedule_lengths = kept, (warmup, cooldown)
        self.eval_every, self.val_samples = max(1, -(-kept // 2)), min(val_samples, self.val_samples)

    def check_device_batch(self, size: int) -> None:
        """Refuse a number of samples that the stage cannot work on at once.

        Raises:
            UserError: it cannot.
        """
        return

    def rehearse(self, device: torch.device) -> None:
        """Refuse, before any stage is trained, data that the stage could not hold on that device.

        Raises:
            UserError: it could not.
        """
        return

    def start_model(self) -> nn.Module:
        """`model` with the weights that the stage starts from. The loop calls it once, before anything of the model."""
        return self.model

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser: `params`, `weight_decay`, and `lr_scale` that the schedule is multiplied by."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Modules to compile in place, and those of them with weights to shard one by one."""

    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """Scale the gradients in place so that their norm is at most `largest`; returns the norm that they had."""
        return nn.utils.clip_grad_norm_(parameters, largest)

    @abstractmethod
    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[B, None, None]:
        """This rank's micro-batches from step `start` to the end, in order, on the CPU.

        A micro-batch is a pure function of the recipe and of the metrics that `follow` got last before it is drawn.
        """

    @abstractmethod
    def losses(self, model: Callable[..., Any], batch: B, step: int) -> Sums:
        """Sums over the micro-batch's predictions; `loss` is differentiated, and the log shows their means.

        Args:
            model: `self.model`, perhaps wrapped, or a function that is called in the same way.
            batch: on the device of the model.
            step: number of the optimiser step.
        """

    def path(self) -> str | None:
        """How the losses are computed where there is more than one way, and why, for the log."""
        return None

    @abstractmethod
    def evaluate(self, model: nn.Module, rank: int, world: int, device_batch: int) -> Totals:
        """This rank's sums over its share of the validation set, and their `weight`."""

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Metrics from the sums of `evaluate`, added over all ranks; each sum becomes a mean over predictions.

        A metric whose name has a slash is logged, but not shown on the terminal.
        """
        return means(totals)

    def follow(self, metrics: dict[str, float]) -> None:
        """Take the latest metrics: after each evaluation, and when a run resumes from a checkpoint behind one."""
        return

    @abstractmethod
    def example(self) -> tuple[B, int]:
        """A micro-batch to count FLOPs on, and how many samples it holds."""

    def events(self) -> list[dict[str, Any]]:
        """Events of this rank's data since the last call, for the log: `event`, `sample` (a name), `reason`."""
        return []

    def check_events(self, damaged: list[str]) -> None:
        """Refuse to train on with too many damaged samples.

        Args:
            damaged: names of all that any rank met so far.

        Raises:
            UserError: they are too many.
        """
        return

    def members(self, trained: nn.Module) -> list[nn.Module]:
        """The models in the trained one: itself, or one for each seed of an ensemble."""
        return [trained]

    def outcomes(self, result: dict[str, Any]) -> list[dict[str, Any]]:
        """The loop's outcome of the stage (`Context.results`) for each of `members`."""
        return [result]
