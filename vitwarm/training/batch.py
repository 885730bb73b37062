"""What passes between a stage and the loop: micro-batches in, sums over their predictions out."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

B = TypeVar("B", bound="Batch")

Totals = dict[str, float]
"""Sums of an evaluation by name, which are added over processes: `weight`, how many predictions they are over, and what
the stage sums. A count of right predictions is called `correct`."""


@dataclass(kw_only=True, eq=False)
class Batch:
    """A micro-batch of one process. A stage adds fields of its own; those that are tensors travel to the device.

    Attributes:
        weight: how many predictions its loss sums over, on this process.
    """

    weight: float

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def map(self: B, change: Callable[[Tensor], Tensor]) -> B:
        """The same batch with each tensor changed."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def to(self: B, device: torch.device) -> B:
        """The same batch on a device. The copy of pinned memory does not wait."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(eq=False)
class Sums:
    """Sums over the predictions of a micro-batch, each prediction times its weight where the stage weighs them.

    Attributes:
        loss: (), in nats; differentiable.
        correct: (), how many predictions were right; None where the stage does not count them.
    """

    loss: Tensor
    correct: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """Name -> sum, without gradients; a sum that the stage does not count is left out."""
        found = {"loss": self.loss} if self.correct is None else {"loss": self.loss, "correct": self.correct}
        return {name: value.detach() for name, value in found.items()}


def means(totals: Totals) -> dict[str, float]:
    """Metrics that are means over predictions.

    Returns:
        Each sum divided by `weight`, under its own name, but `correct` as `accuracy`; `weight` itself as `count`.
    """
    count = totals["weight"]
    sums = {"accuracy" if name == "correct" else name: v for name, v in totals.items() if name != "weight"}
    return {name: v / max(count, 1.0) for name, v in sums.items()} | {"count": count}
